//! Has it arrived? What `pg_stat_activity` shows of each replica, and waiting for all of them. Transaction ids are the
//! whole cluster's, so these have clusters of their own.

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use tokio_postgres::Client;
use tokio_postgres::error::DbError;

use crate::support::{self, NOTIFY_ONLY, Server, WAIT_LIMIT, migrated, sql, start_postgres};

/// A cluster with three models, and replicas that hear nothing but the bell.
struct Scene {
    postgres: EphemeralPostgres,
    client: Client,
    replicas: Vec<Server>,
}

impl Scene {
    async fn with(names: &[&str]) -> Self {
        let postgres = start_postgres(&[]);
        let client = migrated(&postgres.url("postgres")).await;
        let insert = "INSERT INTO models (id, name, download_url, save_path) \
                      SELECT id, 'first', 'https://example.org/x', 'x' FROM unnest('{a,b,c}'::text[]) id";
        sql(&client, insert).await;
        let mut scene = Self { postgres, client, replicas: Vec::new() };
        for name in names {
            scene.add(&[("CATALOG_REPLICA_NAME", name), NOTIFY_ONLY[0]]).await;
        }
        scene.all_in_step().await;
        scene
    }

    async fn add(&mut self, settings: &[(&str, &str)]) {
        self.replicas.push(Server::start_with(&self.postgres.url("postgres"), settings).await);
    }

    async fn another(&self) -> Client {
        support::connect(&self.postgres.url("postgres")).await
    }

    /// `name in_sync`, in the order of names.
    async fn fleet(&self) -> String {
        let all = "SELECT string_agg(concat(name, ' ', in_sync), ', ' ORDER BY name) FROM model_catalog.fleet";
        sql(&self.client, all).await.unwrap_or_default()
    }

    async fn one(&self, column: &str) -> String {
        sql(&self.client, &format!("SELECT {column} FROM model_catalog.fleet")).await.unwrap_or_default()
    }

    async fn all_in_step(&self) {
        let behind = "SELECT string_agg(name, ' ') FROM model_catalog.fleet WHERE in_sync IS NOT TRUE";
        support::until("all are in step", || async { sql(&self.client, behind).await.is_none() }).await;
    }

    /// Names a model; gives the transaction.
    async fn rename(&self, id: &str, name: &str) -> String {
        rename(&self.client, id, name).await
    }

    /// Waits for a transaction, in a statement of its own.
    async fn wait(&self, xid: &str, timeout: &str) -> Result<i64, DbError> {
        wait(&self.client, xid, timeout).await
    }
}

async fn rename(client: &Client, id: &str, name: &str) -> String {
    let update = format!("UPDATE models SET name = '{name}' WHERE id = '{id}' RETURNING pg_current_xact_id()");
    sql(client, &update).await.unwrap()
}

/// A transaction that has written something and stays open.
async fn open(client: &Client) -> String {
    sql(client, "BEGIN; SELECT pg_current_xact_id()").await.unwrap()
}

