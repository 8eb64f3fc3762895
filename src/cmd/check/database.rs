//! Checks of the server, the connection, the rights, the migrations, and of notifications.

use std::time::Instant;

use futures_util::FutureExt;
use postgres_protocol::escape::escape_literal;
use tokio::sync::Notify;
use tokio_postgres::types::{ToSql, Type};

use super::error::CheckError;
use super::report::Report;
use crate::catalog::model::Rules;
use crate::postgres::config::DatabaseConfig;
use crate::postgres::error::ReadError;
use crate::postgres::migrate;
use crate::postgres::session::SyncMode;
use crate::postgres::session::{self, Session};

const SERVER: &str = include_str!("../../../sql/check/server.sql");
const RIGHTS: &str = include_str!("../../../sql/check/rights.sql");

/// Checks the server and the connection. False if the database is not migrated.
pub(crate) async fn server(
    session: &Session,
    database: &DatabaseConfig,
    report: &mut Report,
) -> Result<bool, CheckError> {
    let rows = session.query_system_catalog(SERVER).await?;
    let Some(row) = rows.first() else { return Ok(false) };
    let text = |column: &str| row.get(column).unwrap_or_default();
    let connection = format!("PostgreSQL {}, database {}, as {}", text("version"), text("database"), text("role"));
    report.ok("connection", connection);
    tls(text, database.verifies_server, report);
    match session.sync_mode() {
        SyncMode::Live => report.ok("server", "a primary, connected directly: it notifies of changes"),
        SyncMode::Standby if session.is_direct() => report.ok(
            "server",
            "a hot standby, which can't notify of changes: they are read every CATALOG_STANDBY_POLL_INTERVAL",
        ),
        SyncMode::Standby => report.warning(
            "server",
            "a hot standby behind a pooler that does not keep sessions: everything is read every CATALOG_POLL_INTERVAL",
            "use the port of Postgres itself in DATABASE_URL, or configure the pooler for session pooling",
        ),
        SyncMode::Polling if session.is_direct() => report.warning(
            "server",
            format!(
                "a primary that refuses LISTEN, so changes are only read every CATALOG_POLL_INTERVAL: {}",
                session.listen_refused().unwrap_or_default()
            ),
            "use the port of Postgres itself in DATABASE_URL",
        ),
        SyncMode::Polling => report.warning(
            "server",
            "behind a pooler that does not keep sessions: changes are only read every CATALOG_POLL_INTERVAL",
            "use the port of Postgres itself in DATABASE_URL, or configure the pooler for session pooling",
        ),
    }
    let migrated = text("migrated") == "t";
    if !migrated {
        report.problem("schema", "there is no schema model_catalog in this database", "model-catalog migrate");
    }
    Ok(migrated)
}

/// Checks the encryption of the connection; `text` reads a column of `sql/check/server.sql`.
fn tls<'a>(text: impl Fn(&str) -> &'a str, verifies: bool, report: &mut Report) {
    let verify = "add sslmode=verify-full and sslrootcert=<file> or sslrootcert=system to DATABASE_URL";
    match (text("ssl"), text("network")) {
        ("t", "t") if !verifies => {
            let finding = format!("{}, but the server's certificate is not verified", text("tls_version"));
            report.warning("tls", finding, verify);
        }
        ("t", _) => report.ok("tls", format!("{}, {}", text("tls_version"), text("cipher"))),
        (_, "t") => report.warning("tls", "not in use, and the connection crosses a network", verify),
        _ => report.ok("tls", "not in use; the connection is local"),
    }
}

/// The rights of the role.
pub(crate) struct Rights {
    /// To read everything that the server needs.
    pub(crate) needed: bool,
    /// To read `model_catalog.state`.
    pub(crate) state: bool,
    /// To read `model_catalog.migrations`.
    pub(crate) migrations: bool,
}

/// Checks the rights of the role.
pub(crate) async fn rights(session: &Session, report: &mut Report) -> Result<Rights, CheckError> {
    let mut rights = Rights { needed: true, state: true, migrations: true };
    let (mut schema, mut all) = (true, true);
    for row in session.query_system_catalog(RIGHTS).await? {
        let text = |column: &str| row.get(column).unwrap_or_default();
        let (name, needed) = (text("name"), text("needed") == "t");
        let granted = text("granted") == "t" && schema;
        match name {
            "schema model_catalog" => schema = granted,
            "model_catalog.state" => rights.state = granted,
            "model_catalog.migrations" => rights.migrations = granted,
            _ => {}
        }
        all &= granted;
        rights.needed &= granted || !needed;
        if text("exists") == "f" {
            report.problem("schema", format!("there is no {name}"), create_hint(name));
        } else if text("granted") == "f" && needed {
            report.problem("rights", format!("the role may not read {name}"), text("statement"));
        } else if text("granted") == "f" {
            report.warning(
                "rights",
                format!("the role may not read {name}, which this check reads"),
                text("statement"),
            );
        }
    }
    if all {
        report.ok("rights", "the role may read everything that a server reads");
    }
    Ok(rights)
}

