//! Faults between the server and its database, one per test. Readers run throughout: no request may fail, no pair of
//! models may be torn, no counter may go back. Soon after the fault is over, the catalog must equal the table again, model
//! by model, without a restart of the server.

use std::time::{Duration, Instant};

use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use tokio_postgres::Client;

use crate::support::consistency::{self, ConsistencyReaders, bump, difference, full_reads, in_sync};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{self, Db, NOTIFY_ONLY, Server, database, migrated, sql, until};

const PAIRS: usize = 5;
const FAILED: &str = "catalog_refreshes_total{kind=\"full\",outcome=\"error\"}";
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(1);
/// Allowance for connecting, reading and a busy machine, on top of the poll interval.
const SLACK: Duration = Duration::from_secs(10);
const SETTINGS: [(&str, &str); 2] = [("CATALOG_POLL_INTERVAL", "500ms"), ("CATALOG_DATABASE_TIMEOUT", "1s")];

/// A Postgres behind a proxy, a server that connects through it, and readers of the server.
struct Setup {
    postgres: EphemeralPostgres,
    proxy: Proxy,
    client: Client,
    server: Server,
    readers: ConsistencyReaders,
}

impl Setup {
    async fn new() -> Self {
        let postgres = support::start_postgres(&[]);
        let client = migrated(&postgres.url("postgres")).await;
        consistency::add_pairs(&client, PAIRS).await;
        let proxy = Proxy::before(&postgres).await;
        let server = Server::start_with(&proxy.url("postgres"), &SETTINGS).await;
        let readers = ConsistencyReaders::start(&server, PAIRS, false);
        Self { postgres, proxy, client, server, readers }
    }

    /// Makes a change, which must be served within `limit` because the fault is over.
    async fn assert_recovers(&self, limit: Duration) {
        sql(&self.client, &bump(0)).await;
        assert_in_sync(&self.server, &self.client, limit).await;
    }

    async fn finish(self) {
        self.readers.finish().await;
    }
}

