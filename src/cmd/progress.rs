//! A progress bar, shown only on a terminal and only after a second.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::draw_target::draw_target;
use crate::base::stderr::Stderr;

/// Faster imports show no bar.
const SHOW_AFTER: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// The bar; removed from the terminal when it is dropped.
pub(crate) struct Progress {
    stderr: Stderr,
    bar: ProgressBar,
    started: Instant,
    shown: Cell<bool>,
}

impl Progress {
    /// A bar that is not shown yet.
    pub(crate) fn new(stderr: &Stderr) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { stderr: stderr.clone(), bar, started: Instant::now(), shown: Cell::new(false) }
    }

    /// Begins a task of `steps` steps; 0 if the number is unknown.
    pub(crate) fn begin(&self, task: &'static str, steps: usize) {
        let template = if steps > 0 { "{msg} {bar:40} {pos}/{len}" } else { "{msg} {spinner} {elapsed}" };
        // The templates are valid; a default bar would do as well.
        self.bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_length(steps as u64);
        self.bar.set_position(0);
        self.bar.set_message(task);
    }

    /// Completes a step.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
        self.show();
    }

    /// Waits for `work` while the bar is animated.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = tick.tick() => {
                    self.show();
                    self.bar.tick();
                }
            }
        }
    }

    fn show(&self) {
        if !self.shown.get() && self.started.elapsed() >= SHOW_AFTER {
            self.shown.set(true);
            self.bar.set_draw_target(draw_target(&self.stderr));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
