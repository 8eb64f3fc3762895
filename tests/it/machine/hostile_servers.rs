//! More than a hundred hostile servers and rows at once: nothing is written outside the models folder, no file that
//! differs from the catalog gets its final name, and no token is sent to another host.

use std::time::Duration;

use serde_json::{Value, json};

use super::files::Way;
use super::{Machine, content, sum};

/// Hand-written invalid responses.
fn crafted(store: &str) -> Vec<Vec<u8>> {
    let body = content(5, 100);
    let with = |head: &str| [head.replace('\n', "\r\n").as_bytes(), b"\r\n\r\n", &body].concat();
    let to = |location: &str| with(&format!("HTTP/1.1 302 x\nlocation: {location}\ncontent-length: 0"));
    vec![
        Vec::new(),
        b"\r\n\r\n".to_vec(),
        b"HTTP/1.1 200".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        body.clone(),
        vec![0; 100_000],
        with("HTTP/9.9 200 x"),
        with("HTTP/1.1 99 x"),
        with("HTTP/1.1 1000 x"),
        with("HTTP/1.1 204 x"),
        with("HTTP/1.1 304 x"),
        with("HTTP/1.1 302 x\ncontent-length: 0"),
        with("HTTP/1.1 407 x\ncontent-length: 0"),
        with("HTTP/1.1 200 x\ncontent-length: -1"),
        with("HTTP/1.1 200 x\ncontent-length: 18446744073709551615"),
        with("HTTP/1.1 200 x\ncontent-length: 18446744073709551616"),
        with("HTTP/1.1 200 x\ncontent-length: 100\ncontent-length: 50"),
        with("HTTP/1.1 200 x\ncontent-length: 0"),
        with("HTTP/1.1 200 x\ntransfer-encoding: chunked"),
        with("HTTP/1.1 200 x\ntransfer-encoding: gzip, chunked"),
        with("HTTP/1.1 200 x\ncontent-encoding: gzip\ncontent-length: 100"),
        with("HTTP/1.1 200 x\ncontent-type: text/html; charset=utf-8\ncontent-length: 100"),
        with("HTTP/1.1 206 x\ncontent-length: 100"),
        with("HTTP/1.1 206 x\ncontent-range: bytes 0-0/18446744073709551615\ncontent-length: 1"),
        with("HTTP/1.1 206 x\ncontent-range: bytes 0-0/*\ncontent-length: 1"),
        with("HTTP/1.1 206 x\ncontent-range: bytes 0-0/0\ncontent-length: 1"),
        with("HTTP/1.1 206 x\ncontent-range: bytes 0-99/100\ncontent-length: 100"),
        with("HTTP/1.1 206 x\ncontent-range: bytes 50-99/100\ncontent-length: 100"),
        with("HTTP/1.1 206 x\ncontent-range: bytes -1-0/100\ncontent-length: 1"),
        with("HTTP/1.1 206 x\ncontent-range: bytes 0-18446744073709551615/*\ncontent-length: 1"),
        with("HTTP/1.1 416 x\ncontent-range: bytes */0\ncontent-length: 0"),
        with("HTTP/1.1 416 x\ncontent-range: bytes */100\ncontent-length: 0"),
        with("HTTP/1.1 200 x\ncontent-disposition: attachment; filename=\"../../outside\"\ncontent-length: 100"),
        with("HTTP/1.1 200 x\nset-cookie: a=b\netag: \"\u{1b}[31m\"\ncontent-length: 100"),
        with(&format!("HTTP/1.1 200 x\n{}content-length: 100", "x: y\n".repeat(5_000))),
        with(&format!("HTTP/1.1 200 x\nx: {}\ncontent-length: 100", "y".repeat(1_000_000))),
        with(&format!("HTTP/1.1 503 x\nretry-after: {}\ncontent-length: 0", "9".repeat(40))),
        "HTTP/1.1 100 Continue\r\n\r\n".repeat(1_000).into_bytes(),
        to("file:///etc/passwd"),
        to("ftp://127.0.0.1/x"),
        to("javascript:alert(1)"),
        to("http://"),
        to("//"),
        to("https://127.0.0.1:1/"),
        to("http://[::1/"),
        to("\u{1b}[2J"),
        to(&"../".repeat(10_000)),
        to(&format!("http://{store}/endless")),
        to(&format!("//{store}/stored")),
        to(&format!("http://huggingface.co@{store}/stored")),
        to(&format!("http://{store}/stored#http://huggingface.co")),
        to(&format!("http://{store}\\@huggingface.co/stored")),
        to(&format!("HTTP://{store}/stored?https://huggingface.co/")),
        to(&format!("http://{store}./stored")),
    ]
}

/// Randomly assembled invalid responses.
fn random(count: usize, store: &str) -> Vec<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(11);
    let statuses = ["200", "206", "301", "302", "307", "401", "403", "404", "416", "429", "500", "0"];
    let (to, evil) = (format!("http://{store}/stored"), format!("http://x:y@{store}/stored"));
    let values = [
        "0",
        "1",
        "100",
        "-1",
        "*",
        "bytes 0-0/1",
        "bytes 0-99/100",
        "bytes 5-1/2",
        "text/html",
        "gzip",
        "chunked",
        &to,
        &evil,
    ];
    let names = [
        "content-length",
        "content-range",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "location",
        "etag",
        "retry-after",
        "connection",
        "www-authenticate",
        "\0",
        "content length",
    ];
    let mut response = || {
        let mut text = format!("HTTP/1.1 {} x\r\n", statuses[random.usize(..statuses.len())]);
        for _ in 0..random.usize(..6) {
            let (name, value) = (names[random.usize(..names.len())], values[random.usize(..values.len())]);
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        [text.as_bytes(), b"\r\n", &content(random.u64(..), random.usize(..300))].concat()
    };
    (0..count).map(|_| response()).collect()
}

