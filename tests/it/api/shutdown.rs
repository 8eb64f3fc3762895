//! Shutdown: readiness, grace period, requests in flight, timeout. And a panicking handler, which must not end the process.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::{Body, Frame};
use model_catalog::catalog::model::{RawModel, Rules};
use model_catalog::catalog::refresh::Refresh;
use model_catalog::catalog::snapshot::Snapshot;
use model_catalog::catalog::store::{Publisher, Store};
use model_catalog::http::etag::hex;
use model_catalog::http::memory_budget::MemoryBudget;
use model_catalog::http::{Api, Handler, Limits, Routes};
use model_catalog::metrics::{Format, Metrics};

use crate::support::raw::Raw;
use crate::support::{Server, model_json, start_with_model_a};

const BATCH: &str = r#"{"model_ids":["a"]}"#;

/// Sends half of a batch request. The `100 Continue` shows that the server has read the head and waits for the body.
fn half_sent(server: &Server) -> Raw {
    let mut raw = Raw::open(&server.address);
    assert_eq!(raw.get("/api/models/a").status, 200);
    let length = BATCH.len();
    raw.send(&format!(
        "POST /api/models/batch HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
    ));
    assert_eq!(raw.head().status, 100);
    raw.send(&BATCH[..7]);
    raw
}

async fn until_no_new_connections(server: &Server) {
    let refused = |s: &Server| std::net::TcpStream::connect(&s.address).is_err();
    server.until("connections are refused", |s| std::future::ready(refused(s))).await;
}

async fn until_exited(server: &Server) {
    server.until("the process has exited", |s| std::future::ready(s.exited().is_some())).await;
    assert_eq!(server.exited().unwrap().code(), Some(0));
}

#[tokio::test]
async fn grace_period_serves_requests_and_is_not_ready() {
    let (_db, server) = start_with_model_a(&[("CATALOG_DRAIN_GRACE", "5s")]).await;
    assert_eq!(server.get("/api/models/a").await.header("connection"), "");
    let started = Instant::now();
    server.signal("TERM");
    server.until("it is no longer ready", |s| async move { s.get("/readyz").await.status == 503 }).await;
    assert_eq!(server.get("/readyz").await.json()["status"], "draining");
    assert_eq!(server.metric("catalog_ready").await, 0.0);
    for request in [server.request("GET", "/api/models/a", ""), server.request("POST", "/api/models/batch", BATCH)] {
        let response = server.send(request).await;
        assert_eq!((response.status, response.header("connection")), (200, "close"));
    }
    let mut raw = Raw::open(&server.address);
    assert_eq!(raw.get("/api/models/a").status, 200);
    raw.expect_close();
    assert_eq!(server.get("/livez").await.status, 200);
    until_exited(&server).await;
    assert!(started.elapsed() >= Duration::from_secs(5), "the grace period was cut short: {:?}", started.elapsed());
}

#[tokio::test]
async fn second_signal_exits_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM")] {
        let (_db, server) = start_with_model_a(&[("CATALOG_DRAIN_GRACE", "1h"), ("CATALOG_DRAIN_TIMEOUT", "1h")]).await;
        let _in_flight = half_sent(&server);
        server.signal(first);
        server.until("it is no longer ready", |s| async move { s.get("/readyz").await.status == 503 }).await;
        server.signal(second);
        until_exited(&server).await;
    }
}

#[tokio::test]
async fn requests_in_flight_are_completed() {
    let (_db, server) = start_with_model_a(&[("CATALOG_DRAIN_TIMEOUT", "1h")]).await;
    let mut idle = Raw::open(&server.address);
    assert_eq!(idle.get("/api/models/a").status, 200);
    let mut in_flight = half_sent(&server);

    server.signal("TERM");
    until_no_new_connections(&server).await;
    idle.expect_close();
    assert!(server.exited().is_none(), "it exited with a request in flight");
    in_flight.send(&BATCH[7..]);
    let response = in_flight.response();
    let body = format!(r#"{{"models":[{}],"not_found":[]}}"#, model_json("a"));
    assert_eq!((response.status, response.header("connection"), response.text()), (200, "close", body));
    in_flight.expect_close();
    until_exited(&server).await;
}

#[tokio::test]
async fn drain_timeout_ends_stalled_requests() {
    let (_db, server) = start_with_model_a(&[("CATALOG_DRAIN_TIMEOUT", "100ms")]).await;
    let _never_finished = half_sent(&server);
    server.signal("TERM");
    until_exited(&server).await;
    server.until_logged("exiting with open connections", 1).await;
}

/// A request body that panics when it is read.
struct PanickingBody;

impl Body for PanickingBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        panic!("deliberate panic")
    }
}

#[tokio::test]
async fn handler_panic_returns_500_and_keeps_serving() {
    let store = Arc::new(Store::default());
    let (empty, rules) = (Snapshot::default(), Rules::default());
    let mut refresh = Refresh::full(&empty, &rules);
    let text = Some("a");
    let url = Some("https://example.org/a");
    let model = RawModel {
        id: text,
        name: text,
        download_url: url,
        auth_required: Some(false),
        save_path: text,
        ..RawModel::default()
    };
    refresh.row("a", Ok(model));
    let snapshot = Arc::new(refresh.finish().snapshot);
    Publisher::new(Arc::clone(&store)).publish(Arc::clone(&snapshot));
    let metrics = Arc::new(Metrics::new().unwrap());
    let limits = Limits { max_batch_ids: 10, max_body_bytes: 100 };
    let api = Api::new(store, Arc::clone(&metrics), limits, MemoryBudget::new(1000));
    let handler = Arc::new(Handler::new(Arc::new(api), Routes::All));

    let response = handler
        .handle(Request::post("/api/models/batch").body(PanickingBody).unwrap(), None, Instant::now())
        .await
        .response;
    assert_eq!(response.status(), 500);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["catalog-revision"], hex(snapshot.revision()));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, r#"{"error":"Internal server error"}"#);

    let next = handler
        .handle(Request::post("/api/models/batch").body(Full::from(BATCH)).unwrap(), None, Instant::now())
        .await
        .response;
    assert_eq!(next.status(), 200);
    let counted = r#"catalog_http_requests_total{route="/api/models/batch",status="500"} 1"#;
    assert!(metrics.render(Format::Text).unwrap().contains(counted));
}
