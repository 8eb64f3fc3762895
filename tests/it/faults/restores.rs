//! Restores into the place of the database that a server follows. Whatever the restored history has in common with the
//! one before, its name, its transaction ids, its latest changes, the server serves what is in the database now.

use std::process::Command;
use std::time::{Duration, Instant};

use model_catalog::postgres::ephemeral::EphemeralPostgres;
use tokio_postgres::Client;

use crate::support::consistency::{self, bump, difference, full_reads, in_sync};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{self, Server, migrated, sql, until};

const PAIRS: usize = 5;
const SETTINGS: [(&str, &str); 2] = [("CATALOG_POLL_INTERVAL", "300ms"), ("CATALOG_REPLICA_NAME", "one")];
/// Time after the reconnect within which the served catalog must be that of the restored database.
const NOTICED: Duration = Duration::from_secs(5);
/// The same, if only an audit finds the difference.
const AUDITED: Duration = Duration::from_secs(120);
/// The pairs whose four models changed last.
const WITNESSES: [usize; 2] = [1, 2];
const IN_STEP: &str = "SELECT coalesce(bool_or(in_step), false) FROM model_catalog.fleet";

struct Setup {
    postgres: EphemeralPostgres,
    proxy: Proxy,
    client: Client,
    server: Server,
}

