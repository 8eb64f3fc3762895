//! `model-catalog import`: ComfyUI-Manager lists and API responses, rejected entries, and what is written.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio_postgres::{AsyncMessage, Client};

use crate::support::{Db, NOTIFY_ONLY, Server, model_json, sql, until};

pub const LIST: &str = include_str!("model-list.json");

/// Runs the program with `input` on its standard input.
pub fn run(arguments: &[&str], url: &str, input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    command.args(arguments).env_clear().env("DATABASE_URL", url);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A program that exits early does not read everything.
    let writing = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output
}

/// Runs an import; returns its exit status and output.
pub fn import(url: &str, options: &[&str], input: &str) -> (i32, String) {
    let output = run(&[&["import", "-"], options].concat(), url, input);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(!errors.contains("panicked"), "{errors}");
    (output.status.code().unwrap(), if printed.is_empty() { errors } else { printed })
}

fn summary(printed: &(i32, String)) -> (i32, &str) {
    (printed.0, printed.1.lines().last().unwrap_or_default())
}

async fn table(client: &Client) -> String {
    let all = "SELECT coalesce(jsonb_agg(to_jsonb(m) || jsonb_build_object('xmin', xmin::text) ORDER BY id)::text, '[]') FROM models m";
    sql(client, all).await.unwrap()
}

/// The list with its models in reverse order.
fn reversed() -> String {
    let mut list: Value = serde_json::from_str(LIST).unwrap();
    list["models"].as_array_mut().unwrap().reverse();
    list.to_string()
}

