//! The commands, one module each. They may use every other part of the program; nothing but `app` uses them.

pub(crate) mod check;
pub(crate) mod demo;
mod draw_target;
mod examples;
pub(crate) mod export;
mod fetch_log;
pub(crate) mod generate;
pub(crate) mod health;
pub(crate) mod import;
pub(crate) mod migrate;
mod models_table;
pub(crate) mod probe;
mod progress;
pub(crate) mod pull;
pub(crate) mod serve;
pub(crate) mod stdout;
pub(crate) mod terminal;
pub(crate) mod warm;

use std::error::Error;
use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// The outcome of a command; `app` turns it into an exit status.
pub(crate) type CommandResult = Result<(), Box<dyn Error + Send + Sync>>;

/// The exit status of a command that prints a report.
pub(crate) type ReportResult = Result<u8, Box<dyn Error + Send + Sync>>;

/// The command succeeded except for some entries or rows.
#[derive(Debug, thiserror::Error)]
#[error("rejected {items}: {rejected}, see above")]
pub(crate) struct PartialSuccess {
    rejected: usize,
    items: &'static str,
}

/// Succeeds if nothing was rejected.
fn require_all(rejected: usize, items: &'static str) -> CommandResult {
    if rejected == 0 { Ok(()) } else { Err(PartialSuccess { rejected, items }.into()) }
}

/// Tasks that run before a runtime looks for what has arrived meanwhile. With tokio's 61, a request may wait for as
/// many of those that take a millisecond. A storm of connections is accepted in steps of 16, too.
const EVENT_INTERVAL: u32 = 16;

/// A runtime on the current thread. Dropping it does not wait for the threads that resolve host names: that can't be
/// cancelled.
struct CommandRuntime(Option<Runtime>);

/// Threads that resolve host names at a time. Each is held for as long as a name server does not answer.
const MAX_RESOLVING: usize = 16;
/// Resolver threads are kept: later, the system may refuse to start another one.
const KEEP_RESOLVING: Duration = Duration::from_secs(366 * 24 * 60 * 60);

fn runtime() -> io::Result<CommandRuntime> {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().event_interval(EVENT_INTERVAL);
    builder.max_blocking_threads(MAX_RESOLVING).thread_keep_alive(KEEP_RESOLVING);
    builder.build().map(|runtime| CommandRuntime(Some(runtime)))
}

impl CommandRuntime {
    /// Runs a future to its end.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        // It is there until this is dropped.
        match &self.0 {
            Some(runtime) => runtime.block_on(future),
            None => unreachable!(),
        }
    }
}

impl Drop for CommandRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Makes the call that causes a signal fail instead of ending the process. This is a handler, because a program that is
/// executed would inherit an ignored signal.
pub(crate) fn handle_signal(kind: SignalKind) -> io::Result<()> {
    runtime()?.block_on(async { signal(kind).map(drop) })
}
