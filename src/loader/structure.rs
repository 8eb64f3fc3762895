//! Watches what the view depends on besides the rows of its tables: definitions, partitions, triggers. No trigger tells
//! of changes to these, so a fingerprint of them is compared with that of the last full read.

use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::output::Output;
use crate::base::error_chain::chain;
use crate::postgres::error::ReadError;
use crate::postgres::session::Session;

/// The pause after a read, as a multiple of its duration: with thousands of partitions a read takes longer than the
/// 0.5 ms of a few tables, and must not keep a core busy.
const PAUSE_PER_READ: u32 = 100;
/// The longest pause in poll intervals, or this time: a read that was slow for once, on a busy or a cold server, must
/// not delay the next one by minutes.
const MAX_PAUSE_POLLS: u32 = 10;
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// The structure that the catalog was read under, and the tables that no trigger watches.
#[derive(Default)]
pub(crate) struct Structure {
    /// The fingerprint when it was read last.
    seen: Option<String>,
    /// The fingerprint before the last full read.
    loaded: Option<String>,
    /// The fingerprint that the last list of unwatched tables belongs to, and this list.
    listed: Option<String>,
    unwatched: Vec<String>,
    next_read: Option<Instant>,
}

impl Structure {
    /// Sets the fingerprint of a catalog that was read by another process.
    pub(crate) fn restore(&mut self, fingerprint: Option<String>) {
        self.loaded = fingerprint;
    }

    /// Makes the next [`Structure::has_changed`] read the fingerprint: the connection is a new one.
    pub(crate) fn on_connect(&mut self) {
        self.next_read = None;
    }

    /// Whether the structure differs from that of the last full read; reads it at most once per `interval`.
    pub(crate) async fn has_changed(
        &mut self,
        session: &Session,
        interval: Duration,
        output: &Output,
    ) -> Result<bool, ReadError> {
        if self.next_read.is_some_and(|at| Instant::now() < at) {
            return Ok(false);
        }
        let started = Instant::now();
        self.read(session, output).await?;
        self.next_read = Some(started + pause(started.elapsed(), interval));
        // A view that was dropped is reported by the next read, and its successor has another fingerprint.
        let changed = self.seen.as_ref().is_some_and(|seen| !seen.is_empty()) && self.seen != self.loaded;
        if changed && self.loaded.is_some() {
            info!("the view, or what it depends on, has changed: reading everything");
        }
        Ok(changed)
    }

    /// Reads the fingerprint, and if it is another one, publishes which tables are not watched. To be called before a
    /// full read, so that the read sees this structure or a later one.
    pub(crate) async fn read(&mut self, session: &Session, output: &Output) -> Result<(), ReadError> {
        match self.try_read(session, output).await {
            // A lock on a table, for example. Reads of the view report what concerns them.
            Err(error) if error.is_about_the_schema() || error.is_reported_by_the_server() => {
                debug!(error = chain(&error), "the structure of the view can't be read");
                Ok(())
            }
            result => result,
        }
    }

    async fn try_read(&mut self, session: &Session, output: &Output) -> Result<(), ReadError> {
        let fingerprint = session.structure().await?;
        // Without a view there are no tables; the read that follows reports it.
        let list = !fingerprint.is_empty() && self.listed.as_ref() != Some(&fingerprint);
        self.seen = Some(fingerprint);
        if !list {
            return Ok(());
        }
        let unwatched = session.unwatched_tables().await?;
        self.listed.clone_from(&self.seen);
        output.publish_unwatched(unwatched.clone().into());
        if self.unwatched != unwatched {
            log(&unwatched);
            self.unwatched = unwatched;
        }
        Ok(())
    }

    /// Records that everything was read after the last [`Structure::read`]. Returns whether the structure is the same
    /// as at the full read before.
    pub(crate) fn on_full_read(&mut self) -> bool {
        let same = self.loaded == self.seen;
        self.loaded.clone_from(&self.seen);
        same
    }

    /// The fingerprint of the last full read.
    pub(crate) fn loaded(&self) -> Option<&String> {
        self.loaded.as_ref()
    }
}

/// The time from the beginning of a read that took this long to the next one.
fn pause(took: Duration, interval: Duration) -> Duration {
    (took * PAUSE_PER_READ).clamp(interval, MAX_PAUSE.max(interval * MAX_PAUSE_POLLS))
}

/// Maximum number of tables that are named in the log; a partitioned table may have thousands.
const MAX_LOGGED_TABLES: usize = 10;

fn log(unwatched: &[String]) {
    if unwatched.is_empty() {
        info!("every table that the view reads is watched");
        return;
    }
    let tables = unwatched.iter().take(MAX_LOGGED_TABLES).map(String::as_str).collect::<Vec<_>>().join(", ");
    warn!(
        number = unwatched.len(),
        %tables,
        "tables of the view are not watched, so only an audit finds changes to their rows: `model-catalog check` \
         prints the statements that repair this"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_read_delays_the_next_one_by_ten_polls_at_most() {
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(5));
        for (took, interval, expected) in
            [(1, short, 100), (500, short, 10_000), (1, long, 5_000), (2_000, long, 50_000)]
        {
            assert_eq!(pause(Duration::from_millis(took), interval), Duration::from_millis(expected));
        }
    }
}
