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

    let client = prepared(&url).await;
    let since = run_ten_times(&client, &writer).await;
    sql(&writer, "UPDATE models SET hash = 'x' WHERE id = 'model-5'").await;
    assert_no_full_scan(&explain(&client, "", &since).await, "without statistics");
    sql(&writer, "ANALYZE").await;
    assert_no_full_scan(&explain(&client, "", &since).await, "with fresh statistics and an old plan");
    let client = prepared(&url).await;
    let since = run_ten_times(&client, &writer).await;
    assert_no_full_scan(&explain(&client, "", &since).await, "with fresh statistics");

    // An idle transaction with an id, and a change of every row since it began.
    let idle = prepared(&url).await;
    sql(&idle, "SET default_transaction_read_only = off; BEGIN; SELECT pg_current_xact_id()").await;
    sql(&writer, "UPDATE models SET description = 'all'").await;
    let logged = "SELECT count(*) FROM model_catalog.changes GROUP BY xid ORDER BY xid DESC LIMIT 1";
    assert_eq!(sql(&writer, logged).await, Some(ROWS.to_string()));
    for when in ["stale statistics", "fresh statistics"] {
        let client = prepared(&url).await;
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
