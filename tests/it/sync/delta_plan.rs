//! The cost of the delta follows the size of the change: whatever the statistics, it scans neither the source table nor
//! `changes` as a whole.

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::{migrated, sql, start_postgres};

const ROWS: u32 = 100_000;
const FILL: &str = "INSERT INTO models SELECT 'model-' || n, 'name', 'https://example.org/' || n, 1.5, NULL, false, NULL, \
                    'checkpoints/' || n FROM generate_series(1, 100000) n";

/// A session with the settings of the program and the delta prepared.
pub async fn prepared(url: &str) -> Client {
    let client = model_catalog::postgres::session::connect(&crate::support::database(url)).await.unwrap();
    client.batch_execute(include_str!("../../../sql/session.sql")).await.unwrap();
    let delta = model_catalog::postgres::session::DELTA;
    client.batch_execute(&format!("PREPARE delta (text, text, text, text) AS {delta}")).await.unwrap();
    client
}

/// The same as it is outside of transactions of a direct connection.
async fn planned_once(url: &str) -> Client {
    let client = prepared(url).await;
    client.batch_execute(model_catalog::postgres::session::PLANNED_ONCE).await.unwrap();
    client
}

/// The current position, as the parameters of a delta with up to a hundred look-ups.
pub async fn position(client: &Client) -> String {
    let position =
        "SELECT format('%L, %L, ''100'', ''true''', pg_current_snapshot()::text, identity) FROM model_catalog.history";
    sql(client, position).await.unwrap()
}

/// The plan of the prepared delta.
pub async fn explain(client: &Client, options: &str, since: &str) -> Value {
    let rows = client.simple_query(&format!("EXPLAIN ({options} FORMAT JSON) EXECUTE delta ({since})")).await.unwrap();
    let text = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    serde_json::from_str::<Value>(text.unwrap()).unwrap()[0]["Plan"].take()
}

/// Every node of a plan.
fn nodes(plan: &Value) -> Vec<&Value> {
    let below = plan["Plans"].as_array().into_iter().flatten().flat_map(nodes);
    std::iter::once(plan).chain(below).collect()
}

/// The nodes that read a relation; there must be one.
pub fn nodes_reading<'a>(plan: &'a Value, relation: &str) -> Vec<&'a Value> {
    let found: Vec<_> = nodes(plan).into_iter().filter(|node| node["Relation Name"] == relation).collect();
    assert!(!found.is_empty(), "the plan does not read {relation}: {plan:#}");
    found
}

fn assert_no_full_scan(plan: &Value, when: &str) {
    for relation in ["models", "changes"] {
        for node in nodes_reading(plan, relation) {
            let scan = node["Node Type"].as_str().unwrap();
            assert_ne!(scan, "Seq Scan", "{when}: {plan:#}");
            // An index scan without a condition is as expensive.
            assert!(
                !node["Index Cond"].is_null() || scan == "Bitmap Heap Scan",
                "{when}: no index condition: {plan:#}"
            );
        }
    }
}

/// Runs the delta ten times with a change before each: Postgres may switch to a generic plan after five runs.
async fn run_ten_times(client: &Client, writer: &Client) -> String {
    for number in 1..=10 {
        let since = position(client).await;
        sql(writer, &format!("UPDATE models SET hash = random() WHERE id = 'model-{number}7'")).await;
        let rows = client.simple_query(&format!("EXECUTE delta ({since})")).await.unwrap();
        let rows = rows.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get("model_id").map(str::to_owned),
            _ => None,
        });
        assert_eq!(rows.collect::<Vec<_>>(), [format!("model-{number}7")]);
    }
    position(client).await
}

#[tokio::test]
async fn delta_uses_indexes_whatever_the_statistics() {
    // The idle transaction below would enter the snapshots of other tests in the same cluster, and theirs its own.
    let cluster = start_postgres(&[("autovacuum", "off")]);
    let url = cluster.url("postgres");
    let writer = migrated(&url).await;
    sql(&writer, FILL).await;

    let clients = [prepared(&url).await, planned_once(&url).await];
    for client in &clients {
        let since = run_ten_times(client, &writer).await;
        sql(&writer, "UPDATE models SET hash = 'x' WHERE id = 'model-5'").await;
        assert_no_full_scan(&explain(client, "", &since).await, "without statistics");
    }
    sql(&writer, "ANALYZE").await;
    for client in &clients {
        let since = position(client).await;
        assert_no_full_scan(&explain(client, "", &since).await, "with fresh statistics and an old plan");
    }
    for client in [prepared(&url).await, planned_once(&url).await] {
        let since = run_ten_times(&client, &writer).await;
        assert_no_full_scan(&explain(&client, "", &since).await, "with fresh statistics");
    }

    // An idle transaction with an id, and a change of every row since it began.
    let idle = prepared(&url).await;
    sql(&idle, "SET default_transaction_read_only = off; BEGIN; SELECT pg_current_xact_id()").await;
    sql(&writer, "UPDATE models SET description = 'all'").await;
    let logged = "SELECT count(*) FROM model_catalog.changes GROUP BY xid ORDER BY xid DESC LIMIT 1";
    assert_eq!(sql(&writer, logged).await, Some(ROWS.to_string()));
    for when in ["stale statistics", "fresh statistics", "stale statistics, once", "fresh statistics, once"] {
        let client = if when.ends_with("once") { planned_once(&url).await } else { prepared(&url).await };
        let since = run_ten_times(&client, &writer).await;
        let has_open = since.split([':', '\'']).nth(3).is_some_and(|open| !open.is_empty());
        assert!(has_open, "no transaction is open in {since}");
        let plan = explain(&client, "ANALYZE, BUFFERS,", &since).await;
        assert_no_full_scan(&plan, when);
        for node in nodes_reading(&plan, "changes") {
            let number = |key: &str| node[key].as_f64().unwrap_or(0.0);
            let rows = number("Actual Rows") + number("Rows Removed by Filter");
            let blocks = number("Shared Hit Blocks") + number("Shared Read Blocks");
            assert!(rows <= 10.0 && blocks <= 50.0, "{when}: {rows} rows, {blocks} blocks: {plan:#}");
        }
        // A sample can contain the xid of that one statement only, which makes an unknown xid look like every row.
        sql(&writer, "ALTER TABLE model_catalog.changes ALTER xid SET (n_distinct = 1); ANALYZE").await;
    }
}

