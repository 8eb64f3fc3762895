//! The version of the program, versions of Postgres that are not supported, and what a failed migration reports.

use std::path::Path;
use std::process::{Command, Stdio};

use model_catalog::metrics::COMMIT;
use model_catalog::postgres::migrate::SCHEMA_VERSION;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Db, Server, TempFolder};

/// A server that completes the startup of every connection, reports this version and closes the connection.
async fn postgres_of_version(version: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Ignore I/O errors: the client disconnected.
            tokio::spawn(async move { startup(stream, version).await.ok() });
        }
    });
    format!("postgres://postgres@127.0.0.1:{port}/postgres?sslmode=disable")
}

async fn startup(mut stream: TcpStream, version: &str) -> std::io::Result<()> {
    let length = stream.read_u32().await?;
    stream.read_exact(&mut vec![0; length as usize - 4]).await?;
    let mut messages = Vec::new();
    let mut message = |kind: u8, body: &[u8]| {
        messages.push(kind);
        messages.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        messages.extend(body);
    };
    message(b'R', &0_u32.to_be_bytes());
    message(b'S', format!("server_version\0{version}\0").as_bytes());
    message(b'K', &[0; 8]);
    message(b'Z', b"I");
    stream.write_all(&messages).await?;
    // The connection ends with the first statement, or when the client disconnects.
    stream.read_u8().await.map(drop)
}

/// Runs the program to its end; returns its exit status and everything it printed.
async fn run(arguments: &[&str], url: &str) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    command.args(arguments).env_clear().env("DATABASE_URL", url).env("CATALOG_DATABASE_TIMEOUT", "1s");
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), printed.into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_reports_an_unsupported_version_first() {
    let url = postgres_of_version("12.22 (Debian 12.22-1)").await;
    let message =
        "is PostgreSQL 12.22 (Debian 12.22-1), which is not supported: this program needs PostgreSQL 14 to 18";
    for (command, expected) in [("migrate", 1), ("check", 2), ("export", 1)] {
        let arguments = if command == "export" { &["export", "-"][..] } else { &[command] };
        let (status, printed) = run(arguments, &url).await;
        assert!(status == expected && printed.contains(message), "{command}: {status} {printed}");
    }
    let server = Server::spawn(&url, &[("CATALOG_POLL_INTERVAL", "1h")]).await;
    server.until("the version is logged", |s| std::future::ready(s.logged(message) > 0)).await;
    assert_eq!(server.get("/readyz").await.status, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_version_is_used_with_a_warning() {
    let url = postgres_of_version("19beta1").await;
    let (status, printed) = run(&["migrate"], &url).await;
    assert!(status == 1 && printed.contains("PostgreSQL 18 is the newest version"), "{status} {printed}");
    assert!(!printed.contains("is not supported"), "{printed}");
}

#[tokio::test]
async fn failed_migrations_report_what_postgres_said() {
    let db = Db::empty().await;
    let (owner, role) = (format!("owner_{}", db.name), format!("migrator_{}", db.name));
    db.sql(&format!(
        "CREATE ROLE {owner}; CREATE ROLE {role} LOGIN; CREATE SCHEMA model_catalog AUTHORIZATION {owner}"
    ))
    .await;
    db.sql(&format!("GRANT CREATE ON DATABASE {} TO {role}", db.name)).await;
    let (status, printed) = run(&["migrate"], &db.url.replace("user=postgres", &format!("user={role}"))).await;
    let cause = "permission denied for schema model_catalog [42501]";
    assert!(status == 1 && printed.contains(cause) && !printed.contains("db error"), "{status} {printed}");

    // A numbered migration that fails on an object with a name that it needs: its message, detail and hint.
    let db = Db::empty().await;
    db.sql(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE EXCEPTION 'no new views here' USING ERRCODE = 'MC001', DETAIL = 'the detail', HINT = 'the hint'; END $$; \
         CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION refuse()",
    )
    .await;
    let (status, printed) = run(&["migrate"], &db.url).await;
    let cause = "no new views here: the detail (the hint) [MC001]";
    assert!(status == 1 && printed.contains(cause), "{status} {printed}");
    assert!(printed.contains("error applying migration V1"), "{printed}");
}

#[test]
fn version_names_commit_and_newest_migration() {
    let newest = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .map(|name| name[1..].split_once("__").unwrap().0.parse::<i32>().unwrap())
        .max();
    assert_eq!(newest, Some(SCHEMA_VERSION), "SCHEMA_VERSION is not the number of the newest file in migrations/");
    let output = Command::new(env!("CARGO_BIN_EXE_model-catalog")).arg("--version").output().unwrap();
    let version = format!("model-catalog {} (commit {COMMIT}, schema {SCHEMA_VERSION})\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), version);
}

#[test]
fn man_pages_and_completions_of_every_command_are_generated() {
    let folder = TempFolder::new("generated");
    let generate =
        |folder: &Path| Command::new(env!("CARGO_BIN_EXE_model-catalog")).arg("generate").arg(folder).output().unwrap();
    let output = generate(&folder);
    assert!(output.status.success(), "{output:?}");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".1"))
        .collect();
    files.sort();
    assert_eq!(files, ["_model-catalog", "model-catalog.bash", "model-catalog.fish"]);
    for page in ["", "-serve", "-pull"] {
        let text = std::fs::read_to_string(folder.join(format!("model-catalog{page}.1"))).unwrap();
        assert!(text.contains("CATALOG_LOG"), "{text}");
    }
    let output = generate(&folder.join("missing"));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("missing: No such file or directory"), "{error}");
}
