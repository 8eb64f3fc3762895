//! An ephemeral Postgres server for `demo` and for tests: the installed programs on a new data directory, removed when
//! dropped.
//!
//! `initdb` and Postgres run under a shell that reads from a pipe whose other end only this process holds. So they stop
//! however this process ends, `kill -9` included, and [`TempDir`] then removes the directory.
//!
//! The unix socket is in a directory that only the server's account can enter, and needs no password. On the loopback
//! interface every local user could connect, and a superuser can run programs as the server's account: there the
//! server demands a random password.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use super::temp_dir::TempDir;

/// The path of a unix socket is limited to 107 bytes, and the name of the socket is `/.s.PGSQL.65535`.
const MAX_DIRECTORY: usize = 107 - 15;
/// Maximum time to start; the first start on a slow disk can take long.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Runs the command line in `$@`. `read` returns at the end of the pipe, or with the request to let the program end by
/// itself. SIGINT is Postgres' fast shutdown, which terminates sessions and leaves the data consistent; `initdb` ends
/// after its current step. It is sent until the program has ended: a program in the background of a shell ignores it
/// until it has installed its own handler. `wait` reaps the program, because the next start of a server would consider
/// the data of a zombie as in use. The standard output is a [`TempDir::hold`], which the program inherits as
/// descriptor 3.
const GUARD: &str = r#"
exec 3>&1 >&2
"$@" & program=$!
exec >/dev/null 2>&1
read -r request
[ "$request" = keep ] || while kill -INT $program; do sleep 0.1; done
wait $program
"#;

/// The request to let the program end by itself.
const KEEP: &[u8] = b"keep\n";

/// Why the server could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum EphemeralError {
    /// The server programs are not installed.
    #[error(
        "no PostgreSQL server programs found in PGBIN, /usr/lib/postgresql/*/bin, PATH or by pg_config: \
         install them, on Debian with `apt-get install postgresql`"
    )]
    NoPrograms,
    /// A file or a program could not be used.
    #[error("cannot {doing}")]
    Io {
        /// The operation that failed.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed:\n{output}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its output.
        output: String,
    },
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> EphemeralError {
    let doing = doing.into();
    move |source| EphemeralError::Io { doing, source }
}

/// Settings of an ephemeral server.
#[derive(Debug, Clone, Default)]
pub struct EphemeralOptions {
    /// Where its directory is created; default: the system's temporary directory.
    pub parent: Option<PathBuf>,
    /// Also listen on a free port of 127.0.0.1.
    pub loopback: bool,
    /// Further server settings, such as `("fsync", "off")`.
    pub settings: Vec<(String, String)>,
}

/// A running server; dropping it stops the server and removes its directory.
pub struct EphemeralPostgres {
    programs: PathBuf,
    account: Option<Account>,
    port: u16,
    password: String,
    options: EphemeralOptions,
    guard: Option<(Child, ChildStdin)>,
    // Dropped last: the server must have stopped.
    directory: TempDir,
}

