//! Probes addresses: a request for the beginning of each file, by the code that downloads, several hosts at a time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, LocalBoxStream};
use parking_lot::Mutex;
use reqwest::Url;
use tokio::time::Instant;

use super::hub::{HubMetadata, civitai_sha256};
use crate::cmd::progress::Progress;
use crate::fetch::content::Foreign;
use crate::fetch::error::{Problem, host};
use crate::fetch::http::{Http, Target};
use crate::fetch::retry::pause;

/// Hosts that are requested at a time. With the limit per host, this keeps below the default limit of open files.
const MAX_HOSTS: usize = 32;

/// Bytes that are requested of each file: enough to identify what is not one.
const BEGINNING: u64 = 1024;

/// The parts of a row that are probed, and those that the result is compared with.
#[derive(Debug)]
pub(crate) struct Row {
    /// Its id.
    pub(crate) id: String,
    /// `download_url`, then `mirrors`.
    pub(crate) urls: Vec<Url>,
    /// `download_url` as it is written in the row.
    pub(crate) url_text: String,
    /// Whether the provider's token is sent.
    pub(crate) auth: bool,
    /// `file_size_gb`, in the text format of a Postgres `numeric`.
    pub(crate) size: Option<String>,
    /// `hash`.
    pub(crate) hash: Option<String>,
    /// `save_path`.
    pub(crate) save_path: String,
}

/// A file that can be downloaded.
#[derive(Debug)]
pub(crate) struct File {
    /// Host of the file after redirects.
    pub(crate) host: String,
    /// Its exact size, if a server reports it.
    pub(crate) bytes: Option<u64>,
    /// Its SHA-256, if the hub reports it.
    pub(crate) sha256: Option<String>,
}

/// An address that gave no file.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Why not.
    pub(crate) problem: Problem,
    /// Whether the hub says that there is no such repository, or none that may be seen.
    pub(crate) no_repository: bool,
}

/// What came of the addresses of a row, in the order of `urls`. There is at least one.
pub(crate) type Results = Vec<Result<File, Failure>>;

/// The HTTP client and its limits.
#[derive(Debug)]
pub(crate) struct Prober {
    /// The client, with the tokens of this machine.
    pub(crate) http: Http,
    /// Requests at a time to one host.
    pub(crate) per_host: usize,
    /// Attempts per address.
    pub(crate) attempts: u32,
}

/// An address of a row.
#[derive(Debug)]
struct Address<'a> {
    /// The number of the row.
    number: usize,
    /// Its place among the row's addresses.
    place: usize,
    url: &'a Url,
    auth: bool,
    hashed: bool,
    /// The name of the file in the row.
    name: &'a str,
}

/// A host of addresses.
#[derive(Default)]
struct Host {
    /// When it may be requested again, if it imposed a pause.
    resume_at: Mutex<Option<Instant>>,
    /// Whether an address failed even after the pauses. The others then get one attempt, so that a host that always
    /// responds with 429 does not take hours.
    exhausted: AtomicBool,
}

impl Host {
    /// Waits until a pause that the host imposed is over.
    async fn ready(&self) {
        loop {
            let resume_at = *self.resume_at.lock();
            match resume_at.filter(|at| *at > Instant::now() && !self.exhausted.load(Relaxed)) {
                Some(at) => tokio::time::sleep_until(at).await,
                None => return,
            }
        }
    }

    fn postpone(&self, pause: Duration) {
        let at = Instant::now() + pause;
        let mut resume_at = self.resume_at.lock();
        *resume_at = (*resume_at).max(Some(at));
    }
}

