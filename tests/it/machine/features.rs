//! Features beyond downloading: the record of verified files, links, pruning, reports, shared folders.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use model_catalog::postgres::ephemeral::free_port;
use serde_json::{Value, json};

use super::files::Way;
use super::{Boot, Machine, add, content, sum};
use crate::support::{Db, Server, until};

const SIZE: usize = 1_000_000;

/// A machine that needs `count` files with known hashes: `m0`, `m1` and so on.
async fn machine(name: &str, count: u64) -> (Machine, Db, Server) {
    let needed: Vec<_> = (0..count).map(|number| format!("m{number}")).collect();
    let mut machine = Machine::new(name, &needed.join(","));
    let db = Db::new().await;
    for number in 0..count {
        let file = content(number, SIZE);
        let url = machine.store.put(&format!("/{number}"), Way::File(file.clone()));
        add(&db, &format!("m{number}"), &url, &format!("f/{number}"), &sum("sha256sum", &file), false, &[]).await;
    }
    let server = Server::start(&db).await;
    machine.catalog(&server);
    (machine, db, server)
}

/// Bytes that the pull had read when it executed the command.
fn bytes_read(machine: &Machine) -> (Boot, usize) {
    let boot = machine.boot(&["sh", "-c", "cat /proc/$$/io"]);
    let read = boot.output.split_once("rchar: ").unwrap_or_else(|| panic!("{}", boot.log)).1;
    let read = read.lines().next().unwrap().parse().unwrap();
    (boot, read)
}

fn read_json(machine: &Machine, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(machine.folder.join(name)).unwrap()).unwrap()
}

#[tokio::test]
async fn warm_boot_hashes_only_changed_files() {
    let (mut machine, _db, _server) = machine("warm", 20).await;
    assert_eq!(machine.boot(&[]).status, 0);
    machine.store.take_requests();

    let begun = Instant::now();
    let (boot, read) = bytes_read(&machine);
    assert!(boot.log.contains("fetched=0 present=20"), "{}", boot.log);
    assert!(read < 1_000_000 && begun.elapsed() < Duration::from_secs(5), "{read} bytes in {:?}", begun.elapsed());
    assert!(machine.store.take_requests().is_empty());

    machine.set("MACHINE_MODELS_VERIFY", "always");
    let (boot, read) = bytes_read(&machine);
    assert!(boot.log.contains("fetched=0 present=20") && read > 20 * SIZE, "{read} bytes: {}", boot.log);

    // Size and mtime are unchanged; only the ctime differs.
    machine.set("MACHINE_MODELS_VERIFY", "changed");
    let path = machine.models().join("f/7");
    let modified = path.metadata().unwrap().modified().unwrap();
    std::fs::write(&path, content(99, SIZE)).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("fetched=1 present=19"), "{}", boot.log);
    assert!(machine.read("f/7") == Some(content(7, SIZE)));

    // Touched but unchanged: hashed again, not downloaded.
    std::fs::write(&path, content(7, SIZE)).unwrap();
    let (boot, read) = bytes_read(&machine);
    assert!(boot.log.contains("fetched=0 present=20") && (SIZE..2 * SIZE).contains(&read), "{read}: {}", boot.log);
    assert!(bytes_read(&machine).1 < 1_000_000);

    // A damaged record only costs hashing.
    std::fs::write(machine.models().join(".model-catalog/record.json"), "{").unwrap();
    let (boot, read) = bytes_read(&machine);
    assert!(boot.log.contains("fetched=0 present=20") && read > 20 * SIZE, "{read} bytes: {}", boot.log);
}

