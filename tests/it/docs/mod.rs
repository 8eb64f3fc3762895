//! The documents: their commands and SQL are run, their lists are complete, their links resolve.

mod charts;
mod commands;
mod contributing;
mod language;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Db, Server, sql};

const README: &str = include_str!("../../../README.md");
const CONTRIBUTING: &str = include_str!("../../../CONTRIBUTING.md");
const DESIGN: &str = include_str!("../../../docs/design.md");
const GPU_MACHINES: &str = include_str!("../../../docs/gpu-machines.md");
const POSTGRES: &str = include_str!("../../../docs/postgres.md");
pub const CONFIGURATION: &str = include_str!("../../../docs/configuration.md");
pub const METRICS: &str = include_str!("../../../docs/metrics.md");
pub const RUNBOOK: &str = include_str!("../../../docs/runbook.md");

/// Every document, by its path from the root of the repository.
pub const ALL: [(&str, &str); 18] = [
    ("README.md", README),
    ("CONTRIBUTING.md", CONTRIBUTING),
    ("CHANGELOG.md", include_str!("../../../CHANGELOG.md")),
    ("SECURITY.md", include_str!("../../../SECURITY.md")),
    ("docs/api.md", include_str!("../../../docs/api.md")),
    ("docs/availability.md", include_str!("../../../docs/availability.md")),
    ("docs/benchmarks.md", include_str!("../../../docs/benchmarks.md")),
    ("docs/check.md", include_str!("../../../docs/check.md")),
    ("docs/configuration.md", CONFIGURATION),
    ("docs/deployment.md", include_str!("../../../docs/deployment.md")),
    ("docs/design.md", DESIGN),
    ("docs/gpu-machines.md", GPU_MACHINES),
    ("docs/hardening.md", include_str!("../../../docs/hardening.md")),
    ("docs/import-export.md", include_str!("../../../docs/import-export.md")),
    ("docs/metrics.md", METRICS),
    ("docs/postgres.md", POSTGRES),
    ("docs/probe.md", include_str!("../../../docs/probe.md")),
    ("docs/runbook.md", RUNBOOK),
];
/// Maximum number of lines of README.md, which is for readers who decide within five minutes.
const MAX_README_LINES: usize = 150;

/// SQL blocks that the tests below run, each identified by a text that occurs in no other block.
const WEIGHTS: &str = "CREATE TABLE registry.weights";
const VIEW: &str = "VIEW model_catalog.entries";
const LOOKUP: &str = "CREATE TABLE registry.providers";
const SERVER_ROLE: &str = "ROLE catalog_server";
const WRITER_ROLE: &str = "ROLE model_writer";
const WATCHER_ROLE: &str = "ROLE fleet_watcher";
const FLEET: &str = "FROM model_catalog.fleet ORDER";
const WAIT: &str = "model_catalog.wait_for_fleet(:";
const PROBLEMS: &str = "model_catalog.problems;";
const SQL_RUN: [&str; 9] = [WEIGHTS, VIEW, LOOKUP, SERVER_ROLE, WRITER_ROLE, WATCHER_ROLE, FLEET, WAIT, PROBLEMS];

/// A fenced block of a document.
#[derive(Debug)]
pub struct Block {
    pub document: &'static str,
    pub language: &'static str,
    pub text: String,
}

/// All fenced blocks of all documents.
pub fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for (document, text) in ALL {
        let mut open: Option<Block> = None;
        for line in text.lines() {
            match (line.strip_prefix("```"), &mut open) {
                (Some(language), None) => open = Some(Block { document, language, text: String::new() }),
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(block)) => block.text.extend([line, "\n"]),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{document}: a block is not closed");
    }
    blocks
}

/// The only block in these languages that contains `text`.
pub fn block(languages: &[&str], text: &str) -> String {
    let mut found = blocks();
    found.retain(|block| languages.contains(&block.language) && block.text.contains(text));
    assert_eq!(found.len(), 1, "blocks in {languages:?} with `{text}`: {found:#?}");
    found.remove(0).text
}

fn sql_block(text: &str) -> String {
    block(&["sql", "psql"], text)
}

#[test]
fn every_sql_block_is_run() {
    for block in blocks().iter().filter(|block| ["sql", "psql"].contains(&block.language)) {
        let run = SQL_RUN.iter().any(|text| block.text.contains(text));
        assert!(run, "no test runs this block of {}; add it to one and to SQL_RUN:\n{}", block.document, block.text);
    }
}

