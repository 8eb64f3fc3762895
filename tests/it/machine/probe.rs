//! `model-catalog probe`: findings about addresses, sizes and hashes, what is written, and which metadata is trusted.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::{Duration, Instant};

use model_catalog::postgres::ephemeral::free_port;
use serde_json::{Value, json};

use super::files::{ReceivedRequest, Way};
use super::hubs::{first_byte, hubs, linked, response, serve};
use super::{Boot, Machine, PROGRAM, content, sum};
use crate::support::Db;

/// Adds a model; `size` and `hash` may be empty.
async fn add(db: &Db, id: &str, url: &str, auth: bool, size: &str, hash: &str) {
    let insert = "INSERT INTO models (id, name, download_url, save_path, auth_required, file_size_gb, hash)
                  VALUES ($1, $1, $2, $1, $3, nullif($4, '')::numeric, nullif($5, ''))";
    let transport = [&id as &(dyn tokio_postgres::types::ToSql + Sync), &url, &auth, &size, &hash];
    db.client.execute(insert, &transport).await.unwrap();
}

/// Runs `probe` with the settings of a machine; checks that no token was exposed.
fn probe(machine: &Machine, db: &Db, arguments: &[&str]) -> Boot {
    let mut command = Command::new(PROGRAM);
    command.arg("probe").args(arguments).env_clear().env("DATABASE_URL", &db.url);
    command.envs(machine.settings.iter().filter(|(name, _)| !name.starts_with("MACHINE")).cloned());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let boot = machine.ended(child);
    assert!(!boot.output.contains(&machine.token), "the token was printed: {}", boot.output);
    boot
}

fn json_of(boot: &Boot) -> Value {
    serde_json::from_str(&boot.output).unwrap_or_else(|error| panic!("{error}: {} {}", boot.output, boot.log))
}

/// The document that lists the metrics.
const DOCUMENT: &str = include_str!("../../../docs/probe.md");

const PAGE: &[&str] = &["content-type: text/html; charset=utf-8"];
const LARGE: u64 = 23_802_932_552;

