//! Log lines that cannot be written stop neither changes nor snapshot files nor the shutdown. They are counted, and
//! reported when standard error can be written again.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::faults::clock_skew;
use crate::support::{Db, Server, TempFolder, Unwritable};

const DROPPED: &str = "catalog_log_lines_dropped_total";

async fn rename(db: &Db, server: &Server, name: &str) {
    db.sql(&format!("UPDATE models SET name = '{name}' WHERE id = 'a'")).await;
    server.until_named("a", name).await;
}

/// Sends SIGTERM and waits for the end of the process.
async fn stop(server: &Server) {
    server.signal("TERM");
    server.until("the process has exited", |s| std::future::ready(s.exited().is_some())).await;
    assert_eq!(server.exited().unwrap().code(), Some(0));
}

/// The numbers in the lines that say how many lines were dropped.
fn reported(lines: &[Value]) -> Vec<u64> {
    let number = |line: &Value| line["message"].as_str()?.split_once(" log line")?.0.parse().ok();
    lines.iter().filter_map(number).collect()
}

#[tokio::test]
async fn changes_are_served_and_saved_while_stderr_cannot_be_written() {
    for output in Unwritable::ALL {
        // The only line of the second run is the warning of the snapshot writer.
        for (filter, format) in [("debug", "text"), ("warn", "json")] {
            let db = Db::new().await;
            db.add("a").await;
            let folder = TempFolder::new("outputs");
            let file = folder.path("missing/snapshot");
            let settings = [("CATALOG_LOG", filter), ("CATALOG_LOG_FORMAT", format), ("CATALOG_SNAPSHOT_FILE", &*file)];
            let (stderr, reader) = output.open();
            let server = Server::spawn_unlogged(&output.prefix(2), stderr, &db.url, &settings).await;
            for number in 0..5 {
                rename(&db, &server, &format!("name {number}")).await;
            }
            if matches!(output, Unwritable::Full | Unwritable::ReaderGone) {
                server.until("lines are counted", |s| async move { s.metric(DROPPED).await > 0.0 }).await;
            }
            std::fs::create_dir(folder.join("missing")).unwrap();
            rename(&db, &server, "saved").await;
            server
                .until("the snapshot file is written", |_| std::future::ready(folder.join("missing/snapshot").exists()))
                .await;
            rename(&db, &server, "last").await;
            stop(&server).await;
            let saved = std::fs::read_to_string(&file).unwrap();
            assert!(saved.contains("\"last\""), "{output:?} {filter}: {saved}");
            drop(reader);
        }
    }
}

#[tokio::test]
async fn a_reader_that_comes_back_gets_the_queued_lines_and_the_number_of_dropped_ones() {
    let db = Db::lenient().await;
    db.add("a").await;
    let (stderr, reader) = Unwritable::Blocked.open();
    let server = Server::spawn_unlogged(&[], stderr, &db.url, &[]).await;
    // Each rejected row is a line of 100 kB.
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path)
         SELECT repeat(chr(97 + n), 100000), n, 'https://example.org/', '/x' FROM generate_series(0, 19) n",
    )
    .await;
    for path in ["../x", "", "/x", "../x"] {
        db.sql(&format!("UPDATE models SET save_path = '{path}' WHERE id <> 'a'")).await;
        rename(&db, &server, &format!("rejected {path}")).await;
    }
    server.until("the queue is full", |s| async move { s.metric(DROPPED).await > 10.0 }).await;
    rename(&db, &server, "new").await;

    let read = Arc::new(Mutex::new(String::new()));
    let (copy, mut reader) = (Arc::clone(&read), reader.unwrap());
    let reading = std::thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(size @ 1..) = reader.read(&mut buffer) {
            copy.lock().unwrap().push_str(str::from_utf8(&buffer[..size]).unwrap());
        }
    });
    server.until("it is reported", |_| std::future::ready(read.lock().unwrap().contains("log lines dropped"))).await;
    let dropped = server.metric(DROPPED).await;
    stop(&server).await;
    reading.join().unwrap();
    let text = read.lock().unwrap().clone();
    let lines = text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<Value> = lines.collect();
    assert_eq!(reported(&lines).iter().sum::<u64>() as f64, dropped);
    let index = |message: &str| lines.iter().position(|line| line["message"] == message).unwrap();
    let report = lines.iter().position(|line| !reported(std::slice::from_ref(line)).is_empty()).unwrap();
    assert_eq!(lines[report]["level"], "WARN");
    assert!(index("listening") < report && report < index("stopped"), "the order has changed");
}

