//! Postgres for the tests: one private cluster per run, and a database of its own for each test.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use model_catalog::base::error_chain::chain;
use model_catalog::catalog::model::Rules;
use model_catalog::postgres::config::{DatabaseConfig, Environment};
use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use model_catalog::postgres::migrate::{ModelsTable, migrate};
use model_catalog::postgres::session;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{WAIT_LIMIT, until};

const TEMPLATE: &str = "catalog_template";

/// The run's Postgres. It stops with this process, when its guard sees the pipe close.
static CLUSTER: LazyLock<EphemeralPostgres> = LazyLock::new(|| start_postgres(&[]));

/// Starts a private Postgres, on tmpfs if there is one and without fsync, which matters only after a power failure.
pub fn start_postgres(settings: &[(&str, &str)]) -> EphemeralPostgres {
    let tmpfs = std::path::PathBuf::from("/dev/shm");
    // A killed server leaks POSIX shared memory; memory-mapped files are removed with the data directory.
    let fast = [
        ("fsync", "off"),
        ("max_connections", "300"),
        ("shared_buffers", "64MB"),
        ("dynamic_shared_memory_type", "mmap"),
    ];
    let settings = fast.iter().chain(settings).map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let options = EphemeralOptions { parent: tmpfs.is_dir().then_some(tmpfs), settings, ..EphemeralOptions::default() };
    EphemeralPostgres::start(options).unwrap_or_else(|error| panic!("{error}"))
}

/// The connection settings for a URL.
pub fn database(url: &str) -> DatabaseConfig {
    DatabaseConfig::parse(url, &Environment::default(), "model_catalog", WAIT_LIMIT).unwrap()
}

/// Connects to a URL.
pub async fn connect(url: &str) -> Client {
    session::connect(&database(url)).await.unwrap()
}

/// Connects and migrates.
pub async fn migrated(url: &str) -> Client {
    let mut client = session::connect(&database(url)).await.unwrap();
    migrate(&mut client, "model_catalog", &Rules::default(), ModelsTable::UnlessOthers).await.unwrap();
    client
}

/// Migrates without the default table, its view and its triggers.
pub async fn migrate_without_table(url: &str) {
    migrate(&mut connect(url).await, "model_catalog", &Rules::default(), ModelsTable::Omit).await.unwrap();
}

/// A database that only one test uses, and a connection to it.
pub struct Db {
    /// Its URL, in the form that `DATABASE_URL` accepts.
    pub url: String,
    /// Its name.
    pub name: String,
    /// A connection as superuser.
    pub client: Client,
}

impl Db {
    /// Creates a migrated database in the run's cluster.
    pub async fn new() -> Self {
        static TEMPLATE_CREATED: OnceCell<()> = OnceCell::const_new();
        TEMPLATE_CREATED
            .get_or_init(|| async {
                let admin = session::connect(&database(&CLUSTER.url("postgres"))).await.unwrap();
                admin.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await.unwrap();
                // CREATE DATABASE requires a template without sessions: this one must end before the first copy.
                drop(migrated(&CLUSTER.url(TEMPLATE)).await);
                let others = format!("SELECT FROM pg_stat_activity WHERE datname = '{TEMPLATE}'");
                until("the template has no session", || async { admin.query(&others, &[]).await.unwrap().is_empty() })
                    .await;
            })
            .await;
        Self::create(&format!("TEMPLATE {TEMPLATE}")).await
    }

    /// Like [`Db::new`], but rows that servers reject can be written, with a warning.
    pub async fn lenient() -> Self {
        let db = Self::new().await;
        db.sql("SELECT model_catalog.strict(false)").await;
        db
    }

    /// Creates an empty database in the run's cluster.
    pub async fn empty() -> Self {
        Self::create("").await
    }

    /// Creates an empty database in this encoding.
    pub async fn in_encoding(encoding: &str) -> Self {
        Self::create(&format!("ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")).await
    }

    async fn create(options: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Relaxed));
        let admin = session::connect(&database(&CLUSTER.url("postgres"))).await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {name} {options}")).await.unwrap();
        let url = CLUSTER.url(&name);
        let client = session::connect(&database(&url)).await.unwrap();
        Self { url, name, client }
    }

    /// Opens another connection.
    pub async fn connect(&self) -> Client {
        connect(&self.url).await
    }

    /// Whether the server has MERGE, which came with Postgres 15.
    pub async fn has_merge(&self) -> bool {
        self.sql("SELECT current_setting('server_version_num')::int >= 150000").await.as_deref() == Some("t")
    }

    /// Runs statements and returns the first column of the last row.
    pub async fn sql(&self, statements: &str) -> Option<String> {
        sql(&self.client, statements).await
    }

    /// Adds a model that passes every rule.
    pub async fn add(&self, id: &str) {
        let insert = "INSERT INTO models (id, name, download_url, save_path) \
                      VALUES ($1, $1 || '.safetensors', 'https://example.org/' || $1, 'checkpoints/' || $1)";
        self.client.execute(insert, &[&id]).await.unwrap();
    }
}

/// The JSON of a model added by [`Db::add`]. The id must need no JSON escaping.
pub fn model_json(id: &str) -> String {
    format!(
        r#"{{"id":"{id}","name":"{id}.safetensors","download_url":"https://example.org/{id}","file_size_gb":null,"hash":null,"auth_required":false,"auth_provider":null,"save_path":"checkpoints/{id}","dependencies":[],"description":null}}"#
    )
}

/// Runs statements and returns the first column of the last row.
pub async fn sql(client: &Client, statements: &str) -> Option<String> {
    let messages = client.simple_query(statements).await.unwrap_or_else(|error| {
        panic!("{}\n{statements}", chain(&error));
    });
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
        _ => None,
    });
    rows.last().flatten()
}
