//! `model-catalog health`, as a container's health check runs it: alone, with the server's own variables.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Db, Server, WAIT_LIMIT};

const NOWHERE: &str = "host=/nonexistent user=nobody dbname=none";

/// Runs it with nothing but these variables; gives its status and what it said.
fn health(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    let output = command.arg("health").args(arguments).env_clear().envs(variables.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said.into_owned())
}

#[tokio::test]
async fn ready_exits_0_and_draining_exits_1() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, &[("CATALOG_DRAIN_GRACE", "1h")]).await;
    let port = server.address.rsplit(':').next().unwrap();
    // The address as the server has it, and as it stands in most containers.
    for address in [server.address.clone(), format!("0.0.0.0:{port}")] {
        let (status, said) = health(&[], &[("CATALOG_ADDR", &address)]);
        assert!(status == 0 && said.contains(r#"{"status":"ready""#), "{status}: {said}");
    }
    let ours = [("CATALOG_ADDR", &*server.address)];
    server.signal("TERM");
    server.until("it drains", |s| async move { s.get("/readyz").await.status == 503 }).await;
    let (status, said) = health(&[], &ours);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("responded 503") && said.contains(r#""status":"draining""#), "{said}");
    assert_eq!(health(&["--live"], &ours).0, 0);
}

#[tokio::test]
async fn server_without_a_catalog_is_live_but_not_ready() {
    let server = Server::spawn(NOWHERE, &[("CATALOG_ADMIN_ADDR", "127.0.0.1:0")]).await;
    let line = server.log().into_iter().find(|line| line.contains("serving the admin routes")).unwrap();
    let admin = serde_json::from_str::<serde_json::Value>(&line).unwrap()["address"].as_str().unwrap().to_owned();
    // Operations stand on the other port; the API's would answer 404.
    let both = [("CATALOG_ADDR", &*server.address), ("CATALOG_ADMIN_ADDR", &admin)];
    let (status, said) = health(&[], &both);
    assert!(status == 1 && said.contains("loading"), "{status}: {said}");
    let (status, said) = health(&["--live"], &both);
    assert!(status == 0 && said.contains("alive"), "{status}: {said}");
    assert_eq!(health(&["--live"], &both[..1]).0, 1);
}

#[test]
fn unusable_servers_exit_1_within_the_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let nonsense = TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).unwrap();
    let [silent_at, nonsense_at] = [&silent, &nonsense].map(|socket| socket.local_addr().unwrap().to_string());
    // It closes before it has read all, so only what was sent counts.
    let talker = std::thread::spawn(move || {
        let (mut stream, _) = nonsense.accept().unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        std::thread::sleep(Duration::from_millis(100));
    });
    let endless = TcpListener::bind("127.0.0.1:0").unwrap();
    let endless_at = endless.local_addr().unwrap().to_string();
    let without_end = std::thread::spawn(move || {
        let (mut stream, _) = endless.accept().unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    for (address, why) in [
        (&nobody, "refused"),
        (&nonsense_at, "not an HTTP response"),
        (&silent_at, "within 2s"),
        (&endless_at, "more than 65536 bytes"),
        (&"0.0.0.0:0".into(), "port 0"),
    ] {
        let begun = Instant::now();
        let (status, said) = health(&[], &[("CATALOG_ADDR", address)]);
        assert_eq!(status, 1, "{address}: {said}");
        assert!(said.contains(why), "{address}: no `{why}` in {said}");
        assert!(begun.elapsed() < WAIT_LIMIT / 2, "{address}: {:?}", begun.elapsed());
    }
    talker.join().unwrap();
    without_end.join().unwrap();
    let (status, said) = health(&[], &[("CATALOG_ADMIN_ADDR", "localhost:3001")]);
    assert!(status == 2 && said.contains("CATALOG_ADMIN_ADDR"), "{status}: {said}");
}
