//! Why a row is rejected: the messages that DBAs read.

use tracing::warn;

/// Number of rejected rows that are logged for one refresh; further ones are only counted.
const MAX_LOGGED_REJECTIONS: usize = 20;

/// Why a row is rejected. The text is shown to DBAs, so it names the column and says what is accepted; the SQL function
/// `model_catalog.problems` uses the same words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// A required column is NULL or empty.
    #[error("{0} is missing: it needs a value that is not NULL or empty")]
    Missing(&'static str),
    /// A text contains a control character.
    #[error("{0} contains the control character U+{1:04X}: remove it")]
    ControlCharacter(&'static str, u32),
    /// The path could make a machine write outside its models folder.
    #[error("save_path {0}")]
    SavePath(SavePathError),
    /// The URL breaks the rule for URLs.
    #[error("download_url {0}")]
    DownloadUrl(UrlError),
    /// The mirror at this index breaks the same rule.
    #[error("mirrors[{0}] {1}")]
    Mirror(usize, UrlError),
    /// The size is not a number that a machine can compare with its free disk space.
    #[error("file_size_gb is {0}: it must be a finite number that is not negative, or NULL")]
    Size(String),
    /// The column is not a list of texts.
    #[error("{0} must be a JSON array of strings")]
    NotStrings(&'static str),
    /// Another row with the same id is served instead.
    #[error("another row has the same id: ids must be unique in the view")]
    Duplicate,
    /// The column can't be converted to UTF-8, in which servers read.
    #[error("{0} has bytes that cannot be converted to UTF-8: correct them")]
    NotUtf8(&'static str),
    /// The database returned a value of another type.
    #[error("the row can't be read: {0}")]
    Unreadable(String),
}

/// The part of the rule for `save_path` that is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SavePathError {
    /// It starts with a slash.
    #[error("is absolute: it must be relative to the models folder, without `..` and without backslashes")]
    Absolute,
    /// It contains a backslash, which some systems take for a separator.
    #[error("has a backslash: it must be relative to the models folder, without `..` and without backslashes")]
    Backslash,
    /// One of its parts is `..`.
    #[error(
        "escapes the models folder: it must be relative to the models folder, without `..` and without backslashes"
    )]
    Escapes,
    /// It ends with `/` or `/.`, or is `.`.
    #[error("has no file name: append one to the folder, such as `checkpoints/model.safetensors`")]
    NoFileName,
    /// One of its parts begins with the prefix of the files of `pull`.
    #[error("has a part that begins with `.model-catalog`, which is reserved for files of `pull`: rename it")]
    Reserved,
    /// It is longer than the kernel accepts.
    #[error("has more than 4096 bytes, the most that Linux accepts: shorten it")]
    TooLong,
    /// One of its parts is longer than file systems accept.
    #[error("has a part of more than 255 bytes, the most that file systems accept: shorten it")]
    LongPart,
}

/// The part of the rule for `download_url` and `mirrors` that is broken. The messages are logged and served to every
/// client, so they contain no more of the URL than its scheme.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It cannot be parsed.
    #[error("is not an absolute URL: {0}")]
    NotAbsolute(url::ParseError),
    /// Its scheme is not allowed.
    #[error("has the scheme `{scheme}`: allowed are {allowed}")]
    Scheme {
        /// Its scheme.
        scheme: String,
        /// The schemes that are allowed, as a list to print.
        allowed: String,
    },
    /// It has a backslash, which curl sends as it is and browsers take for a slash.
    #[error("has a backslash, which programs interpret differently: write / or %5C")]
    Backslash,
    /// It has a user name or a password.
    #[error(
        "has a user name or a password before the host, which every client could read: remove it and set auth_required"
    )]
    Credentials,
}

/// A row that breaks a rule.
pub struct Rejection {
    /// The id of the model.
    pub id: Box<str>,
    /// The message of the [`RowError`].
    pub reason: Box<str>,
}

/// Logs rows that were rejected for the first time, or for another reason than before.
pub(crate) fn log_rejections(rejected: &[Rejection]) {
    for Rejection { id, reason } in rejected.iter().take(MAX_LOGGED_REJECTIONS) {
        warn!(%id, %reason, "row rejected; its last valid version stays served, if there was one");
    }
    if rejected.len() > MAX_LOGGED_REJECTIONS {
        warn!(more = rejected.len() - MAX_LOGGED_REJECTIONS, "further rows rejected");
    }
}
