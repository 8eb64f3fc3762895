//! A configuration error is not an outage: the log names it, says what to do, and claims to serve nothing.

use std::process::Command;

use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};

use crate::support::{Db, Server, migrated, sql};

/// A migrated Postgres that listens on the loopback interface, where it demands a password.
async fn postgres_on_tcp() -> (EphemeralPostgres, tokio_postgres::Client) {
    let tmpfs = std::path::PathBuf::from("/dev/shm");
    let parent = tmpfs.is_dir().then_some(tmpfs);
    let settings = vec![("fsync".to_owned(), "off".to_owned())];
    let postgres = EphemeralPostgres::start(EphemeralOptions { parent, loopback: true, settings }).unwrap();
    let client = migrated(&postgres.url("postgres")).await;
    (postgres, client)
}

/// The first warning of a server that cannot load a catalog from this database.
async fn first_warning(url: &str) -> (Server, serde_json::Value) {
    let server = Server::spawn(url, &[]).await;
    let warning = |line: &String| line.contains("\"level\":\"WARN\"");
    server.until("a warning is logged", |s| std::future::ready(s.log().iter().any(warning))).await;
    let line = server.log().into_iter().find(warning).unwrap();
    (server, serde_json::from_str(&line).unwrap())
}

#[tokio::test]
async fn configuration_errors_are_not_reported_as_an_outage() {
    let (postgres, client) = postgres_on_tcp().await;
    sql(&client, "CREATE ROLE stranger LOGIN PASSWORD 'p'").await;
    sql(&client, "CREATE DATABASE closed").await;
    sql(&client, "REVOKE CONNECT ON DATABASE closed FROM public").await;
    sql(&client, "CREATE DATABASE unmigrated").await;
    let url = |login: &str, database: &str| format!("postgres://{login}@127.0.0.1:{}/{database}", postgres.port());
    let (rejected, unreadable) = ("the database rejects the connection", "the catalog can't be read");
    for (url, problem, cause) in [
        (url("postgres:wrong", "postgres"), rejected, "password authentication failed"),
        (url("postgres", "postgres"), rejected, "password missing"),
        (postgres.loopback_url("absent"), rejected, "\"absent\" does not exist"),
        (url("stranger:p", "closed"), rejected, "permission denied for database"),
        (url("stranger:p", "postgres"), unreadable, "permission denied for schema model_catalog"),
        (postgres.loopback_url("unmigrated"), unreadable, "run `model-catalog migrate`"),
    ] {
        let (server, warning) = first_warning(&url).await;
        let [error, message] = ["error", "message"].map(|field| warning[field].as_str().unwrap().to_owned());
        assert!(error.contains(cause), "{warning}");
        for part in [problem, "there is no catalog to serve yet", "`model-catalog check`"] {
            assert!(message.contains(part), "no {part:?} in {warning}");
        }
        assert!(!message.contains("unavailable") && !message.contains("serving"), "{warning}");
        assert!(warning["attempts"].is_null() && warning["lasted_seconds"].is_null(), "{warning}");
        assert_eq!(server.get("/readyz").await.status, 503);
        assert_eq!((server.logged("\"listening\""), server.logged("first catalog loaded")), (1, 0));
    }

    let (server, _) = first_warning(&postgres.loopback_url("unmigrated")).await;
    migrated(&postgres.url("unmigrated")).await;
    server.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
    server.until_logged("first catalog loaded", 1).await;
}

#[tokio::test]
async fn an_outage_says_whether_something_is_served() {
    let (server, warning) = first_warning("postgres://me@127.0.0.1:1/models").await;
    let message = warning["message"].as_str().unwrap();
    assert!(message.contains("the database is unavailable; there is no catalog to serve yet"), "{warning}");
    assert!(warning["error"].as_str().unwrap().contains("127.0.0.1:1 (DATABASE_URL)"), "{warning}");
    drop(server);

    let (db, server) = crate::support::start_with_model_a(&[]).await;
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                  WHERE datname = current_database() AND pid <> pg_backend_pid()";
    db.sql(others).await;
    server.until_logged("the database is unavailable; serving the last snapshot", 1).await;
}

/// What a command prints for this database; it must fail with `status`.
fn fails(command: &str, url: &str, status: i32) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    let output = program.arg(command).env_clear().env("DATABASE_URL", url).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(status), "{command} {url}: {text}");
    text
}

#[test]
fn connection_errors_name_the_address_and_the_setting() {
    for (url, address) in [
        ("postgres://me@127.0.0.1:1/models", "127.0.0.1:1 "),
        ("postgres://me@127.0.0.1:1,localhost:2/models", "127.0.0.1:1, localhost:2 "),
        ("hostaddr=127.0.0.1 port=1 user=me", "127.0.0.1:1 "),
        ("host=/nonexistent user=me", "/nonexistent/.s.PGSQL.5432 "),
    ] {
        for (command, status) in [("migrate", 1), ("export", 1), ("check", 2)] {
            let text = fails(command, url, status);
            assert!(text.contains(&format!("{address}(DATABASE_URL)")), "{command} {url}: {text}");
        }
    }
}

#[test]
fn a_url_of_another_scheme_is_told_which_one_is_needed() {
    for url in ["http://db:5432/models", "mysql://me:s3cret@db/models", "jdbc:postgresql://db/models?password=s3cret"] {
        let text = fails("migrate", url, 2);
        assert!(text.contains("scheme is not postgres; write postgres://user@host:5432/database"), "{url}: {text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn pairs_may_contain_what_looks_like_a_scheme() {
    let db = Db::new().await;
    let (server, url) = (Server::start(&db).await, format!("{} password='a://b'", db.url));
    drop(server);
    drop(Server::start_with(&url, &[]).await);
}
