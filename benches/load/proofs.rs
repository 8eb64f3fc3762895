//! Measurements of the catalog server only: memory of idle connections, a second thread, and scrapes and refreshes
//! under full load.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::Result;
use crate::client;
use crate::idle::bytes_per_connection;
use crate::peers::{self, Kind, Load, Peer};
use crate::process;
use crate::rounds::median;
use crate::sample::{CHANGED, runtime};
use crate::settings::{CONNECTIONS, GENERATOR_CORE, SERVER_CORE, Settings};
use crate::wrk::{Bench, Figures, Run};

/// Prometheus scrapes every 15 s or so; this is more often, so that even a short run has several scrapes.
const SCRAPES: Duration = Duration::from_millis(250);
/// Pairs of runs with and without scrapes per round, and the duration of a run.
const SCRAPE_PAIRS: usize = 5;
const SCRAPE_RUN: Duration = Duration::from_secs(1);
/// Interval of changes: 100 per second.
const CHANGES: Duration = Duration::from_millis(10);
/// Enough connections for SO_REUSEPORT to distribute them evenly.
const SPREAD: usize = 4 * CONNECTIONS;

/// Two variants, measured in turns.
#[derive(Default)]
pub struct Pair {
    pub runs: Vec<(Figures, Figures)>,
}

impl Pair {
    fn measure(times: usize, mut both: impl FnMut() -> Result<(Figures, Figures)>) -> Result<Self> {
        let runs = (0..times).map(|_| both()).collect::<Result<_>>()?;
        Ok(Self { runs })
    }

    /// Medians of a value for the first and the second variant, and of the ratio second to first.
    pub fn medians(&self, figure: impl Fn(&Figures) -> f64) -> [f64; 3] {
        let of = |value: &dyn Fn(&(Figures, Figures)) -> f64| {
            median(self.runs.iter().map(value).collect()).unwrap_or(f64::NAN)
        };
        [of(&|run| figure(&run.0)), of(&|run| figure(&run.1)), of(&|run| figure(&run.1) / figure(&run.0))]
    }

    pub fn failures(&self) -> f64 {
        self.runs.iter().map(|(first, second)| first.failures + second.failures).sum()
    }
}

/// All of these measurements.
pub struct Proofs {
    /// Resident memory of each server.
    pub memory: Vec<Memory>,
    /// One thread on one core, two threads on two cores.
    pub threads: Pair,
    /// Without and with scrapes.
    pub scrape: Pair,
    /// Twice without, measured in the same rounds.
    pub control: Pair,
    /// Duration of each scrape in milliseconds.
    pub scrapes: Vec<f64>,
    /// Without and with continuous changes.
    pub refresh: Pair,
    /// Snapshots published per second during the changes.
    pub published: f64,
}

impl Proofs {
    pub fn run(bench: &Bench<'_>, settings: &Settings, ours: &Peer, kinds: &[Kind]) -> Result<Self> {
        let (scrape, control, scrapes) = scrape(bench, settings, ours)?;
        let (refresh, published) = refresh(bench, settings)?;
        let memory = memory(bench, settings, kinds)?;
        Ok(Self { memory, threads: threads(bench, settings)?, scrape, control, scrapes, refresh, published })
    }
}

fn full_load(bench: &Bench<'_>, duration: Duration, peer: &Peer) -> Result<Figures> {
    let run = Run { cores: GENERATOR_CORE, threads: 1, connections: CONNECTIONS, duration };
    bench.wrk(peer, Load::Single, run)
}

/// Resident memory in bytes.
pub struct Memory {
    pub kind: Kind,
    /// After the start, with the catalog loaded.
    pub start: f64,
    /// Of an idle keep-alive connection.
    pub connection: f64,
}

/// Uses new servers, so that no earlier load has grown their memory.
fn memory(bench: &Bench<'_>, settings: &Settings, kinds: &[Kind]) -> Result<Vec<Memory>> {
    let measure = |kind: &Kind| {
        eprintln!("{kind:?}: memory of {} idle connections", settings.idle);
        let peer = peers::start(*kind, bench.temp, bench.sample, bench.bodies)?;
        let start = peer.process.memory("VmRSS")? as f64;
        Ok(Memory { kind: *kind, start, connection: bytes_per_connection(bench, &peer, settings.idle)? })
    };
    kinds.iter().map(measure).collect()
}

/// Load generator and server share one core, then two cores. Their shares are the same in both cases, so the request
/// rates show how the server scales.
fn threads(bench: &Bench<'_>, settings: &Settings) -> Result<Pair> {
    eprintln!("two threads against one");
    let both = format!("{SERVER_CORE},{GENERATOR_CORE}");
    let half = peers::catalog(bench.temp, bench.sample, 1, SERVER_CORE)?;
    let whole = peers::catalog(bench.temp, bench.sample, 2, &both)?;
    Pair::measure(settings.rounds, || {
        let one = Run { cores: SERVER_CORE, threads: 1, connections: SPREAD, duration: settings.run };
        let two = Run { cores: &both, threads: 2, connections: 2 * SPREAD, duration: settings.run };
        Ok((bench.wrk(&half, Load::Batch10, one)?, bench.wrk(&whole, Load::Batch10, two)?))
    })
}

