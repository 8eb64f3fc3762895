//! The machine, and the versions of all programs.

use std::fs::read_to_string;

use crate::Result;
use crate::process::output;

/// The machine and its programs; `None` if not installed.
pub struct Machine {
    pub name: String,
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub somaxconn: String,
    /// Over the last minute before the start. Above 0.5, other processes were running and the results are less
    /// accurate.
    pub load: String,
    pub date: String,
    pub commit: String,
    pub wrk: String,
    pub nginx: Option<String>,
    pub node: Option<String>,
    pub express: Option<String>,
}

impl Machine {
    /// Collects the data.
    ///
    /// # Errors
    /// wrk is not installed, or the machine has only one core.
    pub fn look() -> Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        if cores < 2 {
            return Err("server and load generator need a core each; this machine has one".into());
        }
        let proc = |file: &str| read_to_string(format!("/proc/{file}")).map(|text| text.trim().to_owned());
        let cpus = proc("cpuinfo")?;
        let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown CPU");
        let wrk = first_line("wrk", "-v").ok_or("wrk is missing: on Debian, apt-get install wrk")?;
        Ok(Self {
            name: proc("sys/kernel/hostname")?,
            cpu: cpu.trim_start_matches(['\t', ' ', ':']).to_owned(),
            cores,
            kernel: proc("sys/kernel/osrelease")?,
            somaxconn: proc("sys/net/core/somaxconn")?,
            load: proc("loadavg")?.split(' ').next().unwrap_or_default().to_owned(),
            date: first_line("date", "+%Y-%m-%d").unwrap_or_default(),
            commit: commit(),
            wrk: wrk.split(" [").next().unwrap_or_default().to_owned(),
            nginx: first_line("nginx", "-v").map(|line| line.replace("nginx version: ", "")),
            node: first_line("node", "--version"),
            express: express(),
        })
    }
}

fn first_line(program: &str, argument: &str) -> Option<String> {
    output(program, &[argument]).ok()?.lines().next().map(str::to_owned)
}

fn commit() -> String {
    let here = env!("CARGO_MANIFEST_DIR");
    let described = output("git", &["-C", here, "describe", "--always", "--dirty"]);
    described.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

fn express() -> Option<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/express/node_modules");
    let version = |package: &str| {
        let text = read_to_string(format!("{folder}/{package}/package.json")).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(json.get("version")?.as_str()?.to_owned())
    };
    Some(format!("Express {} with node-postgres {}", version("express")?, version("pg")?))
}
