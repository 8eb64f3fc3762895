//! Why a model is not on disk. Texts name the cause and what to do; none holds more of an address than its host.

use std::error::Error;
use std::io;
use std::time::Duration;

/// Why a model is missing, or why an attempt to download it failed.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The catalog lists it as unknown.
    #[error("the catalog does not have it")]
    NotInCatalog,
    /// Another model depends on it and the catalog does not have it.
    #[error("{0:?} depends on it and the catalog does not have it")]
    MissingDependency(String),
    /// The catalog's entry breaks a rule.
    #[error("its catalog entry cannot be used: {0}")]
    Entry(String),
    /// The save path is not one below the models folder.
    #[error("its save path {0}")]
    SavePath(String),
    /// Two models want the same path and are not the same file.
    #[error("another model has the save path {0}")]
    SamePath(String),
    /// The folder of the file cannot be opened or made without leaving the models folder.
    #[error("its folder cannot be made below the models folder (MACHINE_MODELS_LINKS=1 allows links to elsewhere)")]
    Folder(#[source] io::Error),
    /// An operation on the models folder failed.
    #[error("{0} failed")]
    Disk(&'static str, #[source] io::Error),
    /// The disk is too small.
    #[error("it needs {needed} bytes, and {free} are free")]
    NoRoom {
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that may be used.
        free: u64,
    },
    /// A status that is not a success.
    #[error("status {status} from {host}{hint}")]
    Status {
        /// HTTP status.
        status: u16,
        /// Host that sent it.
        host: String,
        /// What to do, with a separator before it; or nothing.
        hint: String,
        /// What the server said of another attempt.
        retry_after: Option<Duration>,
    },
    /// More redirects than a sane server sends.
    #[error("it is redirected more than {0} times")]
    Redirects(usize),
    /// A redirect to something that is no http or https URL.
    #[error("{0} redirects it to an address that is neither http nor https")]
    RedirectTarget(String),
    /// No response, or a broken connection.
    #[error("the connection to {host} failed: {source}")]
    Connection {
        /// Host that was asked.
        host: String,
        /// What went wrong.
        source: Transport,
    },
    /// No response head within the time.
    #[error("{0} sends no response")]
    Silent(String),
    /// The body ended early.
    #[error("{0} closed the connection before the end")]
    Incomplete(String),
    /// Too slow.
    #[error("{0} stalled")]
    Stalled(String),
    /// A web page instead of a file.
    #[error("{0} sends a web page (HTML) instead of a model: does it want a token or a licence accepted?")]
    Html(String),
    /// A body whose bytes are not the file's.
    #[error("{0} sends the file compressed, which was not asked for")]
    Encoded(String),
    /// A response that contradicts the request.
    #[error("{0} sends another range than was asked for")]
    Range(String),
    /// A server that stopped to serve ranges.
    #[error("{0} does not serve ranges")]
    NoRanges(String),
    /// The file is another one than at the last request.
    #[error("the file at {0} changed during the download")]
    Changed(String),
    /// The size cannot be that of the catalog.
    #[error("its server has {server} bytes, the catalog says {catalog}")]
    Size {
        /// Bytes of the file.
        server: u64,
        /// Bytes in the catalog, rounded as they are there.
        catalog: u64,
    },
    /// A signal stopped the pull.
    #[error("the pull was stopped")]
    Stopped,
    /// The content is another one.
    #[error("its checksum is not the one in the catalog")]
    Checksum,
}

impl Problem {
    /// An error of the disk with what was attempted.
    pub fn disk(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Disk(what, error)
    }

    /// Whether another attempt may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 416 | 425 | 429 | 500..=599),
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

    /// The time the server wants to be left alone for.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A short name for metrics and the status file.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotInCatalog | Self::MissingDependency(_) => "not_in_catalog",
            Self::Entry(_) => "entry",
            Self::SavePath(_) | Self::SamePath(_) | Self::Folder(_) => "save_path",
            Self::Disk(..) => "disk",
            Self::NoRoom { .. } => "no_room",
            Self::Status { status: 401 | 403, .. } => "unauthorized",
            Self::Status { status: 404 | 410, .. } => "not_found",
            Self::Status { status: 429, .. } => "rate_limited",
            Self::Status { .. } => "status",
            Self::Redirects(_) | Self::RedirectTarget(_) => "redirect",
            Self::Connection { .. } | Self::Silent(_) | Self::Incomplete(_) => "connection",
            Self::Stalled(_) => "stalled",
            Self::Html(_) => "html",
            Self::Encoded(_) | Self::Range(_) | Self::NoRanges(_) | Self::Changed(_) => "server",
            Self::Size { .. } => "size",
            Self::Stopped => "stopped",
            Self::Checksum => "checksum",
        }
    }

    /// The text with those of its sources.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            // Their source is in the text already.
            Self::Connection { .. } => self.to_string(),
            _ => chain(self),
        }
    }
}

/// An error of the HTTP client without its URL, which may hold a signature.
#[derive(Debug)]
pub struct Transport(reqwest::Error);

impl From<reqwest::Error> for Transport {
    fn from(error: reqwest::Error) -> Self {
        Self(error.without_url())
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client's own text says only that a request failed.
        match self.0.source() {
            Some(source) => f.write_str(&chain(source)),
            None => self.0.fmt(f),
        }
    }
}

impl Error for Transport {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// An error's text followed by its sources'.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        // Some errors repeat their source.
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}
