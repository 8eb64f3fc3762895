//! Settings: error messages for invalid values, passwords kept out of them, and documentation of every setting and metric.

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::docs::{self, CONFIGURATION, METRICS};
use crate::support::{Db, Server, WAIT_LIMIT};

const COMMANDS: [&str; 7] = ["serve", "demo", "migrate", "check", "probe", "import", "export"];
/// A database that cannot be reached, so that a command that accepts an invalid setting fails anyway.
const NO_DATABASE: &str = "host=/nonexistent user=nobody dbname=none";

/// Runs the program with only these variables, until it exits.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    command.args(arguments).env_clear().envs(variables.iter().copied());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + WAIT_LIMIT;
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    let still_running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!still_running, "{arguments:?} {variables:?} did not exit: {}", printed(&output));
    output
}

fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn invalid_value_error_names_the_variable_and_a_valid_value() {
    let long = "c".repeat(64);
    for (variable, value, valid_example) in [
        ("CATALOG_ADDR", "localhost", "127.0.0.1:3000"),
        ("CATALOG_ADMIN_ADDR", "9000", "127.0.0.1:3000"),
        ("CATALOG_THREADS", "0", "a whole number above 0"),
        ("CATALOG_MAX_BATCH_IDS", "many", "a whole number above 0"),
        ("CATALOG_MAX_BODY_BYTES", "1MiB", "a whole number above 0"),
        ("CATALOG_MAX_CONNECTIONS", "-1", "a whole number above 0"),
        ("CATALOG_MAX_CONNECTIONS_PER_ADDR", "0", "a whole number above 0"),
        ("CATALOG_MAX_BUFFER_BYTES", "1GiB", "a whole number above 0"),
        ("CATALOG_REQUEST_TIMEOUT", "0s", "such as 500ms, 10s or 1h"),
        ("CATALOG_IDLE_TIMEOUT", "75", "such as 500ms, 10s or 1h"),
        ("CATALOG_RATE_LIMIT", "10/s", "a whole number above 0"),
        ("CATALOG_RATE_BURST", "0", "a whole number above 0"),
        ("CATALOG_TRUSTED_PROXIES", "10.0.0.0/8,10.0.0.0/40", "such as 10.0.0.0/8,::1"),
        ("CATALOG_CLIENT_ADDR_HEADER", "x forwarded", "the name of a header"),
        ("CATALOG_CORS_ALLOW_ORIGIN", "example.org", "such as https://example.org"),
        ("CATALOG_CORS_ALLOW_ORIGIN", "https://example.org/", "such as https://example.org"),
        ("CATALOG_LOG_SLOW_REQUESTS", "1", "such as 500ms, 10s or 1h"),
        ("CATALOG_POLL_INTERVAL", "10", "such as 500ms, 10s or 1h"),
        ("CATALOG_POLL_INTERVAL", "0s", "such as 500ms, 10s or 1h"),
        ("CATALOG_UPSTREAM_INTERVAL", "0s", "such as 500ms, 10s or 1h"),
        ("CATALOG_STANDBY_POLL_INTERVAL", "250", "such as 500ms, 10s or 1h"),
        ("CATALOG_AUDIT_INTERVAL", "300years", "at most 1year"),
        ("CATALOG_DATABASE_TIMEOUT", "soon", "such as 500ms, 10s or 1h"),
        ("CATALOG_DATABASE_TIMEOUT", "25days", "at most 24days"),
        ("CATALOG_DRAIN_GRACE", "5 apples", "such as 500ms, 10s or 1h"),
        ("CATALOG_DRAIN_TIMEOUT", "-1s", "such as 500ms, 10s or 1h"),
        ("CATALOG_CHANNEL", &long, "1 to 63 bytes"),
        ("CATALOG_REPLICA_NAME", "two words", "1 to 16 ASCII"),
        ("CATALOG_URL_SCHEMES", "https://", "such as https"),
        ("CATALOG_URL_SCHEMES", "https,1s3", "such as https"),
        ("CATALOG_LOG", "info,http=loud", "a level such as info"),
        ("CATALOG_LOG_FORMAT", "xml", "text, json"),
    ] {
        let output = run(&["serve"], &[("DATABASE_URL", NO_DATABASE), (variable, value)]);
        let text = printed(&output);
        assert_eq!(output.status.code(), Some(2), "{variable}={value}: {text}");
        // The message shows the invalid element of a list, and the whole of any other value.
        let shown = value.rsplit(',').next().unwrap();
        for part in [variable, shown, valid_example] {
            assert!(text.contains(part), "{variable}={value}: no `{part}` in {text}");
        }
    }
}