/// The account the server runs as if this process runs as root, which Postgres refuses to.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl EphemeralPostgres {
    /// Creates a data directory and starts a server on it.
    ///
    /// # Errors
    /// See [`EphemeralError`].
    pub fn start(options: EphemeralOptions) -> Result<Self, EphemeralError> {
        let mut server = Self::create(options)?;
        let password_file = server.write_password()?;
        let password_option = format!("--pwfile={}", password_file.display());
        let authentication = ["--auth-local=trust", "--auth-host=scram-sha-256", &password_option];
        let encoding = ["-E", "UTF8", "--no-locale", "--no-sync", "-U", "postgres"];
        server.run_program("initdb", &[&authentication[..], &encoding].concat())?;
        std::fs::remove_file(&password_file).map_err(io_error("remove the password file"))?;
        server.resume()?;
        Ok(server)
    }

    /// Starts a streaming hot standby of `primary` with the same settings.
    ///
    /// # Errors
    /// See [`EphemeralError`].
    pub fn standby_of(primary: &Self) -> Result<Self, EphemeralError> {
        let mut standby = Self::create(primary.options.clone())?;
        standby.password.clone_from(&primary.password);
        let source = primary.url("postgres");
        standby.run_program("pg_basebackup", &["-d", &source, "-R", "-X", "stream", "-c", "fast", "--no-sync"])?;
        standby.resume()?;
        Ok(standby)
    }

    /// Prepares everything except the data.
    fn create(options: EphemeralOptions) -> Result<Self, EphemeralError> {
        let programs = find_programs().ok_or(EphemeralError::NoPrograms)?;
        let account = account()?;
        let parent = options.parent.clone().unwrap_or_else(std::env::temp_dir);
        let directory = parent.join(format!("model-catalog-{:08x}", fastrand::u32(..)));
        if directory.as_os_str().len() > MAX_DIRECTORY {
            let long =
                io::Error::other(format!("its path is longer than {MAX_DIRECTORY} bytes; set TMPDIR to a shorter one"));
            return Err(io_error(format!("use {} for a socket", directory.display()))(long));
        }
        let directory =
            TempDir::create(directory.clone()).map_err(io_error(format!("create {}", directory.display())))?;
        if let Some(Account { uid, gid }) = account {
            chown(directory.path(), Some(uid), Some(gid))
                .map_err(io_error("give the directory to the server's account"))?;
        }
        let port = if options.loopback { free_port().map_err(io_error("find a free port"))? } else { 5432 };
        let password = random_password().map_err(io_error("read /dev/urandom"))?;
        Ok(Self { programs, account, port, password, options, guard: None, directory })
    }

    /// Writes the password to a file that only the server's account can read.
    fn write_password(&self) -> Result<PathBuf, EphemeralError> {
        let path = self.directory.path().join("password");
        let written = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            writeln!(file, "{}", self.password)?;
            self.account.map_or(Ok(()), |Account { uid, gid }| chown(&path, Some(uid), Some(gid)))
        };
        written().map_err(io_error("write the password file"))?;
        Ok(path)
    }

    /// The directory of its unix socket, which libpq accepts as a host.
    #[must_use]
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its port, on the loopback interface and in the name of the socket.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's data directory.
    #[must_use]
    pub fn data_directory(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A connection string for `database` over the unix socket.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.directory.path().display(), self.port)
    }

    /// A connection string for `database` over the loopback interface, with the password.
    #[must_use]
    pub fn loopback_url(&self, database: &str) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// A command that runs one of the server's programs under the server's account.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        self.drop_privileges(&mut command);
        command
    }

    /// The process group of its own keeps a Ctrl-C in the terminal from reaching the server.
    fn drop_privileges(&self, command: &mut Command) {
        command.current_dir("/").process_group(0).stdin(Stdio::null());
        if let Some(Account { uid, gid }) = self.account {
            command.uid(uid).gid(gid);
        }
    }

    /// Starts a program of the server under the guard; its output goes to `output`.
    fn spawn_guarded(&self, name: &str, arguments: &[&str], output: Stdio) -> io::Result<(Child, ChildStdin)> {
        let mut command = Command::new("/bin/sh");
        self.drop_privileges(&mut command);
        command.args(["-c", GUARD, "model-catalog-guard"]).arg(self.programs.join(name));
        command.arg("-D").arg(self.data_directory()).args(arguments);
        command.stdin(Stdio::piped()).stdout(self.directory.hold()?).stderr(output);
        let mut guard = command.spawn()?;
        let pipe = guard.stdin.take().ok_or_else(|| io::Error::other("its stdin is not a pipe"))?;
        Ok((guard, pipe))
    }

    fn run_program(&self, name: &'static str, arguments: &[&str]) -> Result<(), EphemeralError> {
        let run = || {
            let (mut guard, mut pipe) = self.spawn_guarded(name, arguments, Stdio::piped())?;
            let mut output = Vec::new();
            // Ends with the program.
            guard.stderr.take().map(|mut errors| errors.read_to_end(&mut output)).transpose()?;
            pipe.write_all(KEEP)?;
            Ok((guard.wait()?, output))
        };
        let (status, output) = run().map_err(io_error(format!("run {name}")))?;
        if status.success() {
            return Ok(());
        }
        Err(EphemeralError::Failed { program: name, output: String::from_utf8_lossy(&output).into_owned() })
    }

    /// Starts the server on its existing data and waits until it accepts connections.
    ///
    /// # Errors
    /// See [`EphemeralError`].
    pub fn resume(&mut self) -> Result<(), EphemeralError> {
        let log_path = self.directory.path().join("server.log");
        let log = std::fs::File::create(&log_path).map_err(io_error("create the server's log"))?;
        let (directory, port) = (self.directory.path().display().to_string(), self.port.to_string());
        let listen = format!("listen_addresses={}", if self.options.loopback { "127.0.0.1" } else { "" });
        let settings: Vec<_> = self.options.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut arguments = vec!["-k", &*directory, "-p", &port, "-c", &listen, "-c", "unix_socket_permissions=0700"];
        arguments.extend(settings.iter().flat_map(|setting| ["-c", setting]));
        let guard = self.spawn_guarded("postgres", &arguments, log.into());
        self.guard = Some(guard.map_err(io_error("start /bin/sh"))?);
        self.wait_until_ready().inspect_err(|_| self.shut_down())
    }

    fn wait_until_ready(&mut self) -> Result<(), EphemeralError> {
        let deadline = Instant::now() + START_LIMIT;
        // Line 8 of this file is the state of the server.
        let pid_file = self.data_directory().join("postmaster.pid");
        loop {
            let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
            if text.lines().nth(7).is_some_and(|line| line.trim() == "ready") && is_alive(&text) {
                return Ok(());
            }
            if Instant::now() > deadline || self.postmaster_exited() {
                let log = std::fs::read_to_string(self.directory.path().join("server.log")).unwrap_or_default();
                return Err(EphemeralError::Failed { program: "postgres", output: log });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the server exited by itself, which leaves its guard reading from the pipe without a child process.
    fn postmaster_exited(&mut self) -> bool {
        let Some((guard, _)) = &mut self.guard else { return true };
        let log = std::fs::metadata(self.directory.path().join("server.log")).map_or(0, |log| log.len());
        log > 0 && !children(guard.id()).split_whitespace().any(is_running)
    }

    /// Process id of the server.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.data_directory().join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// Stops the server with `signal` (`INT` is a fast shutdown, `QUIT` an immediate one) and keeps its data.
    ///
    /// # Errors
    /// See [`EphemeralError`].
    pub fn stop(&mut self, signal: &str) -> Result<(), EphemeralError> {
        let Some((mut guard, mut pipe)) = self.guard.take() else { return Ok(()) };
        if let Some(pid) = self.pid() {
            let backends = children(pid);
            let killed = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
            killed.map_err(io_error("run kill"))?;
            pipe.write_all(KEEP).map_err(io_error("write to the guard"))?;
            guard.wait().map_err(io_error("wait for the guard"))?;
            // The backends of a killed server exit a moment later; until then they hold shared memory that the next
            // start needs.
            while backends.split_whitespace().any(is_running) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    fn shut_down(&mut self) {
        if let Some((mut guard, pipe)) = self.guard.take() {
            drop(pipe);
            let _ = guard.wait();
        }
    }
}

impl Drop for EphemeralPostgres {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Process ids of the children of a process, separated by spaces.
fn children(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default()
}

/// Whether the process id file belongs to a running server: one that was killed leaves it behind.
fn is_alive(pid_file: &str) -> bool {
    pid_file.lines().next().is_some_and(|pid| is_running(pid.trim()))
}

/// Whether a process runs and is not a zombie. The guard does not reap an exited server while it is in `read`.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    // The name before the state is in parentheses and may contain anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// 128 random bits in hex, which need no escaping in a URL.
fn random_password() -> io::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// A port that is free now. It is outside of the range from which Linux chooses ports (32768 to 60999), so that no
/// other socket gets it before a program listens on it.
///
/// # Errors
/// All ports that were tried are in use.
pub fn free_port() -> io::Result<u16> {
    let mut candidates = std::iter::repeat_with(|| fastrand::u16(10_000..32_000)).take(100);
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    candidates.find(free).ok_or_else(|| io::ErrorKind::AddrInUse.into())
}

/// The directory of `initdb` and `postgres`.
fn find_programs() -> Option<PathBuf> {
    let installed = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let version = |entry: &std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
        let mut found: Vec<_> = versions.flatten().filter_map(|entry| Some((version(&entry)?, entry.path()))).collect();
        found.sort();
        Some(found.into_iter().rev().map(|(_, path)| path.join("bin")).collect::<Vec<_>>())
    };
    let pg_config = || {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let chosen = std::env::var_os("PGBIN").filter(|path| !path.is_empty()).map(PathBuf::from).into_iter();
    let mut candidates =
        chosen.chain(installed().unwrap_or_default()).chain(std::env::split_paths(&path)).chain(pg_config());
    candidates.find(|folder| folder.join("postgres").exists() && folder.join("initdb").exists())
}

/// The account for the server; `None` to keep that of this process.
fn account() -> Result<Option<Account>, EphemeralError> {
    let process = std::fs::metadata("/proc/self").map_err(io_error("find the user of this process"))?;
    if process.uid() != 0 {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd").map_err(io_error("read /etc/passwd"))?;
    let named = |name: &str| {
        let mut fields = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let found = fields.find(|fields| fields.len() > 3 && fields[0] == name)?;
        Some(Account { uid: found[2].parse().ok()?, gid: found[3].parse().ok()? })
    };
    let account = named("postgres").or_else(|| named("nobody"));
    let missing =
        || io::Error::other("Postgres refuses to run as root, and there is no account `postgres` or `nobody`");
    account.map(Some).ok_or_else(missing).map_err(io_error("start Postgres"))
}
