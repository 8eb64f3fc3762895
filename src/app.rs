//! Sets up logging, runs one command, and turns its outcome into an exit status.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error;
use std::process::ExitCode;

use tokio::signal::unix::SignalKind;
use tracing::{Level, error, warn};
use tracing_subscriber::EnvFilter;

use crate::base::error_chain::chain;
use crate::base::log_filter::{Log, LogFilter};
use crate::base::stderr::{LogFormat, Stderr};
use crate::cli::{self, Cli, Command, LogArgs};
use crate::cmd::stdout::{self, StdoutError};
use crate::cmd::terminal::escape;
use crate::cmd::{self, PartialSuccess, ReportResult};
use crate::loader::upstream::config::UpstreamUrlError;
use crate::postgres::config::DatabaseUrlError;
use crate::postgres::migrate::ModelsTable;

/// Exit status for settings that are invalid, which clap uses too.
const INVALID_SETTINGS: u8 = 2;
/// Exit status of a command that succeeded except for rejected entries or rows.
const PARTIAL_SUCCESS: u8 = 3;
/// Exit status of a report that could not be made or printed.
const NO_REPORT: u8 = 2;

/// Parses the command line and runs one command; returns the exit status.
pub fn main() -> ExitCode {
    match cli::parse() {
        Ok(cli) => run(cli),
        Err(message) => print_usage(&message),
    }
}

fn run(cli: Cli) -> ExitCode {
    let stderr = Stderr::new(cli.log.format);
    let filter = init_logging(&cli.log, &stderr);
    for name in &cli.log.ignored {
        let value = std::env::var_os(name).unwrap_or_default();
        warn!("{name} is {value:?}, which is invalid: using the default");
    }
    log_panics(&stderr);
    // Writes beyond the limit of file sizes (`ulimit -f`) fail then.
    if let Err(error) = cmd::handle_signal(SignalKind::from_raw(libc::SIGXFSZ)) {
        warn!(%error, "a file that reaches the limit of file sizes will end the program");
    }
    let status = run_command(cli, &stderr, &filter);
    stderr.flush();
    status
}

/// Prints help, the version, or what is wrong with the command line.
fn print_usage(message: &clap::Error) -> ExitCode {
    let stderr = Stderr::new(LogFormat::Text);
    let status = if message.use_stderr() {
        let text = message.render();
        stderr.print(&if stderr.has_colors() { text.ansi().to_string() } else { text.to_string() });
        ExitCode::from(INVALID_SETTINGS)
    } else {
        // Colors are for clap to choose.
        match message.print().map_err(StdoutError::from).and_then(|()| stdout::print("")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(StdoutError::Closed) => ExitCode::from(stdout::CLOSED),
            Err(error) => {
                stderr.print(&format!("error: {}\n", chain(&error)));
                ExitCode::FAILURE
            }
        }
    };
    stderr.flush();
    status
}

fn run_command(cli: Cli, stderr: &Stderr, filter: &LogFilter) -> ExitCode {
    let result = match cli.command {
        Command::Serve { database, upstream, server, examples } => {
            let log = Log { stderr, filter };
            cmd::serve::run(&database, &upstream, &server, log, examples)
        }
        Command::Demo { server } => cmd::demo::run(&server, Log { stderr, filter }),
        Command::Migrate { database, rules, bare, with_models_table } => {
            let models = if bare {
                ModelsTable::Omit
            } else if with_models_table {
                ModelsTable::Create
            } else {
                ModelsTable::UnlessOthers
            };
            cmd::migrate::run(&database, &rules, models)
        }
        Command::Import { file, dry_run, strict, database, rules } => {
            let import = cmd::import::Import { file, dry_run, strict, rules: rules.rules() };
            cmd::import::run(import, &database, stderr)
        }
        Command::Export { file, snapshot: true, database, rules } => {
            cmd::export::snapshot::run(&file, &rules.rules(), &database)
        }
        Command::Export { file, database, rules, .. } => cmd::export::run(&file, &rules.rules(), &database),
        Command::Check { database, check } => return report_status(cmd::check::run(&database, &check), stderr),
        Command::Probe { database, probe } => {
            return report_status(cmd::probe::run(&database, &probe, stderr), stderr);
        }
        Command::Health { listen, live } => cmd::health::run(&listen, live),
        Command::Generate { directory } => cmd::generate::run(&directory),
        Command::Warm(args) => return report_status(cmd::warm::run(&args), stderr),
        Command::Pull(pull) => return cmd::pull::run(&pull, matches!(cli.log.format, LogFormat::Text), stderr),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_stdout_closed(&*error) => ExitCode::from(stdout::CLOSED),
        // Printed like clap's own errors, whatever the log filter.
        Err(error) if error.is::<DatabaseUrlError>() || error.is::<UpstreamUrlError>() => {
            stderr.print(&format!("error: {}\n", chain(&*error)));
            ExitCode::from(INVALID_SETTINGS)
        }
        Err(error) if error.is::<PartialSuccess>() => {
            warn!("{error}");
            ExitCode::from(PARTIAL_SUCCESS)
        }
        Err(error) => {
            error!("{}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn report_status(result: ReportResult, stderr: &Stderr) -> ExitCode {
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) if is_stdout_closed(&*error) => ExitCode::from(stdout::CLOSED),
        Err(error) => {
            stderr.print(&format!("error: {}\n", chain(&*error)));
            ExitCode::from(NO_REPORT)
        }
    }
}

/// Whether the reader of standard output closed it, which ends a command without a message.
fn is_stdout_closed(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.any(|cause| matches!(cause.downcast_ref(), Some(StdoutError::Closed)))
}

fn init_logging(log: &LogArgs, stderr: &Stderr) -> LogFilter {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&log.filter))
        .with_writer(stderr.clone())
        // Its own errors would be printed in a way that may panic or block.
        .log_internal_errors(false)
        // A filter names targets.
        .with_target(matches!(log.format, LogFormat::Json));
    match log.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(stderr.has_colors()).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            LogFilter::new(&log.filter, move |filter| handle.reload(filter))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            LogFilter::new(&log.filter, move |filter| handle.reload(filter))
        }
    }
}

/// Logs panics through the queue: the standard hook writes to standard error itself, and blocks if that does.
fn log_panics(stderr: &Stderr) {
    let (stderr, main) = (stderr.clone(), std::thread::current().id());
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("(unnamed)");
        let message = escape(panic.payload_as_str().unwrap_or("(no message)"));
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = Backtrace::capture();
        let backtrace = match backtrace.status() {
            BacktraceStatus::Captured => format!("\n{backtrace}"),
            _ => String::new(),
        };
        stderr.log(Level::ERROR, &format!("thread '{name}' panicked at {place}: {message}{backtrace}"));
        // A panic of the main thread ends the program.
        if thread.id() == main {
            stderr.flush();
        }
    }));
}
