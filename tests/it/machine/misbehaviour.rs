//! Servers that misbehave in every way that was reported: what a plain GET can download, `pull` downloads, and it
//! receives little more than the file.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::{Machine, content, key, sum};

/// Two segments, so that several connections are used.
const SIZE: usize = 17 << 20;

/// How a path is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// As it should be.
    Good,
    /// 200 with the whole file, whatever is requested.
    NoRanges,
    /// The same, without its length.
    NoRangesNoLength,
    /// The first byte as requested, but the whole file for larger ranges.
    OnlyFirstByte,
    /// 206 with the whole file.
    PartIsWhole,
    /// The headers of the requested part, but the whole file as the body.
    BodyIsWhole,
    /// Parts that begin and end at multiples of this many bytes.
    Aligned(usize),
    /// 416 to every range.
    NotSatisfiable,
    /// 403 to ranges above 1 MiB.
    LargeForbidden,
    /// 403 to every range.
    Forbidden,
    /// 206 with a `Content-Range` that cannot be parsed.
    MalformedRange,
    /// 206 without `Content-Range`.
    NoContentRange,
    /// 206 with the size of another file, except for the first byte; 416 after the end.
    OtherTotal,
    /// The same, also for the first byte.
    Longer,
    /// `Content-Encoding: gzip`, but the bytes of the file.
    EncodedHeader,
    /// `Content-Type: text/html`.
    HtmlHeader,
    /// Another entity tag in each response.
    OtherTags,
}

const KINDS: [Kind; 18] = [
    Kind::Good,
    Kind::NoRanges,
    Kind::NoRangesNoLength,
    Kind::OnlyFirstByte,
    Kind::PartIsWhole,
    Kind::BodyIsWhole,
    Kind::Aligned(64 << 10),
    Kind::Aligned(8 << 20),
    Kind::NotSatisfiable,
    Kind::LargeForbidden,
    Kind::Forbidden,
    Kind::MalformedRange,
    Kind::NoContentRange,
    Kind::OtherTotal,
    Kind::Longer,
    Kind::EncodedHeader,
    Kind::HtmlHeader,
    Kind::OtherTags,
];

/// Serves the catalog and one file per kind; counts the bytes sent by path.
struct Hub {
    address: String,
    catalog: Mutex<String>,
    kinds: HashMap<String, (Kind, Vec<u8>)>,
    sent: Mutex<HashMap<String, (usize, usize)>>,
    /// Bytes after which each response is cut; 0: none is.
    cut: usize,
}

impl Hub {
    fn start(kinds: HashMap<String, (Kind, Vec<u8>)>, cut: usize) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let hub = Arc::new(Self { address, catalog: Mutex::default(), kinds, sent: Mutex::default(), cut });
        let copy = Arc::clone(&hub);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let hub = Arc::clone(&copy);
                // Ignore I/O errors: the client disconnected.
                std::thread::spawn(move || drop(hub.serve(stream.unwrap())));
            }
        });
        hub
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        // What a client does not read is not counted as sent.
        socket2::SockRef::from(&stream).set_send_buffer_size(64 << 10)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_ascii_lowercase()),
            }
        }
        let header = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body)?;
        let path = lines[0].split(' ').nth(1).unwrap().to_owned();
        if path.starts_with("/api/") {
            let catalog = self.catalog.lock().unwrap().clone();
            return respond(&stream, 200, &[format!("content-length: {}", catalog.len())], catalog.as_bytes());
        }
        let range = header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let range = range.map(|(start, last)| (start.parse().unwrap(), last.parse::<usize>().unwrap() + 1));
        let requests = {
            let mut sent = self.sent.lock().unwrap();
            let (_, requests) = sent.entry(path.clone()).or_default();
            *requests += 1;
            *requests
        };
        let (kind, file) = &self.kinds[&path];
        let (status, mut headers, body) = response(*kind, file, range, requests);
        if !matches!(kind, Kind::NoRangesNoLength) {
            headers.push(format!("content-length: {}", body.len()));
        }
        respond(&stream, status, &headers, b"")?;
        let mut stream = &stream;
        let end = if self.cut > 0 { body.len().min(self.cut) } else { body.len() };
        for part in body[..end].chunks(16 << 10) {
            stream.write_all(part)?;
            self.sent.lock().unwrap().entry(path.clone()).or_default().0 += part.len();
        }
        Ok(())
    }
}

