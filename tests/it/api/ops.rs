//! `/livez`, `/readyz`, `/metrics`: before and after the first load, and on the admin port.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use model_catalog::catalog::snapshot::Snapshot;
use model_catalog::catalog::store::{Publisher, Store};
use model_catalog::http::memory_budget::MemoryBudget;
use model_catalog::http::{Api, Handler, Limits, Routes};
use model_catalog::metrics::COMMIT;
use model_catalog::metrics::Metrics;
use model_catalog::postgres::migrate::SCHEMA_VERSION;
use model_catalog::postgres::session::SyncMode;
use model_catalog::sync::{LastSync, SyncStatus};

use crate::support::raw::Raw;
use crate::support::{Db, Response, Server, start_with_model_a};

/// A database that does not exist.
const NO_DATABASE: &str = "host=/nonexistent user=nobody dbname=none";

fn keys(response: &Response) -> Vec<String> {
    // serde_json's own map sorts its keys; the order is part of the contract.
    let text = response.text();
    let pairs = text.trim_matches(['{', '}']).split(',');
    pairs.map(|pair| pair.split(':').next().unwrap().trim_matches('"').to_owned()).collect()
}

#[tokio::test]
async fn api_returns_503_and_livez_200_before_the_first_load() {
    let server = Server::spawn(NO_DATABASE, &[]).await;
    for request in [
        server.request("GET", "/api/models/a", ""),
        server.request("POST", "/api/models/batch", r#"{"model_ids":["a"]}"#),
        server.request("POST", "/api/models/batch", r#"{"model_ids":[]}"#),
    ] {
        let response = server.send(request).await;
        assert_eq!((response.status, response.text()), (503, r#"{"error":"Catalog not loaded yet"}"#.into()));
        assert_eq!((response.header("content-type"), response.header("retry-after")), ("application/json", "1"));
    }
    let ready = server.get("/readyz").await;
    let loading = r#"{"status":"loading","revision":null,"models":0,"rejected":0,"source":null,"synced_seconds_ago":null,"follow":null}"#;
    assert_eq!((ready.status, ready.text()), (503, loading.into()));
    assert_eq!(server.get("/livez").await.status, 200);
    assert_eq!(server.metric("catalog_listener_connected").await, 0.0);
    assert_eq!(server.metric("catalog_last_sync_timestamp_seconds").await, 0.0);
}

#[tokio::test]
async fn readyz_describes_the_catalog() {
    let db = Db::lenient().await;
    db.add("a").await;
    db.add("b").await;
    db.add("bad").await;
    db.sql("UPDATE models SET save_path = '../../etc/passwd' WHERE id = 'bad'").await;
    let server = Server::start(&db).await;
    let response = server.get("/readyz").await;
    assert_eq!((response.status, response.header("content-type")), (200, "application/json"));
    assert_eq!(keys(&response), ["status", "revision", "models", "rejected", "source", "synced_seconds_ago", "follow"]);
    let json = response.json();
    assert_eq!(json["revision"], server.get("/api/models/a").await.revision());
    assert_eq!((&json["status"], &json["source"]), (&"ready".into(), &"postgres".into()));
    assert_eq!(json["follow"], "live");
    assert_eq!((&json["models"], &json["rejected"]), (&2.into(), &1.into()));
    let age = json["synced_seconds_ago"].as_f64().unwrap();
    assert!((0.0..30.0).contains(&age), "{age}");
    let alive = server.get("/livez").await;
    assert_eq!((alive.status, alive.text()), (200, r#"{"status":"alive"}"#.into()));
}

#[tokio::test]
async fn ops_routes_move_to_the_admin_port() {
    let db = Db::lenient().await;
    db.add("a").await;
    let server = Server::spawn(&db.url, &[("CATALOG_ADMIN_ADDR", "127.0.0.1:0")]).await;
    let line = server.log().into_iter().find(|line| line.contains("serving the admin routes")).unwrap();
    let admin = serde_json::from_str::<serde_json::Value>(&line).unwrap()["address"].as_str().unwrap().to_owned();
    let on_admin_port =
        |path: &str| server.send(Request::get(format!("http://{admin}{path}")).body(Default::default()).unwrap());

    server.until("the catalog is served", |s| async move { s.get("/api/models/a").await.status == 200 }).await;
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/api/models/a", 404), ("/", 404)] {
        let response = on_admin_port(path).await;
        assert_eq!(response.status, status, "{path} on the admin port");
        assert!(status == 200 || response.text() == r#"{"error":"Not found"}"#, "{response:?}");
    }
    let batch = Request::post(format!("http://{admin}/api/models/batch")).body(r#"{"model_ids":[]}"#.into()).unwrap();
    assert_eq!(server.send(batch).await.status, 404);
    let moved = "served on the admin port (CATALOG_ADMIN_ADDR): let checks and scrapes use that port";
    for path in ["/livez", "/readyz", "/metrics"] {
        let response = server.get(path).await;
        assert_eq!(
            (response.status, response.text()),
            (404, format!(r#"{{"error":"{moved}"}}"#)),
            "{path} on the API port"
        );
        assert_eq!(response.revision().len(), 16);
    }
    // Requests to both ports are counted together.
    let metrics = on_admin_port("/metrics").await.text();
    assert!(metrics.contains(r#"catalog_http_requests_total{route="/readyz",status="200"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"catalog_http_requests_total{route="/api/models/{id}",status="200"}"#), "{metrics}");
}

#[tokio::test]
async fn metrics_are_sent_in_the_format_and_encoding_that_the_client_prefers() {
    let (_db, server) = start_with_model_a(&[]).await;
    let get = async |accept: &str, encoding: &str| {
        let mut request = server.request("GET", "/metrics", "");
        request.headers_mut().insert("accept", accept.parse().unwrap());
        request.headers_mut().insert("accept-encoding", encoding.parse().unwrap());
        server.send(request).await
    };
    let response = get("application/openmetrics-text; version=1.0.0, text/plain;q=0.5", "identity").await;
    assert_eq!(response.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert_eq!(response.header("vary"), "accept, accept-encoding");
    let text = response.text();
    assert!(text.contains("# TYPE catalog_notifications counter\ncatalog_notifications_total 0\n"), "{text}");
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let undeclared: Vec<_> = text.lines().filter(|line| line.contains("_total counter")).collect();
    assert!(undeclared.is_empty(), "{undeclared:?}");

    let response = get("*/*", "gzip").await;
    let headers = (response.header("content-type"), response.header("content-encoding"));
    assert_eq!(headers, ("text/plain; version=0.0.4", "gzip"));
    let mut text = String::new();
    GzDecoder::new(&*response.body).read_to_string(&mut text).unwrap();
    assert!(text.contains("# TYPE catalog_notifications_total counter\ncatalog_notifications_total 0\n"), "{text}");
    assert!(response.body.len() * 4 < text.len(), "{} of {} bytes", response.body.len(), text.len());
}

#[tokio::test]
async fn requests_are_counted_by_route_template_and_status() {
    let db = Db::lenient().await;
    db.add("a").await;
    let server = Server::start(&db).await;
    let response = server.get("/metrics").await;
    assert_eq!((response.status, response.header("content-type")), (200, "text/plain; version=0.0.4"));

    let etag = server.get("/api/models/a").await.header("etag").to_owned();
    let mut known = server.request("GET", "/api/models/a", "");
    known.headers_mut().insert("if-none-match", etag.parse().unwrap());
    for request in [
        known,
        server.request("GET", "/api/models/a", ""),
        server.request("HEAD", "/api/models/a", ""),
        server.request("GET", "/api/models/secret-one", ""),
        server.request("GET", "/api/models/secret-two", ""),
        server.request("GET", "/api/models/%zz", ""),
        server.request("DELETE", "/api/models/a", ""),
        server.request("GET", "/secret/path", ""),
        server.request("POST", "/api/models/batch", r#"{"model_ids":["a","a","secret-three","x"]}"#),
        server.request("POST", "/api/models/batch", r#"{"model_ids":["a"]}"#),
        server.request("POST", "/api/models/batch", "{"),
    ] {
        server.send(request).await;
    }
    for (metric, value) in [
        (r#"catalog_http_requests_total{route="/api/models/{id}",status="200"}"#, 3.0),
        (r#"catalog_http_requests_total{route="/api/models/{id}",status="304"}"#, 1.0),
        (r#"catalog_http_requests_total{route="/api/models/{id}",status="400"}"#, 1.0),
        (r#"catalog_http_requests_total{route="/api/models/{id}",status="404"}"#, 2.0),
        (r#"catalog_http_requests_total{route="/api/models/{id}",status="405"}"#, 1.0),
        (r#"catalog_http_requests_total{route="/api/models/batch",status="200"}"#, 2.0),
        (r#"catalog_http_requests_total{route="/api/models/batch",status="400"}"#, 1.0),
        (r#"catalog_http_requests_total{route="other",status="404"}"#, 1.0),
        (r#"catalog_http_request_duration_seconds_count{route="/api/models/{id}"}"#, 8.0),
        (r#"catalog_http_request_duration_seconds_bucket{route="/api/models/{id}",le="+Inf"}"#, 8.0),
        (r#"catalog_http_request_duration_seconds_count{route="/api/models/batch"}"#, 3.0),
        ("catalog_batch_ids_count", 2.0),
        ("catalog_batch_ids_sum", 5.0),
        (r#"catalog_batch_ids_bucket{le="1"}"#, 1.0),
        (r#"catalog_batch_ids_bucket{le="5"}"#, 2.0),
        // Single: three 200, one 304, two unknown. Batch: `a` three times, two unknown.
        (r#"catalog_lookups_total{outcome="found"}"#, 7.0),
        (r#"catalog_lookups_total{outcome="not_found"}"#, 4.0),
    ] {
        assert_eq!(server.metric(metric).await, value, "{metric}");
    }
    let text = server.get("/metrics").await.text();
    assert!(!text.contains("secret"), "a path became a label: {text}");
    assert!(text.contains(r#"duration_seconds_bucket{route="/api/models/{id}",le="0.00001"}"#), "{text}");
    let seconds = server.metric(r#"catalog_http_request_duration_seconds_sum{route="/api/models/{id}"}"#).await;
    assert!(seconds > 0.0 && seconds < 8.0, "{seconds}");
}

#[tokio::test]
async fn metrics_describe_the_catalog_and_its_refreshes() {
    let db = Db::lenient().await;
    for id in ["a", "b", "bad"] {
        db.add(id).await;
    }
    db.sql("UPDATE models SET save_path = '/etc/passwd' WHERE id = 'bad'").await;
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    // A heartbeat would count as a refresh.
    let server = Server::start_with(&db.url, &[("CATALOG_POLL_INTERVAL", "1h")]).await;
    // The gauge is set after the first load, which also makes the server ready.
    let connected = "catalog_listener_connected";
    server.until("the listener is connected", |s| async move { s.metric(connected).await == 1.0 }).await;
    let labels = format!("commit=\"{COMMIT}\",schema=\"{SCHEMA_VERSION}\"");
    let build_info = format!("catalog_build_info{{{labels},version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    let bytes: usize = ["a", "b"].map(|id| id.len() + crate::support::model_json(id).len()).iter().sum();
    for (metric, value) in [
        ("catalog_ready", 1.0),
        ("catalog_models", 2.0),
        ("catalog_models_rejected", 1.0),
        ("catalog_snapshot_bytes", bytes as f64),
        (r#"catalog_refreshes_total{kind="full",outcome="ok"}"#, 1.0),
        (r#"catalog_refresh_duration_seconds_count{kind="full"}"#, 1.0),
        (r#"catalog_refreshes_total{kind="delta",outcome="ok"}"#, 0.0),
        ("catalog_propagation_seconds_count", 0.0),
        ("catalog_notifications_total", 0.0),
        (&*build_info, 1.0),
    ] {
        assert_eq!(server.metric(metric).await, value, "{metric}");
    }
    let synced = server.metric("catalog_last_sync_timestamp_seconds").await;
    assert!((started - 1.0..started + 60.0).contains(&synced), "{synced} is not near {started}");

    db.sql("UPDATE models SET hash = 'x' WHERE id IN ('a', 'b')").await;
    let deltas = r#"catalog_refreshes_total{kind="delta",outcome="ok"}"#;
    server.until("the change is read", |s| async move { s.metric(deltas).await == 1.0 }).await;
    for (metric, value) in [
        ("catalog_notifications_total", 1.0),
        ("catalog_propagation_seconds_count", 2.0),
        (r#"catalog_refresh_duration_seconds_count{kind="delta"}"#, 1.0),
        ("catalog_snapshot_bytes", (bytes + 2 * "\"x\"".len() - 2 * "null".len()) as f64),
    ] {
        assert_eq!(server.metric(metric).await, value, "{metric}");
    }
    let seconds = server.metric("catalog_propagation_seconds_sum").await;
    assert!(seconds > 0.0 && seconds < 30.0, "{seconds}");
    assert!(server.metric("process_resident_memory_bytes").await > 1e6);
}

#[tokio::test]
async fn alert_metrics_exist_before_the_first_event() {
    let settings = [("CATALOG_MAX_CONNECTIONS", "123")];
    let text = Server::spawn(NO_DATABASE, &settings).await.get("/metrics").await.text();
    let mut expected = vec!["catalog_ready 0".to_owned(), "catalog_http_connections_limit 123".into()];
    for route in ["/api/models/{id}", "/api/models/batch"] {
        for status in ["200", "500", "503"] {
            expected.push(format!(r#"catalog_http_requests_total{{route="{route}",status="{status}"}} 0"#));
        }
        expected.push(format!(r#"catalog_http_request_duration_seconds_count{{route="{route}"}} 0"#));
    }
    for outcome in ["ok", "error"] {
        for kind in ["delta", "full", "audit"] {
            expected.push(format!(r#"catalog_refreshes_total{{kind="{kind}",outcome="{outcome}"}} 0"#));
        }
        let writes = r#"catalog_snapshot_file_operations_total{operation="write",outcome="#;
        expected.push(format!(r#"{writes}"{outcome}"}} 0"#));
    }
    for line in expected {
        assert!(text.lines().any(|other| other == line), "no `{line}` in {text}");
    }
}

#[tokio::test]
async fn open_connections_are_counted() {
    let db = Db::lenient().await;
    db.add("a").await;
    let server = Server::start(&db).await;
    let mut scraper = Raw::open(&server.address);
    let mut open = || {
        let text = scraper.get("/metrics").text();
        let value = text.lines().find_map(|line| line.strip_prefix("catalog_http_connections ")).unwrap();
        value.parse::<f64>().unwrap()
    };
    let mut clients = Vec::new();
    for count in 1..=20 {
        let mut client = Raw::open(&server.address);
        assert_eq!(client.get("/api/models/a").status, 200);
        clients.push(client);
        // The scraper's connection is one more, and the server's pooled client keeps some open.
        let all = open();
        let expected = f64::from(count + 1)..f64::from(count + 5);
        assert!(expected.contains(&all), "{all} connections are counted, expected {expected:?}");
    }
    drop(clients);
    server.until("the connections are closed", |_| std::future::ready(open() < 5.0)).await;
}

#[tokio::test]
async fn stalled_catalog_is_ready_and_says_so() {
    let (store, metrics) = (Arc::new(Store::default()), Arc::new(Metrics::new().unwrap()));
    let sync = Arc::new(SyncStatus::default());
    Publisher::new(Arc::clone(&store)).publish(Arc::new(Snapshot::default()));
    let limits = Limits { max_batch_ids: 1, max_body_bytes: 1 };
    let mut api = Api::new(store, metrics, limits, MemoryBudget::new(1000));
    (api.stalled_after, api.sync) = (Duration::from_secs(60), Arc::clone(&sync));
    let handler = Arc::new(Handler::new(Arc::new(api), Routes::All));
    let get = async |path| {
        let request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
        let response = handler.handle(request, None, Instant::now()).await.response;
        assert_eq!(response.status(), 200);
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    assert!(get("/readyz").await.contains(r#""follow":null"#));
    for (seconds, follow, gauge) in [(10, "live", 0), (120, "stalled", 1), (10, "live", 0)] {
        let at = Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        sync.record(LastSync { at, mode: Some(SyncMode::Live), replay_lag_seconds: None });
        for path in ["/readyz", "/api/catalog"] {
            let text = get(path).await;
            assert!(text.contains(&format!("\"follow\":\"{follow}\"")), "{text}");
        }
        let text = get("/metrics").await;
        assert!(text.contains(&format!("\ncatalog_follow_stalled {gauge}\n")), "{text}");
    }
}
