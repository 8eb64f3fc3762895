//! `GET /api/models/{id}`, and the rules for paths and methods.

use serde_json::Value;

use crate::support::raw::Raw;
use crate::support::{Db, Response, Server, model_json};

const FLUX: &str = r#"{"id":"flux-dev","name":"flux1-dev.safetensors","download_url":"https://huggingface.co/black-forest-labs/FLUX.1-dev/resolve/main/flux1-dev.safetensors","file_size_gb":23.8,"hash":"7fac5935ad7b22c0e9147b26ae3f890b","auth_required":true,"auth_provider":"huggingface","save_path":"checkpoints/flux1-dev.safetensors","dependencies":["flux-vae","clip-l"],"description":"FLUX.1-dev – \"professional\" \\ größer 模型"}"#;

async fn with_flux() -> (Db, Server) {
    let db = Db::new().await;
    db.sql(
        r#"INSERT INTO models VALUES ('flux-dev', 'flux1-dev.safetensors',
           'https://huggingface.co/black-forest-labs/FLUX.1-dev/resolve/main/flux1-dev.safetensors', 23.80,
           '7fac5935ad7b22c0e9147b26ae3f890b', true, 'huggingface', 'checkpoints/flux1-dev.safetensors',
           '["flux-vae", "clip-l"]', 'FLUX.1-dev – "professional" \ größer 模型')"#,
    )
    .await;
    let server = Server::start(&db).await;
    (db, server)
}

fn json_of(response: &Response) -> (u16, &str, String) {
    (response.status, response.header("content-type"), response.text())
}

#[tokio::test]
async fn single_model_has_ten_fields_in_order() {
    let (_db, server) = with_flux().await;
    let response = server.get("/api/models/flux-dev").await;
    assert_eq!(json_of(&response), (200, "application/json", FLUX.into()));
    assert_eq!(response.header("cache-control"), "no-cache");
    assert_eq!(response.header("content-length"), FLUX.len().to_string());
    let queried = server.get("/api/models/flux-dev?as=json").await;
    assert_eq!(queried.text(), FLUX, "a query string is ignored");
}

