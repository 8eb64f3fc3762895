//! `POST /api/models/batch` with `resolve_dependencies` and with `?format=aria2`.

use serde_json::json;

use crate::support::{Db, Response, Server, model_json};

const ARIA2: &str = "/api/models/batch?format=aria2";

/// a → b c, b → d, c → d x, d → a; e has no dependencies.
async fn diamond(settings: &[(&str, &str)]) -> (Db, Server) {
    let db = Db::new().await;
    for id in ["a", "b", "c", "d", "e"] {
        db.add(id).await;
    }
    for (id, needs) in [("a", r#"["b","c"]"#), ("b", r#"["d"]"#), ("c", r#"["d","x"]"#), ("d", r#"["a"]"#)] {
        db.sql(&format!("UPDATE models SET dependencies = '{needs}' WHERE id = '{id}'")).await;
    }
    let server = Server::start_with(&db.url, settings).await;
    (db, server)
}

fn ids(response: &Response) -> Vec<String> {
    let json = response.json();
    json["models"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn dependencies_come_first_and_missing_ones_are_reported() {
    let (_db, server) = diamond(&[]).await;
    let response = server.batch(r#"{"model_ids":["e","a","y","b"],"resolve_dependencies":true}"#).await;
    assert_eq!((response.status, response.header("content-type")), (200, "application/json"));
    assert_eq!(ids(&response), ["e", "d", "b", "c", "a"]);
    let tail = r#"],"not_found":["y"],"missing_dependencies":[{"id":"x","required_by":"c"}]}"#;
    assert!(response.text().ends_with(tail), "{}", response.text());
    assert_eq!(response.revision(), server.get("/api/models/a").await.revision());

    let empty = server.batch(r#"{"resolve_dependencies":true,"model_ids":[]}"#).await;
    assert_eq!(empty.text(), r#"{"models":[],"not_found":[],"missing_dependencies":[]}"#);
}

#[tokio::test]
async fn dependencies_are_resolved_only_on_request() {
    let (_db, server) = diamond(&[]).await;
    let expected = format!(r#"{{"models":[{}],"not_found":["y"]}}"#, model_json("e"));
    for body in [r#"{"model_ids":["e","y"]}"#, r#"{"model_ids":["e","y"],"resolve_dependencies":false}"#] {
        assert_eq!(server.batch(body).await.text(), expected, "{body}");
    }
    for value in ["null", "1", "\"true\""] {
        let response = server.batch(&format!(r#"{{"model_ids":[],"resolve_dependencies":{value}}}"#)).await;
        let error = json!({"error": "resolve_dependencies must be a boolean"});
        assert_eq!((response.status, response.json()), (400, error), "{value}");
    }
}

#[tokio::test]
async fn batch_limit_includes_resolved_dependencies() {
    let (_db, server) = diamond(&[("CATALOG_MAX_BATCH_IDS", "4")]).await;
    let response = server.batch(r#"{"model_ids":["a"],"resolve_dependencies":true}"#).await;
    assert_eq!((response.status, ids(&response).len()), (200, 4));
    for path in ["/api/models/batch", ARIA2] {
        let body = r#"{"model_ids":["a","e"],"resolve_dependencies":true}"#;
        let response = server.send(server.request("POST", path, body)).await;
        let message = "model_ids and their dependencies are 5 models or more, the limit is 4: split the request";
        assert_eq!((response.status, response.json()), (400, json!({ "error": message })));
        assert_ne!(response.revision(), "");
    }
}

#[tokio::test]
async fn aria2_input_file_has_every_download_option() {
    let (db, server) = diamond(&[]).await;
    let hash = "0123456789ABCDEF".repeat(4);
    db.sql(&format!(
        "UPDATE models SET hash = '{hash}', file_size_gb = 23.80, auth_required = true, auth_provider = 'hug \"f\"',
         save_path = './a b//c.bin', download_url = 'https://example.org/ä b',
         mirrors = to_jsonb(ARRAY['HTTPS://example.org/c', 'http://b.example/c?x=1', 'https://ä.example/c']) WHERE id = 'c';
         UPDATE models SET save_path = '${{HOME}}/x', dependencies = '[]' WHERE id = 'd'"
    ))
    .await;
    server.until("both changes are served", |s| async move { s.field("d", "dependencies").await == json!([]) }).await;
    // Without dependencies, unknown ids are listed, too.
    let alone = server.send(server.request("POST", ARIA2, r#"{"model_ids":["d","unknown"]}"#)).await.text();
    assert!(alone.starts_with("# model-catalog: 1 models;") && alone.contains("# not found: \"unknown\""), "{alone}");
    let body = r#"{"model_ids":["c","y\n  out=evil"],"resolve_dependencies":true}"#;
    let response = server.send(server.request("POST", ARIA2, body)).await;
    assert_eq!((response.status, response.header("content-type")), (200, "text/plain; charset=utf-8"));
    let expected = format!(
        r#"# model-catalog: 2 models; run aria2c in the models folder
# not found: "y\n  out=evil"
# missing dependency: "x" required by "c"

# id: "d"
# auth_required: false
# left out: save_path would be interpreted by aria2

# id: "c"
# size: 23.8 GB
# bytes: 23800000000
# auth_required: true
# auth_provider: "hug \"f\""
# left out: mirrors[0] cannot be written in ASCII without spaces
https://example.org/%C3%A4%20b{TAB}http://b.example/c?x=1{TAB}https://xn--4ca.example/c
  dir=a b
  out=c.bin
  checksum=sha-256={}
"#,
        hash.to_lowercase(),
        TAB = "\t"
    );
    assert_eq!(response.text(), expected);
    assert_eq!(response.revision(), server.get("/api/models/c").await.revision());

    // Without dependencies: request order, without duplicates.
    let response = server.send(server.request("POST", ARIA2, r#"{"model_ids":["e","c","e"]}"#)).await;
    let ids: Vec<_> =
        response.text().lines().filter_map(|line| line.strip_prefix("# id: ").map(str::to_owned)).collect();
    assert_eq!(ids, ["\"e\"", "\"c\""]);
}

#[tokio::test]
async fn unknown_format_returns_400() {
    let (_db, server) = diamond(&[]).await;
    let body = r#"{"model_ids":["e"]}"#;
    for query in ["?format=xml", "?format=", "?format=ARIA2", "?format=aria2&format=x"] {
        let response = server.send(server.request("POST", &format!("/api/models/batch{query}"), body)).await;
        let error = json!({"error": "format must be json or aria2"});
        assert_eq!((response.status, response.json()), (400, error), "{query}");
    }
    let plain = server.batch(body).await.text();
    for query in ["?format=json", "?x=aria2", "?"] {
        let response = server.send(server.request("POST", &format!("/api/models/batch{query}"), body)).await;
        assert_eq!((response.status, response.text()), (200, plain.clone()), "{query}");
    }
    // Errors in the body are reported as JSON in every format.
    let response = server.send(server.request("POST", ARIA2, "{}")).await;
    assert_eq!((response.status, response.json()), (400, json!({"error": "model_ids must be an array"})));
}
