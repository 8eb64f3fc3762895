//! Requests for files. Redirects are followed here rather than in the client, because which token is sent is decided
//! again for each URL.

use std::collections::HashMap;
use std::time::Duration;

use hyper::Uri;
use parking_lot::Mutex;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, LOCATION, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::Instant;

use super::Failure;
use super::error::{Problem, host};
use super::event::{Event, Events};
use super::response::{BodyRange, body_range, retry_after};
use super::tokens::Tokens;
use crate::base::http_client::{self, CONNECT_TIMEOUT};

const MAX_REDIRECTS: usize = 10;
/// The address from which a cache may fetch a file.
const ORIGIN_URL: HeaderName = HeaderName::from_static("x-origin-url");
/// Schemes of proxies. Without one, a proxy speaks HTTP.
const PROXY_SCHEMES: [&str; 6] = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];
/// From the request to the head of the response; hubs may query their storage in between.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// A file to request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Its URL.
    pub(crate) url: &'a Url,
    /// Whether the token of its provider is sent.
    pub(crate) auth: bool,
    /// Whether its hash is known, so that another file is detected.
    pub(crate) hashed: bool,
    /// The address from which a cache may fetch it. It is sent to the origin of `url` only.
    pub(crate) origin: Option<&'a Url>,
}

/// A response whose body is to be read.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The response.
    pub(crate) response: Response,
    /// The last URL.
    pub(crate) url: Url,
    /// What its body contains, according to its headers.
    pub(crate) part: BodyRange,
}

impl Opened {
    /// The location of the file, with the first `bytes` of it as far as they come in time.
    pub(super) async fn into_source(self, bytes: u64) -> Source {
        let Self { mut response, url, part } = self;
        let mut beginning = Vec::new();
        // Read to its end, so that the connection can be reused; the first byte of a whole file says nothing.
        if part.end.is_some_and(|end| end <= bytes) || bytes > 1 {
            let max = usize::try_from(bytes).unwrap_or(usize::MAX);
            if let Ok(Ok(read)) = tokio::time::timeout(CONNECT_TIMEOUT, read(&mut response, max)).await {
                beginning = read;
                beginning.truncate(max);
            }
        }
        Source { url, total: part.total, validator: part.validator, beginning, cached: false }
    }
}

/// The location of a file, after redirects.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The last URL; it may contain a signature that expires.
    pub(crate) url: Url,
    /// Size of the file in bytes, if the server sends it.
    pub(crate) total: Option<u64>,
    /// Entity tag or modification date, which identifies this version of the file.
    pub(crate) validator: Option<String>,
    /// The requested first bytes, as far as they came.
    pub(crate) beginning: Vec<u8>,
    /// Whether a cache has it.
    pub(super) cached: bool,
}

impl Source {
    /// The host, for messages.
    pub(crate) fn host(&self) -> String {
        host(&self.url)
    }
}

pub(super) fn host_and_port(url: &Url) -> String {
    format!("{}:{}", host(url), url.port_or_known_default().unwrap_or_default())
}

/// The HTTP client, with the tokens of this machine.
#[derive(Debug)]
pub(crate) struct Http {
    client: Client,
    tokens: Tokens,
    /// Hosts with their ports, and whether they responded to the last request.
    hosts: Mutex<HashMap<String, bool>>,
    events: Events,
}

impl Http {
    /// Creates a client that trusts the certificates of this system.
    ///
    /// # Errors
    /// The TLS configuration failed.
    pub(crate) fn new(tokens: Tokens, events: Events) -> Result<Self, Failure> {
        let (builder, no_certificates) = http_client::builder()?;
        if let Some(problem) = &no_certificates {
            events.send(Event::NoCertificates(problem));
        }
        report_proxies(&events);
        let client = builder.redirect(Policy::none()).tcp_keepalive(Duration::from_secs(30)).build()?;
        Ok(Self { client, tokens, hosts: Mutex::default(), events })
    }

    /// The client, for requests without a token.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Requests the first bytes of a file, to find its location and size. A server that refuses that gets a request for
    /// the whole file, whose body is not read to its end. `on_head` is called with the address and the headers of each
    /// response, redirects and errors included.
    ///
    /// # Errors
    /// The response is not a downloadable file.
    pub(crate) async fn resolve(
        &self,
        target: Target<'_>,
        bytes: u64,
        mut on_head: impl FnMut(&Url, &HeaderMap),
    ) -> Result<Source, Problem> {
        let first_bytes = self.request(target, Some((0, bytes)), HEAD_TIMEOUT, &mut on_head).await;
        let opened = match first_bytes {
            Err(problem) if problem.contradicts_ranges() => {
                self.request(target, None, HEAD_TIMEOUT, &mut on_head).await?
            }
            opened => opened?,
        };
        Ok(opened.into_source(bytes).await)
    }

    /// Requests the bytes from `range.0` up to but not including `range.1`, or all bytes. `limit` is the time until the
    /// head of the response, redirects included.
    ///
    /// # Errors
    /// The response does not contain a file.
    pub(crate) async fn open(
        &self,
        target: Target<'_>,
        range: Option<(u64, u64)>,
        limit: Duration,
    ) -> Result<Opened, Problem> {
        self.request(target, range, limit, |_, _| {}).await
    }

