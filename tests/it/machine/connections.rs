//! How many connections and requests the files get from a hub that keeps connections and may refuse too many.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::{Machine, content, sum};

/// Longest wait for the client.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    requests: HashMap<String, usize>,
    /// Responses being sent, and their maximum.
    active: usize,
    most: usize,
    refused: usize,
}

/// Serves files with ranges.
struct Hub {
    address: String,
    files: HashMap<String, Vec<u8>>,
    /// Responses at a time; further requests get 429.
    accepts: usize,
    /// Whether responses are held back half-way.
    holds: fn(&Counts) -> bool,
    counts: Mutex<Counts>,
    changed: Condvar,
}

impl Hub {
    fn start(files: HashMap<String, Vec<u8>>, accepts: usize, holds: fn(&Counts) -> bool) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (counts, changed) = (Mutex::default(), Condvar::new());
        let hub = Arc::new(Self { address, files, accepts, holds, counts, changed });
        let copy = Arc::clone(&hub);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let hub = Arc::clone(&copy);
                hub.count(|counts| counts.connections += 1);
                // Ignore I/O errors: the client disconnected.
                std::thread::spawn(move || drop(hub.serve(&stream.unwrap())));
            }
        });
        hub
    }

    fn count<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        let result = change(&mut self.counts.lock().unwrap());
        self.changed.notify_all();
        result
    }

    fn serve(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut lines = Vec::new();
            while lines.last().is_none_or(|line: &String| !line.is_empty()) {
                let mut line = String::new();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                lines.push(line.trim_end().to_ascii_lowercase());
            }
            let path = lines[0].split(' ').nth(1).unwrap().to_owned();
            let range = lines.iter().find_map(|line| line.strip_prefix("range: bytes=")?.split_once('-'));
            let file = &self.files[&path];
            let (start, end) = range.map_or((0, file.len()), |(start, last)| {
                (start.parse().unwrap(), file.len().min(last.parse::<usize>().unwrap() + 1))
            });
            let refused = self.count(|counts| {
                *counts.requests.entry(path).or_default() += 1;
                let refused = counts.active >= self.accepts;
                counts.refused += usize::from(refused);
                counts.active += usize::from(!refused);
                counts.most = counts.most.max(counts.active);
                refused
            });
            if refused {
                stream.write_all(b"HTTP/1.1 429 x\r\ncontent-length: 0\r\n\r\n")?;
                continue;
            }
            let (length, last, total) = (end - start, end - 1, file.len());
            let head = format!("content-length: {length}\r\ncontent-range: bytes {start}-{last}/{total}");
            let middle = start + length / 2;
            stream.write_all(format!("HTTP/1.1 206 x\r\n{head}\r\n\r\n").as_bytes())?;
            stream.write_all(&file[start..middle])?;
            if length > 1 {
                let counts = self.counts.lock().unwrap();
                drop(self.changed.wait_timeout_while(counts, PATIENCE, |counts| (self.holds)(counts)).unwrap());
            }
            // Counted before the last bytes: the client may request the next file as soon as it has them.
            self.count(|counts| counts.active -= 1);
            stream.write_all(&file[middle..end])?;
        }
    }
}

/// A machine that needs all files of `hub`; every second one has no hash unless `hashed`.
fn machine(name: &str, hub: &Hub, hashed: bool) -> Machine {
    let mut machine = Machine::new(name, "all");
    let mut paths: Vec<_> =
        hub.files.keys().map(|path| (&path[1..], format!("http://{}{path}", hub.address))).collect();
    paths.sort_unstable();
    let mut models: Vec<super::Row<'_>> = Vec::new();
    for (number, (name, url)) in paths.iter().enumerate() {
        let file = &hub.files[&format!("/{name}")];
        let hash = (hashed || number % 2 == 0).then(|| sum("sha256sum", file));
        models.push((name, url, name, hash, Some(file.len() as f64 / 1e9)));
    }
    machine.models_are(&models);
    machine
}

fn files(count: u64, length: usize) -> HashMap<String, Vec<u8>> {
    (0..count).map(|seed| (format!("/f{seed}"), content(seed, length))).collect()
}

fn assert_complete(machine: &Machine, hub: &Hub, log: &str) {
    for (path, file) in &hub.files {
        assert!(machine.read(&path[1..]).as_ref() == Some(file), "{path}: {log}\n{:?}", hub.counts.lock().unwrap());
    }
}

#[test]
fn small_files_cost_one_request_each_on_connections_that_are_kept() {
    let hub = Hub::start(files(60, 20_000), usize::MAX, |_| false);
    let mut machine = machine("kept", &hub, false);
    machine.set("MACHINE_MODELS_PARALLEL", "2");
    machine.set("MACHINE_MODELS_CONNECTIONS", "3");
    let boot = machine.boot(&[]);
    assert_complete(&machine, &hub, &boot.log);
    let counts = hub.counts.lock().unwrap();
    assert!(counts.requests.values().all(|count| *count == 1), "{counts:?}");
    // A connection that is not back in the pool when the next request begins is replaced: a few are, on a busy machine.
    assert!(counts.connections <= 12 && counts.most <= 6, "{counts:?}");
}

#[test]
fn one_large_file_gets_the_connections_of_all_files() {
    // Six segments of 16 MiB, each of which is held back until six are sent at a time.
    let file: Vec<u8> = (0..96u32 << 20).map(|at| (at >> 12) as u8).collect();
    let hub = Hub::start([("/f".into(), file)].into(), usize::MAX, |counts| counts.most < 6);
    let mut machine = machine("share", &hub, true);
    machine.set("MACHINE_MODELS_PARALLEL", "2");
    machine.set("MACHINE_MODELS_CONNECTIONS", "3");
    let boot = machine.boot(&[]);
    assert_complete(&machine, &hub, &boot.log);
    let counts = hub.counts.lock().unwrap();
    assert_eq!(counts.most, 6, "{counts:?} {}", boot.log);
}

#[test]
fn one_connection_per_file_is_one() {
    let file: Vec<u8> = (0..48u32 << 20).map(|at| (at >> 12) as u8).collect();
    let hub = Hub::start([("/f".into(), file)].into(), usize::MAX, |_| false);
    let mut machine = machine("alone", &hub, true);
    machine.set("MACHINE_MODELS_CONNECTIONS", "1");
    let boot = machine.boot(&[]);
    assert_complete(&machine, &hub, &boot.log);
    let counts = hub.counts.lock().unwrap();
    assert_eq!(counts.most, 1, "{counts:?} {}", boot.log);
}

#[test]
fn hub_that_refuses_connections_is_not_asked_for_more_than_it_accepts() {
    // All others are refused before the first three are complete.
    let hub = Hub::start(files(12, 20_000), 3, |counts| counts.refused < 9);
    let machine = machine("refused", &hub, true);
    let boot = machine.boot(&[]);
    assert_complete(&machine, &hub, &boot.log);
    let counts = hub.counts.lock().unwrap();
    assert_eq!((counts.refused, counts.most), (9, 3), "{counts:?} {}", boot.log);
}
