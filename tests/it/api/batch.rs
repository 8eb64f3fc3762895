//! `POST /api/models/batch`: order, duplicates, limits and invalid bodies.

use serde_json::json;

use crate::support::raw::Raw;
use crate::support::{Db, Response, Server, model_json};

const ONE_MIB: usize = 1 << 20;

async fn with_models(ids: &[&str], settings: &[(&str, &str)]) -> (Db, Server) {
    let db = Db::new().await;
    for id in ids {
        db.add(id).await;
    }
    let server = Server::start_with(&db.url, settings).await;
    (db, server)
}

fn batch_json(models: &[&str], not_found: &str) -> String {
    let models: Vec<_> = models.iter().map(|id| model_json(id)).collect();
    format!(r#"{{"models":[{}],"not_found":[{not_found}]}}"#, models.join(","))
}

fn assert_error(response: &Response, status: u16, message: &str) {
    let body = json!({ "error": message }).to_string();
    assert_eq!((response.status, response.header("content-type"), response.text()), (status, "application/json", body));
}

/// A batch body with this many different ids.
fn many(ids: usize) -> String {
    json!({ "model_ids": (0..ids).map(|number| format!("m{number}")).collect::<Vec<_>>() }).to_string()
}

/// A batch body of exactly this many bytes.
fn padded(bytes: usize) -> String {
    let ids = r#"{"model_ids":["a"]}"#;
    format!("{ids}{}", " ".repeat(bytes - ids.len()))
}

#[tokio::test]
async fn models_keep_request_order_without_duplicates() {
    let (_db, server) = with_models(&["a", "b", "c"], &[]).await;
    for (body, expected) in [
        (r#"{"model_ids":["a","b"]}"#, batch_json(&["a", "b"], "")),
        (r#"{"model_ids":["c","a","b"]}"#, batch_json(&["c", "a", "b"], "")),
        (r#"{"model_ids":["b","a","b","b","a"]}"#, batch_json(&["b", "a"], "")),
        (r#"{"model_ids":["x","c","y","a","x","c","x"]}"#, batch_json(&["c", "a"], r#""x","y","x","x""#)),
        (r#"{"model_ids":["x\"\\\u0001ß","é/😀"]}"#, batch_json(&[], r#""x\"\\\u0001ß","é/😀""#)),
        (r#"{"model_ids":["\u0061"]}"#, batch_json(&["a"], "")),
        (r#"{"model_ids":[]}"#, batch_json(&[], "")),
    ] {
        let response = server.batch(body).await;
        assert_eq!((response.status, response.text()), (200, expected), "{body}");
        assert_eq!(response.header("content-type"), "application/json");
    }
}

#[tokio::test]
async fn large_batch_keeps_order_and_drops_duplicates() {
    let (db, server) = with_models(&[], &[]).await;
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path)
         SELECT i, i || '.safetensors', 'https://example.org/' || i, 'checkpoints/' || i
         FROM (SELECT 'm' || n AS i FROM generate_series(0, 299) n) s",
    )
    .await;
    let last = "/api/models/m299";
    server.until("the models are served", |s| async { s.get(last).await.status == 200 }).await;

    let ids: Vec<_> = (0..400).rev().map(|number| format!("m{number}")).collect();
    let twice = [&ids[..], &ids[..]].concat();
    let found: Vec<_> = (0..300).rev().map(|number| format!("m{number}")).collect();
    let missing: Vec<_> = (300..400).rev().map(|number| format!("\"m{number}\"")).collect();
    let response = server.batch(&json!({ "model_ids": twice }).to_string()).await;
    let found: Vec<_> = found.iter().map(String::as_str).collect();
    let missing = missing.join(",");
    assert_eq!(response.text(), batch_json(&found, &format!("{missing},{missing}")));
}

#[tokio::test]
async fn any_content_type_and_unknown_keys_are_accepted() {
    let (_db, server) = with_models(&["a"], &[]).await;
    let body = r#"{"comment":{"model_ids":["x"]},"model_ids":["a"],"n":[1.5,null,true]}"#;
    for content_type in ["application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense", ""] {
        let mut request = server.request("POST", "/api/models/batch", body);
        request.headers_mut().insert("content-type", content_type.parse().unwrap());
        assert_eq!(server.send(request).await.text(), batch_json(&["a"], ""), "{content_type}");
    }
    assert_eq!(server.batch(body).await.text(), batch_json(&["a"], ""), "no content type");
}

#[tokio::test]
async fn invalid_json_returns_400_with_the_position() {
    let (_db, server) = with_models(&["a"], &[]).await;
    for (body, message) in [
        ("", "invalid JSON: EOF while parsing a value at line 1 column 0"),
        ("model_ids=a", "invalid JSON: expected value at line 1 column 1"),
        (r#"{"model_ids":["a""#, "invalid JSON: EOF while parsing a list at line 1 column 17"),
        ("{\"model_ids\":\n[\"a\",]}", "invalid JSON: trailing comma at line 2 column 6"),
        (r#"{"model_ids":["a"]}]"#, "invalid JSON: trailing characters at line 1 column 20"),
        (r#"{"model_ids":[1,"#, "invalid JSON: EOF while parsing a value at line 1 column 16"),
    ] {
        assert_error(&server.batch(body).await, 400, message);
    }
}

#[tokio::test]
async fn model_ids_other_than_a_string_array_return_400() {
    let (_db, server) = with_models(&["a"], &[]).await;
    for body in [
        "{}",
        "[]",
        "null",
        "7",
        r#""a""#,
        r#"["a"]"#,
        r#"{"ids":["a"]}"#,
        r#"{"model_ids":"a"}"#,
        r#"{"model_ids":null}"#,
    ] {
        assert_error(&server.batch(body).await, 400, "model_ids must be an array");
    }
    for element in ["7", "null", "false", "[]", r#"{"id":"a"}"#] {
        let body = format!(r#"{{"model_ids":["a","b","c",{element},"d",5]}}"#);
        assert_error(&server.batch(&body).await, 400, "model_ids[3] must be a string");
    }
}

#[tokio::test]
async fn too_many_ids_return_400() {
    let (db, server) = with_models(&["m0"], &[]).await;
    let response = server.batch(&many(1000)).await;
    assert_eq!((response.status, response.json()["not_found"].as_array().unwrap().len()), (200, 999));
    let too_many = "model_ids has 1001 ids, the limit is 1000: split the request";
    assert_error(&server.batch(&many(1001)).await, 400, too_many);

    let server = Server::start_with(&db.url, &[("CATALOG_MAX_BATCH_IDS", "3")]).await;
    assert_eq!(server.batch(&many(3)).await.status, 200);
    let too_many = "model_ids has 4 ids, the limit is 3: split the request";
    assert_error(&server.batch(&many(4)).await, 400, too_many);
    // Duplicates count, too.
    assert_error(&server.batch(r#"{"model_ids":["a","a","a","a"]}"#).await, 400, too_many);
}

#[tokio::test]
async fn oversized_body_returns_413_before_it_is_received() {
    let (_db, server) = with_models(&["a"], &[]).await;
    let fits = server.batch(&padded(ONE_MIB)).await;
    assert_eq!((fits.status, fits.text()), (200, batch_json(&["a"], "")));

    // Only the head is sent: a response means that the server did not wait for the body.
    let mut raw = Raw::open(&server.address);
    raw.send(&format!("POST /api/models/batch HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", ONE_MIB + 1));
    let message = "the body is larger than the limit of 1048576 bytes: split the request";
    assert_error(&raw.response(), 413, message);
    raw.expect_close();
}

#[tokio::test]
async fn chunked_body_over_the_limit_returns_413() {
    let (_db, server) = with_models(&["a"], &[("CATALOG_MAX_BODY_BYTES", "100")]).await;
    let head = "POST /api/models/batch HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = padded(100);

    let mut raw = Raw::open(&server.address);
    raw.send(&format!("{head}3c\r\n{}\r\n28\r\n{}\r\n0\r\nx-sum: 1\r\n\r\n", &body[..60], &body[60..]));
    assert_eq!(raw.response().text(), batch_json(&["a"], ""), "exactly the limit, and a trailer");

    // The connection closes after a chunked body: an intermediary may have read it with another length.
    raw.expect_close();

    let mut raw = Raw::open(&server.address);
    // The last chunk is never sent.
    raw.send(&format!("{head}3c\r\n{}\r\n29\r\n{} \r\n", &body[..60], &body[60..]));
    assert_error(&raw.response(), 413, "the body is larger than the limit of 100 bytes: split the request");
    raw.expect_close();
}

#[tokio::test]
async fn truncated_body_does_not_affect_other_requests() {
    let (_db, server) = with_models(&["a"], &[]).await;
    let mut raw = Raw::open(&server.address);
    raw.send("POST /api/models/batch HTTP/1.1\r\nhost: x\r\ncontent-length: 19\r\n\r\n{\"model_ids\"");
    drop(raw);
    assert_eq!(server.batch(r#"{"model_ids":["a"]}"#).await.text(), batch_json(&["a"], ""));
}
