//! Commands in the documents: the output of console examples is compared with the real one, and every other command is run
//! by a test or listed below with the reason why not.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{ALL, Block, SERVER_ROLE, VIEW, WEIGHTS, block, blocks, root, sql_block, texts};
use crate::cli::workflow::WORKFLOW;
use crate::machine::hubs;
use crate::support::{Db, Server, TempFolder, WAIT_LIMIT};

/// The address in the documents.
const DOCUMENTED: &str = "http://127.0.0.1:3000";
const SAMPLE: &str = include_str!("../../../sql/sample_models.sql");
const LIST: &str = include_str!("../cli/model-list.json");

/// Prefixes of commands in `sh` blocks, and the test that runs them.
const RUN: [(&str, &str); 15] = [
    ("install -D -m 644 deploy/cache/nginx.conf ", "cache_starts_in_its_sandbox"),
    ("install -D -m 755 deploy/cache/start.sh ", "cache_starts_in_its_sandbox"),
    ("install -m 644 deploy/cache/model-cache.service ", "cache_starts_in_its_sandbox"),
    ("systemctl daemon-reload && systemctl enable --now model-cache", "cache_starts_in_its_sandbox"),
    ("install ", "systemd_unit_starts_serves_drains_and_restarts"),
    ("systemctl daemon-reload", "systemd_unit_starts_serves_drains_and_restarts"),
    ("export MACHINE_MODELS_CACHE=", "twenty_machines_cost_the_origin_each_file_once"),
    ("model-catalog warm ", "warm_fills_a_cache_before_machines_boot"),
    ("export CATALOG_URL=", "documented_commands_download_the_models"),
    ("MACHINE_MODELS_NEEDED=", "documented_commands_download_the_models"),
    ("curl -d ", "documented_commands_download_the_models"),
    ("model-catalog demo", "printed_commands_work_and_ctrl_c_stops_everything"),
    ("model-catalog export ", "export_writes_the_documented_file"),
    ("model-catalog serve --upstream ", "exported_snapshot_is_followed_and_equals_the_replicas"),
    ("(printf ", "documented_prometheus_rule_is_valid"),
];

/// Prefixes of commands in `sh` blocks, and why no test runs them.
const NOT_RUN: [(&str, &str); 9] = [
    ("make ", "they run these tests or take minutes; that the targets exist is tested below"),
    ("SOAK_SECONDS=3600 make soak", "it takes an hour; `make test` runs ten seconds of it"),
    ("docker ", "they need a Docker daemon; `make test-image` runs them"),
    ("kubectl ", "they need a cluster; deploy::manifests reads what they apply"),
    ("apt-get ", "it installs packages, as root"),
    ("pip install ", "it needs the files of a release; `make test-release` runs it"),
    ("cargo install ", "it takes minutes"),
    ("npx openapi-typescript ", "it needs the npm registry; `make test-clients` runs it"),
    ("openapi-python-client ", "it needs PyPI; `make test-clients` runs it"),
];

/// The commands of a block, continuation lines joined.
fn commands(block: &Block) -> Vec<String> {
    let joined = block.text.replace("\\\n", " ").replace("|\n", "| ");
    let lines = joined.lines().filter(|line| !line.is_empty());
    match block.language {
        "console" => lines.filter_map(|line| line.strip_prefix("$ ").map(str::to_owned)).collect(),
        _ => lines.map(str::to_owned).collect(),
    }
}

#[test]
fn every_command_is_run_or_listed_with_a_reason() {
    let tests = texts(&root().join("tests/it"));
    for (command, test) in RUN {
        assert!(
            tests.contains(&format!("fn {test}(")),
            "`{command}…` is listed as run by {test}, which does not exist"
        );
    }
    let mut count = 0;
    for block in blocks() {
        let known: &[&str] =
            &["", "sh", "bash", "console", "sql", "psql", "text", "json", "dockerfile", "ts", "python"];
        assert!(known.contains(&block.language), "{}: unknown language {}", block.document, block.language);
        for command in commands(&block) {
            let listed = |(prefix, _): &(&str, &str)| command.starts_with(prefix);
            let covered = match block.language {
                // All of these are run by `console_examples_match_the_real_output`.
                "console" => ["curl ", "psql ", "model-catalog "].iter().any(|program| command.starts_with(program)),
                "sh" | "bash" => RUN.iter().any(listed) || NOT_RUN.iter().any(listed),
                _ => continue,
            };
            assert!(covered, "{}: no test runs `{command}`: write one, or give the reason in NOT_RUN", block.document);
            count += 1;
        }
    }
    assert!(count > 20, "the commands could not be read: {count}");
}

