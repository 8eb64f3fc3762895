//! Positions of states whose content comes back (A, B, A): the later state is known as the later one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use hyper::header::{ACCEPT_ENCODING, IF_NONE_MATCH};

use crate::support::proxy::{Mode, Proxy};
use crate::support::tcp_proxy::TcpProxy;
use crate::support::{Db, Response, Server, migrated, sql, start_postgres};

const AS_OF: &str = "catalog-as-of";
/// Positions of content that stays are read soon.
const OFTEN: (&str, &str) = ("CATALOG_POLL_INTERVAL", "100ms");

/// The `xmax` of a `pg_snapshot`.
fn xmax(snapshot: &str) -> u64 {
    snapshot.split(':').nth(1).unwrap_or_else(|| panic!("{snapshot:?}")).parse().unwrap()
}

/// The position in the header of a response.
fn as_of(response: &Response) -> u64 {
    let (history, snapshot) = response.header(AS_OF).split_once(' ').unwrap_or_else(|| panic!("{response:?}"));
    assert_eq!(history.split('/').count(), 5, "{history}");
    xmax(snapshot)
}

/// The position in the body of a response, compressed or not.
fn as_of_in_body(response: &Response) -> u64 {
    let mut text = String::new();
    match response.header("content-encoding") {
        "gzip" => drop(GzDecoder::new(&response.body[..]).read_to_string(&mut text).unwrap()),
        _ => text = response.text(),
    }
    let header: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    xmax(header["as_of"].as_str().unwrap())
}

async fn compressed(server: &Server, path: &str, tag: &str) -> Response {
    let mut request = server.request("GET", path, "");
    request.headers_mut().insert(ACCEPT_ENCODING, "gzip".parse().unwrap());
    request.headers_mut().insert(IF_NONE_MATCH, tag.parse().unwrap());
    server.send(request).await
}

async fn rename(db: &Db, server: &Server, name: &str) {
    db.sql(&format!("UPDATE models SET name = '{name}'")).await;
    server.until_named("a", name).await;
}

/// A transaction id that a read after this call has in its past.
async fn transaction(db: &Db) -> u64 {
    db.sql("SELECT pg_current_xact_id()::text").await.unwrap().parse().unwrap()
}

/// Waits until a server says that its content is that of a position after `transaction`.
async fn until_as_of(server: &Server, transaction: u64) {
    let what = format!("its position is after {transaction}");
    server.until(&what, |s| async move { as_of(&compressed(s, "/api/snapshot", "").await) > transaction }).await;
}

#[tokio::test]
async fn position_is_that_of_the_state_and_not_of_its_content() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, &[OFTEN]).await;
    rename(&db, &server, "A").await;
    let first = compressed(&server, "/api/snapshot", "").await;
    rename(&db, &server, "B").await;
    let between = compressed(&server, "/api/snapshot", "").await;
    let before = transaction(&db).await;
    rename(&db, &server, "A").await;
    let last = compressed(&server, "/api/snapshot", "").await;
    assert_eq!((last.status, last.header("etag")), (200, first.header("etag")));
    assert!(as_of(&first) < as_of(&between) && as_of(&between) < as_of(&last), "{first:?} {between:?} {last:?}");
    // Servers of earlier versions read it in the body.
    for response in [last, server.get("/api/snapshot").await] {
        assert!(as_of_in_body(&response) > before, "{} is not after {before}", as_of_in_body(&response));
        assert!(as_of(&response) >= as_of_in_body(&response), "{response:?}");
    }

    // Other content that was never served: both changes are in one delta.
    db.sql("BEGIN; UPDATE models SET name = 'B'; UPDATE models SET name = 'A'; COMMIT").await;
    let after = transaction(&db).await;
    until_as_of(&server, after).await;
    let plain = server.get("/api/snapshot").await;
    assert!(as_of(&plain) > after && as_of_in_body(&plain) > after, "{plain:?}");
    let unchanged = compressed(&server, "/api/snapshot", first.header("etag")).await;
    assert!(unchanged.status == 304 && as_of(&unchanged) > after, "{unchanged:?}");

    // A waiting request is not woken by a position, and its response has the latest one.
    let (waiting, started) = (transaction(&db).await, Instant::now());
    let (waited, later) = tokio::join!(compressed(&server, "/api/snapshot?wait=2s", first.header("etag")), async {
        let later = transaction(&db).await;
        until_as_of(&server, later).await;
        later
    });
    assert!(waited.status == 304 && started.elapsed() >= Duration::from_secs(2), "{waited:?}");
    assert!(later > waiting && as_of(&waited) > waiting, "{waited:?}");
}

/// Passes requests on to a server and takes the position out of its responses, as if it were of an earlier version;
/// returns the address.
fn earlier_version(target: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, target) = (listener.local_addr().unwrap().to_string(), target.to_owned());
    let exchange = move |mut client: TcpStream| {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            client.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let mut server = TcpStream::connect(&target)?;
        let head = String::from_utf8_lossy(&head).replacen("\r\n", "\r\nconnection: close\r\n", 1);
        server.write_all(head.as_bytes())?;
        let mut response = Vec::new();
        server.read_to_end(&mut response)?;
        let at = response.windows(AS_OF.len()).position(|window| window == AS_OF.as_bytes());
        at.into_iter().for_each(|at| response[at] = b'x');
        client.write_all(&response)
    };
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let exchange = exchange.clone();
            std::thread::spawn(move || exchange(client.unwrap()));
        }
    });
    address
}

/// Two replicas of one database, of which the second can be cut off from it.
struct Replicas {
    client: tokio_postgres::Client,
    to_postgres: Proxy,
    first: Server,
    second: Server,
    _postgres: model_catalog::postgres::ephemeral::EphemeralPostgres,
}

