//! Processes of the benchmark: pinned to cores, stopped with the benchmark, and measured through /proc.
//!
//! A server runs under a shell that waits for EOF on a pipe whose write end only the benchmark holds, so it is stopped
//! however the benchmark exits.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// `$1`: the cores; the rest: the command. `taskset` executes the program, so `$!` is the pid of the program.
const GUARD: &str = r#"
cores=$1; shift
taskset -c "$cores" "$@" 3>&- & server=$!
echo $server >&3
read -r _
kill -TERM $server 2>/dev/null
wait $server
"#;
/// Maximum time to wait for a server to exit.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A running server; dropping this stops it.
pub struct Process {
    guard: Child,
    pipe: Option<ChildStdin>,
    pid: u32,
}

impl Process {
    /// Starts `program` with its arguments on `cores`. Its output is written to the file `log`.
    pub fn start(cores: &str, program: &[&str], variables: &[(&str, &str)], log: &Path) -> Result<Self> {
        let output = File::create(log).map_err(|error| format!("cannot write {}: {error}", log.display()))?;
        let mut command = Command::new("/bin/sh");
        // The shell prints the pid on its own stdout; both outputs of the program go to the log.
        let script = format!("exec 3>&1 1>&2\n{GUARD}");
        command.args(["-c", &script, "bench-guard", cores]).args(program).envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(output);
        let mut guard = command.spawn().map_err(|error| format!("cannot start /bin/sh: {error}"))?;
        let pipe = guard.stdin.take();
        let mut line = String::new();
        let read = guard.stdout.take().map(|output| BufReader::new(output).read_line(&mut line));
        let pid = line.trim().parse().map_err(|_| format!("{} did not start: {read:?}", program[0]))?;
        Ok(Self { guard, pipe, pid })
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// CPU time of all its threads and those of its descendants so far, in nanoseconds.
    pub fn cpu_ns(&self) -> Result<u64> {
        let mut total = 0;
        for pid in tree(self.pid) {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                // The time of a thread that has exited is lost; the servers have no short-lived threads.
                let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
                total += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(total)
    }

    /// A memory field such as `VmRSS` or `VmHWM`, summed over the process and its descendants, in bytes.
    pub fn memory(&self, what: &str) -> Result<u64> {
        let mut total = 0;
        for pid in tree(self.pid) {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
            total +=
                line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().map_or(0, |kib| kib * 1024);
        }
        Ok(total)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.guard.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status();
                let _ = self.guard.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A process and all its descendants.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        next += 1;
    }
    all
}

/// Pins the threads of a process whose names start with `name` to `core`.
pub fn pin_threads(pid: u32, name: &str, core: &str) -> Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        if std::fs::read_to_string(task.path().join("comm"))?.starts_with(name) {
            output("taskset", &["-cp", core, &task.file_name().to_string_lossy()])?;
        }
    }
    Ok(())
}

/// Pins this process and its future children to `core`, and raises the soft limit of open files to the hard limit.
pub fn pin_self(core: &str) -> Result<()> {
    let me = std::process::id().to_string();
    output("taskset", &["-acp", core, &me])?;
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    let hard = line.split_whitespace().nth(1).ok_or("/proc/self/limits has no open files")?;
    output("prlimit", &["--pid", &me, &format!("--nofile={hard}:{hard}")])?;
    Ok(())
}

/// The stdout and stderr of a program.
pub fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // `wrk -v` exits with status 1, like every call without a URL.
    if output.status.success() || arguments == ["-v"] {
        return Ok(printed);
    }
    Err(format!("{program} {} failed: {printed}", arguments.join(" ")).into())
}
