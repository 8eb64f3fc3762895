//! Everything that breaks between the program and its database, one fault a test. Readers watch throughout: no
//! request may fail, no pair of models be torn, no counter go back; and soon after the fault is over the catalog is the
//! table again, model by model, without a restart of ours.

use std::time::{Duration, Instant};

use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use tokio_postgres::Client;

use crate::support::proxy::{Mode, Proxy};
use crate::support::witness::{self, Witness, bump, difference, fulls, in_step};
use crate::support::{self, Db, Server, database, migrated, sql, until};

const PAIRS: usize = 5;
const HEARTBEAT: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(1);
/// For the connect, the reads and a busy machine, on top of the heartbeat.
const SLACK: Duration = Duration::from_secs(10);
const SETTINGS: [(&str, &str); 2] = [("CATALOG_POLL_INTERVAL", "500ms"), ("CATALOG_DATABASE_TIMEOUT", "1s")];

/// A Postgres of its own behind a proxy, the program, and who watches it.
struct Scene {
    postgres: EphemeralPostgres,
    proxy: Proxy,
    client: Client,
    server: Server,
    witness: Witness,
}

impl Scene {
    async fn new() -> Self {
        let postgres = support::private(&[]);
        let client = migrated(&postgres.url("postgres")).await;
        witness::add_pairs(&client, PAIRS).await;
        let proxy = Proxy::before(&postgres).await;
        let server = Server::start_with(&proxy.url("postgres"), &SETTINGS).await;
        let witness = Witness::start(&server, PAIRS, false);
        Self { postgres, proxy, client, server, witness }
    }

    /// A change that has to arrive: the fault is over.
    async fn recovers(&self, limit: Duration) {
        sql(&self.client, &bump(0)).await;
        arrives(&self.server, &self.client, limit).await;
    }

    async fn finish(self) {
        self.witness.finish().await;
    }
}

