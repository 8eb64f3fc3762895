//! Microbenchmarks of requests and refreshes: lookup, batch, parsing a body, delta, full build.

use std::borrow::Cow;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use model_catalog::catalog::model::{RawModel, Rules};
use model_catalog::catalog::snapshot::{Refresh, Snapshot};
use model_catalog::http::batch::parse;
use model_catalog::http::found::look_up;
use simd_json::Node;
use simd_json::prelude::{ValueAsArray, ValueAsScalar, ValueObjectAccess};

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
    for count in [10, 50] {
        let ids = ids(count, 100_000);
        let asked: Vec<Cow<'_, str>> = ids.iter().map(|id| Cow::Borrowed(id.as_str())).collect();
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

/// The parser of the server compared with simd-json. simd-json modifies its input, so it gets a copy, as it would of a
/// shared buffer.
fn parsers(criterion: &mut Criterion, ids: &[String]) {
    let body = body(ids);
    let mut group = criterion.benchmark_group(format!("parse/{}", ids.len()));
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("serde_json", |bench| {
        bench.iter(|| parse(black_box(&body), 1_000).map(|asked| asked.ids.len()));
    });
    let mut buffers = simd_json::Buffers::default();
    group.bench_function("simd-json tape", |bench| {
        bench.iter(|| {
            let mut copy = black_box(&body).clone();
            let tape = simd_json::to_tape_with_buffers(&mut copy, &mut buffers).ok()?;
            // The first string is the key: less work than for a parser that validates the document.
            let strings = tape.0.iter().filter_map(|node| match node {
                Node::String(text) => Some(Cow::Borrowed(*text)),
                _ => None,
            });
            let ids: Vec<Cow<'_, str>> = strings.skip(1).collect();
            Some(ids.len())
        });
    });
    group.bench_function("simd-json value", |bench| {
        bench.iter(|| {
            let mut copy = black_box(&body).clone();
            let value = simd_json::to_borrowed_value_with_buffers(&mut copy, &mut buffers).ok()?;
            let ids = value.get("model_ids")?.as_array()?;
            let ids = ids.iter().map(|id| id.as_str().map(Cow::Borrowed)).collect::<Option<Vec<Cow<'_, str>>>>()?;
            Some(ids.len())
        });
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

criterion_group!(benches, requests, refreshes);
criterion_main!(benches);