#[test]
fn invalid_flag_error_names_the_variable() {
    let output = run(&["serve", "--threads", "none"], &[("DATABASE_URL", NO_DATABASE)]);
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("'--threads <NUMBER>' or 'CATALOG_THREADS'"), "{text}");
}

#[test]
fn missing_database_url_error_names_the_variable() {
    for command in ["serve", "migrate"] {
        let output = run(&[command], &[]);
        let text = printed(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("DATABASE_URL") && text.contains("--database-url"), "{text}");
    }
}

#[test]
fn missing_argument_error_names_the_argument() {
    let output = run(&["import"], &[("DATABASE_URL", NO_DATABASE)]);
    assert!(output.status.code() == Some(2) && printed(&output).contains("<FILE>"), "{}", printed(&output));
}

#[test]
fn address_in_use_error_names_the_address() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for variable in ["CATALOG_ADDR", "CATALOG_ADMIN_ADDR"] {
        let variables = [("CATALOG_ADDR", "127.0.0.1:0"), ("DATABASE_URL", NO_DATABASE), (variable, &address)];
        let output = run(&["serve"], &variables);
        let text = printed(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let flag = if variable == "CATALOG_ADDR" { "--addr" } else { "--admin-addr" };
        let advice = format!("set {variable} or {flag} to another address");
        assert!(text.contains(&format!("cannot listen on {address}")) && text.contains(&advice), "{text}");
    }
}

#[test]
fn malformed_database_url_error_hides_the_password() {
    for url in [
        "user=me password=s3cret dbname=models",
        "postgres://me:s3cret@db:port/models",
        "postgres://me:s3cret@db/models?sslmode=perhaps",
        "postgres://me:s3cret@db/models?no_such_option=1",
        "postgres://%ff:s3cret@db/models",
        "postgre://me:s3cret@db/models?sslmode=disable",
        "postgresqls3cret",
        "jdbc:postgresql://db/models?user=me&password=s3cret",
        "host=db password=my s3cret=word",
        "host=db password='s3cret",
        "host=db passwort=s3cret",
        "s3cret",
    ] {
        for command in ["serve", "migrate"] {
            let output = run(&[command], &[("DATABASE_URL", url), ("CATALOG_LOG", "off")]);
            let text = printed(&output);
            assert_eq!(output.status.code(), Some(2), "{url}: {text}");
            assert!(!text.contains("s3cret"), "{url}: {text}");
            let mode = url.contains("perhaps");
            let valid_example =
                if mode { "use disable, prefer, require" } else { "postgres://user@host:5432/database" };
            for part in ["DATABASE_URL", valid_example] {
                assert!(text.contains(part), "{url}: no `{part}` in {text}");
            }
        }
    }
}

#[tokio::test]
async fn unreachable_database_error_hides_the_password() {
    // Nothing listens on port 1.
    for url in ["postgres://me:s3cret@127.0.0.1:1/models", "host=/nonexistent user=me password=s3cret"] {
        let output = run(&["migrate"], &[("DATABASE_URL", url), ("CATALOG_LOG", "trace")]);
        assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
        assert!(printed(&output).contains("ERROR") && !printed(&output).contains("s3cret"), "{}", printed(&output));

        let server = Server::spawn(url, &[("CATALOG_LOG", "trace")]).await;
        let unavailable = |s: &Server| std::future::ready(s.logged("the database is unavailable") > 0);
        server.until("the failed connection is logged", unavailable).await;
        assert_eq!(server.logged("s3cret"), 0, "{:#?}", server.log());
    }
}

/// A setting as `--help` shows it: flag, variable, default.
type Setting = (String, String, Option<String>);

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inner, _)| inner)
}

