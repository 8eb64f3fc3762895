//! `/openapi.json` against the server: its routes, methods, examples, headers and limits. `make test-clients` generates
//! clients from it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::support::{Db, Response, Server};

const SAMPLE: &str = include_str!("../../../sql/sample_models.sql");

async fn with_samples() -> (Db, Server, Value) {
    let db = Db::lenient().await;
    db.sql(SAMPLE).await;
    let server = Server::start(&db).await;
    let document = server.get("/openapi.json").await;
    assert_eq!((document.status, document.header("content-type")), (200, "application/json"));
    (db, server, document.json())
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("not an object: {value}"))
}

#[tokio::test]
async fn description_has_the_routes_and_methods_of_the_server() {
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
            let response =
                server.send(server.request(&method.to_uppercase(), &path.replace("{id}", "clip-l"), "")).await;
            assert_eq!(response.status != 405, documented, "{method} {path}: {response:?}");
            assert_ne!(response.text(), r#"{"error":"Not found"}"#, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn examples_are_real_responses() {
    let (db, server, document) = with_samples().await;
    let single = &document["paths"]["/api/models/{id}"];
    let mut compared = 0;
    for (name, id) in object(&single["parameters"][0]["examples"]) {
        let response = server.get(&format!("/api/models/{}", id["value"].as_str().unwrap())).await;
        compared += equals_example(&single["get"], name, &response);
    }
    let batch = &document["paths"]["/api/models/batch"]["post"];
    for (name, body) in object(&batch["requestBody"]["content"]["application/json"]["examples"]) {
        compared += equals_example(batch, name, &server.batch(&body["value"].to_string()).await);
    }
    // Clients are generated from valid examples only, so this body is not among them.
    compared += equals_example(batch, "bad", &server.batch(r#"{"model_ids":["clip-l",1]}"#).await);
    assert_eq!(compared, 5);

    let example =
        |path: &str| &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["example"];
    assert_eq!(server.get("/livez").await.json(), *example("/livez"));
    let keys = |value: &Value| object(value).keys().cloned().collect::<Vec<_>>();
    let ready = server.get("/readyz").await.json();
    assert_eq!(keys(&ready), keys(example("/readyz")));
    assert_eq!(ready["models"], example("/readyz")["models"]);
    // The fleet is read at the next sync after a request for it.
    server.get("/api/catalog").await;
    db.sql("NOTIFY model_catalog").await;
    server.until("the fleet is listed", |s| async { s.get("/api/catalog").await.json()["fleet"].is_array() }).await;
    let catalog = server.get("/api/catalog").await.json();
    assert_eq!(keys(&catalog), keys(example("/api/catalog")));
    assert_eq!(keys(&catalog["fleet"][0]), keys(&example("/api/catalog")["fleet"][0]));
    assert_eq!(document["info"]["version"], json!(env!("CARGO_PKG_VERSION")));
}

/// Fails unless the response to the request of an example has its status and body.
fn equals_example(operation: &Value, name: &str, response: &Response) -> usize {
    let documented = &operation["responses"][response.status.to_string()];
    let example = &documented["content"]["application/json"]["examples"][name]["value"];
    assert_eq!(*example, response.json(), "the example `{name}`; the response was {}", response.text());
    for (header, _) in object(&documented["headers"]) {
        assert_ne!(response.header(header), "", "{name} has no {header}");
    }
    1
}

/// The part of a document that a reference in it names, or the value itself.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    value["$ref"].as_str().map_or(value, |reference| document.pointer(&reference[1..]).unwrap())
}

/// Headers of a request.
type Headers = &'static [(&'static str, &'static str)];

#[tokio::test]
async fn headers_of_responses_are_described() {
    /// Of any response with a body, and of every response.
    const OF_ALL: [&str; 4] = ["content-type", "content-length", "date", "connection"];
    let (_db, server, document) = with_samples().await;
    let none: Headers = &[];
    let (tags, gzip): (Headers, Headers) = (&[("if-none-match", "*")], &[("accept-encoding", "gzip")]);
    let requests: [(&str, &str, &str, u16, Headers); 20] = [
        ("GET", "/api/models/{id}", "clip-l", 200, none),
        ("GET", "/api/models/{id}", "clip-l", 304, tags),
        ("GET", "/api/models/{id}", "%ff", 400, none),
        ("GET", "/api/models/{id}", "no-such-model", 404, none),
        ("PUT", "/api/models/{id}", "clip-l", 405, none),
        ("POST", "/api/models/batch", "", 400, none),
        ("PUT", "/api/models/batch", "", 405, none),
        ("GET", "/api/models", "", 200, none),
        ("GET", "/api/models", "", 304, tags),
        ("GET", "/", "", 200, none),
        ("GET", "/", "", 304, tags),
        ("GET", "/openapi.json", "", 200, none),
        ("GET", "/api/catalog", "", 200, none),
        ("GET", "/api/snapshot", "", 200, none),
        ("GET", "/api/snapshot", "", 200, gzip),
        ("GET", "/api/snapshot", "", 304, tags),
        ("GET", "/livez", "", 200, none),
        ("GET", "/readyz", "", 200, none),
        ("GET", "/metrics", "", 200, none),
        ("PUT", "/metrics", "", 405, none),
    ];
    for (method, path, id, status, headers) in requests {
        let mut request = server.request(method, &path.replace("{id}", id), "");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let response = server.send(request).await;
        let what = format!("{method} {path} {headers:?}: {response:?}");
        assert_eq!(response.status, status, "{what}");
        let operations = object(&document["paths"][path]).values();
        let mut described = operations.filter_map(|operation| operation["responses"].get(status.to_string()));
        let described = resolved(&document, described.next_back().unwrap_or_else(|| panic!("not described: {what}")));
        let described: BTreeMap<String, &Value> = match described["headers"].as_object() {
            Some(headers) => headers.iter().map(|(name, header)| (name.to_lowercase(), header)).collect(),
            None => BTreeMap::new(),
        };
        for (name, header) in &described {
            let header = resolved(&document, header);
            let value = response.header(name);
            let schema = &header["schema"];
            assert!(!value.is_empty() || header["required"] != true, "{name} is missing: {what}");
            assert!(value.is_empty() || schema["const"].as_str().is_none_or(|constant| constant == value), "{what}");
            let allowed = schema["enum"].as_array();
            assert!(value.is_empty() || allowed.is_none_or(|values| values.contains(&json!(value))), "{name}: {what}");
        }
        for name in response.headers.keys().map(|name| name.as_str()).filter(|name| !OF_ALL.contains(name)) {
            assert!(described.contains_key(name), "{name} is not described: {what}");
        }
    }
}

#[test]
fn clients_can_be_generated_that_accept_later_versions() {
    let document = include_str!("../../../src/http/handlers/openapi.json");
    // A client would refuse the next property of a response, or a value that it does not know.
    assert!(!document.contains("additionalProperties"));
    let document: Value = serde_json::from_str(document).unwrap();
    for (name, schema) in object(&document["components"]["schemas"]) {
        for (property, described) in object(&schema["properties"]) {
            assert!(described["enum"].is_null() && described["const"].is_null(), "{name}.{property}");
            // Generators require properties with a default.
            assert!(described["default"].is_null(), "{name}.{property}");
        }
    }
    for (path, item) in object(&document["paths"]) {
        for (_, operation) in object(item).iter().filter(|(key, _)| *key != "parameters") {
            // One type of content each, so that the type of a generated client's response is not a union.
            let success = object(&operation["responses"]["200"]["content"]);
            assert_eq!(success.len(), 1, "{path}");
        }
    }
}

#[tokio::test]
async fn description_is_served_on_the_api_port() {
    let server =
        Server::spawn("host=/nonexistent user=nobody dbname=none", &[("CATALOG_ADMIN_ADDR", "127.0.0.1:0")]).await;
    let document = server.get("/openapi.json").await;
    assert_eq!((document.status, document.json()["openapi"].clone()), (200, json!("3.1.0")), "before the first load");
}

/// Collects every limit in a part of the document, by its JSON pointer.
fn collect_limits(value: &Value, pointer: &str, limits: &mut BTreeMap<String, usize>) {
    const KEYWORDS: [&str; 6] = ["minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems"];
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let pointer = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
            match value.as_u64() {
                Some(limit) if KEYWORDS.contains(&key.as_str()) => {
                    limits.insert(pointer, usize::try_from(limit).unwrap());
                }
                _ => collect_limits(value, &pointer, limits),
            }
        }),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| collect_limits(value, &format!("{pointer}/{at}"), limits));
        }
        _ => {}
    }
}

