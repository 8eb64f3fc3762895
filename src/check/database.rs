//! The server, the connection, the rights, and whether a ring of the bell is heard.

use std::time::Instant;

use futures_util::FutureExt;
use postgres_protocol::escape::escape_literal;
use tokio::sync::Notify;
use tokio_postgres::types::{ToSql, Type};

use super::CheckError;
use super::report::Report;
use crate::catalog::store::SyncMode;
use crate::postgres::migrate;
use crate::postgres::session::{self, ConnectError, Database, Session};

const SERVER: &str = include_str!("../../sql/check/server.sql");
const RIGHTS: &str = include_str!("../../sql/check/rights.sql");

/// Who and where we are, and how the connection runs. False = nothing of ours is in this database.
pub async fn server(session: &Session, database: &Database, report: &mut Report) -> Result<bool, CheckError> {
    let rows = session.ask(SERVER).await?;
    let Some(row) = rows.first() else { return Ok(false) };
    let text = |column: &str| row.get(column).unwrap_or_default();
    let place = format!("PostgreSQL {}, database {}, as {}", text("version"), text("database"), text("role"));
    report.ok("connection", place);

    tls(text, database.address.verifies, report);
    match session.follow() {
        SyncMode::Live => report.ok("server", "a primary, connected to directly: changes are announced"),
        SyncMode::Standby => report.ok(
            "server",
            "a hot standby, which can't announce changes: everything is read every CATALOG_POLL_INTERVAL",
        ),
        SyncMode::Polling => report.warning(
            "server",
            "behind a pooler that keeps no sessions: changes are only looked for every CATALOG_POLL_INTERVAL",
            "name the port of Postgres itself in DATABASE_URL, or let the pooler pool sessions",
        ),
    }
    let migrated = text("migrated") == "t";
    if !migrated {
        report.problem("schema", "there is no schema model_catalog in this database", "model-catalog migrate");
    }
    Ok(migrated)
}

/// `text` gives a column of the row.
fn tls<'a>(text: impl Fn(&str) -> &'a str, verifies: bool, report: &mut Report) {
    let verify = "add sslmode=verify-full and sslrootcert=<file> or sslrootcert=system to DATABASE_URL";
    match (text("ssl"), text("network")) {
        ("t", "t") if !verifies => {
            let said = format!("{}, but the server's certificate is not verified", text("tls_version"));
            report.warning("tls", said, verify);
        }
        ("t", _) => report.ok("tls", format!("{}, {}", text("tls_version"), text("cipher"))),
        (_, "t") => report.warning("tls", "not in use, and the connection crosses a network", verify),
        _ => report.ok("tls", "not in use; the connection does not leave this machine"),
    }
}

/// What the role may read.
pub struct Rights {
    /// All that the server needs.
    pub needed: bool,
    /// `model_catalog.state`
    pub state: bool,
    /// `model_catalog.migrations`
    pub migrations: bool,
}

/// Whether the role may read what the server reads.
pub async fn rights(session: &Session, report: &mut Report) -> Result<Rights, CheckError> {
    let mut rights = Rights { needed: true, state: true, migrations: true };
    let (mut schema, mut all) = (true, true);
    for row in session.ask(RIGHTS).await? {
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
            report.problem("schema", format!("there is no {name}"), make(name));
        } else if text("granted") == "f" && needed {
            report.problem("rights", format!("the role may not read {name}"), text("statement"));
        } else if text("granted") == "f" {
            report.warning(
                "rights",
                format!("the role may not read {name}, which this check looks at"),
                text("statement"),
            );
        }
    }
    if all {
        report.ok("rights", "the role may read all that a server reads");
    }
    Ok(rights)
}

fn make(name: &str) -> &'static str {
    match name {
        "model_catalog.entries" => {
            "model-catalog migrate   # creates it over public.models, or define it yourself: docs/postgres.md#serving-existing-tables"
        }
        _ => "model-catalog migrate",
    }
}

/// Whether all migrations of this program were applied.
pub async fn migrations(session: &Session, report: &mut Report) -> Result<(), CheckError> {
    let rows = session.ask("SELECT max(version) FROM model_catalog.migrations").await?;
    let applied: i64 = rows.first().and_then(|row| row.get(0)?.parse().ok()).unwrap_or(0);
    let latest = i64::from(migrate::latest());
    let text = format!("migration {applied} was applied last, this program's last is {latest}");
    match applied.cmp(&latest) {
        std::cmp::Ordering::Less => report.problem("migrations", text, "model-catalog migrate"),
        std::cmp::Ordering::Equal => report.ok("migrations", format!("applied up to {latest}, the last there is")),
        std::cmp::Ordering::Greater => report.warning("migrations", text, "use the program that migrated the database"),
    }
    Ok(())
}

/// Whether the triggers ring where the servers listen.
pub async fn channel(session: &Session, database: &Database, report: &mut Report) -> Result<(), CheckError> {
    let rows = session.ask("SELECT channel FROM model_catalog.state").await?;
    let rung = rows.first().and_then(|row| row.get(0)).unwrap_or_default();
    let heard = database.channel.as_str();
    if rung == heard {
        report.ok("channel", format!("the triggers ring \"{rung}\", as CATALOG_CHANNEL says"));
    } else {
        report.problem(
            "channel",
            format!("the triggers ring \"{rung}\", but CATALOG_CHANNEL is \"{heard}\": set one of them to the other"),
            format!("UPDATE model_catalog.state SET channel = {};", escape_literal(heard).trim_start()),
        );
    }
    Ok(())
}

/// Rings on another connection, and waits until it is heard on this one.
pub async fn bell(
    session: &Session,
    database: &Database,
    rung: &Notify,
    report: &mut Report,
) -> Result<(), CheckError> {
    if session.follow() != SyncMode::Live {
        return Ok(());
    }
    let other = session::connect(database).await?;
    // Another's ring from before ours proves nothing.
    let _ = rung.notified().now_or_never();
    let started = Instant::now();
    let channel: [(&(dyn ToSql + Sync), Type); 1] = [(&database.channel, Type::TEXT)];
    let ring = other.query_typed("SELECT pg_catalog.pg_notify($1, '')", &channel);
    let timeout = |_| ConnectError::Timeout(database.timeout);
    tokio::time::timeout(database.timeout, ring).await.map_err(timeout)?.map_err(ConnectError::from)?;
    match tokio::time::timeout(database.timeout, rung.notified()).await {
        Ok(()) => {
            let took = started.elapsed().as_secs_f64() * 1e3;
            report.ok("bell", format!("a notification arrived after {took:.1} ms"));
        }
        Err(_) => report.problem(
            "bell",
            format!("no notification arrived within {}", humantime::format_duration(database.timeout)),
            "see what lies between this machine and Postgres; name the port of Postgres itself in DATABASE_URL",
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Level;

    #[test]
    fn tls_matters_where_there_is_a_network() {
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
