//! Alert rules and dashboard: promtool runs the tests of the rules, and a Prometheus with the shipped configuration
//! scrapes a server, evaluates every rule and runs the query of every panel.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper::Request;
use serde_json::{Value, json};

use crate::docs::{METRICS, RUNBOOK};
use crate::machine::hubs::{response, serve};
use crate::support::{Db, Server, TempFolder, WAIT_LIMIT};

const RULES: &str = include_str!("../../../deploy/prometheus/alerts.yaml");
const RULE_TESTS: &str = include_str!("../../../deploy/prometheus/alerts.test.yaml");
const CONFIGURATION: &str = include_str!("../../../deploy/prometheus/prometheus.yaml");
const DASHBOARD: &str = include_str!("../../../deploy/grafana/dashboard.json");

/// A Prometheus with the shipped configuration, which scrapes one server, and what `probe` wrote.
struct Prometheus {
    child: Child,
    _directory: TempFolder,
    address: String,
}

impl Prometheus {
    async fn scraping(server: &Server, probe: &str) -> Self {
        let directory = TempFolder::new("prometheus");
        std::fs::write(directory.join("alerts.yaml"), RULES).unwrap();
        let target = format!(r#"["{}", "{}"]"#, server.address, probe.trim_start_matches("http://"));
        let configuration =
            CONFIGURATION.replace(r#"["catalog-a:3001", "catalog-b:3001"]"#, &target).replace("15s", "200ms");
        assert!(configuration.contains(&target) && configuration.contains("200ms"), "{CONFIGURATION}");
        std::fs::write(directory.join("prometheus.yaml"), configuration).unwrap();
        let mut command = Command::new("prometheus");
        command.arg("--web.listen-address=127.0.0.1:0").current_dir(&directory);
        command.args(["--config.file=prometheus.yaml", "--storage.tsdb.path=data"]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("prometheus: {error}; `make test-tools` installs it");
        });
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut log = Vec::new();
        let address = lines.by_ref().find_map(|line| {
            let address = line.contains("Listening on").then(|| line.split("address=").nth(1)?.split(' ').next());
            log.push(line.clone());
            address.flatten().map(str::to_owned)
        });
        let address = address.unwrap_or_else(|| panic!("Prometheus did not start: {log:#?}"));
        // Drain the pipe: Prometheus would block on a full one.
        std::thread::spawn(move || lines.for_each(drop));
        let prometheus = Self { child, _directory: directory, address };
        let ready = format!("http://{}/-/ready", prometheus.address);
        server
            .until("Prometheus is ready", |s| {
                let request = Request::get(&ready).body(Default::default()).unwrap();
                async move { s.send(request).await.status == 200 }
            })
            .await;
        prometheus
    }

    /// Queries its HTTP API with the client of `server`.
    async fn query(&self, server: &Server, path: &str) -> Value {
        let request = Request::get(format!("http://{}/api/v1/{path}", self.address));
        let reply = server.send(request.body(Default::default()).unwrap()).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.json()["data"].clone()
    }

    /// Current number of series of an expression.
    async fn count_series(&self, server: &Server, expression: &str) -> usize {
        let all = percent_encoding::NON_ALPHANUMERIC;
        let query = percent_encoding::utf8_percent_encode(expression, all);
        self.query(server, &format!("query?query={query}")).await["result"].as_array().unwrap().len()
    }

    /// The rules with their state.
    async fn rules(&self, server: &Server) -> Vec<Value> {
        self.query(server, "rules").await["groups"][0]["rules"].as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Address of a server of the metrics that `probe` and `pull` write; they have no model to find fault with.
async fn machine_metrics() -> String {
    let db = Db::new().await;
    let folder = TempFolder::new("probe");
    let file = folder.join("probe.prom");
    let mut probe = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    probe.args(["probe", "--metrics-file", file.to_str().unwrap()]).env("DATABASE_URL", &db.url);
    let output = probe.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let catalog = serve(|_| response(200, &[], r#"{"models":[],"not_found":["a"],"missing_dependencies":[]}"#));
    let pulled = folder.join("pull.prom");
    let mut pull = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    pull.args(["pull", "--needed", "a", "--catalog-url", &catalog, "--cache", "http://127.0.0.1:1"]);
    pull.arg("--dir").arg(folder.join("models")).arg("--metrics-file").arg(&pulled);
    assert_eq!(pull.output().unwrap().status.code(), Some(1));
    let text = [file, pulled].map(|path| std::fs::read_to_string(path).unwrap()).concat();
    serve(move |_| response(200, &["content-type: text/plain; version=0.0.4"], &text))
}

/// Every panel except the row headings.
fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    panels.iter().filter(|panel| panel["type"] != "row").cloned().collect()
}

/// The expressions of the dashboard, with Grafana's variables filled in.
fn expressions() -> Vec<String> {
    let expressions = panels().into_iter().flat_map(|panel| panel["targets"].as_array().unwrap().clone());
    let text = expressions.map(|target| target["expr"].as_str().unwrap().to_owned());
    text.map(|text| text.replace("$job", ".*").replace("$instance", ".*").replace("$__rate_interval", "30s")).collect()
}

/// The metrics that an expression names.
fn metrics_of(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    words.filter(|word| word.starts_with("catalog_") || word.starts_with("process_"))
}

#[test]
fn promtool_accepts_rules_and_runs_their_tests() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    for arguments in [
        ["check", "rules", "alerts.yaml"].as_slice(),
        &["check", "config", "prometheus.yaml"],
        &["test", "rules", "alerts.test.yaml"],
    ] {
        let output = Command::new("promtool").args(arguments).current_dir(&directory).output();
        let output = output.unwrap_or_else(|error| panic!("promtool: {error}; `make test-tools` installs it"));
        let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "promtool {arguments:?}: {printed}");
    }
    let names: Vec<_> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let sections: Vec<_> = RUNBOOK.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert!(sections.iter().all(|section| names.contains(section)), "{sections:?} are not all alerts: {names:?}");
    for name in names {
        assert!(sections.contains(&name), "docs/runbook.md has no section {name}");
        assert!(RULE_TESTS.contains(&format!("alertname=\"{name}\"")), "no test covers {name}");
        assert!(METRICS.contains(&format!("\n| `{name}` | ")), "docs/metrics.md does not list {name}");
    }
}

#[test]
fn dashboard_has_valid_panels_and_variables() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    assert!(dashboard["uid"].is_string() && dashboard["title"].is_string() && dashboard["schemaVersion"].is_u64());
    let all = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = all.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), all.len(), "two panels have the same id");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let kinds: Vec<_> = variables.iter().map(|variable| (&variable["name"], &variable["type"])).collect();
    let [datasource, query] = ["datasource", "query"].map(Value::from);
    assert_eq!(kinds, [(&datasource, &datasource), (&"job".into(), &query), (&"instance".into(), &query)]);
    for panel in panels() {
        let title = panel["title"].as_str().unwrap();
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().unwrap();
        let names: BTreeSet<_> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert!(!targets.is_empty() && names.len() == targets.len(), "{title}: {targets:?}");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            let selectors = expression.matches('{').count();
            let selected = expression.matches("{job=~\"$job\", instance=~\"$instance\"").count();
            assert!(selected > 0 && selected == selectors, "{title}: {target}");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}: {target}");
        }
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24 && place("h") > 0, "{title} is off the grid");
    }
    let places = |panel: &Value| ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
    for (number, panel) in all.iter().enumerate() {
        let [x, y, w, h] = places(panel);
        for other in &all[number + 1..] {
            let [ox, oy, ow, oh] = places(other);
            let disjoint = x + w <= ox || ox + ow <= x || y + h <= oy || oy + oh <= y;
            assert!(disjoint, "{} overlaps {}", panel["title"], other["title"]);
        }
    }
}

