//! The commands, one module each. They may use every other part of the program; nothing but `app` uses them.

pub mod check;
pub mod demo;
mod examples;
pub mod export;
pub mod health;
pub mod import;
pub mod migrate;
mod models_table;
pub mod probe;
mod progress;
pub mod pull;
pub mod serve;
mod terminal;

use std::error::Error;
use std::io;

use tokio::runtime::{Builder, Runtime};

/// The outcome of a command; `app` turns it into an exit status.
pub type CommandResult = Result<(), Box<dyn Error + Send + Sync>>;

/// The command succeeded except for some entries or rows.
#[derive(Debug, thiserror::Error)]
#[error("rejected {items}: {rejected}, see above")]
pub struct PartialSuccess {
    rejected: usize,
    items: &'static str,
}

/// Succeeds if nothing was rejected.
fn require_all(rejected: usize, items: &'static str) -> CommandResult {
    if rejected == 0 { Ok(()) } else { Err(PartialSuccess { rejected, items }.into()) }
}

/// A runtime on the current thread.
fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