#[tokio::test]
async fn findings_have_the_reason_and_the_fix() {
    let machine = Machine::new("probe", "");
    let (hub, store) = (&machine.hub, &machine.store);
    let db = Db::lenient().await;
    let file = content(1, 5_000);
    let (sha256, other) = (sum("sha256sum", &file), "0b".repeat(32));
    let stored = store.put("/stored", Way::File(file.clone()));
    let linked = |hash: &str| Way::Raw(linked(&stored, hash, 5_000));
    let page = || Way::Raw(response(200, PAGE, "<!doctype html>"));
    let at = |path: &str, way: Way| hub.put(path, way);
    let good = hub.put_for_token("/o/m/resolve/main/good", linked(&sha256));
    add(&db, "good", &good, true, "0.01", &sha256.to_uppercase()).await;
    add(&db, "md5", &good, true, "0", &"0a".repeat(16)).await;
    add(&db, "null", &good, true, "", "").await;
    add(&db, "another file", &at("/o/m/resolve/main/new", linked(&other)), false, "0.01", &sha256).await;
    add(&db, "gone", &at("/gone", Way::Status(404)), false, "", "").await;
    add(&db, "gate", &hub.put_for_token("/gate", Way::File(file.clone())), false, "", "").await;
    add(&db, "licence", &at("/licence", Way::Status(403)), true, "", "").await;
    add(&db, "tokenless", &store.put_for_token("/tokenless", Way::File(file.clone())), true, "", "").await;
    let no_repository = Way::Raw(response(401, &["x-error-code: RepoNotFound"], ""));
    add(&db, "repository", &at("/repository", no_repository), false, "", "").await;
    add(&db, "it's a page", &at("/o/m/blob/main/x", page()), false, "", "").await;
    add(&db, "secret", &(at("/o/m/blob/main/y", page()) + "?token=s3cret"), false, "", "").await;
    add(&db, "html", &store.put("/html", page()), false, "", "").await;
    add(&db, "size", &store.put("/large", Way::Raw(first_byte(LARGE))), false, "23.79", &sha256).await;
    add(&db, "refused", &format!("http://{}/large", store.address), false, "12", "").await;
    add(&db, "rounded", &format!("http://{}/large", store.address), false, "23.8", &sha256).await;
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n".to_vec();
    add(&db, "pointer", &store.put("/pointer", Way::File(pointer)), false, "", "").await;
    let refusal = br#"{"message": "not found"}"#.to_vec();
    add(&db, "refusal", &store.put("/refusal", Way::File(refusal)), false, "", "").await;
    // The right bytes with the wrong type.
    add(&db, "typed", &store.put("/typed", Way::Raw(response(200, PAGE, "GGUF"))), false, "0.01", &sha256).await;
    let closed = format!("127.0.0.1:{}", free_port().unwrap());
    add(&db, "closed", &format!("http://{closed}/x"), false, "", "").await;
    add(&db, "scheme", "ftp://example.org/x", false, "", "").await;

    let boot = probe(&machine, &db, &["--attempts", "1"]);
    assert_eq!(boot.status, 1, "{} {}", boot.output, boot.log);
    for line in [
        &*format!("ok       address       \"good\": 5000 bytes at 127.0.0.1, sha256 {sha256}\n"),
        &format!("ok       address       \"md5\": 5000 bytes at 127.0.0.1, sha256 {sha256}\n"),
        "warning  size          \"null\": file_size_gb is NULL, the file has 5000 bytes (0.01 GB)\n    model-catalog probe --fill\n\
         warning  hash          \"null\": hash is NULL, so machines cannot verify the file\n    model-catalog probe --fill\n",
        &format!(
            "PROBLEM  hash          \"another file\": hash is not that of the file, so machines refuse it: another file is at the \
             address now\n    UPDATE public.models SET hash = '{other}' WHERE id = 'another file';\n"
        ),
        "PROBLEM  address       \"gone\": 127.0.0.1 returned status 404: the URL in the catalog is dead\n    SELECT",
        "PROBLEM  address       \"gate\": 127.0.0.1 returned status 401: it requires a token, but the catalog does not set \
         auth_required\n    UPDATE public.models SET auth_required = true WHERE id = 'gate';\n",
        "PROBLEM  address       \"licence\": 127.0.0.1 returned status 403: the token in HF_TOKEN was rejected; has its owner \
         accepted the model's licence?\n",
        "PROBLEM  address       \"tokenless\": 127.0.0.1 returned status 401: it requires a token, and no token may be sent to this host\n",
        "; the hub has no such repository, or it is private\n    SELECT",
        &format!("SET download_url = 'http://{}/o/m/resolve/main/x' WHERE id = 'it''s a page';\n", hub.address),
        "PROBLEM  address       \"secret\": it is the address of the page about a file, not of the file: ",
        "PROBLEM  address       \"html\": 127.0.0.1 sent a web page (HTML) instead of a file",
        "warning  size          \"size\": file_size_gb is 23.79, the file has 23802932552 bytes (23.81 GB)\n    \
         UPDATE public.models SET file_size_gb = 23.81 WHERE id = 'size';\n",
        "PROBLEM  size          \"refused\": file_size_gb is 12.00, the file has 23802932552 bytes (23.81 GB), so machines refuse it\n",
        "PROBLEM  address       \"pointer\": 127.0.0.1 sent a git-lfs pointer instead of a file\n",
        "PROBLEM  address       \"refusal\": 127.0.0.1 sent a JSON document instead of a file\n",
        "ok       address       \"typed\": 4 bytes at 127.0.0.1\n",
        "PROBLEM  address       \"closed\": the connection to 127.0.0.1 failed: ",
        "warning  row           \"scheme\": not probed, because it breaks a rule: download_url has the scheme `ftp`",
    ] {
        assert!(boot.output.contains(line), "no `{line}` in {}", boot.output);
    }
    let about = |id: &str| boot.output.lines().filter(|line| line.contains(&format!(" \"{id}\": "))).count();
    assert_eq!((about("good"), about("md5"), about("rounded"), about("gone")), (1, 1, 1, 1), "{}", boot.output);
    assert!(!boot.output.contains("s3cret"), "{}", boot.output);
    assert!(boot.output.ends_with("\nproblems: 13, warnings: 4\n"), "{}", boot.output);
    // Every request is for the beginning, but a 403 may refuse the range alone.
    let requests = [hub.take_requests(), store.take_requests()].concat();
    let first_byte = |request: &ReceivedRequest| request.range.as_deref() == Some("bytes=0-1023");
    assert!(requests.iter().all(|request| first_byte(request) || request.path == "/licence"), "{requests:?}");
    assert!(store.take_requests().iter().all(|request| request.token.is_none()));
    assert_eq!(db.sql("SELECT count(*) FROM models WHERE hash IS NULL").await.as_deref(), Some("14"));
}

