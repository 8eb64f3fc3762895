//! A bar for who waits: on a terminal alone, and not before a second has passed.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const NOT_BEFORE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// The bar; gone when it is dropped.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    shown: Cell<bool>,
}

impl Default for Progress {
    fn default() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { bar, started: Instant::now(), shown: Cell::new(false) }
    }
}

impl Progress {
    /// Something of so many steps begins; 0 = nobody knows how many.
    pub fn begin(&self, what: &'static str, steps: usize) {
        let template = if steps > 0 { "{msg} {bar:40} {pos}/{len}" } else { "{msg} {spinner} {elapsed}" };
        // The templates are right; a plain bar would do as well.
        self.bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_length(steps as u64);
        self.bar.set_position(0);
        self.bar.set_message(what);
    }

    /// A step is done.
    pub fn step(&self) {
        self.bar.inc(1);
        self.show();
    }

    /// Waits for something, and shows that it does.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
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
        if !self.shown.get() && self.started.elapsed() >= NOT_BEFORE {
            self.shown.set(true);
            // It draws nothing where that is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
