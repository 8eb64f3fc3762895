//! How many replicas one Postgres can serve: loaders, each with its own session and store, follow one database or a
//! streaming standby of it.
//!
//! `make bench-fanout` prints the table and writes it to `benches/results/fanout.md`. FANOUT_REPLICAS (200),
//! FANOUT_CHANGES (100) and FANOUT_IDLE_SECONDS (30) set its duration. All replicas share one thread of this process.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its results")]

#[path = "scale/heading.rs"]
mod heading;
#[path = "scale/probe.rs"]
#[allow(dead_code, reason = "the bench of sizes uses the rest")]
mod probe;
#[path = "load/process.rs"]
#[allow(dead_code, reason = "the load bench uses the rest")]
mod process;
#[path = "fanout/report.rs"]
mod report;

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use model_catalog::catalog::model::Rules;
use model_catalog::catalog::store::Store;
use model_catalog::loader::output::Output;
use model_catalog::loader::{Loader, LoaderSettings};
use model_catalog::metrics::Metrics;
use model_catalog::postgres::config::{DatabaseConfig, Environment};
use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use model_catalog::postgres::migrate::{ModelsTable, migrate};
use model_catalog::postgres::session::{self, SyncMode};
use model_catalog::sync::SyncStatus;
use probe::Latencies;
use report::{Row, report};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio_postgres::Client;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const MODELS: usize = 1_000;
/// Default of `CATALOG_POLL_INTERVAL`.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Default of `CATALOG_STANDBY_POLL_INTERVAL`.
const STANDBY_POLL_INTERVAL: Duration = Duration::from_millis(250);
/// An interval for fleets that need changes sooner.
const SHORT_INTERVAL: Duration = Duration::from_millis(50);
/// Pause after a change, so that replicas and database are idle when the next one is made.
const REST: Duration = Duration::from_millis(50);
/// Changes that are not measured: the first read of a new session fills its caches.
const WARM_UP: usize = 3;
/// Interval for checking the replicas that do not serve a change yet.
const CHECK_INTERVAL: Duration = Duration::from_micros(100);
const PATIENCE: Duration = Duration::from_secs(60);
const CHANNEL: &str = "model_catalog";

fn main() -> Result<()> {
    let most = setting("FANOUT_REPLICAS", 200)?.max(2);
    let changes = setting("FANOUT_CHANGES", 100)?.max(1);
    let idle = Duration::from_secs(setting("FANOUT_IDLE_SECONDS", 30)?.max(1) as u64);
    let source = Source::start(most)?;
    let mut counts = vec![1, most.div_ceil(4), most];
    counts.dedup();
    let on_primary = counts.iter().map(|replicas| Setup { replicas: *replicas, standby: None });
    let on_standby = [(1, STANDBY_POLL_INTERVAL), (most, STANDBY_POLL_INTERVAL), (1, SHORT_INTERVAL)];
    let on_standby = on_standby.map(|(replicas, interval)| Setup { replicas, standby: Some(interval) });
    let rows = on_primary.chain(on_standby).map(|setup| {
        eprintln!("{}", setup.title());
        measure(&source, setup, changes, idle)
    });
    let report = report(&rows.collect::<Result<Vec<_>>>()?, changes, &source.version)?;
    println!("{report}");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results");
    std::fs::create_dir_all(folder)?;
    std::fs::write(format!("{folder}/fanout.md"), report)?;
    Ok(())
}

fn setting(name: &str, default: usize) -> Result<usize> {
    let value = std::env::var(name).unwrap_or_else(|_| default.to_string());
    value.parse().map_err(|_| format!("{name} is not a number: {value}").into())
}

/// What a column of the table is measured with.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Number of loaders.
    pub replicas: usize,
    /// The interval of their polls if they follow the standby; `None` if they follow the primary.
    pub standby: Option<Duration>,
}

impl Setup {
    fn title(self) -> String {
        let replicas = format!("{} replica{}", self.replicas, if self.replicas == 1 { "" } else { "s" });
        match self.standby {
            None => replicas,
            Some(interval) => format!("{replicas} of a standby, {} ms", interval.as_millis()),
        }
    }
}

/// An ephemeral Postgres with the catalog and a standby, and the session that changes it.
struct Source {
    sql: Arc<Client>,
    standby_sql: Client,
    writer: i32,
    version: String,
    runtime: Runtime,
    server: EphemeralPostgres,
    standby: EphemeralPostgres,
}

