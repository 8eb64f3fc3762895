//! `model-catalog demo`: serves a sample catalog from an ephemeral Postgres.

use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::serve::{Listeners, Server, ServerConfig};
use super::{CommandResult, examples, runtime};
use crate::base::log_filter::Log;
use crate::cli::{DEFAULT_CHANNEL, ServerArgs};
use crate::postgres::config::{DatabaseConfig, Environment};
use crate::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use crate::postgres::migrate::{ModelsTable, migrate};
use crate::postgres::session;

const SAMPLE: &str = include_str!("../../sql/sample_models.sql");
const DATABASE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the command until a signal stops it.
pub(crate) fn run(args: &ServerArgs, log: Log<'_>) -> CommandResult {
    // Before anything is created: the port may be taken.
    let listeners = Listeners::bind(args)?;
    info!("starting an ephemeral Postgres");
    let postgres = EphemeralPostgres::start(EphemeralOptions { loopback: true, ..EphemeralOptions::default() })?;
    let url = postgres.url("postgres");
    let database = DatabaseConfig::parse(&url, &Environment::default(), DEFAULT_CHANNEL, DATABASE_TIMEOUT)?;
    runtime()?.block_on(async {
        let mut client = session::connect(&database).await?;
        migrate(&mut client, DEFAULT_CHANNEL, &args.rules.rules(), ModelsTable::Create).await?;
        client.batch_execute(SAMPLE).await?;
        CommandResult::Ok(())
    })?;
    let connection = postgres.loopback_url("postgres");
    let address = listeners.address()?;
    let server = Server::start(ServerConfig::of_database(args, database, address), listeners, log.stderr)?;
    let store = Arc::clone(server.store());
    server.run(log.filter, async {
        examples::first_snapshot(&store).await;
        let running = "\nAn ephemeral Postgres with a sample catalog is running; Ctrl-C stops it and removes it.\n";
        let commands = examples::commands(address, &["flux-dev", "sdxl-base"], Some(&connection));
        examples::print(running.to_owned() + &commands).await;
    });
    Ok(())
}
