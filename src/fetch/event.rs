//! What happens during downloads and is worth a log line. Bytes and phases are in [`Progress`], which is polled.
//!
//! [`Progress`]: super::progress::Progress

use std::fmt;
use std::io;
use std::sync::Arc;

use super::error::Problem;
use super::progress::ModelProgress;
use crate::base::http_client::NoCertificates;

/// Something that happened.
pub(crate) enum Event<'a> {
    /// An attempt failed and is followed by another.
    AttemptFailed { model: &'a str, host: &'a str, problem: &'a Problem },
    /// A cache is not used any more in this pull, after this problem.
    CacheGivenUp { cache: &'a str, problem: &'a Problem },
    /// What a cache sent does not match the hash of the model.
    CacheWrong { model: &'a str, cache: &'a str, problem: &'a Problem },
    /// The model got its outcome.
    Finished(&'a ModelProgress),
    /// The file cannot be a link to one with the same content, so it is downloaded.
    NotLinked { model: &'a str, error: &'a io::Error },
    /// The record cannot be created, so files are hashed at every start.
    RecordNotCreated(&'a io::Error),
    /// The record is damaged, so files are hashed again.
    RecordDamaged(&'a io::Error),
    /// The record cannot be written, so files will be hashed again.
    RecordNotWritten(&'a io::Error),
    /// A file that is no longer needed was removed.
    Removed { path: &'a str, model: &'a str, bytes: u64 },
    /// A file that is no longer needed cannot be removed.
    NotRemoved { path: &'a str, error: &'a io::Error },
    /// A redirect from https to http, after which only the hash protects the file.
    Downgrade { from: &'a str, to: &'a str },
    /// There are no certificates, so https will fail.
    NoCertificates(&'a NoCertificates),
    /// This variable does not name a proxy, and is ignored. Its value may contain a password.
    ProxyIgnored(&'a str),
    /// `HF_ENDPOINT` is not a plain URL, and is ignored.
    EndpointIgnored,
    /// The token in this variable has characters that are not allowed, and is ignored.
    TokenIgnored(&'a str),
}

/// Who receives the events; by default nobody.
#[derive(Clone)]
pub(crate) struct Events(Arc<dyn Fn(Event<'_>) + Send + Sync>);

impl Events {
    pub(crate) fn new(receive: impl Fn(Event<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(receive))
    }

    pub(super) fn send(&self, event: Event<'_>) {
        (self.0)(event);
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}