impl Prober {
    /// Probes every address of every row; the results are in the order of the rows.
    pub(crate) async fn probe_all(&self, rows: &[Row], progress: &Progress) -> Vec<Results> {
        let mut hosts = BTreeMap::<_, (Vec<_>, Host)>::new();
        let mut results = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            results.push(row.urls.iter().map(|_| None).collect::<Vec<_>>());
            for (place, url) in row.urls.iter().enumerate() {
                let (addresses, _) = hosts.entry((host(url), url.port_or_known_default())).or_default();
                addresses.push(Address {
                    number,
                    place,
                    url,
                    auth: row.auth,
                    hashed: row.hash.is_some(),
                    name: &row.save_path,
                });
            }
        }
        progress.begin("probing", results.iter().map(Vec::len).sum());
        let streams = hosts.values().map(|(addresses, host)| self.probe_host(addresses, host));
        let mut probed = stream::iter(streams).flatten_unordered(MAX_HOSTS);
        while let Some((address, result)) = progress.during(probed.next()).await {
            results[address.number][address.place] = Some(result);
            progress.step();
        }
        results.into_iter().map(|results| results.into_iter().flatten().collect()).collect()
    }

    /// The results of the addresses of one host, as they come.
    fn probe_host<'a>(
        &'a self,
        addresses: &'a [Address<'a>],
        host: &'a Host,
    ) -> LocalBoxStream<'a, (&'a Address<'a>, Result<File, Failure>)> {
        let probe = move |address: &'a Address<'a>| async move { (address, self.probe(address, host).await) };
        stream::iter(addresses.iter().map(probe)).buffer_unordered(self.per_host).boxed_local()
    }

    async fn probe(&self, address: &Address<'_>, host: &Host) -> Result<File, Failure> {
        let mut failures = 0;
        loop {
            host.ready().await;
            let failure = match self.request(address).await {
                Ok(file) => return Ok(file),
                Err(failure) => failure,
            };
            failures += 1;
            let retry_after = failure.problem.retry_after();
            if !failure.problem.is_transient() || host.exhausted.load(Relaxed) {
                return Err(failure);
            }
            if failures >= self.attempts {
                host.exhausted.fetch_or(retry_after.is_some(), Relaxed);
                return Err(failure);
            }
            let pause = pause(failures, retry_after);
            match retry_after {
                Some(_) => host.postpone(pause),
                None => tokio::time::sleep(pause).await,
            }
        }
    }

    async fn request(&self, address: &Address<'_>) -> Result<File, Failure> {
        let Address { url, auth, hashed, .. } = *address;
        let scheme = url.scheme();
        if !["http", "https"].contains(&scheme) {
            let problem = Problem::Entry(format!("machines download by http and https, not by {scheme}"));
            return Err(Failure { problem, no_repository: false });
        }
        let mut metadata = HubMetadata::default();
        let tokens = self.http.tokens();
        let url = &self.http.tokens().at_endpoint(url);
        let target = Target { url, auth, hashed, origin: None };
        let resolved = self.http.resolve(target, BEGINNING, |url, headers| metadata.add(tokens, url, headers));
        let resolved = resolved.await.and_then(|source| {
            let total = source.total.unwrap_or(u64::MAX);
            match Foreign::identify(&source.beginning, total, address.name) {
                Some(Foreign::Html) => Err(Problem::Html(source.host())),
                // A small file that has a hash may be any of the others.
                Some(foreign) if !hashed || foreign == Foreign::Pointer => {
                    Err(Problem::Foreign(source.host(), foreign))
                }
                _ => Ok(source),
            }
        });
        let source = match resolved {
            Ok(source) => source,
            Err(problem) => return Err(Failure { problem, no_repository: metadata.no_repository }),
        };
        let bytes = source.total.or(metadata.bytes);
        let sha256 = match metadata.sha256 {
            // The storage has another file than the hub describes, so the hash is not that of these bytes.
            Some(_) if metadata.bytes.is_some_and(|described| bytes != Some(described)) => None,
            Some(sha256) => Some(sha256),
            None => civitai_sha256(&self.http, url, auth, bytes).await,
        };
        Ok(File { host: source.host(), bytes, sha256 })
    }
}
