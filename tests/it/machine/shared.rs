//! Folders as they are: requested files that the catalog no longer has, file systems without locks or syncs, read-only
//! folders, processes that were stopped.

use std::process::{Command, Stdio};

use super::files::Way;
use super::{Machine, add, content, sum};
use crate::support::{Db, Server, preload, refuse, until};

const SIZE: usize = 1_000_000;

/// Adds files with known hashes: `m0`, `m1` and so on; `m3` depends on `m2`.
async fn machine(name: &str, needed: &str) -> (Machine, Db, Server) {
    let mut machine = Machine::new(name, needed);
    let db = Db::new().await;
    for number in 0..4u64 {
        let file = content(number, SIZE);
        let url = machine.store.put(&format!("/{number}"), Way::File(file.clone()));
        let needs: &[&str] = if number == 3 { &["m2"] } else { &[] };
        add(&db, &format!("m{number}"), &url, &format!("f/{number}"), &sum("sha256sum", &file), false, needs).await;
    }
    let server = Server::start(&db).await;
    machine.catalog(&server);
    (machine, db, server)
}

#[tokio::test]
async fn requested_file_is_kept_when_its_row_is_gone() {
    let (mut machine, db, server) = machine("kept", "m0,m1,m3").await;
    assert_eq!(machine.boot(&[]).status, 0);
    db.sql("DELETE FROM models WHERE id IN ('m1', 'm3')").await;
    server.until("they are gone", |s| async move { s.get("/api/models/m3").await.status == 404 }).await;
    for (name, value) in
        [("MACHINE_MODELS_PRUNE", "1"), ("MACHINE_MODELS_KEEP_FREE", "900T"), ("MACHINE_MODELS_STRICT", "1")]
    {
        machine.set(name, value);
    }
    let boot = machine.boot(&["echo", "started"]);
    // The dependency of m3 is not known any more, but was needed together with it.
    assert_eq!(machine.files(), ["f/0", "f/1", "f/2", "f/3"], "{}", boot.log);
    assert!(boot.log.contains("fetched=0 present=1 linked=0 missing=0 kept=2"), "{}", boot.log);
    assert!(
        boot.log.contains(r#"its file is kept model="m1" path="f/1" reason="it is not in the catalog""#),
        "{}",
        boot.log
    );
    assert_eq!((boot.status, &*boot.output), (0, "started\n"), "{}", boot.log);
    let boot = machine.boot(&[]);
    assert!(boot.status == 0 && machine.files().len() == 4, "again: {:?} {}", machine.files(), boot.log);
    // What is not requested is removed.
    machine.set("MACHINE_MODELS_NEEDED", "m0");
    let boot = machine.boot(&[]);
    assert_eq!(machine.files(), ["f/0"], "{}", boot.log);
    // Without its file, the model is missing.
    machine.set("MACHINE_MODELS_NEEDED", "m1");
    assert_eq!(machine.boot(&[]).status, 1);
}

#[tokio::test]
async fn pulls_without_locks_do_not_disturb_each_other() {
    let (mut machine, _db, _server) = machine("nolocks", "m0,m1,m2,m3").await;
    let library = preload(&machine.folder, "int flock(int fd, int operation) { errno = ENOLCK; return -1; }");
    machine.set("LD_PRELOAD", &library);
    for _ in 0..3 {
        let boots: Vec<_> = (0..3).map(|_| machine.spawn(&[])).collect();
        for boot in boots {
            let boot = machine.ended(boot);
            assert_eq!(boot.status, 0, "{}", boot.log);
        }
        assert_eq!(machine.files(), ["f/0", "f/1", "f/2", "f/3"]);
        for number in 0..4 {
            assert!(machine.read(&format!("f/{number}")) == Some(content(number, SIZE)));
        }
        std::fs::remove_dir_all(machine.models()).unwrap();
    }
}

#[tokio::test]
async fn file_systems_without_locks_and_syncs_are_used() {
    let (mut machine, _db, _server) = machine("errnos", "m0,m1").await;
    let fails = |function: &str, errno: &str| format!("int {function} {{ errno = {errno}; return -1; }}");
    for (function, errnos) in [
        ("flock(int fd, int operation)", &["EIO", "EACCES", "EBADF", "ENOSYS"][..]),
        ("fsync(int fd)", &["EINVAL", "ENOSYS"]),
        ("fdatasync(int fd)", &["EINVAL"]),
    ] {
        for errno in errnos {
            let library = preload(&machine.folder, &fails(function, errno));
            machine.set("LD_PRELOAD", &library);
            let boot = machine.boot(&[]);
            assert!(boot.status == 0 && boot.log.contains("fetched=2"), "{function} {errno}: {}", boot.log);
            std::fs::remove_dir_all(machine.models()).unwrap();
        }
    }
}

#[tokio::test]
async fn stale_handle_costs_an_attempt() {
    let (mut machine, _db, _server) = machine("stale", "m0,m1").await;
    let once = r#"
        #include <sys/syscall.h>
        #include <unistd.h>
        int fsync(int fd) {
            static int calls;
            if (__sync_fetch_and_add(&calls, 1) == 0) {
                errno = ESTALE;
                return -1;
            }
            return syscall(SYS_fsync, fd);
        }"#;
    let library = preload(&machine.folder, once);
    machine.set("LD_PRELOAD", &library);
    let boot = machine.boot(&[]);
    assert!(boot.status == 0 && boot.log.contains("fetched=2"), "{}", boot.log);
    assert!(boot.log.contains("renaming the complete file failed: Stale file handle"), "{}", boot.log);
    let library = preload(&machine.folder, "int fsync(int fd) { errno = ESTALE; return -1; }");
    machine.set("LD_PRELOAD", &library);
    std::fs::remove_dir_all(machine.models()).unwrap();
    let boot = machine.boot(&[]);
    assert!(boot.status == 1 && boot.log.contains("missing=2"), "{}", boot.log);
}

#[tokio::test]
async fn file_of_a_stopped_process_is_taken_over() {
    let (mut machine, _db, _server) = machine("stopped", "m0").await;
    machine.store.put("/0", Way::Stalls(content(0, SIZE)));
    let mut first = machine.spawn(&[]);
    until("half of it is on disk", || async {
        let parts = std::fs::read_dir(machine.models().join("f")).into_iter().flatten().flatten();
        parts.filter(|part| part.metadata().unwrap().len() >= SIZE as u64 / 2).count() > 0
    })
    .await;
    assert!(Command::new("kill").args(["-STOP", &first.id().to_string()]).status().unwrap().success());
    machine.store.put("/0", Way::File(content(0, SIZE)));
    machine.set("MACHINE_MODELS_STALL", "1s");
    let boot = machine.boot(&[]);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(boot.status == 0 && boot.log.contains("fetched=1"), "{}", boot.log);
    assert!(machine.read("f/0") == Some(content(0, SIZE)));
}

#[tokio::test]
async fn read_only_folder_with_the_right_files_is_a_warm_boot() {
    let (mut machine, _db, _server) = machine("readonly", "m0,m1").await;
    machine.put("f/0", &content(0, SIZE));
    machine.put("f/1", &content(1, SIZE));
    // The folder belongs to another user.
    machine.user = Some(65_534);
    let boot = machine.boot(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output), (0, "started\n"), "{}", boot.log);
    assert!(boot.log.contains("fetched=0 present=2"), "{}", boot.log);
    assert_eq!(machine.files(), ["f/0", "f/1"]);
}

