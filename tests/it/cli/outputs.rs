//! Commands whose standard output or standard error cannot be written.

use std::io::{PipeReader, Read, Write};
use std::process::{Child, Command, Stdio};

use model_catalog::postgres::ephemeral::free_port;

use super::import::LIST;
use crate::support::{Db, Server, Unwritable, until};

const NO_SPACE: &str = "cannot write to standard output: No space left on device";

/// Starts the program with `input` on its standard input.
fn spawn(prefix: &[String], arguments: &[&str], settings: &[(&str, &str)], outputs: [Stdio; 2], input: &str) -> Child {
    let all: Vec<_> = prefix.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_model-catalog")]).collect();
    let mut command = Command::new(all[0]);
    command.args(&all[1..]).args(arguments).env_clear().envs(settings.iter().copied());
    let [stdout, stderr] = outputs;
    let mut child = command.stdin(Stdio::piped()).stdout(stdout).stderr(stderr).spawn().unwrap();
    // A program that exits early does not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child
}

/// Exit status, output and log of a run.
fn end(child: Child) -> (i32, String, String) {
    let done = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

/// The commands that end by themselves, with their input.
const COMMANDS: [(&[&str], &str); 11] = [
    (&["--help"], ""),
    (&["serve", "--help"], ""),
    (&["--version"], ""),
    (&["check"], ""),
    (&["probe", "no-such-model"], ""),
    (&["export"], ""),
    (&["export", "--snapshot"], ""),
    (&["import", "-", "--dry-run"], LIST),
    (&["import", "-"], LIST),
    (&["health"], ""),
    (&["migrate"], ""),
];

#[tokio::test]
async fn unwritable_stdout_ends_a_command_with_a_message_and_a_status() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start(&db).await;
    let settings = [("DATABASE_URL", &*db.url), ("CATALOG_ADDR", &*server.address), ("CATALOG_LOG", "warn")];
    let run = |output: Unwritable, (arguments, input): (&[&str], &str)| {
        let (stdout, _reader) = output.open();
        end(spawn(&output.prefix(1), arguments, &settings, [stdout, Stdio::piped()], input))
    };
    for command in COMMANDS {
        let (arguments, input) = command;
        let (status, ..) = end(spawn(&[], arguments, &settings, [Stdio::piped(), Stdio::piped()], input));
        let name = arguments[0];
        let (full, message, closed) = match arguments {
            ["migrate"] => (0, "", 0),
            // The table is written, or the server is healthy, whoever reads the report.
            ["import", "-"] => (status, "cannot print what was imported", status),
            ["health"] => (0, NO_SPACE, 0),
            ["check" | "probe", ..] => (2, NO_SPACE, 141),
            _ => (1, NO_SPACE, 141),
        };
        let (ended, _, log) = run(Unwritable::Full, command);
        assert!(ended == full && log.contains(message) && !log.contains("panicked"), "{name}: {ended} {log}");
        let (ended, _, log) = run(Unwritable::ReaderGone, command);
        assert!(
            ended == closed && !log.contains("standard output") && !log.contains("panicked"),
            "{name}: {ended} {log}"
        );
        // The standard library opens /dev/null in the place of a closed descriptor.
        let (ended, _, log) = run(Unwritable::Closed, command);
        assert!(ended == status && !log.contains("panicked"), "{name}: {ended} {log}");
    }
}

#[tokio::test]
async fn unwritable_stderr_changes_neither_the_output_nor_the_status() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start(&db).await;
    let failing: [(&[&str], &str); 4] = [
        (&["--no-such-option"], ""),
        (&["import", "-"], "{"),
        (&["import", "-", "--dry-run"], "["),
        (&["import", "/"], ""),
    ];
    for (arguments, input) in COMMANDS.into_iter().chain(failing) {
        for format in ["text", "json"] {
            let settings = [
                ("DATABASE_URL", &*db.url),
                ("CATALOG_ADDR", &server.address),
                ("CATALOG_LOG", "trace"),
                ("CATALOG_LOG_FORMAT", format),
            ];
            let run = |output: Unwritable| {
                let (stderr, _reader) = output.open();
                end(spawn(&output.prefix(2), arguments, &settings, [Stdio::piped(), stderr], input))
            };
            end(spawn(&[], arguments, &settings, [Stdio::piped(), Stdio::piped()], input));
            let (status, printed, _) = end(spawn(&[], arguments, &settings, [Stdio::piped(), Stdio::piped()], input));
            for output in Unwritable::ALL {
                let (ended, other, _) = run(output);
                let same =
                    other == printed || ["check", "health", "export"].contains(&arguments[0]) && !other.is_empty();
                assert!(ended == status && same, "{arguments:?} {output:?}: {ended}, not {status}\n{other}\n{printed}");
            }
        }
    }
}

/// Waits until a server answers, then ends it by a signal.
async fn serve_and_stop(name: &str, mut child: Child, address: &str) {
    let alive = |child: &mut Child| assert_eq!(child.try_wait().unwrap(), None, "{name} ended");
    until(&format!("{name} is ready"), || {
        alive(&mut child);
        let response = std::net::TcpStream::connect(address).and_then(|mut stream| {
            stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut response = String::new();
            stream.read_to_string(&mut response).map(|_| response)
        });
        std::future::ready(response.is_ok_and(|response| response.starts_with("HTTP/1.1 200")))
    })
    .await;
    alive(&mut child);
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    until(&format!("{name} has exited"), || std::future::ready(child.try_wait().unwrap().is_some())).await;
    assert_eq!(child.wait().unwrap().code(), Some(0), "{name}");
}

#[tokio::test]
async fn servers_run_and_stop_while_their_outputs_cannot_be_written() {
    let db = Db::new().await;
    db.add("a").await;
    let empty = Db::empty().await;
    for output in Unwritable::ALL {
        for (arguments, url) in [(&["serve", "--examples"][..], &db.url), (&["demo"], &empty.url)] {
            let name = format!("{arguments:?} {output:?}");
            let address = format!("127.0.0.1:{}", free_port().unwrap());
            let path = std::env::var("PATH").unwrap();
            let settings =
                [("DATABASE_URL", &**url), ("CATALOG_ADDR", &address), ("CATALOG_DRAIN_GRACE", "0s"), ("PATH", &path)];
            let (outputs, _readers): (Vec<Stdio>, Vec<Option<PipeReader>>) = (0..2).map(|_| output.open()).unzip();
            let prefix = [output.prefix(1), output.prefix(2)].concat();
            let child = spawn(&prefix, arguments, &settings, outputs.try_into().unwrap(), "");
            serve_and_stop(&name, child, &address).await;
        }
    }
}
