//! Descriptors: how many this process may have, and who gets them. Connections never get the last ones, so that the
//! database is reached again, the snapshot file is written and operators are answered, however many clients come.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For what is neither a connection nor a thread's: standard streams, files, the session with the database and what
/// looking up its address takes.
const OWN: u64 = 24;
/// A thread's listener, its runtime's own, and a connection that it closes at once.
const PER_THREAD: u64 = 8;
/// Threads beside those that serve: main, loader, saver, operations.
const OTHER_THREADS: u64 = 4;
/// Connections below which there is no sense in serving.
const LEAST: u64 = 16;
/// Scrapers and probes are few; what comes beyond waits.
const ADMIN_CONNECTIONS: u64 = 256;

/// How many connections there may be.
#[derive(Debug, PartialEq, Eq)]
pub struct Shares {
    /// To the API.
    pub connections: usize,
    /// To the port for operations.
    pub admin: usize,
}

/// Not enough to begin with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("only {allowed} descriptors are allowed, {least} are the least: raise `ulimit -n` (LimitNOFILE= in a unit)")]
pub struct TooFew {
    allowed: u64,
    least: u64,
}

/// Raises the limit as far as this process may, and divides what there is.
///
/// # Errors
/// There are not enough to serve anybody.
pub fn divide(connections: usize, threads: usize) -> Result<Shares, TooFew> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    // Without a number there is no limit.
    let allowed = raised.map_or(current, |()| maximum).unwrap_or(u64::MAX);
    let shares = shares(allowed, connections, threads)?;
    if shares.connections < connections {
        let fewer = shares.connections;
        tracing::warn!(
            connections = fewer,
            wanted = connections,
            allowed,
            "fewer connections than set: raise `ulimit -n`"
        );
    }
    Ok(shares)
}

fn shares(allowed: u64, connections: usize, threads: usize) -> Result<Shares, TooFew> {
    let reserved = OWN + PER_THREAD * (threads as u64 + OTHER_THREADS);
    let admin = ADMIN_CONNECTIONS.min(allowed / LEAST);
    let left = allowed.saturating_sub(reserved).saturating_sub(admin);
    if left < LEAST {
        // A sixteenth of all is for operations.
        return Err(TooFew { allowed, least: (reserved + LEAST) * LEAST / (LEAST - 1) + 1 });
    }
    Ok(Shares { connections: connections.min(left as usize), admin: admin as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_what_is_left_and_never_all() {
        assert_eq!(shares(20_000, 16_384, 2), Ok(Shares { connections: 16_384, admin: 256 }));
        assert_eq!(shares(u64::MAX, 16_384, 64), Ok(Shares { connections: 16_384, admin: 256 }));
        assert_eq!(shares(1024, 16_384, 2), Ok(Shares { connections: 1024 - 72 - 64, admin: 64 }));
        let Err(TooFew { least, .. }) = shares(64, 16_384, 2) else { panic!("64 are too few") };
        assert!(shares(least, 16_384, 2).is_ok() && shares(least - 2, 16_384, 2).is_err(), "{least}");
    }
}