async fn wait(client: &Client, xid: &str, timeout: &str) -> Result<i64, DbError> {
    let wait = format!("SELECT model_catalog.wait_for_fleet('{xid}', '{timeout}')");
    let done = tokio::time::timeout(WAIT_LIMIT, client.query_one(&wait, &[])).await.expect("it waits on");
    done.map(|row| row.get(0)).map_err(|error| error.as_db_error().unwrap().clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_replica_is_named_and_waited_for() {
    let scene = Scene::with(&["one", "two", "three"]).await;
    assert_eq!(scene.fleet().await, "one t, three t, two t");
    let xid = scene.rename("a", "second").await;
    assert_eq!(scene.wait(&xid, "30s").await.unwrap(), 3);
    for server in &scene.replicas {
        assert_eq!(server.field("a", "name").await, "second", "it was said to be served");
        let shown = "SELECT count(*) FROM model_catalog.fleet WHERE in_sync AND revision = ";
        let revision = server.get("/api/models/a").await.revision();
        assert_eq!(sql(&scene.client, &format!("{shown}'{revision}'")).await.as_deref(), Some("3"));
    }

    let frozen = &scene.replicas[1];
    frozen.signal("STOP");
    let before = sql(&scene.client, "SELECT revision FROM model_catalog.fleet WHERE name = 'two'").await;
    let xid = scene.rename("a", "third").await;
    let late = scene.wait(&xid, "400ms").await.unwrap_err();
    assert_eq!(
        (late.code().code(), late.message()),
        ("55P03", &*format!("not every server serves transaction {xid} within 00:00:00.4"))
    );
    let detail = late.detail().unwrap();
    assert!(detail.contains("Behind: two (pid ") && !detail.contains("one") && !detail.contains("three"), "{detail}");
    assert_eq!(scene.fleet().await, "one t, three t, two f");
    let revisions = "SELECT string_agg(DISTINCT revision, ' ') FROM model_catalog.fleet WHERE name ";
    assert_eq!(sql(&scene.client, &format!("{revisions} = 'two'")).await, before);
    let new = scene.replicas[0].get("/api/models/a").await.revision();
    assert_eq!(sql(&scene.client, &format!("{revisions} <> 'two'")).await, Some(new));

    // What it waits for is in no hurry to happen, so the wait is surely under way when it does.
    let (waiter, waited) = (scene.another().await, xid.clone());
    let waiting = tokio::spawn(async move { wait(&waiter, &waited, "30s").await });
    let inside = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    support::until("it waits", || async { !scene.client.query(inside, &[]).await.unwrap().is_empty() }).await;
    frozen.signal("CONT");
    assert_eq!(waiting.await.unwrap().unwrap(), 3);
    assert_eq!(frozen.field("a", "name").await, "third");
    assert_eq!(scene.fleet().await, "one t, three t, two t");
}

#[tokio::test]
async fn a_forgotten_transaction_holds_nobody_up_and_is_not_taken_for_served() {
    let scene = Scene::with(&["one"]).await;
    let server = &scene.replicas[0];
    let (slow, forgotten) = (scene.another().await, scene.another().await);
    let forgotten_xid = open(&forgotten).await;
    let slow_xid = open(&slow).await;
    rename(&slow, "a", "slow").await;
    let quick = scene.rename("b", "quick").await;
    assert_eq!(scene.wait(&quick, "30s").await.unwrap(), 1);
    assert_eq!(server.field("b", "name").await, "quick");
    assert_eq!(scene.one("in_sync").await, "t");
    assert_eq!(scene.one("running_xids").await, format!("{{{slow_xid},{forgotten_xid}}}"));

    // A transaction that the server has read past, and that commits when it can't read: it is not served, although
    // its id is lower than ids that are.
    server.signal("STOP");
    sql(&slow, "COMMIT").await;
    assert_eq!(scene.one("in_sync").await, "f");
    assert!(scene.wait(&quick, "30s").await.is_ok());
    let late = scene.wait(&slow_xid, "300ms").await.unwrap_err();
    assert!(late.detail().unwrap().starts_with("Behind: one (pid "), "{late:?}");
    server.signal("CONT");
    assert_eq!(scene.wait(&slow_xid, "30s").await.unwrap(), 1);
    assert_eq!(server.field("a", "name").await, "slow");
    assert_eq!(scene.one("running_xids").await, format!("{{{forgotten_xid}}}"));
    scene.all_in_step().await;
}

#[tokio::test]
async fn more_writers_at_once_than_have_room_in_the_name() {
    let scene = Scene::with(&["sixteen-letters-"]).await;
    let server = &scene.replicas[0];
    let mut writers = Vec::new();
    for _ in 0..40 {
        let client = scene.another().await;
        let xid = open(&client).await;
        writers.push((client, xid));
    }
    for (client, id) in [(&writers[0].0, "a"), (&writers[20].0, "b")] {
        rename(client, id, "by one of many").await;
    }
    let young = scene.rename("c", "young").await;
    assert_eq!(scene.wait(&young, "30s").await.unwrap(), 1, "it is younger than all that run");
    let named: usize = scene.one("cardinality(running_xids)").await.parse().unwrap();
    let older: usize = scene.one("older_running").await.parse().unwrap();
    assert!(named > 0 && older > 20 && named + older == 40, "{named} named, {older} older");

    // One that was not named, committed unread and read.
    for (writer, id) in [(0, "a"), (20, "b")] {
        let (client, xid) = &writers[writer];
        server.signal("STOP");
        sql(client, "COMMIT").await;
        assert!(scene.wait(xid, "200ms").await.is_err(), "{id}");
        assert_eq!(scene.one("in_sync").await, "f");
        server.signal("CONT");
        assert_eq!(scene.wait(xid, "30s").await.unwrap(), 1);
        assert_eq!(server.field(id, "name").await, "by one of many");
        assert_eq!(scene.one("in_sync").await, "t");
    }
}

#[tokio::test]
async fn what_can_not_be_waited_for_is_said_at_once() {
    let mut scene = Scene::with(&[]).await;
    let committed = scene.rename("a", "committed").await;
    // Nobody is there.
    assert_eq!(scene.wait(&committed, "30s").await.unwrap(), 0);

    scene.add(NOTIFY_ONLY).await;
    let other = scene.another().await;
    let own = open(&other).await;
    rename(&other, "b", "own").await;
    for client in [&scene.client, &other] {
        let refused = wait(client, &own, "30s").await.unwrap_err();
        assert_eq!(refused.message(), format!("transaction {own} is still in progress"));
        assert!(refused.hint().unwrap().contains("COMMIT the transaction first"), "{refused:?}");
    }
    sql(&other, "ROLLBACK").await;
    let refused = scene.wait(&own, "30s").await.unwrap_err();
    assert_eq!(refused.message(), format!("transaction {own} was rolled back"));
    assert!(refused.hint().unwrap().contains("No server will serve"), "{refused:?}");

    sql(&other, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT id FROM models").await;
    let later = scene.rename("a", "later").await;
    let refused = wait(&other, &later, "30s").await.unwrap_err();
    let expected = "was committed after the snapshot of the current transaction was taken";
    assert_eq!(refused.message(), format!("transaction {later} {expected}"));
    sql(&other, "ROLLBACK").await;

    assert!(scene.wait("999999999", "30s").await.unwrap_err().message().contains("is in the future"));
    for arguments in ["NULL", "'3', NULL"] {
        let wait = format!("SELECT model_catalog.wait_for_fleet({arguments})");
        let refused = scene.client.query_one(&wait, &[]).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "22004");
        assert!(refused.as_db_error().unwrap().message().contains("must not be null"), "{refused:?}");
    }
    // In a transaction that is open for something else, and by default for half a minute.
    let wait = format!("BEGIN; SELECT pid FROM pg_stat_activity; SELECT model_catalog.wait_for_fleet('{later}')");
    assert_eq!(sql(&other, &wait).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_reload_is_waited_for_and_a_heartbeat_moves_the_mark() {
    let mut scene = Scene::with(&["listens"]).await;
    let reloaded = "BEGIN; SELECT model_catalog.reload(); SELECT pg_current_xact_id()";
    let xid = sql(&scene.client, reloaded).await.unwrap();
    sql(&scene.client, "COMMIT").await;
    assert_eq!(scene.wait(&xid, "30s").await.unwrap(), 1);
    scene.replicas[0].signal("STOP");
    let xid = sql(&scene.client, reloaded).await.unwrap();
    sql(&scene.client, "COMMIT").await;
    assert_eq!(scene.fleet().await, "listens f");
    assert!(scene.wait(&xid, "200ms").await.is_err());
    scene.replicas[0].signal("CONT");
    assert_eq!(scene.wait(&xid, "30s").await.unwrap(), 1);
    assert_eq!(scene.fleet().await, "listens t");

    // What concerns no model rings no bell; who looks without one comes past it.
    scene.replicas.clear();
    scene.add(&[("CATALOG_REPLICA_NAME", "looks"), ("CATALOG_POLL_INTERVAL", "100ms")]).await;
    support::until("the other is gone", || async { scene.fleet().await == "looks t" }).await;
    let xid = sql(&scene.client, "CREATE TABLE other (); SELECT pg_current_xact_id()").await.unwrap();
    let revision = scene.one("revision").await;
    assert_eq!(scene.wait(&xid, "30s").await.unwrap(), 1);
    assert_eq!(scene.one("revision").await, revision);
}

#[tokio::test]
async fn names_are_the_setting_or_the_addresses_or_the_hosts() {
    let mut scene = Scene::with(&["it's-\\me"]).await;
    scene.add(NOTIFY_ONLY).await;
    let url = format!("{} application_name='night shift'", scene.postgres.url("postgres"));
    scene.replicas.push(Server::start_with(&url, NOTIFY_ONLY).await);
    scene.all_in_step().await;
    let port = scene.replicas[1].address.rsplit_once(':').unwrap().1.to_owned();
    let names = scene.fleet().await;
    for part in ["it's-\\me t".to_owned(), format!(":{port} t"), "night-shift t".to_owned()] {
        assert!(names.contains(&part), "no {part} in {names}");
    }

    // Other sessions of the program are no replicas, and no session can break the view by what it calls itself.
    let rude = scene.another().await;
    for name in [
        "model-catalog",
        "model-catalog x 0123456789abcdef 99999999999999999999",
        "model-catalog x 0123456789abcdef 1--2",
        "model-catalog x y 0123456789abcdef 1",
    ] {
        sql(&rude, &format!("SET application_name = '{name}'")).await;
        assert_eq!(scene.fleet().await, names, "{name}");
    }
    sql(&rude, "SET application_name = 'model-catalog x 0123456789abcdef 5-999999999999999999+999999999'").await;
    assert!(scene.fleet().await.ends_with(", x f"), "{}", scene.fleet().await);
}
