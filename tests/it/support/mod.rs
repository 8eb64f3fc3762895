//! What the tests are built from: one private Postgres per run, one database per test, the real program as a child
//! process, and HTTP clients. Tests wait for conditions, and a failed test prints the server's log.

pub mod browser;
pub mod cgroup;
pub mod change_log;
pub mod consistency;
pub mod hostile_clients;
pub mod nginx;
mod postgres;
mod preload;
pub mod proxy;
pub mod raw;
mod response;
mod server;
pub mod system_faults;
pub mod tcp_proxy;
mod temp_folder;
mod unwritable;

use std::io::Write;
use std::time::{Duration, Instant};

pub use postgres::{Db, connect, database, migrate_without_table, migrated, model_json, sql, start_postgres};
pub use preload::{preload, refuse};
pub use response::Response;
pub use server::{NOTIFY_ONLY, Server, start_with_model_a};
pub use temp_folder::TempFolder;
pub use unwritable::Unwritable;

/// Records that the calling test is skipped, which must then return. `make test` prints the file at its end: the output of
/// a test that passes is not shown.
pub fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("skipped {name}: {}\n", reason.trim());
    eprint!("{line}");
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/skipped-tests.txt");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// Maximum wait for any condition. Only a failing test waits this long.
pub const WAIT_LIMIT: Duration = Duration::from_secs(30);

/// Raises this process's soft limit of file descriptors to the hard limit; most shells set it to 1,024.
pub fn raise_fd_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + WAIT_LIMIT;
    while !condition().await {
        assert!(Instant::now() < deadline, "timed out after {WAIT_LIMIT:?} waiting until {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