fn settings(command: &str) -> Vec<Setting> {
    let output = run(&[command, "--help"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));
    let help = printed(&output);
    let options = help.split_once("Options:").unwrap().1.split("\n      --").skip(1);
    let options = options.map(|option| option.split("\n  -").next().unwrap());
    // A switch without a variable is not a setting.
    let takes_value = |option: &str| option.split_whitespace().nth(1).is_some_and(|value| value.starts_with('<'));
    let options = options.filter(|option| takes_value(option) || option.contains("[env: "));
    options
        .map(|option| {
            let flag = format!("--{}", option.split_whitespace().next().unwrap());
            let variable =
                between(option, "[env: ", "]").unwrap_or_else(|| panic!("{flag} shows no variable: {option}"));
            let variable = variable.trim_end_matches('=').to_owned();
            (flag, variable, between(option, "[default: ", "]").map(str::to_owned))
        })
        .collect()
}

#[test]
fn help_and_documentation_list_every_setting() {
    let mut all = BTreeMap::new();
    for command in COMMANDS {
        let settings = settings(command);
        let has = |variable: &str| settings.iter().any(|(_, name, _)| name == variable);
        assert!(has("CATALOG_LOG") && has("CATALOG_LOG_FORMAT"), "{command}: {settings:?}");
        for variable in ["DATABASE_URL", "CATALOG_CHANNEL", "CATALOG_DATABASE_TIMEOUT"] {
            assert_eq!(has(variable), command != "demo", "{command}: {variable}");
        }
        for variable in ["CATALOG_ADDR", "CATALOG_ADMIN_ADDR", "CATALOG_POLL_INTERVAL", "CATALOG_DRAIN_GRACE"] {
            let serves = ["serve", "demo"].contains(&command);
            assert_eq!(has(variable), serves, "{command}: {variable}");
        }
        // A demo, which comes after `serve`, waits for no load balancer.
        let grace = settings.iter().find(|(_, name, _)| name == "CATALOG_DRAIN_GRACE");
        let grace = grace.and_then(|(_, _, default)| default.as_deref());
        assert!(grace.is_none_or(|grace| grace == if command == "demo" { "0s" } else { "5s" }), "{command}: {grace:?}");
        for (flag, variable, default) in settings {
            all.entry(variable).or_insert((flag, default));
        }
    }
    assert!(all.len() > 10, "the help could not be read: {all:?}");
    for (variable, (flag, default)) in &all {
        let default = default.as_ref().map_or("–".into(), |default| format!("`{default}`"));
        let row = format!("\n| `{variable}` | `{flag}` | {default} | ");
        assert!(CONFIGURATION.contains(&row), "docs/configuration.md lacks the row {row}");
    }
    for (document, text) in docs::ALL {
        for word in text.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
            // CATALOG_URL is read by GPU machines, not by the program.
            let setting = word == "DATABASE_URL" || word.starts_with("CATALOG_") && word != "CATALOG_URL";
            assert!(!setting || all.contains_key(word), "{document} names {word}, which no command takes");
        }
    }
}

#[test]
fn the_documents_for_machines_list_every_setting_of_pull() {
    let document = include_str!("../../../docs/gpu-machines.md");
    let mut count = 0;
    for (flag, variable, default) in settings("pull") {
        if variable.starts_with("CATALOG_LOG") {
            continue;
        }
        let default = default.map_or("–".into(), |default| format!("`{default}`"));
        let row = format!("\n| `{variable}` | `{flag}` | {default} | ");
        assert!(document.contains(&row), "docs/gpu-machines.md lacks the row {row}");
        count += 1;
    }
    let rows = document.lines().filter(|line| line.starts_with("| `M") || line.starts_with("| `CATALOG")).count();
    assert_eq!(rows, count, "docs/gpu-machines.md lists a setting that there is not");
}

/// The metrics of an exposition with the names of their labels.
fn metrics(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in names {
        let samples = text.lines().filter_map(|line| line.strip_prefix(name)?.split_once('{'));
        let mut labels = Vec::new();
        for (_, rest) in samples.filter(|(suffix, _)| ["", "_bucket"].contains(suffix)) {
            // A route template has braces, but no quote and no comma.
            let pairs = rest.rsplit_once('}').unwrap().0.split(',');
            labels.extend(pairs.map(|pair| pair.split('=').next().unwrap().to_owned()));
        }
        labels.sort();
        labels.dedup();
        labels.retain(|label| label != "le");
        found.insert(name.to_owned(), labels);
    }
    found
}

