//! Reasons why a model is not on disk. The messages name the cause and what to do, and contain only the host of a URL.

use std::error::Error;
use std::io;
use std::time::Duration;

use reqwest::Url;

use super::content::Foreign;
use crate::base::error_chain::chain;

/// The reason why a model is missing, or why an attempt to download it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// The catalog does not have the id.
    #[error("it is not in the catalog")]
    NotInCatalog,
    /// The model named here depends on it, and the catalog does not have it.
    #[error("{0:?} depends on it, and it is not in the catalog")]
    MissingDependency(String),
    /// The catalog's entry breaks a rule.
    #[error("its catalog entry is invalid: {0}")]
    Entry(String),
    /// The save path does not name a file inside the models folder.
    #[error("its save path {0}")]
    SavePath(String),
    /// Another model with different content has the same path.
    #[error("another model has the save path {0}")]
    SamePath(String),
    /// The folder of the file cannot be opened or created without leaving the models folder.
    #[error("cannot create its folder inside the models folder (MACHINE_MODELS_LINKS=1 allows links to other places)")]
    Folder(#[source] io::Error),
    /// An operation on the models folder failed.
    #[error("{0} failed")]
    Disk(&'static str, #[source] io::Error),
    /// Too little free disk space.
    #[error("it needs {needed} bytes, but only {free} are free")]
    NoSpace {
        /// Bytes still to be written.
        needed: u64,
        /// Bytes available.
        free: u64,
    },
    /// An HTTP status other than success.
    #[error("{host} returned status {status}{hint}")]
    Status {
        /// HTTP status.
        status: u16,
        /// Host that returned it.
        host: String,
        /// What to do, after a separator; may be empty.
        hint: String,
        /// Value of `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// A file that its hub sends itself, and only for a token.
    #[error("{0} sends the file itself and wants a token, which no cache gets")]
    NotPublic(String),
    /// Too many redirects.
    #[error("more than {0} redirects")]
    Redirects(usize),
    /// A redirect to a URL of another scheme.
    #[error("{0} redirects to a URL that is neither http nor https")]
    RedirectTarget(String),
    /// A redirect that gives up TLS, for a file without a hash.
    #[error("{0} redirects from https to http, and the catalog has no hash that would show another file")]
    Downgrade(String),
    /// No connection, or a broken one.
    #[error("the connection to {host} failed")]
    Connection {
        /// The host.
        host: String,
        /// The cause.
        source: Transport,
    },
    /// No response head within the timeout.
    #[error("{0} did not respond in time")]
    Silent(String),
    /// The body ended early.
    #[error("{0} closed the connection before the end of the file")]
    Incomplete(String),
    /// The transfer was slower than the minimum speed.
    #[error("the transfer from {0} stalled")]
    Stalled(String),
    /// A web page instead of a file.
    #[error("{0} sent a web page (HTML) instead of a file: it may require a token or an accepted licence")]
    Html(String),
    /// Something else that is certainly not the file.
    #[error("{0} sent {what} instead of a file", what = .1.name())]
    Foreign(String, Foreign),
    /// A response that contradicts the request.
    #[error("{0} sent a different range from the one requested")]
    Range(String),
    /// A server that no longer supports ranges.
    #[error("{0} does not support range requests")]
    NoRanges(String),
    /// The file differs from the one at the last request.
    #[error("the file at {0} changed during the download")]
    Changed(String),
    /// The size contradicts the catalog.
    #[error("the file has {server} bytes on the server, but {catalog} in the catalog")]
    Size {
        /// Bytes of the file.
        server: u64,
        /// Bytes according to the catalog, which rounds.
        catalog: u64,
    },
    /// A signal stopped the pull.
    #[error("the pull was interrupted")]
    Stopped,
    /// The content does not match the hash.
    #[error("its hash does not match the one in the catalog")]
    Checksum,
}

impl Problem {
    /// Converts an I/O error; `what` is the operation that failed.
    pub(crate) fn disk(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Disk(what, error)
    }

    /// Whether another attempt may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            Self::Connection { .. }
            | Self::Silent(_)
            | Self::Incomplete(_)
            | Self::Stalled(_)
            | Self::Range(_)
            | Self::NoRanges(_)
            | Self::Changed(_) => true,
            _ => false,
        }
    }

    /// Whether a response to a range request shows that this server's ranges cannot be used, so that the whole file is
    /// to be requested.
    pub(crate) fn contradicts_ranges(&self) -> bool {
        match self {
            // 403: some servers refuse ranges, or only large ones.
            Self::Status { status, .. } => matches!(status, 400 | 403 | 405 | 406 | 412 | 416 | 501),
            Self::Range(_) | Self::NoRanges(_) | Self::Changed(_) => true,
            _ => false,
        }
    }

    /// Whether the server may have refused one connection too many.
    pub(crate) fn is_overload(&self) -> bool {
        matches!(self, Self::Status { status: 429 | 503, .. })
    }

    /// Whether it is the status of a response.
    pub(crate) fn is_status(&self) -> bool {
        matches!(self, Self::Status { .. })
    }

    /// Whether another server would not help.
    pub(crate) fn is_of_this_machine(&self) -> bool {
        matches!(self, Self::Disk(..) | Self::NoSpace { .. } | Self::Stopped)
    }

    /// Whether the file has to be opened again, because a network file system lost its handle.
    pub(crate) fn is_stale(&self) -> bool {
        let (Self::Disk(_, error) | Self::Folder(error)) = self else { return false };
        error.kind() == io::ErrorKind::StaleNetworkFileHandle
    }

    /// The time that the server asked to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A short name for metrics and the status file.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NotInCatalog | Self::MissingDependency(_) => "not_in_catalog",
            Self::Entry(_) => "entry",
            Self::SavePath(_) | Self::SamePath(_) | Self::Folder(_) => "save_path",
            Self::Disk(..) => "disk",
            Self::NoSpace { .. } => "no_room",
            Self::Status { status: 401 | 403, .. } | Self::NotPublic(_) => "unauthorized",
            Self::Status { status: 404 | 410, .. } => "not_found",
            Self::Status { status: 429, .. } => "rate_limited",
            Self::Status { .. } => "status",
            Self::Redirects(_) | Self::RedirectTarget(_) | Self::Downgrade(_) => "redirect",
            Self::Connection { .. } | Self::Silent(_) | Self::Incomplete(_) => "connection",
            Self::Stalled(_) => "stalled",
            Self::Html(_) => "html",
            Self::Foreign(..) => "content",
            Self::Range(_) | Self::NoRanges(_) | Self::Changed(_) => "server",
            Self::Size { .. } => "size",
            Self::Stopped => "stopped",
            Self::Checksum => "checksum",
        }
    }

    /// The message, with those of its sources.
    pub(crate) fn text(&self) -> String {
        chain(self)
    }
}