#[tokio::test]
async fn file_systems_without_free_space_are_used() {
    let (machine, _db, _server) = machine("free", "m0,m1").await;
    for (call, errno) in [("fstatfs", "ENOSYS"), ("fstatfs", "EPERM"), ("openat2", "ENOSYS"), ("statx", "ENOSYS")] {
        let boot = machine.boot_through(&[&refuse(&machine.folder, call, errno)]);
        assert!(boot.status == 0 && boot.log.contains("fetched=2"), "{call} {errno}: {}", boot.log);
        std::fs::remove_dir_all(machine.models()).unwrap();
    }
}

#[tokio::test]
async fn folders_that_cannot_shorten_files_are_used() {
    let (machine, _db, _server) = machine("shorten", "m0,m1").await;
    let boot = machine.boot_through(&[&refuse(&machine.folder, "ftruncate", "EINVAL")]);
    assert!(boot.status == 0 && boot.log.contains("fetched=2"), "{}", boot.log);
}

#[tokio::test]
async fn few_descriptors_are_enough_and_the_command_gets_its_own_limit() {
    let (mut machine, _db, _server) = machine("descriptors", "m0,m1,m3").await;
    for (limits, connections, is_limited) in
        [("--nofile=64:4096", "64", true), ("--nofile=64:4096", "32", false), ("--nofile=64:64", "64", true)]
    {
        machine.set("MACHINE_MODELS_PARALLEL", connections);
        machine.set("MACHINE_MODELS_CONNECTIONS", connections);
        let prefix = ["prlimit", limits].map(str::to_owned);
        let child = machine.pull(&prefix, &["sh", "-c", "ulimit -Sn"]).stderr(Stdio::piped()).spawn().unwrap();
        let boot = machine.ended(child);
        assert_eq!((boot.status, &*boot.output), (0, "64\n"), "{limits}: {}", boot.log);
        assert!(boot.log.contains("fetched=4"), "{limits}: {}", boot.log);
        assert_eq!(boot.log.contains("fewer connections than configured"), is_limited, "{limits}: {}", boot.log);
        std::fs::remove_dir_all(machine.models()).unwrap();
    }
}

