//! The delta is exact: at every step, beside conflicting writers, the snapshot built from deltas equals the table.
//!
//! `DELTA_STEPS` is the number of steps (`make test-race`: 50,000 on each major version); `CATALOG_TEST_SEED` repeats the
//! statements of the writers, not their timing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use fastrand::Rng;
use model_catalog::base::error_chain::chain;
use model_catalog::catalog::model::Rules;
use model_catalog::catalog::refresh::{Refresh, Refreshed};
use model_catalog::catalog::snapshot::Snapshot;
use model_catalog::postgres::error::ReadError;
use model_catalog::postgres::position::Position;
use model_catalog::postgres::rows::{self, Scope};
use model_catalog::postgres::session::{self, Session};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::{NOTIFY_ONLY, Server, WAIT_LIMIT, database, migrated, sql, start_postgres};

const WRITERS: usize = 8;
/// Few enough that writers conflict all the time.
const IDS: u32 = 40;
/// Each follows the table by deltas of its own.
const READERS: usize = 3;
/// Steps of all readers together, without `DELTA_STEPS`.
const STEPS: usize = 300;
/// Minimum number of non-empty deltas, and of deltas with open transactions, for a meaningful run.
const MIN_STEPS: usize = 50;

pub(super) fn from_environment<N: std::str::FromStr>(name: &str) -> Option<N> {
    std::env::var(name).ok().map(|text| text.parse().ok().unwrap_or_else(|| panic!("{name} is not a number: {text}")))
}

/// Prints the seed if the test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with CATALOG_TEST_SEED={}", self.0);
        }
    }
}

/// A second table of the view, whose rows belong to the same models: transactions on the two tables change a model at the
/// same time, without waiting for each other.
const NOTES: &str = "CREATE TABLE notes (slug text, number int, note text, PRIMARY KEY (slug, number));
    CREATE OR REPLACE VIEW model_catalog.entries AS
    SELECT m.id, m.name, m.download_url, m.file_size_gb::numeric AS file_size_gb,
           coalesce((SELECT string_agg(n.note, ',' ORDER BY n.number) FROM notes n WHERE n.slug = m.id), m.hash) AS hash,
           m.auth_required, m.auth_provider, m.save_path, to_jsonb(m.dependencies) AS dependencies, m.description,
           to_jsonb(m.mirrors) AS mirrors
    FROM models m;
    SELECT model_catalog.watch('notes', 'slug')";

/// A random statement.
fn statement(random: &mut Rng) -> String {
    let id = |random: &mut Rng| format!("m{}", random.u32(..IDS));
    let (a, b, name) = (id(random), id(random), random.u32(..));
    let new = |id: &str| format!("SELECT {id}, '{name}', 'https://example.org/x', 1.50, NULL, false, NULL, 'x/y'");
    match random.u8(0..18) {
        14 | 15 => format!(
            "INSERT INTO notes VALUES ('{a}', {}, '{name}') ON CONFLICT (slug, number) DO UPDATE SET note = excluded.note",
            random.u32(..3)
        ),
        16 => format!("DELETE FROM notes WHERE slug = '{a}'"),
        17 => format!("UPDATE notes SET note = '{name}' WHERE slug <= '{b}' AND number = {}", random.u32(..3)),
        0..2 => format!("UPDATE models SET name = '{name}' WHERE id = '{a}'"),
        2 => format!(
            "UPDATE models SET mirrors = '[\"https://example.org/{name}\"]' WHERE id = '{a}'; \
             UPDATE models SET mirrors = NULL WHERE id = '{b}'"
        ),
        3 => format!("INSERT INTO models {}", new(&format!("'{a}'"))),
        4 => format!("INSERT INTO models {} ON CONFLICT DO NOTHING", new(&format!("'{a}'"))),
        5 | 6 => format!(
            "INSERT INTO models {} FROM generate_series({}, {}) n ON CONFLICT (id) DO UPDATE SET name = excluded.name",
            new("'m' || n"),
            random.u32(..IDS / 2),
            random.u32(IDS / 2..IDS / 2 + 5)
        ),
        7 => format!("UPDATE models SET id = '{a}' WHERE id = '{b}'"),
        8 => format!(
            "UPDATE models SET id = '{a}' WHERE id = '{b}' AND NOT EXISTS (SELECT FROM models WHERE id = '{a}')"
        ),
        9 => format!("DELETE FROM models WHERE id = '{a}'"),
        10 => format!("DELETE FROM models WHERE id IN ('{a}', '{b}', '{}')", id(random)),
        11 => format!(
            "UPDATE models SET name = '{name}', hash = CASE WHEN id = '{a}' THEN '{name}' END WHERE id <= '{b}'"
        ),
        12 => "UPDATE models SET name = name".into(),
        _ => format!(
            "WITH gone AS (DELETE FROM models WHERE id = '{a}' RETURNING *) INSERT INTO models \
             SELECT '{b}', name, download_url, 2.5, NULL, true, NULL, save_path FROM gone \
             ON CONFLICT (id) DO UPDATE SET name = '{name}'"
        ),
    }
}