#[tokio::test]
async fn existing_table_is_served_with_the_documented_rights() {
    let db = Db::new().await;
    for text in [WEIGHTS, VIEW, LOOKUP, SERVER_ROLE, WRITER_ROLE, PROBLEMS] {
        db.sql(&sql_block(text)).await;
    }
    let as_role = |role: &str| db.url.replace("user=postgres", &format!("user={role}"));
    // With this poll interval only a notification delivers a change in time.
    let settings = [("CATALOG_POLL_INTERVAL", "1h")];
    let server = Server::start_with(&as_role("catalog_server"), &settings).await;
    let writer = crate::support::connect(&as_role("model_writer")).await;

    let weights = "INSERT INTO registry.weights VALUES ('flux-dev', 'flux1-dev.safetensors', 'https://example.org/f',
                   23802932552, NULL, true, 'checkpoints', NULL)";
    sql(&writer, weights).await;
    server.until("the model is served", |s| async move { s.get("/api/models/flux-dev").await.status == 200 }).await;
    let model = r#"{"id":"flux-dev","name":"flux1-dev.safetensors","download_url":"https://example.org/f","file_size_gb":23.8,"hash":null,"auth_required":true,"auth_provider":"huggingface","save_path":"checkpoints/flux1-dev.safetensors","dependencies":[],"description":null}"#;
    assert_eq!(server.get("/api/models/flux-dev").await.text(), model);

    sql(&writer, "INSERT INTO registry.needs VALUES ('flux-dev', 'flux-vae'), ('flux-dev', 'clip-l')").await;
    let needs = serde_json::json!(["clip-l", "flux-vae"]);
    server
        .until("changes of the other table are served", |s| async {
            s.get("/api/models/flux-dev").await.json()["dependencies"] == needs
        })
        .await;
    sql(&writer, "INSERT INTO registry.providers VALUES ('huggingface', true)").await;
    server.until("everything is read again", |s| async move { s.refreshes("full").await == 2.0 }).await;
    sql(&writer, "TRUNCATE registry.weights").await;
    server
        .until("the truncated table is served", |s| async move { s.get("/api/models/flux-dev").await.status == 404 })
        .await;

    for (role, forbidden) in [
        ("catalog_server", "SELECT FROM registry.weights"),
        ("catalog_server", "SELECT model_catalog.reload()"),
        ("model_writer", "SELECT FROM model_catalog.changes"),
    ] {
        let error = crate::support::connect(&as_role(role)).await.simple_query(forbidden).await.unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{role}: {forbidden}");
    }
}