async fn arrives(server: &Server, client: &Client, limit: Duration) {
    let returned = Instant::now();
    in_step(server, client).await;
    assert!(returned.elapsed() < limit, "in step after {:?}, the limit is {limit:?}", returned.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn postgres_stops_and_comes_back_on_the_same_port() {
    let tmpfs = std::path::PathBuf::from("/dev/shm");
    let parent = tmpfs.is_dir().then_some(tmpfs);
    let settings = vec![("fsync".to_owned(), "off".to_owned())];
    let mut postgres = EphemeralPostgres::start(EphemeralOptions { parent, loopback: true, settings }).unwrap();
    let url = postgres.loopback_url("postgres");
    let mut client = migrated(&url).await;
    witness::add_pairs(&client, PAIRS).await;
    let server = Server::start_with(&url, &SETTINGS).await;
    let witness = Witness::start(&server, PAIRS, false);
    for (times, signal) in ["QUIT", "KILL", "INT"].into_iter().enumerate() {
        sql(&client, &bump(1)).await;
        postgres.stop(signal).unwrap();
        let away = "the database is unavailable";
        server.until("it is noticed", |s| async move { s.logged(away) > times }).await;
        // A few attempts that fail, and the catalog stays ready.
        let watched = witness.answers();
        until("readers go on", || async { witness.answers() > watched + 100 }).await;
        assert_eq!(server.get("/readyz").await.status, 200);
        assert_eq!(server.metric("catalog_listener_connected").await, 0.0);
        postgres.resume().unwrap();
        client = model_catalog::postgres::session::connect(&database(&url)).await.unwrap();
        sql(&client, &bump(0)).await;
        arrives(&server, &client, HEARTBEAT + SLACK).await;
        server.until("it listens again", |s| async { s.metric("catalog_listener_connected").await == 1.0 }).await;
    }
    assert_eq!(fulls(&server, 1.0).await, 1.0, "a restart is caught up with by a delta");
    witness.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_cut_or_refused() {
    let scene = Scene::new().await;
    for _ in 0..3 {
        scene.proxy.cut();
        scene.recovers(HEARTBEAT + SLACK).await;
    }
    scene.proxy.set(Mode::Refuse).await;
    scene.proxy.cut();
    sql(&scene.client, &bump(1)).await;
    scene.server.until("it tries in vain", |s| async move { s.logged("the database is unavailable") > 0 }).await;
    scene.proxy.set(Mode::Pass).await;
    scene.recovers(HEARTBEAT + SLACK).await;
    assert_eq!(fulls(&scene.server, 1.0).await, 1.0);
    scene.finish().await;
}

/// Many rows in one transaction, so that an answer can be cut in its middle.
async fn rewrite_all(client: &Client) {
    sql(client, "UPDATE models SET description = (description::bigint + 1)::text").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_breaks_off_in_its_middle() {
    let scene = Scene::new().await;
    let many = "INSERT INTO models (id, name, download_url, save_path, description) \
                SELECT 'm' || n, repeat('x', 100), 'https://example.org/' || n, 'a/' || n, '0' \
                FROM generate_series(1, 1500) n";
    sql(&scene.client, many).await;
    in_step(&scene.server, &scene.client).await;
    // From the first row of a delta of 1,510 rows (about 400 kB) to its last few.
    for bytes in [1, 300, 20_000, 150_000, 300_000] {
        scene.proxy.cut_after(bytes);
        rewrite_all(&scene.client).await;
        until("the answer was cut", || async { scene.proxy.has_cut() }).await;
        arrives(&scene.server, &scene.client, HEARTBEAT + SLACK).await;
    }
    let errors = scene.server.metric("catalog_refreshes_total{kind=\"delta\",outcome=\"error\"}").await;
    assert!(errors >= 4.0, "{errors} deltas broke off");
    // The same for the full load that a new epoch asks for.
    for (times, bytes) in [20_000, 150_000].into_iter().enumerate() {
        sql(&scene.client, "BEGIN; LOCK models IN ACCESS EXCLUSIVE MODE; SELECT model_catalog.reload()").await;
        rewrite_all(&scene.client).await;
        scene.proxy.cut_after(bytes);
        sql(&scene.client, "COMMIT").await;
        until("the load was cut", || async { scene.proxy.has_cut() }).await;
        arrives(&scene.server, &scene.client, HEARTBEAT + SLACK).await;
        let errors = scene.server.metric("catalog_refreshes_total{kind=\"full\",outcome=\"error\"}").await;
        assert_eq!(errors, times as f64 + 1.0);
    }
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_load_that_breaks_off_serves_nothing_of_it() {
    let postgres = support::private(&[]);
    let client = migrated(&postgres.url("postgres")).await;
    witness::add_pairs(&client, 3_000).await;
    let proxy = Proxy::before(&postgres).await;
    proxy.cut_after(300_000);
    let server = Server::spawn(&proxy.url("postgres"), &SETTINGS).await;
    until("the load was cut", || async { proxy.has_cut() }).await;
    server
        .until("all or nothing is served", |s| async move {
            let ready = s.get("/readyz").await.json();
            assert!(ready["models"] == 0 || ready["models"] == 6_000, "{ready}");
            ready["models"] == 6_000
        })
        .await;
    assert_eq!(server.metric("catalog_refreshes_total{kind=\"full\",outcome=\"error\"}").await, 1.0);
    assert_eq!(difference(&server, &client).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_goes_silent_without_an_end() {
    let scene = Scene::new().await;
    scene.proxy.set(Mode::Swallow).await;
    sql(&scene.client, &bump(1)).await;
    let silent = "the database sent nothing";
    scene.server.until("the silence is noticed", |s| async move { s.logged(silent) > 0 }).await;
    // Connects that nobody answers, too.
    let unanswered = |s: &Server| s.log().iter().any(|line| line.contains("did not respond"));
    scene.proxy.cut();
    until("a connect hangs", || async { scene.proxy.open() > 0 || unanswered(&scene.server) }).await;
    scene.proxy.set(Mode::Pass).await;
    // The connect that hangs has to run into its limit first: twice the timeout with one host.
    scene.recovers(HEARTBEAT + 2 * TIMEOUT + SLACK).await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_listening_backend_is_terminated() {
    let scene = Scene::new().await;
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    for times in 1..4 {
        assert_eq!(sql(&scene.client, terminate).await.as_deref(), Some("1"));
        scene.recovers(HEARTBEAT + SLACK).await;
        scene.server.until("it is back", |s| async move { s.logged("in sync again") == times }).await;
    }
    assert_eq!(fulls(&scene.server, 1.0).await, 1.0);
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_the_table_outlasts_every_patience() {
    for timeout in ["1s", "10s"] {
        let db = Db::new().await;
        witness::add_pairs(&db.client, PAIRS).await;
        let settings = [("CATALOG_POLL_INTERVAL", "500ms"), ("CATALOG_DATABASE_TIMEOUT", timeout)];
        let server = Server::start_with(&db.url, &settings).await;
        let witness = Witness::start(&server, PAIRS, false);
        db.sql("BEGIN; LOCK models IN ACCESS EXCLUSIVE MODE").await;
        db.sql(&bump(0)).await;
        // The session's own lock_timeout is 5 s; a shorter limit of ours comes first.
        let said = if timeout == "1s" { "the database sent nothing" } else { "due to lock timeout" };
        server.until("the wait is given up", |s| async move { s.logged(said) > 0 }).await;
        assert_eq!(server.get("/api/models/pair-0-a").await.json()["description"], "0");
        db.sql("COMMIT").await;
        arrives(&server, &db.client, HEARTBEAT + SLACK).await;
        witness.finish().await;
    }
}

const VIEW: &str = "CREATE VIEW model_catalog.entries AS SELECT id, name, download_url, file_size_gb::numeric, hash, \
                    auth_required, auth_provider, save_path, dependencies, description FROM models";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_view_is_broken_and_mended() {
    let db = Db::new().await;
    witness::add_pairs(&db.client, PAIRS).await;
    let server = Server::start_with(&db.url, &SETTINGS).await;
    let witness = Witness::start(&server, PAIRS, false);

    // The view is away for a while: the changes of that time are in the log.
    db.sql("DROP VIEW model_catalog.entries").await;
    db.sql(&bump(0)).await;
    server.until("it is said", |s| async move { s.logged("there is no view model_catalog.entries") > 0 }).await;
    db.sql("DELETE FROM models WHERE id = 'pair-4-b'; INSERT INTO models SELECT * FROM models WHERE false").await;
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path, description) \
            VALUES ('pair-4-b', 'again', 'https://example.org/x', 'a/b', '0')",
    )
    .await;
    db.sql(VIEW).await;
    arrives(&server, &db.client, HEARTBEAT + SLACK).await;
    assert_eq!(fulls(&server, 1.0).await, 1.0, "a delta is enough");

    // A column goes and takes the view along; it comes back with other content, which is what reload() is for.
    let unreadable = "the catalog can't be read";
    let broken = server.logged(unreadable);
    db.sql("ALTER TABLE models DROP COLUMN hash CASCADE").await;
    db.sql(&bump(1)).await;
    server.until("it is said", |s| async move { s.logged(unreadable) > broken }).await;
    db.sql(&format!("ALTER TABLE models ADD COLUMN hash text DEFAULT 'mended'; {VIEW}; SELECT model_catalog.reload()"))
        .await;
    arrives(&server, &db.client, HEARTBEAT + SLACK).await;
    assert_eq!(server.get("/api/models/pair-1-a").await.json()["hash"], "mended");

    // A column of another type: what can't be read is an error of the rows, and no end.
    db.sql("CREATE TABLE kept AS TABLE models; DROP VIEW model_catalog.entries").await;
    db.sql("CREATE VIEW model_catalog.entries AS SELECT id, name FROM models; SELECT model_catalog.reload()").await;
    let deltas = server.metric("catalog_refreshes_total{kind=\"delta\",outcome=\"error\"}").await;
    server
        .until("it fails again", |s| async move {
            s.metric("catalog_refreshes_total{kind=\"delta\",outcome=\"error\"}").await > deltas
        })
        .await;
    db.sql(&format!("DROP VIEW model_catalog.entries; {VIEW}")).await;
    db.sql(&bump(2)).await;
    arrives(&server, &db.client, HEARTBEAT + SLACK).await;
    witness.finish().await;
}

#[tokio::test]
async fn a_reload_reads_everything_again() {
    let db = Db::new().await;
    witness::add_pairs(&db.client, PAIRS).await;
    let server = Server::start_with(&db.url, &SETTINGS).await;
    // No trigger sees this change of the view.
    db.sql("CREATE OR REPLACE VIEW model_catalog.entries AS SELECT id, upper(name) AS name, download_url, \
            file_size_gb::numeric, hash, auth_required, auth_provider, save_path, dependencies, description FROM models")
        .await;
    assert!(difference(&server, &db.client).await.is_some());
    db.sql("SELECT model_catalog.reload()").await;
    arrives(&server, &db.client, HEARTBEAT + SLACK).await;
    assert_eq!(fulls(&server, 2.0).await, 2.0);
    server.until_logged("the database has another history", 1).await;
}

/// Copies a database as a DBA would, with pg_dump and psql.
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
async fn a_dump_is_restored_elsewhere() {
    let scene = Scene::new().await;
    // Transaction ids of the old server that the new one has not reached: they lie in the dumped log.
    for pair in 0..PAIRS {
        sql(&scene.client, &bump(pair)).await;
    }
    in_step(&scene.server, &scene.client).await;

    // A new database in the same server, then a new server altogether, in the place of the old.
    sql(&scene.client, "CREATE DATABASE second").await;
    dump_and_restore((&scene.postgres, "postgres"), (&scene.postgres, "second"));
    let other = support::private(&[]);
    dump_and_restore((&scene.postgres, "second"), (&other, "postgres"));
    let client = session(&other).await;
    sql(
        &client,
        "DELETE FROM models WHERE id = 'pair-0-a'; INSERT INTO models (id, name, download_url, save_path, \
                  description) VALUES ('pair-0-a', 'new', 'https://example.org/new', 'a/b', '1')",
    )
    .await;
    assert_eq!(fulls(&scene.server, 1.0).await, 1.0);
    scene.proxy.point_to(&other);
    scene.proxy.cut();
    arrives(&scene.server, &client, HEARTBEAT + SLACK).await;
    assert_eq!(fulls(&scene.server, 2.0).await, 2.0, "another history is read as a whole");
    // The log that came along holds this server's future; changes arrive all the same, as deltas.
    for pair in 0..PAIRS {
        sql(&client, &bump(pair)).await;
        arrives(&scene.server, &client, HEARTBEAT + SLACK).await;
    }
    assert_eq!(fulls(&scene.server, 2.0).await, 2.0);
    scene.finish().await;
}

async fn session(server: &EphemeralPostgres) -> Client {
    model_catalog::postgres::session::connect(&database(&server.url("postgres"))).await.unwrap()
}
