//! The results as Markdown tables.

use std::fmt::Write;

use crate::chart;
use crate::machine::Machine;
use crate::peers::{Bodies, Kind, Load};
use crate::proofs::Proofs;
use crate::rounds::{Rounds, median};
use crate::settings::{CONNECTIONS, Settings};
use crate::wrk::Figures;

/// Everything that the report contains.
pub struct Report<'a> {
    pub machine: &'a Machine,
    pub settings: &'a Settings,
    pub bodies: &'a Bodies,
    pub missing: Vec<String>,
    pub rounds: Rounds,
    pub proofs: Proofs,
}

/// What the catalog is compared with.
const PEERS: [Kind; 6] = [Kind::Plain, Kind::Constant, Kind::Nginx, Kind::Limit, Kind::Axum, Kind::Express];
/// The peers with a chart, and its file.
const CHARTS: [(Kind, &str); 4] = [
    (Kind::Constant, "load-nginx.svg"),
    (Kind::Limit, "load-limit.svg"),
    (Kind::Axum, "load-axum.svg"),
    (Kind::Express, "load-express.svg"),
];

/// Maximum ratio of the CPU time per request of the catalog to that of the peer.
fn target(load: Load, peer: Kind) -> Option<f64> {
    match (load, peer) {
        (Load::Single | Load::Batch10, Kind::Constant) => Some(0.95),
        (Load::Batch50, Kind::Constant) => Some(1.15),
        (Load::Storm, Kind::Constant) => Some(0.72),
        (Load::Burst | Load::BurstAtOnce, Kind::Constant) => Some(1.20),
        (_, Kind::Axum) => Some(0.75),
        (Load::Single | Load::Batch10 | Load::Batch50, Kind::Express) => Some(1.0 / 40.0),
        _ => None,
    }
}

impl Kind {
    fn title(self) -> &'static str {
        match self {
            Self::Catalog => "model-catalog",
            Self::Plain => "model-catalog, not optimized with a profile",
            Self::Constant => "nginx, constant bytes",
            Self::Nginx => "nginx, static files",
            Self::Limit => "the limit",
            Self::Axum => "axum, a map in memory",
            Self::Express => "Express + node-postgres",
        }
    }
}