const PATHS: [&str; 16] = [
    "../outside",
    "a/../../outside",
    "/outside",
    "..%2foutside",
    "%2e%2e/outside",
    "a\\..\\..\\outside",
    "a/..",
    "a/\u{202e}/x",
    "..\u{0}",
    "~/outside",
    "$HOME/outside",
    ".model-catalog/record.json",
    ".model-catalog-x",
    "a//..//../outside",
    "\u{ff0e}\u{ff0e}/outside",
    "a/./../../outside",
];

#[test]
fn hostile_servers_and_rows_write_nothing_outside_and_get_no_token() {
    let mut machine = Machine::new("hostile", "all");
    machine.store.put("/stored", Way::File(content(6, 100)));
    machine.store.put("/endless", Way::Redirect(302, "/endless?more".into()));
    let mut responses = crafted(&machine.store.address);
    responses.extend(random(60, &machine.store.address));
    let count = responses.len();
    assert!(count > 100, "{count}");
    // No server has content with this hash.
    let hash = sum("sha256sum", b"never sent");
    let model = |id: String, url: &str, path: &str| json!({"id": id, "download_url": url, "file_size_gb": null, "hash": hash, "auth_required": true, "save_path": path});
    let mut models: Vec<Value> = Vec::new();
    for (number, response) in responses.into_iter().enumerate() {
        let url = machine.hub.put(&format!("/{number}"), Way::Raw(response));
        let mut entry = model(format!("server {number}"), &url, &format!("servers/{number}"));
        // Distinct contents, because equal content is downloaded once.
        entry["hash"] = sum("sha256sum", format!("never sent {number}").as_bytes()).into();
        models.push(entry);
    }
    let url = machine.store.put("/wrong", Way::File(content(7, 100)));
    models.extend(PATHS.iter().enumerate().map(|(number, path)| model(format!("path {number}"), &url, path)));
    for (number, url) in
        ["", "x", "http:", "http://", "file:///etc/passwd", "data:,x", "http://h\tx/"].iter().enumerate()
    {
        models.push(model(format!("url {number}"), url, &format!("urls/{number}")));
    }
    models.extend([json!(null), json!({"id": 1}), json!([]), json!({"id": "\u{1b}[2J"}), json!("x")]);
    let total = models.len();
    let catalog = json!({"models": models, "not_found": ["\u{1b}[31m\n"], "missing_dependencies": []}).to_string();
    machine.store.put("/api/models/batch", Way::Post(catalog));
    for (name, value) in [
        ("CATALOG_URL", format!("http://{}", machine.store.address)),
        ("MACHINE_MODELS_TRIES", "1".into()),
        ("MACHINE_MODELS_PARALLEL", "16".into()),
        ("MACHINE_MODELS_STALL", "1s".into()),
        ("CATALOG_LOG", "trace".into()),
        ("MACHINE_MODELS_STATUS_FILE", machine.folder.join("status").to_str().unwrap().into()),
        ("MACHINE_MODELS_METRICS_FILE", machine.folder.join("metrics").to_str().unwrap().into()),
    ] {
        machine.set(name, &value);
    }
    let begun = std::time::Instant::now();
    let boot = machine.boot(&[]);
    assert_eq!(boot.status, 1, "{}", boot.log);
    assert!(boot.log.contains(&format!("fetched=0 present=0 linked=0 missing={}", total + 1)), "{}", tail(&boot.log));
    assert!(begun.elapsed() < Duration::from_secs(60), "it took {:?}", begun.elapsed());
    let kept: Vec<_> = machine.files().into_iter().filter(|name| !name.contains(".model-catalog")).collect();
    assert!(kept.is_empty(), "{kept:?}");
    let mut outside: Vec<_> =
        std::fs::read_dir(&machine.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    outside.sort();
    assert_eq!(outside, ["metrics", "models", "status"]);
    assert!(!machine.folder.parent().unwrap().join("outside").exists());
    let requests = machine.store.take_requests();
    assert!(
        requests.len() > 10
            && requests
                .iter()
                .all(|request| request.token.as_deref().is_none_or(|token| !token.contains(&machine.token)))
    );
    assert!(
        machine
            .hub
            .take_requests()
            .iter()
            .all(|request| request.token.as_deref() == Some(&format!("Bearer {}", machine.token)))
    );
    for file in ["status", "metrics"] {
        let text = std::fs::read_to_string(machine.folder.join(file)).unwrap();
        assert!(!text.contains(&machine.token) && !text.contains('\u{1b}'), "{file}: {text}");
    }
    assert!(!boot.log.contains('\u{1b}'), "an escape sequence reached the terminal");
}

fn tail(log: &str) -> &str {
    log.lines().last().unwrap_or_default()
}
