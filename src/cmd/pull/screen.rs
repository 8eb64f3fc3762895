//! The terminal of a pull: progress bars, between which log lines are written.

use indicatif::MultiProgress;

use crate::base::stderr::Stderr;
use crate::cmd::draw_target::draw_target;

/// The terminal with the progress bars, if there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Screen(Option<MultiProgress>);

impl Screen {
    /// Draws on standard error if that is a terminal which understands control sequences, and `enabled` is true.
    pub(crate) fn of_stderr(stderr: &Stderr, enabled: bool) -> Self {
        let bars = || MultiProgress::with_draw_target(draw_target(stderr));
        Self((enabled && stderr.can_draw()).then(bars))
    }

    /// The container of the bars.
    pub(crate) fn bars(&self) -> Option<&MultiProgress> {
        self.0.as_ref()
    }

    /// Writes a log line without mixing it with the bars.
    pub(crate) fn log(&self, write: impl FnOnce()) {
        match &self.0 {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}
