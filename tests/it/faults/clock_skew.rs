//! `catalog_propagation_seconds` does not compare clocks: an hour of skew between server and database has no effect.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use crate::support::consistency::{self, bump, in_sync};
use crate::support::{Db, Server, TempFolder};

/// Path of libfaketime, which `make test-tools` installs.
pub fn libfaketime() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    let mut libraries = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).filter(|path| path.exists());
    libraries.next().expect("no libfaketime: `make test-tools` installs it")
}

/// Shared memory that libfaketime creates for a process, and removes only if the process ends by itself.
fn shared_memory(pid: u32) -> [PathBuf; 2] {
    ["faketime_shm_", "sem.faketime_sem_"].map(|name| PathBuf::from(format!("/dev/shm/{name}{pid}")))
}

/// Starts a server whose clock is set by `settings`. libfaketime's shared memory stays mapped, so its names are removed
/// at once: a server that is killed would leave them behind.
pub async fn start(url: &str, settings: &[(&str, &str)]) -> Server {
    let library = libfaketime().display().to_string();
    let server = Server::spawn(url, &[&faked(&library), settings].concat()).await;
    remove_shared_memory(&server);
    server.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
    server
}

/// The settings that load libfaketime.
pub fn faked(library: &str) -> [(&str, &str); 2] {
    [("LD_PRELOAD", library), ("DONT_FAKE_MONOTONIC", "1")]
}

/// Removes the names of the shared memory of a server with a faked clock.
pub fn remove_shared_memory(server: &Server) {
    for path in shared_memory(server.pid()) {
        std::fs::remove_file(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    }
}

#[tokio::test]
async fn clock_skew_does_not_enter_propagation_time() {
    for (offset, hours) in [("+1h", 1.0), ("-1h", -1.0)] {
        let db = Db::new().await;
        consistency::add_pairs(&db.client, 1).await;
        let server = start(&db.url, &[("FAKETIME", offset)]).await;
        let database_time: f64 = db.sql("SELECT extract(epoch FROM clock_timestamp())").await.unwrap().parse().unwrap();
        let skew = server.metric("catalog_last_sync_timestamp_seconds").await - database_time;
        assert!((skew - hours * 3_600.0).abs() < 60.0, "{offset}: the clock of the server is off by {skew} s");

        for _ in 0..5 {
            db.sql(&bump(0)).await;
            in_sync(&server, &db.client).await;
        }
        // A change is measured shortly after it is served.
        let count = "catalog_propagation_seconds_count";
        server.until("all changes are measured", |s| async move { s.metric(count).await == 10.0 }).await;
        // Far below the skew, and more than a busy machine needs.
        let below = server.metric("catalog_propagation_seconds_bucket{le=\"60\"}").await;
        let sum = server.metric("catalog_propagation_seconds_sum").await;
        assert_eq!(below, 10.0, "{offset}");
        assert!(sum > 0.0 && sum < 600.0, "{offset}: {sum} s");
        let request_time = "catalog_http_request_duration_seconds_sum{route=\"/readyz\"}";
        assert!(server.metric(request_time).await < 600.0, "{offset}");
        let shared = shared_memory(server.pid());
        drop(server);
        assert!(shared.iter().all(|path| !path.exists()), "{shared:?} is left behind");
    }
}

#[tokio::test]
async fn date_follows_a_clock_that_is_set_back() {
    let (db, folder) = (Db::new().await, TempFolder::new("clock"));
    let clock = folder.path("clock");
    std::fs::write(&clock, "+1h\n").unwrap();
    let server = start(&db.url, &[("FAKETIME_TIMESTAMP_FILE", &*clock), ("FAKETIME_NO_CACHE", "1")]).await;
    for (offset, hours) in [("+1h", 1.0), ("+0", 0.0), ("-1h", -1.0), ("+1h", 1.0)] {
        std::fs::write(&clock, format!("{offset}\n")).unwrap();
        for path in ["/livez", "/api/models/none", "/api/models"] {
            let response = server.get(path).await;
            let date = httpdate::parse_http_date(response.header("date")).unwrap();
            let now = UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
            let ahead = date.duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - now;
            // A minute is more than a busy machine needs.
            assert!((ahead - hours * 3_600.0).abs() < 60.0, "{offset}, {path}: the date is {ahead} s ahead");
        }
    }
}