#[tokio::test]
async fn ids_select_models_and_status_depends_on_findings() {
    let machine = Machine::new("ids", "");
    let db = Db::new().await;
    let url = machine.store.put("/a", Way::File(content(1, 700)));
    add(&db, "a", &url, false, "0.01", "x").await;
    add(&db, "b", &machine.store.put("/b", Way::Status(404)), false, "", "").await;
    add(&db, "c", &url, false, "", "x").await;
    for (arguments, status, end) in [
        (&["a"][..], 0, "problems: 0, warnings: 0"),
        (&["a", "b"], 1, "problems: 1, warnings: 0"),
        (&["c"], 0, "problems: 0, warnings: 1"),
        (&["c", "--strict"], 1, "problems: 0, warnings: 1"),
        (
            &["absent"],
            1,
            "PROBLEM  row           \"absent\": model_catalog.entries has no row with this id\n\nproblems: 1",
        ),
        (
            &["a", "--metrics-file", "/nonexistent/x.prom"],
            2,
            "not completed: cannot write the metrics file /nonexistent/x.prom",
        ),
    ] {
        let boot = probe(&machine, &db, arguments);
        assert!(boot.status == status && boot.output.contains(end), "{arguments:?}: {} {}", boot.status, boot.output);
    }
    let missing = Db::empty().await;
    let boot = probe(&machine, &missing, &[]);
    assert!(boot.status == 2 && boot.output.contains("run `model-catalog migrate` first"), "{}", boot.output);
}

#[tokio::test]
async fn fill_writes_only_what_is_missing() {
    let machine = Machine::new("fill", "");
    let db = Db::new().await;
    let file = content(1, 5_000);
    let sha256 = sum("sha256sum", &file);
    let stored = machine.store.put("/stored", Way::File(file));
    let url = machine.hub.put("/o/m/resolve/main/x", Way::Raw(linked(&stored, &sha256, 5_000)));
    let theirs = "0b".repeat(16);
    for (id, size, hash) in [("both", "", ""), ("hash", "7", ""), ("size", "", &theirs), ("none", "7", &theirs)] {
        add(&db, id, &url, false, size, hash).await;
    }
    // A storage whose file is not the one that the hub describes: no hash is written.
    let other = machine.hub.put("/o/m/resolve/main/y", Way::Raw(linked(&stored, &sha256, 4_999)));
    add(&db, "other", &other, false, "", "").await;
    let boot = probe(&machine, &db, &["--fill", "--json"]);
    let found = json_of(&boot);
    let filled: Vec<_> = found["models"].as_array().unwrap().iter().map(|m| (&m["id"], &m["filled"])).collect();
    let [both, hash, size, none, other] = ["both", "hash", "size", "none", "other"].map(Value::from);
    let columns = [json!(["hash", "file_size_gb"]), json!(["hash"]), json!([]), json!(["file_size_gb"])];
    let expected =
        [(&both, &columns[0]), (&hash, &columns[1]), (&none, &columns[2]), (&other, &columns[3]), (&size, &columns[3])];
    assert_eq!(filled, expected, "{found:#}");
    let rows = "SELECT string_agg(concat_ws(' ', id, file_size_gb, hash), ', ' ORDER BY id) FROM models";
    let written = format!("both 0.01 {sha256}, hash 7.00 {sha256}, none 7.00 {theirs}, other 0.01, size 0.01 {theirs}");
    assert_eq!(db.sql(rows).await, Some(written.clone()));
    let model = &found["models"][0];
    let expected = json!({"id": "both", "outcome": "reachable", "reason": null, "detail": null, "host": "127.0.0.1",
                          "bytes": 5000, "sha256": sha256, "filled": ["hash", "file_size_gb"], "mirrors": []});
    assert_eq!(model, &expected);
    // The sizes of the others are those of other files.
    assert_eq!(boot.status, 0, "{found:#}");
    let about = |id: &str| found["findings"].as_array().unwrap().iter().filter(|f| f["id"] == id).count();
    assert_eq!((about("both"), about("none")), (2, 2), "{found:#}");

    let before = db.sql("SELECT string_agg(xmin::text, ' ' ORDER BY id) FROM models").await;
    probe(&machine, &db, &["--fill"]);
    assert_eq!(db.sql("SELECT string_agg(xmin::text, ' ' ORDER BY id) FROM models").await, before);
    assert_eq!(db.sql(rows).await, Some(written));
}

