//! `model-catalog check`: looks at a database as the server would, and says what is to be mended and how.
//!
//! It writes nothing; it rings the bell once, which costs each server one look. What a row must be is decided by the
//! server's own rules, and what a change costs by the plan of the server's own look-up.

mod cycles;
mod database;
mod plan;
pub mod report;
mod rows;
mod sources;

use std::sync::Arc;

use tokio::sync::Notify;

use self::report::Report;
use crate::catalog::model::Rules;
use crate::postgres::session::{ConnectError, Database, ReadError, Session};

/// Why a check could not be finished.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("cannot connect: {0}; look at DATABASE_URL")]
    Connect(#[from] ConnectError),
    #[error("cannot read: {0}")]
    Read(#[from] ReadError),
}

/// Looks at all there is. At most `limit` rows are named of each kind of bad row; the rest is counted.
pub async fn run(database: &Database, rules: &Rules, limit: usize) -> Report {
    let mut report = Report::default();
    if let Err(error) = look(database, rules, limit, &mut report).await {
        report.unfinished = Some(error.to_string());
    }
    report
}

/// From the outside in: what is missing further out makes what lies behind it unreachable, and is all that is said.
async fn look(database: &Database, rules: &Rules, limit: usize, report: &mut Report) -> Result<(), CheckError> {
    let rung = Arc::new(Notify::new());
    let bell = Arc::clone(&rung);
    let session = Session::open(database, move || bell.notify_one()).await?;
    if !database::server(&session, database, report).await? {
        return Ok(());
    }
    let rights = database::rights(&session, report).await?;
    if rights.migrations {
        database::migrations(&session, report).await?;
    }
    if rights.state {
        database::channel(&session, database, report).await?;
    }
    database::bell(&session, database, &rung, report).await?;
    if !rights.needed {
        return Ok(());
    }
    let columns = sources::columns(&session, report).await?;
    let readable = columns && sources::readable(&session, report).await?;
    let scans = if readable { plan::look_up(&session).await? } else { Vec::new() };
    let sources = sources::watched(&session, &scans, readable, report).await?;
    if readable {
        sources::indexes(&scans, &sources, report);
        rows::read(&session, rules, limit, report).await?;
    }
    Ok(())
}