impl Report<'_> {
    pub fn write(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = self.head(&mut text);
        let _ = self.ratios(&mut text);
        let _ = self.loads(&mut text);
        let _ = self.memory(&mut text);
        let _ = self.proofs(&mut text);
        text
    }

    /// Names and contents of the charts, one for each peer.
    pub fn charts(&self) -> Vec<(&'static str, String)> {
        let rows = |peer| Load::ALL.map(|load| (self.title(load), number(self.ratio(load, peer), digits(peer))));
        CHARTS.map(|(peer, file)| (file, chart::ratios(peer.title(), &rows(peer)))).into()
    }

    fn ratio(&self, load: Load, peer: Kind) -> Option<f64> {
        self.rounds.ratio(load, peer, Figures::cpu)
    }

    fn title(&self, load: Load) -> String {
        match load {
            Load::Single => "single, keep-alive".into(),
            Load::Batch10 => "batch of 10, keep-alive".into(),
            Load::Batch50 => "batch of 50, keep-alive".into(),
            Load::Storm => "storm: a new connection for each batch of 10".into(),
            Load::Burst => {
                format!("burst: {} simultaneous connections, then a batch of 10 on each", self.settings.burst)
            }
            Load::BurstAtOnce => {
                format!("burst that sends at once: {} connections, a batch of 10 on each", self.settings.burst)
            }
        }
    }

    fn head(&self, text: &mut String) -> std::fmt::Result {
        let Machine { name, cpu, cores, kernel, somaxconn, load, date, commit, .. } = self.machine;
        let Settings { rounds, run, .. } = self.settings;
        let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "missing".into());
        writeln!(text, "# Load: model-catalog and its peers\n")?;
        writeln!(text, "Written by `make bench` on {date} at commit {commit}; not edited by hand.\n")?;
        writeln!(
            text,
            "- Machine: {name}, {cpu}, {cores} cores, Linux {kernel}, somaxconn {somaxconn}, load average before the start \
             {load}"
        )?;
        writeln!(
            text,
            "- Versions: model-catalog {}, {}, {} on node {}, {}",
            env!("CARGO_PKG_VERSION"),
            shown(&self.machine.nginx),
            shown(&self.machine.express),
            shown(&self.machine.node),
            self.machine.wrk
        )?;
        writeln!(
            text,
            "- {rounds} rounds, the peers in turns, {} s per run, {CONNECTIONS} connections; one serving thread on one core, \
             load generator and Postgres on another; all metrics enabled. Express: every other round, half as long; \
             CPU of the node process only.",
            run.as_secs()
        )?;
        writeln!(
            text,
            "- All peers send the same bodies, compared before and after each run: single {} bytes, batch of 10 \
             {}, batch of 50 {}. Failures are refused or reset connections, other statuses, and other lengths.",
            self.bodies.single.body.len(),
            self.bodies.batch10.body.len(),
            self.bodies.batch50.body.len()
        )?;
        writeln!(
            text,
            "- CPU: user and system time of all threads of the server (and of nginx's worker), divided by the number of \
             requests. Medians over all turns, one per round, three for the burst; a ratio is the median of the \
             ratios within a turn."
        )?;
        for missing in &self.missing {
            writeln!(text, "- **Missing:** {missing}")?;
        }
        Ok(())
    }

    fn ratios(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n## CPU per request compared with the peers\n")?;
        writeln!(text, "Targets in parentheses; **bold** where missed.\n")?;
        write!(text, "| load | model-catalog, µs |")?;
        PEERS.iter().try_for_each(|peer| write!(text, " ratio to {} |", peer.title()))?;
        writeln!(text, "\n|---|---:|{}", "---:|".repeat(PEERS.len()))?;
        for load in Load::ALL {
            let ours = number(self.rounds.median(load, Kind::Catalog, Figures::cpu), 2);
            write!(text, "| {} | {ours} |", self.title(load))?;
            for peer in PEERS {
                let digits = digits(peer);
                match (self.ratio(load, peer), target(load, peer)) {
                    (Some(ratio), Some(most)) => {
                        write!(text, " {} (≤ {most}) |", judged(ratio, digits, ratio <= most))?
                    }
                    (ratio, _) => write!(text, " {} |", number(ratio, digits))?,
                }
            }
            writeln!(text)?;
        }
        Ok(())
    }

    fn loads(&self, text: &mut String) -> std::fmt::Result {
        for load in Load::ALL {
            writeln!(text, "\n## {}\n", self.title(load))?;
            if load.is_burst() {
                self.burst(text, load)?;
                continue;
            }
            writeln!(
                text,
                "| server | CPU, µs/request | core usage | requests/s | p50, ms | p99, ms | p99.9, ms | failures |"
            )?;
            writeln!(text, "|---|---:|---:|---:|---:|---:|---:|---:|")?;
            for kind in [Kind::Catalog].into_iter().chain(PEERS) {
                let median =
                    |figure: fn(&Figures) -> f64, digits| number(self.rounds.median(load, kind, figure), digits);
                writeln!(
                    text,
                    "| {} | {} | {} % | {} | {} | {} | {} | {} |",
                    kind.title(),
                    median(Figures::cpu, 2),
                    median(|run| run.busy() * 100.0, 0),
                    median(Figures::rate, 0),
                    median(|run| run.p50, 2),
                    median(|run| run.p99, 2),
                    median(|run| run.p999, 2),
                    self.rounds.sum(load, kind, |run| run.failures)
                )?;
            }
        }
        Ok(())
    }

    fn burst(&self, text: &mut String, load: Load) -> std::fmt::Result {
        writeln!(
            text,
            "All connections {}, and stay open until the last response. If the listen queue overflows, the kernel \
             retries after a second. Latency counts from the first connect.\n",
            if load == Load::Burst { "are opened before the first request is sent" } else { "send when they are open" }
        )?;
        writeln!(
            text,
            "| server | last response, ms | p50, ms | p99, ms | CPU, µs/request | failures | resets | queue overflows |"
        )?;
        writeln!(text, "|---|---:|---:|---:|---:|---:|---:|---:|")?;
        for kind in [Kind::Catalog].into_iter().chain(PEERS) {
            let median = |figure: fn(&Figures) -> f64, digits| number(self.rounds.median(load, kind, figure), digits);
            let sum = |figure: fn(&Figures) -> f64| self.rounds.sum(load, kind, figure);
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                kind.title(),
                median(|run| run.seconds * 1e3, 0),
                median(|run| run.p50, 0),
                median(|run| run.p99, 0),
                median(Figures::cpu, 2),
                sum(|run| run.failures),
                sum(|run| run.resets),
                sum(|run| run.overflows)
            )?;
        }
        if let Some(ratio) = self.rounds.ratio(load, Kind::Constant, |run| run.seconds) {
            writeln!(
                text,
                "\nTime of the last response, ratio to {}: {} (≤ 1.1)",
                Kind::Constant.title(),
                judged(ratio, 3, ratio <= 1.1)
            )?;
        }
        Ok(())
    }

    fn proofs(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n## Other targets\n\n| measurement | result | target |\n|---|---|---|")?;
        self.threads(text)?;
        self.scrape(text)?;
        self.refresh(text)
    }

    fn memory(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n## Resident memory\n")?;
        writeln!(text, "| server | after its start, MiB | per idle connection of {}, KiB |", self.settings.idle)?;
        writeln!(text, "|---|---:|---:|")?;
        for memory in &self.proofs.memory {
            let connection = memory.connection / 1024.0;
            let reached = memory.kind != Kind::Catalog || connection <= 22.0;
            let start = memory.start / 1_048_576.0;
            writeln!(text, "| {} | {start:.1} | {} |", memory.kind.title(), judged(connection, 1, reached))?;
        }
        Ok(())
    }

    fn threads(&self, text: &mut String) -> std::fmt::Result {
        let pair = &self.proofs.threads;
        let [one, two, gain] = pair.medians(Figures::rate);
        let [cpu_one, cpu_two, cpu] = pair.medians(Figures::cpu);
        let [busy_one, busy_two, _] = pair.medians(Figures::busy);
        writeln!(
            text,
            "| 1 serving thread and load generator on 1 core → 2 serving threads and load generator on 2 cores (batch of \
             10): requests/s | {one:.0} → {two:.0}: {} times, {} failures | ≥ 1.8 times |",
            judged(gain, 2, gain >= 1.8),
            pair.failures()
        )?;
        writeln!(
            text,
            "| – CPU per request | {cpu_one:.2} → {cpu_two:.2} µs: {cpu:.3} times | unchanged |\n\
             | – cores used by the server; the load generator uses the rest | {busy_one:.2} of 1 → {busy_two:.2} of 2 \
             | – |"
        )
    }

    fn scrape(&self, text: &mut String) -> std::fmt::Result {
        let pair = &self.proofs.scrape;
        let [without, with, ratio] = pair.medians(|run| run.p99);
        let [_, _, control] = self.proofs.control.medians(|run| run.p99);
        let worst = self.proofs.scrapes.iter().copied().fold(0.0, f64::max);
        writeln!(
            text,
            "| `/metrics` under full load (single), 4 scrapes/s | median {} ms, maximum {} ms of {} | < 100 ms |",
            number(median(self.proofs.scrapes.clone()), 2),
            judged(worst, 2, worst < 100.0),
            self.proofs.scrapes.len()
        )?;
        writeln!(
            text,
            "| – p99 of lookups without → with scrapes, {} pairs (control, without → without: {control:.3} times) | \
             {without:.3} → {with:.3} ms: {} times, {} failures | < 1.1 times |",
            pair.runs.len(),
            judged(ratio, 3, ratio < 1.1),
            pair.failures()
        )
    }

    fn refresh(&self, text: &mut String) -> std::fmt::Result {
        let pair = &self.proofs.refresh;
        let [without, with, ratio] = pair.medians(Figures::rate);
        let [cpu_without, cpu_with, _] = pair.medians(Figures::cpu);
        let failures = pair.failures();
        writeln!(
            text,
            "| {:.0} snapshots published per second under full load (single; serving thread and load generator on one \
             core, loader and Postgres on the other): requests/s without → with | {without:.0} → \
             {with:.0}: {} times | > 0.9 times |",
            self.proofs.published,
            judged(ratio, 3, ratio > 0.9)
        )?;
        writeln!(text, "| – CPU of the whole process per request | {cpu_without:.2} → {cpu_with:.2} µs | – |")?;
        writeln!(text, "| – failures | {} | 0 |", judged(failures, 0, failures == 0.0))
    }
}

/// Decimal places of a ratio.
fn digits(peer: Kind) -> usize {
    if peer == Kind::Express { 4 } else { 3 }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("missing".into(), |value| format!("{value:.digits$}"))
}

/// Bold if the target is missed.
fn judged(value: f64, digits: usize, reached: bool) -> String {
    if reached { format!("{value:.digits$}") } else { format!("**{value:.digits$}**") }
}
