//! `make bench`: the server and its peers under the same loads, in turns, on one machine. Prints a table and writes
//! it to `benches/results/load.md`.
//!
//! The relevant figure is the CPU time of the server per request: the load generator shares the machine, so request
//! rates say little. All traffic stays on 127.0.0.1, and every process started here exits with this program.

mod burst;
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
const RESULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/load.md");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, files)) if first == LIMIT => limit::run(files).map_err(Failure::from),
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
    let with_nginx = peers.iter().any(|peer| peer.kind == Kind::Nginx);
    let proofs = Proofs::run(&bench, &settings, &peers[0], with_nginx)?;

    let text = Report { machine: &machine, settings: &settings, bodies: &bodies, missing, rounds, proofs }.write();
    print!("{text}");
    if let Some(folder) = Path::new(RESULT).parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(RESULT, text).map_err(|error| format!("cannot write {RESULT}: {error}"))?;
    eprintln!("written to {RESULT}");
    Ok(())
}

/// All installed peers, the catalog first, and the missing ones. A peer whose responses differ is an error.
fn start(bench: &Bench<'_>, machine: &Machine, ours: Peer) -> Result<(Vec<Peer>, Vec<String>)> {
    let (mut peers, mut missing) = (vec![ours], Vec::new());
    if machine.nginx.is_some() {
        peers.push(peers::nginx(bench.temp, bench.sample, bench.bodies)?);
    } else {
        missing.push("nginx: not installed".to_owned());
    }
    peers.push(peers::limit(bench.temp, bench.sample, bench.bodies)?);
    match (&machine.node, peers::express_is_installed()) {
        (Some(_), true) => peers.push(peers::express(bench.temp, bench.sample)?),
        (Some(_), false) => missing.push("Express: packages not installed (npm ci)".to_owned()),
        (None, _) => missing.push("Express: node not installed".to_owned()),
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