#[tokio::test]
async fn fill_leaves_a_row_whose_address_changed_meanwhile() {
    let machine = Machine::new("moved", "");
    let db = Db::new().await;
    let (asked, was_asked) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let may_go_on = Mutex::new(may_go_on);
    let address = serve(move |_| {
        asked.send(()).unwrap();
        may_go_on.lock().unwrap().recv().unwrap();
        first_byte(5_000)
    });
    add(&db, "moved", &format!("{address}/x"), false, "", "").await;
    let (status, output) = std::thread::scope(|scope| {
        let probe = scope.spawn(|| probe(&machine, &db, &["--fill"]));
        was_asked.recv().unwrap();
        let mut client = Command::new("psql");
        client.args(["-XqAt", &db.url, "-c", "UPDATE models SET download_url = 'https://example.org/elsewhere'"]);
        assert!(client.status().unwrap().success());
        go_on.send(()).unwrap();
        let boot = probe.join().unwrap();
        (boot.status, boot.output)
    });
    assert!(status == 0 && !output.contains("filled") && output.contains("warnings: 1"), "{output}");
    assert_eq!(db.sql("SELECT file_size_gb IS NULL FROM models").await.as_deref(), Some("t"));
}

#[tokio::test]
async fn fill_requires_that_public_models_is_served() {
    let machine = Machine::new("served", "");
    let db = Db::new().await;
    let url = machine.store.put("/x", Way::File(content(1, 500)));
    add(&db, "x", &url, false, "9", "").await;
    db.sql(
        "CREATE TABLE elsewhere AS TABLE models;
         CREATE OR REPLACE VIEW model_catalog.entries AS
         SELECT id, name, download_url, file_size_gb::numeric, hash, auth_required, auth_provider, save_path,
                dependencies, description, mirrors FROM elsewhere",
    )
    .await;
    let boot = probe(&machine, &db, &["--fill"]);
    assert!(boot.status == 2 && boot.output.contains("does not read public.models"), "{}", boot.output);
    assert!(machine.store.take_requests().is_empty());
    // Without --fill it is probed, and no fix changes another table.
    let boot = probe(&machine, &db, &[]);
    assert!(
        boot.status == 1 && boot.output.contains("SELECT * FROM model_catalog.entries WHERE id = 'x'"),
        "{}",
        boot.output
    );
    assert!(!boot.output.contains("UPDATE"), "{}", boot.output);
}

#[tokio::test]
async fn fill_waits_for_other_writers_up_to_the_timeout() {
    let machine = Machine::new("locked", "");
    let db = Db::new().await;
    let url = machine.store.put("/x", Way::File(content(1, 500)));
    add(&db, "x", &url, false, "", "").await;
    let mut writer = db.connect().await;
    let other = writer.transaction().await.unwrap();
    other.batch_execute("UPDATE models SET description = 'theirs'").await.unwrap();
    let boot = probe(&machine, &db, &["--fill", "--database-timeout", "2s"]);
    let expected = "not completed: nothing was written: cannot fill public.models: ";
    assert!(boot.status == 2 && boot.output.contains(expected), "{} {}", boot.status, boot.output);
    // What was found is reported.
    assert!(boot.output.contains("\"x\": 500 bytes"), "{}", boot.output);
}

#[tokio::test]
async fn retry_after_is_respected_and_a_host_that_always_refuses_is_given_up() {
    let machine = Machine::new("busy", "");
    let db = Db::new().await;
    let busy = || response(429, &["retry-after: 1"], "");
    let soon = Way::Once(busy(), Box::new(Way::File(content(1, 500))));
    add(&db, "soon", &machine.store.put("/soon", soon), false, "0.01", "x").await;
    let started = Instant::now();
    let boot = probe(&machine, &db, &["soon"]);
    assert!(boot.status == 0 && started.elapsed() >= Duration::from_secs(1), "{} {}", boot.status, boot.output);
    assert_eq!(machine.store.take_requests().len(), 2);

    for number in 0..20 {
        let url = machine.hub.put(&format!("/{number}"), Way::Raw(busy()));
        add(&db, &format!("never {number}"), &url, false, "", "").await;
    }
    let boot = probe(&machine, &db, &["--attempts", "2", "--per-host", "1"]);
    let warnings = boot.output.matches("warning  address       \"never ").count();
    assert!(boot.status == 0 && warnings == 20, "{} {}", boot.status, boot.output);
    assert_eq!(machine.hub.take_requests().len(), 21);
}

