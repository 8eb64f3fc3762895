//! A memory limit by the kernel, around programs that enter it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The first line of the message that stands instead of a test where no limit can be set.
const SKIPPED: &str = "\n*** NOT RUN: the memory of a program can't be limited here";

/// A control group with a limit of memory, until it is dropped; all that entered it must have ended by then.
pub struct Cgroup {
    folder: PathBuf,
    own: &'static str,
    events: &'static str,
}

impl Cgroup {
    /// A limit of `bytes`. `None` = this process may set none, which is said whether or not output is captured.
    pub fn limiting(bytes: usize) -> Option<Self> {
        let old = || Self::make("/sys/fs/cgroup/memory", ["limit_in_bytes", "oom_control"], "rss ", bytes);
        let made = Self::make("/sys/fs/cgroup", ["max", "events"], "anon ", bytes).or_else(|_| old());
        // Not by a macro: their output is shown only when a test fails.
        made.map_err(|error| writeln!(std::io::stderr(), "{SKIPPED}: {error}; run it as root\n")).ok()
    }

    fn make(hierarchy: &str, files: [&str; 2], own: &'static str, bytes: usize) -> std::io::Result<Self> {
        let [limit, events] = files.map(|file| format!("memory.{file}").leak() as &'static str);
        // Where groups below get this file without being asked, there is none of these.
        let _ = fs::write(Path::new(hierarchy).join("cgroup.subtree_control"), "+memory");
        let folder = Path::new(hierarchy).join(format!("model-catalog-test-{:x}", fastrand::u64(..)));
        fs::create_dir(&folder)?;
        let group = Self { folder, own, events };
        // Only an existing file: in a plain folder there is nothing that would limit.
        let mut file = fs::OpenOptions::new().write(true).open(group.folder.join(limit))?;
        file.write_all(bytes.to_string().as_bytes())?;
        group.read(events)?;
        Ok(group)
    }

    /// A shell command that enters it and becomes the program whose words follow.
    pub fn enter(&self) -> String {
        format!("echo $$ > {} && exec \"$0\" \"$@\"", self.folder.join("cgroup.procs").display())
    }

    fn read(&self, file: &str) -> std::io::Result<String> {
        fs::read_to_string(self.folder.join(file))
    }

    /// Bytes that the kernel could not take back: those of no file.
    pub fn own(&self) -> usize {
        self.number("memory.stat", self.own)
    }

    /// Processes that the kernel ended for want of memory.
    pub fn killed(&self) -> usize {
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
