//! Requests for files. Redirects are followed here rather than in the client, because which token is sent is decided
//! again for each URL.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap,
    HeaderName, LAST_MODIFIED, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

use super::error::Problem;
use super::tokens::Tokens;

const MAX_REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the request to the head of the response; hubs may query their storage in between.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Upper limit for `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// The location of a file, after redirects.
#[derive(Debug, Clone)]
pub struct Source {
    /// The last URL; it may contain a signature that expires.
    pub url: Url,
    /// Size of the file in bytes, if the server sends it.
    pub total: Option<u64>,
    /// Entity tag or modification date, which identifies this version of the file.
    pub validator: Option<String>,
    /// Whether the server supports range requests.
    pub ranges: bool,
}

impl Source {
    /// The host, for messages.
    #[must_use]
    pub fn host(&self) -> String {
        host(&self.url)
    }
}

/// The host of a URL, which is the only part that may be shown.
#[must_use]
pub fn host(url: &Url) -> String {
    url.host_str().unwrap_or("?").to_owned()
}

/// The HTTP client, with the tokens of this machine.
#[derive(Debug)]
pub struct Http {
    client: Client,
    tokens: Tokens,
}

/// The range of the file that a response body contains, from its headers.
#[derive(Debug, PartialEq, Eq)]
pub struct BodyRange {
    /// Position of the first byte.
    pub start: u64,
    /// Position after the last byte, if known.
    pub end: Option<u64>,
    /// Size of the whole file, if known.
    pub total: Option<u64>,
    /// Whether the status was 206 (Partial Content).
    pub partial: bool,
    /// Entity tag or modification date, which identifies this version of the file.
    pub validator: Option<String>,
}

impl Http {
    /// Creates a client that trusts the certificates of this system.
    ///
    /// # Errors
    /// The TLS configuration failed.
    pub fn new(tokens: Tokens) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = versions.with_root_certificates(roots()).with_no_client_auth();
        let client = Client::builder()
            .tls_backend_preconfigured(config)
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(Duration::from_secs(30))
            .user_agent(concat!("model-catalog/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, tokens })
    }

    /// The client, for requests without a token.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Requests the first byte of a file, to find its location and size.
    ///
    /// # Errors
    /// The response is not a downloadable file.
    pub async fn resolve(&self, url: &Url, auth: bool) -> Result<Source, Problem> {
        self.resolve_observed(url, auth, |_, _| {}).await
    }

    /// Like [`resolve`](Self::resolve); calls `on_head` with the address and the headers of each response, redirects
    /// and errors included.
    ///
    /// # Errors
    /// See [`resolve`](Self::resolve).
    pub async fn resolve_observed(
        &self,
        url: &Url,
        auth: bool,
        on_head: impl FnMut(&Url, &HeaderMap),
    ) -> Result<Source, Problem> {
        let (response, url) = match self.get(url, auth, Some((0, 1)), on_head).await {
            // An empty file has no first byte.
            Err((Problem::Status { status: 416, .. }, Some((headers, url)))) if unsatisfied(&headers) == Some(0) => {
                return Ok(Source { url, total: Some(0), validator: validator(&headers), ranges: false });
            }
            got => got.map_err(|(problem, _)| problem)?,
        };
        let part = body_range(&response, &url)?;
        let source = Source { total: part.total, validator: validator(response.headers()), ranges: part.partial, url };
        if part.partial {
            // Read the body to its end, so that the connection can be reused.
            let _ = tokio::time::timeout(CONNECT_TIMEOUT, drain(response)).await;
        }
        Ok(source)
    }

    /// Requests the bytes from `range.0` up to but not including `range.1`, or all bytes, of a resolved file.
    ///
    /// # Errors
    /// The response does not contain this file.
    pub async fn fetch(
        &self,
        source: &Source,
        auth: bool,
        range: Option<(u64, u64)>,
    ) -> Result<(Response, BodyRange), Problem> {
        let (response, url) = self.get(&source.url, auth, range, |_, _| {}).await.map_err(|(problem, _)| problem)?;
        let part = body_range(&response, &url)?;
        let differs = |known: Option<u64>, now: Option<u64>| known.zip(now).is_some_and(|(known, now)| known != now);
        if differs(source.total, part.total) {
            return Err(Problem::Changed(host(&url)));
        }
        Ok((response, part))
    }

    /// Requests a small document: its body, or its first bytes if it is longer than `max`.
    ///
    /// # Errors
    /// No success, or no complete body within the time.
    pub async fn document(&self, url: &Url, auth: bool, max: usize) -> Result<Vec<u8>, Problem> {
        let (mut response, url) = self.get(url, auth, None, |_, _| {}).await.map_err(|(problem, _)| problem)?;
        let read = tokio::time::timeout(HEAD_TIMEOUT, read(&mut response, max)).await;
        read.map_err(|_| Problem::Silent(host(&url)))?.map_err(|error| connection_error(&url, error))
    }

    /// The tokens that it sends.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Sends a GET request and follows redirects. An error comes with the head and the URL of the last response, if
    /// any.
    async fn get(
        &self,
        url: &Url,
        auth: bool,
        range: Option<(u64, u64)>,
        mut on_head: impl FnMut(&Url, &HeaderMap),
    ) -> Result<(Response, Url), (Problem, Option<(HeaderMap, Url)>)> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let authorization = if auth { self.tokens.authorization(&url) } else { None };
            let mut request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            if let Some((start, end)) = range {
                request = request.header(RANGE, format!("bytes={start}-{}", end.saturating_sub(1)));
            }
            let sent = tokio::time::timeout(HEAD_TIMEOUT, request.send()).await;
            let response = match sent {
                Err(_) => return Err((Problem::Silent(host(&url)), None)),
                Ok(Err(error)) => return Err((connection_error(&url, error), None)),
                Ok(Ok(response)) => response,
            };
            on_head(&url, response.headers());
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok((response, url)),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    url = redirect_target(&response, &url).map_err(|problem| (problem, None))?
                }
                _ => {
                    let problem = self.status(&response, &url, auth, authorization.is_some());
                    return Err((problem, Some((response.headers().clone(), url))));
                }
            }
        }
        Err((Problem::Redirects(MAX_REDIRECTS), None))
    }

    fn status(&self, response: &Response, url: &Url, auth: bool, token_sent: bool) -> Problem {
        let status = response.status().as_u16();
        let variable = self.tokens.variable(url);
        let hint = match (status, variable) {
            (401 | 403, Some(variable)) if token_sent => {
                format!(": the token in {variable} was rejected; has its owner accepted the model's licence?")
            }
            (401 | 403, Some(variable)) if auth => format!(": it requires a token, set {variable}"),
            (401 | 403, Some(_)) => ": it requires a token, but the catalog does not set auth_required".into(),
            (401 | 403, None) if auth => ": it requires a token, and no token may be sent to this host".into(),
            (404 | 410, _) => ": the URL in the catalog is dead".into(),
            _ => String::new(),
        };
        let after = header(response.headers(), RETRY_AFTER).and_then(|text| retry_after(&text));
        Problem::Status { status, host: host(url), hint, retry_after: after }
    }
}

/// The root certificates: those of the system, or those in `CURL_CA_BUNDLE` or `SSL_CERT_FILE`, as with curl and
/// OpenSSL. Without any, http still works, and https fails with an error about the certificate.
fn roots() -> RootCertStore {
    let mut store = RootCertStore::empty();
    let Some(path) = std::env::var_os("CURL_CA_BUNDLE").filter(|path| !path.is_empty()) else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return store;
    };
    match CertificateDer::pem_file_iter(&path) {
        Ok(certificates) => drop(store.add_parsable_certificates(certificates.flatten())),
        Err(error) => {
            let path = path.display();
            warn!(%path, %error, "the certificates in CURL_CA_BUNDLE cannot be read, so https will fail");
        }
    }
    store
}

fn connection_error(url: &Url, error: reqwest::Error) -> Problem {
    Problem::Connection { host: host(url), source: error.into() }
}

fn redirect_target(response: &Response, from: &Url) -> Result<Url, Problem> {
    let bad = || Problem::RedirectTarget(host(from));
    let location = response.headers().get(LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let url = location.and_then(|text| from.join(text).ok()).ok_or_else(bad)?;
    if ["http", "https"].contains(&url.scheme()) && url.has_host() { Ok(url) } else { Err(bad()) }
}

/// The body of a response, or its beginning if it is longer than `max` bytes.
///
/// # Errors
/// The connection breaks off.
pub async fn read(response: &mut Response, max: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while body.len() <= max {
        match response.chunk().await? {
            Some(chunk) => body.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok(body)
}

async fn drain(mut response: Response) {
    while let Ok(Some(_)) = response.chunk().await {}
}

fn header(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// A strong entity tag, otherwise the modification date. Equal validators mean equal bytes.
fn validator(headers: &HeaderMap) -> Option<String> {
    header(headers, ETAG).filter(|tag| tag.starts_with('"')).or_else(|| header(headers, LAST_MODIFIED))
}

/// The size in `bytes */SIZE`, which a server sends for a range that it cannot satisfy.
fn unsatisfied(headers: &HeaderMap) -> Option<u64> {
    header(headers, CONTENT_RANGE)?.trim().strip_prefix("bytes */")?.parse().ok()
}

/// Reads the range of a response body from its headers.
fn body_range(response: &Response, url: &Url) -> Result<BodyRange, Problem> {
    let headers = response.headers();
    if header(headers, CONTENT_TYPE).is_some_and(|kind| kind.trim().to_ascii_lowercase().starts_with("text/html")) {
        return Err(Problem::Html(host(url)));
    }
    if header(headers, CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err(Problem::Encoded(host(url)));
    }
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = header(headers, CONTENT_RANGE).and_then(|text| content_range(&text));
        let part = range.map(|part| BodyRange { validator: validator(headers), ..part });
        return part.ok_or_else(|| Problem::Range(host(url)));
    }
    let length = header(headers, CONTENT_LENGTH).and_then(|text| text.trim().parse().ok());
    Ok(BodyRange { start: 0, end: length, total: length, partial: false, validator: validator(headers) })
}

/// Parses `bytes FIRST-LAST/TOTAL`, in which `*` stands for an unknown total.
fn content_range(text: &str) -> Option<BodyRange> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (start.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    let end = last.checked_add(1)?;
    (start < end && total.is_none_or(|total| end <= total)).then_some(BodyRange {
        start,
        end: Some(end),
        total,
        partial: true,
        validator: None,
    })
}

/// Parses seconds or a date.
fn retry_after(text: &str) -> Option<Duration> {
    let date = || httpdate::parse_http_date(text).ok()?.duration_since(std::time::SystemTime::now()).ok();
    let wait = text.trim().parse().ok().map(Duration::from_secs).or_else(date)?;
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_content_ranges_are_rejected() {
        let part = |start, end, total| Some(BodyRange { start, end: Some(end), total, partial: true, validator: None });
        for (text, expected) in [
            ("bytes 0-0/1", part(0, 1, Some(1))),
            ("bytes 5-9/10", part(5, 10, Some(10))),
            ("bytes 5-9/*", part(5, 10, None)),
            (" bytes 5 - 9 / 10 ", part(5, 10, Some(10))),
            ("bytes 5-4/10", None),
            ("bytes 5-10/10", None),
            ("bytes */10", None),
            ("bytes -5/10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes 0-99999999999999999999/*", None),
            ("items 0-1/2", None),
            ("bytes 0-1", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), expected, "{text:?}");
        }
    }

    #[test]
    fn retry_after_is_limited() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("99999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after("Fri, 31 Dec 9999 23:59:59 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after("Thu, 01 Jan 1970 00:00:00 GMT"), None);
        assert_eq!((retry_after("-1"), retry_after("soon"), retry_after("")), (None, None, None));
    }
}
