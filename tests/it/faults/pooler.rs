//! A transaction-pooling PgBouncer in front of a primary or a standby: it is detected and logged, the server polls, and
//! leaves no session state behind.

use std::process::{Child, Stdio};

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use model_catalog::postgres::session;

use crate::cli::check::check_with;
use crate::support::consistency::{self, ConsistencyReaders, bump, in_sync, replayed};
use crate::support::{self, Server, database, migrated, sql, until};

const PAIRS: usize = 3;
const UNRECORDED: &str = "ALTER TABLE models DISABLE TRIGGER ALL; UPDATE models SET name = name || '!'; \
                          ALTER TABLE models ENABLE TRIGGER ALL";

/// A PgBouncer in front of a Postgres.
struct PgBouncer {
    child: Child,
    url: String,
}

impl PgBouncer {
    /// `settings` are further lines of pgbouncer.ini. The pool has one connection, which all clients share.
    async fn start(postgres: &EphemeralPostgres, settings: &str) -> Self {
        let directory = postgres.socket_directory().display().to_string();
        let file = postgres.data_directory().join("pgbouncer.ini");
        let ini = format!(
            "[databases]\n* = host={directory} port={} user=postgres\n[pgbouncer]\nlisten_addr =\nlisten_port = 6432\n\
             unix_socket_dir = {directory}\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 1\n{settings}\n",
            postgres.port()
        );
        std::fs::write(&file, ini).unwrap();
        let program =
            ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| std::fs::exists(path).unwrap());
        let program = program.expect("no pgbouncer: `make test-tools` installs it");
        let child = postgres.program(program).arg(&file).stderr(Stdio::null()).spawn().unwrap();
        let url = format!("host={directory} port=6432 user=postgres dbname=postgres");
        let bouncer = Self { child, url };
        until("PgBouncer accepts connections", || async { session::connect(&database(&bouncer.url)).await.is_ok() })
            .await;
        bouncer
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_pooler_is_polled() {
    let postgres = support::start_postgres(&[]);
    let client = migrated(&postgres.url("postgres")).await;
    consistency::add_pairs(&client, PAIRS).await;
    // The server must not recognize its own sessions by a setting that a role can have, too.
    sql(&client, "ALTER ROLE postgres SET plan_cache_mode = force_custom_plan").await;
    for settings in ["", "ignore_startup_parameters = options"] {
        let bouncer = PgBouncer::start(&postgres, settings).await;
        let server = Server::start_with(&bouncer.url, &[("CATALOG_POLL_INTERVAL", "200ms")]).await;
        let readers = ConsistencyReaders::start(&server, PAIRS, false);
        let message = "connected through a transaction pooler";
        assert_eq!(server.get("/readyz").await.json()["follow"], "polling");
        for pair in 0..PAIRS {
            sql(&client, &bump(pair)).await;
            in_sync(&server, &client).await;
        }
        check_with(&bouncer.url, &[]).only("warning", "server", "behind a pooler");
        sql(&client, "SELECT model_catalog.reload()").await;
        server
            .until("a full read is done", |s| async {
                s.metric("catalog_refreshes_total{kind=\"full\",outcome=\"ok\"}").await == 2.0
            })
            .await;
        // The structure is compared through the pooler, too: no trigger records these changes.
        sql(&client, UNRECORDED).await;
        in_sync(&server, &client).await;
        // A lost connection must not log the pooler again.
        sql(
            &client,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                      AND pid <> pg_backend_pid()",
        )
        .await;
        sql(&client, &bump(0)).await;
        in_sync(&server, &client).await;
        server.until_logged(message, 1).await;
        assert_eq!(server.metric("catalog_listener_connected").await, 0.0);

        assert_eq!(sql(&client, "SELECT count(*) FROM model_catalog.fleet").await.as_deref(), Some("0"));
        // The state in which the next client finds the pooled connection.
        let pooled = session::connect(&database(&bouncer.url)).await.unwrap();
        for (setting, value) in [
            ("default_transaction_read_only", "off"),
            ("plan_cache_mode", "force_custom_plan"),
            ("jit", "on"),
            ("lock_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
        ] {
            assert_eq!(sql(&pooled, &format!("SHOW {setting}")).await.as_deref(), Some(value), "{setting}");
        }
        assert_eq!(sql(&pooled, "SELECT count(*) FROM pg_listening_channels()").await.as_deref(), Some("0"));
        readers.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_behind_a_pooler_is_read_in_full_and_polled_after_its_promotion() {
    let primary = support::start_postgres(&[("wal_level", "replica"), ("wal_keep_size", "256MB")]);
    let writer = migrated(&primary.url("postgres")).await;
    consistency::add_pairs(&writer, PAIRS).await;
    let standby = EphemeralPostgres::standby_of(&primary).unwrap();
    let reader = support::connect(&standby.url("postgres")).await;
    let bouncer = PgBouncer::start(&standby, "").await;
    let settings = [("CATALOG_POLL_INTERVAL", "100ms"), ("CATALOG_STANDBY_POLL_INTERVAL", "1ms")];
    // Two servers share the one connection of the pool.
    let servers =
        [Server::start_with(&bouncer.url, &settings).await, Server::start_with(&bouncer.url, &settings).await];
    let readers = [0, 1].map(|number| ConsistencyReaders::start(&servers[number], PAIRS, false));
    for round in 0..4 {
        for pair in 0..PAIRS {
            sql(&writer, &bump(pair)).await;
        }
        let insert = "INSERT INTO models (id, name, download_url, save_path)";
        sql(&writer, &format!("{insert} VALUES ('new-{round}', 'new', 'https://example.org/new', 'new')")).await;
        sql(&writer, &format!("DELETE FROM models WHERE id = 'new-{}'", round - 1)).await;
        replayed(&writer, &reader).await;
        for server in &servers {
            in_sync(server, &writer).await;
        }
    }
    for server in &servers {
        let ready = server.get("/readyz").await.json();
        assert_eq!((&ready["follow"], &ready["status"]), (&"standby".into(), &"ready".into()), "{ready}");
        server.until_logged("this is a hot standby behind a transaction pooler", 1).await;
        // A delta would need a session of its own, and reads must not fail on those of the other server.
        assert_eq!(server.refreshes("delta").await, 0.0);
        assert!(server.refreshes("full").await >= 4.0);
        assert_eq!(server.metric("catalog_refreshes_total{kind=\"full\",outcome=\"error\"}").await, 0.0);
        // Reads that find nothing new are not logged as refreshes.
        let heartbeat = "\"heartbeat\",\"kind\":\"full\"";
        server.until("a read finds nothing new", |s| std::future::ready(s.logged(heartbeat) > 0)).await;
        assert_eq!(server.logged("\"changed\":0,"), 0);
    }
    check_with(&bouncer.url, &[]).only("warning", "server", "behind a pooler");

    sql(&reader, "SELECT pg_promote(true, 30)").await;
    sql(&reader, &bump(0)).await;
    for server in &servers {
        in_sync(server, &reader).await;
        server.until_logged("connected through a transaction pooler", 1).await;
        server.until("it polls", |s| async move { s.get("/readyz").await.json()["follow"] == "polling" }).await;
        let deltas = server.refreshes("delta").await;
        server.until("it reads deltas", |s| async move { s.refreshes("delta").await > deltas }).await;
    }
    sql(&reader, &bump(1)).await;
    for (server, readers) in servers.iter().zip(readers) {
        in_sync(server, &reader).await;
        readers.finish().await;
    }
}

/// The sessions and transactions that hold an advisory lock.
const ADVISORY_LOCKS: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_through_a_transaction_pooler_leave_no_lock_behind() {
    let postgres = support::start_postgres(&[]);
    let bouncer = PgBouncer::start(&postgres, "").await;
    let client = support::connect(&postgres.url("postgres")).await;
    for _ in 0..3 {
        migrated(&bouncer.url).await;
        assert_eq!(sql(&client, ADVISORY_LOCKS).await.as_deref(), Some("0"));
    }
    migrated(&postgres.url("postgres")).await;
    let pooled = session::connect(&database(&bouncer.url)).await.unwrap();
    for (setting, value) in
        [("lock_timeout", "0"), ("statement_timeout", "0"), ("transaction_isolation", "read committed")]
    {
        assert_eq!(sql(&pooled, &format!("SHOW {setting}")).await.as_deref(), Some(value), "{setting}");
    }
}
