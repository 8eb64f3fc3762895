//! A panic closes the connection on which it occurs, and nothing else. To provoke one in the unmodified program, the clock
//! is set beyond the year 9999: HTTP dates end there, and the code that formats them panics.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::faults::clock_skew;
use crate::support::raw::Raw;
use crate::support::{Db, WAIT_LIMIT};

/// Sends a request and returns whatever arrives before the connection ends.
pub fn send(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    // The connection may be reset.
    let _ = stream.read_to_string(&mut response);
    response
}

#[tokio::test]
async fn panic_closes_one_connection_and_no_others() {
    let db = Db::new().await;
    db.add("a").await;
    let clock = std::env::temp_dir().join(format!("clock-{:x}", fastrand::u64(..)));
    std::fs::write(&clock, "+0\n").unwrap();
    let file = clock.display().to_string();
    let settings = [("FAKETIME_TIMESTAMP_FILE", &*file), ("FAKETIME_NO_CACHE", "1"), ("CATALOG_THREADS", "1")];
    let server = clock_skew::start(&db.url, &settings).await;
    let (mut first, mut second) = (Raw::open(&server.address), Raw::open(&server.address));
    assert_eq!((first.get("/api/models/a").status, second.get("/readyz").status), (200, 200));

    std::fs::write(&clock, "+8000y\n").unwrap();
    for path in ["/api/models/a", "/readyz"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        // The formatted date is cached for a second, so the first requests may succeed.
        server
            .until(&format!("{path} panics"), |s| {
                let response = send(&s.address, &request);
                async move { response.is_empty() }
            })
            .await;
    }
    std::fs::write(&clock, "+0\n").unwrap();
    server.until_logged("panicked", 2).await;
    server.forget_panics();
    assert_eq!((first.get("/api/models/a").status, second.get("/readyz").status), (200, 200));
    assert_eq!(Raw::open(&server.address).get("/api/models/a").status, 200);
    drop((first, second));
    server
        .until(
            "the failed connections are closed",
            |s| async move { s.metric("catalog_http_connections").await <= 2.0 },
        )
        .await;
    assert!(server.exited().is_none());
    std::fs::remove_file(clock).unwrap();
}

#[test]
fn release_profile_unwinds_on_panic() {
    assert!(!include_str!("../../../Cargo.toml").contains("panic ="), "aborting would close all connections");
}
