//! Caches of a site: the nginx of `deploy/cache`, with a hub that wants a token and redirects to signed addresses, and
//! servers that are no good as a cache.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use model_catalog::postgres::ephemeral::free_port;
use serde_json::{Value, json};

use super::files::{ReceivedRequest, Way};
use super::hubs::response;
use super::{Boot, Machine, content, models_response, sum};
use crate::support::nginx::Nginx;
use crate::support::{TempFolder, until};

const CONFIG: &str = include_str!("../../../deploy/cache/nginx.conf");
const START: &str = include_str!("../../../deploy/cache/start.sh");
/// The size of the pieces of a file in that configuration.
const PIECE: usize = 4 << 20;

/// The cache of `deploy/cache`, which may fetch from one host.
struct SiteCache {
    nginx: Nginx,
    folder: TempFolder,
    url: String,
}

impl SiteCache {
    /// `origin` is the beginning of the allowed addresses; `slice` is the size of the pieces.
    fn start(origin: &str, slice: &str) -> Self {
        let (folder, port) = (TempFolder::new("site-cache"), free_port().unwrap());
        for name in ["run", "cache", "log"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        let (start, rest) = CONFIG.split_once("\"~^").unwrap();
        let (_, end) = rest.split_once("/[!-~]*$\"").unwrap();
        let mut config = format!("{start}\"~^{}/[!-~]*$\"{end}", origin.replace('.', "\\."));
        for (shipped, value) in [
            ("/run/model-cache", &*folder.path("run")),
            ("/var/cache/model-cache", &folder.path("cache")),
            ("/var/log/model-cache", &folder.path("log")),
            ("slice 4m", &format!("slice {slice}")),
            ("8800", &port.to_string()),
            // So that the log can be read at once.
            (" buffer=64k flush=5s", ""),
            ("worker_processes auto", "worker_processes 2"),
            // The disks of test machines may be nearly full.
            (" min_free=20g", ""),
        ] {
            assert!(config.contains(shipped), "deploy/cache/nginx.conf does not contain {shipped}");
            config = config.replace(shipped, value);
        }
        std::fs::write(folder.join("nginx.conf"), config).unwrap();
        let script = START.replace("/run/model-cache", &folder.path("run"));
        let script = script.replace("/etc/nginx/model-cache.conf", &folder.path("nginx.conf"));
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        let nginx = Nginx::spawn(command, &folder, port);
        Self { nginx, folder, url: format!("http://127.0.0.1:{port}") }
    }

    /// Requests a file; returns status and body.
    fn get(&self, digest: &str, origin: Option<&str>) -> (u16, Vec<u8>) {
        self.request("GET", digest, origin)
    }

    fn request(&self, method: &str, digest: &str, origin: Option<&str>) -> (u16, Vec<u8>) {
        let origin = origin.map_or(String::new(), |origin| format!("x-origin-url: {origin}\r\n"));
        self.send(&format!("{method} /sha256/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{origin}\r\n"))
    }

    fn send(&self, request: &str) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.url.trim_start_matches("http://")).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).unwrap();
        let end = memchr::memmem::find(&response, b"\r\n\r\n").unwrap() + 4;
        let status = std::str::from_utf8(&response[9..12]).unwrap().parse().unwrap();
        (status, response.split_off(end))
    }

    /// Whether a file of it contains this text.
    fn contains(&self, text: &str) -> bool {
        fn search(path: &Path, text: &[u8]) -> bool {
            if path.is_dir() {
                return std::fs::read_dir(path).unwrap().any(|entry| search(&entry.unwrap().path(), text));
            }
            memchr::memmem::find(&std::fs::read(path).unwrap_or_default(), text).is_some()
        }
        search(&self.folder, text.as_bytes())
    }
}

/// Size up to which a file has its size in the catalog, so that it is not planned.
const SMALL: usize = 300_000;