/// An attempt failed.
pub(crate) enum AttemptError {
    /// Another attempt may succeed.
    Retryable(Problem),
    /// This server's ranges cannot be used, or gave bytes of different versions: the whole file in one response may
    /// succeed.
    TryWhole(Problem),
    /// Another attempt would fail in the same way.
    Fatal(Problem),
}

impl AttemptError {
    /// The reason.
    pub(crate) fn problem(&self) -> &Problem {
        let (Self::Retryable(problem) | Self::TryWhole(problem) | Self::Fatal(problem)) = self;
        problem
    }

    /// The reason.
    pub(crate) fn into_problem(self) -> Problem {
        let (Self::Retryable(problem) | Self::TryWhole(problem) | Self::Fatal(problem)) = self;
        problem
    }
}

impl From<Problem> for AttemptError {
    fn from(problem: Problem) -> Self {
        if problem.contradicts_ranges() {
            Self::TryWhole(problem)
        } else if problem.is_transient() {
            Self::Retryable(problem)
        } else {
            Self::Fatal(problem)
        }
    }
}

/// An error of the HTTP client without its URL, which may contain a signature. It prints its causes, and has none.
#[derive(Debug)]
pub(crate) struct Transport(reqwest::Error);

impl From<reqwest::Error> for Transport {
    fn from(error: reqwest::Error) -> Self {
        Self(error.without_url())
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client's own message says only that a request failed.
        match self.0.source() {
            Some(source) => f.write_str(&chain(source)),
            None => self.0.fmt(f),
        }
    }
}

impl Error for Transport {}

/// The host of a URL, which is the only part that may be shown.
pub(crate) fn host(url: &Url) -> String {
    url.host_str().unwrap_or("?").to_owned()
}