fn respond(mut stream: &TcpStream, status: u16, headers: &[String], body: &[u8]) -> std::io::Result<()> {
    let headers = headers.join("\r\n");
    stream.write_all(format!("HTTP/1.1 {status} x\r\nconnection: close\r\n{headers}\r\n\r\n").as_bytes())?;
    stream.write_all(body)
}

/// Status, headers and body of a response.
fn response(kind: Kind, file: &[u8], range: Option<(usize, usize)>, requests: usize) -> (u16, Vec<String>, &[u8]) {
    let total = file.len();
    let tag = if kind == Kind::OtherTags { format!("etag: \"{requests}\"") } else { "etag: \"same\"".into() };
    let whole = |headers: &[&str]| {
        let headers = headers.iter().map(|header| (*header).to_owned());
        (200, headers.chain([tag.clone()]).collect(), file)
    };
    let kind_header = match kind {
        Kind::EncodedHeader => "content-encoding: gzip",
        Kind::HtmlHeader => "content-type: text/html; charset=utf-8",
        _ => "content-type: application/octet-stream",
    };
    let Some((start, end)) = range.map(|(start, end)| (start, end.min(total))) else { return whole(&[kind_header]) };
    let part = |start: usize, end: usize, total: usize| {
        let range = format!("content-range: bytes {start}-{}/{total}", end - 1);
        (206, vec![range, kind_header.to_owned(), tag.clone()], &file[start..end])
    };
    match kind {
        Kind::NoRanges | Kind::NoRangesNoLength => whole(&[kind_header]),
        Kind::OnlyFirstByte if end - start > 1 => whole(&[kind_header]),
        Kind::PartIsWhole => part(0, total, total),
        Kind::BodyIsWhole if end - start > 1 => {
            let (status, headers, _) = part(start, end, total);
            (status, headers, file)
        }
        Kind::Aligned(block) => {
            part(start / block * block, end.div_ceil(block).saturating_mul(block).min(total), total)
        }
        Kind::NotSatisfiable => (416, Vec::new(), b""),
        Kind::Forbidden => (403, Vec::new(), b""),
        Kind::LargeForbidden if end - start > 1 << 20 => (403, Vec::new(), b""),
        Kind::MalformedRange => (206, vec![format!("content-range: bytes {start}-{end}"), tag], &file[start..end]),
        Kind::NoContentRange => (206, vec![tag], &file[start..end]),
        Kind::OtherTotal | Kind::Longer if start >= total => (416, Vec::new(), b""),
        Kind::OtherTotal if end - start > 1 => part(start, end, total + 1000),
        Kind::Longer => part(start, end, total + 1000),
        _ => part(start, end, total),
    }
}

/// A machine and the hub with a file per kind; `size` and `hash` are those of a file in the catalog. Files that are small
/// according to it are not planned, so there is no response before that with the file.
fn machine(
    name: &str,
    kinds: &[Kind],
    cut: usize,
    size: Option<f64>,
    hash: impl Fn(&[u8]) -> Option<String>,
) -> (Machine, Arc<Hub>) {
    let mut file = content(1, SIZE);
    let files = kinds.iter().enumerate().map(|(number, kind)| {
        // Equal files would be downloaded once.
        file[0] = u8::try_from(number).unwrap();
        (format!("/{number}"), (*kind, file.clone()))
    });
    let hub = Hub::start(files.collect(), cut);
    let model = |(number, _): (usize, &Kind)| {
        let (_, file) = &hub.kinds[&format!("/{number}")];
        json!({"id": format!("m{number}"), "download_url": format!("http://{}/{number}", hub.address), "hash": hash(file),
               "file_size_gb": size, "auth_required": false, "save_path": format!("f/{number}")})
    };
    let models: Vec<_> = kinds.iter().enumerate().map(model).collect();
    *hub.catalog.lock().unwrap() = json!({"models": models, "not_found": [], "missing_dependencies": []}).to_string();
    let mut machine = Machine::new(name, "all");
    machine.set("CATALOG_URL", &format!("http://{}", hub.address));
    (machine, hub)
}

/// Puts the beginning of each file on disk, as a pull that was stopped leaves it, which believed in this `total`.
fn put_partial(machine: &Machine, hub: &Hub, hashed: bool, length: usize, total: usize) {
    for (path, (_, file)) in &hub.kinds {
        let content =
            if hashed { format!("sha256:{}", sum("sha256sum", file)) } else { format!("http://{}{path}", hub.address) };
        let key = key(&format!("f{path}"), &content);
        machine.put(&format!("f/.model-catalog-{key}.part"), &file[..length]);
        let inode = machine.models().join(format!("f/.model-catalog-{key}.part")).metadata().unwrap().ino();
        let journal = json!({"path": format!("f{path}"), "total": total, "validator": "\"same\"", "inode": inode,
                             "gaps": [[length, total]]});
        machine.put(&format!(".model-catalog/{key}.json"), journal.to_string().as_bytes());
    }
}

