//! CPU affinity: which threads run on which of two cores.

use crate::Result;
use crate::process::{self, Process};

/// Pins the serving threads of `server` and the probe of this process to the first core. All other threads of `server`,
/// of this process and of its descendants are pinned to the second.
pub fn part(server: &Process) -> Result<()> {
    settle_all("1");
    process::part(server.pid(), "http", "0")?;
    process::part(std::process::id(), "probe", "0")
}

/// Reverts [`part`].
pub fn join() {
    settle_all("0-1");
}

fn settle_all(cores: &str) {
    for pid in process::tree(std::process::id()) {
        // Fails for a process that has exited; that is fine.
        let _ = process::output("taskset", &["-acp", cores, &pid.to_string()]);
    }
}
