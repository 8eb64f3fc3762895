//! The head of a report: what wrote it, when, and on which machine.

use crate::{Result, process};

/// The title and the first sentences of a report that `make TARGET` writes.
pub fn heading(title: &str, target: &str) -> Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(format!(
        "# {title}\n\nWritten by `make {target}` on {}; not edited by hand. Machine: {} {cores} cores; load average at the \
         end {}.",
        process::output("date", &["+%Y-%m-%d"])?.trim(),
        cpu.trim_start_matches(['\t', ' ', ':']),
        load.split(' ').next().unwrap_or_default(),
    ))
}
