//! A peer for `make bench`: the catalog as an engineer would write it in an afternoon. axum on a multi-thread runtime, the
//! models in a `RwLock<Arc<HashMap>>` that is read again every ten seconds, serde_json for every response, and a
//! middleware that feeds a Prometheus histogram.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use prometheus::{Encoder, HistogramOpts, HistogramVec, Registry, TextEncoder};
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value, json};
use tokio::net::TcpListener;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Serialize)]
struct Model {
    id: String,
    name: String,
    download_url: String,
    file_size_gb: Option<Number>,
    hash: Option<String>,
    auth_required: bool,
    auth_provider: Option<String>,
    save_path: String,
    dependencies: Value,
    description: Option<String>,
}

struct App {
    models: RwLock<Arc<HashMap<String, Model>>>,
    registry: Registry,
    seconds: HistogramVec,
}

const QUERY: &str = "SELECT id, name, download_url, file_size_gb::float8, hash, auth_required, auth_provider, save_path, \
                     dependencies, description FROM model_catalog.entries";

async fn load(url: &str) -> Result<HashMap<String, Model>, Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let mut models = HashMap::new();
    for row in client.query(QUERY, &[]).await? {
        let size: Option<f64> = row.get(3);
        let whole = |size: f64| (size.fract() == 0.0).then(|| Number::from(size as u64));
        let model = Model {
            id: row.get(0),
            name: row.get(1),
            download_url: row.get(2),
            file_size_gb: size.and_then(|size| whole(size).or_else(|| Number::from_f64(size))),
            hash: row.get(4),
            auth_required: row.get(5),
            auth_provider: row.get(6),
            save_path: row.get(7),
            dependencies: row.get::<_, Option<Value>>(8).unwrap_or_else(|| json!([])),
            description: row.get(9),
        };
        models.insert(model.id.clone(), model);
    }
    Ok(models)
}

fn current(app: &App) -> Arc<HashMap<String, Model>> {
    Arc::clone(&app.models.read().expect("no writer panics"))
}

async fn single(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match current(&app).get(&id) {
        Some(model) => Json(model).into_response(),
        None => (StatusCode::NOT_FOUND, Json(json!({"error": "Model not found", "model_id": id}))).into_response(),
    }
}

#[derive(Deserialize)]
struct Batch {
    model_ids: Vec<String>,
}

#[derive(Serialize)]
struct Found<'a> {
    models: Vec<&'a Model>,
    not_found: Vec<&'a str>,
}

async fn batch(State(app): State<Arc<App>>, Json(batch): Json<Batch>) -> Response {
    let models = current(&app);
    let (mut found, mut seen) = (Found { models: Vec::new(), not_found: Vec::new() }, HashSet::new());
    for id in &batch.model_ids {
        match models.get(id) {
            Some(model) if seen.insert(id) => found.models.push(model),
            Some(_) => {}
            None => found.not_found.push(id),
        }
    }
    Json(found).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&app.registry.gather(), &mut text) {
        Ok(()) => text.into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn measure(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or("other".into(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let status = response.status();
    app.seconds.with_label_values(&[route.as_str(), status.as_str()]).observe(started.elapsed().as_secs_f64());
    response
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::var("DATABASE_URL")?;
    let port: u16 = std::env::var("PORT")?.parse()?;
    let registry = Registry::new();
    let seconds = HistogramVec::new(HistogramOpts::new("http_seconds", "Time per request."), &["route", "status"])?;
    registry.register(Box::new(seconds.clone()))?;
    let models = RwLock::new(Arc::new(load(&url).await?));
    let app = Arc::new(App { models, registry, seconds });
    let refreshed = Arc::clone(&app);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            if let Ok(models) = load(&url).await {
                *refreshed.models.write().expect("no reader panics") = Arc::new(models);
            }
        }
    });
    let router = Router::new()
        .route("/api/models/{id}", get(single))
        .route("/api/models/batch", post(batch))
        .route("/metrics", get(metrics))
        .layer(from_fn_with_state(Arc::clone(&app), measure))
        .with_state(app);
    axum::serve(TcpListener::bind(("127.0.0.1", port)).await?, router).await?;
    Ok(())
}
