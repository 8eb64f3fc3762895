//! Threads that cannot be started, and threads that panic: requests are served, changes arrive, and nothing stays lost.

use std::time::Duration;

use hyper::Request;

use crate::support::system_faults::SystemFaults;
use crate::support::{Db, Server};

async fn with_a(faults: &SystemFaults, settings: &[(&str, &str)]) -> (Db, Server) {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, &[&faults.settings(), settings].concat()).await;
    (db, server)
}

#[tokio::test]
async fn requests_for_the_whole_catalog_need_no_new_thread() {
    let faults = SystemFaults::new();
    let (db, server) = with_a(&faults, &[]).await;
    faults.begin("no-threads");
    let compressed = || {
        let request = Request::get(format!("http://{}/api/snapshot", server.address));
        server.send(request.header("accept-encoding", "gzip").body(Default::default()).unwrap())
    };
    for round in 0..2 {
        let answers =
            async { (compressed().await, server.get("/api/models").await, server.get("/api/snapshot").await) };
        let answers = tokio::time::timeout(Duration::from_secs(20), answers).await.expect("no request hangs");
        assert_eq!((answers.0.status, answers.1.status, answers.2.status), (200, 200, 200), "round {round}");
        assert_eq!(answers.0.header("content-encoding"), "gzip");
        db.sql("UPDATE models SET name = 'changed'").await;
        server.until_named("a", "changed").await;
    }
}
