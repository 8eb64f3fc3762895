//! Connection, rights, schema and notifications.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::{apply_fixes, break_and_fix, check, check_with, fix, run};
use crate::support::{Db, migrated, sql, start_postgres};

#[tokio::test]
async fn healthy_database_has_nothing_to_fix() {
    let db = Db::new().await;
    db.add("a").await;
    let checked = check(&db);
    checked.clean();
    let subjects: Vec<_> = checked.findings.iter().filter_map(|finding| finding["subject"].as_str()).collect();
    let all = [
        "connection",
        "tls",
        "server",
        "rights",
        "migrations",
        "channel",
        "strict",
        "notification",
        "view",
        "sources",
        "look-up",
        "rows",
        "dependencies",
        "save_paths",
        "hashes",
        "secrets",
    ];
    assert_eq!(subjects, all);
    let (status, printed) = run(&db.url, &["--strict"], &[]);
    assert_eq!(status, 0, "{printed}");
    assert!(printed.contains("ok       rows          1 in the view, 0 of them rejected\n"), "{printed}");
    assert!(printed.ends_with("\nproblems: 0, warnings: 0\n"), "{printed}");
}

#[tokio::test]
async fn unreadable_objects_are_not_reported_ok() {
    // Nothing listens on port 1.
    let checked = check_with("postgres://me:s3cret@127.0.0.1:1/models", &[]);
    assert_eq!(checked.status, 2, "{checked:?}");
    assert!(checked.unfinished.as_str().unwrap().contains("cannot connect"), "{checked:?}");
    for (url, settings, message) in [
        ("postgres://me:s3cret@h/d?sslmode=perhaps", &[][..], "use disable, prefer, require"),
        ("host=/nonexistent user=x", &[("CATALOG_CHECK_LIMIT", "0")], "CATALOG_CHECK_LIMIT"),
        ("host=/nonexistent user=x", &[("CATALOG_CHECK_FORMAT", "xml")], "CATALOG_CHECK_FORMAT"),
        ("host=/nonexistent user=x", &[], "not completed: cannot connect"),
    ] {
        let (status, printed) = run(url, &[], settings);
        assert!(status == 2 && printed.contains(message) && !printed.contains("s3cret"), "{status}: {printed}");
    }
}

#[tokio::test]
async fn missing_migrations_are_reported() {
    let db = Db::empty().await;
    let checked = check(&db);
    assert_eq!(fix(checked.only("problem", "schema", "there is no schema model_catalog")), "model-catalog migrate");

    let db = Db::new().await;
    db.sql("DELETE FROM model_catalog.migrations WHERE version = (SELECT max(version) FROM model_catalog.migrations)")
        .await;
    let checked = check(&db);
    assert_eq!(fix(checked.only("problem", "migrations", "was applied last")), "model-catalog migrate");
    db.sql("INSERT INTO model_catalog.migrations SELECT 1000, 'later', now()::text, '0'").await;
    check(&db).only("warning", "migrations", "migration 1000 was applied last");
    assert_eq!(run(&db.url, &["--strict"], &[]).0, 1);

    let db = Db::new().await;
    db.sql("DROP VIEW model_catalog.entries").await;
    let checked = check(&db);
    let finding = checked.only("problem", "schema", "there is no model_catalog.entries");
    assert!(fix(finding).starts_with("model-catalog migrate "), "{finding}");
}

