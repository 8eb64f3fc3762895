//! Migrations: create what the program needs in a database, and nothing else.

use std::time::{Duration, Instant, SystemTime};

use postgres_protocol::escape::escape_identifier;
use refinery_core::error::Kind;
use refinery_core::traits::r#async::{AsyncMigrate, AsyncQuery, AsyncTransaction};
use refinery_core::{Migration, Runner};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, IsolationLevel, SimpleQueryMessage, Transaction};

use super::error::{ConnectError, describe_with_detail};
use crate::catalog::model::Rules;

macro_rules! migrations {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("../../migrations/", $name, ".sql")))),*] };
}

/// Names and texts of the migrations, in the order of their numbers. Databases store a checksum of each.
const MIGRATIONS: [(&str, &str); SCHEMA_VERSION as usize] = migrations![
    "V1__model_catalog",
    "V2__fleet",
    "V3__problems",
    "V4__append_only_log",
    "V5__encodings_and_paths",
    "V6__restores",
    "V7__unreadable_ids",
    "V8__small_log",
];

const DEFAULT_MODELS: &str = include_str!("../../sql/default_models.sql");
const OTHER_TABLES: &str = include_str!("../../sql/other_tables.sql");
const SCHEMA: &str = "model_catalog";

/// Advisory lock that serializes concurrent runs. It belongs to a transaction: that of a session would stay on the
/// pooled connection of a transaction pooler. The value is arbitrary: ASCII "mcatalog".
const LOCK: i64 = 0x6d63_6174_616c_6f67;
/// Maximum wait for that lock, unless the session has a `lock_timeout`.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// Pause between two attempts to take it.
const LOCK_RETRY: Duration = Duration::from_millis(100);
/// Settings of each transaction. Everybody waits behind a statement that waits for a lock, so it gives up after a while
/// unless the session has a limit of its own. The migrations are written for standard_conforming_strings.
const TRANSACTION: &str = "SET LOCAL standard_conforming_strings = on; SET LOCAL statement_timeout = 0; \
                           SELECT pg_catalog.set_config('lock_timeout', '10s', true) \
                           WHERE pg_catalog.current_setting('lock_timeout') = '0'";
/// Sessions that hold the lock. pg_stat_activity is read once per transaction unless its snapshot is cleared.
const HOLDERS: &str = "SELECT pg_catalog.pg_stat_clear_snapshot(); \
    SELECT pg_catalog.format('pid %s (%s, %s since %s)', l.pid, coalesce(nullif(a.application_name, ''), 'no name'), \
                             coalesce(a.state, 'state unknown'), \
                             coalesce(pg_catalog.date_trunc('second', a.state_change)::text, 'an unknown time')) \
    FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
      AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
      AND l.classid::bigint << 32 | l.objid::bigint = ";

/// Why the migration failed.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement failed.
    #[error("cannot {doing}")]
    Statement {
        /// What the statement was for.
        doing: &'static str,
        /// Why it failed.
        source: Detailed,
    },
    /// Creating public.models would surprise the owner of other tables in that schema.
    #[error(
        "the schema public has other tables ({0}), so nothing was created: run `model-catalog migrate --bare` to serve \
         tables of your own through a view, or `model-catalog migrate --with-models-table` to create public.models \
         beside them"
    )]
    OtherTables(String),
    /// Another run holds the lock.
    #[error(
        "another migration of this database did not end within {}: it is {holder}; if that session is idle, an earlier \
         version left its lock on a pooled connection: SELECT pg_terminate_backend(PID) releases it",
        humantime::format_duration(*.waited)
    )]
    Locked {
        /// The session that holds the lock.
        holder: String,
        /// How long was waited.
        waited: Duration,
    },
    /// A newer version of the program has migrated the database.
    #[error(
        "the database has migration {newer}, and this version of the program knows {SCHEMA_VERSION}: a newer version \
         has migrated it; this one can serve it, and only a version that knows {newer} can migrate it"
    )]
    Newer {
        /// The number of the first migration that this version does not know.
        newer: i32,
    },
    /// A numbered migration failed, or differs from the one that was applied before.
    #[error("cannot apply the migrations")]
    Migrations(#[from] Detailed),
}

/// An error with its causes and with the detail, of statements that read and write no models.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Detailed(String);

impl From<tokio_postgres::Error> for Detailed {
    fn from(error: tokio_postgres::Error) -> Self {
        Self(describe_with_detail(&error))
    }
}

/// With what Postgres said, which the text of refinery lacks.
impl From<refinery_core::Error> for Detailed {
    fn from(error: refinery_core::Error) -> Self {
        let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref());
        Self(match (error.kind(), cause) {
            (Kind::Connection(doing, _), Some(cause)) => {
                format!("{doing}: {}", describe_with_detail(cause))
            }
            _ => error.to_string(),
        })
    }
}

/// Number of the newest migration.
pub const SCHEMA_VERSION: i32 = 8;

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
    let failed = |doing| move |error: tokio_postgres::Error| MigrateError::Statement { doing, source: error.into() };
    apply_numbered(client, models).await?;
    let transaction = begin(client).await?.0;
    if models != ModelsTable::Omit {
        transaction.batch_execute(DEFAULT_MODELS).await.map_err(failed("create the default table and view"))?;
    }
    let settings = "UPDATE model_catalog.state SET channel = $1::text, url_schemes = $2 \
                    WHERE channel <> $1::text OR url_schemes <> $2";
    let values: [(&(dyn ToSql + Sync), Type); 2] = [(&channel, Type::TEXT), (&rules.url_schemes, Type::TEXT_ARRAY)];
    transaction.execute_typed(settings, &values).await.map_err(failed("store the settings"))?;
    let view = "SELECT to_regclass('model_catalog.entries') IS NULL";
    let view = transaction.query_typed_one(view, &[]).await.map_err(failed("look for the view"))?;
    transaction.commit().await.map_err(failed("commit the settings"))?;
    if view.get(0) {
        tracing::warn!(
            "there is no view model_catalog.entries yet: define it, then call model_catalog.watch() for each table \
             that it reads, then model_catalog.reload()"
        );
    }
    Ok(())
}

