//! Sets up logging, runs one command, and turns its outcome into an exit status.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing::{error, warn};

use crate::cli::{Cli, Command, LogArgs, LogFormat};
use crate::cmd::{self, PartialSuccess};
use crate::loader::upstream::config::UpstreamUrlError;
use crate::postgres::config::DatabaseUrlError;
use crate::postgres::migrate::ModelsTable;

/// Exit status for settings that are invalid, which clap uses too.
const INVALID_SETTINGS: u8 = 2;
/// Exit status of a command that succeeded except for rejected entries or rows.
const PARTIAL_SUCCESS: u8 = 3;

/// Runs one command; returns the exit status.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    init_logging(&cli.log);
    let result = match cli.command {
        Command::Serve { database, upstream, server, examples } => {
            cmd::serve::run(&database, &upstream, &server, examples)
        }
        Command::Demo { server } => cmd::demo::run(&server),
        Command::Migrate { database, rules, bare, with_models_table } => {
            let models = match (bare, with_models_table) {
                (true, _) => ModelsTable::Omit,
                (false, true) => ModelsTable::Create,
                (false, false) => ModelsTable::UnlessOthers,
            };
            cmd::migrate::run(&database, &rules, models)
        }
        Command::Import { file, dry_run, strict, database, rules } => {
            cmd::import::run(cmd::import::Import { file, dry_run, strict, rules: rules.rules() }, &database)
        }
        Command::Export { file, snapshot: true, database, rules } => {
            cmd::export::snapshot::run(&file, &rules.rules(), &database)
        }
        Command::Export { file, database, rules, .. } => cmd::export::run(&file, &rules.rules(), &database),
        Command::Check { database, check } => return ExitCode::from(cmd::check::run(&database, &check)),
        Command::Probe { database, probe } => return ExitCode::from(cmd::probe::run(&database, &probe)),
        Command::Health { listen, live } => cmd::health::run(&listen, live),
        Command::Pull(pull) => return cmd::pull::run(&pull, matches!(cli.log.format, LogFormat::Text)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Printed like clap's own errors, whatever the log filter.
        Err(error) if error.is::<DatabaseUrlError>() || error.is::<UpstreamUrlError>() => {
            eprintln!("error: {error}");
            ExitCode::from(INVALID_SETTINGS)
        }
        Err(error) if error.is::<PartialSuccess>() => {
            warn!("{error}");
            ExitCode::from(PARTIAL_SUCCESS)
        }
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn init_logging(log: &LogArgs) {
    let builder =
        tracing_subscriber::fmt().with_env_filter(&log.filter).with_writer(std::io::stderr).with_target(false);
    match log.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
