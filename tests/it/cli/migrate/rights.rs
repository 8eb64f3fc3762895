//! Least privilege: the rights that each role needs, and everything else is denied.

use model_catalog::base::error_chain::chain;
use model_catalog::postgres::session;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use crate::support::consistency::full_reads;
use crate::support::{Db, NOTIFY_ONLY, Server, database, sql};

/// The rights of the role that `serve` connects as.
const SERVE: [&str; 4] = [
    "USAGE ON SCHEMA model_catalog",
    "SELECT ON model_catalog.changes",
    "SELECT ON model_catalog.history",
    "SELECT ON model_catalog.entries",
];

/// Creates a role; returns its name and the URL to connect as it.
async fn role(db: &Db, prefix: &str) -> (String, String) {
    let name = format!("{prefix}_{}", db.name);
    db.sql(&format!("CREATE ROLE {name} LOGIN")).await;
    let url = db.url.replace("user=postgres", &format!("user={name}"));
    (name, url)
}

async fn grant(db: &Db, rights: &[&str], role: &str) {
    for right in rights {
        db.sql(&format!("GRANT {right} TO {role}")).await;
    }
}

async fn assert_denied(client: &Client, statement: &str) {
    let error = client.batch_execute(statement).await.expect_err(statement);
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}: {}", chain(&error));
}

#[tokio::test]
async fn writers_need_no_rights_beyond_their_tables() {
    let db = Db::new().await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    let (writer, url) = role(&db, "writer").await;
    grant(&db, &["INSERT, UPDATE, DELETE, SELECT, TRUNCATE ON models"], &writer).await;
    let client = session::connect(&database(&url)).await.unwrap();
    // Objects that shadow the trigger's names in the writer's search path are not used.
    let shadow = "CREATE TEMP TABLE changes (model_id text); CREATE TEMP TABLE state (channel text); \
                  CREATE FUNCTION pg_temp.pg_current_xact_id() RETURNS xid8 LANGUAGE sql AS $$ SELECT NULL::xid8 $$; \
                  SET search_path = pg_temp, public, pg_catalog";
    client.batch_execute(shadow).await.unwrap();
    let run = async |statement: &str| client.batch_execute(statement).await.unwrap();

    run("INSERT INTO models (id, name, download_url, save_path) VALUES ('a', 'x', 'https://example.org/a', 'a')").await;
    server.until_named("a", "x").await;
    run("UPDATE models SET name = 'y'").await;
    server.until_named("a", "y").await;
    run("UPDATE models SET id = 'b'").await;
    server.until_named("b", "y").await;
    run("DELETE FROM models WHERE id = 'b'").await;
    server.until_gone("b").await;
    run("INSERT INTO models (id, name, download_url, save_path) VALUES ('c', 'x', 'https://example.org/a', 'a')").await;
    server.until_named("c", "x").await;
    run("TRUNCATE models").await;
    server.until_gone("c").await;
}

#[tokio::test]
async fn server_role_needs_exactly_these_rights() {
    let db = Db::new().await;
    db.add("a").await;
    let (reader, url) = role(&db, "reader").await;
    grant(&db, &SERVE, &reader).await;
    let server = Server::start_with(&url, NOTIFY_ONLY).await;
    db.sql("UPDATE models SET name = 'by a delta'").await;
    server.until_named("a", "by a delta").await;
    db.sql("SELECT model_catalog.reload(); UPDATE models SET name = 'by a full read'").await;
    server.until_named("a", "by a full read").await;
    assert_eq!(full_reads(&server, 2.0).await, 2.0);

    // Each of the rights is required for the delta.
    for right in SERVE {
        let client = session::connect(&database(&url)).await.unwrap();
        db.sql(&format!("REVOKE {right} FROM {reader}")).await;
        let parameters: [(&(dyn ToSql + Sync), Type); 4] =
            [(&"1:1:", Type::TEXT), (&"", Type::TEXT), (&"1", Type::TEXT), (&"true", Type::TEXT)];
        let error = client.query_typed(session::DELTA, &parameters).await.expect_err(right);
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{right}: {}", chain(&error));
        db.sql(&format!("GRANT {right} TO {reader}")).await;
    }

    let client = session::connect(&database(&url)).await.unwrap();
    for statement in [
        "SELECT model_catalog.watch('public.models', 'id')",
        "SELECT model_catalog.reload()",
        "CREATE TEMP TABLE t (id text); CREATE TRIGGER t AFTER INSERT ON t EXECUTE FUNCTION model_catalog.log_change('id')",
        "INSERT INTO model_catalog.changes VALUES ('x', '1', now())",
        "UPDATE model_catalog.changes SET xid = '1'",
        "DELETE FROM model_catalog.changes",
        "TRUNCATE model_catalog.changes",
        "SELECT * FROM model_catalog.state",
        "UPDATE model_catalog.state SET epoch = 9",
        "SELECT * FROM model_catalog.migrations",
        "SELECT * FROM public.models",
        "DELETE FROM model_catalog.entries",
        "CREATE TABLE model_catalog.x ()",
        "SELECT * FROM model_catalog.fleet",
        "SELECT model_catalog.wait_for_fleet('3')",
    ] {
        assert_denied(&client, statement).await;
    }
}

#[tokio::test]
async fn role_without_rights_is_denied_everything() {
    let db = Db::new().await;
    let (_, url) = role(&db, "nobody").await;
    let client = session::connect(&database(&url)).await.unwrap();
    for statement in [
        "SELECT model_catalog.watch('public.models', 'id')",
        "SELECT model_catalog.reload()",
        "SELECT * FROM model_catalog.entries",
        "INSERT INTO model_catalog.changes VALUES ('x', '1', now())",
        "UPDATE model_catalog.state SET epoch = 9",
        "SELECT * FROM model_catalog.fleet",
        "SELECT model_catalog.wait_for_fleet('3')",
    ] {
        assert_denied(&client, statement).await;
    }
}

#[tokio::test]
async fn fleet_monitor_role_needs_exactly_these_rights() {
    let db = Db::new().await;
    db.add("a").await;
    let (reader, url) = role(&db, "reader").await;
    grant(&db, &SERVE, &reader).await;
    let settings = [("CATALOG_REPLICA_NAME", "seen"), ("CATALOG_POLL_INTERVAL", "100ms")];
    let server = Server::start_with(&url, &settings).await;
    let (watcher, url) = role(&db, "watcher").await;
    let rights = ["USAGE ON SCHEMA model_catalog", "SELECT ON model_catalog.fleet"];
    grant(&db, &rights, &watcher).await;
    let client = session::connect(&database(&url)).await.unwrap();
    assert_denied(&client, "SELECT model_catalog.wait_for_fleet('3')").await;
    grant(&db, &["EXECUTE ON FUNCTION model_catalog.wait_for_fleet(xid8, interval)"], &watcher).await;

    let rename = "UPDATE models SET name = 'arrived' RETURNING pg_current_xact_id()";
    let xid = db.sql(rename).await.unwrap();
    assert_eq!(sql(&client, &format!("SELECT model_catalog.wait_for_fleet('{xid}')")).await.as_deref(), Some("1"));
    assert_eq!(server.field("a", "name").await, "arrived");
    let row = "SELECT concat_ws(' ', name, revision, usename, client_addr IS NULL) FROM model_catalog.fleet";
    let revision = server.get("/api/models/a").await.revision();
    assert_eq!(sql(&client, row).await, Some(format!("seen {revision} {reader} t")));
    for statement in ["SELECT * FROM model_catalog.state", "SELECT * FROM model_catalog.changes"] {
        assert_denied(&client, statement).await;
    }
}