/// Pulls from every kind of server at once.
fn pull(hashed: bool, connections: &str, size: Option<f64>, halves: bool) {
    let name = format!("misbehaviour-{hashed}-{connections}-{halves}");
    let hash = |file: &[u8]| hashed.then(|| sum("sha256sum", file));
    let (mut machine, hub) = machine(&name, &KINDS, 0, size, hash);
    machine.set("MACHINE_MODELS_CONNECTIONS", connections);
    machine.set("MACHINE_MODELS_TRIES", "3");
    if halves {
        put_partial(&machine, &hub, hashed, SIZE / 2, SIZE);
    }
    let boot = machine.boot(&[]);
    let sent = hub.sent.lock().unwrap();
    let mut faults = Vec::new();
    for (number, kind) in KINDS.iter().enumerate() {
        let (bytes, requests) = sent.get(&format!("/{number}")).copied().unwrap_or_default();
        let copies = bytes as f64 / SIZE as f64;
        let most = match kind {
            // The second half is requested in one part at least.
            Kind::Good if halves => 0.55,
            _ => 1.2,
        };
        let same = machine.read(&format!("f/{number}")).as_deref() == Some(&hub.kinds[&format!("/{number}")].1);
        if !same || copies > most || requests > 20 {
            faults.push(format!("{kind:?}: same: {same}, {copies:.2} copies, {requests} requests"));
        }
    }
    assert!(faults.is_empty(), "{name}: {faults:#?}\n{}", boot.log);
    let left: Vec<_> = machine.files().into_iter().filter(|name| name.contains(".model-catalog")).collect();
    assert!(boot.status == 0 && left.is_empty(), "{name}: {left:?}\n{}", boot.log);
}

#[test]
fn hashed_files_come_from_servers_that_misbehave() {
    pull(true, "1", Some(0.02), false);
    pull(true, "8", None, false);
}

#[test]
fn hashed_partial_files_are_completed_by_servers_that_misbehave() {
    pull(true, "1", Some(0.02), true);
    pull(true, "8", None, true);
}

#[test]
fn files_without_a_hash_come_from_servers_that_misbehave() {
    pull(false, "1", Some(0.02), false);
    pull(false, "8", None, false);
}

#[test]
fn partial_files_without_a_hash_are_completed_by_servers_that_misbehave() {
    pull(false, "1", Some(0.02), true);
    pull(false, "8", None, true);
}

#[test]
fn size_that_a_server_got_wrong_costs_one_request() {
    for hashed in [true, false] {
        let hash = |file: &[u8]| hashed.then(|| sum("sha256sum", file));
        let (mut machine, hub) = machine("wrongsize", &[Kind::Longer], 0, None, hash);
        machine.set("MACHINE_MODELS_TRIES", "9");
        put_partial(&machine, &hub, hashed, SIZE, SIZE + 1000);
        let boot = machine.boot(&[]);
        let (bytes, requests) = hub.sent.lock().unwrap()["/0"];
        let copies = bytes as f64 / SIZE as f64;
        assert!(copies < 0.3 && requests <= 5, "{hashed}: {copies:.2} copies, {requests} requests: {}", boot.log);
        assert!(boot.status == 0 && machine.read("f/0").as_ref() == Some(&hub.kinds["/0"].1), "{hashed}: {}", boot.log);
    }
}

#[test]
fn wrong_hash_and_cut_connections_cost_a_bounded_number_of_bytes() {
    for (kind, cut) in [(Kind::Good, SIZE / 5), (Kind::NoRanges, SIZE / 2), (Kind::Good, 0)] {
        let (machine, hub) = machine("wronghash", &[kind], cut, Some(0.02), |_| Some("0a".repeat(32)));
        let boot = machine.boot(&[]);
        let (bytes, requests) = hub.sent.lock().unwrap()["/0"];
        let copies = bytes as f64 / SIZE as f64;
        let most = if cut == 0 { 1.1 } else { 2.5 };
        assert!(
            copies < most && requests < 50,
            "{kind:?} {cut}: {copies:.2} copies, {requests} requests: {}",
            boot.log
        );
        assert!(boot.status == 1 && machine.read("f/0").is_none(), "{kind:?} {cut}: {}", boot.log);
    }
}
