//! `/openapi.json` against the server: its routes, its methods, its examples.

use serde_json::{Map, Value, json};

use crate::support::{Db, Reply, Server};

const SAMPLE: &str = include_str!("../../sql/sample_models.sql");

async fn with_samples() -> (Db, Server, Value) {
    let db = Db::new().await;
    db.sql(SAMPLE).await;
    let server = Server::start(&db).await;
    let document = server.get("/openapi.json").await;
    assert_eq!((document.status, document.header("content-type")), (200, "application/json"));
    (db, server, document.json())
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}"))
}

#[tokio::test]
async fn it_has_the_routes_and_methods_of_the_server() {
    let (_db, server, document) = with_samples().await;
    let mut routes = model_catalog::metrics::templates().to_vec();
    routes.retain(|route| *route != "other");
    routes.sort_unstable();
    let mut paths: Vec<_> = object(&document["paths"]).keys().map(String::as_str).collect();
    paths.sort_unstable();
    assert_eq!(paths, routes);
    for path in paths {
        for method in ["get", "post", "put", "patch", "delete", "options"] {
            // GET of the batch path is the model with the id `batch`.
            let model = path == "/api/models/batch" && method == "get";
            let documented = model || !document["paths"][path][method].is_null();
            let reply = server.send(server.request(&method.to_uppercase(), &path.replace("{id}", "clip-l"), "")).await;
            assert_eq!(reply.status != 405, documented, "{method} {path}: {reply:?}");
            assert_ne!(reply.text(), r#"{"error":"Not found"}"#, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn its_examples_are_real_answers() {
    let (_db, server, document) = with_samples().await;
    let single = &document["paths"]["/api/models/{id}"];
    let mut compared = 0;
    for (name, id) in object(&single["parameters"][0]["examples"]) {
        let reply = server.get(&format!("/api/models/{}", id["value"].as_str().unwrap())).await;
        compared += equals_example(&single["get"], name, &reply);
    }
    let batch = &document["paths"]["/api/models/batch"]["post"];
    for (name, body) in object(&batch["requestBody"]["content"]["application/json"]["examples"]) {
        compared += equals_example(batch, name, &server.batch(&body["value"].to_string()).await);
    }
    assert_eq!(compared, 5);

    let example =
        |path: &str| &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["example"];
    assert_eq!(server.get("/livez").await.json(), *example("/livez"));
    let keys = |value: &Value| object(value).keys().cloned().collect::<Vec<_>>();
    let ready = server.get("/readyz").await.json();
    assert_eq!(keys(&ready), keys(example("/readyz")));
    assert_eq!(ready["models"], example("/readyz")["models"]);
    assert_eq!(keys(&server.get("/api/catalog").await.json()), keys(example("/api/catalog")));
    assert_eq!(document["info"]["version"], json!(env!("CARGO_PKG_VERSION")));
}

/// The answer to the request of an example has its status and its body.
fn equals_example(operation: &Value, name: &str, reply: &Reply) -> usize {
    let response = &operation["responses"][reply.status.to_string()];
    let example = &response["content"]["application/json"]["examples"][name]["value"];
    assert_eq!(*example, reply.json(), "the example `{name}`; the answer was {}", reply.text());
    for (header, _) in object(&response["headers"]) {
        assert_ne!(reply.header(header), "", "{name} has no {header}");
    }
    1
}

#[tokio::test]
async fn it_stands_on_the_port_of_the_api() {
    let server =
        Server::spawn("host=/nonexistent user=nobody dbname=none", &[("CATALOG_ADMIN_ADDR", "127.0.0.1:0")]).await;
    let document = server.get("/openapi.json").await;
    assert_eq!(
        (document.status, document.json()["openapi"].clone()),
        (200, json!("3.1.0")),
        "before anything is loaded"
    );
}
