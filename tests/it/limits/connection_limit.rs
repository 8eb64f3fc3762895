//! `CATALOG_MAX_CONNECTIONS` is one limit for all threads, operators get responses from a full server, and clients that
//! wait for their turn get theirs.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use crate::support::raw::{Raw, connect, read_to_close, statuses};
use crate::support::{Db, Server, WAIT_LIMIT, start_with_model_a, until};

const REQUEST: &[u8] = b"GET /api/models/a HTTP/1.1\r\nhost: x\r\n\r\n";

/// Opens connections until `count` are served, the one of the test's HTTP client included.
async fn served(server: &Server, count: usize) -> Vec<Raw> {
    until("the connections before are closed", async || server.metric("catalog_http_connections").await == 1.0).await;
    let mut open: Vec<_> = (1..count).map(|_| Raw::open(&server.address)).collect();
    open.iter_mut().for_each(|open| assert_eq!(open.get("/api/models/a").status, 200));
    open
}

/// A client that has sent a request and gets no response before others are gone.
fn waiting(server: &Server) -> TcpStream {
    let mut stream = connect(&server.address);
    stream.write_all(REQUEST).unwrap();
    stream
}

fn assert_waits(client: &TcpStream) {
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(client.peek(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    client.set_read_timeout(Some(WAIT_LIMIT)).unwrap();
}

#[tokio::test]
async fn as_many_connections_as_allowed_are_served_whichever_thread_gets_them() {
    let settings = [("CATALOG_MAX_CONNECTIONS", "20"), ("CATALOG_THREADS", "3")];
    let (_db, server) = start_with_model_a(&settings).await;
    // The kernel distributes them at random.
    for _ in 0..8 {
        let open = served(&server, 20).await;
        assert_waits(&waiting(&server));
        drop(open);
    }
}

#[tokio::test]
async fn full_server_answers_operators_and_others_in_their_turn() {
    let settings = [("CATALOG_MAX_CONNECTIONS", "20"), ("CATALOG_THREADS", "2")];
    let (_db, server) = start_with_model_a(&settings).await;
    let open = served(&server, 20).await;
    let mut clients: Vec<_> = (0..100).map(|_| waiting(&server)).collect();
    assert_waits(&clients[0]);
    for request in ["GET /livez", "GET /readyz", "GET /readyz?verbose", "HEAD /metrics", "GET /metrics"] {
        for _ in 0..10 {
            let mut stream = connect(&server.address);
            stream
                .write_all(
                    format!("{request} HTTP/1.1\r\nhost: x\r\n\r\nGET /api/models/a HTTP/1.1\r\n\r\n").as_bytes(),
                )
                .unwrap();
            let response = read_to_close(&mut stream);
            assert_eq!(statuses(&response), [200], "{request}: {response}");
            assert!(response.contains("\r\nconnection: close\r\n"), "{response}");
        }
    }
    assert_waits(&clients[0]);
    // One that has finished sending is answered; more likely it is gone.
    let mut half_closed = waiting(&server);
    half_closed.shutdown(Shutdown::Write).unwrap();
    assert_eq!(statuses(&read_to_close(&mut half_closed)), [200]);

    drop(open);
    for client in &mut clients {
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(statuses(&read_to_close(client)), [200]);
    }
    assert_eq!(Raw::open(&server.address).get("/api/models/a").status, 200);
}

#[tokio::test]
async fn waiting_clients_are_served_when_others_leave_without_an_error() {
    let settings = [("CATALOG_MAX_CONNECTIONS", "20"), ("CATALOG_THREADS", "2")];
    let (_db, server) = start_with_model_a(&settings).await;
    let mut open = served(&server, 20).await;
    let mut unserved: Vec<_> = (0..60).map(|_| waiting(&server)).collect();
    unserved.iter().for_each(assert_waits);
    // Each that leaves makes room for one.
    while !unserved.is_empty() {
        drop(open.pop());
        let next = || {
            unserved.iter().position(|client| {
                client.set_nonblocking(true).unwrap();
                client.peek(&mut [0]).is_ok_and(|length| length > 0)
            })
        };
        until("another client is served", || std::future::ready(next().is_some())).await;
        let next = next().unwrap();
        let mut client = unserved.swap_remove(next);
        client.set_nonblocking(false).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(statuses(&read_to_close(&mut client)), [200]);
    }
}

#[tokio::test]
async fn clients_that_are_gone_do_not_keep_operators_from_a_full_server() {
    let db = Db::new().await;
    db.add("a").await;
    // One descriptor of sixteen is for connections over the limit.
    let settings = [("CATALOG_MAX_CONNECTIONS", "4"), ("CATALOG_THREADS", "2")];
    let server = Server::spawn_wrapped(&["/usr/bin/prlimit", "--nofile=256:256"], &db.url, &settings).await;
    server.until("the catalog is served", |s| async move { s.get("/api/models/a").await.status == 200 }).await;
    let _open = served(&server, 4).await;
    for round in 0..3 {
        let clients: Vec<_> = (0..16).map(|_| waiting(&server)).collect();
        if round == 1 {
            clients.iter().for_each(|client| SockRef::from(client).set_linger(Some(Duration::ZERO)).unwrap());
        }
        drop(clients);
    }
    let mut scrape = Raw::open(&server.address);
    assert_eq!(scrape.get("/metrics").status, 200);
    scrape.expect_close();
}

#[tokio::test]
async fn silent_clients_of_a_full_server_are_disconnected() {
    let settings = [("CATALOG_MAX_CONNECTIONS", "4"), ("CATALOG_REQUEST_TIMEOUT", "500ms"), ("CATALOG_THREADS", "1")];
    let (_db, server) = start_with_model_a(&settings).await;
    let _open = served(&server, 4).await;
    Raw::open(&server.address).expect_close();
}