#[tokio::test]
async fn requests_are_parallel_up_to_the_limit_per_host() {
    let machine = Machine::new("parallel", "");
    let db = Db::new().await;
    let (active, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inside, highest) = (Arc::clone(&active), Arc::clone(&most));
    // Each response waits for a second request.
    let pair = Barrier::new(2);
    let address = serve(move |_| {
        highest.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
        pair.wait();
        inside.fetch_sub(1, SeqCst);
        first_byte(10)
    });
    for number in 0..8 {
        add(&db, &format!("m{number}"), &format!("{address}/{number}"), false, "0", "x").await;
    }
    let boot = probe(&machine, &db, &["--per-host", "2"]);
    assert_eq!((boot.status, boot.output.matches("ok       address").count()), (0, 8), "{}", boot.output);
    assert_eq!(most.load(SeqCst), 2);
}

/// The hubs of the test below, under their real names.
fn respond(host: &str, path: &str) -> Vec<u8> {
    let (real, forged) = ("0a".repeat(32), "0f".repeat(32));
    match (host, path) {
        ("huggingface.co:443", "/o/m/resolve/main/x") => {
            linked("https://cas-bridge.xethub.hf.co/x?X-Amz-Signature=1", &real, LARGE)
        }
        ("huggingface.co:443", "/o/m/resolve/main/forged") => {
            response(302, &["location: https://cas-bridge.xethub.hf.co/forged"], "")
        }
        ("cas-bridge.xethub.hf.co:443", "/forged") => {
            let tag = format!("x-linked-etag: \"{forged}\"");
            response(206, &[&tag, "x-linked-size: 1", &format!("content-range: bytes 0-0/{LARGE}")], "x")
        }
        ("civitai.com:443", "/api/v1/model-versions/12") => {
            let file = json!({"sizeKB": LARGE as f64 / 1024.0, "hashes": {"SHA256": real.to_uppercase()}});
            response(200, &["content-type: application/json"], &json!({"id": 12, "files": [file]}).to_string())
        }
        ("civitai.com:443", "/api/download/models/13") => response(401, &[], ""),
        ("civitai.com:443", path) if path.starts_with("/api/download/models/") => {
            response(307, &["location: https://cas-bridge.xethub.hf.co/x"], "")
        }
        ("cas-bridge.xethub.hf.co:443", _) => first_byte(LARGE),
        _ => response(404, &[], ""),
    }
}