/// Applies the pending migrations, all or none.
async fn apply_numbered(client: &mut Client, models: ModelsTable) -> Result<(), MigrateError> {
    let failed = |doing| move |error: tokio_postgres::Error| MigrateError::Statement { doing, source: error.into() };
    let mut transaction = begin(client).await?;
    if models == ModelsTable::UnlessOthers {
        let others = transaction.0.query_typed_one(OTHER_TABLES, &[]).await;
        if let Some(names) = others.map_err(failed("look for other tables"))?.get(0) {
            return Err(MigrateError::OtherTables(names));
        }
    }
    // The runner keeps its own table in this schema.
    let schema = format!("CREATE SCHEMA IF NOT EXISTS {}", escape_identifier(SCHEMA));
    transaction.0.batch_execute(&schema).await.map_err(failed("create the schema model_catalog"))?;
    let migrations = MIGRATIONS.map(|(name, sql)| Migration::unapplied(name, sql));
    let migrations = migrations.into_iter().collect::<Result<Vec<_>, _>>().map_err(Detailed::from)?;
    let mut runner = Runner::new(&migrations);
    runner.set_migration_table_name("model_catalog.migrations");
    let report = runner.run_async(&mut transaction).await.map_err(|error| match error.kind() {
        Kind::MissingVersion(migration) => MigrateError::Newer { newer: migration.version() },
        _ => Detailed::from(error).into(),
    })?;
    transaction.0.commit().await.map_err(failed("commit the migrations"))?;
    for applied in report.applied_migrations() {
        tracing::info!(migration = %applied, "applied");
    }
    Ok(())
}

/// Begins a transaction that holds the lock. Its statements are unnamed, which works through every pooler.
async fn begin(client: &mut Client) -> Result<OneTransaction<'_>, MigrateError> {
    let failed = |error: tokio_postgres::Error| MigrateError::Statement {
        doing: "take the migration lock",
        source: error.into(),
    };
    // Statements after the lock must see what the previous holder committed.
    let begin = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false).start();
    let silent =
        |_| MigrateError::Locked { holder: "unknown, because a pooler did not respond".into(), waited: LOCK_WAIT };
    let transaction = tokio::time::timeout(LOCK_WAIT, begin).await.map_err(silent)?.map_err(failed)?;
    let limit = "SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'lock_timeout'";
    let limit: i64 = transaction.query_typed_one(limit, &[]).await.map_err(failed)?.get(0);
    let limit = u64::try_from(limit).ok().filter(|limit| *limit > 0).map_or(LOCK_WAIT, Duration::from_millis);
    transaction.batch_execute(TRANSACTION).await.map_err(failed)?;
    let (started, mut logged) = (Instant::now(), String::new());
    loop {
        let lock = format!("SELECT pg_catalog.pg_try_advisory_xact_lock({LOCK})");
        if transaction.query_typed_one(&lock, &[]).await.map_err(failed)?.get(0) {
            return Ok(OneTransaction(transaction));
        }
        let holders = transaction.simple_query(&format!("{HOLDERS}{LOCK}")).await.map_err(failed)?;
        let holder = holders.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).filter(|holder| !holder.is_empty()),
            _ => None,
        });
        let holder = holder.unwrap_or("a session that has just ended").to_owned();
        if started.elapsed() >= limit {
            return Err(MigrateError::Locked { holder, waited: limit });
        }
        if logged != holder {
            tracing::info!(
                holder,
                limit_seconds = limit.as_secs_f64(),
                "waiting for another migration of this database"
            );
            logged = holder;
        }
        tokio::time::sleep(LOCK_RETRY).await;
    }
}

/// Runs the migrations in one transaction, which also holds the lock.
struct OneTransaction<'a>(Transaction<'a>);

impl AsyncTransaction for OneTransaction<'_> {
    type Error = tokio_postgres::Error;

    /// Sends only ASCII, because no other character is in every encoding of databases. A migration has one in a comment
    /// and can't be changed, because its checksum is stored in databases.
    async fn execute<'a, T: Iterator<Item = &'a str> + Send + 'a>(
        &'a mut self,
        queries: T,
    ) -> Result<usize, tokio_postgres::Error> {
        let mut count = 0;
        for query in queries {
            self.0.batch_execute(&query.replace(|c: char| !c.is_ascii(), "?")).await?;
            count += 1;
        }
        Ok(count)
    }
}

impl AsyncQuery<Vec<Migration>> for OneTransaction<'_> {
    async fn query<'a>(&'a mut self, query: &'a str) -> Result<Vec<Migration>, tokio_postgres::Error> {
        let rows = self.0.query_typed(query, &[]).await?;
        let migration = |row: &tokio_postgres::Row| {
            let checksum = row.try_get::<_, &str>(3)?.parse().unwrap_or_default();
            // The runner does not look at the time.
            Ok(Migration::applied(row.try_get(0)?, row.try_get(1)?, SystemTime::UNIX_EPOCH.into(), checksum))
        };
        rows.iter().map(migration).collect()
    }
}

impl AsyncMigrate for OneTransaction<'_> {}