/// Puts files at a hub for its token, which redirects to signed addresses at the store, and in the catalog of a machine.
fn put(machine: &mut Machine, files: &[Vec<u8>]) {
    let models = files.iter().enumerate().map(|(number, file)| {
        let stored = machine.store.put(&format!("/stored/{number}"), Way::File(file.clone()));
        let url = machine.hub.put_for_token(&format!("/hub/{number}"), Way::Signed(stored));
        let size = (file.len() <= SMALL).then_some(file.len() as f64 / 1e9);
        json!({"id": format!("m{number}"), "download_url": url, "hash": sum("sha256sum", file), "file_size_gb": size,
               "auth_required": true, "save_path": format!("f/{number}")})
    });
    let catalog = json!({"models": models.collect::<Vec<_>>(), "not_found": [], "missing_dependencies": []});
    machine.store.put("/api/models/batch", Way::Post(catalog.to_string()));
    machine.set("CATALOG_URL", &format!("http://{}", machine.store.address));
    machine.set("MACHINE_MODELS_CACHE", "");
}

/// The cache in front of the store of a machine.
fn cache_of(machine: &mut Machine) -> SiteCache {
    cache_with(machine, "4m")
}

fn cache_with(machine: &mut Machine, slice: &str) -> SiteCache {
    let cache = SiteCache::start(&format!("http://{}", machine.store.address), slice);
    machine.set("MACHINE_MODELS_CACHE", &cache.url);
    cache
}

/// Starts pulls at once, each with a models folder of its own, named by its number.
fn spawn(machine: &mut Machine, count: usize) -> Vec<Child> {
    let start = |number: usize| {
        machine.set("MODELS_DIR", &machine.folder.path(&format!("models-{number}")));
        machine.set("MACHINE_MODELS_STATUS_FILE", &machine.folder.path(&format!("status-{number}.json")));
        machine.set("MACHINE_MODELS_METRICS_FILE", &machine.folder.path(&format!("pull-{number}.prom")));
        machine.spawn(&[])
    };
    (0..count).map(start).collect()
}

/// Waits for the pulls, of which each must have every file.
fn end(machine: &Machine, pulls: Vec<Child>, files: &[Vec<u8>]) -> Vec<Boot> {
    let check = |(number, pull)| {
        let boot = machine.ended(pull);
        assert_eq!(boot.status, 0, "{number}: {}", boot.log);
        for (file, expected) in files.iter().enumerate() {
            let path = machine.folder.join(format!("models-{number}/f/{file}"));
            assert!(std::fs::read(path).ok().as_ref() == Some(expected), "{number}: {file} differs: {}", boot.log);
        }
        boot
    };
    pulls.into_iter().enumerate().map(check).collect()
}

fn pull(machine: &mut Machine, files: &[Vec<u8>]) -> Boot {
    let _ = std::fs::remove_dir_all(machine.folder.join("models-0"));
    let pulls = spawn(machine, 1);
    end(machine, pulls, files).remove(0)
}

/// Bytes by source, as the status file of a pull has them, of one model.
fn sources(machine: &Machine, number: usize, id: &str) -> Value {
    let status = std::fs::read(machine.folder.join(format!("status-{number}.json"))).unwrap();
    let status: Value = serde_json::from_slice(&status).unwrap();
    let models = status["models"].as_array().unwrap();
    models.iter().find(|model| model["id"] == id).unwrap()["bytes_by_source"].clone()
}

fn metrics(machine: &Machine) -> String {
    std::fs::read_to_string(machine.folder.join("pull-0.prom")).unwrap()
}

fn of_files(requests: &[ReceivedRequest]) -> Vec<&ReceivedRequest> {
    requests.iter().filter(|request| !request.path.starts_with("/api/")).collect()
}