#[tokio::test]
async fn folder_without_renames_is_named_before_the_download() {
    let (machine, _db, _server) = machine("renames", "m0,m1").await;
    let boot = machine.boot_through(&[&refuse(&machine.folder, "renameat", "EXDEV")]);
    let reason = r#"missing model="m0" reason="renaming a file in its folder failed: Invalid cross-device link"#;
    assert!(boot.status == 1 && boot.log.contains(reason), "{}", boot.log);
    assert_eq!(machine.files(), [""; 0], "{}", boot.log);
    let requests = machine.store.take_requests();
    assert!(requests.iter().all(|request| request.sent <= 1), "{requests:?}");
}

#[test]
fn file_is_kept_while_its_row_breaks_a_rule() {
    let mut machine = Machine::new("rule", "a");
    let file = content(1, SIZE);
    let url = machine.store.put("/a", Way::File(file.clone()));
    let row = |path| ("a", &*url, path, Some(sum("sha256sum", &file)), None);
    machine.models_are(&[row("f/a")]);
    assert_eq!(machine.boot(&[]).status, 0);
    machine.models_are(&[row("../f/a")]);
    for (name, value) in [("PRUNE", "1"), ("KEEP_FREE", "900T"), ("STRICT", "1")] {
        machine.set(&format!("MACHINE_MODELS_{name}"), value);
    }
    let boot = machine.boot(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output, machine.read("f/a")), (0, "started\n", Some(file)), "{}", boot.log);
    assert!(boot.log.contains(r#"its file is kept model="a" path="f/a" reason="its save path"#), "{}", boot.log);
}

#[test]
fn partial_file_that_cannot_be_resumed_does_not_keep_a_disk_full() {
    let file = content(1, SIZE);
    let (half, hash) = (format!("--fsize={}", SIZE / 2), sum("sha256sum", &file));
    for (hash, kept) in [(None, false), (Some(hash), true)] {
        let mut machine = Machine::new("full", "a");
        let url = machine.store.put("/a", Way::File(file.clone()));
        machine.models_are(&[("a", &url, "f/a", hash, None)]);
        let boot = machine.boot_through(&["prlimit", &half]);
        assert!(boot.status == 1 && boot.log.contains("writing the partial file failed"), "{}", boot.log);
        let parts = machine.files().iter().filter(|name| name.ends_with(".part")).count();
        assert_eq!(parts == 1, kept, "{:?} {}", machine.files(), boot.log);
        // It is resumed.
        assert_eq!(machine.boot(&[]).status, 0);
        assert!(machine.read("f/a").as_ref() == Some(&file));
    }
}

#[test]
fn record_is_written_once_a_second() {
    const FILES: u64 = 400;
    let mut machine = Machine::new("writes", "all");
    let files: Vec<_> = (0..FILES).map(|seed| (seed.to_string(), content(seed, 1_000))).collect();
    let url = |(id, file): &(String, Vec<u8>)| machine.store.put(&format!("/{id}"), Way::File(file.clone()));
    let urls: Vec<_> = files.iter().map(url).collect();
    let rows = files.iter().zip(&urls);
    let models: Vec<super::Row<'_>> =
        rows.map(|((id, file), url)| (&**id, &**url, &**id, Some(sum("sha256sum", file)), Some(0.001))).collect();
    machine.models_are(&models);
    let count = machine.folder.path("count");
    let library = preload(
        &machine.folder,
        r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int fsync(int fd) {
            char link[64], path[4096] = "";
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            if (readlink(link, path, sizeof path - 1) > 0 && strstr(path, "record.json")) {
                FILE *count = fopen(getenv("COUNT"), "a");
                fputs("x", count);
                fclose(count);
            }
            return syscall(SYS_fsync, fd);
        }
        "#,
    );
    machine.set("COUNT", &count);
    machine.set("LD_PRELOAD", &library);
    let started = std::time::Instant::now();
    let boot = machine.boot(&[]);
    assert!(boot.log.contains(&format!("fetched={FILES}")), "{}", boot.log);
    let writes = std::fs::metadata(&count).unwrap().len();
    // The first one, one a second, and those at the end.
    assert!((1..=started.elapsed().as_secs() + 4).contains(&writes), "{writes} in {:?}", started.elapsed());
    assert!(machine.boot(&[]).log.contains(&format!("present={FILES}")));
}
