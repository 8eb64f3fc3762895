//! Log lines as JSON, changes of the log filter by signals, and the log of slow and failed requests.

use serde_json::{Value, json};

use crate::support::{Db, Server};

fn lines(server: &Server) -> Vec<Value> {
    server
        .log()
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Whether a text is a duration as Rust prints it, such as `1.25ms`.
fn is_printed_duration(text: &str) -> bool {
    let number = text.trim_end_matches(|c: char| c.is_alphabetic() || c == 'µ');
    let unit = &text[number.len()..];
    ["ns", "µs", "ms", "s"].contains(&unit) && number.parse::<f64>().is_ok()
}

#[tokio::test]
async fn json_lines_have_a_target_and_durations_are_numbers_of_seconds() {
    assert!(is_printed_duration("1.25ms") && is_printed_duration("30s") && !is_printed_duration("x s"));
    let db = Db::new().await;
    db.add("a").await;
    let settings = [("CATALOG_POLL_INTERVAL", "50ms"), ("CATALOG_DRAIN_TIMEOUT", "3s")];
    let server = Server::start_with(&db.url, &settings).await;
    server.until("it reads nothing new", |s| async { s.logged("\"message\":\"heartbeat\"") > 0 }).await;
    server.terminate().await;
    let lines = lines(&server);
    for line in &lines {
        let target = line["target"].as_str().unwrap_or_else(|| panic!("no target: {line}"));
        assert!(!target.is_empty() && line["timestamp"].is_string() && line["level"].is_string(), "{line}");
        for (key, value) in line.as_object().unwrap() {
            assert!(!value.as_str().is_some_and(is_printed_duration), "{key} is no number: {line}");
        }
    }
    let of =
        |message: &str| lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("{message}"));
    let refreshed = of("refreshed");
    assert_eq!((&refreshed["target"], &refreshed["models"]), (&json!("model_catalog::loader::report"), &json!(1)));
    for line in [refreshed, of("heartbeat")] {
        let took = line["took_seconds"].as_f64().unwrap();
        assert!(took > 0.0 && took < 30.0, "{line}");
    }
    assert_eq!(of("shutting down: no longer ready")["grace_seconds"], 0.0);
}

#[tokio::test]
async fn signals_change_what_is_logged() {
    let db = Db::new().await;
    let settings = [("CATALOG_POLL_INTERVAL", "30ms"), ("CATALOG_LOG", "info")];
    let server = Server::start_with(&db.url, &settings).await;
    let reads = async || server.metric("catalog_refreshes_total{kind=\"delta\",outcome=\"ok\"}").await;
    let read_again = async || {
        let before = reads().await;
        server
            .until("it reads again", |s| async move {
                s.metric("catalog_refreshes_total{kind=\"delta\",outcome=\"ok\"}").await > before + 2.0
            })
            .await;
    };
    read_again().await;
    assert_eq!(server.logged("heartbeat"), 0);
    server.signal("USR1");
    server.until_logged("the log filter was changed", 1).await;
    server.until("debug lines are logged", |s| async { s.logged("heartbeat") > 0 }).await;
    server.signal("USR2");
    server.until_logged("the log filter was changed", 2).await;
    // One that had begun may still be logged.
    read_again().await;
    let before = server.logged("heartbeat");
    read_again().await;
    assert_eq!(server.logged("heartbeat"), before);
    let changes: Vec<_> = lines(&server).into_iter().filter(|line| line["filter"].is_string()).collect();
    let filters: Vec<_> = changes.iter().map(|line| line["filter"].as_str().unwrap()).collect();
    assert_eq!(filters, ["debug", "info"]);
}

#[tokio::test]
async fn slow_and_failed_requests_are_logged_with_their_ids() {
    let db = Db::new().await;
    db.add("a").await;
    let all = Server::start_with(&db.url, &[("CATALOG_LOG_SLOW_REQUESTS", "0s")]).await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0b1902b7-01";
    let mut request = all.request("GET", "/api/models/a?token=hush", "");
    request.headers_mut().insert("traceparent", traceparent.parse().unwrap());
    request.headers_mut().insert("x-request-id", "request \"7\"".parse().unwrap());
    assert_eq!(all.send(request).await.status, 200);
    all.until_logged("slow or failed request", 1).await;
    let lines_of = |server: &Server| -> Vec<Value> {
        lines(server).into_iter().filter(|line| line["message"] == "slow or failed request").collect()
    };
    let line = lines_of(&all).remove(0);
    assert_eq!(
        (&line["method"], &line["path"], &line["status"]),
        (&json!("GET"), &json!("/api/models/a"), &json!(200))
    );
    assert_eq!((&line["traceparent"], &line["request_id"]), (&json!(traceparent), &json!("request \"7\"")));
    assert!(line["took_seconds"].is_f64() && !line.to_string().contains("hush"), "{line}");
    // A batch, and a path that is longer than what is logged.
    all.batch(r#"{"model_ids":["a"]}"#).await;
    all.get(&format!("/api/models/{}", "x".repeat(5000))).await;
    all.until_logged("slow or failed request", 3).await;
    let [_, batch, long] = <[Value; 3]>::try_from(lines_of(&all)).unwrap();
    assert_eq!((&batch["path"], &batch["request_id"]), (&json!("/api/models/batch"), &Value::Null));
    assert_eq!(long["path"].as_str().unwrap().len(), 200);

    // A failed request is logged however fast it was, and others are not.
    let loading = Server::spawn("host=/nowhere user=nobody", &[("CATALOG_LOG_SLOW_REQUESTS", "30s")]).await;
    assert_eq!((loading.get("/").await.status, loading.get("/api/models/%ff").await.status), (200, 503));
    loading.until_logged("slow or failed request", 1).await;
    assert_eq!(lines_of(&loading)[0]["status"], 503);
}
