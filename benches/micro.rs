//! Microbenchmarks of requests and refreshes: lookup, batch, parsing a body, delta, full build.
//!
//! `make bench-micro` prints what criterion says and writes the medians to `benches/results/micro.md`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its results")]

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use model_catalog::catalog::model::{RawModel, Rules};
use model_catalog::catalog::refresh::Refresh;
use model_catalog::catalog::snapshot::Snapshot;
use model_catalog::http::batch_request::BatchParser;
use model_catalog::http::batch_response::look_up;
use serde::Deserialize;

const MILLION: usize = 1_000_000;

/// Texts of a row, of the same lengths as in the sample catalog.
struct Texts {
    id: String,
    name: String,
    url: String,
    path: String,
}

impl Texts {
    fn new(number: usize) -> Self {
        let name = format!("model_{number}_fp16.safetensors");
        Self {
            id: format!("model-{number}"),
            url: format!("https://huggingface.co/some-owner/some-model-{number}/resolve/main/{name}"),
            path: format!("checkpoints/{name}"),
            name,
        }
    }

    fn row<'a>(&'a self, description: &'a str) -> RawModel<'a> {
        RawModel {
            id: Some(&self.id),
            name: Some(&self.name),
            download_url: Some(&self.url),
            file_size_gb: Some("23.80"),
            hash: Some("4610115bb0c89560703c892c59ac2742fa821e60ef5871b33493ba544683abd7"),
            auth_required: Some(true),
            auth_provider: Some("huggingface"),
            save_path: Some(&self.path),
            dependencies: Some(r#"["ae", "clip-l"]"#),
            description: Some(description),
            mirrors: None,
        }
    }
}

fn rows(count: usize) -> Vec<Texts> {
    (0..count).map(Texts::new).collect()
}

fn full(rows: &[Texts], previous: &Snapshot, rules: &Rules) -> Snapshot {
    let mut refresh = Refresh::full(previous, rules);
    for texts in rows {
        refresh.row(&texts.id, Ok(texts.row("a description")));
    }
    refresh.finish().snapshot
}

/// Ids spread over the catalog, so that no two lookups use the same table.
fn ids(count: usize, of: usize) -> Vec<String> {
    (0..count).map(|number| format!("model-{}", number * (of / count))).collect()
}

fn body(ids: &[String]) -> Vec<u8> {
    let quoted: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
    format!("{{\"model_ids\":[{}]}}", quoted.join(",")).into_bytes()
}

fn requests(criterion: &mut Criterion) {
    let snapshot = full(&rows(100_000), &Snapshot::default(), &Rules::default());
    let many = ids(4096, 100_000);
    let mut next = many.iter().cycle();
    criterion.bench_function("lookup/100000", |bench| {
        bench.iter(|| next.next().and_then(|id| snapshot.get(black_box(id))).map(|entry| entry.json().len()));
    });
    for count in [10, 50, 1000] {
        let ids = ids(count, 100_000);
        let asked: Vec<&str> = ids.iter().map(String::as_str).collect();
        let mut group = criterion.benchmark_group(format!("batch/{count}"));
        group.throughput(Throughput::Bytes(look_up(&snapshot, &asked).size() as u64));
        group.bench_function("render", |bench| {
            bench.iter(|| {
                let mut json = Vec::new();
                look_up(&snapshot, black_box(&asked)).write(&mut json);
                json
            });
        });
        group.finish();
        parsers(criterion, &ids);
    }
}

/// Batches of random ids, which a large catalog finds outside of the caches.
fn sizes(criterion: &mut Criterion) {
    let mut random = fastrand::Rng::with_seed(3);
    for models in [1_000, MILLION] {
        let snapshot = full(&rows(models), &Snapshot::default(), &Rules::default());
        let mut group = criterion.benchmark_group(format!("random batch/{models}"));
        for count in [10, 50] {
            let mut id = || format!("model-{}", random.usize(..models));
            let batches: Vec<Vec<String>> = (0..4_000).map(|_| (0..count).map(|_| id()).collect()).collect();
            let mut next = batches.iter().cycle();
            group.bench_function(count.to_string(), |bench| {
                bench.iter_batched(
                    || next.next().into_iter().flatten().map(String::as_str).collect::<Vec<_>>(),
                    |asked| {
                        let mut json = Vec::new();
                        look_up(&snapshot, black_box(&asked)).write(&mut json);
                        json
                    },
                    BatchSize::SmallInput,
                );
            });
        }
        group.finish();
    }
}

/// The parser of the server (simd-json, checking keys and types) beside serde_json with borrowed strings.
fn parsers(criterion: &mut Criterion, ids: &[String]) {
    #[derive(Deserialize)]
    struct Batch<'a> {
        #[serde(borrow)]
        model_ids: Vec<Cow<'a, str>>,
    }
    let body = body(ids);
    let mut group = criterion.benchmark_group(format!("parse/{}", ids.len()));
    group.throughput(Throughput::Bytes(body.len() as u64));
    let mut parser = BatchParser::default();
    group.bench_function("simd-json", |bench| {
        bench.iter(|| parser.parse(black_box(&body), 1_000).map(|batch| batch.ids.len()));
    });
    group.bench_function("serde_json", |bench| {
        bench.iter(|| serde_json::from_slice::<Batch<'_>>(black_box(&body)).map(|batch| batch.model_ids.len()));
    });
    group.finish();
}

fn refreshes(criterion: &mut Criterion) {
    let rules = Rules::default();
    let rows = rows(MILLION);
    let mut group = criterion.benchmark_group("full build");
    group.sample_size(10).measurement_time(Duration::from_secs(20));
    for count in [100_000, MILLION] {
        group.throughput(Throughput::Elements(count as u64));
        let empty = Snapshot::default();
        // The result is dropped outside of the measurement; the publisher also drops snapshots off the request threads.
        group.bench_function(count.to_string(), |bench| {
            bench.iter_batched(|| (), |()| full(&rows[..count], &empty, &rules), BatchSize::PerIteration);
        });
    }
    group.finish();

    let snapshot = full(&rows, &Snapshot::default(), &rules);
    drop(rows);
    let mut number = 0;
    criterion.bench_function("delta of 1 row/1000000", |bench| {
        bench.iter_batched(
            || {
                number += 1;
                (Texts::new(number * 7_919 % MILLION), number.to_string())
            },
            |(texts, description)| {
                let mut refresh = Refresh::delta(&snapshot, &rules);
                refresh.row(&texts.id, Ok(texts.row(&description)));
                refresh.finish().snapshot
            },
            BatchSize::PerIteration,
        );
    });
}

const RESULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/micro.md");

/// The medians of one row of the table, by criterion's directories; the second is the peer, where there is one.
const TABLE: [(&str, &str, Option<&str>); 11] = [
    ("parse a batch body of 10 ids", "parse_10/simd-json", Some("parse_10/serde_json")),
    ("parse a batch body of 50 ids", "parse_50/simd-json", Some("parse_50/serde_json")),
    ("parse a batch body of 1,000 ids", "parse_1000/simd-json", Some("parse_1000/serde_json")),
    ("look up one id among 100,000 models", "lookup_100000", None),
    ("look up and render a batch of 10", "batch_10/render", None),
    ("look up and render a batch of 50", "batch_50/render", None),
    ("look up and render a batch of 1,000", "batch_1000/render", None),
    ("look up and render 50 random ids of 1,000 models", "random batch_1000/50", None),
    ("look up and render 50 random ids of 1,000,000 models", "random batch_1000000/50", None),
    ("a full build of 1,000,000 models", "full build/1000000", None),
    ("a delta of one row among 1,000,000 models", "delta of 1 row_1000000", None),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default().configure_from_args();
    requests(&mut criterion);
    sizes(&mut criterion);
    refreshes(&mut criterion);
    criterion.final_summary();
    let text = table()?;
    print!("{text}");
    Ok(fs::write(RESULT, text)?)
}

fn table() -> Result<String, Box<dyn Error>> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let date = String::from_utf8(Command::new("date").arg("+%Y-%m-%d").output()?.stdout)?;
    let mut text = format!(
        "# Parts in isolation\n\nWritten by `make bench-micro` on {}; not edited by hand. Machine: {}; one thread. \
         Medians.\n\n| part | time | with serde_json |\n|---|---:|---:|\n",
        date.trim(),
        cpu.trim_start_matches(['\t', ' ', ':']),
    );
    for (part, of, peer) in TABLE {
        let peer = peer.map_or(Ok("–".to_owned()), median)?;
        writeln!(text, "| {part} | {} | {peer} |", median(of)?)?;
    }
    Ok(text)
}

/// The median that criterion has measured in the last run.
fn median(of: &str) -> Result<String, Box<dyn Error>> {
    let file = format!("{}/../criterion/{of}/new/estimates.json", env!("CARGO_TARGET_TMPDIR"));
    let text = fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    let estimates: serde_json::Value = serde_json::from_str(&text)?;
    let nanos = estimates["median"]["point_estimate"].as_f64().ok_or("criterion's estimates have no median")?;
    Ok(match nanos {
        ..1e3 => format!("{nanos:.0} ns"),
        1e3..1e6 => format!("{:.2} µs", nanos / 1e3),
        1e6..1e9 => format!("{:.1} ms", nanos / 1e6),
        _ => format!("{:.2} s", nanos / 1e9),
    })
}
