//! Databases in other encodings than UTF-8: everything works, and a text that is not UTF-8 rejects its own row only.

use crate::cli::check::check_with;
use crate::support::{Db, NOTIFY_ONLY, Server, TempFolder, migrated};

/// Every encoding of databases that Postgres can convert to UTF-8 and has scripts or control characters of its own,
/// with a text that it has. In the WIN encodings, some characters are bytes that are control characters elsewhere.
pub const ENCODINGS: [(&str, &str); 15] = [
    ("UTF8", "gr\u{f6}\u{df}e \u{2013} \u{65e5}\u{672c}"),
    ("SQL_ASCII", "gr\u{f6}\u{df}e \u{2013} \u{65e5}\u{672c}"),
    ("LATIN1", "gr\u{f6}\u{df}e"),
    ("LATIN2", "\u{17c}\u{f3}\u{142}\u{107}"),
    ("LATIN9", "gr\u{f6}\u{df}e \u{20ac}"),
    ("WIN1250", "\u{17c}\u{f3}\u{142}\u{107} \u{2013} \u{2122}"),
    ("WIN1251", "\u{43f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{2013} \u{2122}"),
    ("WIN1252", "gr\u{f6}\u{df}e \u{2013} \u{2122} \u{20ac}"),
    ("KOI8R", "\u{43f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{2550}"),
    ("ISO_8859_5", "\u{43f}\u{440}\u{438}\u{432}\u{435}\u{442}"),
    ("EUC_JP", "\u{65e5}\u{672c}\u{8a9e}"),
    ("EUC_KR", "\u{d55c}\u{ad6d}\u{c5b4}"),
    ("EUC_CN", "\u{4e2d}\u{6587}"),
    ("EUC_TW", "\u{4e2d}\u{6587}"),
    ("EUC_JIS_2004", "\u{65e5}\u{672c}\u{8a9e}"),
];

async fn export(db: &Db) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    let command = command.args(["export", "-"]).env_clear().env("DATABASE_URL", &db.url);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catalog_follows_a_database_in_any_encoding() {
    for (encoding, text) in ENCODINGS {
        let db = Db::in_encoding(encoding).await;
        drop(migrated(&db.url).await);
        db.sql("SELECT model_catalog.strict(true)").await;
        db.add("a").await;
        let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
        // Deltas, in strict mode.
        let values: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[&text];
        let update = "UPDATE models SET name = $1, description = $1, dependencies = jsonb_build_array($1::text)";
        db.client.execute(update, values).await.unwrap_or_else(|error| panic!("{encoding}: {error:?}"));
        server.until_named("a", text).await;
        db.client.execute("UPDATE models SET id = $1, save_path = 'a/' || $1", values).await.unwrap();
        server.until_named(text, text).await;
        assert_eq!(server.field(text, "dependencies").await, serde_json::json!([text]), "{encoding}");
        db.client.execute("UPDATE models SET dependencies = '[]', name = 'x' WHERE id = $1", values).await.unwrap();
        server.until_named(text, "x").await;
        // Counted after they are published.
        server.until("three deltas are counted", |s| async move { s.refreshes("delta").await >= 3.0 }).await;
        // A full read.
        db.sql("SELECT model_catalog.reload()").await;
        server.until("it is read again", |s| async move { s.refreshes("full").await == 2.0 }).await;
        assert_eq!(server.field(text, "save_path").await, format!("a/{text}"), "{encoding}");
        check_with(&db.url, &[]).clean();

        let exported = export(&db).await;
        assert!(exported.contains(text), "{encoding}: {exported}");
        let folder = TempFolder::new("encodings");
        let file = folder.path("models.json");
        std::fs::write(&file, exported.replace("\"x\"", "\"y\"")).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_model-catalog"));
        let output = command.args(["import", &file]).env_clear().env("DATABASE_URL", &db.url).output().unwrap();
        assert!(output.status.success(), "{encoding}: {}", String::from_utf8_lossy(&output.stderr));
        server.until_named(text, "y").await;
        assert_eq!(server.metric("catalog_models_rejected").await, 0.0, "{encoding}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_that_is_not_utf8_is_rejected_alone() {
    // Bytes that are not UTF-8, and those that are undefined in the encoding.
    for (encoding, bytes, escaped) in [("SQL_ASCII", "6f6ce9", r"ol\351"), ("WIN1252", "6f6c818d", r"ol\201\215")] {
        let db = Db::in_encoding(encoding).await;
        drop(migrated(&db.url).await);
        db.sql("SELECT model_catalog.strict(false)").await;
        for id in ["a", "b"] {
            db.add(id).await;
        }
        let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
        let bad = format!("convert_from('\\x{bytes}', '{encoding}')");
        db.sql(&format!("UPDATE models SET description = {bad} WHERE id = 'b'")).await;
        server.until("it is rejected", |s| async move { s.metric("catalog_models_rejected").await == 1.0 }).await;
        db.sql("UPDATE models SET name = 'after' WHERE id = 'a'").await;
        server.until_named("a", "after").await;
        assert_eq!(server.field("b", "name").await, "b.safetensors", "the last good version stays");
        db.sql(&format!("UPDATE models SET id = {bad} WHERE id = 'b'")).await;
        server.until_gone("b").await;
        let rejected = server.get("/api/catalog").await.json();
        assert_eq!(rejected["rejected_rows"][0]["id"], escaped, "{rejected}");
        db.sql("SELECT model_catalog.reload()").await;
        server.until("it is read again", |s| async move { s.refreshes("full").await == 2.0 }).await;
        db.sql("UPDATE models SET name = 'still live' WHERE id = 'a'").await;
        server.until_named("a", "still live").await;
        assert_eq!(server.metric("catalog_models_rejected").await, 1.0);

        let reason = "id has bytes that cannot be converted to UTF-8: correct them";
        assert_eq!(
            db.sql("SELECT concat_ws('|', id, problem) FROM model_catalog.problems").await.unwrap(),
            format!("{escaped}|{reason}")
        );
        let found = check_with(&db.url, &[]).bad().into_iter().find(|finding| finding["subject"] == "row").cloned();
        let found = found.unwrap_or_else(|| panic!("{encoding}: no finding"));
        assert_eq!((found["id"].as_str(), found["text"].as_str()), (Some(escaped), Some(reason)), "{found}");
        // A start reads it, too.
        drop(server);
        let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
        assert_eq!(server.field("a", "name").await, "still live");
        db.sql("UPDATE models SET id = 'b', description = NULL WHERE id <> 'a'").await;
        server.until_named("b", "b.safetensors").await;
        server.until("none is rejected", |s| async move { s.metric("catalog_models_rejected").await == 0.0 }).await;
    }
}
