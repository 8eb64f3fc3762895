//! `GET /api/catalog`: state of the catalog, rejected rows with their reasons, most requested unknown ids.

use hyper::Request;
use serde_json::{Value, json};

use crate::support::raw::Raw;
use crate::support::{Db, Server};

async fn catalog(server: &Server) -> Value {
    server.get("/api/catalog").await.json()
}

/// Adds models before the server starts: `good-…`, and `bad-…` with a `save_path` that is rejected.
async fn add(db: &Db, good: usize, bad: usize) {
    for (prefix, path, count) in [("good", "checkpoints/x", good), ("bad", "../x", bad)] {
        db.sql(&format!(
            "INSERT INTO models (id, name, download_url, save_path)
             SELECT '{prefix}-' || lpad(n::text, 3, '0'), 'x', 'https://example.org/x', '{path}'
             FROM generate_series(1, {count}) n"
        ))
        .await;
    }
}

#[tokio::test]
async fn catalog_reports_counts_and_rejected_rows_with_reasons() {
    let db = Db::lenient().await;
    add(&db, 3, 2).await;
    let server = Server::start(&db).await;
    let response = server.get("/api/catalog").await;
    assert_eq!((response.status, response.header("content-type")), (200, "application/json"));
    assert_eq!(response.header("cache-control"), "no-store");
    assert_eq!(response.revision(), server.get("/api/models/good-001").await.revision());
    let age = response.json()["synced_seconds_ago"].as_f64().unwrap();
    assert!((0.0..30.0).contains(&age), "{age}");
    let reason = "save_path escapes the models folder: it must be relative to the models folder, without `..` \
                  and without backslashes";
    let expected = format!(
        r#"{{"revision":"{}","models":3,"rejected":2,"source":"postgres","synced_seconds_ago":{age:?},"follow":"live","rejected_rows":[{{"id":"bad-001","reason":"{reason}","served":false}},{{"id":"bad-002","reason":"{reason}","served":false}}],"not_found":0,"not_found_ids":[],"unwatched_tables":[]}}"#,
        response.revision()
    );
    assert_eq!(response.text(), expected);

    // The list follows the table.
    db.sql("UPDATE models SET save_path = 'x' WHERE id = 'bad-001'; DELETE FROM models WHERE id = 'bad-002'").await;
    server
        .until("no row is rejected", |s| async {
            let now = catalog(s).await;
            (&now["models"], &now["rejected"], &now["rejected_rows"]) == (&json!(4), &json!(0), &json!([]))
        })
        .await;
}

