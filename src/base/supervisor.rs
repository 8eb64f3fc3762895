//! Threads that are restarted when they end by a panic or an error.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntCounterVec;
use tokio_util::task::TaskTracker;
use tracing::error;

use crate::base::error_chain::chain;

/// Pause before a thread is restarted.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// A thread that has run for this long has been restarted successfully.
const STABLE: Duration = Duration::from_secs(10);
/// Time for which restarts of a thread that serves requests may fail before it counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(30);

/// The purpose of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// It accepts connections. If it can't be restarted, its connections get no response, and only a restart of the
    /// process helps.
    Serve,
    /// Requests are served without it, from the last catalog. It is restarted for as long as the process runs.
    Support,
}

/// The result of a thread: `Ok` if it was told to stop.
pub(crate) type ThreadResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Starts the threads of a server and watches them.
#[derive(Debug)]
pub(crate) struct Supervisor {
    threads: Mutex<Vec<Arc<Thread>>>,
    restarts: IntCounterVec,
}

#[derive(Debug)]
struct Thread {
    name: String,
    duty: Duty,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The start of the current run.
    started: Instant,
    /// When the first of consecutive unstable runs ended.
    failing_since: Option<Instant>,
    /// The thread ended without being told to stop.
    ended: bool,
}

impl Supervisor {
    /// Counts restarts in `restarts`, whose label is the name of the thread.
    pub(crate) fn new(restarts: IntCounterVec) -> Self {
        Self { threads: Mutex::default(), restarts }
    }

    /// Starts a thread that calls `run` until that returns `Ok`; after a panic or an error, again after a pause.
    /// `tracker` counts the thread until it has ended.
    pub(crate) fn spawn(
        &self,
        name: String,
        duty: Duty,
        tracker: &TaskTracker,
        mut run: impl FnMut() -> ThreadResult + Send + 'static,
    ) -> io::Result<()> {
        let state = State { started: Instant::now(), failing_since: None, ended: false };
        let thread = Arc::new(Thread { name: name.clone(), duty, state: Mutex::new(state) });
        let (watched, token) = (Arc::clone(&thread), tracker.token());
        let restarts = self.restarts.with_label_values(&[&name]);
        std::thread::Builder::new().name(name).spawn(move || {
            let _token = token;
            let guard = EndGuard(watched);
            let thread = &guard.0;
            loop {
                thread.state.lock().started = Instant::now();
                match catch_unwind(AssertUnwindSafe(&mut run)) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => {
                        error!(thread = thread.name, error = chain(&*error), "a thread failed, restarting it");
                    }
                    // The panic hook has logged the reason.
                    Err(_) => error!(thread = thread.name, "a thread panicked, restarting it"),
                }
                restarts.inc();
                thread.state.lock().failed(Instant::now());
                std::thread::sleep(RESTART_PAUSE);
            }
        })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// The name of a thread that cannot be restarted.
    pub(crate) fn lost_thread(&self) -> Option<String> {
        let now = Instant::now();
        let threads = self.threads.lock();
        threads.iter().find(|thread| thread.state.lock().is_lost(thread.duty, now)).map(|thread| thread.name.clone())
    }
}

impl State {
    fn failed(&mut self, now: Instant) {
        if self.failing_since.is_none() || now.duration_since(self.started) >= STABLE {
            self.failing_since = Some(now);
        }
    }

    fn is_lost(&self, duty: Duty, now: Instant) -> bool {
        let fails = self.failing_since.is_some_and(|since| now.duration_since(since) >= LOST_AFTER)
            && now.duration_since(self.started) < STABLE;
        self.ended || (duty == Duty::Serve && fails)
    }
}

/// Records that a thread ends by a panic that its loop could not catch.
struct EndGuard(Arc<Thread>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.state.lock().ended = std::thread::panicking();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Opts;

    fn restarts() -> IntCounterVec {
        IntCounterVec::new(Opts::new("restarts", "Restarts."), &["thread"]).expect("a valid name")
    }

    #[tokio::test]
    async fn a_thread_is_restarted_after_a_panic_and_an_error_until_it_is_told_to_stop() {
        let restarts = restarts();
        let (supervisor, tracker) = (Supervisor::new(restarts.clone()), TaskTracker::new());
        let mut runs = 0;
        let run = move || {
            runs += 1;
            match runs {
                1 => panic!("deliberate panic"),
                2 => Err("cannot start".into()),
                _ => Ok(()),
            }
        };
        supervisor.spawn("worker".into(), Duty::Serve, &tracker, run).expect("a thread");
        tracker.close();
        tracker.wait().await;
        assert_eq!(restarts.with_label_values(&["worker"]).get(), 2);
        assert_eq!(supervisor.lost_thread(), None);
    }

    #[tokio::test]
    async fn a_panic_that_cannot_be_caught_loses_the_thread() {
        struct PanicsOnDrop;
        impl Drop for PanicsOnDrop {
            fn drop(&mut self) {
                panic!("deliberate panic on drop");
            }
        }
        let (supervisor, tracker) = (Supervisor::new(restarts()), TaskTracker::new());
        let run = || std::panic::panic_any(PanicsOnDrop);
        supervisor.spawn("loader".into(), Duty::Support, &tracker, run).expect("a thread");
        tracker.close();
        tracker.wait().await;
        assert_eq!(supervisor.lost_thread().as_deref(), Some("loader"));
    }

    #[test]
    fn a_serving_thread_whose_restarts_keep_failing_is_lost_until_it_runs() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut state = State { started: begin, failing_since: None, ended: false };
        for second in 60..100 {
            state.failed(after(second));
            let lost = second >= 90;
            assert_eq!(state.is_lost(Duty::Serve, after(second)), lost, "{second}");
            assert!(!state.is_lost(Duty::Support, after(second)), "{second}");
            state.started = after(second);
        }
        assert!(!state.is_lost(Duty::Serve, after(110)), "it has run for ten seconds");
        state.failed(after(120));
        assert!(!state.is_lost(Duty::Serve, after(120)), "the first failure after a stable run");
    }
}
