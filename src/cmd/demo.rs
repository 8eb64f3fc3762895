//! `model-catalog demo`: serves a sample catalog from an ephemeral Postgres.

use std::time::Duration;

use tracing::info;

use super::{CommandResult, runtime, serve};
use crate::cli::ServerArgs;
use crate::postgres::config::{DatabaseConfig, Environment};
use crate::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use crate::postgres::migrate::migrate;
use crate::postgres::session;

const SAMPLE: &str = include_str!("../../sql/sample_models.sql");
const CHANNEL: &str = "model_catalog";
const DATABASE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the command until a signal stops it.
///
/// # Errors
/// Postgres could not be started, or what [`serve::serve`] reports.
pub fn run(args: &ServerArgs) -> CommandResult {
    info!("starting an ephemeral Postgres");
    let postgres = EphemeralPostgres::start(EphemeralOptions { loopback: true, ..EphemeralOptions::default() })?;
    let url = postgres.url("postgres");
    let database = DatabaseConfig::parse(&url, &Environment::default(), CHANNEL, DATABASE_TIMEOUT)?;
    runtime()?.block_on(async {
        let mut client = session::connect(&database).await?;
        migrate(&mut client, CHANNEL).await?;
        client.batch_execute(SAMPLE).await?;
        CommandResult::Ok(())
    })?;
    let postgres_port = postgres.port();
    serve::serve(database, args, |address| {
        println!(
            "\nmodel-catalog serves http://{address} from an ephemeral Postgres at 127.0.0.1:{postgres_port}. \
             Ctrl-C stops both. Try:\n\n  \
             curl http://{address}/api/models/flux-dev\n  \
             curl -d '{{\"model_ids\":[\"flux-dev\",\"sdxl-base\",\"no-such-model\"]}}' \
             http://{address}/api/models/batch\n  \
             psql -h 127.0.0.1 -p {postgres_port} -U postgres \
             -c \"UPDATE models SET description = 'changed just now' WHERE id = 'flux-dev'\"\n\n\
             and the first command again: it shows the change.\n"
        );
    })
}