impl Setup {
    async fn new() -> Self {
        let postgres = support::start_postgres(&[("autovacuum", "off")]);
        let client = migrated(&postgres.url("postgres")).await;
        consistency::add_pairs(&client, PAIRS).await;
        let proxy = Proxy::before(&postgres).await;
        let server = Server::start_with(&proxy.url("postgres"), &SETTINGS).await;
        sql(&client, &bump(0)).await;
        in_sync(&server, &client).await;
        Self { postgres, proxy, client, server }
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.postgres.program(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The served catalog must equal the table soon, and the fleet must not say so before.
    async fn assert_noticed(&self) {
        self.assert_noticed_within(NOTICED).await;
    }

    async fn assert_noticed_within(&self, limit: Duration) {
        let (start, mut in_step) = (Instant::now(), "f".to_owned());
        while let Some(difference) = difference(&self.server, &self.client).await {
            assert_eq!(in_step, "f", "in step, but {difference}");
            assert!(start.elapsed() < limit, "{difference}");
            in_step = sql(&self.client, IN_STEP).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        until("the fleet is in step", async || sql(&self.client, IN_STEP).await.as_deref() == Some("t")).await;
    }

    /// Stops the database; `while_stopped` is called with its data directory and one for a copy.
    async fn restart(&mut self, while_stopped: impl FnOnce(&str, &str)) {
        self.postgres.stop("INT").unwrap();
        let data = self.postgres.data_directory();
        while_stopped(data.to_str().unwrap(), data.with_extension("copy").to_str().unwrap());
        self.postgres.resume().unwrap();
        self.client = support::connect(&self.postgres.url("postgres")).await;
    }

    async fn copy_data_directory(&mut self) {
        self.restart(|data, copy| shell(&format!("cp -a {data} {copy}"))).await;
    }

    /// Puts the copy in the place of the data directory. The server can't connect until [`Setup::reconnect`].
    async fn roll_back(&mut self) {
        self.proxy.set(Mode::Refuse).await;
        self.proxy.cut();
        self.restart(|data, copy| shell(&format!("rm -r {data} && mv {copy} {data}"))).await;
    }

    async fn reconnect(&self) {
        self.proxy.set(Mode::Pass).await;
    }

    /// Copies the data directory, then changes a model and after it all that the server looks for. Returns the next
    /// transaction id.
    async fn lose_a_change(&mut self) -> u64 {
        self.copy_data_directory().await;
        in_sync(&self.server, &self.client).await;
        // A model that did not change since the first load, so that no delta after the reconnect reads it again.
        sql(&self.client, &rename("pair-4-a", "lost")).await;
        for pair in WITNESSES {
            sql(&self.client, &bump(pair)).await;
        }
        in_sync(&self.server, &self.client).await;
        self.next_xid().await
    }

    /// Makes the changes again that the server looks for, with transaction ids from `end`.
    async fn change_witnesses(&self, end: u64) {
        self.use_xids(end).await;
        for pair in WITNESSES {
            sql(&self.client, &bump(pair)).await;
        }
    }

    async fn next_xid(&self) -> u64 {
        sql(&self.client, "SELECT pg_snapshot_xmax(pg_current_snapshot())").await.unwrap().parse().unwrap()
    }

    /// Uses transaction ids up to this one.
    async fn use_xids(&self, end: u64) {
        while self.next_xid().await <= end {
            sql(&self.client, "SELECT pg_current_xact_id()").await;
        }
    }
}

fn shell(command: &str) {
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
}

fn rename(id: &str, name: &str) -> String {
    format!("UPDATE models SET name = '{name}' WHERE id = '{id}'")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dump_restored_into_the_same_database_is_served() {
    let setup = Setup::new().await;
    let (url, file) = (setup.postgres.url("postgres"), setup.postgres.socket_directory().join("dump"));
    let file = file.to_str().unwrap();
    setup.run("pg_dump", &["-Fc", "-d", &url, "-f", file]);
    sql(&setup.client, &rename("pair-0-a", "lost")).await;
    sql(&setup.client, "DELETE FROM models WHERE id = 'pair-4-b'").await;
    in_sync(&setup.server, &setup.client).await;
    setup.run("pg_restore", &["--clean", "--if-exists", "-d", &url, file]);
    sql(&setup.client, &rename("pair-1-a", "after the restore")).await;
    setup.assert_noticed().await;
    assert_ne!(setup.server.field("pair-0-a", "name").await, "lost");
    sql(&setup.client, &rename("pair-2-a", "followed")).await;
    setup.server.until_named("pair-2-a", "followed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schema_that_is_dropped_and_migrated_again_is_followed() {
    let setup = Setup::new().await;
    // Without triggers, this change is recorded nowhere.
    sql(&setup.client, "DROP SCHEMA model_catalog CASCADE").await;
    sql(&setup.client, &rename("pair-0-a", "unrecorded")).await;
    let client = migrated(&setup.postgres.url("postgres")).await;
    sql(&client, &rename("pair-1-a", "after the migration")).await;
    setup.assert_noticed().await;
    assert_eq!(setup.server.field("pair-0-a", "name").await, "unrecorded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_directory_rolled_back_to_a_copy_is_noticed() {
    let mut setup = Setup::new().await;
    setup.copy_data_directory().await;
    in_sync(&setup.server, &setup.client).await;
    for _ in 0..3 {
        sql(&setup.client, &rename("pair-0-a", "lost")).await;
        sql(&setup.client, &bump(1)).await;
    }
    in_sync(&setup.server, &setup.client).await;
    // Another server resumes from its file.
    let file = setup.postgres.socket_directory().join("catalog.jsonl");
    let with_file = [SETTINGS[0], ("CATALOG_SNAPSHOT_FILE", file.to_str().unwrap())];
    let stopped = Server::start_with(&setup.postgres.url("postgres"), &with_file).await;
    in_sync(&stopped, &setup.client).await;
    stopped.terminate().await;
    let end = setup.next_xid().await;
    setup.roll_back().await;
    assert!(setup.next_xid().await < end);
    sql(&setup.client, &rename("pair-2-a", "with an id that was used before")).await;
    setup.use_xids(end).await;
    setup.reconnect().await;
    setup.assert_noticed().await;
    let resumed = Server::start_with(&setup.postgres.url("postgres"), &with_file).await;
    in_sync(&resumed, &setup.client).await;
    for server in [&setup.server, &resumed] {
        server.until_logged("the database no longer has what was read from it", 1).await;
    }
}

/// No change is lost here, but one has a transaction id that the server had seen as unused by changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_with_a_transaction_id_that_another_history_used_is_noticed() {
    let mut setup = Setup::new().await;
    setup.copy_data_directory().await;
    // Another one, because a server that saw the restart shows no position before its audit.
    setup.server = Server::start_with(&setup.proxy.url("postgres"), &SETTINGS).await;
    let end = setup.next_xid().await + 20;
    setup.use_xids(end).await;
    let position = "SELECT max(synced_xid::text::bigint) FROM model_catalog.fleet";
    until("the server has read beyond them", async || {
        sql(&setup.client, position).await.is_some_and(|xid| xid.parse::<u64>().unwrap() >= end)
    })
    .await;
    setup.roll_back().await;
    sql(&setup.client, &rename("pair-2-a", "with an id that was used before")).await;
    setup.use_xids(end + 5).await;
    setup.reconnect().await;
    setup.assert_noticed().await;
}

/// Every change that the server could look for was made again, so only the audit after the restart finds the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_history_with_all_witnesses_changed_again_is_audited_within_two_minutes() {
    let mut setup = Setup::new().await;
    let end = setup.lose_a_change().await;
    let reads = full_reads(&setup.server, 1.0).await;
    setup.roll_back().await;
    setup.change_witnesses(end).await;
    setup.reconnect().await;
    setup.assert_noticed_within(AUDITED).await;
    assert_eq!(full_reads(&setup.server, reads).await, reads, "it was found by other means than an audit");
    setup.server.until("the audit is counted", |s| async { s.refreshes("audit").await >= 1.0 }).await;
}

/// As above, but the server was not running while the database was restored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_starts_from_its_file_after_such_a_restore_is_not_in_step_before_an_audit() {
    let mut setup = Setup::new().await;
    let file = setup.postgres.socket_directory().join("catalog.jsonl");
    let settings = [&SETTINGS[..], &[("CATALOG_SNAPSHOT_FILE", file.to_str().unwrap())]].concat();
    let url = setup.proxy.url("postgres");
    setup.server = Server::start_with(&url, &settings).await;
    let end = setup.lose_a_change().await;
    setup.server.terminate().await;
    setup.roll_back().await;
    setup.change_witnesses(end).await;
    setup.reconnect().await;
    setup.server = Server::start_with(&url, &settings).await;
    setup.assert_noticed_within(AUDITED).await;

    // The database was not started again since the file was written, which is therefore as good as a first load.
    let audits = setup.server.refreshes("audit").await;
    sql(&setup.client, &bump(3)).await;
    in_sync(&setup.server, &setup.client).await;
    setup.server.terminate().await;
    setup.server = Server::start_with(&url, &settings).await;
    until("the fleet is in step", async || sql(&setup.client, IN_STEP).await.as_deref() == Some("t")).await;
    assert_eq!((audits, setup.server.refreshes("audit").await), (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_shows_no_position_of_another_history() {
    let setup = Setup::new().await;
    let tag = sql(&setup.client, "SELECT tag FROM model_catalog.history").await.unwrap();
    let own = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'model-catalog one %'";
    let own = sql(&setup.client, own).await.unwrap();
    assert!(own.contains(&tag) && tag.len() == 3, "{tag} in {own}");
    let other = support::connect(&setup.postgres.url("postgres")).await;
    let foreign = if tag == "abc" { "xyz" } else { "abc" };
    for (tag, expected) in [(&*tag, "t"), (foreign, "f"), ("", "t")] {
        let name = format!("model-catalog x 0123456789abcdef 999999{tag}");
        sql(&other, &format!("SET application_name = '{name}'")).await;
        let row = "SELECT concat_ws(' ', in_step, synced_xid) FROM model_catalog.fleet WHERE name = 'x'";
        let position = if expected == "t" { "t 999999" } else { "f" };
        assert_eq!(sql(&setup.client, row).await.as_deref(), Some(position), "{name}");
    }
    sql(&other, &format!("SET application_name = 'model-catalog x 0123456789abcdef 999999{foreign}'")).await;
    let wait = "SELECT model_catalog.wait_for_fleet('3', '200ms')";
    let error = setup.client.query_one(wait, &[]).await.unwrap_err();
    assert!(error.as_db_error().unwrap().detail().unwrap().starts_with("Behind: x (pid "), "{error:?}");
}