/// A random transaction: statements, savepoints, pauses, and a commit or rollback.
async fn transaction(client: &Client, random: &mut Rng) -> Result<(), tokio_postgres::Error> {
    let isolation = ["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"][random.usize(..4)];
    client.batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}")).await?;
    let mut depth = 0;
    for _ in 0..random.u8(1..6) {
        match random.u8(0..6) {
            0 => {
                depth += 1;
                client.batch_execute(&format!("SAVEPOINT s{depth}")).await?;
            }
            end @ (1 | 2) if depth > 0 => {
                let command = if end == 1 { "ROLLBACK TO" } else { "RELEASE" };
                client.batch_execute(&format!("{command} s{depth}")).await?;
                depth -= u32::from(end == 2);
            }
            3 => tokio::time::sleep(Duration::from_millis(random.u64(0..30))).await,
            _ => client.batch_execute(&statement(random)).await?,
        }
    }
    client.batch_execute(if random.u8(..) < 40 { "ROLLBACK" } else { "COMMIT" }).await
}

/// What the tasks of a run share.
#[derive(Default)]
struct Race {
    writers_stop: AtomicBool,
    writers_ended: AtomicBool,
    committed: AtomicUsize,
    steps: AtomicUsize,
    with_changes: AtomicUsize,
    changes: AtomicUsize,
    with_open_transactions: AtomicUsize,
}

impl Race {
    /// There were `steps` steps, enough of which read changes.
    fn is_long_enough(&self, steps: usize) -> bool {
        self.steps.load(Relaxed) >= steps
            && self.with_changes.load(Relaxed) > MIN_STEPS
            && self.with_open_transactions.load(Relaxed) > MIN_STEPS
    }
}

/// Writes until `writers_stop` is set. Unique violations, deadlocks and serialization failures are expected between writers.
async fn write(client: Client, mut random: Rng, race: Arc<Race>) {
    while !race.writers_stop.load(Relaxed) {
        // Leaves the readers half of the CPU.
        tokio::time::sleep(Duration::from_millis(random.u64(0..16))).await;
        let done = if random.bool() {
            client.batch_execute(&statement(&mut random)).await
        } else {
            transaction(&client, &mut random).await
        };
        match done {
            Ok(()) => _ = race.committed.fetch_add(1, Relaxed),
            Err(error) => {
                let expected =
                    [SqlState::UNIQUE_VIOLATION, SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE];
                let known = error.code().is_some_and(|code| expected.contains(code));
                assert!(known, "{}", chain(&error));
                client.batch_execute("ROLLBACK").await.unwrap();
            }
        }
    }
}

/// The table as a plain map, read without code of `catalog`.
type Plain = BTreeMap<String, (String, Option<String>)>;

/// Everything that one step read, in one transaction.
struct Step {
    position: Position,
    changes: usize,
    snapshot: Snapshot,
    full: Snapshot,
    plain: Plain,
}

async fn read_step(session: &Session, before: &Snapshot, since: &Position) -> Step {
    let rules = Rules::default();
    let current = session.begin().await.unwrap();
    let (mut refresh, mut position, mut changes) = (Refresh::delta(before, &rules), None, 0);
    // As few changes are read, or as many are.
    let scope = Scope { limit: 1_000, look_up: fastrand::bool() };
    let mut ids = BTreeSet::new();
    let mut delta = session.delta(since, scope, WAIT_LIMIT).await.unwrap();
    while let Some(chunk) = delta.next().await.unwrap() {
        for row in &chunk {
            position = Some(Position::from_row(row).unwrap());
            if let Some(change) = rows::change(row).unwrap() {
                changes += 1;
                if !scope.look_up {
                    ids.insert(change.id.into_owned());
                    continue;
                }
                match change.row {
                    Some(row) => refresh.row(&change.id, row),
                    None => refresh.deleted(&change.id),
                }
            }
        }
    }
    if !scope.look_up {
        let listed: Vec<String> = ids.iter().cloned().collect();
        let listed: Vec<&str> = listed.iter().map(String::as_str).collect();
        let set = session.entries_of(&listed, WAIT_LIMIT).await.unwrap();
        let read = set.for_each(|id, row| {
            assert!(ids.remove(id), "{id} was not asked for, or is returned twice");
            refresh.row(id, row);
            Ok::<_, ReadError>(())
        });
        read.await.unwrap();
        ids.iter().for_each(|id| refresh.deleted(id));
    }
    let empty = Snapshot::default();
    let (mut full, mut plain) = (Refresh::full(&empty, &rules), Plain::new());
    let entries = session.entries().await.unwrap();
    let read = entries.for_each(|id, row| {
        let row = row.unwrap();
        plain.insert(id.to_owned(), (row.name.unwrap().to_owned(), row.hash.map(str::to_owned)));
        full.row(id, Ok(row));
        Ok::<_, ReadError>(())
    });
    read.await.unwrap();
    session.commit().await.unwrap();
    assert_eq!(position.as_ref(), Some(&current), "the delta and the transaction have different snapshots");
    let (Refreshed { snapshot, .. }, full) = (refresh.finish(), full.finish().snapshot);
    Step { position: current, changes, snapshot, full, plain }
}

