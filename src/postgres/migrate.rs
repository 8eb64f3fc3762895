//! `model-catalog migrate`: makes what the program needs in a database, and nothing else.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use super::session::ConnectError;

mod embedded {
    refinery::embed_migrations!("migrations");
}

const DEFAULT_MODELS: &str = include_str!("../../sql/default_models.sql");
const SCHEMA: &str = "model_catalog";

/// Taken for the whole run, so that two at once come one after the other. Any constant that other programs on the
/// database do not use will do: this is ASCII "mcatalog".
const LOCK: i64 = 0x6d63_6174_616c_6f67;

/// Why a database could not be migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed.
    #[error("cannot {doing}: {}", super::session::describe(.source))]
    Statement {
        /// What was being done.
        doing: &'static str,
        /// What Postgres said.
        source: tokio_postgres::Error,
    },
    /// A numbered migration failed, or is not the one that was applied before.
    #[error("cannot apply the migrations: {0}")]
    Migrations(#[from] refinery::Error),
}

/// The number of the last migration there is.
#[must_use]
pub fn latest() -> i32 {
    embedded::migrations::runner().get_migrations().iter().map(refinery::Migration::version).max().unwrap_or(0)
}

/// Applies what is missing, the default table and view included where nobody defined the view, and sets the channel
/// that changes are announced on. Twice is harmless, two at once too.
///
/// # Errors
/// See [`MigrateError`]; what was applied before the error stays, and the next run goes on from there.
pub async fn migrate(client: &mut Client, channel: &str) -> Result<(), MigrateError> {
    apply(client, channel, Some(DEFAULT_MODELS)).await
}

/// The same without the default table, its view and its triggers: who has other tables defines the view.
///
/// # Errors
/// See [`migrate`].
pub async fn migrate_bare(client: &mut Client, channel: &str) -> Result<(), MigrateError> {
    apply(client, channel, None).await
}

async fn apply(client: &mut Client, channel: &str, models: Option<&str>) -> Result<(), MigrateError> {
    let failed = |doing| move |source| MigrateError::Statement { doing, source };
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await.map_err(failed("take the migration lock"))?;
    // The runner's own table lies in this schema, so the schema comes first.
    let schema = format!("CREATE SCHEMA IF NOT EXISTS {}", escape_identifier(SCHEMA));
    client.batch_execute(&schema).await.map_err(failed("create the schema model_catalog"))?;
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name("model_catalog.migrations");
    let report = runner.run_async(client).await?;
    for applied in report.applied_migrations() {
        tracing::info!(migration = %applied, "applied");
    }
    if let Some(models) = models {
        client.batch_execute(models).await.map_err(failed("make the default table and view"))?;
    }
    client
        .execute("UPDATE model_catalog.state SET channel = $1::text WHERE channel <> $1::text", &[&channel])
        .await
        .map_err(failed("set the channel"))?;
    let view = "SELECT to_regclass('model_catalog.entries') IS NULL";
    let view = client.query_one(view, &[]).await.map_err(failed("look for the view"))?;
    client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await.map_err(failed("release the migration lock"))?;
    if view.get(0) {
        tracing::warn!(
            "there is no view model_catalog.entries yet: define it, then call model_catalog.watch() for each table \
             that it reads, then model_catalog.reload()"
        );
    }
    Ok(())
}
