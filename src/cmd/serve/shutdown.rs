//! Signals, and the end of a server: grace period, drain, last state, exit. docs/design.md has the order of a shutdown.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::Threads;
use crate::base::log_filter::LogFilter;

/// After the grace period and the drain timeout, time for the loader to end and the last state to be written. Then the
/// process exits, even if a disk or a name server does not answer: `fsync` and `getaddrinfo` cannot be cancelled.
const EXIT_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long each part of a shutdown may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShutdownTimes {
    /// Time to keep serving while not ready.
    pub(super) grace: Duration,
    /// Maximum time for open connections to finish.
    pub(super) drain: Duration,
}

/// The signals that a server handles.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    log_more: Signal,
    log_as_configured: Signal,
}

impl Signals {
    /// Installs the handlers. After one SIGTERM or SIGINT, the next one exits in the handler itself: at any time, and
    /// whatever the threads wait for.
    pub(super) fn new() -> io::Result<Self> {
        let received = Arc::new(AtomicBool::new(false));
        for number in [SIGTERM, SIGINT] {
            // They run in this order: the first signal finds the flag unset and only sets it, the next one exits.
            signal_hook::flag::register_conditional_shutdown(number, 0, Arc::clone(&received))?;
            signal_hook::flag::register(number, Arc::clone(&received))?;
        }
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            log_more: signal(SignalKind::user_defined1())?,
            log_as_configured: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for a signal to shut down: SIGTERM, SIGINT, or SIGHUP if it means that the terminal was closed. SIGUSR1
    /// and SIGUSR2 change what is logged.
    pub(super) async fn shutdown(&mut self, filter: &LogFilter) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {}
                _ = self.log_more.recv() => {
                    filter.log_more();
                    continue;
                }
                _ = self.log_as_configured.recv() => {
                    filter.log_as_configured();
                    continue;
                }
            }
            if io::stdin().is_terminal() {
                return;
            }
            info!("SIGHUP is ignored: settings are read at the start, SIGTERM shuts down, and SIGUSR1 logs more");
        }
    }
}

/// Keeps serving for the grace period, then stops accepting connections and waits for the open ones to finish, for the
/// loader to end, and for the last state to be written.
pub(super) async fn drain(threads: &Threads, times: ShutdownTimes) {
    info!(grace_seconds = times.grace.as_secs_f64(), "shutting down: no longer ready");
    tokio::time::sleep(times.grace).await;
    threads.stop.cancel();
    let parts =
        [("workers", &threads.workers), ("loader", &threads.loader), ("snapshot writer", &threads.snapshot_writer)];
    for (_, threads) in parts {
        threads.close();
    }
    let ended = async {
        // A worker ends when its last connection is closed.
        if tokio::time::timeout(times.drain, threads.workers.wait()).await.is_err() {
            warn!(after_seconds = times.drain.as_secs_f64(), "drain timeout: exiting with open connections");
        }
        // The end of the loader closes the channel that the snapshot writer reads from.
        threads.loader.wait().await;
        threads.snapshot_writer.wait().await;
    };
    match tokio::time::timeout(times.drain + EXIT_TIMEOUT, ended).await {
        Ok(()) => info!("stopped"),
        Err(_) => {
            let running: Vec<_> =
                parts.iter().filter(|(_, threads)| !threads.is_empty()).map(|(name, _)| *name).collect();
            warn!(running = running.join(", "), "stopped without waiting for threads that have not ended");
        }
    }
}