    /// Requests a small document: its body, or its first bytes if it is longer than `max`.
    ///
    /// # Errors
    /// No success, or no complete body within the time.
    pub(crate) async fn document(&self, url: &Url, auth: bool, max: usize) -> Result<Vec<u8>, Problem> {
        let target = Target { url, auth, hashed: false, origin: None };
        let Opened { mut response, url, .. } = self.request(target, None, HEAD_TIMEOUT, |_, _| {}).await?;
        let read = tokio::time::timeout(HEAD_TIMEOUT, read(&mut response, max)).await;
        read.map_err(|_| Problem::Silent(host(&url)))?.map_err(|error| connection_error(&url, error))
    }

    /// Whether an address may be shown to a cache: no token is sent to it, and it contains none of a user.
    pub(super) fn is_public(&self, url: &Url, auth: bool) -> bool {
        let plain = url.username().is_empty() && url.password().is_none();
        plain && !(auth && self.tokens.variable(url).is_some())
    }

    /// Whether the host of a URL responded to the last request; `None` before the first one.
    pub(crate) fn has_responded(&self, url: &Url) -> Option<bool> {
        self.hosts.lock().get(&host_and_port(url)).copied()
    }

    /// Records whether the host of a URL responded in time.
    pub(crate) fn record_response(&self, url: &Url, responded: bool) {
        self.hosts.lock().insert(host_and_port(url), responded);
    }

    /// The tokens that it sends.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Sends a GET request and follows redirects.
    async fn request(
        &self,
        target: Target<'_>,
        range: Option<(u64, u64)>,
        limit: Duration,
        mut on_head: impl FnMut(&Url, &HeaderMap),
    ) -> Result<Opened, Problem> {
        let (mut url, deadline) = (target.url.clone(), Instant::now() + limit);
        for _ in 0..=MAX_REDIRECTS {
            let authorization = if target.auth { self.tokens.authorization(&url) } else { None };
            let mut request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            if let Some((start, end)) = range {
                request = request.header(RANGE, format!("bytes={start}-{}", end.saturating_sub(1)));
            }
            if let Some(origin) = target.origin.filter(|_| url.origin() == target.url.origin()) {
                request = request.header(ORIGIN_URL, origin.as_str());
            }
            let sent = tokio::time::timeout_at(deadline, request.send()).await;
            let sent = sent.map_or_else(
                |_| Err(Problem::Silent(host(&url))),
                |sent| sent.map_err(|error| connection_error(&url, error)),
            );
            if matches!(sent, Err(Problem::Silent(_))) {
                self.record_response(&url, false);
            }
            let response = sent?;
            self.record_response(&url, true);
            on_head(&url, response.headers());
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                    let part = body_range(&response, &url)?;
                    return Ok(Opened { response, url, part });
                }
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    url = redirect_target(&response, &url, target.hashed, &self.events)?
                }
                _ => return Err(self.status(&response, &url, target.auth, authorization.is_some())),
            }
        }
        Err(Problem::Redirects(MAX_REDIRECTS))
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
        Problem::Status { status, host: host(url), hint, retry_after: retry_after(response.headers()) }
    }
}

/// Reports which proxy variables are ignored because they name none. Their values may contain a password.
fn report_proxies(events: &Events) {
    for name in
        ["ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"].iter().flat_map(|name| [(*name).to_owned(), name.to_lowercase()])
    {
        let value = std::env::var_os(&name).unwrap_or_default();
        let uri = value.to_str().and_then(|text| text.parse::<Uri>().ok()).filter(|uri| uri.authority().is_some());
        let usable = uri.is_some_and(|uri| uri.scheme_str().is_none_or(|scheme| PROXY_SCHEMES.contains(&scheme)));
        if !usable && !value.is_empty() {
            events.send(Event::ProxyIgnored(&name));
        }
    }
}

fn connection_error(url: &Url, error: reqwest::Error) -> Problem {
    // No packet of the host arrived.
    if error.is_connect() && error.is_timeout() {
        return Problem::Silent(host(url));
    }
    Problem::Connection { host: host(url), source: error.into() }
}

/// The target of a redirect. From https to http, anyone on the way can send another file, which only a hash shows.
fn redirect_target(response: &Response, from: &Url, hashed: bool, events: &Events) -> Result<Url, Problem> {
    let bad = || Problem::RedirectTarget(host(from));
    let location = response.headers().get(LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let url = location.and_then(|text| from.join(text).ok()).ok_or_else(bad)?;
    if from.scheme() == "https" && url.scheme() == "http" {
        if !hashed {
            return Err(Problem::Downgrade(host(from)));
        }
        events.send(Event::Downgrade { from: &host(from), to: &host(&url) });
    }
    if ["http", "https"].contains(&url.scheme()) && url.has_host() { Ok(url) } else { Err(bad()) }
}

/// The body of a response, or its beginning if it is longer than `max` bytes.
///
/// # Errors
/// The connection breaks off.
pub(crate) async fn read(response: &mut Response, max: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while body.len() <= max {
        match response.chunk().await? {
            Some(chunk) => body.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok(body)
}
