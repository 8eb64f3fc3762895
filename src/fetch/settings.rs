//! The settings of downloads.

use std::time::Duration;

use reqwest::Url;

/// The settings of all downloads of a process.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Ids that were asked for.
    pub(crate) ids: Vec<String>,
    /// Base URLs of caches, in the order in which they are tried.
    pub(crate) caches: Vec<Url>,
    /// Time to wait for hosts that are down.
    pub(crate) wait: Duration,
    /// Consecutive attempts without progress before giving up on a file.
    pub(crate) tries: u32,
    /// Files downloaded concurrently.
    pub(crate) parallel: usize,
    /// Connections per file.
    pub(crate) connections: usize,
    /// Whether folders may be symbolic links that lead out of the models folder.
    pub(crate) links: bool,
    /// Whether files that were verified and have not changed since are hashed as well.
    pub(crate) verify_always: bool,
    /// Bytes per second below which a connection counts as stalled.
    pub(crate) min_speed: u64,
    /// Time over which the speed is measured.
    pub(crate) stall: Duration,
    /// Whether unneeded files are removed.
    pub(crate) prune: bool,
    /// Bytes of disk space to leave free.
    pub(crate) keep_free: u64,
    /// Whether only the plan is made.
    pub(crate) dry_run: bool,
}
