//! Migrations: create what the program needs in a database, and nothing else.

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::Client;

use super::error::{ConnectError, describe_with_detail};
use crate::catalog::model::Rules;

mod embedded {
    refinery::embed_migrations!("migrations");
}

const DEFAULT_MODELS: &str = include_str!("../../sql/default_models.sql");
const OTHER_TABLES: &str = include_str!("../../sql/other_tables.sql");
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
    /// Creating public.models would surprise the owner of other tables in that schema.
    #[error(
        "the schema public has other tables ({0}), so nothing was created: run `model-catalog migrate --bare` to serve \
         tables of your own through a view, or `model-catalog migrate --with-models-table` to create public.models \
         beside them"
    )]
    OtherTables(String),
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

/// Whether [`migrate`] creates the table public.models, the view over it and its triggers, unless the view exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelsTable {
    /// Creates them, but refuses to create the table if the schema public has tables of others: an ORM that owns the
    /// schema would take it for a change that nobody made, and offer to reset the database.
    UnlessOthers,
    /// Creates them.
    Create,
    /// Creates none of them: for databases with tables of their own.
    Omit,
}

/// Applies pending migrations, creates the default table and view as `models` says, and stores what the triggers
/// need: the notification channel, and the URL schemes by which they check rows. Safe to run more than once, and
/// concurrently.
///
/// # Errors
/// See [`MigrateError`]; what was applied before the error stays, and the next run continues from there.
pub async fn migrate(
    client: &mut Client,
    channel: &str,
    rules: &Rules,
    models: ModelsTable,
) -> Result<(), MigrateError> {
    let failed = |doing| move |source| MigrateError::Statement { doing, source };
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await.map_err(failed("take the migration lock"))?;
    if models == ModelsTable::UnlessOthers {
        let others = client.query_one(OTHER_TABLES, &[]).await.map_err(failed("look for other tables"))?;
        if let Some(names) = others.get(0) {
            return Err(MigrateError::OtherTables(names));
        }
    }
    // The runner keeps its own table in this schema.
    let schema = format!("CREATE SCHEMA IF NOT EXISTS {}", escape_identifier(SCHEMA));
    client.batch_execute(&schema).await.map_err(failed("create the schema model_catalog"))?;
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name("model_catalog.migrations");
    let report = runner.run_async(client).await?;
    for applied in report.applied_migrations() {
        tracing::info!(migration = %applied, "applied");
    }
    if models != ModelsTable::Omit {
        client.batch_execute(DEFAULT_MODELS).await.map_err(failed("create the default table and view"))?;
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
