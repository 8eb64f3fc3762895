//! `model_catalog.fleet` and `wait_for_fleet`: which replicas serve which transactions. Transaction ids belong to the whole
//! cluster, so each test has a cluster of its own.

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use serde_json::json;
use tokio_postgres::Client;
use tokio_postgres::error::DbError;

use crate::support::{self, NOTIFY_ONLY, Server, WAIT_LIMIT, migrated, sql, start_postgres};

/// A cluster with three models, and replicas that follow by notifications only.
struct Fleet {
    postgres: EphemeralPostgres,
    client: Client,
    replicas: Vec<Server>,
}

impl Fleet {
    async fn with(names: &[&str]) -> Self {
        let postgres = start_postgres(&[]);
        let client = migrated(&postgres.url("postgres")).await;
        let insert = "INSERT INTO models (id, name, download_url, save_path) \
                      SELECT id, 'first', 'https://example.org/x', 'x' FROM unnest('{a,b,c}'::text[]) id";
        sql(&client, insert).await;
        let mut fleet = Self { postgres, client, replicas: Vec::new() };
        for name in names {
            fleet.add(&[("CATALOG_REPLICA_NAME", name), NOTIFY_ONLY[0]]).await;
        }
        fleet.wait_in_sync().await;
        fleet
    }

    async fn add(&mut self, settings: &[(&str, &str)]) {
        self.replicas.push(Server::start_with(&self.postgres.url("postgres"), settings).await);
    }

    async fn connect(&self) -> Client {
        support::connect(&self.postgres.url("postgres")).await
    }

    /// `name in_step`, in the order of names.
    async fn in_step(&self) -> String {
        let all = "SELECT string_agg(concat(name, ' ', in_step), ', ' ORDER BY name) FROM model_catalog.fleet";
        sql(&self.client, all).await.unwrap_or_default()
    }

    /// A column of the only replica.
    async fn column(&self, column: &str) -> String {
        sql(&self.client, &format!("SELECT {column} FROM model_catalog.fleet")).await.unwrap_or_default()
    }

    async fn wait_in_sync(&self) {
        let behind = "SELECT string_agg(name, ' ') FROM model_catalog.fleet WHERE in_step IS NOT TRUE";
        support::until("all replicas are in sync", || async { sql(&self.client, behind).await.is_none() }).await;
    }

    /// Renames a model and returns the transaction id.
    async fn rename(&self, id: &str, name: &str) -> String {
        rename(&self.client, id, name).await
    }

    /// Runs `wait_for_fleet` in a statement of its own.
    async fn wait(&self, xid: &str, timeout: &str) -> Result<i64, DbError> {
        wait(&self.client, xid, timeout).await
    }
}

async fn rename(client: &Client, id: &str, name: &str) -> String {
    let update = format!("UPDATE models SET name = '{name}' WHERE id = '{id}' RETURNING pg_current_xact_id()");
    sql(client, &update).await.unwrap()
}

/// Opens a transaction and returns its id.
async fn begin(client: &Client) -> String {
    sql(client, "BEGIN; SELECT pg_current_xact_id()").await.unwrap()
}

