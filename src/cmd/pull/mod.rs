//! `model-catalog pull`: downloads models by their ids, verifies them, and then executes the command that uses them.
//!
//! Everything is planned before the first byte is downloaded: which files exist, where the others are, and whether they
//! fit on the disk. A model that cannot be downloaded is a warning and does not stop the others.

pub(super) mod batches;
mod catalog;
mod fd_limit;
mod report;
mod screen;
pub(crate) mod settings;

use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::error;

use fd_limit::FdLimit;
use report::Reporter;
use screen::Screen;
use settings::PullSettings;

use super::fetch_log;
use crate::base::error_chain::chain;
use crate::base::stderr::Stderr;
use crate::cli::PullArgs;
use crate::cmd::CommandRuntime;
use crate::cmd::stdout::{self, StdoutError};
use crate::fetch::event::Events;
use crate::fetch::http::Http;
use crate::fetch::tokens::Tokens;
use crate::fetch::{self, Context, Failure, Storage};

/// Exit status after SIGTERM, SIGINT or SIGHUP: the one that shells report for SIGTERM.
const EXIT_SIGNALED: u8 = 143;
/// Time for downloads to write their journals after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum threads for network and disk I/O; hashing has its own threads.
const MAX_THREADS: usize = 8;

/// How a pull ended.
enum PullResult {
    /// Every model is on disk.
    Complete,
    /// A model is missing, or the pull could not start.
    Incomplete,
    /// A signal stopped it.
    Stopped,
    /// The reader of a dry run's output closed it.
    OutputClosed,
}

/// Pulls, then replaces this process with the command. `bars` allows progress bars if standard error is a terminal.
pub(crate) fn run(pull: &PullArgs, bars: bool, stderr: &Stderr) -> ExitCode {
    let screen = Screen::of_stderr(stderr, bars && !pull.dry_run);
    let end = if pull.ids().is_empty() {
        PullResult::Complete
    } else {
        // tokio panics if the threads of its runtime cannot be started. The panic hook has logged it.
        catch_unwind(AssertUnwindSafe(|| pull_models(pull, screen))).unwrap_or(PullResult::Incomplete)
    };
    let complete = match end {
        PullResult::Stopped => return ExitCode::from(EXIT_SIGNALED),
        PullResult::OutputClosed => return ExitCode::from(stdout::CLOSED),
        PullResult::Complete => true,
        PullResult::Incomplete => false,
    };
    match pull.command.first() {
        Some(command) if !complete && pull.strict && !pull.dry_run => {
            error!(command = %command.display(), "MACHINE_MODELS_STRICT is set: the command is not started");
            ExitCode::FAILURE
        }
        Some(_) if !pull.dry_run => exec_command(pull, stderr),
        _ if complete => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Replaces this process with the command, which inherits the environment and the working directory.
fn exec_command(pull: &PullArgs, stderr: &Stderr) -> ExitCode {
    stderr.flush();
    let error = Command::new(&pull.command[0]).args(&pull.command[1..]).exec();
    ignore_broken_pipes();
    error!(command = %pull.command[0].display(), %error, "the command cannot be started");
    // The exit statuses of shells.
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
}

/// Ignores SIGPIPE again. A failed `exec` has restored its default, by which the next log line might end this process.
#[allow(unsafe_code, reason = "no crate has a safe way to ignore a signal")]
fn ignore_broken_pipes() {
    // SAFETY: no handler is installed that could run.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

fn pull_models(pull: &PullArgs, screen: Screen) -> PullResult {
    let fd_limit = FdLimit::raise();
    let done = pull.check().map_err(Failure::from).and_then(|mut settings| {
        settings.fit(fd_limit.allowed);
        let runtime = runtime()?;
        runtime.block_on(async {
            // Installed first, so that no signal arrives before its handler.
            let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
            let mut signals = kinds.into_iter().map(signal).collect::<std::io::Result<Vec<_>>>()?;
            let received = select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv())));
            let (stop, stopped) = watch::channel(false);
            let mut end = std::pin::pin!(get_models(settings, screen, stopped));
            tokio::select! {
                end = &mut end => return end,
                _ = received => {}
            }
            stop.send_replace(true);
            // Downloads write their journals; everything else is dropped.
            let _ = tokio::time::timeout(STOP_TIMEOUT, end).await;
            Ok(PullResult::Stopped)
        })
    });
    done.unwrap_or_else(|error| {
        if matches!(error.downcast_ref(), Some(StdoutError::Closed)) {
            return PullResult::OutputClosed;
        }
        error!("{}", chain(&*error));
        PullResult::Incomplete
    })
}

/// Dropping it does not wait for a thread that waits for a slow disk or a name server: that must not delay the command.
fn runtime() -> std::io::Result<CommandRuntime> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_THREADS);
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    Ok(CommandRuntime(Some(runtime)))
}

async fn get_models(
    settings: PullSettings,
    screen: Screen,
    stop: watch::Receiver<bool>,
) -> Result<PullResult, Failure> {
    let log = screen.clone();
    let events = Events::new(move |event| log.log(|| fetch_log::log(&event)));
    let unusable = |error| format!("cannot open the models folder {}: {error}", settings.dir.display());
    let storage = Storage::open(&settings.dir, settings.fetch.links, &events).map_err(unusable)?;
    let http = Http::new(Tokens::from_env(&events), events.clone())?;
    let listing = batches::request_models(&http, &settings.catalogs, &settings.fetch.ids, settings.fetch.wait)
        .await
        .map_err(|error| format!("cannot get the models from the catalog: {}", chain(&error)))?;
    let (context, models) = Context::new(settings.fetch.clone(), storage, http, listing, events, stop);
    let reporter = Arc::new(Reporter::new(Arc::clone(&context), screen, &settings));
    let reports = tokio::spawn(report::run(Arc::clone(&reporter)));
    let planned = fetch::plan_all(&context, &models).await;
    if settings.fetch.dry_run {
        reports.abort();
        stdout::print(&report::dry_run(&context, &planned))?;
    } else {
        fetch::fetch_all(&context, planned).await;
        reports.abort();
        // The final report below must be the last one.
        let _ = reports.await;
        report::finish(&reporter).await;
    }
    let progress = &context.progress;
    let complete = if settings.fetch.dry_run { progress.count("missing") == 0 } else { progress.is_complete() };
    Ok(if complete { PullResult::Complete } else { PullResult::Incomplete })
}
