//! The limit of file descriptors, raised for the downloads. The command gets the former one: programs that use `select`
//! fail with high descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The raised limit. Dropping this restores the former one.
#[derive(Debug)]
pub(crate) struct FdLimit {
    former: Rlimit,
    /// Descriptors that are allowed now.
    pub(crate) allowed: u64,
}

impl FdLimit {
    /// Raises the limit as far as this process may.
    pub(crate) fn raise() -> Self {
        let former = getrlimit(Resource::Nofile);
        let raised = setrlimit(Resource::Nofile, Rlimit { current: former.maximum, maximum: former.maximum });
        // `None` is RLIM_INFINITY.
        let allowed = raised.map_or(former.current, |()| former.maximum).unwrap_or(u64::MAX);
        Self { former, allowed }
    }
}

impl Drop for FdLimit {
    fn drop(&mut self) {
        // It is not higher than the hard limit.
        let _ = setrlimit(Resource::Nofile, self.former);
    }
}
