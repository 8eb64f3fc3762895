//! `model-catalog check`: checks a database as a server would use it, and prints how to fix what is wrong.
//!
//! It writes nothing and sends one notification, on which every server runs one delta. Rows are checked by the servers'
//! own rules, and the cost of a change is read from the plan of the servers' own look-up.

mod cycles;
mod database;
mod error;
mod models;
mod plan;
mod recorded;
pub(super) mod report;
mod sources;

use std::sync::Arc;

use tokio::sync::Notify;

use self::error::CheckError;
use self::report::Report;
use super::{ReportResult, runtime, stdout};
use crate::base::error_chain::chain;
use crate::catalog::model::Rules;
use crate::cli::{CheckArgs, DatabaseArgs};
use crate::postgres::config::DatabaseConfig;
use crate::postgres::session::Session;

/// Runs the command and prints the report; returns the exit status.
///
/// # Errors
/// An invalid connection string, no runtime, or a [`StdoutError`](super::stdout::StdoutError).
pub(crate) fn run(database: &DatabaseArgs, args: &CheckArgs) -> ReportResult {
    let database = database.config()?;
    let runtime = runtime().map_err(|error| format!("cannot start a runtime: {error}"))?;
    let report = runtime.block_on(check(&database, &args.rules.rules(), args.limit.get()));
    stdout::print(&report.render(args.output))?;
    Ok(report.status(args.strict))
}

async fn check(database: &DatabaseConfig, rules: &Rules, limit: usize) -> Report {
    let mut report = Report::default();
    if let Err(error) = check_all(database, rules, limit, &mut report).await {
        report.unfinished = Some(chain(&error));
    }
    report
}

/// Checks from the connection inwards. What depends on something that is missing is skipped.
async fn check_all(
    database: &DatabaseConfig,
    rules: &Rules,
    limit: usize,
    report: &mut Report,
) -> Result<(), CheckError> {
    let notified = Arc::new(Notify::new());
    let notify = Arc::clone(&notified);
    let session = Session::open(database, move || notify.notify_one()).await?;
    if !database::server(&session, database, report).await? {
        return Ok(());
    }
    let rights = database::rights(&session, report).await?;
    if rights.migrations {
        database::migrations(&session, report).await?;
    }
    if rights.state {
        database::channel(&session, database, report).await?;
        database::strict(&session, rules, report).await?;
    }
    database::notification(&session, database, &notified, report).await?;
    if !rights.needed {
        return Ok(());
    }
    if rights.state {
        recorded::growth(&session, report).await?;
    }
    let columns = sources::columns(&session, report).await?;
    let readable = columns && sources::readable(&session, report).await?;
    let scans = if readable { plan::look_up(&session).await? } else { Vec::new() };
    let (sources, recorded) = sources::watched(&session, &scans, readable, report).await?;
    if readable {
        sources::indexes(&scans, &sources, report);
        models::check(&session, rules, &recorded, limit, report).await?;
    }
    Ok(())
}
