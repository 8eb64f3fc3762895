//! A command is started whatever becomes of the log of `pull`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::files::Way;
use super::{Machine, PROGRAM, add, content, sum};
use crate::support::{Db, Server, Unwritable, skip};

const COMMAND: [&str; 3] = ["sh", "-c", "echo started; exit 7"];

/// A machine that needs one model and one that is missing.
async fn machine(name: &str) -> (Machine, Db, Server) {
    let mut machine = Machine::new(name, "model,absent");
    let db = Db::new().await;
    let file = content(1, 50_000);
    let url = machine.store.put("/model", Way::File(file.clone()));
    add(&db, "model", &url, "model.bin", &sum("sha256sum", &file), false, &[]).await;
    let server = Server::start(&db).await;
    machine.catalog(&server);
    (machine, db, server)
}

/// Status and output of a boot whose log goes to `output`.
fn boot(machine: &Machine, output: Unwritable, command: &[&str]) -> (Option<i32>, String) {
    let (stderr, reader) = output.open();
    let done = machine.pull(&output.prefix(2), command).stderr(stderr).spawn().unwrap().wait_with_output().unwrap();
    drop(reader);
    (done.status.code(), String::from_utf8(done.stdout).unwrap())
}

#[tokio::test]
async fn command_starts_while_the_log_cannot_be_written() {
    let (mut machine, _db, _server) = machine("outputs").await;
    let status_file = machine.folder.path("missing/status.json");
    machine.set("MACHINE_MODELS_STATUS_FILE", &status_file);
    machine.set("CATALOG_LOG", "trace");
    let reachable = machine.settings.iter().find(|(name, _)| name == "CATALOG_URL").unwrap().1.clone();
    for output in Unwritable::ALL {
        for (format, url) in [("text", &*reachable), ("json", &reachable), ("text", "http://127.0.0.1:1"), ("json", "")]
        {
            machine.set("CATALOG_LOG_FORMAT", format);
            machine.set("CATALOG_URL", url);
            let _ = std::fs::remove_dir_all(machine.models());
            let ended = boot(&machine, output, &COMMAND);
            assert_eq!(ended, (Some(7), "started\n".into()), "{output:?} {format} {url}");
            let expected = (url == reachable).then(|| content(1, 50_000));
            assert!(machine.read("model.bin") == expected, "{output:?} {format} {url}");
        }
        machine.set("MACHINE_MODELS_STRICT", "1");
        assert_eq!(boot(&machine, output, &COMMAND), (Some(1), String::new()), "{output:?}");
        machine.set("MACHINE_MODELS_STRICT", "0");
        assert_eq!(boot(&machine, output, &["/no/such/program"]), (Some(127), String::new()), "{output:?}");
    }
}

/// Runs a boot on a terminal, which may be stopped; returns what it was sent.
fn boot_on_terminal(machine: &Machine, stopped: bool) -> String {
    let _ = std::fs::remove_dir_all(machine.models());
    let mut terminal = File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap();
    let noctty = rustix::fs::OFlags::NOCTTY.bits().try_into().unwrap();
    let stderr = File::options().read(true).write(true).custom_flags(noctty).open(path.to_str().unwrap()).unwrap();
    if stopped {
        // Ctrl-S.
        terminal.write_all(b"\x13").unwrap();
    }
    let child = machine.pull(&[], &COMMAND).stderr(Stdio::from(stderr)).spawn().unwrap();
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        // Reading fails once no process has the terminal open.
        while let Ok(size @ 1..) = terminal.read(&mut buffer) {
            text.extend_from_slice(&buffer[..size]);
        }
        String::from_utf8(text).unwrap()
    });
    let done = child.wait_with_output().unwrap();
    assert_eq!((done.status.code(), &*done.stdout), (Some(7), &b"started\n"[..]), "stopped: {stopped}");
    assert!(machine.read("model.bin") == Some(content(1, 50_000)), "stopped: {stopped}");
    reading.join().unwrap()
}

#[tokio::test]
async fn command_starts_while_the_terminal_is_stopped() {
    let (mut machine, _db, _server) = machine("terminal").await;
    machine.set("TERM", "xterm");
    for stopped in [false, true] {
        let text = boot_on_terminal(&machine, stopped);
        assert_eq!(text.contains("pulled") && text.contains("\x1b[2K"), !stopped, "{text:?}");
    }
}

#[tokio::test]
async fn colors_and_bars_are_for_terminals_that_want_them() {
    let (mut machine, _db, _server) = machine("colors").await;
    for (term, no_color, has_bars, has_colors) in
        [("xterm", "", true, true), ("xterm", "1", true, false), ("dumb", "", false, false), ("", "", false, false)]
    {
        machine.set("TERM", term);
        machine.set("NO_COLOR", no_color);
        let text = boot_on_terminal(&machine, false);
        // The sequences end in `m`, those of the bars in another letter.
        let sequences: Vec<_> =
            text.split("\x1b[").skip(1).filter_map(|rest| rest.chars().find(|c| c.is_ascii_alphabetic())).collect();
        let found = (sequences.iter().any(|end| *end != 'm'), sequences.contains(&'m'));
        assert!(text.contains("pulled") && found == (has_bars, has_colors), "{term} {no_color}: {text:?}");
    }
}

#[tokio::test]
async fn dry_run_ends_with_a_status_if_its_output_cannot_be_written() {
    let (mut machine, _db, _server) = machine("dry-run").await;
    machine.flags.push("--dry-run");
    for (output, status, message) in [
        (Unwritable::Full, 1, "cannot write to standard output: No space left on device"),
        (Unwritable::ReaderGone, 141, ""),
    ] {
        let mut pull = machine.pull(&[], &COMMAND);
        let child = pull.stdout(output.open().0).stderr(Stdio::piped()).spawn().unwrap();
        let boot = machine.ended(child);
        assert_eq!(boot.status, status, "{output:?}: {}", boot.log);
        assert!(boot.log.contains(message) && !boot.log.contains("panicked"), "{output:?}: {}", boot.log);
    }
}

#[test]
fn command_starts_if_no_thread_can_be_started() {
    let mut machine = Machine::new("threads", "model");
    machine.set("CATALOG_URL", "http://127.0.0.1:1");
    let mut prefix = vec!["prlimit".to_owned(), "--nproc=1".into()];
    if rustix::process::geteuid().is_root() {
        // Root is exempt from this limit.
        let nobody = ["setpriv", "--reuid", "65534", "--clear-groups"].map(str::to_owned);
        let version = Command::new(&nobody[0]).args(&nobody[1..]).args([PROGRAM, "--version"]).output().unwrap();
        if !version.status.success() {
            return skip("the user nobody cannot execute the program");
        }
        prefix.splice(0..0, nobody);
    }
    let boot = machine.ended(machine.pull(&prefix, &COMMAND).stderr(Stdio::piped()).spawn().unwrap());
    assert_eq!((boot.status, &*boot.output), (7, "started\n"), "{}", boot.log);
    assert!(boot.log.contains("OS can't spawn worker thread"), "{}", boot.log);
}