#[tokio::test]
async fn catalog_follows_the_common_rules_for_methods_and_paths() {
    let db = Db::lenient().await;
    add(&db, 1, 0).await;
    let server = Server::spawn(&db.url, &[("CATALOG_ADMIN_ADDR", "127.0.0.1:0")]).await;
    server.until("the catalog is served", |s| async move { s.get("/api/catalog").await.status == 200 }).await;
    let revision = server.get("/api/models/good-001").await.revision();

    let head = server.send(server.request("HEAD", "/api/catalog", "")).await;
    assert_eq!((head.status, head.body.len(), head.revision()), (200, 0, revision.clone()));
    assert!(head.header("content-length").parse::<usize>().unwrap() > 100, "{head:?}");
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let response = server.send(server.request(method, "/api/catalog", "")).await;
        assert_eq!((response.status, response.header("allow")), (405, "GET, HEAD"), "{method}");
        assert_eq!(
            (response.text(), response.revision()),
            (r#"{"error":"Method not allowed"}"#.into(), revision.clone())
        );
    }
    for path in ["/api/catalog/", "/api/catalog/x", "/api/catalogs", "/catalog"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    // A query string is ignored, as on every route.
    assert_eq!(server.get("/api/catalog?x=1").await.status, 200);
    // The connection stays open between different routes.
    let mut raw = Raw::open(&server.address);
    for (path, status) in [("/api/models/good-001", 200), ("/api/catalog", 200), ("/api/models/good-001", 200)] {
        assert_eq!(raw.get(path).status, status, "{path}");
    }

    let line = server.log().into_iter().find(|line| line.contains("serving the admin routes")).unwrap();
    let admin = serde_json::from_str::<Value>(&line).unwrap()["address"].as_str().unwrap().to_owned();
    let on_admin_port = |path: &str| Request::get(format!("http://{admin}{path}")).body(Default::default()).unwrap();
    assert_eq!(server.send(on_admin_port("/api/catalog")).await.status, 404);
    let metrics = server.send(on_admin_port("/metrics")).await.text();
    assert!(metrics.contains(r#"catalog_http_requests_total{route="/api/catalog",status="405"} 5"#), "{metrics}");
}

#[tokio::test]
async fn catalog_returns_503_before_the_first_load() {
    let server = Server::spawn("host=/nonexistent user=nobody password=hush dbname=none", &[]).await;
    let reason =
        "Catalog not loaded yet: cannot connect to the database at /nonexistent/.s.PGSQL.5432 (DATABASE_URL): ";
    server
        .until("it has tried to connect", |s| async move {
            s.get("/api/catalog").await.json()["error"].as_str().unwrap().starts_with(reason)
        })
        .await;
    let response = server.get("/api/catalog").await;
    assert!(response.status == 503 && !response.text().contains("hush"), "{response:?}");
    assert_eq!((response.header("retry-after"), response.revision()), ("1", String::new()));
}

#[tokio::test]
async fn unknown_ids_are_counted_on_every_route() {
    let db = Db::lenient().await;
    add(&db, 1, 0).await;
    let server = Server::start(&db).await;
    // Batches with and without further headers; single ids by GET, percent-encoded and by HEAD.
    let body = r#"{"model_ids":["nope","good-001","rare","nope"]}"#;
    let length = body.len();
    let post = |header: &str| {
        format!("POST /api/models/batch HTTP/1.1\r\nhost: x\r\n{header}content-length: {length}\r\n\r\n{body}")
    };
    let mut raw = Raw::open(&server.address);
    for header in ["", "te: trailers\r\n"] {
        raw.send(&post(header));
        assert_eq!(raw.response().status, 200);
    }
    assert_eq!(server.get("/api/models/nope").await.status, 404);
    assert_eq!(server.get("/api/models/%6eope").await.status, 404);
    assert_eq!(server.send(server.request("HEAD", "/api/models/nope", "")).await.status, 404);
    // Invalid requests look nothing up and are not counted.
    server.get("/api/models/%zz").await;
    server.batch(r#"{"model_ids":["nope",1]}"#).await;

    let now = catalog(&server).await;
    assert_eq!(now["not_found"], 9);
    assert_eq!(now["not_found_ids"], json!([{"id": "nope", "asked": 7}, {"id": "rare", "asked": 2}]));
    assert_eq!(server.metric(r#"catalog_lookups_total{outcome="not_found"}"#).await, 9.0);

    // An id that exists by now is no longer listed.
    db.add("nope").await;
    let rare = json!([{"id": "rare", "asked": 2}]);
    server.until("it is no longer listed", |s| async { catalog(s).await["not_found_ids"] == rare }).await;
    assert_eq!(catalog(&server).await["not_found"], 9);
}

#[tokio::test]
async fn lists_are_bounded_and_hostile_ids_escaped_and_truncated() {
    let db = Db::lenient().await;
    add(&db, 0, 130).await;
    db.sql("INSERT INTO models SELECT repeat('é', 5000), 'x', 'x', 1, NULL, true, NULL, 'x'").await;
    db.sql("UPDATE models SET save_path = 'x', download_url = repeat('ftp', 1000) || '://x' WHERE id = 'bad-001'")
        .await;
    let server = Server::start(&db).await;
    let hostile = "</script>\"\\\u{1b}[2J\u{0}\u{202e}\n";
    let long = "ü".repeat(4000);
    let ids: Vec<String> = (0..150).map(|number| format!("absent-{number:03}")).collect();
    server.batch(&json!({ "model_ids": ids }).to_string()).await;
    server.batch(&json!({ "model_ids": [hostile, hostile, hostile, long, long] }).to_string()).await;

    let response = server.get("/api/catalog").await;
    let now = response.json();
    assert_eq!((&now["rejected"], &now["not_found"]), (&json!(131), &json!(155)));
    assert_eq!(now["rejected_rows"].as_array().unwrap().len(), 100);
    assert_eq!(now["not_found_ids"].as_array().unwrap().len(), 100);
    assert_eq!(now["not_found_ids"][0], json!({"id": hostile, "asked": 3}));
    assert_eq!(now["not_found_ids"][1], json!({"id": format!("{}…", "ü".repeat(100)), "asked": 2}));
    let text = response.text();
    assert!(text.contains(r#""id":"</script>\"\\\u001b[2J\u0000"#), "{text}");
    assert!(!text.chars().any(char::is_control), "{text}");
    assert!(text.len() < 40_000, "{} bytes", text.len());
    let reason = now["rejected_rows"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("download_url ") && reason.ends_with('…') && reason.len() < 410, "{reason}");
}

#[tokio::test]
async fn random_ids_do_not_displace_frequent_ones() {
    let db = Db::lenient().await;
    // The lists of both threads are merged.
    let server = Server::start_with(&db.url, &[("CATALOG_THREADS", "2")]).await;
    for round in 0..100 {
        let mut ids: Vec<_> = (0..999).map(|number| format!("{round}-{number}-{}", fastrand::u64(..))).collect();
        ids.push(if round % 2 == 0 { "even-frequent" } else { "odd-frequent" }.to_owned());
        assert_eq!(server.batch(&json!({ "model_ids": ids }).to_string()).await.status, 200);
        let frequent = format!("/api/models/{}", "most-frequent");
        (0..5).for_each(|_| assert_eq!(Raw::open(&server.address).get(&frequent).status, 404));
    }
    let response = server.get("/api/catalog").await;
    let now = response.json();
    assert_eq!(now["not_found"], 100_500);
    let listed = now["not_found_ids"].as_array().unwrap();
    assert_eq!((listed.len(), &listed[0]["id"]), (100, &json!("most-frequent")), "{:?}", &listed[..3]);
    let asked = listed[0]["asked"].as_u64().unwrap();
    assert!((300..=500).contains(&asked), "{asked}");
}
