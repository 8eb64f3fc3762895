//! The snapshot file: starts without a database, unusable files, full disks, kills at any moment.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use model_catalog::snapshot_file as file;

use crate::support::consistency::{self, ConsistencyReaders, bump, difference, full_reads, in_sync};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{self, Db, Server, TempFolder, migrated, sql};

const PAIRS: usize = 20;
/// A database URL at which no server listens.
const UNREACHABLE: &str = "host=/nowhere user=postgres dbname=postgres";

/// A folder for the snapshot file.
pub struct Folder(TempFolder);

impl Folder {
    pub fn new() -> Self {
        Self(TempFolder::new("snapshot"))
    }

    pub fn file(&self) -> String {
        self.0.path("catalog")
    }
}

async fn start(url: &str, file: &str) -> Server {
    Server::start_with(url, &[("CATALOG_SNAPSHOT_FILE", file), ("CATALOG_POLL_INTERVAL", "300ms")]).await
}

async fn operations(server: &Server, operation: &str, outcome: &str) -> f64 {
    let labels = format!("{{operation=\"{operation}\",outcome=\"{outcome}\"}}");
    server.metric(&format!("catalog_snapshot_file_operations_total{labels}")).await
}

async fn wait_for_write(server: &Server) {
    server.until("the file is written", |s| async { operations(s, "write", "ok").await > 0.0 }).await;
}

