//! A private Postgres server, for `demo` and for tests: real programs, a new data directory, gone when dropped.
//!
//! Postgres runs under a shell that waits for the end of a pipe which only this process holds. So the server ends
//! however this process ends, kill -9 included. (PR_SET_PDEATHSIG would fire when the spawning thread ends.)

use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// A unix socket's path may have 107 bytes, and the socket adds `/.s.PGSQL.65535`.
const MAX_DIRECTORY: usize = 107 - 15;
/// initdb and a first start on a slow disk.
const START_LIMIT: Duration = Duration::from_secs(60);

/// `$1` = the directory to remove, the rest = the server. `read` returns at the end of the pipe, or with an order to
/// keep the data of a server that is ending by itself. SIGINT is Postgres' fast shutdown: it ends sessions and leaves
/// the data sound. `wait` reaps the server: as a zombie it would still own its data in the eyes of the next one.
const GUARD: &str = r#"
directory=$1; shift
"$@" & server=$!
read -r order
[ "$order" = keep ] || kill -INT $server 2>/dev/null
wait $server
[ "$order" = keep ] || [ -z "$directory" ] || rm -rf "$directory"
"#;

/// Why there is no private server.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// No server programs on this machine.
    #[error(
        "no PostgreSQL server programs found (looked in PGBIN, /usr/lib/postgresql/*/bin, PATH and pg_config): \
         install them, on Debian with `apt-get install postgresql`"
    )]
    NoPrograms,
    /// A file or a program could not be used.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why not.
        source: io::Error,
    },
    /// A program said no.
    #[error("{program} failed:\n{output}")]
    Failed {
        /// Which.
        program: &'static str,
        /// The end of what it said.
        output: String,
    },
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> PrivateError {
    let doing = doing.into();
    move |source| PrivateError::Io { doing, source }
}

/// How to make a server.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where its directory is made; default: the system's temporary directory.
    pub parent: Option<PathBuf>,
    /// Also listen on a free port of 127.0.0.1.
    pub loopback: bool,
    /// Further settings, such as `("fsync", "off")`.
    pub settings: Vec<(String, String)>,
}

/// A running server; dropping it ends it and removes its directory.
#[derive(Debug)]
pub struct Private {
    programs: PathBuf,
    account: Option<Account>,
    directory: PathBuf,
    port: u16,
    options: Options,
    guard: Option<(Child, ChildStdin)>,
}

