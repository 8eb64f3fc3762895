//! Who runs on which of two cores.

use crate::Result;
use crate::process::{self, Process};

/// What the names of the threads begin with that get a core to themselves: the server's that answer requests, and ours
/// that asks.
const LOOK_UPS: [&str; 2] = ["http", "probe"];

/// Gives the look-ups the first core; all other threads of `server`, of this process and of all that descends from it
/// get the second.
pub fn part(server: &Process) -> Result<()> {
    for pid in process::tree(std::process::id()) {
        // One that ends meanwhile needs no core.
        let _ = process::output("taskset", &["-acp", "1", &pid.to_string()]);
    }
    for pid in [server.pid(), std::process::id()] {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            let name = std::fs::read_to_string(task.path().join("comm"))?;
            if LOOK_UPS.iter().any(|start| name.starts_with(start)) {
                process::output("taskset", &["-cp", "0", &task.file_name().to_string_lossy()])?;
            }
        }
    }
    Ok(())
}

/// Takes back what [`part`] did.
pub fn join() {
    for pid in process::tree(std::process::id()) {
        let _ = process::output("taskset", &["-acp", "0-1", &pid.to_string()]);
    }
}