const LIST_DRY: &str = "\
added MoGe~twice.safetensors
added checkpoints~SDXL~model.safetensors
added diffusion_models~FLUX.1~model.safetensors
added etc~tokens.bin
added upscale_models~enlarger_x4.pth
added vae_approx~tiny_decoder.pth
added vae~some vae (v1.5).safetensors
rejected .models[7] Listed twice (full): .models[6] has the same id \"MoGe~twice.safetensors\" and other values, and only one is accepted
rejected .models[9] someone/Whole-Repository-7B: it is a repository of many files; only single files can be served
rejected .models[10] Climber: save_path escapes the models folder: it must be relative to the models folder, without `..` and without backslashes
rejected .models[11] Of an older ComfyUI: it belongs in the folder of a custom node, not in the models folder
rejected .models[12] Unsure \\u{1b}[31mof its size: size \"about 2 GB\" can't be parsed: write it like 4.71MB or 11.9GB
7 added, 0 changed, 0 unchanged, 5 rejected, 1 repeated (dry run: nothing was written)
";

#[tokio::test]
async fn comfyui_manager_list_is_imported_and_served() {
    let db = Db::new().await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    // The file is named on the command line here, and read from standard input below.
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/cli/model-list.json");
    let output = run(&["import", file.to_str().unwrap(), "--dry-run"], &db.url, "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), LIST_DRY);
    assert_eq!((output.status.code(), table(&db.client).await.as_str()), (Some(3), "[]"));

    let written = import(&db.url, &[], LIST);
    assert_eq!(summary(&written), (3, "7 added, 0 changed, 0 unchanged, 5 rejected, 1 repeated"));
    assert!(!written.1.contains("added MoGe"), "{}", written.1);
    let path = "/api/models/checkpoints~SDXL~model.safetensors";
    server.until("the model is served", |s| async move { s.get(path).await.status == 200 }).await;
    let model = r#"{"id":"checkpoints~SDXL~model.safetensors","name":"model.safetensors","download_url":"https://example.org/xl/resolve/main/model.safetensors","file_size_gb":11.9,"hash":null,"auth_required":false,"auth_provider":null,"save_path":"checkpoints/SDXL/model.safetensors","dependencies":[],"description":"Big XL: base (UNET) - First line. NOTE: second line"}"#;
    assert_eq!(server.get(path).await.text(), model);
    for (id, field, value) in [
        ("vae_approx~tiny_decoder.pth", "file_size_gb", json!(0.01)),
        ("vae~some vae (v1.5).safetensors", "save_path", json!("vae/some vae (v1.5).safetensors")),
        ("vae~some vae (v1.5).safetensors", "description", json!("Some VAE")),
        ("etc~tokens.bin", "save_path", json!("etc/tokens.bin")),
        ("MoGe~twice.safetensors", "file_size_gb", json!(0.63)),
    ] {
        assert_eq!(server.field(id, field).await, value, "{id}");
    }
}

#[tokio::test]
async fn repeated_import_changes_nothing_in_any_order() {
    let db = Db::new().await;
    import(&db.url, &[], LIST);
    // Columns that the list does not have belong to the DBA.
    db.sql("UPDATE models SET hash = 'h', auth_required = true, auth_provider = 'p', dependencies = '[\"x\"]' WHERE id LIKE 'vae~%'")
        .await;
    db.add("of another source").await;
    let before = table(&db.client).await;
    let listener = Listener::listen(&db.url).await;
    for list in [LIST, &reversed()] {
        assert_eq!(
            summary(&import(&db.url, &[], list)),
            (3, "0 added, 0 changed, 7 unchanged, 5 rejected, 1 repeated")
        );
        assert_eq!(table(&db.client).await, before);
    }
    assert_eq!(listener.take(&db).await, 0);

    let moved = LIST.replace("https://example.org/vae/", "https://mirror.example/vae/").replace("12KB", "120MB");
    let dry = import(&db.url, &["--dry-run"], &moved);
    for line in ["changed etc~tokens.bin: file_size_gb\n", "changed vae~some vae (v1.5).safetensors: download_url\n"] {
        assert!(dry.1.contains(line), "{}", dry.1);
    }
    assert_eq!(table(&db.client).await, before);
    assert_eq!(summary(&import(&db.url, &[], &moved)), (3, "0 added, 2 changed, 5 unchanged, 5 rejected, 1 repeated"));
    assert_eq!(listener.take(&db).await, 1);
    let kept = db.sql(
        "SELECT concat_ws(' ', hash, auth_required, auth_provider, dependencies) FROM models WHERE id LIKE 'vae~%'",
    );
    assert_eq!(kept.await.as_deref(), Some("h t p [\"x\"]"));
}

/// Counts the notifications of a database.
struct Listener {
    received: Arc<Mutex<Vec<String>>>,
    /// Keeps the connection open.
    _client: Client,
}

impl Listener {
    async fn listen(url: &str) -> Self {
        let (client, mut connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        let received = Arc::<Mutex<Vec<String>>>::default();
        let copy = Arc::clone(&received);
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message {
                    copy.lock().unwrap().push(notification.channel().to_owned());
                }
            }
        });
        client.batch_execute("LISTEN model_catalog; LISTEN end_marker").await.unwrap();
        Self { received, _client: client }
    }

    /// The number of notifications since the last call.
    async fn take(&self, db: &Db) -> usize {
        // Notifications arrive in commit order.
        db.sql("NOTIFY end_marker").await;
        let complete =
            || std::future::ready(self.received.lock().unwrap().last().is_some_and(|last| last == "end_marker"));
        until("all notifications have arrived", complete).await;
        std::mem::take(&mut *self.received.lock().unwrap()).len() - 1
    }
}

