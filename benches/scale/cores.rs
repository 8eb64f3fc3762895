//! CPU affinity: which threads run on which of two cores.

use crate::Result;
use crate::process::{self, Process};

/// Pins the serving threads of `server` and the probe of this process to the first core. All other threads of `server`,
/// of this process and of its descendants are pinned to the second.
pub fn isolate(server: &Process) -> Result<()> {
    pin_all("1");
    process::pin_threads(server.pid(), "http", "0")?;
    process::pin_threads(std::process::id(), "probe", "0")
}

/// Reverts [`isolate`].
pub fn release() {
    pin_all("0-1");
}

fn pin_all(cores: &str) {
    for pid in process::tree(std::process::id()) {
        // Fails for a process that has exited; that is fine.
        let _ = process::output("taskset", &["-acp", cores, &pid.to_string()]);
    }
}