/// The limits of a document that no request has tested yet.
struct Limits(BTreeMap<String, usize>);

impl Limits {
    fn take(&mut self, pointer: &str) -> usize {
        self.0.remove(pointer).unwrap_or_else(|| panic!("no limit {pointer}; there are {:#?}", self.0))
    }
}

const LIST: &str = "/paths/~1api~1models/get";
const SCHEMAS: &str = "/components/schemas";

#[tokio::test]
async fn limits_of_requests_are_those_of_the_server() {
    let (_db, server, document) = with_samples().await;
    let mut limits = Limits(BTreeMap::new());
    collect_limits(&document["paths"], "/paths", &mut limits.0);
    let expect = async |path: &str, status: u16| {
        let response = server.get(path).await;
        assert_eq!(response.status, status, "{path}: {}", response.text());
        response
    };

    let q = limits.take(&format!("{LIST}/parameters/0/schema/maxLength"));
    expect(&format!("/api/models?q={}", "q".repeat(q)), 200).await;
    let rejected = expect(&format!("/api/models?q={}", "q".repeat(q + 1)), 400).await;
    assert!(rejected.text().contains(&format!("the limit is {q}\"")), "{}", rejected.text());
    let described = document.pointer(&format!("{LIST}/parameters/0/description")).unwrap().as_str().unwrap();
    assert!(described.contains(&format!("at most {q} bytes")), "{described}");

    let limit = &document.pointer(&format!("{LIST}/parameters/2")).unwrap()["schema"];
    let page = |response: Response| response.json()["models"].as_array().unwrap().len();
    assert_eq!(json!(page(expect("/api/models", 200).await)), limit["default"]);
    let (minimum, maximum) = (
        limits.take(&format!("{LIST}/parameters/2/schema/minimum")),
        limits.take(&format!("{LIST}/parameters/2/schema/maximum")),
    );
    assert_eq!(page(expect(&format!("/api/models?limit={minimum}"), 200).await), minimum);
    expect(&format!("/api/models?limit={maximum}"), 200).await;
    for limit in [minimum - 1, maximum + 1] {
        expect(&format!("/api/models?limit={limit}"), 400).await;
    }

    let empty = limits.take("/paths/~1api~1models~1{id}/parameters/0/schema/minLength");
    assert_eq!((empty, expect("/api/models/", 404).await.json()), (1, json!({"error": "Not found"})));

    // Settings of the server: the descriptions have their defaults.
    let number = |pointer: &str| -> usize {
        let described = document.pointer(&format!("{pointer}/description")).unwrap().as_str().unwrap();
        described.split(' ').find_map(|word| word.parse().ok()).unwrap()
    };
    let ids = number(&format!("{SCHEMAS}/BatchRequest/properties/model_ids"));
    let batch = |count: usize| json!({ "model_ids": vec!["clip-l"; count] }).to_string();
    assert_eq!(server.batch(&batch(ids)).await.status, 200);
    assert_eq!(server.batch(&batch(ids + 1)).await.status, 400);

    let bytes = number("/paths/~1api~1models~1batch/post/requestBody");
    let empty_batch = r#"{"model_ids":[]}"#;
    let body = |size: usize| empty_batch.to_owned() + &" ".repeat(size - empty_batch.len());
    assert_eq!(server.batch(&body(bytes)).await.status, 200);
    assert_eq!(server.batch(&body(bytes + 1)).await.status, 413);

    assert!(limits.0.is_empty(), "not tested: {:#?}", limits.0);
}

