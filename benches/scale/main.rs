//! Scaling with the size of the catalog: the same measurements at 1,000, 100,000 and 1,000,000 models, in one run.
//!
//! `make bench-scale` prints the table and writes it to `benches/results/scale.md`. SCALE_SIZES, SCALE_CHANGES and
//! SCALE_SINGLE_CHANGES set its duration.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its results")]

mod cores;
mod heading;
mod probe;
#[path = "../load/process.rs"]
#[allow(dead_code, reason = "the load bench uses the rest")]
mod process;
mod subject;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use heading::heading;
use probe::{Latencies, Probe};
use subject::{Database, Server, Source};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Rows of a large transaction.
const MANY: usize = 10_000;
/// Minimum time that lookups are measured during one kind of work: some 4,000 lookups, so that the p99 is meaningful.
const PHASE: Duration = Duration::from_secs(3);

/// Lookups during each kind of work.
type Busy = Vec<(&'static str, Latencies)>;

/// The measurements at one size.
struct Row {
    models: usize,
    bytes: f64,
    copy: Duration,
    full: Duration,
    file: Duration,
    resident: f64,
    peak: f64,
    churned: f64,
    change: Latencies,
    many: Duration,
    batch10: Duration,
    batch50: Duration,
    search: Duration,
    idle: Latencies,
    busy: Busy,
}

fn main() -> Result<()> {
    let sizes = setting("SCALE_SIZES", "1000,100000,1000000");
    let sizes: Vec<usize> = sizes.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
    let changes: usize = setting("SCALE_CHANGES", "300").parse()?;
    let churn: usize = setting("SCALE_SINGLE_CHANGES", "100000").parse()?;
    let database = Database::start()?;
    let mut rows = Vec::new();
    for models in sizes {
        eprintln!("{models} models");
        rows.push(measure(&database, models, changes, churn)?);
    }
    let report = report(&rows, churn)?;
    println!("{report}");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results");
    std::fs::create_dir_all(folder)?;
    std::fs::write(format!("{folder}/scale.md"), report)?;
    Ok(())
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.into())
}

fn measure(database: &Database, models: usize, changes: usize, churn: usize) -> Result<Row> {
    let source = database.fill(models)?;
    // In turns, so that noise affects both.
    let (mut copies, mut fulls) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        copies.push(source.copy()?);
        fulls.push(Server::start(&source, None)?.loaded()?);
    }
    let server = Server::start(&source, Some("catalog.snapshot"))?;
    server.loaded()?;
    let bytes = server.metric("catalog_snapshot_bytes")?;
    let resident = server.memory("VmRSS")?;

    let change = Latencies::of((0..changes).map(|_| source.change_and_see(&server)).collect::<Result<_>>()?);
    let many = source.change_many(&server, MANY.min(models))?;
    let [batch10, batch50] = [10, 50].map(|count| server.batches(models, count));
    let search = median((0..3).map(|_| server.search()).collect::<Result<_>>()?);
    source.reload(&server)?;
    let peak = server.memory("VmHWM")?;
    let (idle, busy) = look_ups(&source, &server, models, churn)?;
    let churned = server.memory("VmRSS")?;

    let path = server.stop()?;
    let started = Instant::now();
    let restarted = Server::start_without_database(&path)?;
    restarted.wait_for_response()?;
    let file = started.elapsed();
    Ok(Row {
        models,
        bytes,
        copy: median(copies),
        full: median(fulls),
        file,
        resident,
        peak,
        churned,
        change,
        many,
        batch10: batch10?,
        batch50: batch50?,
        search,
        idle,
        busy,
    })
}

/// Single lookups on a separate core, idle and while the other core is busy with each kind of work.
fn look_ups(source: &Source<'_>, server: &Server, models: usize, churn: usize) -> Result<(Latencies, Busy)> {
    let probe = Probe::start(server.address(), "/api/models/model-1")?;
    cores::isolate(server.process())?;
    let works: [(&'static str, &dyn Fn() -> Result<()>); 5] = [
        ("single changes", &|| source.change_and_see(server).map(drop)),
        ("10,000 rows", &|| source.change_many(server, MANY.min(models)).map(drop)),
        ("full reload", &|| source.reload(server)),
        ("searches", &|| server.search().map(drop)),
        ("churn", &|| source.churn(server, churn)),
    ];
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for (what, work) in works {
        // Idle before each kind of work, so that other load on this machine affects all of them alike.
        probe.take();
        std::thread::sleep(PHASE);
        idle.extend(probe.take());
        let started = Instant::now();
        while started.elapsed() < PHASE {
            work()?;
        }
        busy.push((what, Latencies::of(probe.take())));
    }
    cores::release();
    Ok((Latencies::of(idle), busy))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn report(rows: &[Row], churn: usize) -> Result<String> {
    let mut text = heading("Scale", "bench-scale")?;
    text += " During lookups the serving thread and the probe share one core; Postgres, the loader and the rest of the \
             benchmark share the other.\n\n| measurement |";
    for row in rows {
        write!(text, " {} models |", row.models)?;
    }
    write!(text, "\n|---|{}\n", "---:|".repeat(rows.len()))?;
    let mut line = |what: &str, of: &dyn Fn(&Row) -> String| {
        let cells: Vec<String> = rows.iter().map(of).collect();
        text += &format!("| {what} | {} |\n", cells.join(" | "));
    };
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    line("one changed row, commit → served, median", &|row| ms(row.change.quantile(0.5)));
    line("– p99", &|row| ms(row.change.quantile(0.99)));
    line("10,000 rows (or all) in one transaction, commit → all served", &|row| ms(row.many));
    line("`psql` binary COPY of the view, discarded", &|row| ms(row.copy));
    line("full read", &|row| ms(row.full));
    line("– ratio to the COPY", &|row| format!("{:.2} times", row.full.as_secs_f64() / row.copy.as_secs_f64()));
    line("start from the snapshot file without a database, until the first response", &|row| ms(row.file));
    line("– ratio to the full read", &|row| format!("{:.2} times", row.file.as_secs_f64() / row.full.as_secs_f64()));
    line("rendered models and ids", &|row| format!("{:.1} MiB", mib(row.bytes)));
    for (count, of) in [(10, |row: &Row| row.batch10), (50, |row: &Row| row.batch50)] as [(_, fn(&Row) -> Duration); 2]
    {
        let least = rows.first().map_or(0.0, |row| of(row).as_secs_f64());
        line(&format!("CPU time of a batch of {count} random ids, ratio to that with the fewest models"), &|row| {
            format!("{:.1} µs, {:.2} times", of(row).as_secs_f64() * 1e6, of(row).as_secs_f64() / least)
        });
    }
    line("search over all models without a match", &|row| ms(row.search));
    let memory = |of: f64, row: &Row| format!("{:.1} MiB, {:.2} times", mib(of), of / row.bytes);
    line("resident memory after the load", &|row| memory(row.resident, row));
    line("– peak, including a full reload", &|row| memory(row.peak, row));
    line(&format!("– after {churn} single changes"), &|row| memory(row.churned, row));
    line("single lookup, idle, p99", &|row| ms(row.idle.quantile(0.99)));
    for (place, (what, _)) in rows.first().into_iter().flat_map(|row| row.busy.iter().enumerate()) {
        line(&format!("– during: {what}"), &|row| {
            let p99 = row.busy[place].1.quantile(0.99);
            format!("{}, {:.2} times", ms(p99), p99.as_secs_f64() / row.idle.quantile(0.99).as_secs_f64())
        });
    }
    Ok(text)
}