#[tokio::test]
async fn each_missing_right_is_reported() {
    let db = Db::new().await;
    let role = format!("weird \"{}", db.name);
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    db.sql(&format!("CREATE ROLE {quoted} LOGIN")).await;
    let url = db.url.replace("user=postgres", &format!("user='{role}'"));
    for (right, level) in [
        ("USAGE ON SCHEMA model_catalog", "problem"),
        ("SELECT ON model_catalog.entries", "problem"),
        ("SELECT ON model_catalog.changes", "problem"),
        ("SELECT ON model_catalog.history", "problem"),
        ("SELECT ON model_catalog.state", "warning"),
        ("SELECT ON model_catalog.migrations", "warning"),
    ] {
        db.sql(&format!("GRANT USAGE ON SCHEMA model_catalog TO {quoted}")).await;
        db.sql(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA model_catalog TO {quoted}")).await;
        check_with(&url, &[]).clean();
        db.sql(&format!("REVOKE {right} FROM {quoted}")).await;
        let checked = check_with(&url, &[]);
        checked.only(level, "rights", right.rsplit(' ').next().unwrap());
        apply_fixes(&db, &checked).await;
        check_with(&url, &[]).clean();
    }

    // A view reads with the rights of its owner.
    db.sql(&format!("ALTER VIEW model_catalog.entries OWNER TO {quoted}")).await;
    let checked = check_with(&url, &[]);
    let bad = checked.bad();
    assert_eq!((checked.status, bad.len()), (1, 2), "{checked:#?}");
    assert!(bad[0]["text"].as_str().unwrap().contains("permission denied for table models"), "{checked:#?}");
    assert_eq!(bad[1]["text"], "the view may not read public.models");
    db.sql(fix(bad[1])).await;
    check_with(&url, &[]).clean();
}

#[tokio::test]
async fn channel_mismatch_is_reported() {
    let db = Db::new().await;
    break_and_fix(
        &db,
        "UPDATE model_catalog.state SET channel = 'it''s another'",
        "problem",
        "channel",
        "it's another",
    )
    .await;
    let settings = [("CATALOG_CHANNEL", "mine \\ 'own'")];
    let checked = check_with(&db.url, &settings);
    checked.only("problem", "channel", "CATALOG_CHANNEL is \"mine \\ 'own'\"");
    apply_fixes(&db, &checked).await;
    check_with(&db.url, &settings).clean();
}

/// Forwards everything between a client and a server except notifications.
async fn without_notifications(client: TcpStream, server: UnixStream) -> std::io::Result<()> {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    loop {
        let (kind, length) = (from_server.read_u8().await?, from_server.read_u32().await?);
        let mut body = vec![0; length as usize - 4];
        from_server.read_exact(&mut body).await?;
        if kind != b'A' {
            to_client.write_all(&[&[kind][..], &length.to_be_bytes(), &body].concat()).await?;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_notifications_are_reported() {
    let db = Db::new().await;
    let field = |name: &str| db.url.split(' ').find_map(|pair| pair.strip_prefix(name)).unwrap();
    let socket = format!("{}/.s.PGSQL.{}", field("host="), field("port="));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let (Ok((client, _)), Ok(server)) = (listener.accept().await, UnixStream::connect(&socket).await) {
            tokio::spawn(without_notifications(client, server));
        }
    });
    let url = format!("host=127.0.0.1 port={port} user=postgres dbname={} sslmode=disable", db.name);
    let checked = check_with(&url, &[("CATALOG_DATABASE_TIMEOUT", "1s")]);
    checked.only("problem", "notification", "no notification arrived within 1s");
}

#[tokio::test]
async fn hot_standby_is_reported() {
    let primary = start_postgres(&[]);
    let client = migrated(&primary.url("postgres")).await;
    let standby = model_catalog::postgres::ephemeral::EphemeralPostgres::standby_of(&primary).unwrap();
    let position = sql(&client, "SELECT pg_current_wal_lsn()").await.unwrap();
    let replica = crate::support::connect(&standby.url("postgres")).await;
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'");
    crate::support::until("the standby has caught up", || async {
        sql(&replica, &replayed).await.as_deref() == Some("t")
    })
    .await;
    let checked = check_with(&standby.url("postgres"), &[]);
    checked.clean();
    let server = checked.findings.iter().find(|finding| finding["subject"] == "server").unwrap();
    assert!(server["text"].as_str().unwrap().starts_with("a hot standby"), "{checked:#?}");
}

#[tokio::test]
async fn log_that_serializable_transactions_let_grow_is_reported() {
    let db = Db::new().await;
    db.add("a").await;
    db.sql("SET default_transaction_isolation = 'serializable'").await;
    for _ in 0..3 {
        db.sql("UPDATE models SET name = md5(name)").await;
    }
    assert_eq!(db.sql("SELECT count(*) FROM model_catalog.changes").await.as_deref(), Some("4"));
    check(&db).clean();
    // What ten thousand such transactions leave.
    let grow = "SET default_transaction_isolation = 'read committed'; \
                INSERT INTO model_catalog.changes SELECT 'b', n::text::xid8, now() FROM generate_series(1, 20000) n";
    break_and_fix(&db, grow, "warning", "log", "the log has 20004 changes of 2 models").await;
    assert_eq!(db.sql("SELECT count(*) FROM model_catalog.changes").await.as_deref(), Some("2"));
    let grow = "INSERT INTO model_catalog.reloads SELECT n::text::xid8, now() FROM generate_series(1, 2000) n \
                ON CONFLICT DO NOTHING";
    break_and_fix(&db, grow, "warning", "log", "the log has 2 changes of 2 models and 2").await;
    assert_eq!(db.sql("SELECT count(*) FROM model_catalog.reloads").await.as_deref(), Some("1"));
}