#[tokio::test]
async fn hashes_are_trusted_only_from_the_hubs() {
    let mut machine = Machine::new("trust", "");
    let (proxy, seen) = hubs(&machine.folder, respond);
    let certificate = machine.folder.join("certificate.pem").to_str().unwrap().to_owned();
    machine.set("HTTPS_PROXY", &proxy);
    machine.set("CURL_CA_BUNDLE", &certificate);
    // It would replace the hub.
    machine.set("HF_ENDPOINT", "");
    let db = Db::new().await;
    add(&db, "hub", "https://huggingface.co/o/m/resolve/main/x", true, "", "").await;
    add(&db, "forged", "https://huggingface.co/o/m/resolve/main/forged", true, "23.81", "").await;
    add(&db, "shop", "https://civitai.com/api/download/models/12?type=Model", true, "", "").await;
    add(&db, "gated", "https://civitai.com/api/download/models/13", true, "", "").await;
    add(&db, "no document", "https://civitai.com/api/download/models/14", false, "", "").await;
    add(&db, "lookalike", "https://huggingface.co.example.org/o/m/resolve/main/x", true, "", "").await;
    let boot = probe(&machine, &db, &["--fill", "--json"]);
    let found = json_of(&boot);
    let real = "0a".repeat(32);
    let models: Vec<_> =
        found["models"].as_array().unwrap().iter().map(|m| [&m["id"], &m["sha256"], &m["outcome"]]).collect();
    let expected = [
        ["forged", "", "reachable"],
        ["gated", "", "unproven"],
        ["hub", &real, "reachable"],
        ["lookalike", "", "unreachable"],
        ["no document", "", "reachable"],
        ["shop", &real, "reachable"],
    ];
    let expected = expected.map(|row| row.map(|text| if text.is_empty() { Value::Null } else { text.into() }));
    assert_eq!(models, expected.iter().map(|row| [&row[0], &row[1], &row[2]]).collect::<Vec<_>>(), "{found:#}");
    let row = "SELECT concat_ws(' ', file_size_gb, hash) FROM models WHERE id = 'shop'";
    assert_eq!(db.sql(row).await, Some(format!("23.81 {real}")));
    // The token goes to its provider alone, and the storage gets none.
    let hub = Some(machine.token.clone());
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.sort();
    seen.dedup();
    let expected = [
        ("cas-bridge.xethub.hf.co:443", None),
        ("civitai.com:443", None),
        ("huggingface.co.example.org:443", None),
        ("huggingface.co:443", hub),
    ];
    assert_eq!(seen, expected.map(|(host, token)| (host.to_owned(), token)), "{found:#}");

    // With the token of the other provider, its gate is a problem of the row.
    let shop = format!("{}c", machine.token);
    machine.set("CIVITAI_TOKEN", &shop);
    let boot = probe(&machine, &db, &["gated", "shop"]);
    let expected =
        "PROBLEM  address       \"gated\": civitai.com returned status 401: the token in CIVITAI_TOKEN was rejected";
    assert!(boot.status == 1 && boot.output.contains(expected), "{} {}", boot.output, boot.log);
}

#[tokio::test]
async fn mirrors_are_probed_and_a_live_one_makes_a_model_reachable() {
    let machine = Machine::new("probemirrors", "");
    let (hub, store) = (&machine.hub, &machine.store);
    let db = Db::lenient().await;
    let path = machine.folder.join("probe.prom");
    let file = content(1, 5_000);
    let sha256 = sum("sha256sum", &file);
    let good = store.put("/good", Way::File(file));
    let shorter = store.put("/shorter", Way::File(content(2, 4_000)));
    let [gone, also_gone] = ["/gone", "/also-gone"].map(|path| store.put(path, Way::Status(404)));
    let another = hub.put("/o/m/resolve/main/x", Way::Raw(linked(&good, &"0b".repeat(32), 5_000)));
    for (id, url, mirrors) in [
        ("all dead", &gone, vec![&*also_gone]),
        ("alive", &good, vec![&*gone, &good, &shorter, &another, "ftp://example.org/x"]),
        ("mirror only", &gone, vec![&*also_gone, &shorter]),
    ] {
        add(&db, id, url, false, "", if id == "alive" { &sha256 } else { "" }).await;
        let update = "UPDATE models SET mirrors = to_jsonb($2::text[]) WHERE id = $1";
        db.client.execute(update, &[&id, &mirrors]).await.unwrap();
    }
    let arguments = ["--attempts", "1", "--url-schemes", "http,ftp", "--metrics-file", path.to_str().unwrap()];
    let boot = probe(&machine, &db, &arguments);
    let dead = "127.0.0.1 returned status 404: the URL in the catalog is dead";
    for line in [
        &*format!("PROBLEM  address       \"all dead\": {dead}\n"),
        &format!("warning  mirror        \"all dead\": mirrors[0]: {dead}\n"),
        "ok       address       \"alive\": 5000 bytes at 127.0.0.1\n",
        &format!("warning  mirror        \"alive\": mirrors[0]: {dead}\n"),
        "ok       mirror        \"alive\": mirrors[1]: 5000 bytes at 127.0.0.1\n",
        "warning  mirror        \"alive\": mirrors[2] is another file: it has 4000 bytes, that of download_url 5000\n",
        "warning  mirror        \"alive\": mirrors[3] is another file: its hash is not that of the row, so machines refuse it\n",
        "mirrors[4]: its catalog entry is invalid: machines download by http and https, not by ftp\n",
        &format!("warning  address       \"mirror only\": {dead}; machines download from a mirror\n"),
        "ok       mirror        \"mirror only\": mirrors[1]: 4000 bytes at 127.0.0.1\n",
    ] {
        assert!(boot.output.contains(line), "no `{line}` in {} {}", boot.output, boot.log);
    }
    assert!(boot.status == 1 && boot.output.contains("\nproblems: 1, "), "{}", boot.output);
    let text = std::fs::read_to_string(&path).unwrap();
    for line in [
        "catalog_probe_models{outcome=\"reachable\"} 2\n",
        "catalog_probe_models{outcome=\"unreachable\"} 1\n",
        "catalog_probe_model_unreachable{model=\"all dead\",reason=\"not_found\"} 1\n",
    ] {
        assert!(text.contains(line), "no `{line}` in {text}");
    }

    // Only the file at download_url fills a row.
    let found = json_of(&probe(&machine, &db, &["mirror only", "--attempts", "1", "--fill", "--json"]));
    let model = &found["models"][0];
    let mirror = json!({"reason": null, "detail": null, "host": "127.0.0.1", "bytes": 4000, "sha256": null});
    assert_eq!((&model["outcome"], &model["filled"]), (&json!("reachable"), &json!([])), "{found:#}");
    assert_eq!((&model["reason"], &model["mirrors"][1]), (&json!("not_found"), &mirror), "{found:#}");
}