#[tokio::test]
async fn logging_resumes_when_the_disk_has_space_again() {
    let db = Db::new().await;
    db.add("a").await;
    let folder = TempFolder::new("outputs");
    let (log, snapshot) = (folder.path("log"), folder.path("snapshot"));
    let settings = [("CATALOG_SNAPSHOT_FILE", &*snapshot)];
    let server = Server::spawn_unlogged(&[], File::create(&log).unwrap().into(), &db.url, &settings).await;
    let limit = |current| {
        let pid = Pid::from_raw(server.pid().try_into().unwrap());
        prlimit(pid, Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
    };
    // A part of the next line fits.
    limit(Some(std::fs::metadata(&log).unwrap().len() + 10));
    for number in 0..5 {
        rename(&db, &server, &format!("name {number}")).await;
    }
    server.until("lines are dropped", |s| async move { s.metric(DROPPED).await > 1.0 }).await;
    limit(None);
    rename(&db, &server, "new").await;
    let text = || std::fs::read_to_string(&log).unwrap();
    server.until("it is reported", |_| std::future::ready(text().contains("dropped: standard error"))).await;
    stop(&server).await;
    let text = text();
    let (lines, torn): (Vec<_>, Vec<_>) = text.lines().map(serde_json::from_str::<Value>).partition(Result::is_ok);
    let lines: Vec<_> = lines.into_iter().flatten().collect();
    assert_eq!(torn.len(), 1, "{text}");
    assert!(lines.iter().any(|line| line["message"] == "stopped"), "{text}");
    assert!(!reported(&lines).is_empty(), "{text}");
}

#[tokio::test]
async fn a_panic_while_stderr_is_blocked_ends_one_connection_and_no_others() {
    let db = Db::new().await;
    db.add("a").await;
    let folder = TempFolder::new("outputs");
    let clock = folder.path("clock");
    std::fs::write(&clock, "+0\n").unwrap();
    let library = clock_skew::libfaketime().display().to_string();
    let settings = [("FAKETIME_TIMESTAMP_FILE", &*clock), ("FAKETIME_NO_CACHE", "1"), ("CATALOG_THREADS", "1")];
    let settings = [&clock_skew::faked(&library)[..], &settings].concat();
    let (stderr, _reader) = Unwritable::Blocked.open();
    let server = Server::spawn_unlogged(&[], stderr, &db.url, &settings).await;
    clock_skew::remove_shared_memory(&server);
    // HTTP dates end with the year 9999.
    std::fs::write(&clock, "+8000y\n").unwrap();
    for _ in 0..3 {
        server
            .until("a request panics", |s| {
                let response = crate::faults::panics::send(&s.address, "GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n");
                async move { response.is_empty() }
            })
            .await;
    }
    std::fs::write(&clock, "+0\n").unwrap();
    server.until("it serves again", |s| async move { s.get("/api/models/a").await.status == 200 }).await;
    rename(&db, &server, "new").await;
    stop(&server).await;
}

#[tokio::test]
async fn descriptors_that_are_closed_at_the_start_are_not_used_for_other_files() {
    let db = Db::new().await;
    db.add("a").await;
    let folder = TempFolder::new("outputs");
    let snapshot = folder.path("snapshot");
    let prefix = ["sh", "-c", "exec \"$@\" <&- >&- 2>&-", "sh"].map(str::to_owned);
    let settings = [("CATALOG_SNAPSHOT_FILE", &*snapshot)];
    let server = Server::spawn_unlogged(&prefix, std::process::Stdio::null(), &db.url, &settings).await;
    rename(&db, &server, "new").await;
    for descriptor in 0..3 {
        let target = std::fs::read_link(format!("/proc/{}/fd/{descriptor}", server.pid())).unwrap();
        assert_eq!(target.to_str(), Some("/dev/null"), "descriptor {descriptor}");
    }
    stop(&server).await;
}

/// `exec` restores the default of SIGPIPE, which ends the process if a thread that does not block it writes to a pipe
/// without a reader before the program is replaced.
#[tokio::test]
async fn thread_that_writes_the_log_blocks_broken_pipes() {
    let db = Db::new().await;
    let server = Server::start(&db).await;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let statuses = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let status =
        statuses.into_iter().find(|status| status.starts_with("Name:\tstderr\n")).expect("a thread for the log");
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
    let blocked = u64::from_str_radix(blocked, 16).unwrap();
    let broken_pipe = 1 << (rustix::process::Signal::PIPE.as_raw() - 1);
    assert_eq!(blocked & broken_pipe, broken_pipe, "{status}");
}