#[tokio::test]
async fn equal_content_is_downloaded_once_and_linked() {
    let (mut machine, db, server) = machine("linked", 1).await;
    let (url, hash) = (format!("http://{}/absent", machine.store.address), sum("sha256sum", &content(0, SIZE)));
    for id in ["a", "b"] {
        add(&db, id, &url, &format!("other/{id}"), &format!("SHA256:{hash}"), false, &[]).await;
    }
    server.until("b is served", |s| async move { s.get("/api/models/b").await.status == 200 }).await;
    machine.set("MACHINE_MODELS_NEEDED", "a,m0,b");
    // The first URL in the list is dead.
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("fetched=1 present=0 linked=1 missing=1"), "{}", boot.log);
    // The content is on disk by now, so its URL is not needed.
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("fetched=0 present=2 linked=1 missing=0"), "{}", boot.log);
    let inode = |path: &str| machine.models().join(path).metadata().unwrap().ino();
    assert!(inode("f/0") == inode("other/a") && inode("f/0") == inode("other/b"));
    assert!(machine.read("other/a") == Some(content(0, SIZE)));
    let sent: usize = machine.store.take_requests().iter().map(|request| request.sent).sum();
    assert!(sent < SIZE + 10, "it was downloaded more than once: {sent} bytes");
    let (boot, read) = bytes_read(&machine);
    assert!(boot.log.contains("fetched=0 present=3") && read < SIZE, "links were hashed again: {read}: {}", boot.log);
}