/// The p99 of two identical runs differs by up to a half: detecting a tenth takes many short runs and a control.
fn scrape(bench: &Bench<'_>, settings: &Settings, ours: &Peer) -> Result<(Pair, Pair, Vec<f64>)> {
    eprintln!("scrapes under full load");
    let (mut times, mut control) = (Vec::new(), Pair::default());
    let port = ours.port(Load::Single);
    let pair = Pair::measure(SCRAPE_PAIRS * settings.rounds, || {
        let without = full_load(bench, SCRAPE_RUN, ours)?;
        let (with, scrapes) = beside(
            |over| {
                let mut times = Vec::new();
                while !over.load(Relaxed) {
                    let started = Instant::now();
                    let response = client::get(port, "/metrics")?;
                    if response.status != 200 {
                        return Err(format!("a scrape returned status {}", response.status).into());
                    }
                    times.push(started.elapsed().as_secs_f64() * 1e3);
                    std::thread::sleep(SCRAPES);
                }
                Ok(times)
            },
            || full_load(bench, SCRAPE_RUN, ours),
        )?;
        times.extend(scrapes);
        control.runs.push((without, full_load(bench, SCRAPE_RUN, ours)?));
        Ok((without, with))
    })?;
    Ok((pair, control, times))
}

/// Runs `load` while `other` runs on a separate thread, until the flag is set at the end of the load.
fn beside<T: Send>(
    other: impl FnOnce(&AtomicBool) -> Result<T> + Send,
    load: impl FnOnce() -> Result<Figures>,
) -> Result<(Figures, T)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| other(&over));
        let figures = load();
        over.store(true, Relaxed);
        let came = thread.join().map_err(|_| "the thread that ran during the load panicked")?;
        Ok((figures?, came?))
    })
}

/// Serving thread and load generator share one core; the loader and Postgres share the other. If Postgres shared a core
/// with the load generator, the result would include the work of Postgres.
fn refresh(bench: &Bench<'_>, settings: &Settings) -> Result<(Pair, f64)> {
    eprintln!("refreshes under full load");
    let ours = &peers::catalog(bench.temp, bench.sample, 1, SERVER_CORE)?;
    process::pin_threads(ours.process.pid(), "loader", GENERATOR_CORE)?;
    let full_load = || {
        let run = Run { cores: SERVER_CORE, threads: 1, connections: CONNECTIONS, duration: settings.run };
        bench.wrk(ours, Load::Single, run)
    };
    let mut rates = Vec::new();
    let pair = Pair::measure(settings.rounds, || {
        let without = full_load()?;
        let before = published(ours)?;
        let started = Instant::now();
        let with = beside_changes(bench, full_load)?;
        rates.push((published(ours)? - before) / started.elapsed().as_secs_f64());
        Ok((without, with))
    })?;
    Ok((pair, median(rates).unwrap_or(f64::NAN)))
}

/// Runs `load` while one model changes continuously.
pub fn beside_changes(bench: &Bench<'_>, load: impl FnOnce() -> Result<Figures>) -> Result<Figures> {
    let database = bench.sample.postgres.url("postgres");
    beside(|over| change(&database, over), load).map(|(figures, ())| figures)
}

/// Changes one model repeatedly.
fn change(database: &str, over: &AtomicBool) -> Result<()> {
    runtime()?.block_on(async {
        let (client, connection) = tokio_postgres::connect(database, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        let statement = client.prepare("UPDATE models SET description = $1 WHERE id = $2").await?;
        let mut clock = tokio::time::interval(CHANGES);
        for number in 0_u32.. {
            if over.load(Relaxed) {
                break;
            }
            clock.tick().await;
            client.execute(&statement, &[&number.to_string(), &CHANGED]).await?;
        }
        Ok(())
    })
}

/// Successful deltas so far, from the metrics of the server. All but the polls find a change and publish a snapshot.
fn published(ours: &Peer) -> Result<f64> {
    let response = client::get(ours.port(Load::Single), "/metrics")?;
    let text = String::from_utf8_lossy(&response.body).into_owned();
    let count = text.lines().filter_map(|line| line.strip_prefix("catalog_refreshes_total{")).find_map(|line| {
        let (labels, count) = line.split_once('}')?;
        let delta = labels.contains("kind=\"delta\"") && labels.contains("outcome=\"ok\"");
        if delta { count.trim().parse::<f64>().ok() } else { None }
    });
    // The counter is absent until it has been incremented.
    Ok(count.unwrap_or(0.0))
}