impl Source {
    fn start(replicas: usize) -> Result<Self> {
        // No autovacuum: when a worker exits, its CPU time disappears from /proc.
        let settings = [("fsync", "off"), ("autovacuum", "off"), ("max_connections", &(replicas + 20).to_string())]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let server =
            EphemeralPostgres::start(EphemeralOptions { settings: settings.to_vec(), ..EphemeralOptions::default() })?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let address = database(&server)?;
        let (sql, writer, version) = runtime.block_on(async {
            let mut sql = session::connect(&address).await?;
            migrate(&mut sql, CHANNEL, &Rules::default(), ModelsTable::Create).await?;
            let insert = format!(
                "INSERT INTO models
                 SELECT 'model-' || n, 'model-' || n || '.safetensors',
                        'https://huggingface.co/some-organisation/repository-' || n || '/resolve/main/model.safetensors',
                        n / 100.0, md5(n::text) || md5((n + 1)::text), false, NULL,
                        'checkpoints/model-' || n || '.safetensors', '[]', 'Generated for a benchmark, number ' || n
                 FROM generate_series(1, {MODELS}) n"
            );
            sql.batch_execute(&insert).await?;
            sql.batch_execute("VACUUM ANALYZE").await?;
            let about = sql.query_one("SELECT pg_backend_pid(), split_part(version(), ' ', 2)", &[]).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((sql, about.get(0), about.get(1)))
        })?;
        let standby = EphemeralPostgres::standby_of(&server)?;
        let standby_sql = runtime.block_on(session::connect(&database(&standby)?))?;
        Ok(Self { sql: Arc::new(sql), standby_sql, writer, version, runtime, server, standby })
    }

    /// CPU time so far.
    fn cpu(&self) -> Result<Cpu> {
        Ok(Cpu {
            primary: server_cpu(&self.server)?,
            writer: tasks_cpu(&self.writer.to_string())?,
            standby: server_cpu(&self.standby)?,
        })
    }

    /// Waits until the replicas have their sessions, and the other server has none.
    fn until_sessions(&self, setup: Setup) -> Result<()> {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
        let count = |sql: &Client| self.runtime.block_on(sql.query_one(query, &[])).map(|row| row.get::<_, i64>(0) - 1);
        let replicas = setup.replicas as i64;
        let expected = if setup.standby.is_some() { (0, replicas) } else { (replicas, 0) };
        let deadline = Instant::now() + PATIENCE;
        while (count(&self.sql)?, count(&self.standby_sql)?) != expected {
            if Instant::now() > deadline {
                return Err(format!("expected {expected:?} sessions on the primary and the standby").into());
            }
            std::thread::sleep(REST);
        }
        Ok(())
    }

    /// Changes one model; returns, for each replica, the time from sending the commit until the replica serves it.
    fn change(&self, replicas: &Replicas, number: usize) -> Result<Vec<Duration>> {
        let id = format!("model-{}", number * 7 % MODELS + 1);
        let text = format!("change {number} with {} replicas", replicas.stores.len());
        let update = format!("BEGIN; UPDATE models SET description = '{text}' WHERE id = '{id}'");
        self.runtime.block_on(self.sql.batch_execute(&update))?;
        let revision = |store: &Store| store.load().as_ref().map(|snapshot| snapshot.revision());
        let before = revision(&replicas.stores[0]);
        let mut waiting: Vec<&Store> = replicas.stores.iter().map(AsRef::as_ref).collect();
        let mut times = Vec::with_capacity(waiting.len());
        let sql = Arc::clone(&self.sql);
        let started = Instant::now();
        let commit = self.runtime.spawn(async move { sql.batch_execute("COMMIT").await });
        while !waiting.is_empty() {
            std::thread::sleep(CHECK_INTERVAL);
            waiting.retain(|store| revision(store) == before);
            let now = started.elapsed();
            times.resize(replicas.stores.len() - waiting.len(), now);
            if now > PATIENCE {
                return Err(format!("{} replicas do not serve the change", waiting.len()).into());
            }
        }
        self.runtime.block_on(commit)??;
        // The revision changed on every replica; verify that it was this change.
        let serves = |store: &Store| {
            let snapshot = store.load();
            let entry = snapshot.as_ref().and_then(|snapshot| snapshot.get(&id));
            entry.is_some_and(|entry| memchr::memmem::find(entry.json(), text.as_bytes()).is_some())
        };
        if replicas.stores.iter().all(|store| serves(store)) {
            Ok(times)
        } else {
            Err("a replica serves other content".into())
        }
    }
}

fn database(server: &EphemeralPostgres) -> Result<DatabaseConfig> {
    Ok(DatabaseConfig::parse(&server.url("postgres"), &Environment::default(), CHANNEL, PATIENCE)?)
}

/// CPU time in seconds.
struct Cpu {
    /// Of all processes of the primary.
    primary: f64,
    /// Of the writing session, which is one of them.
    writer: f64,
    /// Of all processes of the standby.
    standby: f64,
}

/// CPU time of all processes of a server so far, in seconds.
fn server_cpu(server: &EphemeralPostgres) -> Result<f64> {
    let postmaster = server.pid().ok_or("Postgres has exited")?;
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"))?;
    let mut all = tasks_cpu(&postmaster.to_string())?;
    for child in children.split_whitespace() {
        all += tasks_cpu(child)?;
    }
    Ok(all)
}