#[test]
fn make_targets_match_the_documents() {
    let makefile = include_str!("../../../Makefile");
    let phony = makefile.split_once(".PHONY:").unwrap().1.replace("\\\n", " ");
    let targets: Vec<_> = phony.lines().next().unwrap().split_whitespace().collect();
    assert!(targets.len() > 10, "{targets:?}");
    for target in &targets {
        assert!(super::CONTRIBUTING.contains(&format!("`make {target}`")), "CONTRIBUTING.md lacks `make {target}`");
    }
    for (document, text) in ALL {
        for (start, _) in text.match_indices("make ").filter(|(at, _)| *at == 0 || "`\n ".contains(&text[at - 1..*at]))
        {
            let word = text[start + 5..].split(|c: char| !(c.is_ascii_lowercase() || c == '-')).next().unwrap();
            let quoted = text[..start].ends_with(['`', '\n']);
            assert!(!quoted || targets.contains(&word), "{document} names `make {word}`, which is not a target");
        }
    }
}

/// Environment of a console block: a database, a working directory and, for requests, a server.
struct Console {
    db: Db,
    server: Option<Server>,
    folder: TempFolder,
    /// Further environment variables.
    variables: Vec<(&'static str, String)>,
}

impl Console {
    async fn new(block: &Block) -> Self {
        let folder = TempFolder::new("console");
        let mut console = Self { db: Db::lenient().await, server: None, folder, variables: Vec::new() };
        if block.text.contains("$ model-catalog check") {
            console.create_faulty_tables().await;
        } else if block.text.contains("$ model-catalog probe") {
            console.stand_in_for_hubs().await;
        } else if block.text.contains("$ model-catalog import") {
            let list: Value = serde_json::from_str(LIST).unwrap();
            let named = |name: &str| list["models"].as_array().unwrap().iter().find(|entry| entry["name"] == name);
            let models = ["Enlarger x4", "Tiny Decoder", "Climber"].map(named);
            std::fs::write(console.folder.join("model-list.json"), json!({ "models": models }).to_string()).unwrap();
            std::fs::write(console.folder.join("workflow.json"), WORKFLOW).unwrap();
        } else {
            console.db.sql(SAMPLE).await;
            let server = Server::start(&console.db).await;
            if block.text.contains("/api/catalog") {
                console.reject_a_row_and_request_unknown_ids(&server).await;
            }
            console.server = Some(server);
        }
        console
    }

    /// The tables of docs/postgres.md, one of them unwatched, with a row that is rejected.
    async fn create_faulty_tables(&self) {
        let watch = "SELECT model_catalog.watch('registry.needs', 'slug');";
        let view = sql_block(VIEW);
        assert!(view.contains(watch), "{view}");
        // Roles belong to the cluster, and another test creates this one under its documented name.
        let role = sql_block(SERVER_ROLE).replace("catalog_server", "catalog_checked");
        let rows = "INSERT INTO registry.weights VALUES
                        ('flux-dev', 'f', 'https://example.org/f', 1, NULL, true, 'checkpoints', NULL),
                        ('flux-vae', 'f', 'https://example.org/f', 1, NULL, true, '..', NULL);
                    INSERT INTO registry.needs VALUES ('flux-dev', 'clip-l')";
        for statements in [&sql_block(WEIGHTS), &view.replace(watch, ""), &role, rows] {
            self.db.sql(statements).await;
        }
    }

    /// Models whose hubs are local servers under their real names.
    async fn stand_in_for_hubs(&mut self) {
        self.db
            .sql(
                "INSERT INTO models (id, name, download_url, file_size_gb, hash, auth_required, save_path)
                 SELECT id, id, 'https://huggingface.co/' || path, gb, repeat(digits, 32), auth, id FROM (VALUES
                    ('clip-l', 'openai/clip/resolve/main/clip_l', 0.25, '0a', false),
                    ('flux-dev', 'flux/dev/resolve/main/dev', 23.80, '0c', true),
                    ('flux-vae', 'flux/dev/blob/main/vae', 0.34, '0d', false),
                    ('old-lora', 'someone/lora/resolve/main/lora', 0.02, '0e', false),
                    ('t5xxl-fp16', 'openai/t5/resolve/main/t5xxl', NULL, NULL, false)) m (id, path, gb, digits, auth)",
            )
            .await;
        let storage = "https://cas-bridge.xethub.hf.co";
        let (proxy, _) = hubs::hubs(&self.folder, move |host, path| match (host, path) {
            ("cas-bridge.xethub.hf.co:443", "/clip_l") => hubs::first_byte(246_144_152),
            ("cas-bridge.xethub.hf.co:443", "/t5xxl") => hubs::first_byte(9_787_841_024),
            (_, "/openai/clip/resolve/main/clip_l") => {
                hubs::linked(&format!("{storage}/clip_l"), &"0a".repeat(32), 246_144_152)
            }
            (_, "/openai/t5/resolve/main/t5xxl") => {
                hubs::linked(&format!("{storage}/t5xxl"), &"6e".repeat(32), 9_787_841_024)
            }
            (_, "/flux/dev/resolve/main/dev") => hubs::response(401, &["x-error-code: GatedRepo"], ""),
            (_, "/flux/dev/blob/main/vae") => hubs::response(200, &["content-type: text/html"], "<!doctype html>"),
            _ => hubs::response(404, &["x-error-code: EntryNotFound"], ""),
        });
        let certificate = self.folder.join("certificate.pem").to_str().unwrap().to_owned();
        self.variables = vec![("HTTPS_PROXY", proxy), ("CURL_CA_BUNDLE", certificate)];
    }

