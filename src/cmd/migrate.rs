//! `model-catalog migrate`: creates what the program needs in a database.

use tracing::info;

use super::{CommandResult, runtime};
use crate::cli::{DatabaseArgs, RuleArgs};
use crate::postgres::migrate::{ModelsTable, migrate};
use crate::postgres::session;

/// Runs the command.
pub(crate) fn run(database: &DatabaseArgs, rules: &RuleArgs, models: ModelsTable) -> CommandResult {
    let (database, rules) = (database.config()?, rules.rules());
    runtime()?.block_on(async {
        let mut client = session::connect(&database).await?;
        migrate(&mut client, &database.channel, &rules, models).await
    })?;
    info!("the database is migrated");
    Ok(())
}