/// How to create an object that does not exist.
fn create_hint(name: &str) -> &'static str {
    match name {
        "model_catalog.entries" => {
            "model-catalog migrate   # creates it over public.models, or define it yourself: \
             docs/postgres.md#serving-existing-tables"
        }
        _ => "model-catalog migrate",
    }
}

/// Checks that all migrations of this program were applied.
pub(crate) async fn migrations(session: &Session, report: &mut Report) -> Result<(), CheckError> {
    let rows = session.query_system_catalog("SELECT max(version) FROM model_catalog.migrations").await?;
    let applied: i64 = rows.first().and_then(|row| row.get(0)?.parse().ok()).unwrap_or(0);
    let latest = i64::from(migrate::SCHEMA_VERSION);
    let text = format!("migration {applied} was applied last, the newest of this program is {latest}");
    match applied.cmp(&latest) {
        std::cmp::Ordering::Less => report.problem("migrations", text, "model-catalog migrate"),
        std::cmp::Ordering::Equal => report.ok("migrations", format!("applied up to {latest}, the newest")),
        std::cmp::Ordering::Greater => {
            report.warning("migrations", text, "use the version of the program that migrated the database")
        }
    }
    Ok(())
}

/// Checks that triggers notify on the channel that servers listen on.
pub(crate) async fn channel(
    session: &Session,
    database: &DatabaseConfig,
    report: &mut Report,
) -> Result<(), CheckError> {
    let rows = session.query_system_catalog("SELECT channel FROM model_catalog.state").await?;
    let notified = rows.first().and_then(|row| row.get(0)).unwrap_or_default();
    let listening = database.channel.as_str();
    if notified == listening {
        report.ok("channel", format!("triggers notify on \"{notified}\", the CATALOG_CHANNEL"));
    } else {
        report.problem(
            "channel",
            format!("triggers notify on \"{notified}\", but CATALOG_CHANNEL is \"{listening}\": set both to the same"),
            format!("UPDATE model_catalog.state SET channel = {};", escape_literal(listening).trim_start()),
        );
    }
    Ok(())
}

/// Reports what the triggers do with rows that servers reject, and checks that they allow the same URL schemes.
pub(crate) async fn strict(session: &Session, rules: &Rules, report: &mut Report) -> Result<(), CheckError> {
    let sql = "SELECT strict, array_to_string(url_schemes, ', ') AS schemes FROM model_catalog.state";
    let rows = session.query_system_catalog(sql).await?;
    let text = |column: &str| rows.first().and_then(|row| row.get(column)).unwrap_or_default();
    report.ok(
        "strict",
        match text("strict") {
            "t" => "writes of rows that servers reject are refused",
            _ => {
                "writes of rows that servers reject succeed with a warning; SELECT model_catalog.strict(true) refuses \
                 them"
            }
        },
    );
    let (checked, allowed) = (text("schemes"), rules.url_schemes.join(", "));
    if checked != allowed {
        report.warning(
            "strict",
            format!("triggers allow the URL schemes {checked}, but CATALOG_URL_SCHEMES is {allowed}"),
            format!(
                "UPDATE model_catalog.state SET url_schemes = string_to_array({}, ', ');",
                escape_literal(&allowed).trim_start()
            ),
        );
    }
    Ok(())
}

/// Sends a notification on another connection and waits for it on this one.
pub(crate) async fn notification(
    session: &Session,
    database: &DatabaseConfig,
    notified: &Notify,
    report: &mut Report,
) -> Result<(), CheckError> {
    if session.sync_mode() != SyncMode::Live {
        return Ok(());
    }
    let other = session::connect(database).await?;
    // Discard an earlier notification of a change.
    let _ = notified.notified().now_or_never();
    let started = Instant::now();
    let channel: [(&(dyn ToSql + Sync), Type); 1] = [(&database.channel, Type::TEXT)];
    let notify = other.query_typed("SELECT pg_catalog.pg_notify($1, '')", &channel);
    let notified_in_time = tokio::time::timeout(database.timeout, notify).await;
    notified_in_time.map_err(|_| ReadError::Timeout(database.timeout))?.map_err(ReadError::from)?;
    match tokio::time::timeout(database.timeout, notified.notified()).await {
        Ok(()) => {
            let took = started.elapsed().as_secs_f64() * 1e3;
            report.ok("notification", format!("a notification arrived after {took:.1} ms"));
        }
        Err(_) => report.problem(
            "notification",
            format!("no notification arrived within {}", humantime::format_duration(database.timeout)),
            "check for proxies between this machine and Postgres; use the port of Postgres itself in DATABASE_URL",
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::check::report::Level;

    #[test]
    fn missing_tls_is_a_warning_only_on_a_network() {
        for (ssl, network, verifies, level) in [
            ("f", "f", false, Level::Ok),
            ("t", "f", false, Level::Ok),
            ("f", "t", false, Level::Warning),
            ("t", "t", false, Level::Warning),
            ("t", "t", true, Level::Ok),
        ] {
            let mut report = Report::default();
            let text = |column: &str| match column {
                "ssl" => ssl,
                "network" => network,
                _ => "x",
            };
            tls(text, verifies, &mut report);
            assert_eq!(report.findings[0].level, level, "{ssl} {network} {verifies}");
        }
    }
}