async fn wait(client: &Client, xid: &str, timeout: &str) -> Result<i64, DbError> {
    let wait = format!("SELECT model_catalog.wait_for_fleet('{xid}', '{timeout}')");
    let result = tokio::time::timeout(WAIT_LIMIT, client.query_one(&wait, &[]))
        .await
        .expect("wait_for_fleet ignores its timeout");
    result.map(|row| row.get(0)).map_err(|error| error.as_db_error().unwrap().clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_for_fleet_names_and_awaits_a_stopped_replica() {
    let fleet = Fleet::with(&["one", "two", "three"]).await;
    assert_eq!(fleet.in_step().await, "one t, three t, two t");
    let xid = fleet.rename("a", "second").await;
    assert_eq!(fleet.wait(&xid, "30s").await.unwrap(), 3);
    for server in &fleet.replicas {
        assert_eq!(server.field("a", "name").await, "second", "wait_for_fleet returned before it was served");
        let reported = "SELECT count(*) FROM model_catalog.fleet WHERE in_step AND revision = ";
        let revision = server.get("/api/models/a").await.revision();
        assert_eq!(sql(&fleet.client, &format!("{reported}'{revision}'")).await.as_deref(), Some("3"));
    }

    let stopped = &fleet.replicas[1];
    stopped.signal("STOP");
    let before = sql(&fleet.client, "SELECT revision FROM model_catalog.fleet WHERE name = 'two'").await;
    let xid = fleet.rename("a", "third").await;
    support::until("the others have read it", || async { fleet.in_step().await == "one t, three t, two f" }).await;
    let timed_out = fleet.wait(&xid, "400ms").await.unwrap_err();
    assert_eq!(
        (timed_out.code().code(), timed_out.message()),
        ("55P03", &*format!("not every server serves transaction {xid} within 00:00:00.4"))
    );
    let detail = timed_out.detail().unwrap();
    assert!(detail.contains("Behind: two (pid ") && !detail.contains("one") && !detail.contains("three"), "{detail}");
    assert_eq!(fleet.in_step().await, "one t, three t, two f");
    let revisions = "SELECT string_agg(DISTINCT revision, ' ') FROM model_catalog.fleet WHERE name ";
    assert_eq!(sql(&fleet.client, &format!("{revisions} = 'two'")).await, before);
    let new = fleet.replicas[0].get("/api/models/a").await.revision();
    assert_eq!(sql(&fleet.client, &format!("{revisions} <> 'two'")).await, Some(new));

    // The replica stays stopped until the wait is under way.
    let (waiter, waited) = (fleet.connect().await, xid.clone());
    let waiting = tokio::spawn(async move { wait(&waiter, &waited, "30s").await });
    let sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    support::until("wait_for_fleet sleeps", || async { !fleet.client.query(sleeping, &[]).await.unwrap().is_empty() })
        .await;
    stopped.signal("CONT");
    assert_eq!(waiting.await.unwrap().unwrap(), 3);
    assert_eq!(stopped.field("a", "name").await, "third");
    assert_eq!(fleet.in_step().await, "one t, three t, two t");
}

#[tokio::test]
async fn idle_transaction_neither_blocks_wait_for_fleet_nor_counts_as_served() {
    let fleet = Fleet::with(&["one"]).await;
    let server = &fleet.replicas[0];
    let (slow, idle) = (fleet.connect().await, fleet.connect().await);
    let idle_xid = begin(&idle).await;
    let slow_xid = begin(&slow).await;
    rename(&slow, "a", "slow").await;
    let quick = fleet.rename("b", "quick").await;
    assert_eq!(fleet.wait(&quick, "30s").await.unwrap(), 1);
    assert_eq!(server.field("b", "name").await, "quick");
    assert_eq!(fleet.column("in_step").await, "t");
    assert_eq!(fleet.column("running_xids").await, format!("{{{slow_xid},{idle_xid}}}"));

    // A transaction that was running at the server's position and commits while the server is stopped: it is not
    // served, although its id is lower than ids that are.
    server.signal("STOP");
    sql(&slow, "COMMIT").await;
    assert_eq!(fleet.column("in_step").await, "f");
    assert!(fleet.wait(&quick, "30s").await.is_ok());
    let timed_out = fleet.wait(&slow_xid, "300ms").await.unwrap_err();
    assert!(timed_out.detail().unwrap().starts_with("Behind: one (pid "), "{timed_out:?}");
    server.signal("CONT");
    assert_eq!(fleet.wait(&slow_xid, "30s").await.unwrap(), 1);
    assert_eq!(server.field("a", "name").await, "slow");
    assert_eq!(fleet.column("running_xids").await, format!("{{{idle_xid}}}"));
    fleet.wait_in_sync().await;
}

#[tokio::test]
async fn wait_for_fleet_is_exact_beyond_the_xids_that_fit_in_application_name() {
    let fleet = Fleet::with(&["sixteen-letters-"]).await;
    let server = &fleet.replicas[0];
    let mut writers = Vec::new();
    for _ in 0..40 {
        let client = fleet.connect().await;
        let xid = begin(&client).await;
        writers.push((client, xid));
    }
    for (client, id) in [(&writers[0].0, "a"), (&writers[20].0, "b")] {
        rename(client, id, "by one of many").await;
    }
    let last = fleet.rename("c", "last").await;
    assert_eq!(
        fleet.wait(&last, "30s").await.unwrap(),
        1,
        "a transaction above all running ones is not counted as served"
    );
    let named: usize = fleet.column("cardinality(running_xids)").await.parse().unwrap();
    let older: usize = fleet.column("older_running").await.parse().unwrap();
    assert!(named > 0 && older > 20 && named + older == 40, "{named} named, {older} older");

    // One that is listed in the name and one that is only counted there, before and after the server reads them.
    for (writer, id) in [(0, "a"), (20, "b")] {
        let (client, xid) = &writers[writer];
        server.signal("STOP");
        sql(client, "COMMIT").await;
        assert!(fleet.wait(xid, "200ms").await.is_err(), "{id}");
        assert_eq!(fleet.column("in_step").await, "f");
        server.signal("CONT");
        assert_eq!(fleet.wait(xid, "30s").await.unwrap(), 1);
        assert_eq!(server.field(id, "name").await, "by one of many");
        assert_eq!(fleet.column("in_step").await, "t");
    }
}

#[tokio::test]
async fn wait_for_fleet_rejects_transactions_that_cannot_be_awaited() {
    let mut fleet = Fleet::with(&[]).await;
    let committed = fleet.rename("a", "committed").await;
    // No replica is connected.
    assert_eq!(fleet.wait(&committed, "30s").await.unwrap(), 0);

    fleet.add(NOTIFY_ONLY).await;
    let other = fleet.connect().await;
    let own = begin(&other).await;
    rename(&other, "b", "own").await;
    for client in [&fleet.client, &other] {
        let error = wait(client, &own, "30s").await.unwrap_err();
        assert_eq!(error.message(), format!("transaction {own} is still in progress"));
        assert!(error.hint().unwrap().contains("COMMIT the transaction first"), "{error:?}");
    }
    sql(&other, "ROLLBACK").await;
    let error = fleet.wait(&own, "30s").await.unwrap_err();
    assert_eq!(error.message(), format!("transaction {own} was rolled back"));
    assert!(error.hint().unwrap().contains("No server will serve"), "{error:?}");

    sql(&other, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT id FROM models").await;
    let later = fleet.rename("a", "later").await;
    let error = wait(&other, &later, "30s").await.unwrap_err();
    let expected = "was committed after the snapshot of the current transaction was taken";
    assert_eq!(error.message(), format!("transaction {later} {expected}"));
    sql(&other, "ROLLBACK").await;

    assert!(fleet.wait("999999999", "30s").await.unwrap_err().message().contains("is in the future"));
    for arguments in ["NULL", "'3', NULL"] {
        let wait = format!("SELECT model_catalog.wait_for_fleet({arguments})");
        let error = fleet.client.query_one(&wait, &[]).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "22004");
        assert!(error.as_db_error().unwrap().message().contains("must not be null"), "{error:?}");
    }
    // Within a transaction that has a snapshot already, and with the default timeout.
    let wait = format!("BEGIN; SELECT pid FROM pg_stat_activity; SELECT model_catalog.wait_for_fleet('{later}')");
    assert_eq!(sql(&other, &wait).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn wait_for_fleet_covers_reloads_and_changes_without_notification() {
    let mut fleet = Fleet::with(&["notified"]).await;
    let reloaded = "BEGIN; SELECT model_catalog.reload(); SELECT pg_current_xact_id()";
    let xid = sql(&fleet.client, reloaded).await.unwrap();
    sql(&fleet.client, "COMMIT").await;
    assert_eq!(fleet.wait(&xid, "30s").await.unwrap(), 1);
    fleet.replicas[0].signal("STOP");
    let xid = sql(&fleet.client, reloaded).await.unwrap();
    sql(&fleet.client, "COMMIT").await;
    assert_eq!(fleet.in_step().await, "notified f");
    assert!(fleet.wait(&xid, "200ms").await.is_err());
    fleet.replicas[0].signal("CONT");
    assert_eq!(fleet.wait(&xid, "30s").await.unwrap(), 1);
    assert_eq!(fleet.in_step().await, "notified t");

    // A transaction that touches no model sends no notification; a poll moves the position beyond it.
    fleet.replicas.clear();
    fleet.add(&[("CATALOG_REPLICA_NAME", "polling"), ("CATALOG_POLL_INTERVAL", "100ms")]).await;
    support::until("only the polling replica is left", || async { fleet.in_step().await == "polling t" }).await;
    let xid = sql(&fleet.client, "CREATE TABLE other (); SELECT pg_current_xact_id()").await.unwrap();
    let revision = fleet.column("revision").await;
    assert_eq!(fleet.wait(&xid, "30s").await.unwrap(), 1);
    assert_eq!(fleet.column("revision").await, revision);
}

#[tokio::test]
async fn replica_name_comes_from_setting_url_or_address() {
    let mut fleet = Fleet::with(&["it's-\\me"]).await;
    fleet.add(NOTIFY_ONLY).await;
    let url = format!("{} application_name='night shift'", fleet.postgres.url("postgres"));
    fleet.replicas.push(Server::start_with(&url, NOTIFY_ONLY).await);
    fleet.wait_in_sync().await;
    let port = fleet.replicas[1].address.rsplit_once(':').unwrap().1.to_owned();
    let names = fleet.in_step().await;
    for part in ["it's-\\me t".to_owned(), format!(":{port} t"), "night-shift t".to_owned()] {
        assert!(names.contains(&part), "no {part} in {names}");
    }

    // Other sessions of the program are not listed as replicas, and no application_name can break the view.
    let hostile = fleet.connect().await;
    for name in [
        "model-catalog",
        "model-catalog x 0123456789abcdef 99999999999999999999",
        "model-catalog x 0123456789abcdef 1--2",
        "model-catalog x y 0123456789abcdef 1",
    ] {
        sql(&hostile, &format!("SET application_name = '{name}'")).await;
        assert_eq!(fleet.in_step().await, names, "{name}");
    }
    sql(&hostile, "SET application_name = 'model-catalog x 0123456789abcdef 5-999999999999999999+999999999'").await;
    assert!(fleet.in_step().await.ends_with(", x f"), "{}", fleet.in_step().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catalog_endpoint_lists_the_fleet_while_somebody_asks_for_it() {
    let mut fleet = Fleet::with(&["one", "two"]).await;
    let poll = ("CATALOG_POLL_INTERVAL", "50ms");
    fleet.add(&[("CATALOG_REPLICA_NAME", "asked"), poll]).await;
    let limited = "CREATE ROLE limited LOGIN; GRANT USAGE ON SCHEMA model_catalog TO limited;
                   GRANT SELECT ON model_catalog.entries, model_catalog.changes, model_catalog.history TO limited";
    sql(&fleet.client, limited).await;
    let url = fleet.postgres.url("postgres").replace("user=postgres", "user=limited");
    let limited = Server::start_with(&url, &[("CATALOG_REPLICA_NAME", "limited"), poll]).await;
    fleet.wait_in_sync().await;
    let asked = &fleet.replicas[2];
    let catalog = async |server: &Server| server.get("/api/catalog").await.json();
    let revision = catalog(asked).await["revision"].clone();
    let all = ["asked", "limited", "one", "two"];
    let expected: Vec<_> = all.map(|name| json!({"name": name, "revision": revision, "in_sync": true})).into();
    asked.until("it lists the fleet", |s| async move { catalog(s).await["fleet"].is_array() }).await;
    let listed = catalog(asked).await;
    assert_eq!((&listed["replicas"], &listed["fleet"]), (&json!(4), &json!(expected)));

    // One that is behind comes first.
    fleet.replicas[1].signal("STOP");
    fleet.rename("a", "second").await;
    asked.until_named("a", "second").await;
    asked.until("two is behind", |s| async move { catalog(s).await["fleet"][0]["in_sync"] == json!(false) }).await;
    let behind = catalog(asked).await["fleet"][0].clone();
    assert_eq!(behind, json!({"name": "two", "revision": revision, "in_sync": false}));
    fleet.replicas[1].signal("CONT");

    // A role without the right follows the database and lists none. Nobody asked the others.
    limited.until_named("a", "second").await;
    catalog(&limited).await;
    limited.until_logged("the fleet can't be read, /api/catalog does not list it", 1).await;
    let without = catalog(&limited).await;
    assert!(without["fleet"].is_null() && without["replicas"].is_null(), "{without}");
    assert_eq!(fleet.replicas[0].logged("the fleet"), 0);

    // Without a connection it is unknown.
    fleet.postgres.stop("INT").unwrap();
    asked.until("it lists no fleet", |s| async move { catalog(s).await["fleet"].is_null() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catalog_endpoint_lists_at_most_a_hundred_servers() {
    let postgres = start_postgres(&[("max_connections", "150")]);
    let client = migrated(&postgres.url("postgres")).await;
    let mut others = Vec::new();
    for number in 0..105 {
        let other = support::connect(&postgres.url("postgres")).await;
        sql(&other, &format!("SET application_name = 'model-catalog starting-{number:03}'")).await;
        others.push(other);
    }
    let server = Server::start_with(&postgres.url("postgres"), &[("CATALOG_POLL_INTERVAL", "50ms")]).await;
    let catalog = async |server: &Server| server.get("/api/catalog").await.json();
    server.until("it lists the fleet", |s| async move { catalog(s).await["fleet"].is_array() }).await;
    let listed = catalog(&server).await;
    let fleet = listed["fleet"].as_array().unwrap();
    assert_eq!((&listed["replicas"], fleet.len()), (&json!(106), 100));
    assert_eq!(fleet[99], json!({"name": "starting-099", "revision": null, "in_sync": false}));
    drop(client);
}