#[test]
fn twenty_machines_cost_the_origin_each_file_once() {
    let mut machine = Machine::new("cache", "all");
    // Pieces that are small, so that twenty programs that are not optimized have little to hash.
    let piece = 256 << 10;
    let files = [content(1, 3 * piece + 9), content(2, piece), content(3, 2 * piece - 1), content(4, 100_000)];
    put(&mut machine, &files);
    let cache = cache_with(&mut machine, "256k");
    machine.store.stop_searching();
    let pulls = spawn(&mut machine, 20);
    let boots = end(&machine, pulls, &files);

    let (hub, store) = (machine.hub.take_requests(), machine.store.take_requests());
    let store = of_files(&store);
    let (sent, total) =
        (store.iter().map(|request| request.sent).sum::<usize>(), files.iter().map(Vec::len).sum::<usize>());
    assert!(sent as f64 <= 1.02 * total as f64, "{sent} of {total} bytes: {}", boots[0].log);
    let mut pieces = HashMap::<_, usize>::new();
    for request in store.iter().filter(|request| request.sent > 1) {
        let path = request.path.split('?').next().unwrap();
        *pieces.entry((path, request.range.as_deref())).or_default() += 1;
    }
    assert!(pieces.values().all(|requests| *requests == 1), "{pieces:?}");
    assert_eq!(pieces.len(), 4 + 1 + 2 + 1, "{pieces:?}");
    assert!(hub.len() <= 20 * files.len(), "{} requests to the hub", hub.len());
    assert!(store.iter().all(|request| request.token.is_none() && request.origin.is_none()), "{store:?}");
    for (number, boot) in boots.iter().enumerate() {
        assert_eq!(sources(&machine, number, "m0"), json!({"cache": files[0].len()}), "{}", boot.log);
    }
    assert!(metrics(&machine).contains(r#"catalog_pull_model_received_bytes{model="m3",source="cache"} 100000"#));
    assert!(boots[0].log.contains(r#"source="cache""#), "{}", boots[0].log);
    for secret in [&*machine.token, "signature="] {
        assert!(!cache.contains(secret), "{secret} is in the files of the cache");
    }
    assert!(cache.contains("GET /sha256/"), "the log could not be read");

    // A machine that boots later asks neither hub nor store, so it boots while both are down.
    for number in 0..files.len() {
        machine.hub.put(&format!("/hub/{number}"), Way::Status(503));
        machine.store.put(&format!("/stored/{number}"), Way::Status(503));
    }
    pull(&mut machine, &files);
    let (hub, store) = (machine.hub.take_requests(), machine.store.take_requests());
    assert!(hub.is_empty() && of_files(&store).is_empty(), "{hub:?} {store:?}");
}

#[tokio::test]
async fn file_that_another_machine_had_fetched_needs_no_hub_that_asks_to_wait() {
    let mut machine = Machine::new("limited", "all");
    let files = [content(1, PIECE + 1)];
    put(&mut machine, &files);
    let cache = cache_of(&mut machine);
    let stored = format!("http://{}/stored/0", machine.store.address);
    let limited = response(429, &["retry-after: 1"], "");
    machine.hub.put("/hub/0", Way::Once(limited, Box::new(Way::Status(429))));
    machine.set("MACHINE_MODELS_TRIES", "9");
    let pulls = spawn(&mut machine, 1);
    until("the hub was asked for the plan", || async { !machine.hub.take_requests().is_empty() }).await;
    assert_eq!(cache.get(&sum("sha256sum", &files[0]), Some(&stored)).0, 200);
    let boot = end(&machine, pulls, &files).remove(0);
    assert_eq!(sources(&machine, 0, "m0"), json!({"cache": files[0].len()}), "{}", boot.log);
}

#[tokio::test]
async fn cache_that_is_killed_costs_no_file() {
    let mut machine = Machine::new("killed", "all");
    let files = [content(1, 3 * PIECE), content(2, 2 * PIECE + 5)];
    put(&mut machine, &files);
    let cache = cache_of(&mut machine);
    for (number, file) in files.iter().enumerate() {
        machine.store.put(&format!("/stored/{number}"), Way::Stalls(file.clone()));
    }
    let pulls = spawn(&mut machine, 3);
    // nginx keeps the end of what came in its buffers.
    let half = PIECE as u64 / 2 - (64 << 10);
    until("half of a piece of each file has come through the cache", || async {
        let folders = (0..3).map(|number| machine.folder.join(format!("models-{number}/f")));
        let parts = folders.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
        parts.filter(|part| part.metadata().is_ok_and(|metadata| metadata.len() >= half)).count() >= files.len()
    })
    .await;
    cache.nginx.signal("KILL");
    for (number, file) in files.iter().enumerate() {
        machine.store.put(&format!("/stored/{number}"), Way::File(file.clone()));
    }
    let boots = end(&machine, pulls, &files);
    let of_cache = |number| ["m0", "m1"].map(|id| sources(&machine, number, id)["cache"].as_u64().unwrap_or(0));
    let through_cache: u64 = (0..3).flat_map(of_cache).sum();
    assert!(through_cache >= 2 * half, "{through_cache} bytes: {}", boots[0].log);
}

#[test]
fn wrong_bytes_of_a_cache_are_named_and_replaced() {
    let mut machine = Machine::new("lies", "all");
    let files = [content(1, PIECE + 9), content(2, 300_000), content(3, 200_000)];
    put(&mut machine, &files);
    let cache = cache_of(&mut machine);
    // Anyone who can reach the cache may name another file.
    let other = machine.store.put("/other", Way::File(content(8, PIECE + 9)));
    let page = machine.store.put("/page", Way::File(b"<!doctype html><html>log in</html>".into()));
    let digests: Vec<_> = files.iter().map(|file| sum("sha256sum", file)).collect();
    assert_eq!(cache.get(&digests[0], Some(&other)), (200, content(8, PIECE + 9)));
    assert_eq!(cache.get(&digests[1], Some(&page)).0, 200);
    machine.set("MACHINE_MODELS_PARALLEL", "1");
    machine.set("MACHINE_MODELS_CONNECTIONS", "1");
    let boot = pull(&mut machine, &files);
    let name = cache.url.trim_start_matches("http://");
    for (id, reason) in [("m0", "its hash does not match"), ("m1", "cache sent a web page")] {
        let line = format!(
            r#"what the cache sent is not the file: another source is used model="{id}" cache="{name}" reason="{reason}"#
        );
        assert_eq!(boot.log.matches(&line).count(), 1, "{line}: {}", boot.log);
    }
    let length = files[0].len();
    assert_eq!(sources(&machine, 0, "m0"), json!({"127.0.0.1": length, "cache": length}), "{}", boot.log);
    assert_eq!(sources(&machine, 0, "m2"), json!({"cache": 200_000}), "{}", boot.log);
    let metrics = metrics(&machine);
    for reason in ["checksum", "html"] {
        let line = format!("catalog_pull_cache_failures{{cache=\"{name}\",reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
}

/// A listener that accepts connections and never answers; counts them.
fn silent() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, count) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
    let copy = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            copy.fetch_add(1, Relaxed);
            std::thread::spawn(move || stream.unwrap().read_to_end(&mut Vec::new()));
        }
    });
    (url, count)
}

#[test]
fn refused_and_silent_caches_are_tried_once() {
    let mut machine = Machine::new("dead", "all");
    let files: Vec<_> = (0..6).map(|seed| content(seed, if seed < 3 { PIECE + 1 } else { 200_000 })).collect();
    put(&mut machine, &files);
    let refused = format!("http://127.0.0.1:{}", free_port().unwrap());
    let (silent, connections) = silent();
    machine.set("MACHINE_MODELS_CACHE", &format!("{refused}, {silent}"));
    let boot = pull(&mut machine, &files);
    assert_eq!(connections.load(Relaxed), 1, "{}", boot.log);
    for (cache, reason) in [(&refused, "the connection to 127.0.0.1 failed"), (&silent, "127.0.0.1 did not respond")] {
        let cache = cache.trim_start_matches("http://");
        let line = format!(r#"the cache is not used any more by this pull cache="{cache}" reason="{reason}"#);
        assert_eq!(boot.log.matches(&line).count(), 1, "{line}: {}", boot.log);
    }
    assert!(!boot.log.contains("retrying"), "{}", boot.log);
    let of_hub = machine.hub.take_requests().len();
    assert!(of_hub <= files.len(), "{of_hub} requests to the hub: {}", boot.log);
}

/// A machine whose hub is also the cache, as `HF_ENDPOINT`: it would get the token if it were taken for the hub.
fn hub_as_cache(name: &str, files: &[Vec<u8>]) -> (Machine, Vec<String>) {
    let mut machine = Machine::new(name, "all");
    put(&mut machine, files);
    let url = format!("http://{}/site", machine.hub.address);
    machine.set("MACHINE_MODELS_CACHE", &url);
    let path = |file: &Vec<u8>| format!("/site/sha256/{}", sum("sha256sum", file));
    (machine, files.iter().map(path).collect())
}

#[test]
fn cache_gets_neither_token_nor_addresses_that_need_it() {
    let files = [content(1, PIECE + 1), content(2, 300_000), content(3, PIECE + 3)];
    let (mut machine, paths) = hub_as_cache("tokens", &files);
    // The hub sends this one itself.
    machine.hub.put_for_token("/hub/2", Way::File(files[2].clone()));
    // The cache learns of this one, and redirects to a place that needs no address of another one.
    let elsewhere = machine.store.put("/elsewhere", Way::EndsEarly(files[0].clone()));
    let miss = b"HTTP/1.1 404 x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_vec();
    machine.hub.put(&paths[0], Way::Once(miss, Box::new(Way::Redirect(307, elsewhere))));
    let boot = pull(&mut machine, &files);
    let (hub, store) = (machine.hub.take_requests(), machine.store.take_requests());
    let site: Vec<_> = hub.iter().filter(|request| request.path.starts_with("/site/")).collect();
    assert!(site.iter().all(|request| request.token.is_none()), "{site:?}");
    let origins =
        |path: &String| site.iter().filter(|request| request.path == *path && request.origin.is_some()).count();
    assert!(origins(&paths[0]) > 0, "{site:?}: {}", boot.log);
    assert_eq!([origins(&paths[1]), origins(&paths[2])], [1, 0], "{site:?}: {}", boot.log);
    let origin = site.iter().find_map(|request| request.origin.clone().filter(|_| request.path == paths[1])).unwrap();
    assert!(origin.starts_with(&format!("http://{}/stored/1?signature=", machine.store.address)), "{origin}");
    assert!(store.iter().all(|request| request.token.is_none() && request.origin.is_none()), "{store:?}");
    assert_eq!(sources(&machine, 0, "m0"), json!({"cache": files[0].len()}), "{}", boot.log);
}

#[test]
fn object_store_with_some_files_is_a_cache() {
    let files = [content(1, PIECE + 1), content(2, 300_000), content(3, PIECE + 3), content(4, 100)];
    let (mut machine, paths) = hub_as_cache("objects", &files);
    for number in [0, 1] {
        machine.hub.put(&paths[number], Way::File(files[number].clone()));
    }
    // Stores for which this machine may not list the objects.
    machine.hub.put(&paths[2], Way::Status(403));
    let boot = pull(&mut machine, &files);
    for (number, source) in ["cache", "cache", "127.0.0.1", "127.0.0.1"].into_iter().enumerate() {
        let expected = json!({source: files[number].len()});
        assert_eq!(sources(&machine, 0, &format!("m{number}")), expected, "{number}: {}", boot.log);
    }
    assert!(!boot.log.contains("not used any more"), "{}", boot.log);
}

#[test]
fn stalled_cache_costs_one_wait() {
    let files: Vec<_> = (0..4).map(|seed| content(seed, PIECE + 1)).collect();
    let (mut machine, paths) = hub_as_cache("stalls", &files);
    for (path, file) in paths.iter().zip(&files) {
        machine.hub.put(path, Way::Stalls(file.clone()));
    }
    machine.set("MACHINE_MODELS_PARALLEL", "1");
    machine.set("MACHINE_MODELS_CONNECTIONS", "1");
    machine.set("MACHINE_MODELS_STALL", "500ms");
    let boot = pull(&mut machine, &files);
    let hub = machine.hub.take_requests();
    let stalled = hub.iter().filter(|request| request.path.starts_with("/site/") && request.sent > 1).count();
    assert_eq!(stalled, 1, "{hub:?}: {}", boot.log);
    assert_eq!(boot.log.matches("not used any more").count(), 1, "{}", boot.log);
}

#[test]
fn sizes_that_a_cache_invents_stop_no_file() {
    let files = [content(1, PIECE + 1), content(2, 300_000)];
    let (mut machine, paths) = hub_as_cache("sizes", &files);
    for path in &paths {
        let head = "HTTP/1.1 206 x\r\nconnection: close\r\ncontent-length: 200000\r\n\
                    content-range: bytes 0-199999/999999999999999\r\n\r\n";
        machine.hub.put(path, Way::Raw([head.as_bytes(), &[b'x'; 200_000]].concat()));
    }
    let boot = pull(&mut machine, &files);
    for id in ["m0", "m1"] {
        assert!(sources(&machine, 0, id)["cache"].is_null(), "a body of that size was read: {}", boot.log);
    }
    assert!(boot.log.contains("fetched=2 present=0 linked=0 missing=0"), "{}", boot.log);
}

#[test]
fn files_without_sha256_are_not_requested_from_a_cache() {
    let mut machine = Machine::new("unhashed", "all");
    let file = content(1, 50_000);
    let url = machine.store.put("/a", Way::File(file.clone()));
    let md5 = Some(sum("md5sum", &file));
    machine.models_are(&[("a", &url, "a", None, None), ("b", &url, "b", md5, None)]);
    machine.set("MACHINE_MODELS_CACHE", &format!("http://me:s3cret@{}/site", machine.hub.address));
    let boot = machine.boot(&[]);
    assert!(boot.status == 0 && machine.hub.take_requests().is_empty(), "{}", boot.log);
    machine.set("MACHINE_MODELS_CACHE", "s3://me:s3cret@bucket, http://127.0.0.1:1");
    let boot = machine.boot(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output), (0, "started\n"), "{}", boot.log);
    assert!(
        boot.log.contains("URL 1 in MACHINE_MODELS_CACHE is ignored: it is not an http or https URL"),
        "{}",
        boot.log
    );
    assert!(!boot.log.contains("s3cret"), "{}", boot.log);
}

/// Runs `warm`; returns the status and the words of each line.
fn warm(machine: &Machine, arguments: &[&str]) -> (i32, Vec<String>) {
    let mut command = Command::new(super::PROGRAM);
    command.arg("warm").args(arguments).env_clear().envs(machine.settings.iter().cloned());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains(&machine.token) && !log.contains(&machine.token), "{text} {log}");
    (output.status.code().unwrap(), text.lines().map(str::to_owned).collect())
}