#[tokio::test]
async fn mirrors_are_an_eleventh_field_only_if_there_are_any() {
    let (db, server) = with_flux().await;
    db.sql("SELECT model_catalog.strict(false)").await;
    let served = async |text: String| {
        let expected = text.as_str();
        server.until(expected, |s| async move { s.get("/api/models/flux-dev").await.text() == expected }).await;
    };
    let eleven = |mirrors: &str| format!("{},\"mirrors\":{mirrors}}}", FLUX.strip_suffix('}').unwrap());
    let update = async |mirrors: &str| db.sql(&format!("UPDATE models SET mirrors = {mirrors}")).await;

    update(r#"'["https://a.example/flux", "http://b.example/flux?x=1"]'"#).await;
    let both = eleven(r#"["https://a.example/flux","http://b.example/flux?x=1"]"#);
    served(both.clone()).await;
    let batch = server.batch(r#"{"model_ids":["flux-dev"]}"#).await.text();
    assert_eq!(batch, format!(r#"{{"models":[{both}],"not_found":[]}}"#));

    // A bad mirror rejects the row, so the last good version stays.
    update(r#"'["https://a.example/flux", "ftp://hunter2@b.example/flux"]'"#).await;
    server.until("the row is rejected", |s| async move { s.get("/readyz").await.json()["rejected"] == 1 }).await;
    assert_eq!(server.get("/api/models/flux-dev").await.text(), both);
    let rejected = server.get("/api/catalog").await.json()["rejected_rows"][0].clone();
    let reason = "mirrors[1] has the scheme `ftp`: allowed are http, https";
    assert_eq!((&rejected["reason"], &rejected["served"]), (&Value::from(reason), &Value::from(true)));

    update("'[]'").await;
    served(FLUX.into()).await;
    update(r#"'["https://a.example/flux"]'"#).await;
    served(eleven(r#"["https://a.example/flux"]"#)).await;
    update("NULL").await;
    served(FLUX.into()).await;
}

#[tokio::test]
async fn mirrors_are_read_from_views_with_and_without_the_column() {
    let (db, server) = with_flux().await;
    let columns = "id, name, download_url, file_size_gb::numeric, hash, auth_required, auth_provider, save_path, \
                   dependencies, description";
    db.sql(&format!(
        "ALTER TABLE models RENAME mirrors TO others; UPDATE models SET others = '[\"https://a.example/x\"]'; \
         BEGIN; DROP VIEW model_catalog.entries; \
         CREATE VIEW model_catalog.entries AS SELECT {columns} FROM models; SELECT model_catalog.reload(); COMMIT"
    ))
    .await;
    db.sql("UPDATE models SET name = 'ten.safetensors'").await;
    server.until("the change is served", |s| async { s.field("flux-dev", "name").await == "ten.safetensors" }).await;
    assert!(server.get("/api/models/flux-dev").await.json().get("mirrors").is_none());

    // Servers that are connected read the new column without a restart.
    for (array, expected) in [
        ("ARRAY['https://a.example/' || name, 'https://b.example/x']", "https://a.example/ten.safetensors"),
        ("others", "https://a.example/x"),
        ("others::json", "https://a.example/x"),
    ] {
        db.sql(&format!(
            "BEGIN; DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT {columns}, {array} AS \
             mirrors FROM models; SELECT model_catalog.reload(); COMMIT"
        ))
        .await;
        server.until(array, |s| async { s.field("flux-dev", "mirrors").await[0] == expected }).await;
    }
    db.sql("UPDATE models SET others = '[\"https://c.example/x\"]'").await;
    let changed = "https://c.example/x";
    server.until("the delta is served", |s| async { s.field("flux-dev", "mirrors").await[0] == changed }).await;
}

#[tokio::test]
async fn null_fields_are_null_and_dependencies_are_always_an_array() {
    let db = Db::new().await;
    db.sql("ALTER TABLE models ALTER dependencies DROP NOT NULL").await;
    db.add("bare").await;
    db.sql("UPDATE models SET dependencies = NULL").await;
    let sizes = ["23.80", "6.00", "6.94", "0.05", "100", "0.00", "10.10"];
    for size in sizes {
        db.add(size).await;
        db.sql(&format!("UPDATE models SET file_size_gb = {size} WHERE id = '{size}'")).await;
    }
    let server = Server::start(&db).await;
    assert_eq!(server.get("/api/models/bare").await.text(), model_json("bare"));
    let shortest = ["23.8", "6", "6.94", "0.05", "100", "0", "10.1"];
    for (size, shortest) in sizes.into_iter().zip(shortest) {
        let text = server.get(&format!("/api/models/{size}")).await.text();
        assert!(text.contains(&format!(r#""file_size_gb":{shortest},"hash""#)), "{size}: {text}");
    }
}

#[tokio::test]
async fn head_matches_get_without_a_body() {
    let (_db, server) = with_flux().await;
    let mut raw = Raw::open(&server.address);
    let get = raw.get("/api/models/flux-dev");
    raw.send("HEAD /api/models/flux-dev HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut head = raw.head();
    let mut expected = get.headers.clone();
    // The clock may advance between the two.
    expected.remove("date");
    head.headers.remove("date");
    assert_eq!((head.status, &head.headers), (200, &expected));
    assert_eq!(head.header("content-length"), FLUX.len().to_string());
    // A body would be read as the head of the next response.
    raw.send("HEAD /api/models/absent HTTP/1.1\r\nhost: x\r\n\r\n");
    assert_eq!(raw.head().status, 404);
    assert_eq!(raw.get("/livez").status, 200);
}

#[tokio::test]
async fn etag_follows_the_content_and_a_match_returns_304() {
    let (db, server) = with_flux().await;
    let etag = server.get("/api/models/flux-dev").await.header("etag").to_owned();
    assert!(etag.len() == 18 && etag.starts_with('"') && etag.ends_with('"'), "not a strong ETag: {etag}");

    for (tags, status) in [
        (etag.clone(), 304),
        (format!("\"other\", {etag}"), 304),
        (format!("W/{etag}"), 304),
        ("*".into(), 304),
        ("\"other\"".into(), 200),
    ] {
        let mut raw = Raw::open(&server.address);
        raw.send(&format!("GET /api/models/flux-dev HTTP/1.1\r\nhost: x\r\nif-none-match: {tags}\r\n\r\n"));
        let response = if status == 304 { raw.head() } else { raw.response() };
        assert_eq!((response.status, response.header("etag")), (status, &*etag), "{tags}");
        assert_eq!(response.header("cache-control"), "no-cache");
        // RFC 9110 §8.6: the length that a 200 would have, or none.
        assert!(status != 304 || !response.headers.contains_key("content-length"), "{response:?}");
        // A body would be read as the head of the next response.
        assert_eq!(raw.get("/livez").status, 200);
    }

    db.sql("UPDATE models SET description = NULL").await;
    server
        .until("the old ETag no longer matches", |s| async {
            let mut request = s.request("GET", "/api/models/flux-dev", "");
            request.headers_mut().insert("if-none-match", etag.parse().unwrap());
            let response = s.send(request).await;
            response.status == 200 && response.header("etag") != etag
        })
        .await;
}

#[tokio::test]
async fn id_is_one_percent_encoded_segment() {
    let db = Db::new().await;
    for id in ["black-forest-labs/FLUX.1-dev", "größer 模型", "a+b", "100%", "batch"] {
        db.add(id).await;
    }
    let server = Server::start(&db).await;
    for (path, id) in [
        ("black-forest-labs%2FFLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        ("black-forest-labs%2fFLUX%2E1-dev", "black-forest-labs/FLUX.1-dev"),
        ("gr%C3%B6%C3%9Fer%20%E6%A8%A1%E5%9E%8B", "größer 模型"),
        ("a+b", "a+b"),
        ("100%25", "100%"),
        ("%62atch", "batch"),
    ] {
        let response = server.get(&format!("/api/models/{path}")).await;
        assert_eq!((response.status, response.text()), (200, model_json(id)), "{path}");
    }
}

#[tokio::test]
async fn unknown_id_returns_404_with_the_id() {
    let (_db, server) = with_flux().await;
    for (path, id) in [
        ("nope", "nope"),
        ("Flux-dev", "Flux-dev"),
        ("a%2Fb%22%5C", r#"a/b\"\\"#),
        ("gr%C3%B6%C3%9Fer", "größer"),
        ("a%00%0Ab", r"a\u0000\nb"),
    ] {
        let response = server.get(&format!("/api/models/{path}")).await;
        let body = format!(r#"{{"error":"Model not found","model_id":"{id}"}}"#);
        assert_eq!(json_of(&response), (404, "application/json", body));
    }
}

#[tokio::test]
async fn invalid_encodings_return_400() {
    let (_db, server) = with_flux().await;
    let encoding = r#"{"error":"the model id is not valid percent-encoding: `%` needs two hexadecimal digits"}"#;
    let utf8 = r#"{"error":"the model id is not valid UTF-8"}"#;
    for (path, body) in
        [("%", encoding), ("a%2", encoding), ("%zz", encoding), ("%+1", encoding), ("%ff", utf8), ("a%C3", utf8)]
    {
        // Not by the HTTP client, which might normalize the path.
        let response = Raw::open(&server.address).get(&format!("/api/models/{path}"));
        assert_eq!(json_of(&response), (400, "application/json", body.into()), "{path}");
    }
}

#[tokio::test]
async fn unknown_paths_return_404() {
    let (_db, server) = with_flux().await;
    let paths = ["/api", "/api/models/", "/api/models/a/b", "/api/models/batch/", "/API/models/a", "/x"];
    for path in paths {
        for method in ["GET", "POST", "DELETE"] {
            let response = server.send(server.request(method, path, "")).await;
            let not_found = (404, "application/json", r#"{"error":"Not found"}"#.into());
            assert_eq!(json_of(&response), not_found, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn unsupported_methods_return_405_with_allow() {
    let (_db, server) = with_flux().await;
    let mut table = Vec::new();
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
        let read_only = ["/api/models/flux-dev", "/api/models/absent", "/livez", "/readyz", "/metrics"];
        table.extend(read_only.map(|path| (method, path, "GET, HEAD")));
    }
    for method in ["PUT", "DELETE", "OPTIONS"] {
        table.push((method, "/api/models/batch", "GET, HEAD, POST"));
    }
    for (method, path, allow) in table {
        let response = server.send(server.request(method, path, "")).await;
        let body = if method == "HEAD" { "" } else { r#"{"error":"Method not allowed"}"# };
        assert_eq!(json_of(&response), (405, "application/json", body.into()), "{method} {path}");
        assert_eq!(response.header("allow"), allow, "{method} {path}");
    }
}

#[tokio::test]
async fn get_on_the_batch_path_returns_the_model_named_batch() {
    let (db, server) = with_flux().await;
    let missing = server.get("/api/models/batch").await;
    let body = r#"{"error":"Model not found","model_id":"batch"}"#;
    assert_eq!(json_of(&missing), (404, "application/json", body.into()));
    db.add("batch").await;
    server.until_named("batch", "batch.safetensors").await;
    assert_eq!(server.get("/api/models/batch").await.text(), model_json("batch"));
    assert_eq!(server.send(server.request("HEAD", "/api/models/batch", "")).await.status, 200);
    assert_eq!(server.batch(r#"{"model_ids":["batch"]}"#).await.json()["models"][0]["id"], "batch");
    let counted = r#"catalog_http_requests_total{route="/api/models/{id}",status="404"}"#;
    assert_eq!(server.metric(counted).await, 1.0);
}

#[tokio::test]
async fn pipelined_200_and_404_keep_request_order() {
    let (_db, server) = with_flux().await;
    let mut raw = Raw::open(&server.address);
    let get = |id: &str| format!("GET /api/models/{id} HTTP/1.1\r\nhost: x\r\n\r\n");
    raw.send(&[get("flux-dev"), get("absent"), get("flux-dev")].concat());
    let statuses: Vec<_> = (0..3).map(|_| raw.response().status).collect();
    assert_eq!(statuses, [200, 404, 200]);
}
