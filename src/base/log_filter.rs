//! The filter of log lines, which can be changed while the program runs.

use std::sync::Arc;

use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Error;

use super::stderr::Stderr;

/// The program's log, for a command that can change what is logged.
#[derive(Clone, Copy)]
pub(crate) struct Log<'a> {
    /// Where it is written.
    pub(crate) stderr: &'a Stderr,
    /// What is written.
    pub(crate) filter: &'a LogFilter,
}

/// What [`LogFilter::log_more`] logs.
const MORE: &str = "debug";

/// A handle to the filter of the program's log.
#[derive(Clone)]
pub(crate) struct LogFilter {
    configured: Arc<str>,
    replace: Arc<dyn Fn(EnvFilter) -> Result<(), Error> + Send + Sync>,
}

impl LogFilter {
    /// `configured` is the filter that is in use, and `replace` puts another one in its place.
    pub(crate) fn new(
        configured: &str,
        replace: impl Fn(EnvFilter) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        Self { configured: configured.into(), replace: Arc::new(replace) }
    }

    /// Logs everything of level debug and above.
    pub(crate) fn log_more(&self) {
        self.set(MORE);
    }

    /// Logs what is configured.
    pub(crate) fn log_as_configured(&self) {
        self.set(&self.configured);
    }

    fn set(&self, filter: &str) {
        match (self.replace)(EnvFilter::new(filter)) {
            Ok(()) => info!(filter, "the log filter was changed"),
            Err(error) => warn!(filter, %error, "the log filter cannot be changed"),
        }
    }
}