#[tokio::test]
async fn api_responses_are_imported_in_every_form() {
    let db = Db::new().await;
    for id in ["a", "b", "c"] {
        db.add(id).await;
    }
    db.sql("UPDATE models SET hash = 'x\\y\"z', file_size_gb = 23.80, dependencies = '[\"a\", \"\\\\ \\\"\"]', description = 'größer \\N'")
        .await;
    let server = Server::start(&db).await;
    let single = server.get("/api/models/a").await.text();
    let batch = server.batch(r#"{"model_ids":["a","b","nope","c"]}"#).await.text();
    let array = json!([serde_json::from_str::<Value>(&single).unwrap()]).to_string();
    let before = table(&db.client).await;
    for (text, count) in [(&single, 1), (&batch, 3), (&array, 1)] {
        let unchanged = format!("0 added, 0 changed, {count} unchanged, 0 rejected");
        assert_eq!(summary(&import(&db.url, &[], text)), (0, unchanged.as_str()), "{text}");
    }
    assert_eq!(table(&db.client).await, before);

    db.sql("UPDATE models SET hash = NULL, auth_required = true WHERE id = 'a'; DELETE FROM models WHERE id = 'b'")
        .await;
    db.add("not in the file").await;
    let dry = import(&db.url, &["--dry-run", "--strict"], &batch);
    let expected = "added b\nchanged a: hash, auth_required\n\
                    1 added, 1 changed, 1 unchanged, 0 rejected (dry run: nothing was written)\n";
    assert_eq!(dry, (0, expected.into()));
    assert_eq!(import(&db.url, &["--strict"], &batch), (0, "1 added, 1 changed, 1 unchanged, 0 rejected\n".into()));
    // The imported models are restored, and models that the file does not name are kept.
    server.until("the imported model is served", |s| async { s.get("/api/models/a").await.text() == single }).await;
    server
        .until("the other model is served", |s| async {
            s.get("/api/models/not%20in%20the%20file").await.status == 200
        })
        .await;
    assert_eq!(server.batch(r#"{"model_ids":["a","b","nope","c"]}"#).await.text(), batch);
    assert_eq!(summary(&import(&db.url, &[], "[]")), (0, "0 added, 0 changed, 0 unchanged, 0 rejected"));
}

#[tokio::test]
async fn bad_entries_are_listed_and_abort_only_strict_imports() {
    let db = Db::new().await;
    let long = "i".repeat(2001);
    let with = |id: &str, field: &str, value: Value| {
        let mut model: Value = serde_json::from_str(&model_json(id)).unwrap();
        model[field] = value;
        model
    };
    let entries = json!([
        with("good", "file_size_gb", json!(1.005)),
        7,
        with("traversal", "save_path", json!("a/../../b")),
        with("escape", "id", json!("\u{1b}[2J")),
        with("scheme", "download_url", json!("ftp://example.org/x")),
        with("typo", "file_size", json!(3)),
        with("large", "file_size_gb", json!(1e8)),
        with("text", "file_size_gb", json!("3")),
        with("list", "dependencies", json!("a")),
        with("good", "hash", json!("x")),
        json!({"id": "few", "name": "n", "download_url": "https://example.org/n", "save_path": "n"}),
        {"name": "no id"},
        with(&long, "save_path", json!("x")),
    ])
    .to_string();
    let before = table(&db.client).await;
    let listed = [
        ".[1]: invalid type: integer `7`",
        ".[2] traversal: save_path escapes",
        ".[3] \\u{1b}[2J: id contains the control character U+001B",
        ".[4] scheme: download_url has the scheme `ftp`",
        ".[5] typo: unknown field `file_size`",
        ".[6] large: file_size_gb is over 99999999.99",
        ".[7] text: file_size_gb is \"3\"",
        ".[8] list: invalid type: string \"a\"",
        ".[11] no id: id is missing",
        &format!(".[12] {}…: id is longer than 2000 bytes", "i".repeat(300)),
    ];
    for options in [&["--strict"][..], &["--strict", "--dry-run"], &["--dry-run"], &[]] {
        let (status, printed) = import(&db.url, options, &entries);
        for line in listed {
            assert!(printed.contains(&format!("rejected {line}")), "no `{line}` in {printed}");
        }
        assert!(printed.contains("has the same id \"good\""), "{printed}");
        assert_eq!(status, if options.contains(&"--strict") { 1 } else { 3 }, "{options:?}");
        if options.is_empty() {
            assert_eq!(printed.lines().last(), Some("2 added, 0 changed, 0 unchanged, 11 rejected"));
        } else {
            assert_eq!(table(&db.client).await, before, "{options:?}");
        }
    }
    assert_eq!(db.sql("SELECT string_agg(id, ' ' ORDER BY id) FROM models").await.as_deref(), Some("few good"));

    for (input, message) in [
        ("{\"models\":[", "it is not valid JSON"),
        ("{\"error\":\"Model not found\",\"model_id\":\"x\"}", "its entries are neither"),
        ("[[]]", "its entries are neither"),
    ] {
        let (status, printed) = import(&db.url, &[], input);
        assert!(status == 1 && printed.contains("cannot import -") && printed.contains(message), "{status} {printed}");
    }
    let output = run(&["import", "/nonexistent/list.json"], &db.url, "");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && errors.contains("cannot read /nonexistent/list.json"), "{errors}");
}

#[tokio::test]
async fn mirrors_are_imported_compared_and_need_a_column() {
    let db = Db::new().await;
    let with = |mirrors: Value| {
        let mut model: Value = serde_json::from_str(&model_json("a")).unwrap();
        model["mirrors"] = mirrors;
        model.to_string()
    };
    let mirrors = json!(["https://a.example/a", "https://b.example/\""]);
    let stored = async || db.sql("SELECT mirrors FROM models WHERE id = 'a'").await;
    assert_eq!(import(&db.url, &[], &with(mirrors.clone())).1, "1 added, 0 changed, 0 unchanged, 0 rejected\n");
    assert_eq!(stored().await.map(|text| serde_json::from_str::<Value>(&text).unwrap()), Some(mirrors.clone()));
    assert_eq!(import(&db.url, &[], &with(mirrors.clone())).1, "0 added, 0 changed, 1 unchanged, 0 rejected\n");
    let dry = import(&db.url, &["--dry-run"], &model_json("a")).1;
    assert!(dry.starts_with("changed a: mirrors\n"), "{dry}");
    assert_eq!(import(&db.url, &[], &with(json!([]))).1, "0 added, 1 changed, 0 unchanged, 0 rejected\n");
    assert_eq!(stored().await, None);
    db.sql("UPDATE models SET mirrors = '[]'").await;
    assert_eq!(import(&db.url, &[], &with(Value::Null)).1, "0 added, 0 changed, 1 unchanged, 0 rejected\n");
    let (status, printed) = import(&db.url, &[], &with(json!(["https://a.example/a", "ftp://b.example/a"])));
    assert!(status == 3 && printed.contains("rejected . a: mirrors[1] has the scheme `ftp`"), "{printed}");

    db.sql(
        "DROP VIEW model_catalog.entries; ALTER TABLE models DROP mirrors; \
         CREATE VIEW model_catalog.entries AS SELECT id, name, download_url, file_size_gb::numeric, hash, \
         auth_required, auth_provider, save_path, dependencies, description FROM models",
    )
    .await;
    let before = table(&db.client).await;
    let (status, printed) = import(&db.url, &[], &with(mirrors));
    assert!(status == 1 && printed.contains("ALTER TABLE public.models ADD COLUMN mirrors jsonb"), "{printed}");
    assert_eq!(table(&db.client).await, before);
    assert_eq!(import(&db.url, &[], &model_json("b")).1, "1 added, 0 changed, 0 unchanged, 0 rejected\n");
    assert_eq!(import(&db.url, &[], &model_json("a")).1, "0 added, 0 changed, 1 unchanged, 0 rejected\n");
    assert_eq!(import(&db.url, &[], LIST).0, 3);
}

#[tokio::test]
async fn import_needs_only_select_insert_and_update() {
    let db = Db::new().await;
    let role = format!("importer_{}", db.name);
    db.sql(&format!("CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE ON public.models TO {role}")).await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let url = db.url.replace("user=postgres", &format!("user={role}"));
    assert_eq!(summary(&import(&url, &[], LIST)).0, 3);
    server
        .until("the model is served", |s| async move { s.get("/api/models/etc~tokens.bin").await.status == 200 })
        .await;
    // Revoking INSERT makes the import fail with a message.
    db.sql(&format!("REVOKE INSERT ON public.models FROM {role}")).await;
    let (status, printed) = import(&url, &[], &format!("[{}]", model_json("new")));
    assert!(status == 1 && printed.contains("permission denied for table models"), "{printed}");
}

#[tokio::test]
async fn import_larger_than_one_copy_message_is_complete() {
    let db = Db::new().await;
    let models: Vec<_> = (0..2_000)
        .map(|number| {
            model_json(&format!("m{number}"))
                .replace("\"description\":null", &format!("\"description\":\"{}\"", "x".repeat(200)))
        })
        .collect();
    let imported = import(&db.url, &["--strict"], &format!("[{}]", models.join(",")));
    assert_eq!(summary(&imported), (0, "2000 added, 0 changed, 0 unchanged, 0 rejected"));
    assert_eq!(db.sql("SELECT count(*) || ' ' || sum(length(description)) FROM models").await.unwrap(), "2000 400000");
}

#[tokio::test]
async fn filename_that_is_a_path_is_rejected() {
    let db = Db::new().await;
    for filename in ["a/b.pth", "..", "c:x"] {
        let mut list: Value = serde_json::from_str(LIST).unwrap();
        let models = list["models"].as_array_mut().unwrap();
        models.truncate(1);
        models[0]["filename"] = filename.into();
        let (status, printed) = import(&db.url, &[], &list.to_string());
        assert!(status == 3 && printed.contains("is not a file name"), "{status}: {printed}");
    }
}

#[tokio::test]
async fn models_that_would_not_be_served_are_not_written() {
    let db = Db::empty().await;
    let (status, printed) = import(&db.url, &[], LIST);
    assert!(status == 1 && printed.contains("run `model-catalog migrate` first"), "{printed}");

    let db = Db::new().await;
    db.sql("CREATE VIEW served AS SELECT * FROM models WHERE name <> 'x'").await;
    let view = |source: &str| {
        format!(
            "DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS
             SELECT id, name, download_url, file_size_gb::numeric, hash, auth_required, auth_provider, save_path,
                    dependencies, description FROM {source}"
        )
    };
    db.sql(&view("served")).await;
    assert_eq!(summary(&import(&db.url, &[], LIST)).0, 3);
    db.sql(&format!("CREATE TABLE elsewhere AS TABLE models; {}", view("elsewhere"))).await;
    let before = table(&db.client).await;
    for options in [&[][..], &["--dry-run"]] {
        let (status, printed) = import(&db.url, options, &format!("[{}]", model_json("new")));
        assert!(status == 1 && printed.contains("does not read public.models"), "{printed}");
    }
    assert_eq!(table(&db.client).await, before);
}

#[tokio::test]
async fn import_waits_for_other_writers_up_to_the_timeout() {
    let db = Db::new().await;
    db.add("a").await;
    let mut writer = db.connect().await;
    let other = writer.transaction().await.unwrap();
    other.batch_execute("UPDATE models SET hash = 'theirs'").await.unwrap();
    let arguments = ["import", "-", "--database-timeout", "2s"];
    let output = run(&arguments, &db.url, &format!("[{}]", model_json("a")));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && errors.contains("cannot lock public.models"), "{errors}");
    // A dry run takes no lock.
    assert_eq!(summary(&import(&db.url, &["--dry-run"], &format!("[{}]", model_json("a")))).0, 0);
    other.commit().await.unwrap();
    assert_eq!(
        import(&db.url, &[], &format!("[{}]", model_json("a"))).1,
        "0 added, 1 changed, 0 unchanged, 0 rejected\n"
    );
}

#[tokio::test]
async fn progress_bar_is_shown_on_terminals_only() {
    let db = Db::new().await;
    let mut writer = db.connect().await;
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/cli/model-list.json");
    let command = format!("{} import {} 2>&1", env!("CARGO_BIN_EXE_model-catalog"), file.display());
    // `script` runs the command on a terminal.
    for (program, arguments, terminal) in
        [("script", &["-qefc", &command, "/dev/null"][..], true), ("sh", &["-c", &command], false)]
    {
        let other = writer.transaction().await.unwrap();
        other.batch_execute("LOCK TABLE models IN ROW EXCLUSIVE MODE").await.unwrap();
        let mut program = Command::new(program);
        program.args(arguments).env("DATABASE_URL", &db.url).env("TERM", "xterm").stdin(Stdio::null());
        let mut child = program.stdout(Stdio::piped()).spawn().unwrap();
        let shown = Arc::<Mutex<String>>::default();
        let (mut stdout, copy) = (child.stdout.take().unwrap(), Arc::clone(&shown));
        let reading = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut bytes) {
                copy.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        let waiting = "SELECT extract(epoch FROM clock_timestamp() - min(l.waitstart)) > 2
                       FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                       WHERE d.datname = current_database() AND NOT l.granted";
        if terminal {
            let bar = || std::future::ready(shown.lock().unwrap().contains("waiting for other writers"));
            until("the progress bar is shown", bar).await;
        } else {
            until("it has waited longer than the delay of the bar", || async {
                db.sql(waiting).await.as_deref() == Some("t")
            })
            .await;
        }
        other.rollback().await.unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3));
        reading.join().unwrap();
        let shown = shown.lock().unwrap();
        assert_eq!(shown.contains("waiting for other writers"), terminal, "{shown}");
        assert!(shown.contains(" rejected, 1 repeated"), "{shown}");
    }
}