#[tokio::test]
async fn prune_removes_only_unneeded_downloads_and_only_if_enabled() {
    let (mut machine, _db, _server) = machine("prune", 5).await;
    assert_eq!(machine.boot(&[]).status, 0);
    machine.put("f/mine", b"mine");
    machine.put("f/3", &content(3, SIZE));
    machine.set("MACHINE_MODELS_NEEDED", "m0");
    machine.set("MACHINE_MODELS_KEEP_FREE", "900T");
    assert_eq!(machine.boot(&[]).status, 0);
    assert_eq!(machine.files(), ["f/0", "f/1", "f/2", "f/3", "f/4", "f/mine"], "pruning is off");

    machine.set("MACHINE_MODELS_PRUNE", "1");
    machine.set("MACHINE_MODELS_KEEP_FREE", "1K");
    assert_eq!(machine.boot(&[]).status, 0);
    assert_eq!(machine.files().len(), 6, "the disk has enough space");

    machine.set("MACHINE_MODELS_KEEP_FREE", "900T");
    let boot = machine.boot(&[]);
    // Model 3 was modified since.
    assert_eq!(machine.files(), ["f/0", "f/3", "f/mine"], "{}", boot.log);
    machine.set("MACHINE_MODELS_NEEDED", "m1");
    let boot = machine.boot(&[]);
    assert!(boot.status == 1 && boot.log.contains(r#"model="m1" reason="it needs 1000000 bytes, but only 0 are free"#));
}

#[tokio::test]
async fn dry_run_lists_downloads_and_writes_nothing() {
    let (mut machine, _db, _server) = machine("dry", 3).await;
    machine.set("MACHINE_MODELS_NEEDED", "m0,m1,m2,absent");
    machine.put("f/1", &content(1, SIZE));
    machine.flags.push("--dry-run");
    let boot = machine.boot(&["echo", "started"]);
    let expected = "missing\t-\t-\t\tabsent\tit is not in the catalog\n\
                    fetch\t1000000\t127.0.0.1\tf/0\tm0\n\
                    present\t-\t-\tf/1\tm1\n\
                    fetch\t1000000\t127.0.0.1\tf/2\tm2\n\
                    2000000 bytes to fetch\n";
    assert_eq!((boot.status, &*boot.output), (1, expected), "{}", boot.log);
    assert_eq!(machine.files(), ["f/1"]);
    let sent: usize = machine.store.take_requests().iter().map(|request| request.sent).sum();
    assert_eq!(sent, 2, "only first bytes are requested");
}

#[tokio::test]
async fn status_and_metrics_report_every_model() {
    let (mut machine, db, server) = machine("status", 2).await;
    let url = machine.store.put("/gone", Way::Status(404));
    add(&db, "gone \"\\", &url, "gone", "", false, &[]).await;
    server.until("gone is served", |s| async move { s.get("/api/models/gone%20%22%5C").await.status == 200 }).await;
    machine.set("MACHINE_MODELS_NEEDED", "m0,m1,gone \"\\");
    for (name, file) in [("MACHINE_MODELS_STATUS_FILE", "status.json"), ("MACHINE_MODELS_METRICS_FILE", "pull.prom")] {
        machine.set(name, machine.folder.join(file).to_str().unwrap().to_owned().as_str());
    }
    machine.set("CATALOG_LOG_FORMAT", "json");
    let boot = machine.boot(&[]);
    assert_eq!(boot.status, 1);
    assert!(boot.log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", boot.log);
    let status = read_json(&machine, "status.json");
    assert_eq!((&status["status"], &status["bytes_received"]), (&json!("incomplete"), &json!(2 * SIZE)));
    let model = |id: &str| status["models"].as_array().unwrap().iter().find(|model| model["id"] == id).unwrap().clone();
    let (m0, gone) = (model("m0"), model("gone \"\\"));
    assert_eq!((&m0["outcome"], &m0["source"], &m0["path"]), (&json!("fetched"), &json!("127.0.0.1"), &json!("f/0")));
    assert_eq!((&gone["outcome"], &gone["reason"]), (&json!("missing"), &json!("not_found")));
    let metrics = std::fs::read_to_string(machine.folder.join("pull.prom")).unwrap();
    for line in [
        r#"catalog_pull_model_received_bytes{model="m0",source="127.0.0.1"} 1000000"#,
        r#"catalog_pull_model_outcome{model="m0",outcome="fetched",reason=""} 1"#,
        r#"catalog_pull_model_outcome{model="gone \"\\",outcome="missing",reason="not_found"} 1"#,
        "# TYPE catalog_pull_seconds gauge",
    ] {
        assert!(metrics.contains(line), "no {line} in {metrics}");
    }
    let mut promtool = Command::new("promtool");
    let mut checked = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut checked.stdin.take().unwrap(), metrics.as_bytes()).unwrap();
    assert!(checked.wait().unwrap().success(), "{metrics}");
}

#[tokio::test]
async fn next_catalog_is_used_when_one_fails() {
    let (mut machine, _db, server) = machine("several", 1).await;
    let dead = "http://127.0.0.1:1";
    let wrong = machine.store.put("/api/models/batch", Way::Status(500)).replace("/api/models/batch", "");
    machine.set("CATALOG_URL", &format!("{dead}, {wrong},http://{}/", server.address));
    machine.set("MACHINE_MODELS_WAIT", "600");
    let boot = machine.boot(&[]);
    assert_eq!((boot.status, machine.files()), (0, vec!["f/0".to_owned()]), "{}", boot.log);
}

#[tokio::test]
async fn invalid_value_is_a_warning_and_missing_folder_stops_only_strict_mode() {
    let (mut machine, _db, _server) = machine("wrong", 1).await;
    machine.set("MACHINE_MODELS_PARALLEL", "four");
    machine.set("MACHINE_MODELS_VERIFY", "often");
    let boot = machine.boot(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output), (0, "started\n"));
    for warning in ["MACHINE_MODELS_PARALLEL is \"four\"", "MACHINE_MODELS_VERIFY is \"often\""] {
        assert!(boot.log.contains(warning), "{}", boot.log);
    }
    machine.flags.extend(["--dir", ""]);
    let boot = machine.boot(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output), (0, "started\n"));
    assert!(boot.log.contains("MODELS_DIR (--dir) must name the models folder"), "{}", boot.log);
    machine.flags.push("--strict");
    assert_eq!((machine.boot(&["echo"]).status, machine.boot(&[]).status), (1, 1));
    machine.flags.clear();
    assert_eq!(machine.boot(&["no-such-program"]).status, 127);
    assert_eq!(machine.boot(&["/"]).status, 126);
}

