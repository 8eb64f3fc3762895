//! An ephemeral Postgres with the sample catalog, and the three requests of the benchmark.

use std::time::Duration;

use model_catalog::catalog::model::Rules;
use model_catalog::postgres::config::{DatabaseConfig, Environment};
use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use model_catalog::postgres::migrate::{ModelsTable, migrate};
use model_catalog::postgres::session;

use crate::Result;

const SAMPLE: &str = include_str!("../../sql/sample_models.sql");
/// Adds generated models with the numbers from `$1` to `$2`.
const GENERATE: &str = "INSERT INTO public.models
    SELECT 'generated-' || n, 'generated-' || n || '.safetensors',
           'https://example.org/models/generated-' || n || '.safetensors', n / 100.0, md5(n::text), false, NULL,
           'checkpoints/generated-' || n || '.safetensors', '[]', 'Generated for the benchmark'
    FROM generate_series($1::bigint, $2::bigint) n";
/// Added to the sample, so that the index has several tables.
const GENERATED: i64 = 1_000;
/// Id of the single request.
const SINGLE: &str = "flux-dev";
/// Never requested, so a refresh can change it without changing a response.
pub const CHANGED: &str = "generated-1";

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: &'static str,
    pub path: String,
    pub body: Vec<u8>,
}

impl Request {
    fn batch(ids: &[String]) -> Self {
        let list: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
        let body = format!("{{\"model_ids\":[{}]}}", list.join(",")).into_bytes();
        Self { method: "POST", path: "/api/models/batch".into(), body }
    }

    /// The bytes that are sent.
    pub fn bytes(&self, port: u16, connection: &str) -> Vec<u8> {
        let mut bytes =
            format!("{} {} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: {connection}\r\n", self.method, self.path);
        if !self.body.is_empty() {
            bytes += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", self.body.len());
        }
        [bytes.as_bytes(), b"\r\n", &self.body].concat()
    }
}

/// The database, and the requests that are sent to all peers.
pub struct Sample {
    pub postgres: EphemeralPostgres,
    pub single: Request,
    pub batch10: Request,
    pub batch50: Request,
}

impl Sample {
    pub fn start() -> Result<Self> {
        let settings = [("fsync", "off"), ("synchronous_commit", "off")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let postgres =
            EphemeralPostgres::start(EphemeralOptions { loopback: true, settings, ..EphemeralOptions::default() })?;
        let url = postgres.url("postgres");
        let database = DatabaseConfig::parse(&url, &Environment::default(), "model_catalog", LIMIT)?;
        let ids = runtime()?.block_on(async {
            let mut client = session::connect(&database).await?;
            migrate(&mut client, &database.channel, &Rules::default(), ModelsTable::Create).await?;
            client.batch_execute(SAMPLE).await?;
            client.execute(GENERATE, &[&1_i64, &GENERATED]).await?;
            let ids = "SELECT id FROM models WHERE id NOT LIKE 'generated-%' ORDER BY id LIMIT 50";
            let rows = client.query(ids, &[]).await?;
            rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<Vec<String>>>()
        })?;
        if ids.len() < 50 {
            return Err(format!("the sample catalog has {} models, a batch needs 50", ids.len()).into());
        }
        let single = Request { method: "GET", path: format!("/api/models/{SINGLE}"), body: Vec::new() };
        Ok(Self { postgres, single, batch10: Request::batch(&ids[..10]), batch50: Request::batch(&ids) })
    }
}

impl Sample {
    /// Adds `count` generated models.
    pub fn add_models(&self, count: u32) -> Result<()> {
        let url = self.postgres.url("postgres");
        runtime()?.block_on(async {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            client.execute(GENERATE, &[&(GENERATED + 1), &(GENERATED + i64::from(count))]).await?;
            Ok(())
        })
    }
}

const LIMIT: Duration = Duration::from_secs(10);

/// A runtime on the calling thread.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
