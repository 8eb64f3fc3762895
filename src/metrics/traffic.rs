//! What requests count, for each serving thread apart: a [`Traffic`] that only its own thread writes, so that threads
//! share no cache line, and the collector that sums them at a scrape.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use crate::missing::{Id, Missing};

/// What a request is counted under: a template, never a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `GET /api/models/{id}`
    Single,
    /// `POST /api/models/batch`
    Batch,
    /// `GET /api/models`
    Models,
    /// `GET /api/catalog`
    Catalog,
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
    /// Everything else.
    Other,
}

const ROUTES: [(Route, &str); 10] = [
    (Route::Single, "/api/models/{id}"),
    (Route::Batch, "/api/models/batch"),
    (Route::Models, "/api/models"),
    (Route::Catalog, "/api/catalog"),
    (Route::OpenApi, "/openapi.json"),
    (Route::Page, "/"),
    (Route::Livez, "/livez"),
    (Route::Readyz, "/readyz"),
    (Route::Metrics, "/metrics"),
    (Route::Other, "other"),
];

/// The templates of all routes; the last is that of everything else.
#[must_use]
pub fn templates() -> [&'static str; ROUTES.len()] {
    ROUTES.map(|(_, template)| template)
}

/// The statuses this program answers with; the last place counts any other.
const STATUSES: [(u16, &str); 10] = [
    (200, "200"),
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

/// Shown from the start, at 0: a rate needs a value before the first event, or that event stays unseen.
const ALWAYS_SHOWN: ([Route; 2], [u16; 3]) = ([Route::Single, Route::Batch], [200, 500, 503]);

/// Upper bounds in seconds. An answer from memory takes a few microseconds, a stalled client's body many seconds.
const REQUEST_SECONDS: [f64; 14] =
    [10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3, 1.0, 10.0];
const BATCH_IDS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// A histogram with `N` upper bounds that one thread writes.
#[derive(Debug)]
struct Buckets<const N: usize> {
    counts: [AtomicU64; N],
    above: AtomicU64,
    /// Sum of what was observed, in the unit of [`Buckets::observe`].
    sum: AtomicU64,
}

impl<const N: usize> Buckets<N> {
    fn new() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; N], above: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// `value` is an amount of the unit in `per_one`-ths, `bounds` are whole units.
    fn observe(&self, value: u64, per_one: f64, bounds: &[f64; N]) {
        let whole = value as f64 / per_one;
        let slot = bounds.iter().position(|bound| whole <= *bound);
        add(slot.map_or(&self.above, |slot| &self.counts[slot]), 1);
        add(&self.sum, value);
    }
}

/// Adds to a counter that only the calling thread writes: without the bus lock of a `fetch_add`, of which a request would
/// need six.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

const NANOS: f64 = 1e9;

/// What one serving thread counts.
#[derive(Debug)]
pub struct Traffic {
    requests: [[AtomicU64; STATUSES.len()]; ROUTES.len()],
    seconds: [Buckets<{ REQUEST_SECONDS.len() }>; ROUTES.len()],
    batch_ids: Buckets<{ BATCH_IDS.len() }>,
    found: AtomicU64,
    not_found: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
    /// Only a look-up in vain takes it, and whoever reads the list.
    missing: Mutex<Missing>,
}

impl Traffic {
    fn new() -> Self {
        Self {
            requests: [const { [const { AtomicU64::new(0) }; STATUSES.len()] }; ROUTES.len()],
            seconds: std::array::from_fn(|_| Buckets::new()),
            batch_ids: Buckets::new(),
            found: AtomicU64::new(0),
            not_found: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            missing: Mutex::default(),
        }
    }

    /// A request was answered; `took` runs from its head having been read to its answer being ready to send.
    pub fn request(&self, route: Route, status: u16, took: Duration) {
        let place = STATUSES.iter().position(|(known, _)| *known == status).unwrap_or(STATUSES.len() - 1);
        add(&self.requests[route as usize][place], 1);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.seconds[route as usize].observe(nanos, NANOS, &REQUEST_SECONDS);
    }

    /// Ids were looked up, by a batch or one by one.
    pub fn lookups(&self, found: usize, not_found: usize) {
        add(&self.found, found as u64);
        add(&self.not_found, not_found as u64);
    }

    /// These ids were asked for, and the catalog lacks them.
    pub fn missing(&self, ids: &[&str]) {
        if !ids.is_empty() {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            ids.iter().for_each(|id| missing.count(id));
        }
    }

    /// A batch asked for this many ids.
    pub fn batch(&self, ids: usize) {
        self.batch_ids.observe(ids as u64, 1.0, &BATCH_IDS);
    }

    /// A connection was accepted.
    pub fn connection_opened(&self) {
        add(&self.opened, 1);
    }

    /// A connection ended.
    pub fn connection_closed(&self) {
        add(&self.closed, 1);
    }
}