#[tokio::test]
async fn second_process_shows_the_progress_of_the_first() {
    let (mut machine, _db, _server) = machine("second", 1).await;
    machine.store.put("/0", Way::Stalls(content(0, SIZE)));
    let mut first = machine.spawn(&[]);
    until("half of it is on disk", || async {
        let parts = std::fs::read_dir(machine.models().join("f")).into_iter().flatten().flatten();
        parts.filter(|part| part.metadata().unwrap().len() >= SIZE as u64 / 2).count() > 0
    })
    .await;
    let status = machine.folder.join("second.json");
    machine.set("MACHINE_MODELS_STATUS_FILE", status.to_str().unwrap().to_owned().as_str());
    let second = machine.spawn(&[]);
    until("the second process reports it", || async {
        let status = std::fs::read(&status).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        status.is_some_and(|status| {
            let model = &status["models"][0];
            model["phase"] == "fetching_elsewhere" && model["bytes_done"] == SIZE / 2
        })
    })
    .await;
    // The second process takes over when the first has ended, and resumes.
    machine.store.put("/0", Way::File(content(0, SIZE)));
    machine.store.take_requests();
    first.kill().unwrap();
    first.wait().unwrap();
    let boot = machine.ended(second);
    assert!(boot.log.contains("fetched=1 present=0") && boot.log.contains("bytes=500000"), "{}", boot.log);
    assert!(machine.read("f/0") == Some(content(0, SIZE)));
}