#[test]
fn warm_fills_a_cache_before_machines_boot() {
    let mut machine = Machine::new("warm", "all");
    let files = [content(1, 3 * PIECE + 9), content(2, PIECE), content(3, 300_000)];
    put(&mut machine, &files);
    let cache = cache_of(&mut machine);
    let name = cache.url.trim_start_matches("http://");
    let rows = |states: [&str; 3]| {
        let rows = states.iter().enumerate();
        rows.map(|(number, state)| format!("{state}\t{name}\tm{number}")).collect::<Vec<_>>()
    };
    // The first piece only.
    let (digest, origin) = (sum("sha256sum", &files[0]), format!("http://{}/stored/0", machine.store.address));
    let range = format!("range: bytes=0-0\r\nx-origin-url: {origin}\r\n");
    let begin = format!("GET /sha256/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{range}\r\n");
    assert_eq!(cache.send(&begin), (206, files[0][..1].to_vec()));
    assert_eq!(warm(&machine, &["--dry-run", "all"]), (1, rows(["absent"; 3])));
    assert_eq!(warm(&machine, &["all"]), (0, rows(["fetched"; 3])));
    assert_eq!(warm(&machine, &["--dry-run", "all"]), (0, rows(["cached"; 3])));
    let sent: usize = of_files(&machine.store.take_requests()).iter().map(|request| request.sent).sum();
    let total: usize = files.iter().map(Vec::len).sum();
    assert!((total..total + 100).contains(&sent), "{sent} of {total} bytes");
    machine.hub.take_requests();

    assert_eq!(warm(&machine, &["all"]), (0, rows(["cached"; 3])));
    pull(&mut machine, &files);
    let (hub, store) = (machine.hub.take_requests(), machine.store.take_requests());
    assert!(hub.is_empty() && of_files(&store).is_empty(), "{hub:?} {store:?}");
}

