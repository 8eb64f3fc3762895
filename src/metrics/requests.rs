//! Metrics of requests: a [`RequestMetrics`] per worker thread, which only that thread writes, so that threads share no
//! cache line, and the [`RequestCollector`] that sums them at a scrape.
//!
//! | metric | from | counted when |
//! |---|---|---|
//! | `catalog_http_connections` | `opened` − `closed` | a connection is served, and when it has ended |
//! | `catalog_batch_ids` | `batch_ids` | a valid batch is answered |
//! | `catalog_lookups_total{outcome}` | `found`, `not_found` | the ids of a batch, or a single one, are looked up |
//! | `catalog_http_requests_total{route,status}` | `requests` | a response is ready to be sent |
//! | `catalog_http_request_duration_seconds{route}` | `seconds` | the same |
//! | `catalog_http_timeouts_total{incomplete}` | `timed_out` | `CATALOG_REQUEST_TIMEOUT` closes a connection |
//! | `not_found_ids` in `/api/catalog` | `missing` | an id is not found |
//!
//! A new metric needs a row in this table, and
//! 1. a field of [`RequestMetrics`], and its first value in `new`;
//! 2. a method that updates the field, called where the event happens;
//! 3. its name and help text in `FAMILIES`, and the sum over all threads at the same place in `collect`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::top_missing::{Id, TopMissingIds};

/// The label `route` of a request: a template, never a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// `GET /api/models/{id}`
    Single,
    /// `POST /api/models/batch`
    Batch,
    /// `GET /api/models`
    Models,
    /// `GET /api/catalog`
    Catalog,
    /// `GET /api/snapshot`
    Snapshot,
    /// `/openapi.json`
    OpenApi,
    /// `GET /`
    Page,
    /// `/livez`
    Livez,
    /// `/readyz`
    Readyz,
    /// `/metrics`
    Metrics,
    /// Any other path. It stays the last one, see `ROUTES`.
    Other,
}

const ROUTES: [(Route, &str); 11] = [
    (Route::Single, "/api/models/{id}"),
    (Route::Batch, "/api/models/batch"),
    (Route::Models, "/api/models"),
    (Route::Catalog, "/api/catalog"),
    (Route::Snapshot, "/api/snapshot"),
    (Route::OpenApi, "/openapi.json"),
    (Route::Page, "/"),
    (Route::Livez, "/livez"),
    (Route::Readyz, "/readyz"),
    (Route::Metrics, "/metrics"),
    (Route::Other, "other"),
];

// Variants are indexes of arrays as long as these lists: an index that is out of bounds would end the worker thread.
const _: () = {
    let mut index = 0;
    while index < ROUTES.len() {
        assert!(ROUTES[index].0 as usize == index, "the lists have each variant at its own place");
        index += 1;
    }
    assert!(TIMED_OUT[0].0 as usize == 0 && TIMED_OUT[1].0 as usize == 1);
};

/// The templates of all routes; the last one is for any other path.
pub fn templates() -> [&'static str; ROUTES.len()] {
    ROUTES.map(|(_, template)| template)
}

/// The statuses of this program's responses; the last one is for any other. A status that is missing here fails every
/// test that provokes it, see [`RequestMetrics::request`].
const STATUSES: [(u16, &str); 11] = [
    (200, "200"),
    (204, "204"),
    (304, "304"),
    (400, "400"),
    (404, "404"),
    (405, "405"),
    (413, "413"),
    (429, "429"),
    (500, "500"),
    (503, "503"),
    (0, "other"),
];

/// The statuses of this program's responses.
pub fn statuses() -> Vec<&'static str> {
    STATUSES.iter().filter(|(code, _)| *code != 0).map(|(_, label)| *label).collect()
}

/// Exported from the start, at 0: a rate needs a value before the first event, or it misses that event.
const INITIAL_ROUTES: [Route; 2] = [Route::Single, Route::Batch];
const INITIAL_STATUSES: [u16; 3] = [200, 500, 503];

/// The incomplete part of an exchange whose connection `CATALOG_REQUEST_TIMEOUT` closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimedOut {
    /// The request was not complete, or its response not ready.
    Request,
    /// The response was not sent.
    Response,
}

const TIMED_OUT: [(TimedOut, &str); 2] = [(TimedOut::Request, "request"), (TimedOut::Response, "response")];

/// Upper bounds in seconds. A response from memory takes a few microseconds, a stalled client's body many seconds.
const REQUEST_SECONDS: [f64; 14] =
    [10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3, 1.0, 10.0];
/// The last bound is the default limit of ids.
const BATCH_IDS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// A histogram with `N` upper bounds, written by one thread.
#[derive(Debug)]
struct Buckets<const N: usize> {
    counts: [AtomicU64; N],
    above: AtomicU64,
    /// Sum of the observed values, in the unit of [`Buckets::observe`].
    sum: AtomicU64,
}