/// CPU time of the threads of a process so far, in seconds.
fn tasks_cpu(pid: &str) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir(Path::new("/proc").join(pid).join("task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += text.split(' ').next().unwrap_or_default().parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}

/// Loaders on a separate thread; dropping this stops them.
struct Replicas {
    stores: Vec<Arc<Store>>,
    /// Shared by all replicas.
    metrics: Arc<Metrics>,
    end: Option<oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
}

impl Replicas {
    fn start(source: &Source, setup: Setup) -> Result<Self> {
        let stores: Vec<_> = (0..setup.replicas).map(|_| Arc::<Store>::default()).collect();
        let metrics = Arc::new(Metrics::new()?);
        let settings = LoaderSettings {
            database: database(if setup.standby.is_some() { &source.standby } else { &source.server })?,
            poll_interval: POLL_INTERVAL,
            standby_poll_interval: setup.standby.unwrap_or(STANDBY_POLL_INTERVAL),
            audit_interval: Duration::from_secs(3600),
            rules: Rules::default(),
            replica: "replica".into(),
        };
        let statuses: Vec<_> = stores.iter().map(|_| Arc::<SyncStatus>::default()).collect();
        let loader = |(store, sync): (&Arc<Store>, &Arc<SyncStatus>)| {
            let (store, sync, metrics) = (Arc::clone(store), Arc::clone(sync), Arc::clone(&metrics));
            Loader::new(settings.clone(), Output::new(store, sync, metrics, watch::channel(None).0))
        };
        let loaders: Vec<_> = stores.iter().zip(&statuses).map(loader).collect();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (end, asked) = oneshot::channel();
        let (ending, ended) = mpsc::channel();
        std::thread::Builder::new().name("replicas".into()).spawn(move || {
            let _ = runtime.block_on(async {
                loaders.into_iter().for_each(|loader| drop(tokio::spawn(loader.run())));
                asked.await
            });
            drop((runtime, ending));
        })?;
        let replicas = Self { stores, metrics, end: Some(end), ended };
        let deadline = Instant::now() + PATIENCE;
        let mode = if setup.standby.is_some() { SyncMode::Standby } else { SyncMode::Live };
        let synced = |status: &Arc<SyncStatus>| status.last_sync().is_some_and(|sync| sync.mode == Some(mode));
        while !statuses.iter().all(synced) {
            if Instant::now() > deadline {
                return Err("the replicas did not start".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(replicas)
    }

    fn reads(&self) -> u64 {
        self.metrics.reads.total.with_label_values(&["delta", "ok"]).get()
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        drop(self.end.take());
        // The thread drops its end of the channel when it has finished.
        let _ = self.ended.recv();
    }
}

/// Pause after a change. A random part of the polls' interval keeps changes from being in phase with the polls.
fn rest(setup: Setup) {
    std::thread::sleep(REST + setup.standby.unwrap_or_default().mul_f64(fastrand::f64()));
}

fn measure(source: &Source, setup: Setup, changes: usize, idle: Duration) -> Result<Row> {
    let replicas = Replicas::start(source, setup)?;
    let me = std::process::id().to_string();
    for number in 0..WARM_UP {
        source.change(&replicas, number)?;
        rest(setup);
    }
    source.until_sessions(setup)?;
    let (mut each, mut last) = (Vec::new(), Vec::new());
    let (reads, harness, before) = (replicas.reads(), tasks_cpu(&me)?, source.cpu()?);
    for number in WARM_UP..WARM_UP + changes {
        let times = source.change(&replicas, number)?;
        last.extend(times.iter().max());
        each.extend(times);
        rest(setup);
    }
    let after = source.cpu()?;
    let per_change = |seconds: f64| seconds / changes as f64;
    let harness = per_change(tasks_cpu(&me)? - harness);
    let after_changes = replicas.reads();
    if setup.standby.is_none() {
        // The last change has synchronized all polls: start halfway between two of them.
        std::thread::sleep(POLL_INTERVAL / 2);
    }
    let (reads_before_idle, idle_before, started) = (replicas.reads(), source.cpu()?, Instant::now());
    std::thread::sleep(idle);
    let idle_after = source.cpu()?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Row {
        setup,
        each: Latencies::of(each),
        last: Latencies::of(last),
        database: per_change(after.primary - before.primary),
        writer: per_change(after.writer - before.writer),
        harness,
        reads: per_change((after_changes - reads) as f64),
        idle: (idle_after.primary - idle_before.primary) / seconds,
        standby_idle: (idle_after.standby - idle_before.standby) / seconds,
        polls: (replicas.reads() - reads_before_idle) as f64 / seconds,
    })
}