#[tokio::test]
async fn metrics_file_counts_models_and_names_the_unreachable() {
    let machine = Machine::new("metered", "");
    let db = Db::new().await;
    let path = machine.folder.join("probe.prom");
    add(&db, "here", &machine.store.put("/here", Way::File(content(1, 500))), false, "", "").await;
    add(&db, "go\"ne", &machine.store.put("/gone", Way::Status(404)), false, "", "").await;
    add(&db, "html", &machine.store.put("/html", Way::Raw(response(200, PAGE, "<html>"))), false, "", "").await;
    add(&db, "busy", &machine.store.put("/busy", Way::Status(429)), false, "", "").await;
    let arguments = ["--attempts", "1", "--metrics-file", path.to_str().unwrap()];
    assert_eq!(probe(&machine, &db, &arguments).status, 1);
    let text = std::fs::read_to_string(&path).unwrap();
    for line in [
        "catalog_probe_models{outcome=\"reachable\"} 1\n",
        "catalog_probe_models{outcome=\"unreachable\"} 2\n",
        "catalog_probe_models{outcome=\"unproven\"} 1\n",
        "catalog_probe_model_unreachable{model=\"go\\\"ne\",reason=\"not_found\"} 1\n",
        "catalog_probe_model_unreachable{model=\"html\",reason=\"html\"} 1\n",
        "\ncatalog_probe_seconds ",
        "\ncatalog_probe_timestamp_seconds ",
    ] {
        assert!(text.contains(line), "no `{line}` in {text}");
    }
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(DOCUMENT.contains(&format!("\n| `{name}")), "docs/probe.md does not list {name}");
    }
    // Fixed models are no longer named, and no temporary file is left.
    db.sql("DELETE FROM models WHERE id <> 'here'").await;
    assert_eq!(probe(&machine, &db, &arguments).status, 0);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("catalog_probe_models{outcome=\"unreachable\"} 0\n") && !text.contains("html"), "{text}");
    assert!(!machine.folder.join("probe.prom.tmp").exists());
}

#[tokio::test]
async fn progress_bar_is_shown_on_a_terminal() {
    let db = Db::new().await;
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let may_go_on = Mutex::new(may_go_on);
    let address = serve(move |_| {
        may_go_on.lock().unwrap().recv().unwrap();
        first_byte(5_000)
    });
    add(&db, "slow", &format!("{address}/x"), false, "0", "x").await;
    // `script` runs the command on a terminal.
    let mut program = Command::new("script");
    program.args(["-qefc", &format!("{PROGRAM} probe"), "/dev/null"]);
    program.env("DATABASE_URL", &db.url).env("TERM", "xterm").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = program.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (mut shown, mut bytes) = (String::new(), [0; 4096]);
    while !shown.contains("0/1") {
        let count = stdout.read(&mut bytes).unwrap();
        assert!(count > 0, "{shown}");
        shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(shown.contains("probing"), "{shown}");
    go_on.send(()).unwrap();
    stdout.read_to_string(&mut shown).unwrap();
    assert!(child.wait().unwrap().success() && shown.contains("\"slow\": 5000 bytes"), "{shown}");
}