#[test]
fn warm_names_what_a_cache_cannot_have() {
    let mut machine = Machine::new("cold", "all");
    let file = content(1, 20_000);
    let hash = |seed| Some(sum("sha256sum", &content(seed, 20_000)));
    let stored = machine.store.put("/stored", Way::File(file.clone()));
    let other = machine.store.put("/other", Way::File(content(2, 20_000)));
    let token = machine.hub.put_for_token("/token", Way::File(content(3, 20_000)));
    let gone = machine.store.put("/gone", Way::Status(404));
    let cache = cache_of(&mut machine);
    let rows = [
        ("good", &*stored, "a", hash(1), None),
        ("poisoned", &stored, "b", hash(4), None),
        ("unhashed", &stored, "c", None, None),
        ("token", &token, "d", hash(3), None),
        ("gone", &gone, "e", hash(5), None),
    ];
    machine.models_are(&rows);
    // All of them, as the catalog lists them.
    let page = json!({"models": models_response(&rows)["models"], "next": null});
    machine.store.put("/api/models", Way::Post(page.to_string()));
    assert_eq!(cache.get(&hash(4).unwrap(), Some(&other)).0, 200);
    let (status, lines) = warm(&machine, &[]);
    let name = cache.url.trim_start_matches("http://");
    for (line, expected) in lines.iter().zip([
        format!("fetched\t{name}\tgood"),
        format!("wrong\t{name}\tpoisoned\tits bytes do not match the hash: remove its entry from the cache"),
        format!("skipped\t{name}\tunhashed\tit has no SHA-256"),
        format!("failed\t{name}\ttoken\t127.0.0.1 sends the file itself and wants a token, which no cache gets"),
        format!("failed\t{name}\tgone\t127.0.0.1 returned status 404: the URL in the catalog is dead"),
    ]) {
        assert_eq!(*line, expected, "{lines:#?}");
    }
    assert_eq!((status, lines.len()), (1, rows.len()));
    // Pages without an end.
    let page = json!({"models": models_response(&rows)["models"], "next": "unhashed"});
    machine.store.put("/api/models", Way::Post(page.to_string()));
    assert_eq!(warm(&machine, &[]), (2, Vec::new()));
    // Without a catalog, or a cache.
    machine.set("CATALOG_URL", "http://127.0.0.1:1");
    assert_eq!(warm(&machine, &[]), (2, Vec::new()));
    machine.set("CATALOG_URL", "ftp://x");
    assert_eq!(warm(&machine, &[]), (2, Vec::new()));
}

