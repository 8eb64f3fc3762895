//! File descriptors: raise the limit of this process, keep a reserve, and cap connections to the rest, so that the
//! database is reached again, the snapshot file is written and operators get a response however many clients connect.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For everything that is neither a connection nor a thread's own: standard streams, files, the database session and
/// name resolution.
const RESERVED_FDS: u64 = 24;
/// A thread's listener, its runtime, and a connection that it accepts only to close.
const FDS_PER_THREAD: u64 = 8;
/// Threads beside the workers: main, loader, snapshot writer, admin.
const OTHER_THREADS: u64 = 4;
/// With fewer connections there is no point in serving.
const MIN_CONNECTIONS: u64 = 16;
/// Scrapers and probes are few. Without an admin port, as many clients are accepted that wait for their turn: a probe
/// behind more of them waits, too.
const OPS_CONNECTIONS: u64 = 1024;

/// Maximum open connections.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    /// On the API port, all threads together.
    pub(crate) api: usize,
    /// On the admin port; without one, those on the API port that are accepted over its limit.
    pub(crate) ops: usize,
}

/// The limit is too low to serve at all.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "only {allowed} file descriptors are allowed and at least {required} are needed: \
     raise `ulimit -n` (LimitNOFILE= in a unit)"
)]
pub(crate) struct TooFewDescriptors {
    allowed: u64,
    required: u64,
}

/// Raises the descriptor limit as far as this process may, and allocates it to at most `connections` API connections.
///
/// # Errors
/// The limit leaves fewer than `MIN_CONNECTIONS`.
pub(crate) fn allocate(connections: usize, threads: usize) -> Result<ConnectionLimits, TooFewDescriptors> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    // `None` is RLIM_INFINITY.
    let allowed = raised.map_or(current, |()| maximum).unwrap_or(u64::MAX);
    let limits = limits(allowed, connections, threads)?;
    if limits.api < connections {
        tracing::warn!(
            connections = limits.api,
            configured = connections,
            allowed,
            "serving fewer connections than configured: raise `ulimit -n`"
        );
    }
    Ok(limits)
}

fn limits(allowed: u64, connections: usize, threads: usize) -> Result<ConnectionLimits, TooFewDescriptors> {
    let reserved = RESERVED_FDS + FDS_PER_THREAD * (threads as u64 + OTHER_THREADS);
    let ops = OPS_CONNECTIONS.min(allowed / MIN_CONNECTIONS);
    let left = allowed.saturating_sub(reserved).saturating_sub(ops);
    if left < MIN_CONNECTIONS {
        // One in sixteen is for operators.
        let required = (reserved + MIN_CONNECTIONS) * MIN_CONNECTIONS / (MIN_CONNECTIONS - 1) + 1;
        return Err(TooFewDescriptors { allowed, required });
    }
    Ok(ConnectionLimits { api: connections.min(left as usize), ops: ops as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_what_the_reserve_leaves() {
        assert_eq!(limits(20_000, 16_384, 2), Ok(ConnectionLimits { api: 16_384, ops: 1024 }));
        assert_eq!(limits(u64::MAX, 16_384, 64), Ok(ConnectionLimits { api: 16_384, ops: 1024 }));
        assert_eq!(limits(1024, 16_384, 2), Ok(ConnectionLimits { api: 1024 - 72 - 64, ops: 64 }));
        let Err(TooFewDescriptors { required, .. }) = limits(64, 16_384, 2) else { panic!("64 are too few") };
        assert!(limits(required, 16_384, 2).is_ok() && limits(required - 2, 16_384, 2).is_err(), "{required}");
    }
}