impl<const N: usize> Buckets<N> {
    fn new() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; N], above: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// Adds `value`, in units that are `scale` times smaller than those of `bounds`.
    fn observe(&self, value: u64, scale: f64, bounds: &[f64; N]) {
        let in_unit_of_bounds = value as f64 / scale;
        let slot = bounds.iter().position(|bound| in_unit_of_bounds <= *bound);
        add(slot.map_or(&self.above, |slot| &self.counts[slot]), 1);
        add(&self.sum, value);
    }
}

/// Adds to a counter that only the calling thread writes. `fetch_add` would lock the bus, six times for a request.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

const NANOS: f64 = 1e9;

/// The request metrics of one worker thread.
#[derive(Debug)]
pub(crate) struct RequestMetrics {
    requests: [[AtomicU64; STATUSES.len()]; ROUTES.len()],
    seconds: [Buckets<{ REQUEST_SECONDS.len() }>; ROUTES.len()],
    batch_ids: Buckets<{ BATCH_IDS.len() }>,
    found: AtomicU64,
    not_found: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
    timed_out: [AtomicU64; TIMED_OUT.len()],
    /// Locked only for an unknown id, and to read the list.
    missing: Mutex<TopMissingIds>,
}

impl RequestMetrics {
    fn new() -> Self {
        Self {
            requests: [const { [const { AtomicU64::new(0) }; STATUSES.len()] }; ROUTES.len()],
            seconds: std::array::from_fn(|_| Buckets::new()),
            batch_ids: Buckets::new(),
            found: AtomicU64::new(0),
            not_found: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            timed_out: Default::default(),
            missing: Mutex::default(),
        }
    }

    /// Counts a request; `took` is the time from its head being read to its response being ready to send.
    pub(crate) fn request(&self, route: Route, status: u16, took: Duration) {
        let slot = STATUSES.iter().position(|(known, _)| *known == status);
        debug_assert!(slot.is_some(), "the status {status} is missing in STATUSES");
        let slot = slot.unwrap_or(STATUSES.len() - 1);
        add(&self.requests[route as usize][slot], 1);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.seconds[route as usize].observe(nanos, NANOS, &REQUEST_SECONDS);
    }

    /// Counts lookups of ids, in a batch or single.
    pub(crate) fn lookups(&self, found: usize, not_found: usize) {
        add(&self.found, found as u64);
        add(&self.not_found, not_found as u64);
    }

    /// All lookups that were counted.
    pub(crate) fn lookups_so_far(&self) -> u64 {
        self.found.load(Relaxed) + self.not_found.load(Relaxed)
    }

    /// Counts requests for unknown ids.
    pub(crate) fn count_missing(&self, ids: &[&str]) {
        if !ids.is_empty() {
            let mut missing = self.missing.lock();
            ids.iter().for_each(|id| missing.count(id));
        }
    }

    /// Counts a batch by the number of its ids.
    pub(crate) fn batch(&self, ids: usize) {
        self.batch_ids.observe(ids as u64, 1.0, &BATCH_IDS);
    }

    /// Counts an accepted connection.
    pub(crate) fn connection_opened(&self) {
        add(&self.opened, 1);
    }

    /// Counts a closed connection.
    pub(crate) fn connection_closed(&self) {
        add(&self.closed, 1);
    }

    /// Counts a connection that is closed because a request took too long.
    pub(crate) fn timed_out(&self, incomplete: TimedOut) {
        add(&self.timed_out[incomplete as usize], 1);
    }
}

/// Names, help texts and labels, in the order in which `collect` returns the values.
const FAMILIES: [(&str, &str, &[&str]); 6] = [
    ("catalog_http_connections", "Open connections.", &[]),
    ("catalog_batch_ids", "Ids per batch.", &[]),
    ("catalog_lookups_total", "Lookups of ids, by outcome.", &["outcome"]),
    (
        "catalog_http_timeouts_total",
        "Connections closed because a request or its response was not complete in time, by which of the two.",
        &["incomplete"],
    ),
    ("catalog_http_requests_total", "Requests handled, by route and status.", &["route", "status"]),
    (
        "catalog_http_request_duration_seconds",
        "Time from the end of the request head to the response being ready to send.",
        &["route"],
    ),
];

/// Sums the [`RequestMetrics`] of all threads at a scrape.
#[derive(Clone)]
pub(super) struct RequestCollector {
    threads: Arc<Mutex<Vec<Arc<RequestMetrics>>>>,
    descs: Vec<Desc>,
}

impl RequestCollector {
    pub(super) fn new() -> prometheus::Result<Self> {
        let desc = |(name, help, labels): &(&str, &str, &[&str])| {
            let labels = labels.iter().map(ToString::to_string).collect();
            Desc::new((*name).into(), (*help).into(), labels, HashMap::new())
        };
        Ok(Self { threads: Arc::default(), descs: FAMILIES.iter().map(desc).collect::<prometheus::Result<_>>()? })
    }

