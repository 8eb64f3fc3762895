//! The end of a shutdown while something hangs that cannot be cancelled, and the signals that begin and cut it short.

use std::time::{Duration, Instant};

use crate::support::system_faults::SystemFaults;
use crate::support::{Db, Server, TempFolder, until};

/// Drains for two seconds at most, and must be gone two seconds later.
const SETTINGS: [(&str, &str); 3] =
    [("CATALOG_DRAIN_GRACE", "1s"), ("CATALOG_DRAIN_TIMEOUT", "1s"), ("CATALOG_POLL_INTERVAL", "100ms")];
/// The limit, and what a busy machine may add.
const LIMIT: Duration = Duration::from_secs(4 + 6);

async fn assert_exits(server: &Server) {
    let started = Instant::now();
    server.until("the process has exited", |s| std::future::ready(s.exited().is_some())).await;
    assert_eq!(server.exited().unwrap().code(), Some(0));
    assert!(started.elapsed() < LIMIT, "it took {:?}", started.elapsed());
}

#[tokio::test]
async fn a_name_server_that_does_not_answer_does_not_delay_the_exit() {
    let faults = SystemFaults::new();
    faults.begin("silent-resolver");
    let settings = [&faults.settings()[..], &SETTINGS].concat();
    let database = Server::spawn("postgres://nobody@database.invalid/none", &settings).await;
    let edge = Server::edge("http://upstream.invalid:3000", &settings).await;
    for server in [database, edge] {
        // The loader is in getaddrinfo, or about to be.
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.signal("TERM");
        assert_exits(&server).await;
    }
}

#[tokio::test]
async fn a_disk_that_does_not_answer_does_not_delay_the_exit_and_a_second_signal_ends_it_at_once() {
    for second in [None, Some("INT")] {
        let (folder, faults, db) = (TempFolder::new("shutdown"), SystemFaults::new(), Db::new().await);
        db.add("a").await;
        let file = folder.path("catalog.jsonl");
        let grace: &[_] = if second.is_some() { &[("CATALOG_DRAIN_TIMEOUT", "1h")] } else { &[] };
        let snapshot = [("CATALOG_SNAPSHOT_FILE", &*file)];
        faults.begin("hanging-fsync");
        let settings = [&faults.settings()[..], &SETTINGS, &snapshot, grace].concat();
        let server = Server::spawn(&db.url, &settings).await;
        let writing = || std::fs::read_dir(&*folder).unwrap().count() > 0;
        server.until("the file is being written", |_| std::future::ready(writing())).await;
        server.signal("TERM");
        if let Some(second) = second {
            let refused = || std::net::TcpStream::connect(&server.address).is_err();
            server.until("connections are refused", |_| std::future::ready(refused())).await;
            server.signal(second);
        }
        assert_exits(&server).await;
        if second.is_none() {
            server.until_logged("\"running\":\"snapshot writer\"", 1).await;
        }
    }
}

#[tokio::test]
async fn the_last_state_is_written_before_the_exit() {
    let (folder, db) = (TempFolder::new("shutdown"), Db::new().await);
    db.add("a").await;
    let file = folder.path("catalog.jsonl");
    let server = Server::start_with(&db.url, &[&SETTINGS[..], &[("CATALOG_SNAPSHOT_FILE", &*file)]].concat()).await;
    until("the first state is written", || std::future::ready(std::fs::exists(&file).unwrap())).await;
    // The writer pauses now.
    db.sql("UPDATE models SET name = 'last'").await;
    server.until_named("a", "last").await;
    server.signal("TERM");
    assert_exits(&server).await;
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"name\":\"last\""));
}

#[tokio::test]
async fn sighup_does_not_end_a_server() {
    let db = Db::new().await;
    let server = Server::start_with(&db.url, &SETTINGS).await;
    server.signal("HUP");
    server.until_logged("SIGHUP is ignored", 1).await;
    assert_eq!(server.get("/readyz").await.status, 200);
    server.signal("TERM");
    assert_exits(&server).await;
}
