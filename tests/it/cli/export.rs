//! `model-catalog export`: the served models, in a form that `import` accepts.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::cli::import::run;
use crate::support::{Db, Server, TempFolder};

/// Runs an export; returns its output and exit status.
fn export(url: &str) -> (String, Option<i32>) {
    let output = run(&["export"], url, "");
    (String::from_utf8(output.stdout).unwrap(), output.status.code())
}

/// Adds models with quotes, backslashes, control-like and non-ASCII characters.
async fn fill(db: &Db) {
    db.sql(
        r#"INSERT INTO models
           SELECT n || chr(160 + n) || '/"\', 'name ' || n, 'https://example.org/' || n, nullif(n, 3) * 1.10,
                  nullif('h\' || n, 'h\5'), n % 2 = 0, nullif('p', 'p' || n % 3), 'a/' || n || '.x', '[]', 'd ' || chr(8232) || chr(128512)
           FROM generate_series(1, 300) n"#,
    )
    .await;
    db.sql(r#"UPDATE models SET dependencies = '["1", "\\\" ä"]' WHERE name LIKE '%7'"#).await;
    db.sql(r#"UPDATE models SET mirrors = '["https://a.example/\" ä", "http://b.example"]' WHERE name LIKE '%8'"#)
        .await;
}

#[tokio::test]
async fn export_import_round_trip_is_byte_identical() {
    let (first, second) = (Db::lenient().await, Db::new().await);
    assert_eq!(export(&first.url), ("[]\n".into(), Some(0)));
    fill(&first).await;
    let (text, status) = export(&first.url);
    assert_eq!((status, text.lines().count(), text.matches("\"mirrors\":").count()), (Some(0), 302, 30));
    let output = run(&["import", "-", "--strict"], &second.url, &text);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "300 added, 0 changed, 0 unchanged, 0 rejected\n");
    assert_eq!(export(&second.url), (text.clone(), Some(0)));

    // The export equals what the servers respond, ordered by id, and both have the same revision.
    let (one, other) = (Server::start(&first).await, Server::start(&second).await);
    assert_eq!(one.get("/api/catalog").await.revision(), other.get("/api/catalog").await.revision());
    let models: Vec<&str> = text.lines().filter(|line| line.len() > 1).map(|line| line.trim_end_matches(',')).collect();
    let ids: Vec<String> = models
        .iter()
        .map(|model| serde_json::from_str::<serde_json::Value>(model).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert!(ids.is_sorted(), "{ids:?}");
    let batch = one.batch(&serde_json::json!({ "model_ids": ids }).to_string()).await.text();
    assert_eq!(batch, format!(r#"{{"models":[{}],"not_found":[]}}"#, models.join(",")));
}

#[tokio::test]
async fn rejected_rows_are_skipped_and_reported() {
    let db = Db::lenient().await;
    for id in ["a", "bad", "c"] {
        db.add(id).await;
    }
    db.sql("UPDATE models SET save_path = '../x' WHERE id = 'bad'").await;
    // The view may return an id twice: the entry that sorts first is served.
    let view = "SELECT id, name, download_url, file_size_gb::numeric, hash, auth_required, auth_provider, save_path,
                       dependencies, description";
    db.sql(&format!(
        "DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS {view} FROM models
         UNION ALL {} FROM models WHERE id = 'a'",
        view.replace("hash", "'0'")
    ))
    .await;
    let server = Server::start(&db).await;
    let output = run(&["export"], &db.url, "");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    for message in
        ["rejected=2", "id=bad reason=save_path escapes", "id=a reason=another row has the same id", "rejected rows: 2"]
    {
        assert!(errors.contains(message), "no `{message}` in {errors}");
    }
    let served = ["a", "c"].map(|id| format!("/api/models/{id}"));
    let [a, c] = [server.get(&served[0]).await.text(), server.get(&served[1]).await.text()];
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("[\n{a},\n{c}\n]\n"));
}

#[tokio::test]
async fn failed_export_leaves_the_file_unchanged() {
    let db = Db::lenient().await;
    fill(&db).await;
    let folder = TempFolder::new("export");
    let file = folder.join("catalog.json");
    let to = |file: &Path| run(&["export", file.to_str().unwrap()], &db.url, "");
    assert_eq!(to(&file).status.code(), Some(0));
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text, export(&db.url).0);

    // A row that cannot be read makes the export fail half-way.
    db.sql(
        "DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS
         SELECT id, name, download_url, (1 / (CASE WHEN name = 'name 299' THEN 0 ELSE 1 END))::numeric AS file_size_gb,
                hash, auth_required, auth_provider, save_path, dependencies, description FROM models",
    )
    .await;
    let output = to(&file);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && errors.contains("division by zero"), "{errors}");
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!((std::fs::read_to_string(&file).unwrap(), files), (text, vec!["catalog.json".into()]));
    let output = to(Path::new("/nonexistent/catalog.json"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && errors.contains("cannot write /nonexistent/catalog.json"), "{errors}");
}

#[tokio::test]
async fn reported_rows_are_limited_and_write_errors_name_the_file() {
    let db = Db::lenient().await;
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path) \
         SELECT n, 'x', 'https://example.org/x', '../x' FROM generate_series(1, 40) n",
    )
    .await;
    let output = run(&["export"], &db.url, "");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), stderr.matches("escapes the models folder").count()), (Some(3), 20), "{stderr}");
    assert!(stderr.contains("further rejected rows are not logged"), "{stderr}");

    let output = run(&["export", "/nonexistent/catalog.json"], &db.url, "");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && stderr.contains("/nonexistent/catalog.json"), "{stderr}");
}

#[tokio::test]
async fn export_needs_only_the_rights_of_the_server() {
    let db = Db::lenient().await;
    db.add("a").await;
    let role = format!("exporter_{}", db.name);
    let grants = format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA model_catalog TO {role};
         GRANT SELECT ON ALL TABLES IN SCHEMA model_catalog TO {role}"
    );
    db.sql(&grants).await;
    let url = db.url.replace("user=postgres", &format!("user={role}"));
    assert_eq!(export(&url), (format!("[\n{}\n]\n", crate::support::model_json("a")), Some(0)));
}

#[tokio::test]
async fn export_to_a_pipe_does_not_replace_it() {
    let db = Db::lenient().await;
    db.add("a").await;
    let folder = TempFolder::new("export");
    let pipe = folder.join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (path, reader) = (pipe.clone(), pipe.clone());
    let reader = std::thread::spawn(move || std::fs::read_to_string(reader).unwrap());
    let output = run(&["export", path.to_str().unwrap()], &db.url, "");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(reader.join().unwrap(), export(&db.url).0);
}
