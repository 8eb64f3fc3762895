//! The SQL that the README gives to DBAs, run as it stands there, with roles that have just the rights it grants.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Db, Server, sql};

const README: &str = include_str!("../../README.md");

/// The README's SQL block that contains `text`.
fn block(text: &str) -> &'static str {
    block_of("sql", text)
}

fn block_of(language: &str, text: &str) -> &'static str {
    let fence = format!("```{language}\n");
    let blocks = README.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut found = blocks.filter(|block| block.contains(text));
    found.next().unwrap_or_else(|| panic!("README.md has no SQL with `{text}`"))
}

#[tokio::test]
async fn an_existing_table_is_served_by_roles_with_the_least_rights() {
    let db = Db::new().await;
    for text in [
        "CREATE TABLE registry.weights",
        "VIEW model_catalog.entries",
        "ROLE catalog_server",
        "ROLE model_writer",
        "model_catalog.problems",
    ] {
        db.sql(block(text)).await;
    }
    let as_role = |role: &str| db.url.replace("user=postgres", &format!("user={role}"));
    // Nothing but the bell can bring a change in time.
    let settings = [("CATALOG_POLL_INTERVAL", "1h")];
    let server = Server::start_with(&as_role("catalog_server"), &settings).await;
    let writer = crate::support::connect(&as_role("model_writer")).await;

    let weights = "INSERT INTO registry.weights VALUES ('flux-dev', 'flux1-dev.safetensors', 'https://example.org/f',
                   23802932552, NULL, true, 'checkpoints', NULL)";
    sql(&writer, weights).await;
    server.until("it is served", |s| async move { s.get("/api/models/flux-dev").await.status == 200 }).await;
    let model = r#"{"id":"flux-dev","name":"flux1-dev.safetensors","download_url":"https://example.org/f","file_size_gb":23.8,"hash":null,"auth_required":true,"auth_provider":"huggingface","save_path":"checkpoints/flux1-dev.safetensors","dependencies":[],"description":null}"#;
    assert_eq!(server.get("/api/models/flux-dev").await.text(), model);

    sql(&writer, "INSERT INTO registry.needs VALUES ('flux-dev', 'flux-vae'), ('flux-dev', 'clip-l')").await;
    let needs = serde_json::json!(["clip-l", "flux-vae"]);
    server
        .until("the other table is followed too", |s| async {
            s.get("/api/models/flux-dev").await.json()["dependencies"] == needs
        })
        .await;
    sql(&writer, "TRUNCATE registry.weights").await;
    server.until("it is gone", |s| async move { s.get("/api/models/flux-dev").await.status == 404 }).await;

    for (role, forbidden) in [
        ("catalog_server", "SELECT FROM registry.weights"),
        ("catalog_server", "SELECT model_catalog.reload()"),
        ("model_writer", "SELECT FROM model_catalog.changes"),
    ] {
        let refused = crate::support::connect(&as_role(role)).await.simple_query(forbidden).await.unwrap_err();
        assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{role}: {forbidden}");
    }
}

#[tokio::test]
async fn psql_waits_for_the_fleet_with_the_rights_that_are_named() {
    let db = Db::new().await;
    db.add("flux-dev").await;
    let settings = [("CATALOG_REPLICA_NAME", "gpu-eu-1"), ("CATALOG_POLL_INTERVAL", "200ms")];
    let server = Server::start_with(&db.url, &settings).await;
    db.sql(block("ROLE fleet_watcher")).await;
    let grant = "GRANT SELECT, UPDATE ON models TO fleet_watcher";
    db.sql(grant).await;
    let as_watcher = db.url.replace("user=postgres", "user=fleet_watcher");
    let mut psql = Command::new("psql");
    psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-", &as_watcher]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut psql = psql.spawn().unwrap_or_else(|error| panic!("psql: {error}"));
    let script = format!("{}{}", block_of("psql", "wait_for_fleet"), block("FROM model_catalog.fleet ORDER"));
    psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = psql.wait_with_output().unwrap();
    assert_eq!(server.field("flux-dev", "description").await, "now everywhere");
    let said = String::from_utf8(output.stdout).unwrap();
    let revision = server.get("/api/models/flux-dev").await.revision();
    assert!(output.status.success() && said.starts_with(&format!("1\ngpu-eu-1|{revision}|")), "{said}");
}

#[test]
fn every_worked_schema_is_pointed_to() {
    let examples = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/examples")).unwrap();
    let names: Vec<_> = examples.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for name in names {
        assert!(README.contains(&format!("`sql/examples/{name}`")), "README.md does not point to {name}");
    }
}

#[test]
fn every_dependency_is_accounted_for() {
    let manifest = include_str!("../../Cargo.toml");
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| inside) {
            let rows = README.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
            let mut named = rows.flat_map(|(names, _)| names.split(", "));
            assert!(named.any(|other| other == name), "README.md does not say what {name} is for");
        }
    }
}

#[test]
fn the_number_of_dependencies_is_right() {
    let manifest = include_str!("../../Cargo.toml");
    let table = manifest.split_once("[dependencies]\n").unwrap().1.split("\n\n").next().unwrap();
    let said = format!("{} direct dependencies", table.lines().count());
    assert!(README.contains(&said), "README.md does not say {said}");
}

/// All sources below a folder, as one text.
fn sources(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { sources(&path) } else { std::fs::read_to_string(path).unwrap() }).collect()
}

#[test]
fn every_test_and_fuzz_target_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = sources(&root.join("src")) + &sources(&root.join("tests/it"));
    let model = include_str!("../../SECURITY.md");
    let (mut tests, mut targets) = (0, 0);
    for row in model.lines().filter(|line| line.contains('`')) {
        for name in row.split('`').skip(1).step_by(2) {
            let word = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            if word && name.matches('_').count() >= 2 {
                assert!(all.contains(&format!("fn {name}(")), "SECURITY.md names {name}, and there is no such test");
                tests += 1;
            }
        }
        let named = row.split_once("fuzz target").map_or("", |(_, rest)| rest);
        for name in named.split('`').skip(1).step_by(2) {
            assert!(root.join(format!("fuzz/fuzz_targets/{name}.rs")).exists(), "there is no fuzz target {name}");
            targets += 1;
        }
    }
    assert!(tests > 20 && targets == 5, "{tests} tests, {targets} targets");
}
