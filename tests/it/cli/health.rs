//! `model-catalog health`, as run by a container's health check: with the same variables as the server.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use model_catalog::postgres::ephemeral::free_port;

use crate::support::{Db, Server, WAIT_LIMIT};

const NO_DATABASE: &str = "host=/nonexistent user=nobody dbname=none";

/// Runs the command with only these variables; returns its exit status and output.
fn health(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    let output = command.arg("health").args(arguments).env_clear().envs(variables.iter().copied()).output().unwrap();
    let output_text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), output_text.into_owned())
}

#[tokio::test]
async fn ready_exits_0_and_draining_exits_1() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, &[("CATALOG_DRAIN_GRACE", "1h")]).await;
    let port = server.address.rsplit(':').next().unwrap();
    // The server's address, and the wildcard address as set in most containers.
    for address in [server.address.clone(), format!("0.0.0.0:{port}")] {
        let (status, printed) = health(&[], &[("CATALOG_ADDR", &address)]);
        assert!(status == 0 && printed.contains(r#"{"status":"ready""#), "{status}: {printed}");
    }
    let variables = [("CATALOG_ADDR", &*server.address)];
    server.signal("TERM");
    server.until("the server is draining", |s| async move { s.get("/readyz").await.status == 503 }).await;
    let (status, printed) = health(&[], &variables);
    assert_eq!(status, 1, "{printed}");
    assert!(printed.contains("responded 503") && printed.contains(r#""status":"draining""#), "{printed}");
    assert_eq!(health(&["--live"], &variables).0, 0);
}

#[tokio::test]
async fn server_without_a_catalog_is_live_but_not_ready() {
    let server = Server::spawn(NO_DATABASE, &[("CATALOG_ADMIN_ADDR", "127.0.0.1:0")]).await;
    let line = server.log().into_iter().find(|line| line.contains("serving the admin routes")).unwrap();
    let admin = serde_json::from_str::<serde_json::Value>(&line).unwrap()["address"].as_str().unwrap().to_owned();
    // The ops routes are on the admin port; the API port would respond 404.
    let both = [("CATALOG_ADDR", &*server.address), ("CATALOG_ADMIN_ADDR", &admin)];
    let (status, printed) = health(&[], &both);
    assert!(status == 1 && printed.contains("loading"), "{status}: {printed}");
    let (status, printed) = health(&["--live"], &both);
    assert!(status == 0 && printed.contains("alive"), "{status}: {printed}");
    assert_eq!(health(&["--live"], &both[..1]).0, 1);
}

#[test]
fn unusable_servers_exit_1_within_the_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("127.0.0.1:{}", free_port().unwrap());
    let malformed = TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).unwrap();
    let [silent_at, malformed_at] = [&silent, &malformed].map(|socket| socket.local_addr().unwrap().to_string());
    // It closes before it has read the request, so only the bytes it sent count.
    let malformed_server = std::thread::spawn(move || {
        let (mut stream, _) = malformed.accept().unwrap();
        stream.write_all(b"220 mail.example.org ESMTP\r\n").unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        std::thread::sleep(Duration::from_millis(100));
    });
    let endless = TcpListener::bind("127.0.0.1:0").unwrap();
    let endless_at = endless.local_addr().unwrap().to_string();
    let endless_server = std::thread::spawn(move || {
        let (mut stream, _) = endless.accept().unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    for (address, reason) in [
        (&closed, "refused"),
        (&malformed_at, "not an HTTP response"),
        (&silent_at, "within 2s"),
        (&endless_at, "more than 65536 bytes"),
        (&"0.0.0.0:0".into(), "port 0"),
    ] {
        let started = Instant::now();
        let (status, printed) = health(&[], &[("CATALOG_ADDR", address)]);
        assert_eq!(status, 1, "{address}: {printed}");
        assert!(printed.contains(reason), "{address}: no `{reason}` in {printed}");
        assert!(started.elapsed() < WAIT_LIMIT / 2, "{address}: {:?}", started.elapsed());
    }
    malformed_server.join().unwrap();
    endless_server.join().unwrap();
    let (status, printed) = health(&[], &[("CATALOG_ADMIN_ADDR", "localhost:3001")]);
    assert!(status == 2 && printed.contains("CATALOG_ADMIN_ADDR"), "{status}: {printed}");
}
