//! `make bench`: the server and its peers under the same loads, in turns, on one machine. Prints a table and writes
//! it to `benches/results/load.md`, with a chart of the ratios to each peer beside it.
//!
//! The relevant figure is the CPU time of the server per request: the load generator shares the machine, so request
//! rates say little. All traffic stays on 127.0.0.1, and every process started here exits with this program.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its results")]

mod burst;
mod chart;
mod client;
mod idle;
#[path = "../peers/limit.rs"]
mod limit;
mod machine;
mod peers;
mod process;
mod proofs;
mod report;
mod rounds;
mod sample;
mod settings;
mod wrk;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use machine::Machine;
use peers::{Bodies, Kind, Load, Peer, TempDir};
use proofs::Proofs;
use report::Report;
use rounds::Rounds;
use sample::Sample;
use settings::{GENERATOR_CORE, SERVER_CORE, Settings};
use wrk::Bench;

/// Any error stops the benchmark.
type Failure = Box<dyn Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failure>;

/// First argument of this program when it runs as the peer in `benches/peers/limit.rs`.
const LIMIT: &str = "limit";
/// First argument of this program when it trains the program that is its second argument, see [`train`].
const TRAIN: &str = "train";
/// Models that are read in full at the end of a training.
const MANY: u32 = 100_000;
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, files)) if first == LIMIT => limit::run(files).map_err(Failure::from),
        Some((first, [program, ..])) if first == TRAIN => train(program),
        _ => bench(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let settings = Settings::read()?;
    let machine = Machine::look()?;
    process::pin_self(GENERATOR_CORE)?;
    let temp = TempDir::open()?;
    let sample = Sample::start()?;
    let ours = peers::catalog(&temp, &sample, 1, SERVER_CORE)?;
    let bodies = Bodies::of(&ours, &sample)?;
    let bench = Bench { temp: &temp, sample: &sample, bodies: &bodies };
    let (peers, missing) = start(&bench, &machine, ours)?;
    warm_up(&bench, &peers)?;

    let rounds = Rounds::run(&bench, &settings, &peers)?;
    let kinds: Vec<_> = peers.iter().map(|peer| peer.kind).collect();
    let proofs = Proofs::run(&bench, &settings, &peers[0], &kinds)?;

    let report = Report { machine: &machine, settings: &settings, bodies: &bodies, missing, rounds, proofs };
    let text = report.write();
    print!("{text}");
    std::fs::create_dir_all(RESULTS)?;
    for (name, text) in report.charts().into_iter().chain([("load.md", text)]) {
        let path = format!("{RESULTS}/{name}");
        std::fs::write(&path, text).map_err(|error| format!("cannot write {path}: {error}"))?;
        eprintln!("written to {path}");
    }
    Ok(())
}

/// Runs the instrumented `program` as a server under each load, beside changes, and starts it with a large catalog. It
/// writes its profile when it exits.
fn train(program: &str) -> Result<()> {
    let settings = Settings::read()?;
    process::pin_self(GENERATOR_CORE)?;
    let temp = TempDir::open()?;
    let sample = Sample::start()?;
    let start = || peers::catalog_program(Kind::Catalog, program, &temp, &sample, 1, SERVER_CORE);
    let ours = start()?;
    let bodies = Bodies::of(&ours, &sample)?;
    let bench = Bench { temp: &temp, sample: &sample, bodies: &bodies };
    for load in Load::ALL {
        rounds::run(&bench, &settings, &ours, load)?;
    }
    proofs::beside_changes(&bench, || rounds::run(&bench, &settings, &ours, Load::Single))?;
    sample.add_models(MANY)?;
    drop(ours);
    drop(start()?);
    Ok(())
}

/// All installed peers, the catalog first, and the missing ones. A peer whose responses differ is an error.
fn start(bench: &Bench<'_>, machine: &Machine, ours: Peer) -> Result<(Vec<Peer>, Vec<String>)> {
    let (mut peers, mut missing) = (vec![ours], Vec::new());
    let express = match (&machine.node, peers::express_is_installed()) {
        (Some(_), true) => None,
        (Some(_), false) => Some("Express: its packages are not installed (npm ci)"),
        (None, _) => Some("Express: node is not installed"),
    };
    for (kind, lacks) in [
        (Kind::Plain, None),
        (Kind::Constant, machine.nginx.is_none().then_some("nginx: the program is not installed")),
        (Kind::Nginx, machine.nginx.is_none().then_some("nginx: the program is not installed")),
        (Kind::Limit, None),
        (Kind::Axum, (!Path::new(peers::AXUM).exists()).then_some("axum: it is not built (make bench-peers)")),
        (Kind::Express, express),
    ] {
        match lacks {
            Some(lacks) => missing.push(lacks.to_owned()),
            None => peers.push(peers::start(kind, bench.temp, bench.sample, bench.bodies)?),
        }
    }
    for peer in &peers {
        for load in Load::ALL {
            bench.bodies.check(peer, load, bench.sample)?;
        }
    }
    Ok((peers, missing))
}

/// Warms up caches, branch predictors and node's compiler before the first measurement.
fn warm_up(bench: &Bench<'_>, peers: &[Peer]) -> Result<()> {
    let seconds = std::time::Duration::from_secs(1);
    for peer in peers {
        for load in [Load::Single, Load::Batch10] {
            let run = wrk::Run { cores: GENERATOR_CORE, threads: 1, connections: 16, duration: seconds };
            bench.wrk(peer, load, run)?;
        }
    }
    Ok(())
}