    /// The metrics of one more thread.
    pub(super) fn register_thread(&self) -> Arc<RequestMetrics> {
        let metrics = Arc::new(RequestMetrics::new());
        self.threads.lock().push(Arc::clone(&metrics));
        metrics
    }

    /// The number of lookups of unknown ids, and the most requested of these ids.
    pub(super) fn top_missing(&self) -> (u64, HashMap<Id, u64>) {
        let (mut count, mut ids) = (0, HashMap::new());
        for thread in self.threads() {
            count += thread.not_found.load(Relaxed);
            thread.missing.lock().add_to(&mut ids);
        }
        (count, ids)
    }

    fn threads(&self) -> Vec<Arc<RequestMetrics>> {
        // A panic cannot leave a list of pointers half-written, so a poisoned lock is still valid.
        self.threads.lock().clone()
    }
}

impl Collector for RequestCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let threads = self.threads();
        let sum = |of: &dyn Fn(&RequestMetrics) -> &AtomicU64| threads.iter().map(|t| of(t).load(Relaxed)).sum::<u64>();

        let mut requests = Vec::new();
        let mut seconds = Vec::new();
        for (route, template) in ROUTES {
            let others = requests.len();
            for (slot, (code, status)) in STATUSES.iter().enumerate() {
                let count = sum(&|t| &t.requests[route as usize][slot]);
                if count > 0 || INITIAL_ROUTES.contains(&route) && INITIAL_STATUSES.contains(code) {
                    requests.push(counter(count, &[("route", template), ("status", status)]));
                }
            }
            if requests.len() > others {
                let parts: Vec<_> = threads.iter().map(|t| &t.seconds[route as usize]).collect();
                seconds.push(histogram(&parts, NANOS, &REQUEST_SECONDS, &[("route", template)]));
            }
        }
        let batch_ids: Vec<_> = threads.iter().map(|t| &t.batch_ids).collect();
        let lookups = vec![
            counter(sum(&|t| &t.found), &[("outcome", "found")]),
            counter(sum(&|t| &t.not_found), &[("outcome", "not_found")]),
        ];
        let timeouts = TIMED_OUT
            .map(|(incomplete, label)| counter(sum(&|t| &t.timed_out[incomplete as usize]), &[("incomplete", label)]))
            .to_vec();
        let mut connections = proto::Gauge::default();
        connections.set_value(sum(&|t| &t.opened).saturating_sub(sum(&|t| &t.closed)) as f64);

        use proto::MetricType::{COUNTER, GAUGE, HISTOGRAM};
        let values: [_; FAMILIES.len()] = [
            (GAUGE, vec![proto::Metric::from_gauge(connections)]),
            (HISTOGRAM, vec![histogram(&batch_ids, 1.0, &BATCH_IDS, &[])]),
            (COUNTER, lookups),
            (COUNTER, timeouts),
            (COUNTER, requests),
            (HISTOGRAM, seconds),
        ];
        let family = |((name, help, _), (kind, metrics)): (&(&str, &str, _), _)| {
            let mut family = proto::MetricFamily::default();
            family.set_name((*name).into());
            family.set_help((*help).into());
            family.set_field_type(kind);
            family.set_metric(metrics);
            family
        };
        FAMILIES.iter().zip(values).map(family).collect()
    }
}

fn labels(pairs: &[(&str, &str)]) -> Vec<proto::LabelPair> {
    let label = |(name, value): &(&str, &str)| {
        let mut pair = proto::LabelPair::default();
        pair.set_name((*name).into());
        pair.set_value((*value).into());
        pair
    };
    pairs.iter().map(label).collect()
}

fn counter(value: u64, pairs: &[(&str, &str)]) -> proto::Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(value as f64);
    let mut metric = proto::Metric::from_label(labels(pairs));
    metric.set_counter(counter);
    metric
}

fn histogram<const N: usize>(
    parts: &[&Buckets<N>],
    scale: f64,
    bounds: &[f64; N],
    pairs: &[(&str, &str)],
) -> proto::Metric {
    let total = |of: &dyn Fn(&Buckets<N>) -> &AtomicU64| parts.iter().map(|part| of(part).load(Relaxed)).sum::<u64>();
    let mut cumulative = 0;
    let mut buckets = Vec::with_capacity(N);
    for (slot, bound) in bounds.iter().enumerate() {
        cumulative += total(&|part| &part.counts[slot]);
        let mut bucket = proto::Bucket::default();
        bucket.set_cumulative_count(cumulative);
        bucket.set_upper_bound(*bound);
        buckets.push(bucket);
    }
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(cumulative + total(&|part| &part.above));
    histogram.set_sample_sum(total(&|part| &part.sum) as f64 / scale);
    let mut metric = proto::Metric::from_label(labels(pairs));
    metric.set_histogram(histogram);
    metric
}