#[test]
fn warm_refuses_responses_that_are_not_what_it_requested() {
    let files = [content(1, 20_000), content(2, 20_000)];
    let (machine, paths) = hub_as_cache("responses", &files);
    // What the cache fetches may be a part of it, but comes as the whole file.
    let miss = b"HTTP/1.1 404 x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_vec();
    let head = b"HTTP/1.1 200 x\r\nconnection: close\r\ncontent-length: 20000\r\n\r\n";
    machine.hub.put(&paths[0], Way::Once(miss, Box::new(Way::Raw([head, &*files[0]].concat()))));
    // A response without a length.
    machine.hub.put(&paths[1], Way::Unsized(files[1].clone()));
    let name = machine.hub.address.clone();
    let (status, lines) = warm(&machine, &["all"]);
    let expected = [
        format!("failed\t{name}\tm0\t127.0.0.1 does not support range requests"),
        format!("failed\t{name}\tm1\t127.0.0.1 sent a different range from the one requested"),
    ];
    assert_eq!((status, lines), (1, expected.to_vec()));
}

#[test]
fn cache_listens_on_both_address_families() {
    let mut machine = Machine::new("families", "all");
    let cache = cache_of(&mut machine);
    let port: u16 = cache.url.rsplit(':').next().unwrap().parse().unwrap();
    let lines = std::fs::read_to_string(cache.folder.join("run/listen.conf")).unwrap();
    if TcpListener::bind("[::1]:0").is_err() {
        assert_eq!(lines, "", "without IPv6");
        return;
    }
    assert_eq!(lines, format!("listen [::]:{port};\n"));
    for address in ["127.0.0.1", "::1"] {
        let mut stream = TcpStream::connect((address, port)).unwrap();
        stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("ok\n"), "{address}: {response}");
    }
}

#[test]
fn cache_is_no_open_proxy() {
    let mut machine = Machine::new("open", "all");
    let file = content(1, 1_000);
    let allowed = machine.store.put("/a", Way::File(file.clone()));
    let cache = cache_of(&mut machine);
    let digest = sum("sha256sum", &file);
    let store = &machine.store.address;
    for origin in [
        &*format!("http://{}/a", machine.hub.address),
        &format!("http://{store}@{}/a", machine.hub.address),
        &format!("https://{store}/a"),
        &format!("http://{store}.example.org/a"),
        &format!("http://{store}/a b HTTP/1.1"),
        &format!("x http://{store}/a"),
        "file:///etc/passwd",
        "unix:/run/docker.sock:/a",
    ] {
        assert_eq!(cache.get(&digest, Some(origin)).0, 403, "{origin}");
    }
    assert!(machine.hub.take_requests().is_empty() && machine.store.take_requests().is_empty());
    assert_eq!(cache.get(&digest, None).0, 404);
    assert_eq!(cache.get(&digest, Some(&allowed)), (200, file.clone()));
    assert_eq!(cache.get(&digest, None), (200, file));
    assert_eq!(cache.request("POST", &digest, None).0, 403);
}