#[tokio::test]
async fn limits_of_responses_are_those_of_the_server() {
    let (db, server, document) = with_samples().await;
    let mut limits = Limits(BTreeMap::new());
    collect_limits(&document["components"], "/components", &mut limits.0);

    // More models, rejected rows and unknown ids than a response lists; and a row below each lower bound of a model.
    let page = limits.take(&format!("{SCHEMAS}/ModelPage/properties/models/maxItems"));
    let rejected = limits.take(&format!("{SCHEMAS}/Catalog/properties/rejected_rows/maxItems"));
    let missing = limits.take(&format!("{SCHEMAS}/Catalog/properties/not_found_ids/maxItems"));
    let insert = "INSERT INTO models (id, name, download_url, save_path, file_size_gb)";
    for (column, keyword) in [
        ("id", "minLength"),
        ("name", "minLength"),
        ("download_url", "minLength"),
        ("save_path", "minLength"),
        ("file_size_gb", "minimum"),
    ] {
        let least = limits.take(&format!("{SCHEMAS}/Model/properties/{column}/{keyword}"));
        assert_eq!(least, usize::from(keyword == "minLength"), "{column}");
        let (id, below) = (format!("bad-{column}"), if keyword == "minimum" { "-1" } else { "''" });
        let values = ["id", "name", "download_url", "save_path", "file_size_gb"].map(|other| match other {
            _ if other == column => below.to_owned(),
            "id" => format!("'{id}'"),
            "download_url" => "'https://example.org/x'".to_owned(),
            "file_size_gb" => "1".to_owned(),
            _ => "'x'".to_owned(),
        });
        db.sql(&format!("{insert} VALUES ({})", values.join(", "))).await;
    }
    for bound in ["minItems", "items/minLength"] {
        assert_eq!(limits.take(&format!("{SCHEMAS}/Model/properties/mirrors/{bound}")), 1);
    }
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path, mirrors) VALUES \
         ('no-mirrors', 'x', 'https://example.org/x', 'x', '[]'), \
         ('bad-mirrors', 'x', 'https://example.org/x', 'x', '[\"\"]')",
    )
    .await;
    server.until("the six rows are rejected", |s| async move { s.get("/readyz").await.json()["rejected"] == 6 }).await;
    assert!(server.get("/api/models/no-mirrors").await.json().get("mirrors").is_none());
    db.sql("DELETE FROM models WHERE id = 'no-mirrors'").await;
    db.sql(&format!("{insert} SELECT 'bad-' || n, 'x', 'x', 'x', 1 FROM generate_series(7, {}) n", rejected + 1)).await;
    db.sql(&format!(
        "{insert} SELECT 'm' || n, 'x', 'https://example.org/x', 'x', 1 FROM generate_series(0, {page}) n"
    ))
    .await;
    let all = rejected + 1;
    server
        .until("all bad rows are rejected", |s| async move { s.get("/readyz").await.json()["rejected"] == all })
        .await;
    server
        .until("all good rows are served", |s| async move { s.field(&format!("m{page}"), "id").await.is_string() })
        .await;
    let unknown: Vec<_> = (0..=missing).map(|number| format!("unknown-{number}")).collect();
    server.batch(&json!({ "model_ids": unknown }).to_string()).await;

    let length = |value: &Value| value.as_array().unwrap().len();
    let listed = server.get(&format!("/api/models?limit={page}")).await.json();
    assert_eq!((length(&listed["models"]), listed["next"].is_string()), (page, true));
    let catalog = server.get("/api/catalog").await.json();
    assert_eq!((length(&catalog["rejected_rows"]), &catalog["rejected"]), (rejected, &json!(rejected + 1)));
    assert_eq!(length(&catalog["not_found_ids"]), missing);
    // The same constant limits it; `sync::structure` shows what is listed.
    let unwatched = limits.take(&format!("{SCHEMAS}/Catalog/properties/unwatched_tables/maxItems"));
    assert_eq!(unwatched, missing);
    // `sync::fleet` shows the effect of this limit.
    let fleet = limits.take(&format!("{SCHEMAS}/Catalog/properties/fleet/maxItems"));
    assert!(include_str!("../../../sql/fleet.sql").ends_with(&format!("LIMIT {fleet}\n")));

    // The remaining limits: counters, and texts that are never empty.
    let asked = limits.take(&format!("{SCHEMAS}/UnknownId/properties/asked/minimum"));
    assert!(catalog["not_found_ids"][0]["asked"].as_u64().unwrap() >= asked as u64);
    assert_eq!(limits.take(&format!("{SCHEMAS}/ErrorResponse/properties/error/minLength")), 1);
    assert_eq!(limits.take("/components/headers/RetryAfter/schema/minimum"), 1);
    assert!(limits.0.iter().all(|(pointer, limit)| pointer.ends_with("/minimum") && *limit == 0), "{:#?}", limits.0);
}