/// A database with pairs and a snapshot file of it.
async fn database_and_file() -> (Db, Folder) {
    let (db, folder) = (Db::new().await, Folder::new());
    consistency::add_pairs(&db.client, PAIRS).await;
    let server = start(&db.url, &folder.file()).await;
    wait_for_write(&server).await;
    server.terminate().await;
    (db, folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_without_database_serves_the_file_then_catches_up_with_a_delta() {
    let postgres = support::start_postgres(&[]);
    let client = migrated(&postgres.url("postgres")).await;
    consistency::add_pairs(&client, PAIRS).await;
    let proxy = Proxy::before(&postgres).await;
    let folder = Folder::new();
    let url = proxy.url("postgres");
    let server = start(&url, &folder.file()).await;
    // SIGTERM writes the last snapshot at once, without the pause between two writes.
    wait_for_write(&server).await;
    sql(&client, &bump(0)).await;
    in_sync(&server, &client).await;
    let revision = server.get("/api/models/pair-0-a").await.revision();
    server.terminate().await;

    proxy.set(Mode::Refuse).await;
    let server = start(&url, &folder.file()).await;
    let ready = server.get("/readyz").await.json();
    assert_eq!((ready["source"].as_str(), ready["models"].as_u64()), (Some("file"), Some(2 * PAIRS as u64)), "{ready}");
    assert!(ready["follow"].is_null() && ready["synced_seconds_ago"].is_null(), "{ready}");
    let reply = server.get("/api/models/pair-0-a").await;
    assert_eq!((reply.revision(), reply.json()["description"].as_str()), (revision, Some("1")));

    // Changes made while the server was down and Postgres unreachable.
    let readers = ConsistencyReaders::start(&server, PAIRS - 1, false);
    sql(&client, &bump(1)).await;
    let last = PAIRS - 1;
    sql(&client, &format!("DELETE FROM models WHERE id LIKE 'pair-{last}-_'")).await;
    proxy.set(Mode::Pass).await;
    in_sync(&server, &client).await;
    assert_eq!(full_reads(&server, 0.0).await, 0.0);
    server.until("the server is in sync", |s| async { s.get("/readyz").await.json()["source"] == "postgres" }).await;
    readers.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_of_another_history_is_served_until_postgres_responds() {
    let (_, folder) = database_and_file().await;
    let postgres = support::start_postgres(&[]);
    let client = migrated(&postgres.url("postgres")).await;
    consistency::add_pairs(&client, 2).await;
    let proxy = Proxy::before(&postgres).await;
    proxy.set(Mode::Refuse).await;
    let server = start(&proxy.url("postgres"), &folder.file()).await;
    assert_eq!(server.get("/readyz").await.json()["models"], 2 * PAIRS);
    proxy.set(Mode::Pass).await;
    in_sync(&server, &client).await;
    assert_eq!(full_reads(&server, 1.0).await, 1.0);
    server.until_logged("the database no longer has what was read from it", 1).await;
    // The file is replaced, too.
    wait_for_write(&server).await;
    server.terminate().await;
    assert_eq!(file::read(Path::new(&folder.file())).unwrap().snapshot.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_rules_force_a_full_read() {
    let (db, folder) = database_and_file().await;
    db.sql("SELECT model_catalog.strict(false)").await;
    db.sql("INSERT INTO models (id, name, download_url, save_path) VALUES ('s3', 's3', 's3://a/b', 'a/b')").await;
    let server = start(&db.url, &folder.file()).await;
    server.until("the server is in sync", |s| async { s.get("/readyz").await.json()["source"] == "postgres" }).await;
    assert_eq!((full_reads(&server, 0.0).await, server.get("/api/models/s3").await.status), (0.0, 404));
    server.terminate().await;
    let settings = [("CATALOG_SNAPSHOT_FILE", &*folder.file()), ("CATALOG_URL_SCHEMES", "https,s3")];
    let server = Server::start_with(&db.url, &settings).await;
    in_sync(&server, &db.client).await;
    assert_eq!((full_reads(&server, 1.0).await, server.get("/api/models/s3").await.status), (1.0, 200));
}

#[tokio::test]
async fn id_with_json_escapes_survives_a_restart() {
    let (db, folder) = (Db::new().await, Folder::new());
    db.add("a\"b").await;
    let server = start(&db.url, &folder.file()).await;
    wait_for_write(&server).await;
    server.terminate().await;
    let server = Server::spawn(UNREACHABLE, &[("CATALOG_SNAPSHOT_FILE", &folder.file())]).await;
    server.until("the file is served", |s| async move { s.get("/readyz").await.status == 200 }).await;
    assert_eq!(server.get("/api/models/a%22b").await.json()["id"], "a\"b");
}

/// A modified file with a valid checksum.
fn with_new_checksum(text: &str) -> Vec<u8> {
    let end = text.trim_end().rfind('\n').unwrap() + 1;
    let sum = xxhash_rust::xxh3::xxh3_128(&text.as_bytes()[..end]);
    format!("{}{{\"checksum\":\"{sum:032x}\"}}\n", &text[..end]).into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_file_is_quarantined() {
    let (db, folder) = database_and_file().await;
    let good = std::fs::read(folder.file()).unwrap();
    let mut cases = vec![("empty", Vec::new()), ("garbage", vec![0xa5; 5_000]), ("text", b"hello\n".repeat(9))];
    for length in [1, 40, good.len() / 2, good.len() - 40, good.len() - 1] {
        cases.push(("truncated", good[..length].to_vec()));
    }
    for place in (7..good.len()).step_by(good.len() / 8) {
        let mut flipped = good.clone();
        flipped[place] ^= 1;
        cases.push(("flipped", flipped));
    }
    let text = String::from_utf8(good.clone()).unwrap();
    cases.push(("appended", [&good[..], b"more\n"].concat()));
    cases.push(("format", text.replacen("\"format\":\"", "\"format\":\"other ", 1).into_bytes()));
    // The checksum is right, the revision is not.
    cases.push(("revision", with_new_checksum(&text.replacen("\"revision\":\"", "\"revision\":\"0", 1))));
    let quarantined = PathBuf::from(format!("{}.damaged", folder.file()));
    for (case, bytes) in cases {
        std::fs::write(folder.file(), &bytes).unwrap();
        // Nothing of it is served, even without a database.
        let server = Server::spawn(UNREACHABLE, &[("CATALOG_SNAPSHOT_FILE", &folder.file())]).await;
        let message = "the snapshot file can't be used";
        server.until("the fault is logged", |s| async move { s.logged(message) == 1 }).await;
        assert_eq!(operations(&server, "read", "error").await, 1.0, "{case}");
        assert_eq!(server.get("/readyz").await.status, 503, "{case}");
        assert!(!Path::new(&folder.file()).exists(), "{case}");
        assert_eq!(std::fs::read(&quarantined).unwrap(), bytes, "{case}");
    }
    let server = start(&db.url, &folder.file()).await;
    assert_eq!(difference(&server, &db.client).await, None);

    // A directory in its place is quarantined if possible, and tolerated if not.
    drop(server);
    for times in 0..2 {
        std::fs::remove_file(folder.file()).ok();
        std::fs::create_dir_all(Path::new(&folder.file()).join("inner")).unwrap();
        let server = start(&db.url, &folder.file()).await;
        assert_eq!(operations(&server, "read", "error").await, 1.0);
        assert_eq!(difference(&server, &db.client).await, None);
        if times == 0 {
            assert!(!quarantined.is_dir());
            std::fs::remove_file(&quarantined).unwrap();
        }
        let outcome = if Path::new(&folder.file()).is_dir() { "error" } else { "ok" };
        server.until("a write has finished", |s| async move { operations(s, "write", outcome).await > 0.0 }).await;
        if Path::new(&folder.file()).is_dir() {
            std::fs::remove_dir_all(folder.file()).unwrap();
        }
    }
}

/// A small tmpfs that is unmounted after the test.
pub struct SmallDisk(Folder);

impl SmallDisk {
    /// `None` if this process may not mount.
    pub fn mount(size: &str) -> Option<Self> {
        let folder = Folder::new();
        let size = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&*folder.0).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }

    /// Path of the snapshot file on it.
    pub fn file(&self) -> String {
        self.0.file()
    }

    /// Fills the disk; removing the returned file frees it again.
    pub fn fill(&self) -> PathBuf {
        let ballast = self.0.0.join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(&*self.0.0).status().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_stops_only_the_snapshot_file() {
    let Some(disk) = SmallDisk::mount("64k") else {
        return support::skip("this process can't mount a tmpfs");
    };
    let db = Db::new().await;
    consistency::add_pairs(&db.client, PAIRS).await;
    let server = start(&db.url, &disk.file()).await;
    wait_for_write(&server).await;
    let before = std::fs::read(disk.file()).unwrap();
    let readers = ConsistencyReaders::start(&server, PAIRS, false);
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path) \
            SELECT 'big' || n, repeat('x', 1000), 'https://example.org/', 'a/b' FROM generate_series(1, 100) n",
    )
    .await;
    server.until("a write failed", |s| async { operations(s, "write", "error").await > 0.0 }).await;
    in_sync(&server, &db.client).await;
    assert_eq!(std::fs::read(disk.file()).unwrap(), before, "the old file was changed");
    server.until_logged("the snapshot file can't be written", 1).await;
    assert!(server.logged("No space left") >= 1, "{:#?}", server.log());
    db.sql("DELETE FROM models WHERE id LIKE 'big%'").await;
    db.sql(&bump(0)).await;
    server.until("the file can be written again", |s| async { s.logged("can be written again") == 1 }).await;
    in_sync(&server, &db.client).await;
    readers.finish().await;
    server.terminate().await;
    let kept = file::read(Path::new(&disk.file())).unwrap();
    assert_eq!(kept.snapshot.len(), 2 * PAIRS);
    let json = kept.snapshot.get("pair-0-a").unwrap().json().to_vec();
    assert!(String::from_utf8(json).unwrap().contains("\"description\":\"1\""));
}

/// Path, size and modification time of every file in a directory.
fn list_files(folder: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let files = std::fs::read_dir(folder).unwrap().flatten();
    let files = files.filter_map(|file| Some((file.path(), file.metadata().ok()?)));
    let mut list: Vec<_> = files.map(|(path, data)| (path, data.len(), data.modified().unwrap())).collect();
    list.sort();
    list
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_at_any_moment_leaves_a_valid_file() {
    let (db, folder) = (Db::new().await, Folder::new());
    consistency::add_pairs(&db.client, 4_000).await;
    for round in 0..20_u64 {
        db.sql(&bump(0)).await;
        let server = start(&db.url, &folder.file()).await;
        let (before, existed) = (list_files(&folder.0), Path::new(&folder.file()).exists());
        // Writing a few megabytes takes some milliseconds; the kill comes between its first byte and its end.
        db.sql("UPDATE models SET hash = coalesce(hash, '') || 'x'").await;
        let deadline = Instant::now() + support::WAIT_LIMIT;
        while list_files(&folder.0) == before {
            assert!(Instant::now() < deadline, "no write has started");
            std::thread::sleep(Duration::from_micros(100));
        }
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..=2_000 * round)));
        server.signal("KILL");
        server.until("the process has exited", |s| async { s.exited().is_some() }).await;
        match file::read(Path::new(&folder.file())) {
            Ok(kept) => assert_eq!(kept.snapshot.len(), 8_000),
            Err(error) => {
                assert!(matches!(error, file::SnapshotFileError::Missing) && !existed, "round {round}: {error}")
            }
        }
        if round % 5 == 0 {
            std::fs::remove_file(folder.file()).ok();
        }
    }
    let server = start(&db.url, &folder.file()).await;
    in_sync(&server, &db.client).await;
    assert_eq!(operations(&server, "read", "error").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_sharing_a_file_keep_it_valid() {
    let (db, folder) = database_and_file().await;
    let path = PathBuf::from(folder.file());
    let (one, two) = (start(&db.url, &folder.file()).await, start(&db.url, &folder.file()).await);
    db.sql(&bump(0)).await;
    for server in [&one, &two] {
        in_sync(server, &db.client).await;
        server.terminate().await;
    }
    assert!(file::read(&path).unwrap().snapshot.len() == 2 * PAIRS);

    // Much faster than two processes would: concurrent writers, which find each other's temporary file, and a reader.
    let state = file::read(&path).unwrap();
    let deadline = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        let writer = || {
            let shared = file::PersistedSnapshot {
                as_of: state.as_of.clone(),
                snapshot: std::sync::Arc::new(state.snapshot.clone()),
                position: state.position.clone(),
                rules: state.rules.clone(),
                structure: state.structure.clone(),
                database_started: state.database_started.clone(),
            };
            while Instant::now() < deadline {
                match file::write(&path, &shared) {
                    Ok(()) | Err(file::SnapshotFileError::Busy) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        };
        for _ in 0..4 {
            scope.spawn(writer);
        }
        while Instant::now() < deadline {
            file::read(&path).unwrap_or_else(|error| panic!("{error}"));
        }
    });
}

#[tokio::test]
async fn second_process_does_not_write_the_file_of_the_first() {
    let (db, folder) = database_and_file().await;
    let one = start(&db.url, &folder.file()).await;
    db.sql(&bump(0)).await;
    wait_for_write(&one).await;
    let two = start(&db.url, &folder.file()).await;
    db.sql(&bump(1)).await;
    in_sync(&two, &db.client).await;
    two.until("it does not write", |s| async move { operations(s, "write", "error").await > 0.0 }).await;
    two.until_logged("another process is writing it", 1).await;
    assert_eq!((operations(&two, "write", "ok").await, operations(&one, "write", "error").await), (0.0, 0.0));
    one.terminate().await;
    db.sql(&bump(2)).await;
    two.until_logged("the snapshot file can be written again", 1).await;
}

#[tokio::test]
async fn links_and_pipes_beside_the_file_are_left_alone() {
    let (db, folder) = (Db::new().await, Folder::new());
    let (precious, lock) = (folder.0.join("precious"), format!("{}.lock", folder.file()));
    std::fs::write(&precious, "precious").unwrap();
    std::os::unix::fs::symlink(&precious, format!("{}.tmp", folder.file())).unwrap();
    for (kind, beside) in [("a link", &lock), ("a pipe", &lock)] {
        let _ = std::fs::remove_file(beside);
        match kind {
            "a link" => std::os::unix::fs::symlink(&precious, beside).unwrap(),
            _ => assert!(Command::new("mkfifo").arg(beside).status().unwrap().success()),
        }
        let server = start(&db.url, &folder.file()).await;
        db.add(kind).await;
        wait_for_write(&server).await;
        server.until_logged("the snapshot file can't be locked", 1).await;
        server.terminate().await;
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    }
}

#[tokio::test]
async fn pipe_or_device_is_never_replaced_by_a_file() {
    let (db, folder) = (Db::new().await, Folder::new());
    let pipe = folder.file();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let server = start(&db.url, &pipe).await;
    server.until("the fault is logged", |s| async move { s.logged("it is not a regular file") >= 2 }).await;
    assert!(operations(&server, "write", "ok").await == 0.0 && operations(&server, "read", "error").await == 1.0);
    server.terminate().await;
    let kinds: Vec<_> =
        std::fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_type().unwrap()).collect();
    assert!(kinds.len() == 1 && kinds[0].is_fifo(), "{kinds:?}");
}