/// Sums the [`Traffic`] of all threads at a scrape.
#[derive(Clone)]
pub(super) struct TrafficCollector {
    threads: Arc<Mutex<Vec<Arc<Traffic>>>>,
    requests: Desc,
    seconds: Desc,
    connections: Desc,
    batch_ids: Desc,
    lookups: Desc,
}

impl TrafficCollector {
    pub(super) fn new() -> prometheus::Result<Self> {
        let desc = |name: &str, help: &str, labels: &[&str]| {
            let labels = labels.iter().map(ToString::to_string).collect();
            Desc::new(name.into(), help.into(), labels, Default::default())
        };
        Ok(Self {
            threads: Arc::default(),
            requests: desc("catalog_http_requests_total", "Requests answered.", &["route", "status"])?,
            seconds: desc(
                "catalog_http_request_duration_seconds",
                "Time from a request's head read to its answer ready to send.",
                &["route"],
            )?,
            connections: desc("catalog_http_connections", "Connections open now.", &[])?,
            batch_ids: desc("catalog_batch_ids", "Ids asked for in one batch.", &[])?,
            lookups: desc("catalog_lookups_total", "Ids looked up, by outcome.", &["outcome"])?,
        })
    }

    /// The counters of one more thread.
    pub(super) fn thread(&self) -> Arc<Traffic> {
        let traffic = Arc::new(Traffic::new());
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&traffic));
        traffic
    }

    /// Look-ups in vain, and the ids of them that are still known.
    pub(super) fn missing(&self) -> (u64, HashMap<Id, u64>) {
        let (mut count, mut ids) = (0, HashMap::new());
        for thread in self.threads() {
            count += thread.not_found.load(Relaxed);
            thread.missing.lock().unwrap_or_else(PoisonError::into_inner).add_to(&mut ids);
        }
        (count, ids)
    }

    fn threads(&self) -> Vec<Arc<Traffic>> {
        // A panic can't leave a list of pointers half-written, so a poisoned lock is as good as a sound one.
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Collector for TrafficCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.requests, &self.seconds, &self.connections, &self.batch_ids, &self.lookups]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let threads = self.threads();
        let sum = |of: &dyn Fn(&Traffic) -> &AtomicU64| threads.iter().map(|t| of(t).load(Relaxed)).sum::<u64>();

        let mut requests = Vec::new();
        let mut seconds = Vec::new();
        for (route, template) in ROUTES {
            let of_route = requests.len();
            for (place, (code, status)) in STATUSES.iter().enumerate() {
                let count = sum(&|t| &t.requests[route as usize][place]);
                if count > 0 || ALWAYS_SHOWN.0.contains(&route) && ALWAYS_SHOWN.1.contains(code) {
                    requests.push(counter(count, &[("route", template), ("status", status)]));
                }
            }
            if requests.len() > of_route {
                let parts: Vec<_> = threads.iter().map(|t| &t.seconds[route as usize]).collect();
                seconds.push(histogram(&parts, NANOS, &REQUEST_SECONDS, &[("route", template)]));
            }
        }
        let batch_ids: Vec<_> = threads.iter().map(|t| &t.batch_ids).collect();
        let lookups = vec![
            counter(sum(&|t| &t.found), &[("outcome", "found")]),
            counter(sum(&|t| &t.not_found), &[("outcome", "not_found")]),
        ];
        let mut connections = proto::Gauge::default();
        connections.set_value(sum(&|t| &t.opened).saturating_sub(sum(&|t| &t.closed)) as f64);

        use proto::MetricType::{COUNTER, GAUGE, HISTOGRAM};
        vec![
            family(&self.connections, GAUGE, vec![proto::Metric::from_gauge(connections)]),
            family(&self.batch_ids, HISTOGRAM, vec![histogram(&batch_ids, 1.0, &BATCH_IDS, &[])]),
            family(&self.lookups, COUNTER, lookups),
            family(&self.requests, COUNTER, requests),
            family(&self.seconds, HISTOGRAM, seconds),
        ]
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
    per_one: f64,
    bounds: &[f64; N],
    pairs: &[(&str, &str)],
) -> proto::Metric {
    let sum = |of: &dyn Fn(&Buckets<N>) -> &AtomicU64| parts.iter().map(|part| of(part).load(Relaxed)).sum::<u64>();
    let mut cumulative = 0;
    let mut buckets = Vec::with_capacity(N);
    for (slot, bound) in bounds.iter().enumerate() {
        cumulative += sum(&|part| &part.counts[slot]);
        let mut bucket = proto::Bucket::default();
        bucket.set_cumulative_count(cumulative);
        bucket.set_upper_bound(*bound);
        buckets.push(bucket);
    }
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(cumulative + sum(&|part| &part.above));
    histogram.set_sample_sum(sum(&|part| &part.sum) as f64 / per_one);
    let mut metric = proto::Metric::from_label(labels(pairs));
    metric.set_histogram(histogram);
    metric
}

fn family(desc: &Desc, kind: proto::MetricType, metrics: Vec<proto::Metric>) -> proto::MetricFamily {
    let mut family = proto::MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}
