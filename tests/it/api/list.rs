//! `GET /api/models`: pages, order, search, and the limit on concurrent scans.

use std::time::Duration;

use hyper::Request;
use serde_json::{Value, json};

use crate::support::{Db, NOTIFY_ONLY, Response, Server, model_json};

fn ids(response: &Response) -> Vec<String> {
    assert_eq!(response.status, 200, "{response:?}");
    let models = response.json()["models"].as_array().unwrap().clone();
    models.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn pages_cover_the_whole_catalog_in_order() {
    let db = Db::new().await;
    for id in ["b", "a", "black-forest-labs/FLUX & co+", "ä", "Z"] {
        db.add(id).await;
    }
    let server = Server::start(&db).await;
    let response = server.get("/api/models").await;
    assert_eq!((response.header("content-type"), response.header("cache-control")), ("application/json", "no-cache"));
    let order = ["Z", "a", "b", "black-forest-labs/FLUX & co+", "ä"];
    let expected = format!(r#"{{"models":[{}],"total":5,"next":null}}"#, order.map(model_json).join(","));
    assert_eq!((response.text(), response.revision()), (expected, server.get("/api/models/a").await.revision()));

    let (mut all, mut path) = (Vec::new(), "/api/models?limit=2".to_owned());
    loop {
        let page = server.get(&path).await;
        all.extend(ids(&page));
        let Some(next) = page.json()["next"].as_str().map(str::to_owned) else { break };
        assert_eq!(Some(&next), all.last());
        let after: String = next.bytes().map(|byte| format!("%{byte:02x}")).collect();
        path = format!("/api/models?limit=2&after={after}");
    }
    assert_eq!(all, order);

    for (query, found) in [
        ("q=flux", vec![order[3]]),
        ("q=FLUX+%26+CO%2b", vec![order[3]]),
        ("q=%C3%84", vec!["ä"]),
        ("q=.SafeTensors&after=a&limit=1", vec!["b"]),
        ("q=example.org", vec![]),
        ("after=%C3%A4", vec![]),
        ("q=&after=&limit=&other=%zz", order.to_vec()),
    ] {
        assert_eq!(ids(&server.get(&format!("/api/models?{query}")).await), found, "{query}");
    }
    // Listing does not count as a lookup of each id.
    assert_eq!(server.metric(r#"catalog_lookups_total{outcome="found"}"#).await, 1.0);
    assert_eq!(server.metric(r#"catalog_lookups_total{outcome="not_found"}"#).await, 0.0);
}

#[tokio::test]
async fn list_follows_the_common_rules_for_methods_and_paths() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::spawn(&db.url, &[("CATALOG_ADMIN_ADDR", "127.0.0.1:0")]).await;
    server.until("the list is served", |s| async move { s.get("/api/models").await.status == 200 }).await;
    let response = server.get("/api/models").await;
    let head = server.send(server.request("HEAD", "/api/models", "")).await;
    assert_eq!((head.status, head.body.len(), head.revision()), (200, 0, response.revision()));
    assert_eq!(head.header("content-length"), response.body.len().to_string());
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let rejected = server.send(server.request(method, "/api/models?q=a", "")).await;
        assert_eq!((rejected.status, rejected.header("allow")), (405, "GET, HEAD"), "{method}");
    }
    for (query, error) in [
        ("q=%zz", "`q` is not valid percent-encoding: `%` needs two hexadecimal digits"),
        ("after=%ff", "`after` is not valid UTF-8"),
        ("limit=0", "`limit` must be a whole number from 1 to 200"),
        ("limit=201", "`limit` must be a whole number from 1 to 200"),
        ("q=a&q=b", "`q` is given twice: give it once"),
    ] {
        let rejected = server.get(&format!("/api/models?{query}")).await;
        assert_eq!((rejected.status, rejected.json()), (400, json!({ "error": error })), "{query}");
        assert_eq!(rejected.revision(), response.revision());
    }
    let line = server.log().into_iter().find(|line| line.contains("serving the admin routes")).unwrap();
    let admin = serde_json::from_str::<Value>(&line).unwrap()["address"].as_str().unwrap().to_owned();
    let on_admin_port = |path: &str| Request::get(format!("http://{admin}{path}")).body(Default::default()).unwrap();
    for path in ["/api/models", "/"] {
        assert_eq!(server.send(on_admin_port(path)).await.status, 404, "{path}");
    }
    let metrics = server.send(on_admin_port("/metrics")).await.text();
    assert!(metrics.contains(r#"catalog_http_requests_total{route="/api/models",status="400"} 5"#), "{metrics}");
}

#[tokio::test]
async fn matching_etag_returns_304_until_a_change() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let etag = server.get("/api/models").await.header("etag").to_owned();
    let get_if_changed = || {
        let mut request = server.request("GET", "/api/models", "");
        request.headers_mut().insert("if-none-match", etag.parse().unwrap());
        server.send(request)
    };
    let unchanged = get_if_changed().await;
    assert_eq!((unchanged.status, unchanged.header("etag"), unchanged.body.len()), (304, &*etag, 0));
    db.add("b").await;
    server.until("it is listed", |_| async { get_if_changed().await.status == 200 }).await;
    assert_eq!(ids(&get_if_changed().await), ["a", "b"]);
}

#[tokio::test]
async fn list_returns_503_before_the_first_load() {
    let server = Server::spawn("host=/nonexistent user=nobody dbname=none", &[]).await;
    let response = server.get("/api/models?q=%zz").await;
    assert_eq!((response.status, response.text()), (503, r#"{"error":"Catalog not loaded yet"}"#.into()));
    assert_eq!(response.header("retry-after"), "1");
    // The HTML page does not need a catalog.
    assert_eq!(server.get("/").await.status, 200);
}

#[tokio::test]
async fn concurrent_scans_are_limited_and_lookups_continue() {
    let db = Db::new().await;
    db.add("a").await;
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path)
         SELECT 'm' || n, 'x', 'https://example.org/x', 'x' FROM generate_series(1, 30000) n",
    )
    .await;
    let server = Server::start_with(&db.url, &[("CATALOG_THREADS", "1")]).await;
    let scans = (0..40).map(|_| server.get("/api/models?q=nothing+has+this"));
    let (responses, lookup) = tokio::join!(futures_util::future::join_all(scans), server.get("/api/models/a"));
    assert_eq!(lookup.status, 200);
    let rejected: Vec<_> = responses.iter().filter(|response| response.status == 429).collect();
    assert!(!rejected.is_empty() && rejected.len() <= 32, "{} of 40 rejected", rejected.len());
    for response in rejected {
        assert_eq!((response.header("retry-after"), response.revision().len()), ("1", 16));
    }
    assert!(responses.iter().all(|response| matches!(response.status, 200 | 429)), "{responses:?}");
    // Scans that ended free their slots.
    tokio::time::timeout(Duration::from_secs(30), async {
        assert_eq!(server.get("/api/models?limit=1").await.status, 200);
    })
    .await
    .unwrap();
}
