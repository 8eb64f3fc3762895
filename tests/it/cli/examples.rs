//! `serve --examples`, which `make run` uses with `DATABASE_URL`: its commands work on the catalog that is served.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::support::{Db, WAIT_LIMIT, sql, until};

/// A running server and the lines that it prints.
struct Examples {
    child: Child,
    lines: Receiver<String>,
    url: String,
}

impl Examples {
    fn start(db: &Db) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
        command.args(["serve", "--examples"]).env("DATABASE_URL", &db.url).env("CATALOG_ADDR", "127.0.0.1:0");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        Self { child, lines, url: db.url.clone() }
    }

    /// The printed lines up to one that contains `last`.
    fn until(&self, last: &str) -> Vec<String> {
        let mut seen = Vec::new();
        while !seen.last().is_some_and(|line: &String| line.contains(last)) {
            let line = self.lines.recv_timeout(WAIT_LIMIT);
            seen.push(line.unwrap_or_else(|_| panic!("no line with {last:?} after {seen:#?}")));
        }
        seen
    }

    /// Output of a printed command in a shell with `DATABASE_URL`.
    fn run(&self, line: &str) -> String {
        let output = Command::new("sh").args(["-c", line]).env("DATABASE_URL", &self.url).output().unwrap();
        assert!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Examples {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn commands(lines: &[String]) -> Vec<&str> {
    lines.iter().filter_map(|line| line.strip_prefix("  ")).collect()
}

#[tokio::test]
async fn examples_use_ids_of_the_catalog() {
    let db = Db::new().await;
    for id in ["it's $(quoted)", "org/model@v1.0"] {
        db.add(id).await;
    }
    let examples = Examples::start(&db);
    let lines = examples.until("it shows the change");
    let [single, batch, change] = commands(&lines)[..] else { panic!("{lines:#?}") };
    let model = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(model(&examples.run(single))["id"], "org/model@v1.0");
    let batch = model(&examples.run(batch));
    assert_eq!(batch["models"][0]["id"], "org/model@v1.0");
    assert_eq!(batch["not_found"], serde_json::json!(["no-such-model"]));
    assert_eq!(examples.run(change), "UPDATE 1\n");
    until("the first command shows the change", || {
        std::future::ready(model(&examples.run(single))["description"] == "changed just now")
    })
    .await;
}

#[tokio::test]
async fn examples_change_no_table_that_the_view_does_not_read() {
    let db = Db::new().await;
    db.add("a").await;
    let view = "DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT 'other'::text AS id, 'n'::text AS name, \
                'https://e.org/n'::text AS download_url, 1::numeric AS file_size_gb, NULL::text AS hash, \
                false AS auth_required, NULL::text AS auth_provider, 'n'::text AS save_path, \
                '[]'::jsonb AS dependencies, NULL::text AS description";
    sql(&db.client, view).await;
    let examples = Examples::start(&db);
    let lines = examples.until("the next request shows it");
    let [single, _] = commands(&lines)[..] else { panic!("{lines:#?}") };
    assert!(examples.run(single).contains("\"id\":\"other\""));
}

#[tokio::test]
async fn examples_offer_to_migrate_and_to_import() {
    let db = Db::empty().await;
    let examples = Examples::start(&db);
    let lines = examples.until("continues by itself");
    let [migrate] = commands(&lines)[..] else { panic!("{lines:#?}") };
    assert!(migrate.ends_with("model-catalog migrate"), "{migrate}");
    examples.run(migrate);
    let lines = examples.until("import FILE");
    assert!(lines.iter().any(|line| line.contains("has no model yet")), "{lines:#?}");
}