/// The plan of a delta is made while all tables are tiny, and kept as they grow: it reads only what was changed.
#[tokio::test]
async fn plan_made_for_tiny_tables_reads_little_of_large_ones() {
    let cluster = start_postgres(&[("autovacuum", "off")]);
    let admin = crate::support::connect(&cluster.url("postgres")).await;
    for (name, rows, statistics) in [("empty", 0, "ANALYZE"), ("one", 1, "VACUUM ANALYZE"), ("tiny", 10, "SELECT 1")] {
        sql(&admin, &format!("CREATE DATABASE {name}")).await;
        assert_little_is_read_after_growth(&cluster.url(name), rows, statistics).await;
    }
}

/// Plans the delta when there are `rows` models, and explains it when there are many.
async fn assert_little_is_read_after_growth(url: &str, rows: u32, statistics: &str) {
    let writer = migrated(url).await;
    // A view that joins and aggregates, as those of an application do.
    sql(
        &writer,
        "CREATE TABLE needs (model text, need text, kind int); CREATE INDEX ON needs (model);
         CREATE TABLE kinds (kind int PRIMARY KEY, label text); INSERT INTO kinds VALUES (1, 'LoRA');
         DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS
         SELECT m.id, m.name, m.download_url, m.file_size_gb::numeric, m.hash, m.auth_required, m.auth_provider,
                m.save_path,
                coalesce((SELECT jsonb_agg(n.need ORDER BY n.need) FROM needs n WHERE n.model = m.id), '[]') AS dependencies,
                (SELECT string_agg(k.label, ' ') FROM needs n JOIN kinds k USING (kind) WHERE n.model = m.id)
                    AS description
         FROM models m",
    )
    .await;
    let insert = |first: u32, last: u32| {
        format!(
            "INSERT INTO models SELECT 'model-' || n, 'name', 'https://example.org/' || n, 1.5, NULL, false, NULL, \
             'checkpoints/' || n FROM generate_series({first}, {last}) n; \
             INSERT INTO needs SELECT 'model-' || n, 'need', 1 FROM generate_series({first}, {last}) n"
        )
    };
    sql(&writer, &insert(1, rows)).await;
    sql(&writer, statistics).await;
    let client = planned_once(url).await;
    let since = position(&client).await;
    client.simple_query(&format!("EXECUTE delta ({since})")).await.unwrap();

    sql(&writer, &insert(rows + 1, ROWS)).await;
    sql(&writer, "INSERT INTO kinds SELECT n, 'label' FROM generate_series(2, 100000) n").await;
    let before = position(&client).await;
    sql(&writer, "UPDATE models SET hash = 'x' WHERE id IN ('model-5', 'model-50000')").await;
    let plan = explain(&client, "ANALYZE, BUFFERS,", &before).await;
    let blocks = plan["Shared Hit Blocks"].as_u64().unwrap() + plan["Shared Read Blocks"].as_u64().unwrap();
    assert!(blocks <= 200, "{blocks} blocks: {plan:#}");
    // `state` has one row.
    let full = |node: &&Value| node["Node Type"] == "Seq Scan" && node["Relation Name"] != "state";
    assert_eq!(nodes(&plan).into_iter().filter(full).count(), 0, "{plan:#}");

    // Of 2,000 changes it reads one more than it may look up, and looks up none.
    sql(&writer, "UPDATE models SET hash = 'y' WHERE id IN (SELECT 'model-' || n FROM generate_series(1, 2000) n)")
        .await;
    let plan = explain(&client, "ANALYZE, BUFFERS,", &before.replace("'100'", "'10'")).await;
    let blocks = plan["Shared Hit Blocks"].as_u64().unwrap() + plan["Shared Read Blocks"].as_u64().unwrap();
    assert!(blocks <= 200, "{blocks} blocks: {plan:#}");
    for node in nodes_reading(&plan, "models") {
        assert_eq!(node["Actual Rows"].as_f64(), Some(0.0), "{plan:#}");
    }
}