    async fn reject_a_row_and_request_unknown_ids(&self, server: &Server) {
        self.db.sql("UPDATE models SET save_path = '../clip_l.safetensors' WHERE id = 'clip-l'").await;
        server.until("the row is rejected", |s| async move { s.metric("catalog_models_rejected").await == 1.0 }).await;
        for id in ["flux-devv", "flux-devv", "flux-devv", "sdxl-bse"] {
            assert_eq!(server.get(&format!("/api/models/{id}")).await.status, 404);
        }
    }

    /// Output of a command, without the standard error of curl, which contains its progress.
    fn run(&self, command: &str) -> String {
        let address = self.server.as_ref().map_or(String::new(), |server| format!("http://{}", server.address));
        let bin = PathBuf::from(env!("CARGO_BIN_EXE_model-catalog"));
        let path = format!("{}:{}", bin.parent().unwrap().display(), std::env::var("PATH").unwrap());
        let url = if command.starts_with("model-catalog check") {
            self.db.url.replace("user=postgres", "user=catalog_checked")
        } else {
            self.db.url.clone()
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", &command.replace(DOCUMENTED, &address)]).current_dir(&self.folder);
        shell.env_clear().env("PATH", path).env("DATABASE_URL", url);
        let output = shell.envs(self.variables.iter().cloned()).output().unwrap();
        let errors = if command.starts_with("curl ") { Vec::new() } else { output.stderr };
        String::from_utf8([output.stdout, errors].concat()).unwrap()
    }
}

/// Commands of a console block with their documented output.
fn examples(block: &Block) -> Vec<(String, String)> {
    let parts = block
        .text
        .strip_prefix("$ ")
        .unwrap_or_else(|| panic!("a console block of {} starts with output", block.document));
    let examples = parts.split("\n$ ").map(|part| part.split_once('\n').unwrap_or((part, "")));
    examples.map(|(command, output)| (command.to_owned(), output.to_owned())).collect()
}

/// Removes whatever differs from run to run: times and versions.
fn mask(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.trim_end().lines() {
        let line = line.split_once("PostgreSQL ").map_or(line, |(before, _)| before);
        let timestamp = line.len() > 27 && line.as_bytes()[26] == b'Z' && line.starts_with("20");
        let mut line = if timestamp { &line[27..] } else { line }.to_owned();
        for (before, after) in [("\"synced_seconds_ago\":", ","), ("arrived after ", " ms")] {
            if let Some((start, rest)) = line.split_once(before)
                && let Some((_, end)) = rest.split_once(after)
            {
                line = format!("{start}{before}{after}{end}");
            }
        }
        lines.push(line);
    }
    lines.join("\n")
}

/// Whether `actual` matches `documented`, in which `…` stands for any text.
fn matches(documented: &str, actual: &str) -> bool {
    let (documented, actual) = (mask(documented), mask(actual));
    let mut parts = documented.split('…');
    let Some(mut rest) = parts.next().and_then(|first| actual.strip_prefix(first)) else { return false };
    let mut complete = rest.is_empty();
    for part in parts {
        let at = if part.is_empty() { Some(rest.len()) } else { rest.find(part) };
        let Some(at) = at else { return false };
        rest = &rest[at + part.len()..];
        complete = rest.is_empty();
    }
    complete
}

/// The same for `curl -i`. The order of headers, headers that are not shown and the date are ignored.
fn matches_with_head(documented: &str, actual: &str) -> bool {
    let actual = actual.replace('\r', "");
    let (Some((head, body)), Some((actual_head, actual_body))) =
        (documented.split_once("\n\n"), actual.split_once("\n\n"))
    else {
        return false;
    };
    let actual_head: Vec<_> = actual_head.lines().collect();
    let date = |line: &str| line.starts_with("date: ") && actual_head.iter().any(|other| other.starts_with("date: "));
    head.lines().all(|line| actual_head.contains(&line) || date(line)) && matches(body, actual_body)
}

#[test]
fn ellipsis_matches_any_text() {
    for (documented, actual, expected) in [
        ("{a}", "{a}", true),
        ("{a}", "{ab}", false),
        ("{…}", "{ab}", true),
        ("{a,…}", "{b,c}", false),
        ("{a…b…d}", "{a1b2d}", true),
        ("{a…c}", "{a1b2}", false),
        ("a…", "abc", true),
    ] {
        assert_eq!(matches(documented, actual), expected, "{documented} {actual}");
    }
}

#[tokio::test]
async fn console_examples_match_the_real_output() {
    let mut count = 0;
    for block in blocks().iter().filter(|block| block.language == "console") {
        let console = Console::new(block).await;
        for (command, documented) in examples(block) {
            let matches = if command.contains(" -i ") { matches_with_head } else { matches };
            // A change is served shortly after its commit, so requests are repeated, and other commands are not.
            let deadline = Instant::now() + if command.starts_with("curl ") { WAIT_LIMIT } else { Duration::ZERO };
            let mut actual = console.run(&command);
            while !matches(&documented, &actual) && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(20)).await;
                actual = console.run(&command);
            }
            assert!(
                matches(&documented, &actual),
                "{}: `{command}` should print\n{documented}\nbut prints\n{actual}",
                block.document
            );
            count += 1;
        }
    }
    assert!(count > 10, "the examples could not be read: {count}");
}

