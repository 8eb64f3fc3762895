//! A kernel memory limit for child processes.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Printed instead of running a test if no limit can be set.
const SKIPPED: &str = "\n*** NOT RUN: cannot limit the memory of a process";

/// A control group with a memory limit. It is removed on drop; its processes must have exited by then.
pub struct Cgroup {
    folder: PathBuf,
    /// Name of the field of memory.stat with the memory that no file backs.
    anonymous: &'static str,
    events: &'static str,
}

impl Cgroup {
    /// Creates a group limited to `bytes`. Returns `None` if this process may not, and prints that even if output is captured.
    pub fn with_memory_limit(bytes: usize) -> Option<Self> {
        let old = || Self::create("/sys/fs/cgroup/memory", ["limit_in_bytes", "oom_control"], "rss ", bytes);
        let cgroup = Self::create("/sys/fs/cgroup", ["max", "events"], "anon ", bytes).or_else(|_| old());
        // Not eprintln!: its output is captured, and shown only if the test fails.
        cgroup.map_err(|error| writeln!(std::io::stderr(), "{SKIPPED}: {error}; run the test as root\n")).ok()
    }

    fn create(hierarchy: &str, files: [&str; 2], anonymous: &'static str, bytes: usize) -> std::io::Result<Self> {
        let [limit, events] = files.map(|file| format!("memory.{file}").leak() as &'static str);
        // Not present in cgroup v1, where each group has the memory files.
        let _ = fs::write(Path::new(hierarchy).join("cgroup.subtree_control"), "+memory");
        let folder = Path::new(hierarchy).join(format!("model-catalog-test-{:x}", fastrand::u64(..)));
        fs::create_dir(&folder)?;
        let group = Self { folder, anonymous, events };
        // Open only an existing file: in a directory outside cgroupfs a new one would limit nothing.
        let mut file = fs::OpenOptions::new().write(true).open(group.folder.join(limit))?;
        file.write_all(bytes.to_string().as_bytes())?;
        group.read(events)?;
        Ok(group)
    }

    /// A shell command that enters the group and executes its arguments.
    pub fn exec_command(&self) -> String {
        format!("echo $$ > {} && exec \"$0\" \"$@\"", self.folder.join("cgroup.procs").display())
    }

    fn read(&self, file: &str) -> std::io::Result<String> {
        fs::read_to_string(self.folder.join(file))
    }

    /// Anonymous memory in bytes, which the kernel cannot reclaim.
    pub fn anonymous(&self) -> usize {
        self.number("memory.stat", self.anonymous)
    }

    /// Processes killed by the OOM killer.
    pub fn oom_kills(&self) -> usize {
        self.number(self.events, "oom_kill ")
    }

    fn number(&self, file: &str, name: &str) -> usize {
        let text = self.read(file).unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}
