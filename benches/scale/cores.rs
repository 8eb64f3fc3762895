//! Who runs on which of two cores.

use crate::Result;
use crate::process::{self, Process};

/// Gives the look-ups the first core: the server's threads that answer requests, and ours that asks. All other threads
/// of `server`, of this process and of all that descends from it get the second.
pub fn part(server: &Process) -> Result<()> {
    settle_all("1");
    process::part(server.pid(), "http", "0")?;
    process::part(std::process::id(), "probe", "0")
}

/// Takes back what [`part`] did.
pub fn join() {
    settle_all("0-1");
}

fn settle_all(cores: &str) {
    for pid in process::tree(std::process::id()) {
        // One that ends meanwhile needs no core.
        let _ = process::output("taskset", &["-acp", cores, &pid.to_string()]);
    }
}