/// The gauge is 0 before the first sync.
#[test]
fn dashboard_shows_the_time_since_the_start_before_the_first_sync() {
    let folder = TempFolder::new("never-synced");
    let ages: Vec<_> = expressions().into_iter().filter(|text| text.contains("catalog_last_sync")).collect();
    assert_eq!(ages.len(), 2);
    for (number, age) in ages.iter().enumerate() {
        let labels = if age.starts_with("max(") { "{}" } else { r#"{job="model-catalog", instance="a"}"# };
        let series = |name: &str| format!(r#"{name}{{job="model-catalog", instance="a"}}"#);
        let input = |name: &str, values: &str| json!({ "series": series(name), "values": values });
        let case = |synced: &str, expected: f64| {
            json!({
                "interval": "1m",
                "input_series": [
                    input("catalog_last_sync_timestamp_seconds", synced), input("process_start_time_seconds", "60x20"),
                ],
                "promql_expr_test": [
                    { "expr": age, "eval_time": "10m", "exp_samples": [{ "labels": labels, "value": expected }] },
                ],
            })
        };
        let file = folder.join(format!("{number}.yaml"));
        let tests = json!({ "rule_files": [], "tests": [case("0x20", 540.0), case("599x20", 1.0)] });
        std::fs::write(&file, tests.to_string()).unwrap();
        let output = Command::new("promtool").args(["test", "rules"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{age}: {output:?}");
    }
}

#[tokio::test]
async fn prometheus_has_data_for_every_rule_and_panel() {
    let db = Db::new().await;
    db.add("a").await;
    let folder = TempFolder::new("scraped");
    let file = folder.join("catalog");
    let server = Server::start_with(&db.url, &[("CATALOG_SNAPSHOT_FILE", file.to_str().unwrap())]).await;
    let prometheus = Prometheus::scraping(&server, &machine_metrics().await).await;
    let known: BTreeSet<_> = expressions().iter().flat_map(|e| metrics_of(e)).map(str::to_owned).collect();
    assert!(known.len() > 20, "the dashboard could not be read: {known:?}");

    // Some traffic before each query: known and unknown ids, single requests and batches, and a change.
    let mut missing = expressions();
    missing.extend(RULES.lines().flat_map(metrics_of).map(str::to_owned).chain(known));
    let deadline = Instant::now() + WAIT_LIMIT;
    while !missing.is_empty() {
        assert!(Instant::now() < deadline, "Prometheus has no data for {missing:#?}");
        db.sql("UPDATE models SET hash = md5(random()::text) WHERE id = 'a'").await;
        server.get("/api/models/a").await;
        server.batch(r#"{"model_ids":["a","none"]}"#).await;
        let mut still_missing = Vec::new();
        for expression in missing {
            if prometheus.count_series(&server, &expression).await == 0 {
                still_missing.push(expression);
            }
        }
        missing = still_missing;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // It asks for OpenMetrics, in which the metadata of a counter has no suffix.
    let metadata = prometheus.query(&server, "metadata?metric=catalog_notifications").await;
    assert_eq!(metadata["catalog_notifications"][0]["type"], "counter", "{metadata}");

    let rules = prometheus.rules(&server).await;
    assert_eq!(rules.len(), RULES.matches("- alert: ").count());
    server
        .until("all rules are evaluated and a healthy server raises no alert", |server| {
            let prometheus = &prometheus;
            async move {
                let rules = prometheus.rules(server).await;
                let failed = rules.iter().find(|rule| rule["health"] == "err");
                assert!(failed.is_none(), "{failed:?}");
                rules.iter().all(|rule| rule["health"] == "ok" && rule["state"] == "inactive")
            }
        })
        .await;

    // Conversely, a killed server raises alerts, which stay pending for their `for` duration.
    server.signal("KILL");
    server
        .until("the alerts are pending", |server| {
            let prometheus = &prometheus;
            async move {
                let rules = prometheus.rules(server).await;
                let raised = rules.iter().filter(|rule| rule["state"] == "pending");
                let names: BTreeSet<_> = raised.filter_map(|rule| rule["name"].as_str()).collect();
                names == BTreeSet::from(["ModelCatalogNoReplicaReady", "ModelCatalogReplicaDown"])
            }
        })
        .await;
}