/// The catalog must equal the table within `limit`.
async fn assert_in_sync(server: &Server, client: &Client, limit: Duration) {
    let start = Instant::now();
    in_sync(server, client).await;
    assert!(start.elapsed() < limit, "in sync after {:?}, the limit is {limit:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn postgres_restart_is_caught_up_with_by_a_delta() {
    let tmpfs = std::path::PathBuf::from("/dev/shm");
    let parent = tmpfs.is_dir().then_some(tmpfs);
    let settings = vec![("fsync".to_owned(), "off".to_owned())];
    let mut postgres = EphemeralPostgres::start(EphemeralOptions { parent, loopback: true, settings }).unwrap();
    let url = postgres.loopback_url("postgres");
    let mut client = migrated(&url).await;
    consistency::add_pairs(&client, PAIRS).await;
    let server = Server::start_with(&url, &SETTINGS).await;
    let readers = ConsistencyReaders::start(&server, PAIRS, false);
    for signal in ["QUIT", "KILL", "INT"] {
        sql(&client, &bump(1)).await;
        let unavailable = "the database is unavailable";
        let before = server.logged(unavailable);
        postgres.stop(signal).unwrap();
        server.until("the loss is logged", |s| async move { s.logged(unavailable) > before }).await;
        // The server stays ready while its attempts to connect fail.
        let before = readers.responses();
        until("readers continue", || async { readers.responses() > before + 100 }).await;
        assert_eq!(server.get("/readyz").await.status, 200);
        assert_eq!(server.metric("catalog_listener_connected").await, 0.0);
        postgres.resume().unwrap();
        client = model_catalog::postgres::session::connect(&database(&url)).await.unwrap();
        sql(&client, &bump(0)).await;
        assert_in_sync(&server, &client, POLL_INTERVAL + SLACK).await;
        server
            .until("the server listens again", |s| async { s.metric("catalog_listener_connected").await == 1.0 })
            .await;
    }
    assert_eq!(full_reads(&server, 1.0).await, 1.0, "a restart of Postgres caused a full read");
    readers.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_or_refused_connections_are_reopened() {
    let setup = Setup::new().await;
    for _ in 0..3 {
        setup.proxy.cut();
        setup.assert_recovers(POLL_INTERVAL + SLACK).await;
    }
    setup.proxy.set(Mode::Refuse).await;
    setup.proxy.cut();
    sql(&setup.client, &bump(1)).await;
    setup.server.until("connecting fails", |s| async move { s.logged("the database is unavailable") > 0 }).await;
    setup.proxy.set(Mode::Pass).await;
    setup.assert_recovers(POLL_INTERVAL + SLACK).await;
    assert_eq!(full_reads(&setup.server, 1.0).await, 1.0);
    setup.finish().await;
}

/// Changes many rows in one transaction, so that the response can be cut in the middle.
async fn rewrite_all(client: &Client) {
    sql(client, "UPDATE models SET description = (description::bigint + 1)::text").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_database_responses_are_discarded_and_retried() {
    let setup = Setup::new().await;
    let many = "INSERT INTO models (id, name, download_url, save_path, description) \
                SELECT 'm' || n, repeat('x', 100), 'https://example.org/' || n, 'a/' || n, '0' \
                FROM generate_series(1, 1500) n";
    sql(&setup.client, many).await;
    in_sync(&setup.server, &setup.client).await;
    // From the first row of a delta of 1,510 rows (about 400 kB) to its last few.
    for bytes in [1, 300, 20_000, 150_000, 300_000] {
        setup.proxy.cut_after(bytes);
        rewrite_all(&setup.client).await;
        until("the response was cut", || async { setup.proxy.has_cut() }).await;
        assert_in_sync(&setup.server, &setup.client, POLL_INTERVAL + SLACK).await;
    }
    // The first cuts can be in the notification, or in the response to a poll.
    let errors = setup.server.metric("catalog_refreshes_total{kind=\"delta\",outcome=\"error\"}").await;
    assert!(errors >= 3.0, "only {errors} deltas failed");
    // The same for a full read, which reload() triggers.
    let failed = async || setup.server.metric("catalog_refreshes_total{kind=\"full\",outcome=\"error\"}").await;
    for bytes in [20_000, 150_000] {
        let before = failed().await;
        sql(&setup.client, "BEGIN; LOCK models IN ACCESS EXCLUSIVE MODE; SELECT model_catalog.reload()").await;
        rewrite_all(&setup.client).await;
        setup.proxy.cut_after(bytes);
        sql(&setup.client, "COMMIT").await;
        until("the load was cut", || async { setup.proxy.has_cut() }).await;
        assert_in_sync(&setup.server, &setup.client, POLL_INTERVAL + SLACK).await;
        assert!(failed().await > before, "the full read did not fail");
    }
    setup.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_first_load_serves_nothing() {
    let postgres = support::start_postgres(&[]);
    let client = migrated(&postgres.url("postgres")).await;
    consistency::add_pairs(&client, 3_000).await;
    let proxy = Proxy::before(&postgres).await;
    proxy.cut_after(300_000);
    let server = Server::spawn(&proxy.url("postgres"), &SETTINGS).await;
    until("the load was cut", || async { proxy.has_cut() }).await;
    server
        .until("all models are served, and never a part of them", |s| async move {
            let ready = s.get("/readyz").await.json();
            assert!(ready["models"] == 0 || ready["models"] == 6_000, "{ready}");
            ready["models"] == 6_000
        })
        .await;
    assert!(server.metric("catalog_refreshes_total{kind=\"full\",outcome=\"error\"}").await >= 1.0);
    assert_eq!(difference(&server, &client).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connection_times_out_and_is_reopened() {
    let setup = Setup::new().await;
    setup.proxy.set(Mode::Swallow).await;
    sql(&setup.client, &bump(1)).await;
    let message = "the database sent nothing";
    setup.server.until("the timeout is logged", |s| async move { s.logged(message) > 0 }).await;
    // Connecting times out, too.
    let timed_out = |s: &Server| s.log().iter().any(|line| line.contains("did not respond"));
    setup.proxy.cut();
    until("a connect hangs", || async { setup.proxy.open() > 0 || timed_out(&setup.server) }).await;
    setup.proxy.set(Mode::Pass).await;
    // The pending connect has to time out first, which takes twice the timeout with one host.
    setup.assert_recovers(POLL_INTERVAL + 2 * TIMEOUT + SLACK).await;
    setup.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_backend_is_replaced() {
    let setup = Setup::new().await;
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    for _ in 0..3 {
        let before = setup.server.logged("in sync again");
        // On a busy machine the server may be about to reconnect after a timeout.
        until("a session is terminated", || async { sql(&setup.client, terminate).await.as_deref() != Some("0") })
            .await;
        setup.assert_recovers(POLL_INTERVAL + SLACK).await;
        setup.server.until("the server is in sync again", |s| async move { s.logged("in sync again") > before }).await;
    }
    assert_eq!(full_reads(&setup.server, 1.0).await, 1.0);
    setup.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn table_lock_times_out_and_is_retried() {
    for timeout in ["1s", "10s"] {
        let db = Db::new().await;
        consistency::add_pairs(&db.client, PAIRS).await;
        let settings = [("CATALOG_POLL_INTERVAL", "500ms"), ("CATALOG_DATABASE_TIMEOUT", timeout)];
        let server = Server::start_with(&db.url, &settings).await;
        let readers = ConsistencyReaders::start(&server, PAIRS, false);
        db.sql("BEGIN; LOCK models IN ACCESS EXCLUSIVE MODE").await;
        db.sql(&bump(0)).await;
        // The session's lock_timeout is 5 s; a shorter CATALOG_DATABASE_TIMEOUT expires first.
        let message = if timeout == "1s" { "the database sent nothing" } else { "due to lock timeout" };
        server.until("the statement times out", |s| async move { s.logged(message) > 0 }).await;
        assert_eq!(server.get("/api/models/pair-0-a").await.json()["description"], "0");
        db.sql("COMMIT").await;
        assert_in_sync(&server, &db.client, POLL_INTERVAL + SLACK).await;
        readers.finish().await;
    }
}

const VIEW: &str = "CREATE VIEW model_catalog.entries AS SELECT id, name, download_url, file_size_gb::numeric, hash, \
                    auth_required, auth_provider, save_path, dependencies, description FROM models";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_or_invalid_view_is_retried_until_restored() {
    let db = Db::new().await;
    consistency::add_pairs(&db.client, PAIRS).await;
    let server = Server::start_with(&db.url, &SETTINGS).await;
    let readers = ConsistencyReaders::start(&server, PAIRS, false);

    // The view is dropped for a while; `changes` holds the changes made meanwhile.
    db.sql("DROP VIEW model_catalog.entries").await;
    db.sql(&bump(0)).await;
    server
        .until("the fault is logged", |s| async move { s.logged("there is no view model_catalog.entries") > 0 })
        .await;
    db.sql("DELETE FROM models WHERE id = 'pair-4-b'; INSERT INTO models SELECT * FROM models WHERE false").await;
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path, description) \
            VALUES ('pair-4-b', 'again', 'https://example.org/x', 'a/b', '0')",
    )
    .await;
    db.sql(VIEW).await;
    assert_in_sync(&server, &db.client, POLL_INTERVAL + SLACK).await;
    assert_eq!(full_reads(&server, 2.0).await, 2.0, "a recreated view may be another one");

    // A column is dropped together with the view. Both return with other content.
    let unreadable = "the catalog can't be read";
    let broken = server.logged(unreadable);
    db.sql("ALTER TABLE models DROP COLUMN hash CASCADE").await;
    db.sql(&bump(1)).await;
    server.until("the fault is logged", |s| async move { s.logged(unreadable) > broken }).await;
    db.sql(&format!(
        "ALTER TABLE models ADD COLUMN hash text DEFAULT 'restored'; {VIEW}; SELECT model_catalog.reload()"
    ))
    .await;
    assert_in_sync(&server, &db.client, POLL_INTERVAL + SLACK).await;
    assert_eq!(server.get("/api/models/pair-1-a").await.json()["hash"], "restored");

    // A view that lacks columns: the error does not end the loader.
    db.sql("CREATE TABLE kept AS TABLE models; DROP VIEW model_catalog.entries").await;
    db.sql("CREATE VIEW model_catalog.entries AS SELECT id, name FROM models; SELECT model_catalog.reload()").await;
    let failed = server.metric(FAILED).await;
    server.until("the full read fails", |s| async move { s.metric(FAILED).await > failed }).await;
    db.sql(&format!("DROP VIEW model_catalog.entries; {VIEW}")).await;
    db.sql(&bump(2)).await;
    assert_in_sync(&server, &db.client, POLL_INTERVAL + SLACK).await;
    readers.finish().await;
}

#[tokio::test]
async fn reload_triggers_a_full_read() {
    let db = Db::new().await;
    consistency::add_pairs(&db.client, PAIRS).await;
    let server = Server::start_with(&db.url, NOTIFY_ONLY).await;
    // No trigger fires for a change of the view, and no heartbeat notices it.
    db.sql("DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT id, upper(name) AS name, download_url, \
            file_size_gb::numeric, hash, auth_required, auth_provider, save_path, dependencies, description FROM models")
        .await;
    assert!(difference(&server, &db.client).await.is_some());
    db.sql("SELECT model_catalog.reload()").await;
    assert_in_sync(&server, &db.client, POLL_INTERVAL + SLACK).await;
    assert_eq!(full_reads(&server, 2.0).await, 2.0);
    server.until_logged("the database has another history", 1).await;
}

/// Copies a database with pg_dump and psql.
fn dump_and_restore(from: (&EphemeralPostgres, &str), to: (&EphemeralPostgres, &str)) {
    let connection = |(server, name): (&EphemeralPostgres, &str)| server.url(name);
    let file = to.0.data_directory().join("dump.sql");
    let dump = from.0.program("pg_dump").arg("-d").arg(connection(from)).output().unwrap();
    assert!(dump.status.success(), "{dump:?}");
    std::fs::write(&file, dump.stdout).unwrap();
    std::os::unix::fs::chown(&file, Some(65534), None).ok();
    let restore = ["-v", "ON_ERROR_STOP=1", "-q", "-1", "-d", &connection(to), "-f"];
    let restored = to.0.program("psql").args(restore).arg(&file).output().unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn restored_dump_is_treated_as_another_history() {
    let setup = Setup::new().await;
    // Transaction ids that the new server has not reached; the dump contains them in `changes`.
    for pair in 0..PAIRS {
        sql(&setup.client, &bump(pair)).await;
    }
    in_sync(&setup.server, &setup.client).await;

    // Copy to another database of the same server, then from there to a new server that replaces it.
    sql(&setup.client, "CREATE DATABASE second").await;
    dump_and_restore((&setup.postgres, "postgres"), (&setup.postgres, "second"));
    let other = support::start_postgres(&[]);
    dump_and_restore((&setup.postgres, "second"), (&other, "postgres"));
    let client = connect(&other).await;
    sql(
        &client,
        "DELETE FROM models WHERE id = 'pair-0-a'; INSERT INTO models (id, name, download_url, save_path, \
                  description) VALUES ('pair-0-a', 'new', 'https://example.org/new', 'a/b', '1')",
    )
    .await;
    assert_eq!(full_reads(&setup.server, 1.0).await, 1.0);
    setup.proxy.point_to(&other);
    setup.proxy.cut();
    assert_in_sync(&setup.server, &client, POLL_INTERVAL + SLACK).await;
    assert_eq!(full_reads(&setup.server, 2.0).await, 2.0, "another history requires a full read");
    // The restored `changes` holds transaction ids that this server has yet to assign; changes are still served by deltas.
    for pair in 0..PAIRS {
        sql(&client, &bump(pair)).await;
        assert_in_sync(&setup.server, &client, POLL_INTERVAL + SLACK).await;
    }
    assert_eq!(full_reads(&setup.server, 2.0).await, 2.0);
    setup.finish().await;
}

async fn connect(server: &EphemeralPostgres) -> Client {
    model_catalog::postgres::session::connect(&database(&server.url("postgres"))).await.unwrap()
}
