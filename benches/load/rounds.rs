//! The rounds: every load and every peer in turns; and the medians of the results.

use crate::Result;
use crate::burst::burst;
use crate::peers::{Kind, Load, Peer};
use crate::settings::{CONNECTIONS, GENERATOR_CORE, Settings};
use crate::wrk::{Bench, Figures, Run};

/// Results by load, peer and turn. Express skips some turns.
#[derive(Default)]
pub struct Rounds {
    runs: Vec<(Load, Kind, Turn, Figures)>,
}

/// A round, and the number of the turn within the round.
type Turn = (usize, usize);

/// A burst takes half a second, of which one pause of a shared machine can be a fifth, so it is repeated more often.
fn turns(load: Load) -> usize {
    if load.is_burst() { 3 } else { 1 }
}

impl Rounds {
    /// Measures all `peers` in turns.
    pub fn run(bench: &Bench<'_>, settings: &Settings, peers: &[Peer]) -> Result<Self> {
        let mut rounds = Self::default();
        for round in 0..settings.rounds {
            for (load, turn) in Load::ALL.into_iter().flat_map(|load| (0..turns(load)).map(move |turn| (load, turn))) {
                for peer in peers {
                    if peer.kind == Kind::Express && (turn > 0 || !settings.with_express(round)) {
                        continue;
                    }
                    let figures = run(bench, settings, peer, load)?;
                    eprintln!(
                        "round {} of {}: {load:?} {:?}: {:.2} µs, {:.0}/s, {} failures",
                        round + 1,
                        settings.rounds,
                        peer.kind,
                        figures.cpu(),
                        figures.rate(),
                        figures.failures
                    );
                    rounds.runs.push((load, peer.kind, (round, turn), figures));
                }
            }
        }
        Ok(rounds)
    }

    fn of(&self, load: Load, kind: Kind) -> impl Iterator<Item = (Turn, &Figures)> {
        let runs = self.runs.iter().filter(move |run| run.0 == load && run.1 == kind);
        runs.map(|(_, _, turn, figures)| (*turn, figures))
    }

    /// Median of a value over the turns; `None` if the peer is not installed.
    pub fn median(&self, load: Load, kind: Kind, figure: impl Fn(&Figures) -> f64) -> Option<f64> {
        median(self.of(load, kind).map(|(_, figures)| figure(figures)).collect())
    }

    /// Sum of a value over the turns.
    pub fn sum(&self, load: Load, kind: Kind, figure: impl Fn(&Figures) -> f64) -> f64 {
        self.of(load, kind).map(|(_, figures)| figure(figures)).sum()
    }

    /// Median of the ratio of the catalog's value to the peer's value in the same turn.
    pub fn ratio(&self, load: Load, kind: Kind, figure: impl Fn(&Figures) -> f64) -> Option<f64> {
        let pairs = self.of(load, kind).filter_map(|(turn, theirs)| {
            let ours = self.of(load, Kind::Catalog).find(|(other, _)| *other == turn)?.1;
            Some(figure(ours) / figure(theirs))
        });
        median(pairs.collect())
    }
}

/// One measurement of one server.
pub fn run(bench: &Bench<'_>, settings: &Settings, peer: &Peer, load: Load) -> Result<Figures> {
    if load.is_burst() {
        return burst(bench, peer, load, settings.burst);
    }
    let duration = if peer.kind == Kind::Express { settings.express_run() } else { settings.run };
    bench.wrk(peer, load, Run { cores: GENERATOR_CORE, threads: 1, connections: CONNECTIONS, duration })
}

/// The middle value; for an even number of values, the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    let upper = *values.get(half)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[half - 1] + upper) / 2.0 })
}