#[tokio::test]
async fn psql_waits_for_the_fleet_with_the_documented_rights() {
    let db = Db::new().await;
    for text in [WEIGHTS, VIEW, WATCHER_ROLE] {
        db.sql(&sql_block(text)).await;
    }
    db.sql(
        "GRANT USAGE ON SCHEMA registry TO fleet_watcher; GRANT SELECT, UPDATE ON registry.weights TO fleet_watcher;
         INSERT INTO registry.weights VALUES ('flux-dev', 'f', 'https://example.org/f', 1, NULL, true, 'x', NULL)",
    )
    .await;
    let settings = [("CATALOG_REPLICA_NAME", "gpu-eu-1"), ("CATALOG_POLL_INTERVAL", "200ms")];
    let server = Server::start_with(&db.url, &settings).await;
    let as_watcher = db.url.replace("user=postgres", "user=fleet_watcher");
    let mut psql = Command::new("psql");
    psql.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-", &as_watcher]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut psql = psql.spawn().unwrap_or_else(|error| panic!("psql: {error}"));
    let script = sql_block(WAIT) + &sql_block(FLEET);
    psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = psql.wait_with_output().unwrap();
    assert_eq!(server.field("flux-dev", "description").await, "now everywhere");
    let printed = String::from_utf8(output.stdout).unwrap();
    let revision = server.get("/api/models/flux-dev").await.revision();
    assert!(output.status.success() && printed.starts_with(&format!("1\ngpu-eu-1|{revision}|")), "{printed}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Names in a folder of the repository.
fn names(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn readme_is_short_and_links_every_document() {
    let lines = README.lines().count();
    assert!(lines <= MAX_README_LINES, "README.md has {lines} lines; move the new text into docs/");
    for name in names("docs").into_iter().filter(|name| name.ends_with(".md")) {
        let path = format!("docs/{name}");
        assert!(ALL.iter().any(|(document, _)| *document == path), "add {path} to ALL");
        assert!(README.contains(&format!("]({path})")), "README.md does not link to {path}");
    }
}

#[test]
fn packages_installed_by_make_are_named() {
    let makefile = include_str!("../../../Makefile");
    let mut count = 0;
    for target in ["\npostgres:", "\ntest-tools:", "\nlint:"] {
        let recipe = makefile.split_once(target).unwrap().1.split("\n\n").next().unwrap();
        for package in recipe.split("deploy/install.sh ").skip(1).map(|rest| rest.split(' ').next().unwrap()) {
            assert!(CONTRIBUTING.contains(package), "CONTRIBUTING.md does not name the package {package}");
            count += 1;
        }
    }
    assert!(count > 10, "the Makefile could not be read: {count}");
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

/// Anchors of a document's headings, without lines of code blocks that start with `#`.
fn anchors(text: &str) -> BTreeSet<String> {
    let outside = text.split("\n```").step_by(2).flat_map(str::lines);
    outside
        .filter_map(|line| {
            Some(anchor(line.trim_start_matches('#').strip_prefix(' ')?)).filter(|_| line.starts_with('#'))
        })
        .collect()
}

#[test]
fn links_between_documents_resolve() {
    let mut links = 0;
    for (document, text) in ALL {
        for target in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if target.contains("://") {
                continue;
            }
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() {
                root().join(document)
            } else {
                root().join(document).parent().unwrap().join(path)
            };
            let linked = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{document}: {target}: {error}"));
            assert!(heading.is_empty() || anchors(&linked).contains(heading), "{document}: {target}: no such heading");
            links += 1;
        }
    }
    assert!(links > 50, "the links could not be read: {links}");
}

/// Folders whose files the documents may name.
const FOLDERS: [&str; 8] = [".ci/", "benches/", "deploy/", "fuzz/", "migrations/", "sql/", "src/", "tests/"];

#[test]
fn files_named_in_documents_exist() {
    for (document, text) in ALL {
        for name in text.split('`').filter(|name| FOLDERS.iter().any(|folder| name.starts_with(folder))) {
            let path = name.split(' ').next().unwrap();
            assert!(root().join(path).exists(), "{document} names {path}, which does not exist");
        }
    }
}

/// All files below a folder, as one text.
fn texts(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { texts(&path) } else { std::fs::read_to_string(path).unwrap() }).collect()
}

#[test]
fn documents_named_in_src_and_deploy_exist() {
    let all = texts(&root().join("src")) + &texts(&root().join("deploy"));
    let named: BTreeSet<_> = all.split("docs/").skip(1).filter_map(|rest| rest.split_once(".md")).collect();
    let named = named.into_iter().filter(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
    let mut count = 0;
    for (name, rest) in named {
        let path = format!("docs/{name}.md");
        let (_, text) = ALL.iter().find(|(document, _)| *document == path).unwrap_or_else(|| panic!("no {path}"));
        if let Some(rest) = rest.strip_prefix('#') {
            let heading: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
            assert!(anchors(text).contains(&heading), "{path} has no heading {heading}");
        }
        count += 1;
    }
    assert!(count > 2, "the references could not be read: {count}");
}

#[test]
fn every_example_schema_is_listed() {
    let examples = names("sql/examples");
    assert_eq!(examples.len(), 4, "{examples:?}");
    for name in examples {
        assert!(POSTGRES.contains(&format!("`sql/examples/{name}`")), "docs/postgres.md does not list {name}");
    }
}

#[test]
fn tests_and_fuzz_targets_named_in_security_md_exist() {
    let all = texts(&root().join("src")) + &texts(&root().join("tests/it"));
    let model = include_str!("../../../SECURITY.md");
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
            assert!(root().join(format!("fuzz/fuzz_targets/{name}.rs")).exists(), "there is no fuzz target {name}");
            targets += 1;
        }
    }
    assert!(tests > 20 && targets == 5, "{tests} tests, {targets} targets");
}
