//! `model-catalog demo`: the commands it prints, Ctrl-C, SIGKILL, and Postgres failing to start.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use model_catalog::base::error_chain::chain;
use model_catalog::postgres::session;

use crate::support::{TempFolder, WAIT_LIMIT, database, until};

/// The program with its private Postgres, in a temporary directory and a process group of its own.
struct Demo {
    child: Child,
    directory: TempFolder,
    lines: Receiver<String>,
}

impl Demo {
    fn start(name: &str) -> Self {
        // Short, because a socket path is limited to 107 bytes; on tmpfs if possible.
        let parent = ["/dev/shm", "/tmp"].map(Path::new).into_iter().find(|path| path.is_dir()).unwrap();
        let directory = TempFolder::below(parent, &format!("demo-{name}"));
        // As for /tmp: if the test runs as root, Postgres runs as another user and removes its directory.
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o1777)).unwrap();
        // A shell's background jobs, of which these tests may be one, ignore SIGINT.
        let mut command = Command::new("env");
        command
            .args(["--default-signal", env!("CARGO_BIN_EXE_model-catalog"), "demo"])
            .env("TMPDIR", &*directory)
            .env("CATALOG_ADDR", "127.0.0.1:0");
        command.env_remove("CATALOG_DRAIN_GRACE").env_remove("DATABASE_URL").process_group(0);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        Self { child, directory, lines }
    }

    /// The suggested commands, as soon as they are printed.
    fn suggested_commands(&self) -> [String; 3] {
        let line = || loop {
            let line = self.lines.recv_timeout(WAIT_LIMIT).expect("the demo did not print three commands");
            if let Some(command) = line.strip_prefix("  ") {
                return command.to_owned();
            }
        };
        [line(), line(), line()]
    }

    fn signal(&self, arguments: &[&str], of: &str) {
        assert!(Command::new("kill").args(arguments).arg("--").arg(of).status().unwrap().success());
    }

    /// Command lines of the processes that use its directory.
    fn processes(&self) -> Vec<String> {
        let directory = self.directory.to_str().unwrap();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let commands = processes.filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok());
        commands.map(|command| command.replace('\0', " ")).filter(|command| command.contains(directory)).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.directory).unwrap().flatten().map(|entry| entry.path()).collect()
    }

    fn is_cleaned_up(&self) -> bool {
        self.processes().is_empty() && self.files().is_empty()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output of a command run by a shell.
fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{line}` failed, is its program installed? {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn printed_commands_work_and_ctrl_c_stops_everything() {
    let mut demo = Demo::start("lines");
    let [single, batch, change] = demo.suggested_commands();
    assert!(single.starts_with("curl ") && batch.starts_with("curl ") && change.starts_with("psql "));
    let server = |command: &String| command.contains("postgres -D");
    assert!(demo.processes().iter().any(server), "no server in {:?}", demo.processes());

    let before = shell(&single);
    let model: serde_json::Value = serde_json::from_str(&before).unwrap();
    assert_eq!(model["id"], "flux-dev");
    assert_eq!(model["description"], "FLUX.1-dev - Professional AI image generation model");
    let batch: serde_json::Value = serde_json::from_str(&shell(&batch)).unwrap();
    assert_eq!(batch["models"][0], model);
    assert_eq!(batch["models"][1]["id"], "sdxl-base");
    assert_eq!(batch["not_found"], serde_json::json!(["no-such-model"]));

    assert_eq!(shell(&change), "UPDATE 1\n");
    let after = before.replace("FLUX.1-dev - Professional AI image generation model", "changed just now");
    until("the first command shows the change", || std::future::ready(shell(&single) == after)).await;

    // Sent to the whole process group, as a terminal does. Nothing may be left when the program has exited.
    demo.signal(&["-INT"], &format!("-{}", demo.child.id()));
    let mut status = None;
    until("the demo has exited", || {
        status = demo.child.try_wait().unwrap();
        std::future::ready(status.is_some())
    })
    .await;
    assert_eq!(status.unwrap().code(), Some(0));
    assert!(demo.is_cleaned_up(), "{:?} {:?}", demo.processes(), demo.files());
}

#[tokio::test]
async fn sigkill_leaves_no_postgres_behind() {
    let mut demo = Demo::start("kill");
    demo.suggested_commands();
    assert!(!demo.is_cleaned_up());
    demo.signal(&["-KILL"], &demo.child.id().to_string());
    demo.child.wait().unwrap();
    until("Postgres and its directory are gone", || std::future::ready(demo.is_cleaned_up())).await;
}

/// The messages of a demo that fails to start with these variables.
fn startup_error(variables: &[(&str, &Path)]) -> String {
    let mut command = Command::new("/usr/bin/timeout");
    command.args(["30", env!("CARGO_BIN_EXE_model-catalog"), "demo"]).env("CATALOG_ADDR", "127.0.0.1:0");
    let output = command.envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    stderr
}

#[test]
fn postgres_start_failures_are_reported() {
    let folder = TempFolder::new("programs");
    let long = folder.join("x".repeat(120));
    std::fs::create_dir_all(&long).unwrap();
    for path in [&*folder, &long] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o1777)).unwrap();
    }
    assert!(startup_error(&[("TMPDIR", &long)]).contains("set TMPDIR to a shorter one"));

    let program = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("postgres", "echo this server will not start; exit 1");
    program("initdb", "echo no room for a cluster >&2; exit 1");
    assert!(startup_error(&[("PGBIN", &folder)]).contains("no room for a cluster"));
    program("initdb", "while [ \"$1\" != -D ]; do shift; done; mkdir -p \"$2\"");
    assert!(startup_error(&[("PGBIN", &folder)]).contains("this server will not start"));
}

#[tokio::test]
async fn demo_postgres_demands_a_password_on_tcp() {
    let demo = Demo::start("tcp");
    let [_, _, change] = demo.suggested_commands();
    let url = change.split('"').nth(1).unwrap();
    let connect = async |url: &str| session::connect(&database(url)).await.map(drop).map_err(|error| chain(&error));
    assert_eq!(connect(url).await, Ok(()));
    let (user, rest) = url.split_once("postgres:").unwrap();
    let (password, rest) = rest.strip_prefix("//postgres:").unwrap().split_once('@').unwrap();
    assert!(user.is_empty() && password.len() >= 32, "{url}");
    for (login, expected) in [("postgres", "password missing"), ("postgres:x", "password authentication failed")] {
        let refused = connect(&format!("postgres://{login}@{rest}")).await;
        assert!(refused.clone().is_err_and(|error| error.contains(expected)), "{login}: {refused:?}");
    }
    let lines = demo.processes().join("\n");
    assert!(!lines.contains(password), "a command line shows the password: {lines}");
    // Replication is a right to read everything, and has rules of its own.
    let rules = std::fs::read_to_string(demo.files()[0].join("data/pg_hba.conf")).unwrap();
    let tcp: Vec<_> = rules.lines().filter(|line| line.starts_with("host")).collect();
    assert!(!tcp.is_empty() && tcp.iter().all(|line| line.ends_with("scram-sha-256")), "{tcp:?}");
}

#[tokio::test]
async fn demo_interrupted_while_starting_leaves_nothing_behind() {
    // From the first moment at which something exists to a running server.
    for (stage, signal) in [
        ("", "-INT"),
        ("data", "-INT"),
        ("data/global", "-KILL"),
        ("data/base/1", "-INT"),
        ("data/base/1/PG_VERSION", "-KILL"),
        ("server.log", "-INT"),
        ("data/postmaster.pid", "-INT"),
    ] {
        let mut demo = Demo::start("start");
        let deadline = Instant::now() + WAIT_LIMIT;
        while !demo.files().first().is_some_and(|directory| directory.join(stage).exists()) {
            assert!(Instant::now() < deadline, "no {stage:?} in {:?}", demo.files());
            assert!(demo.child.try_wait().unwrap().is_none(), "the demo ended by itself before {stage:?}");
            std::thread::sleep(Duration::from_micros(200));
        }
        demo.signal(&[signal], &format!("-{}", demo.child.id()));
        demo.child.wait().unwrap();
        let left = || (demo.processes(), demo.files());
        until(&format!("nothing is left after {signal} at {stage:?}"), || {
            std::future::ready(left() == (Vec::new(), Vec::new()))
        })
        .await;
    }
}

#[test]
fn demo_with_an_address_in_use_creates_no_postgres() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    let output = command.arg("demo").env("CATALOG_ADDR", &address).stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(&format!("cannot listen on {address}")), "{errors}");
    assert!(errors.contains("set CATALOG_ADDR or --addr"), "{errors}");
    assert!(!errors.contains("Postgres"), "{errors}");
}