#[tokio::test]
async fn export_writes_the_documented_file() {
    let block = Block { document: "", language: "sh", text: block(&["sh"], "model-catalog export ") };
    let console = Console::new(&block).await;
    let output = console.run(&block.text);
    let exported = std::fs::read_to_string(console.folder.join("catalog.json"));
    let exported = exported.unwrap_or_else(|error| panic!("{error}: {output}"));
    let models: Value = serde_json::from_str(&exported).unwrap();
    let served = console.server.as_ref().unwrap().get("/api/catalog").await.json();
    assert_eq!(models.as_array().unwrap().len() as u64, served["models"].as_u64().unwrap());
}

/// `make test-clients` compiles and runs them.
#[test]
fn documented_clients_are_those_that_are_tested() {
    let clients = texts(&root().join("tests/clients"));
    let documented: Vec<_> = blocks().into_iter().filter(|block| block.document == "docs/api.md").collect();
    let mut count = 0;
    for block in documented.iter().filter(|block| ["ts", "python"].contains(&block.language)) {
        for line in block.text.lines() {
            // The tests import more names: only the module is compared.
            let line = match line.split_once(" import ") {
                Some((module, _)) if line.starts_with("from ") => module,
                _ if line.starts_with("import {") => line.split_once("} ").unwrap().1,
                _ => line,
            };
            assert!(clients.contains(line), "no client has `{line}`");
        }
        count += 1;
    }
    assert_eq!(count, 3);
}

#[test]
fn documented_prometheus_rule_is_valid() {
    let command = block(&["sh"], "kind: PrometheusRule");
    let (before, kubectl) = command.split_once(" | kubectl").unwrap();
    assert_eq!(kubectl, " apply -f -\n");
    let output = Command::new("sh").args(["-c", before]).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let rule: Value = serde_saphyr::from_str(std::str::from_utf8(&output.stdout).unwrap()).unwrap();
    assert_eq!((&rule["kind"], &rule["metadata"]["name"]), (&json!("PrometheusRule"), &json!("model-catalog")));
    assert!(rule["spec"]["groups"][0]["rules"].as_array().unwrap().len() > 10, "{rule:#}");
}

#[test]
fn documents_install_the_program_before_they_use_it() {
    let install = "cargo install --locked --path .";
    for name in ["README.md", "docs/deployment.md"] {
        let text = ALL.iter().find(|(document, _)| *document == name).unwrap().1;
        let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{name} lacks `{part}`"));
        assert!(place(install) < place("`model-catalog migrate`"), "{name}");
    }
    let deployment = ALL.iter().find(|(document, _)| *document == "docs/deployment.md").unwrap().1;
    let (build, used) = (deployment.find("cargo build --release"), deployment.find("install target/release"));
    assert!(build.is_some() && build < used, "docs/deployment.md installs a program that it has not built");
}

#[test]
fn make_run_builds_the_demo_without_optimization_and_a_database_with_it() {
    for (url, expected) in [
        ("", ["one to three minutes", "cargo build \n", "target/debug/model-catalog demo"]),
        (
            "host=x",
            ["three to six minutes", "cargo build --release\n", "target/release/model-catalog serve --examples"],
        ),
    ] {
        let mut make = Command::new("make");
        make.args(["-n", "run"]).current_dir(root()).env_remove("DATABASE_URL").env_remove("MAKEFLAGS");
        if !url.is_empty() {
            make.env("DATABASE_URL", url);
        }
        let output = String::from_utf8(make.output().unwrap().stdout).unwrap();
        for part in expected {
            assert!(output.contains(part), "no {part:?} in {output}");
        }
        assert!(output.find("The first build") < output.find("cargo build"), "{output}");
    }
}