impl Replicas {
    /// Both serve a model that is named `A`.
    async fn start() -> Self {
        let postgres = start_postgres(&[]);
        let client = migrated(&postgres.url("postgres")).await;
        let insert =
            "INSERT INTO models (id, name, download_url, save_path) VALUES ('a', 'A', 'https://example.org/a', 'a')";
        sql(&client, insert).await;
        let to_postgres = Proxy::before(&postgres).await;
        let first = Server::start_with(&postgres.url("postgres"), &[OFTEN]).await;
        let second = Server::start_with(&to_postgres.url("postgres"), &[OFTEN]).await;
        Self { client, to_postgres, first, second, _postgres: postgres }
    }

    async fn rename(&self, name: &str) {
        sql(&self.client, &format!("UPDATE models SET name = '{name}'")).await;
    }

    async fn cut_the_second_off(&self) {
        self.to_postgres.set(Mode::Refuse).await;
        self.to_postgres.cut();
    }
}

#[tokio::test]
async fn content_that_comes_back_is_accepted_and_what_was_between_is_refused() {
    let replicas = Replicas::start().await;
    let (first, second) = (&replicas.first, &replicas.second);
    // Both have it compressed in memory.
    for replica in [first, second] {
        assert_eq!(compressed(replica, "/api/snapshot", "").await.status, 200);
    }
    let (to_first, to_second) = (TcpProxy::new(&first.address).await, TcpProxy::new(&second.address).await);
    to_first.point_to(None);
    let both = format!("{},{}", to_first.url(), to_second.url());
    let edge = Server::edge(&both, &[]).await;
    edge.until_named("a", "A").await;
    // An edge of the edge follows it by the positions that it has from there.
    let edge_of_edge = Server::edge(&format!("http://{}", edge.address), &[]).await;
    edge_of_edge.until_named("a", "A").await;

    // The first replica reads both changes at once, and finds none.
    first.signal("STOP");
    replicas.rename("B").await;
    edge.until_named("a", "B").await;
    edge_of_edge.until_named("a", "B").await;
    replicas.cut_the_second_off().await;
    replicas.rename("A").await;
    let after: u64 = sql(&replicas.client, "SELECT pg_current_xact_id()::text").await.unwrap().parse().unwrap();
    first.signal("CONT");
    until_as_of(first, after).await;
    assert_eq!((first.field("a", "name").await, second.field("a", "name").await), ("A".into(), "B".into()));
    to_second.point_to(None);
    to_first.point_to(Some(&first.address));
    edge.until_named("a", "A").await;
    edge_of_edge.until_named("a", "A").await;

    // Servers that have A do not go back to B.
    let to_either = TcpProxy::new(&first.address).await;
    let fresh = Server::edge(&to_either.url(), &[]).await;
    fresh.until_named("a", "A").await;
    to_either.point_to(Some(&second.address));
    let refused = "catalog_upstream_requests_total{outcome=\"refused\"}";
    fresh.until("B is refused", |s| async move { s.metric(refused).await > 0.0 }).await;
    assert_eq!(fresh.field("a", "name").await, "A");
}

#[tokio::test]
async fn servers_of_an_earlier_version_are_followed_by_the_position_in_the_body() {
    let replicas = Replicas::start().await;
    let (first, second) = (&replicas.first, &replicas.second);
    assert_eq!(compressed(first, "/api/snapshot", "").await.status, 200);
    let earlier = earlier_version(&first.address);
    let (to_first, to_second) = (TcpProxy::new(&earlier).await, TcpProxy::new(&second.address).await);
    to_first.point_to(None);
    let edge = Server::edge(&format!("{},{}", to_first.url(), to_second.url()), &[]).await;
    edge.until_named("a", "A").await;
    replicas.rename("B").await;
    edge.until_named("a", "B").await;
    first.until_named("a", "B").await;
    replicas.cut_the_second_off().await;
    replicas.rename("A").await;
    first.until_named("a", "A").await;
    to_second.point_to(None);
    to_first.point_to(Some(&earlier));
    edge.until_named("a", "A").await;
    edge.until("it is in sync", |s| async move { s.metric("catalog_upstream_connected").await == 1.0 }).await;
}

#[tokio::test]
async fn refused_content_is_transferred_again_when_it_has_come_back() {
    let replicas = Replicas::start().await;
    let (first, second) = (&replicas.first, &replicas.second);
    let (to_first, to_second) = (TcpProxy::new(&first.address).await, TcpProxy::new(&second.address).await);
    to_first.point_to(None);
    let edge = Server::edge(&format!("{},{}", to_first.url(), to_second.url()), &[]).await;
    edge.until_named("a", "A").await;
    // The second replica serves A while the edge has B.
    replicas.cut_the_second_off().await;
    replicas.rename("B").await;
    first.until_named("a", "B").await;
    to_first.point_to(Some(&first.address));
    to_second.point_to(None);
    edge.until_named("a", "B").await;
    to_first.point_to(None);
    to_second.point_to(Some(&second.address));
    let refused = "catalog_upstream_requests_total{outcome=\"refused\"}";
    edge.until("A is refused", |s| async move { s.metric(refused).await > 0.0 }).await;
    assert_eq!(edge.field("a", "name").await, "B");

    // It finds A when it is back, and has never served B.
    replicas.rename("A").await;
    replicas.to_postgres.set(Mode::Pass).await;
    edge.until_named("a", "A").await;
    let received = edge.metric("catalog_upstream_received_bytes_total").await;
    let transaction: u64 = sql(&replicas.client, "SELECT pg_current_xact_id()::text").await.unwrap().parse().unwrap();
    until_as_of(second, transaction).await;
    assert_eq!(
        edge.metric("catalog_upstream_received_bytes_total").await,
        received,
        "a position was transferred with content"
    );
}
