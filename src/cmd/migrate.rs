//! `model-catalog migrate`: creates what the program needs in a database.

use tracing::info;

use super::{CommandResult, runtime};
use crate::cli::{DatabaseArgs, RuleArgs};
use crate::postgres::migrate::{migrate, migrate_bare};
use crate::postgres::session;

/// Runs the command; `bare` omits the default table, its view and its triggers.
///
/// # Errors
/// An invalid connection string, or what [`migrate`] reports.
pub fn run(database: &DatabaseArgs, rules: &RuleArgs, bare: bool) -> CommandResult {
    let (database, rules) = (database.config()?, rules.rules());
    runtime()?.block_on(async {
        let mut client = session::connect(&database).await?;
        match bare {
            true => migrate_bare(&mut client, &database.channel, &rules).await,
            false => migrate(&mut client, &database.channel, &rules).await,
        }
    })?;
    info!("the database is migrated");
    Ok(())
}
