//! The address of an upstream: how it is parsed and displayed.

use std::fmt;
use std::path::PathBuf;

use reqwest::Url;
use reqwest::header::HeaderValue;

/// The path of a server's snapshot.
const SNAPSHOT: &str = "/api/snapshot";

/// An address that can't be used. It is not shown, because it may hold a password.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamUrlError {
    /// Not a URL of a supported kind.
    #[error(
        "CATALOG_UPSTREAM (--upstream) number {number} {problem}: write comma-separated URLs, such as \
         http://replica:3000, https://example.org/catalog.jsonl or file:///srv/catalog.jsonl"
    )]
    Url {
        /// Its place in the list, from 1.
        number: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The token is not valid in a header.
    #[error("CATALOG_UPSTREAM_TOKEN (--upstream-token) contains a control character: remove it")]
    Token,
}

/// Where an upstream is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// A server like this one.
    Server(Url),
    /// A file on any HTTP server.
    Http(Url),
    /// A file on this machine.
    File(PathBuf),
}

impl Location {
    /// Parses the `number`th address. A URL without a path, or with the path of a server's snapshot, is a server.
    pub(crate) fn parse(text: &str, number: usize) -> Result<Self, UpstreamUrlError> {
        let invalid = |problem| UpstreamUrlError::Url { number, problem };
        let mut url = Url::parse(text.trim()).map_err(|_| invalid("is not a URL"))?;
        match url.scheme() {
            "file" => {
                url.to_file_path().map(Self::File).map_err(|()| invalid("is not the absolute path of a local file"))
            }
            "http" | "https" if url.path() == "/" && url.query().is_none() => {
                url.set_path(SNAPSHOT);
                Ok(Self::Server(url))
            }
            "http" | "https" if url.path().ends_with(SNAPSHOT) && url.query().is_none_or(is_wait) => {
                url.set_query(None);
                Ok(Self::Server(url))
            }
            "http" | "https" => Ok(Self::Http(url)),
            _ => Err(invalid("has another scheme than http, https and file")),
        }
    }

    /// Whether the upstream can hold a request back until something changes.
    pub(crate) fn can_wait(&self) -> bool {
        matches!(self, Self::Server(_))
    }
}

/// Whether the query has only `wait`, as in the documents.
fn is_wait(query: &str) -> bool {
    query.starts_with("wait=") && !query.contains('&')
}

/// The address without the parts that may hold a secret: user, password, query and fragment.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(url) => f.write_str(&url.origin().ascii_serialization()),
            Self::Http(url) => write!(f, "{}{}", url.origin().ascii_serialization(), url.path()),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The header of a bearer token, which is never shown.
pub(crate) fn bearer(token: &str) -> Result<HeaderValue, UpstreamUrlError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| UpstreamUrlError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_servers_or_files_and_are_shown_without_secrets() {
        for (text, expected, waits) in [
            ("http://replica:3000", "http://replica:3000", true),
            (" https://me:s3cret@replica/ ", "https://replica", true),
            ("https://example.org/eu/api/snapshot", "https://example.org", true),
            ("https://example.org/api/snapshot?wait=30s", "https://example.org", true),
            (
                "https://bucket.example.org/a/catalog.jsonl?sig=s3cret#s3cret",
                "https://bucket.example.org/a/catalog.jsonl",
                false,
            ),
            ("https://example.org/?key=s3cret", "https://example.org/", false),
            ("file:///srv/catalog.jsonl", "file:///srv/catalog.jsonl", false),
        ] {
            let location = Location::parse(text, 1).expect(text);
            assert_eq!((location.to_string(), location.can_wait()), (expected.into(), waits), "{text}");
            assert_eq!(format!("{location:?}"), expected, "{text}");
        }
        for text in ["", "replica:3000", "/srv/catalog.jsonl", "s3://bucket/s3cret", "file://host/s3cret", "http://"] {
            let error = Location::parse(text, 2).expect_err(text).to_string();
            assert!(error.contains("number 2") && error.contains("http://replica:3000"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        assert!(format!("{:?}", bearer("s3cret")).contains("Sensitive") && bearer("s3\ncret").is_err());
    }
}