#[tokio::test]
async fn every_metric_is_documented_with_its_labels() {
    let db = Db::new().await;
    // Some metrics are exposed only if their feature is enabled.
    let server = Server::start_with(&db.url, &[("CATALOG_SNAPSHOT_FILE", "/nonexistent/catalog")]).await;
    let exposed = metrics(&server.get("/metrics").await.text());
    assert!(exposed.len() > 10, "{exposed:?}");
    let mut listed = BTreeMap::new();
    let rows = METRICS.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    for (metric, _) in rows.filter(|(metric, _)| metric.starts_with("catalog_") || metric.starts_with("process_")) {
        let (name, labels) = metric.trim_end_matches('}').split_once('{').unwrap_or((metric, ""));
        let mut labels: Vec<_> = labels.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect();
        labels.sort();
        listed.insert(name.to_owned(), labels);
    }
    assert_eq!(listed, exposed);
}

/// The variables of our own settings in the help of a command, and libpq's.
fn variables_of(command: &str) -> Vec<String> {
    let help = printed(&run(&[command, "--help"], &[]));
    let shown = help.split("[env: ").skip(1).filter_map(|rest| rest.split('=').next()).map(str::to_owned);
    let libpq =
        ["PGHOST", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSSLMODE", "PGSSLROOTCERT", "PGSERVICE", "PGOPTIONS"];
    let others = ["PGSSLCERT", "PGTARGETSESSIONATTRS", "HF_TOKEN", "HF_ENDPOINT", "CURL_CA_BUNDLE", "SSL_CERT_FILE"];
    shown.chain(libpq.into_iter().chain(others).map(str::to_owned)).collect()
}

/// Compose files write `X=${X:-}`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_variables_count_as_unset() {
    let db = Db::new().await;
    let folder = crate::support::TempFolder::new("empty-variables");
    let file = folder.path("models.json");
    std::fs::write(&file, "[]").unwrap();
    let mut tried = 0;
    for (arguments, needed, expected) in [
        (&["migrate"][..], &["DATABASE_URL"][..], 0),
        (&["check"], &["DATABASE_URL"], 0),
        (&["probe"], &["DATABASE_URL"], 0),
        (&["import", &file], &["DATABASE_URL"], 0),
        (&["export"], &["DATABASE_URL"], 0),
        (&["health"], &[], 1),
        (&["pull", "--dry-run"], &["CATALOG_URL", "MODELS_DIR"], 0),
    ] {
        let all = variables_of(arguments[0]);
        let needed = needed.iter().map(|name| match *name {
            "DATABASE_URL" => ("DATABASE_URL", db.url.as_str()),
            "CATALOG_URL" => ("CATALOG_URL", "http://127.0.0.1:9"),
            name => (name, "/nonexistent"),
        });
        let mut variables: Vec<_> = all.iter().map(|name| (name.as_str(), "")).collect();
        variables.extend(needed);
        let output = run(arguments, &variables);
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {}", printed(&output));
        tried += all.len();
    }
    let all = variables_of("serve");
    let set = ["DATABASE_URL", "CATALOG_ADDR", "CATALOG_DRAIN_GRACE", "CATALOG_LOG", "CATALOG_LOG_FORMAT"];
    let empty: Vec<_> =
        all.iter().filter(|name| !set.contains(&name.as_str())).map(|name| (name.as_str(), "")).collect();
    drop(Server::start_with(&db.url, &empty).await);
    assert!(tried + all.len() > 150, "{tried}");

    // One that is required is named as before, and the help shows all.
    let output = run(&["migrate"], &[("DATABASE_URL", "")]);
    assert!(output.status.code() == Some(2) && printed(&output).contains("DATABASE_URL"), "{}", printed(&output));
    let help = run(&["serve", "--help"], &[("CATALOG_THREADS", "")]);
    assert!(printed(&help).contains("[env: CATALOG_THREADS"), "{}", printed(&help));
}