#[tokio::test]
async fn slow_connection_is_abandoned() {
    let (mut machine, _db, _server) = machine("trickle", 1).await;
    machine.store.put("/0", Way::Trickles(content(0, SIZE)));
    machine.set("MACHINE_MODELS_STALL", "500ms");
    machine.set("MACHINE_MODELS_MIN_SPEED", "1M");
    let boot = machine.boot(&[]);
    assert!(boot.log.contains(r#"model="m0" reason="the transfer from 127.0.0.1 stalled""#), "{}", boot.log);
}

#[test]
fn next_mirror_is_used_when_one_fails() {
    let mut machine = Machine::new("mirrors", "all");
    let file = content(1, SIZE);
    let [gone, wrong, half, good] = [
        machine.store.put("/gone", Way::Status(404)),
        machine.store.put("/wrong", Way::File(content(2, SIZE))),
        machine.store.put("/half", Way::Stalls(file.clone())),
        machine.store.put("/good", Way::File(file.clone())),
    ];
    let model = |id: &str, addresses: &[&String], seed: u64| {
        let hash = sum("sha256sum", &content(seed, SIZE));
        json!({"id": id, "download_url": addresses[0], "mirrors": addresses[1..], "file_size_gb": null, "hash": hash,
               "auth_required": false, "save_path": id})
    };
    let models = [model("a", &[&gone, &wrong, &half, &good], 1), model("b", &[&gone, &good], 3)];
    let catalog = json!({"models": models, "not_found": [], "missing_dependencies": []}).to_string();
    machine.store.put("/api/models/batch", Way::Post(catalog));
    machine.set("CATALOG_URL", &format!("http://{}", machine.store.address));
    machine.set("MACHINE_MODELS_TRIES", "1");
    machine.set("MACHINE_MODELS_STALL", "500ms");
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("fetched=1 present=0 linked=0 missing=1"), "{}", boot.log);
    assert!(
        boot.log.contains(r#"missing model="b" reason="its hash does not match the one in the catalog""#),
        "{}",
        boot.log
    );
    assert!(machine.read("a") == Some(file));
    // Bytes from the third mirror are not downloaded again from the fourth.
    let sent: usize = machine
        .store
        .take_requests()
        .iter()
        .filter(|request| request.path == "/good")
        .map(|request| request.sent)
        .sum();
    assert_eq!(sent, SIZE / 2 + SIZE, "{}", boot.log);
}

#[tokio::test]
async fn mirror_in_the_table_is_used_when_the_download_url_is_dead() {
    let (mut machine, db, server) = machine("rowmirrors", 1).await;
    // Nothing listens on a free port.
    let closed = format!("127.0.0.1:{}", free_port().unwrap());
    let update = "UPDATE models SET download_url = $1, mirrors = to_jsonb(ARRAY[$2, download_url])";
    let urls = [format!("http://{closed}/0"), format!("http://{}/gone", machine.store.address)];
    db.client.execute(update, &[&urls[0], &urls[1]]).await.unwrap();
    server.until("both mirrors are served", |s| async { s.field("m0", "mirrors").await[1].is_string() }).await;
    machine.set("MACHINE_MODELS_TRIES", "1");
    let boot = machine.boot(&[]);
    assert!(boot.status == 0 && boot.log.contains("fetched=1 present=0 linked=0 missing=0"), "{}", boot.log);
    assert!(machine.read("f/0") == Some(content(0, SIZE)));
}

/// A pull that was killed after half of its file had been received.
async fn killed_half_way(machine: &Machine) {
    let mut pull = machine.spawn(&[]);
    until("half of it is in the journal", || async {
        let own = std::fs::read_dir(machine.models().join(".model-catalog")).into_iter().flatten().flatten();
        let texts = own.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
        texts.filter(|text| text.contains(&format!("\"gaps\":[[{},{SIZE}]]", SIZE / 2))).count() > 0
    })
    .await;
    pull.kill().unwrap();
    pull.wait().unwrap();
}

#[tokio::test]
async fn versions_of_a_file_are_not_mixed() {
    let (machine, db, server) = machine("versions", 1).await;
    // Without a hash, only the entity tag distinguishes the versions.
    db.sql("UPDATE models SET hash = NULL").await;
    server.until("it has no hash", |s| async move { s.field("m0", "hash").await.is_null() }).await;
    for (first, second, resumes) in [
        ("\"a\"", "\"a\"", true),
        ("\"a\"", "\"b\"", false),
        ("W/\"a\"", "\"a\"", false),
        ("W/\"a\"", "W/\"a\"", false),
    ] {
        machine.store.put("/0", Way::Stalls(content(0, SIZE)));
        machine.store.tag("/0", first);
        killed_half_way(&machine).await;
        machine.store.put("/0", Way::File(content(if resumes { 0 } else { 1 }, SIZE)));
        machine.store.tag("/0", second);
        machine.store.take_requests();
        let boot = machine.boot(&[]);
        assert_eq!(boot.status, 0, "{}", boot.log);
        assert!(machine.read("f/0") == Some(content(if resumes { 0 } else { 1 }, SIZE)), "{first} {second}: a mixture");
        let sent: usize = machine.store.take_requests().iter().map(|request| request.sent).sum();
        assert_eq!(sent, if resumes { SIZE / 2 + 1 } else { SIZE + 1 }, "{first} {second}: {}", boot.log);
        std::fs::remove_file(machine.models().join("f/0")).unwrap();
    }
}

#[tokio::test]
async fn abandoned_partial_file_is_removed_after_a_week() {
    let (mut machine, _db, _server) = machine("old", 2).await;
    machine.set("MACHINE_MODELS_NEEDED", "m0");
    machine.store.put("/0", Way::Stalls(content(0, SIZE)));
    killed_half_way(&machine).await;
    machine.set("MACHINE_MODELS_NEEDED", "m1");
    assert_eq!(machine.boot(&[]).status, 0);
    let left = machine.files();
    assert_eq!(left.len(), 3, "journal, part and m1: {left:?}");
    let journal = machine.models().join(left.iter().find(|name| name.ends_with(".json")).unwrap());
    let week = Duration::from_secs(7 * 24 * 60 * 60 + 60);
    let file = std::fs::File::options().write(true).open(journal).unwrap();
    file.set_modified(std::time::SystemTime::now() - week).unwrap();
    assert_eq!(machine.boot(&[]).status, 0);
    assert_eq!(machine.files(), ["f/1"]);
}
