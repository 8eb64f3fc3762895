//! `CATALOG_MAX_CONNECTIONS_PER_ADDR`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::support::raw::{Raw, connect, read_to_close, statuses};
use crate::support::{WAIT_LIMIT, start_with_model_a, until};

/// Connects from another loopback address.
fn connect_from(source: Ipv4Addr, address: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
    socket.into()
}

#[tokio::test]
async fn connections_per_address_are_limited() {
    let (_db, server) = start_with_model_a(&[("CATALOG_MAX_CONNECTIONS_PER_ADDR", "5")]).await;
    let request = b"GET /api/models/a HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut open = Vec::new();
    let rejection = loop {
        let mut stream = connect(&server.address);
        stream.write_all(request).unwrap();
        let mut response = vec![0; 4096];
        let length = stream.read(&mut response).unwrap();
        let response = String::from_utf8_lossy(&response[..length]).into_owned();
        if !response.starts_with("HTTP/1.1 200 ") {
            break response + &read_to_close(&mut stream);
        }
        open.push(stream);
        assert!(open.len() <= 5, "more than the limit");
    };
    // The test's HTTP client may hold one.
    assert!(open.len() >= 4, "{}", open.len());
    assert!(rejection.starts_with("HTTP/1.1 429 ") && rejection.contains("\r\nretry-after: 1\r\n"), "{rejection}");
    assert!(rejection.ends_with(r#"{"error":"your address has too many connections open"}"#), "{rejection}");

    let mut other = connect_from(Ipv4Addr::new(127, 77, 1, 1), &server.address);
    other.write_all(b"GET /api/models/a HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
    assert_eq!(statuses(&read_to_close(&mut other)), [200]);

    drop(open);
    until("connections are accepted again", async || {
        let mut stream = connect(&server.address);
        stream.write_all(b"GET /api/models/a HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
        statuses(&read_to_close(&mut stream)) == [200]
    })
    .await;
}

#[tokio::test]
async fn connections_of_trusted_proxies_are_not_limited() {
    let settings = [("CATALOG_MAX_CONNECTIONS_PER_ADDR", "2"), ("CATALOG_TRUSTED_PROXIES", "10.0.0.0/8,127.0.0.1")];
    let (_db, server) = start_with_model_a(&settings).await;
    let mut open: Vec<_> = (0..10).map(|_| Raw::open(&server.address)).collect();
    for connection in &mut open {
        assert_eq!(connection.get("/api/models/a").status, 200);
    }
}
