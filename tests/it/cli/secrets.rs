//! Neither the database password nor tokens in download URLs appear in logs, metrics, errors, session names or command
//! lines, even at trace level.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};

use crate::support::{Server, migrated, sql, until};

/// The database password.
const PASSWORD: &str = "hunter2-of-the-database";
/// A token in download URLs.
const TOKEN: &str = "hf_tokenOfAnAddress";

/// A Postgres that requires a password over TCP.
async fn password_postgres() -> (EphemeralPostgres, tokio_postgres::Client) {
    let tmpfs = std::path::PathBuf::from("/dev/shm");
    let parent = tmpfs.is_dir().then_some(tmpfs);
    let settings = vec![("fsync".to_owned(), "off".to_owned())];
    let postgres = EphemeralPostgres::start(EphemeralOptions { parent, loopback: true, settings }).unwrap();
    let client = migrated(&postgres.url("postgres")).await;
    sql(&client, "SELECT model_catalog.strict(false)").await;
    let rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(postgres.data_directory().join("pg_hba.conf"), rules).unwrap();
    sql(&client, &format!("CREATE ROLE reader SUPERUSER LOGIN PASSWORD '{PASSWORD}'; SELECT pg_reload_conf()")).await;
    let loaded = "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method = 'scram-sha-256'";
    until("the rules are loaded", || async { sql(&client, loaded).await.as_deref() == Some("1") }).await;
    (postgres, client)
}

/// The command lines of all processes.
fn command_lines() -> String {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ") + "\n").collect()
}

fn assert_without(secret: &str, what: &str, text: &str) {
    if let Some(line) = text.lines().find(|line| line.contains(secret)) {
        panic!("{what} exposes a secret: {line}");
    }
}

/// Everything that a server exposes.
async fn all_output(server: &Server, client: &tokio_postgres::Client) -> Vec<(&'static str, String)> {
    let sessions = "SELECT string_agg(s::text, E'\\n') FROM pg_stat_activity s";
    let mut all = vec![
        ("the log", server.log().join("\n")),
        ("a session's name or query", sql(client, sessions).await.unwrap_or_default()),
        ("a command line", command_lines()),
        ("a wrong batch", server.batch("{").await.text()),
    ];
    for path in ["/api/catalog", "/readyz", "/livez", "/metrics", "/", "/api/models/absent", "/api/models/%"] {
        let response = server.get(path).await;
        all.push((path, format!("{:?} {}", response.headers, response.text())));
    }
    all
}

#[tokio::test]
async fn server_exposes_no_secret_at_trace_level() {
    let (postgres, client) = password_postgres().await;
    sql(
        &client,
        &format!(
            "INSERT INTO models (id, name, download_url, save_path) VALUES \
             ('served', 'x', 'https://example.org/x?type=Model&token={TOKEN}', 'x'), \
             ('credentials', 'x', 'https://user:{TOKEN}@example.org/x', 'x'), \
             ('broken', 'x', 'https://exa mple.org/x?token={TOKEN}', 'x'), \
             ('schemed', 'x', 'gopher://example.org/x?token={TOKEN}', 'x')"
        ),
    )
    .await;
    let passfile = std::env::temp_dir().join(format!("passfile-{:x}", fastrand::u64(..)));
    std::fs::write(&passfile, format!("*:*:*:*:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
    let passfile = passfile.display().to_string();
    let port = postgres.port();
    let plain = format!("postgres://reader@127.0.0.1:{port}/postgres");
    for (url, setting) in [
        (format!("postgres://reader:{PASSWORD}@127.0.0.1:{port}/postgres"), ("PGPASSWORD", "unused")),
        (
            format!("host=127.0.0.1 port={port} user=reader dbname=postgres password='{PASSWORD}'"),
            ("PGPASSWORD", "unused"),
        ),
        (plain.clone(), ("PGPASSWORD", PASSWORD)),
        (plain, ("PGPASSFILE", &passfile)),
    ] {
        let server = Server::start_with(&url, &[setting, ("CATALOG_LOG", "trace")]).await;
        sql(&client, "UPDATE models SET description = random()").await;
        sql(&client, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'").await;
        server.until("it is back", |s| async move { s.logged("the database is available") > 0 }).await;
        for (what, text) in all_output(&server, &client).await {
            assert_without(PASSWORD, what, &text);
            assert_without(TOKEN, what, &text);
        }
        server.until_logged("row rejected", 3).await;
        assert!(server.logged("\"level\":\"TRACE\"") > 0, "{:#?}", server.log());
        assert!(server.get("/api/catalog").await.text().contains("\"rejected\":3"));
        // GPU machines get the complete URL.
        assert!(server.get("/api/models/served").await.text().contains(TOKEN));
    }
    std::fs::remove_file(passfile).unwrap();

    let wrong = format!("postgres://reader:{PASSWORD}-not@127.0.0.1:{port}/postgres");
    let unreachable = format!("postgres://reader:{PASSWORD}@127.0.0.1:1/postgres");
    for (url, problem) in [(wrong, "the database rejects the connection"), (unreachable, "the database is unavailable")]
    {
        let server = Server::spawn(&url, &[("CATALOG_LOG", "trace")]).await;
        server.until("the failed connection is logged", |s| async move { s.logged(problem) > 0 }).await;
        for (what, text) in all_output(&server, &client).await {
            assert_without(PASSWORD, what, &text);
        }
    }
}

/// The output and log of a command.
fn run(url: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    command.args(arguments).env_clear().env("DATABASE_URL", url).env("CATALOG_LOG", "trace");
    let output = command.env("CATALOG_DATABASE_TIMEOUT", "5s").output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test]
async fn no_command_prints_a_secret() {
    let (postgres, _client) = password_postgres().await;
    let list = std::env::temp_dir().join(format!("list-{:x}.json", fastrand::u64(..)));
    let model = |id: &str, url: &str| serde_json::json!({"id": id, "name": "x", "download_url": url, "save_path": "x"});
    let models = [
        model("a", &format!("https://example.org/?token={TOKEN}")),
        model("b", &format!("https://user:{TOKEN}@example.org/")),
        model("c", &format!("example.org/?token={TOKEN}")),
    ];
    std::fs::write(&list, serde_json::json!(models).to_string()).unwrap();
    let file = list.to_str().unwrap();
    let out = &format!("{file}.out");
    let port = postgres.port();
    let commands: [&[&str]; 9] = [
        &["migrate"],
        &["import", file, "--dry-run"],
        &["import", file],
        &["import", file],
        &["check"],
        &["check", "--format", "json"],
        &["export", out],
        &["serve", "--help"],
        &["serve", "--drain-grace", "never"],
    ];
    for url in [
        format!("postgres://reader:{PASSWORD}@127.0.0.1:{port}/postgres"),
        format!("postgres://reader:{PASSWORD}-not@127.0.0.1:{port}/postgres"),
        format!("postgres://reader:{PASSWORD}@127.0.0.1:{port}/postgres?sslmode=maybe"),
        format!("postgres://reader:{PASSWORD}"),
        format!("postgres//reader:{PASSWORD}@127.0.0.1"),
    ] {
        for command in commands {
            let printed = run(&url, command);
            assert!(!printed.is_empty(), "{command:?} prints nothing");
            assert_without(PASSWORD, &format!("{command:?}"), &printed);
            assert_without(TOKEN, &format!("{command:?}"), &printed);
        }
    }
    std::fs::remove_file(out).unwrap();
    std::fs::remove_file(list).unwrap();
}
