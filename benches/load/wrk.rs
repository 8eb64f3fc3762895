//! One run of wrk against one server: the results of wrk, the CPU time of the server, and whether all responses were
//! correct.

use std::time::Duration;

use crate::Result;
use crate::peers::{Bodies, Load, Peer, TempDir};
use crate::process::output;
use crate::sample::Sample;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load/load.lua");

/// How wrk is run.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    pub cores: &'a str,
    pub threads: usize,
    pub connections: usize,
    pub duration: Duration,
}

/// Results of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub requests: f64,
    /// Wall clock.
    pub seconds: f64,
    /// CPU time of the server.
    pub cpu_seconds: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// Refused or reset connections, timeouts, and responses with another status or length.
    pub failures: f64,
    /// Reset connections among the failures (burst only).
    pub resets: f64,
    /// Connection attempts that found the listen queue full; the kernel retries a second later (burst only).
    pub overflows: f64,
}

impl Figures {
    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.requests / self.seconds
    }

    /// CPU time of the server per request, in microseconds.
    pub fn cpu(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.requests
    }

    /// Number of cores that the server used.
    pub fn busy(&self) -> f64 {
        self.cpu_seconds / self.seconds
    }
}

/// Shared by all runs.
pub struct Bench<'a> {
    pub temp: &'a TempDir,
    pub sample: &'a Sample,
    pub bodies: &'a Bodies,
}

impl Bench<'_> {
    /// Puts load on `peer`; its response is compared byte by byte before and after.
    pub fn wrk(&self, peer: &Peer, load: Load, run: Run<'_>) -> Result<Figures> {
        let size = self.bodies.check(peer, load, self.sample)?;
        let request = load.request(self.sample);
        let url = format!("http://127.0.0.1:{}{}", peer.port(load), request.path);
        let (threads, connections) = (run.threads.to_string(), run.connections.to_string());
        let duration = format!("{}s", run.duration.as_secs().max(1));
        let options = ["-t", &threads, "-c", &connections, "-d", &duration, "--timeout", "10s", "-s", SCRIPT];
        let body = if request.body.is_empty() { None } else { Some(self.temp.write("body.json", &request.body)?) };
        let mut arguments = vec!["-c", run.cores, "wrk"];
        arguments.extend(options);
        arguments.extend([url.as_str(), "--", request.method, load.connection()]);
        arguments.extend(body.as_deref());

        let before = peer.process.cpu_ns()?;
        let printed = output("taskset", &arguments)?;
        let spent = peer.process.cpu_ns()? - before;

        self.bodies.check(peer, load, self.sample)?;
        let mut figures = read(&printed, size, run.connections)?;
        figures.cpu_seconds = spent as f64 / 1e9;
        Ok(figures)
    }
}

fn read(printed: &str, size: usize, connections: usize) -> Result<Figures> {
    let value = |name: &str| -> Result<f64> {
        let lines = printed.lines().filter_map(|line| line.split_once(' '));
        let value = lines.filter(|(word, _)| *word == name).find_map(|(_, value)| value.trim().parse().ok());
        value.ok_or_else(|| format!("wrk printed no {name}: {printed}").into())
    };
    let requests = value("requests")?;
    // wrk counts statuses above 399. All responses have the same length, so any other status or length shows in the
    // number of bytes, of which only the responses in progress at the end are unknown.
    let (expected, slack) = (requests * size as f64, (connections * size) as f64);
    let off = (value("bytes")? - expected).abs();
    let wrong = if off > slack { (off / size as f64).ceil() } else { 0.0 };
    // A server without any response has failed on every connection.
    let mut failures = if requests > 0.0 { wrong } else { connections as f64 };
    for kind in ["connect", "read", "write", "status", "timeout"] {
        failures += value(kind)?;
    }
    Ok(Figures {
        requests,
        seconds: value("microseconds")? / 1e6,
        cpu_seconds: 0.0,
        p50: value("p50")? / 1e3,
        p99: value("p99")? / 1e3,
        p999: value("p999")? / 1e3,
        failures,
        ..Figures::default()
    })
}