/// The account a server runs as when we are root, which Postgres refuses.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Private {
    /// Makes a data directory and starts a server on it.
    ///
    /// # Errors
    /// See [`PrivateError`].
    pub fn start(options: Options) -> Result<Self, PrivateError> {
        let mut server = Self::create(options)?;
        server.run_program("initdb", &["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"])?;
        server.resume()?;
        Ok(server)
    }

    /// A streaming hot standby of `primary`, under the same settings.
    ///
    /// # Errors
    /// See [`PrivateError`].
    pub fn standby_of(primary: &Self) -> Result<Self, PrivateError> {
        let mut standby = Self::create(primary.options.clone())?;
        let source = primary.url("postgres");
        standby.run_program("pg_basebackup", &["-d", &source, "-R", "-X", "stream", "-c", "fast", "--no-sync"])?;
        standby.resume()?;
        Ok(standby)
    }

    /// Everything but the data.
    fn create(options: Options) -> Result<Self, PrivateError> {
        let programs = find_programs().ok_or(PrivateError::NoPrograms)?;
        let account = account()?;
        let parent = options.parent.clone().unwrap_or_else(std::env::temp_dir);
        let directory = parent.join(format!("model-catalog-{:08x}", fastrand::u32(..)));
        if directory.as_os_str().len() > MAX_DIRECTORY {
            let long =
                io::Error::other(format!("its path has more than {MAX_DIRECTORY} bytes; set TMPDIR to a shorter one"));
            return Err(io_error(format!("use {} for a socket", directory.display()))(long));
        }
        let made = std::fs::DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(io_error(format!("make {}", directory.display())))?;
        if let Some(Account { uid, gid }) = account {
            chown(&directory, Some(uid), Some(gid)).map_err(io_error("hand the directory to the server's account"))?;
        }
        let port = if options.loopback { free_port().map_err(io_error("find a free port"))? } else { 5432 };
        Ok(Self { programs, account, directory, port, options, guard: None })
    }

    /// The directory of its unix socket, which is what libpq calls its host.
    #[must_use]
    pub fn socket_directory(&self) -> &Path {
        &self.directory
    }

    /// Its port, on the loopback and in the socket's name.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the server's files are.
    #[must_use]
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// An address of `database` by the unix socket.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.directory.display(), self.port)
    }

    /// One of the server's programs, to be run as the server's account.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        self.unprivileged(&mut command);
        command
    }

    /// Ctrl-C in a terminal goes to a process group, so the server gets one of its own.
    fn unprivileged(&self, command: &mut Command) {
        command.current_dir("/").process_group(0).stdin(Stdio::null());
        if let Some(Account { uid, gid }) = self.account {
            command.uid(uid).gid(gid);
        }
    }

    fn run_program(&self, name: &'static str, arguments: &[&str]) -> Result<(), PrivateError> {
        let output = self.program(name).arg("-D").arg(self.data_directory()).args(arguments).output();
        let output = output.map_err(io_error(format!("run {name}")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        Err(PrivateError::Failed { program: name, output: String::from_utf8_lossy(&said).into_owned() })
    }

    /// Starts the server on the data that is there, and waits until it takes connections.
    ///
    /// # Errors
    /// See [`PrivateError`].
    pub fn resume(&mut self) -> Result<(), PrivateError> {
        let log_path = self.directory.join("server.log");
        let log = std::fs::File::create(&log_path).map_err(io_error("make the server's log"))?;
        let errors = log.try_clone().map_err(io_error("make the server's log"))?;
        let listen = if self.options.loopback { "127.0.0.1" } else { "" };
        let mut command = Command::new("/bin/sh");
        self.unprivileged(&mut command);
        command.args(["-c", GUARD, "model-catalog-guard"]).arg(&self.directory);
        command.arg(self.programs.join("postgres")).arg("-D").arg(self.data_directory());
        command.arg("-k").arg(&self.directory).args(["-p", &self.port.to_string()]);
        command.args(["-c", &format!("listen_addresses={listen}"), "-c", "unix_socket_permissions=0700"]);
        for (name, value) in &self.options.settings {
            command.args(["-c", &format!("{name}={value}")]);
        }
        let mut guard = command.stdin(Stdio::piped()).stdout(log).stderr(errors).spawn();
        let pipe = guard.as_mut().ok().and_then(|guard| guard.stdin.take());
        let guard = guard.map_err(io_error("start /bin/sh"))?;
        let pipe = pipe.ok_or_else(|| io::Error::other("it has no input")).map_err(io_error("hold the server"))?;
        self.guard = Some((guard, pipe));
        self.wait_until_ready().inspect_err(|_| self.end())
    }

    fn wait_until_ready(&mut self) -> Result<(), PrivateError> {
        let deadline = Instant::now() + START_LIMIT;
        // Line 8 of this file is the server's own word for its state.
        let state = self.data_directory().join("postmaster.pid");
        loop {
            let text = std::fs::read_to_string(&state).unwrap_or_default();
            if text.lines().nth(7).is_some_and(|line| line.trim() == "ready") && self.is_alive(&text) {
                return Ok(());
            }
            if Instant::now() > deadline || self.postmaster_ended() {
                let log = std::fs::read_to_string(self.directory.join("server.log")).unwrap_or_default();
                return Err(PrivateError::Failed { program: "postgres", output: log });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the file is of a living server: one that was killed leaves it behind.
    fn is_alive(&self, pid_file: &str) -> bool {
        pid_file.lines().next().is_some_and(|pid| runs(pid.trim()))
    }

    /// A server that ends by itself leaves its guard waiting for us, without a child.
    fn postmaster_ended(&mut self) -> bool {
        let Some((guard, _)) = &mut self.guard else { return true };
        let log = std::fs::metadata(self.directory.join("server.log")).map_or(0, |log| log.len());
        log > 0 && !children(guard.id()).split_whitespace().any(runs)
    }

    /// Process id of the server.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.data_directory().join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// Ends the server as `signal` does (`INT` fast, `QUIT` immediate, `KILL` at once), and keeps its data.
    ///
    /// # Errors
    /// See [`PrivateError`].
    pub fn stop(&mut self, signal: &str) -> Result<(), PrivateError> {
        let Some((mut guard, mut pipe)) = self.guard.take() else { return Ok(()) };
        if let Some(pid) = self.pid() {
            let backends = children(pid);
            let killed = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
            killed.map_err(io_error("run kill"))?;
            pipe.write_all(b"keep\n").map_err(io_error("tell the guard"))?;
            guard.wait().map_err(io_error("wait for the guard"))?;
            // A killed server's backends end a moment later, and hold the shared memory that the next start wants.
            while backends.split_whitespace().any(runs) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        if let Some((mut guard, pipe)) = self.guard.take() {
            drop(pipe);
            let _ = guard.wait();
        }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Process ids of a process' children, with spaces between.
fn children(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default()
}

/// Whether this process has not ended yet. Its guard, which sits in `read`, leaves an ended server as a zombie.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    // The name, which comes before the state, is in parentheses and may hold anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The folder with `initdb` and `postgres`.
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
    let chosen = std::env::var_os("PGBIN").map(PathBuf::from).into_iter();
    let mut candidates =
        chosen.chain(installed().unwrap_or_default()).chain(std::env::split_paths(&path)).chain(pg_config());
    candidates.find(|folder| folder.join("postgres").exists() && folder.join("initdb").exists())
}

fn account() -> Result<Option<Account>, PrivateError> {
    let us = std::fs::metadata("/proc/self").map_err(io_error("see whose process this is"))?;
    if us.uid() != 0 {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd").map_err(io_error("read /etc/passwd"))?;
    let named = |name: &str| {
        let mut fields = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let found = fields.find(|fields| fields.len() > 3 && fields[0] == name)?;
        Some(Account { uid: found[2].parse().ok()?, gid: found[3].parse().ok()? })
    };
    let account = named("postgres").or_else(|| named("nobody"));
    let missing = || io::Error::other("Postgres refuses root, and there is neither an account `postgres` nor `nobody`");
    account.map(Some).ok_or_else(missing).map_err(io_error("start Postgres"))
}
