//! A panic ends the connection it came up on, and nothing else. In the year 10000 there is no HTTP date any more, and
//! the library that writes them panics: that is how one is had from the very program that is shipped.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::faults::clock_skew;
use crate::support::raw::Raw;
use crate::support::{Db, PATIENCE};

/// What comes back before the connection ends.
fn conversation(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    // It may be reset.
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[tokio::test]
async fn a_panic_costs_one_connection_and_neither_the_process_nor_the_others() {
    let db = Db::new().await;
    db.add("a").await;
    let clock = std::env::temp_dir().join(format!("clock-{:x}", fastrand::u64(..)));
    std::fs::write(&clock, "+0\n").unwrap();
    let file = clock.display().to_string();
    let settings = [("FAKETIME_TIMESTAMP_FILE", &*file), ("FAKETIME_NO_CACHE", "1"), ("CATALOG_THREADS", "1")];
    let server = clock_skew::start(&db.url, &settings).await;
    let (mut plain, mut with_library) = (Raw::open(&server.address), Raw::open(&server.address));
    assert_eq!((plain.get("/api/models/a").status, with_library.get("/readyz").status), (200, 200));

    std::fs::write(&clock, "+8000y\n").unwrap();
    for path in ["/api/models/a", "/readyz"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        // The date of the present second may still be at hand.
        server
            .until(&format!("{path} panics"), |s| {
                let answer = conversation(&s.address, &request);
                async move { answer.is_empty() }
            })
            .await;
    }
    std::fs::write(&clock, "+0\n").unwrap();
    let panics = server.take_panics();
    assert!(panics >= 2, "{panics}");
    assert_eq!((plain.get("/api/models/a").status, with_library.get("/readyz").status), (200, 200));
    assert_eq!(Raw::open(&server.address).get("/api/models/a").status, 200);
    drop((plain, with_library));
    server
        .until("the broken connections are gone", |s| async move { s.metric("catalog_http_connections").await <= 2.0 })
        .await;
    assert!(server.exited().is_none());
    std::fs::remove_file(clock).unwrap();
}

#[test]
fn what_is_shipped_unwinds_too() {
    assert!(!include_str!("../../../Cargo.toml").contains("panic ="), "an abort would end all connections");
}
