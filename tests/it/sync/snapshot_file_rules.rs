//! Snapshot files that were written under other rules, or by another version of the program.

use std::path::Path;

use super::snapshot_file::Folder;
use crate::support::{Db, Server, model_json};

/// A database that refuses every connection.
const UNREACHABLE: &str = "host=/nowhere user=postgres dbname=postgres";
/// As version 1 of the format, whose rules allowed credentials in URLs, and with `CATALOG_URL_SCHEMES=http,https,ftp`.
const VERSION_1: &str = include_str!("snapshot_v1.jsonl");
/// As version 0.1.0 of the program wrote it: version 2 of the format.
const VERSION_0_1_0: &str = include_str!("snapshot_v0_1_0.jsonl");

async fn status(server: &Server, id: &str) -> u16 {
    server.get(&format!("/api/models/{id}")).await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_break_tightened_rules_are_not_served_from_a_file() {
    let (db, folder) = (Db::lenient().await, Folder::new());
    db.add("a").await;
    db.add("ftp").await;
    db.add("mirror").await;
    db.sql(
        "UPDATE models SET download_url = 'ftp://example.org/x' WHERE id = 'ftp'; \
         UPDATE models SET mirrors = '[\"https://example.org/x\", \"ftp://example.org/x\"]' WHERE id = 'mirror'; \
         UPDATE models SET mirrors = '[\"https://example.org/x\"]' WHERE id = 'a'",
    )
    .await;
    let file = folder.file();
    let loose = [("CATALOG_SNAPSHOT_FILE", &*file), ("CATALOG_URL_SCHEMES", "http,https,ftp")];
    let server = Server::start_with(&db.url, &loose).await;
    assert_eq!(
        (status(&server, "a").await, status(&server, "ftp").await, status(&server, "mirror").await),
        (200, 200, 200)
    );
    let with_mirrors = server.get("/api/models/a").await.text();
    assert!(with_mirrors.ends_with(",\"mirrors\":[\"https://example.org/x\"]}"), "{with_mirrors}");
    server.until("the file is written", |_| std::future::ready(Path::new(&file).exists())).await;
    server.terminate().await;

    let written = std::fs::read(&file).unwrap();
    let default = [("CATALOG_SNAPSHOT_FILE", &*file)];
    let server = Server::start_with(UNREACHABLE, &default).await;
    assert_eq!((server.get("/api/models/a").await.text(), status(&server, "ftp").await), (with_mirrors, 404));
    let rejected = server.get("/api/catalog").await;
    assert!(rejected.text().contains("download_url has the scheme `ftp`"), "{rejected:?}");
    assert!(rejected.text().contains("mirrors[1] has the scheme `ftp`"), "{rejected:?}");
    server.until_logged("row rejected", 2).await;
    drop(server);
    assert_eq!(std::fs::read(&file).unwrap(), written, "nothing was read that could replace it");

    let server = Server::start_with(&db.url, &default).await;
    server.until("it reads the database", |s| async { s.get("/readyz").await.json()["source"] == "postgres" }).await;
    assert_eq!((status(&server, "a").await, status(&server, "ftp").await), (200, 404));
    server.until_logged("row rejected", 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_the_previous_version_is_served_except_for_rows_that_break_a_rule() {
    let folder = Folder::new();
    std::fs::write(folder.file(), VERSION_1).unwrap();
    let server = Server::start_with(UNREACHABLE, &[("CATALOG_SNAPSHOT_FILE", &folder.file())]).await;
    assert_eq!(server.get("/api/models/a").await.text(), model_json("a"));
    assert_eq!((status(&server, "credentials").await, status(&server, "ftp").await), (404, 404));
    let catalog = server.get("/api/catalog").await.text();
    for reason in ["save_path is absolute", "has a user name or a password", "has the scheme `ftp`"] {
        assert!(catalog.contains(reason), "{reason} is not in {catalog}");
    }
    assert_eq!(std::fs::read_to_string(folder.file()).unwrap(), VERSION_1);
}

/// Its header lacks the keys that came later, so the database is read as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_0_1_0_wrote_is_served_until_the_database_was_read() {
    let folder = Folder::new();
    std::fs::write(folder.file(), VERSION_0_1_0).unwrap();
    let settings = [("CATALOG_SNAPSHOT_FILE", &*folder.file())];
    let server = Server::start_with(UNREACHABLE, &settings).await;
    for line in VERSION_0_1_0.lines().filter(|line| line.starts_with("{\"id\":")) {
        let model: serde_json::Value = serde_json::from_str(line).unwrap();
        let path = format!("/api/models/{}", model["id"].as_str().unwrap());
        assert_eq!(server.get(&path).await.text(), line);
    }
    let catalog = server.get("/api/catalog").await.json();
    assert_eq!((&catalog["revision"], &catalog["models"]), (&"96f788d2b10d458e".into(), &3.into()));
    let rejected = &catalog["rejected_rows"][0];
    assert_eq!((&rejected["id"], &rejected["served"]), (&"t5xxl-fp16".into(), &true.into()));
    drop(server);

    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, &settings).await;
    server.until("it reads the database", |s| async { s.get("/readyz").await.json()["source"] == "postgres" }).await;
    assert_eq!((status(&server, "a").await, status(&server, "clip-l").await), (200, 404));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_a_newer_version_is_left_in_place_until_the_database_was_read() {
    let (db, folder) = (Db::lenient().await, Folder::new());
    db.add("a").await;
    // The header of a newer version may have other keys.
    let newer = "{\"format\":\"model-catalog snapshot\",\"version\":3,\"models\":{\"count\":1}}\n{\"x\":1}\n";
    std::fs::write(folder.file(), newer).unwrap();
    let settings = [("CATALOG_SNAPSHOT_FILE", &*folder.file())];
    let server = Server::spawn(UNREACHABLE, &settings).await;
    server.until_logged("it has version 3 and this program reads versions 1 to 2", 1).await;
    assert_eq!(server.get("/readyz").await.status, 503);
    drop(server);
    assert_eq!(std::fs::read_to_string(folder.file()).unwrap(), newer);
    assert!(!Path::new(&format!("{}.damaged", folder.file())).exists());

    let server = Server::start_with(&db.url, &settings).await;
    let replaced = || std::fs::read_to_string(folder.file()).is_ok_and(|text| text.contains("\"version\":2,"));
    server.until("its own file replaces it", |_| std::future::ready(replaced())).await;
}
