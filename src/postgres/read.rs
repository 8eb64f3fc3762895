//! A read in progress: how long it may take, and its end on the server.
//!
//! A read holds locks that a DDL statement of the application waits for, and everything else behind that. So the whole
//! read has a limit, and one that is dropped before its end is cancelled on the server: closing the connection does not
//! end a statement there until it sends something.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_postgres::{CancelToken, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::ReadError;

/// Maximum time for a cancel request, which uses a connection of its own.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);
/// Time in which the server reports that the statement was cancelled. A request that arrives before the server begins
/// the statement has no effect, so it is repeated.
const CANCEL_RETRY: Duration = Duration::from_secs(1);
const CANCEL_ATTEMPTS: u32 = 5;

/// The limits of a read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Maximum time without data from the database.
    pub silence: Duration,
    /// Maximum time for all of it.
    pub total: Duration,
}

/// A view that sorts or aggregates returns its first row late, so a full read may wait this many timeouts for data.
const TIMEOUTS_OF_SILENCE: u32 = 6;
/// The limit of a full read in timeouts: five minutes by default, in which a million models are read over 20 Mbit/s.
const TIMEOUTS_PER_FULL_READ: u32 = 30;

impl Limits {
    /// The limits of a full read, with this timeout of the database.
    pub(crate) fn of_full_read(timeout: Duration) -> Self {
        Self {
            silence: timeout.saturating_mul(TIMEOUTS_OF_SILENCE),
            total: timeout.saturating_mul(TIMEOUTS_PER_FULL_READ),
        }
    }
}

/// How to cancel the statement of a connection.
#[derive(Clone)]
pub(super) struct Canceller {
    pub(super) token: CancelToken,
    pub(super) tls: MakeRustlsConnect,
    /// The task that drives the connection. It ends once the client is dropped and all responses were received.
    pub(super) driver: AbortHandle,
}

impl Canceller {
    /// Cancels the statement of a connection whose client is dropped, until the server has responded.
    async fn cancel(self) {
        for _ in 0..CANCEL_ATTEMPTS {
            let request = async {
                // The TLS library rejects the missing host name of a unix socket, which needs no TLS.
                if self.token.cancel_query(self.tls.clone()).await.is_err() {
                    let _ = self.token.cancel_query(NoTls).await;
                }
            };
            let _ = tokio::time::timeout(CANCEL_LIMIT, request).await;
            tokio::time::sleep(CANCEL_RETRY).await;
            if self.driver.is_finished() {
                return;
            }
        }
        // Closes the connection, so that client_connection_check_interval ends the statement.
        self.driver.abort();
    }
}

/// A read whose statement may be running on the server. If it is dropped before its end, so must the session be.
pub(super) struct Read {
    limits: Limits,
    deadline: Instant,
    /// How to cancel it; `None` once it has ended.
    running: Option<Canceller>,
}

impl Read {
    pub(super) fn start(canceller: &Canceller, limits: Limits) -> Self {
        Self { limits, deadline: Instant::now() + limits.total, running: Some(canceller.clone()) }
    }

    /// Waits for the database within the limits.
    pub(super) async fn wait<T>(
        &mut self,
        wait: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, ReadError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left.min(self.limits.silence), wait).await {
            Ok(Ok(received)) => Ok(received),
            Ok(Err(error)) => {
                self.end();
                Err(error.into())
            }
            Err(_) if left <= self.limits.silence => Err(ReadError::TooLong(self.limits.total)),
            Err(_) => Err(ReadError::Timeout(self.limits.silence)),
        }
    }

    /// Records that the statement has ended.
    pub(super) fn end(&mut self) {
        self.running = None;
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        let Some(canceller) = self.running.take() else { return };
        // Without a runtime the process ends, and client_connection_check_interval ends the statement.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(canceller.cancel());
        }
    }
}
