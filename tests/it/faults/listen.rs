//! A server or a proxy that refuses LISTEN: changes are polled, and LISTEN is tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};

use crate::cli::check::check_with;
use crate::support::{self, Server, migrated, sql};

/// A proxy that misspells LISTEN while `refuses`, so that Postgres refuses it. Returns its port.
async fn proxy(server: &EphemeralPostgres, refuses: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = server.socket_directory().join(format!(".s.PGSQL.{}", server.port()));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (socket, refuses) = (socket.clone(), Arc::clone(&refuses));
            tokio::spawn(async move {
                let mut server = UnixStream::connect(socket).await.unwrap();
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.split(), server.split());
                let requests = async {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(size @ 1..) = from_client.read(&mut buffer).await {
                        let bytes = &mut buffer[..size];
                        let at = bytes.windows(7).position(|window| window == b"LISTEN ");
                        if let Some(at) = at.filter(|_| refuses.load(SeqCst)) {
                            bytes[at..at + 6].copy_from_slice(b"LISTFN");
                        }
                        if to_server.write_all(bytes).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = requests => {}
                    _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_listen_is_polled_and_tried_again() {
    let postgres = support::start_postgres(&[]);
    let client = migrated(&postgres.url("postgres")).await;
    let add = "INSERT INTO models (id, name, download_url, save_path) VALUES ('a', 'x', 'https://example.org/a', 'a')";
    sql(&client, add).await;
    let refuses = Arc::new(AtomicBool::new(true));
    let port = proxy(&postgres, Arc::clone(&refuses)).await;
    let url = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable");
    let server = Server::start_with(&url, &[("CATALOG_POLL_INTERVAL", "100ms")]).await;
    assert_eq!(server.get("/readyz").await.json()["follow"], "polling");
    server.until_logged("the server refuses LISTEN", 1).await;
    assert!(server.log().iter().any(|line| line.contains("syntax error at or near")), "{:#?}", server.log());
    sql(&client, "UPDATE models SET name = 'polled'").await;
    server.until_named("a", "polled").await;
    assert_eq!(server.metric("catalog_listener_connected").await, 0.0);
    check_with(&url, &[]).only("warning", "server", "refuses LISTEN");

    refuses.store(false, SeqCst);
    server.until("it listens", |s| async move { s.metric("catalog_listener_connected").await == 1.0 }).await;
    server.until("it is live", |s| async move { s.get("/readyz").await.json()["follow"] == "live" }).await;
    server.until_logged("the server no longer refuses LISTEN", 1).await;
    sql(&client, "UPDATE models SET name = 'notified'").await;
    server.until_named("a", "notified").await;
    assert!(server.metric("catalog_notifications_total").await >= 1.0);
}
