//! Migrations: create what the program needs in a database, and nothing else.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use super::error::{ConnectError, describe_with_detail};
use crate::catalog::model::Rules;

mod embedded {
    refinery::embed_migrations!("migrations");
}

const DEFAULT_MODELS: &str = include_str!("../../sql/default_models.sql");
const SCHEMA: &str = "model_catalog";

/// Advisory lock that is held for the whole run, so that concurrent runs are serialized. The value is arbitrary: ASCII
/// "mcatalog".
const LOCK: i64 = 0x6d63_6174_616c_6f67;

/// Why the migration failed.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed.
    #[error("cannot {doing}: {}", describe_with_detail(.source))]
    Statement {
        /// What the statement was for.
        doing: &'static str,
        /// Why it failed.
        source: tokio_postgres::Error,
    },
    /// A numbered migration failed, or differs from the one that was applied before.
    #[error("cannot apply the migrations: {}", describe_migration(.0))]
    Migrations(#[from] refinery::Error),
}

/// The error with what Postgres said, which the text of refinery lacks.
fn describe_migration(error: &refinery::Error) -> String {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
    match (error.kind(), cause) {
        (refinery::error::Kind::Connection(doing, _), Some(cause)) => {
            format!("{doing}: {}", describe_with_detail(cause))
        }
        _ => error.to_string(),
    }
}

/// Number of the newest migration.
#[must_use]
pub fn latest() -> i32 {
    embedded::migrations::runner().get_migrations().iter().map(refinery::Migration::version).max().unwrap_or(0)
}

/// Applies pending migrations, creates the default table and view unless the view exists, and stores what the triggers
/// need: the notification channel, and the URL schemes by which they check rows. Safe to run more than once, and
/// concurrently.
///
/// # Errors
/// See [`MigrateError`]; what was applied before the error stays, and the next run continues from there.
pub async fn migrate(client: &mut Client, channel: &str, rules: &Rules) -> Result<(), MigrateError> {
    apply(client, channel, rules, Some(DEFAULT_MODELS)).await
}

/// Like [`migrate`], without the default table, its view and its triggers: for databases with tables of their own.
///
/// # Errors
/// See [`migrate`].
pub async fn migrate_bare(client: &mut Client, channel: &str, rules: &Rules) -> Result<(), MigrateError> {
    apply(client, channel, rules, None).await
}

async fn apply(client: &mut Client, channel: &str, rules: &Rules, models: Option<&str>) -> Result<(), MigrateError> {
    let failed = |doing| move |source| MigrateError::Statement { doing, source };
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await.map_err(failed("take the migration lock"))?;
    // The runner keeps its own table in this schema.
    let schema = format!("CREATE SCHEMA IF NOT EXISTS {}", escape_identifier(SCHEMA));
    client.batch_execute(&schema).await.map_err(failed("create the schema model_catalog"))?;
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name("model_catalog.migrations");
    let report = runner.run_async(client).await?;
    for applied in report.applied_migrations() {
        tracing::info!(migration = %applied, "applied");
    }
    if let Some(models) = models {
        client.batch_execute(models).await.map_err(failed("create the default table and view"))?;
    }
    let settings = "UPDATE model_catalog.state SET channel = $1::text, url_schemes = $2 \
                    WHERE channel <> $1::text OR url_schemes <> $2";
    client.execute(settings, &[&channel, &rules.url_schemes]).await.map_err(failed("store the settings"))?;
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