/// The contents of a snapshot, decoded from its rendered models.
fn decoded(snapshot: &Snapshot) -> Plain {
    let entry = |json: &[u8]| {
        let model: serde_json::Value = serde_json::from_slice(json).unwrap();
        let text = |key: &str| model[key].as_str().map(str::to_owned);
        (text("id").unwrap(), (text("name").unwrap(), text("hash")))
    };
    snapshot.iter().map(|model| entry(model.json())).collect()
}

fn assert_same(step: &Step, number: usize) {
    let (snapshot, full) = (&step.snapshot, &step.full);
    assert_eq!(decoded(snapshot), step.plain, "step {number}: the deltas and the table differ");
    assert_eq!((snapshot.len(), snapshot.revision()), (full.len(), full.revision()), "step {number}");
    assert_eq!(snapshot.bytes(), full.bytes(), "step {number}");
    for model in full.iter() {
        let id = std::str::from_utf8(model.id()).unwrap();
        assert_eq!(snapshot.get(id).map(|entry| entry.json()), Some(model.json()), "step {number}: {id}");
    }
}

/// Reads deltas and compares each snapshot with the table, once more after the last writer has ended; returns the last
/// revision.
async fn read(session: Session, mut position: Position, race: Arc<Race>) -> u64 {
    let mut current = Snapshot::default();
    loop {
        let last = race.writers_ended.load(Relaxed);
        let next = read_step(&session, &current, &position).await;
        assert_same(&next, race.steps.fetch_add(1, Relaxed));
        race.changes.fetch_add(next.changes, Relaxed);
        race.with_changes.fetch_add(usize::from(next.changes > 0), Relaxed);
        race.with_open_transactions.fetch_add(usize::from(!next.position.snapshot.ends_with(':')), Relaxed);
        (current, position) = (next.snapshot, next.position);
        if last {
            return current.revision();
        }
        // Steps cover between one transaction and many.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..32))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deltas_match_the_table_beside_concurrent_writers() {
    let seed = Seed(from_environment("CATALOG_TEST_SEED").unwrap_or_else(|| fastrand::u64(..)));
    let steps = from_environment("DELTA_STEPS").unwrap_or(STEPS);
    // All databases of a cluster share transaction ids, so the test needs a cluster of its own.
    let cluster = start_postgres(&[("deadlock_timeout", "20ms")]);
    let url = cluster.url("postgres");
    let client = migrated(&url).await;
    sql(&client, NOTES).await;
    let server = Server::start_with(&url, NOTIFY_ONLY).await;
    let race = Arc::<Race>::default();
    let (mut readers, mut writers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..READERS {
        let session = Session::open(&database(&url), || {}).await.unwrap();
        let position = session.begin().await.unwrap();
        session.commit().await.unwrap();
        readers.spawn(read(session, position, Arc::clone(&race)));
    }
    for number in 0..WRITERS {
        let connection = session::connect(&database(&url)).await.unwrap();
        let random = Rng::with_seed(seed.0.wrapping_add(number as u64));
        writers.spawn(write(connection, random, Arc::clone(&race)));
    }

    while !race.is_long_enough(steps) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for ended in [readers.try_join_next().map(|reader| reader.map(drop)), writers.try_join_next()] {
            assert!(ended.is_none(), "a reader or writer ended early: {ended:?}");
        }
    }
    race.writers_stop.store(true, Relaxed);
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    race.writers_ended.store(true, Relaxed);
    let revisions: BTreeSet<u64> = readers.join_all().await.into_iter().collect();
    let Race { steps, with_changes, changes, with_open_transactions, committed, .. } = &*race;
    println!(
        "{steps:?} steps, {with_changes:?} with {changes:?} changes, {with_open_transactions:?} with transactions open, \
         {committed:?} commits"
    );
    assert_eq!(revisions.len(), 1, "the readers ended with different contents");
    for revision in revisions {
        assert_served(&server, &client, revision).await;
    }
}

/// The server, which followed by notifications only, serves the contents of the table.
async fn assert_served(server: &Server, client: &Client, revision: u64) {
    let revision = format!("{revision:016x}");
    let revision = &revision;
    server
        .until(
            "the last revision is served",
            |s| async move { s.get("/readyz").await.json()["revision"] == **revision },
        )
        .await;
    let table = "SELECT coalesce(jsonb_agg(to_jsonb(m) - CASE WHEN mirrors IS NULL THEN 'mirrors' ELSE '' END \
                                           ORDER BY id COLLATE \"C\"), '[]') FROM model_catalog.entries m";
    let table: serde_json::Value = serde_json::from_str(&sql(client, table).await.unwrap()).unwrap();
    let ids: Vec<String> = (0..IDS * 2).map(|number| format!("m{number}")).collect();
    let response = server.batch(&serde_json::json!({"model_ids": ids}).to_string()).await.json();
    let mut served = response["models"].as_array().unwrap().clone();
    served.sort_by_key(|model| model["id"].as_str().unwrap().to_owned());
    assert_eq!(serde_json::Value::from(served), table);
    assert_eq!(server.refreshes("full").await, 1.0, "the server fell back to a full read");
}
