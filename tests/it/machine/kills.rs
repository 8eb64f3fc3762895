//! Pulls that are killed at random while the server closes connections early, stalls, and sends wrong lengths and
//! statuses: complete files are always exact, and little is downloaded twice.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Machine, content, sum};

const FILES: usize = 20;

struct FaultyServer {
    files: Vec<Vec<u8>>,
    /// Transfer time of a small file on one connection.
    duration: Duration,
    random: Mutex<fastrand::Rng>,
    /// Bytes sent of files.
    sent: AtomicU64,
    started: Instant,
}

impl FaultyServer {
    /// Serves the catalog and `/file/N`, which redirects to URLs that expire.
    fn start(files: Vec<Vec<u8>>, duration: Duration, seed: u64) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        let server = Arc::new(Self { files, duration, random, sent: AtomicU64::new(0), started: Instant::now() });
        let copy = Arc::clone(&server);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let server = Arc::clone(&copy);
                // Ignore I/O errors: the client was killed.
                std::thread::spawn(move || drop(server.serve(stream.unwrap())));
            }
        });
        (server, address)
    }

    fn random(&self, range: std::ops::Range<usize>) -> usize {
        self.random.lock().unwrap().usize(range)
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
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
        let path = lines[0].split(' ').nth(1).unwrap();
        if path.starts_with("/api/") {
            return self.catalog(stream, header("host").unwrap());
        }
        let (kind, rest) = path[1..].split_once('/').unwrap();
        let (number, until) = rest.split_once('?').unwrap_or((rest, "0"));
        let number: usize = number.parse().unwrap();
        let now = self.started.elapsed().as_millis();
        if kind == "file" {
            let until = now + 3_000;
            return respond(&stream, 302, &format!("location: /signed/{number}?{until}\r\ncontent-length: 0"), b"");
        }
        if until.parse::<u128>().unwrap() < now {
            return respond(&stream, 403, "content-length: 0", b"");
        }
        let range = header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let file = &self.files[number];
        let (start, end) = range.map_or((0, file.len()), |(start, last)| {
            (start.parse().unwrap(), last.parse::<usize>().map_or(file.len(), |last| file.len().min(last + 1)))
        });
        // After a wrong size was sent, the bytes behind the end are requested.
        if start >= end {
            return respond(&stream, 416, "content-length: 0", b"");
        }
        self.part(&stream, file, start, end)
    }

    fn catalog(&self, stream: TcpStream, host: &str) -> std::io::Result<()> {
        let model = |(number, file): (usize, &Vec<u8>)| {
            json!({"id": format!("m{number}"), "download_url": format!("http://{host}/file/{number}"),
                   "hash": sum("sha256sum", file), "auth_required": false, "save_path": format!("f/{number}")})
        };
        let models: Vec<_> = self.files.iter().enumerate().map(model).collect();
        let body = json!({"models": models, "not_found": [], "missing_dependencies": []}).to_string();
        respond(&stream, 200, &format!("content-length: {}", body.len()), body.as_bytes())
    }

    /// The requested part, or one of many invalid responses.
    fn part(&self, stream: &TcpStream, file: &[u8], start: usize, end: usize) -> std::io::Result<()> {
        let total = file.len();
        let range =
            |start: usize, end: usize, total: usize| format!("content-range: bytes {start}-{}/{total}", end - 1);
        let length = end - start;
        let full = format!("{}\r\ncontent-length: {length}", range(start, end, total));
        let somewhere = self.random(0..length);
        match self.random(0..100) {
            0..8 => {
                respond(stream, 206, &full, b"")?;
                self.send(stream, file, start, start + somewhere)
            }
            8..10 if length > 1 => {
                respond(stream, 206, &full, b"")?;
                self.send(stream, file, start, start + somewhere)?;
                // Until the client disconnects.
                let mut stream = stream;
                stream.read(&mut [0]).map(drop)
            }
            10..13 if start > 0 => {
                let wrong = range(start - 1, end - 1, total);
                respond(stream, 206, &format!("{wrong}\r\ncontent-length: {length}"), b"")?;
                self.send(stream, file, start - 1, end - 1)
            }
            13..16 => {
                let wrong = range(start, end, total + 1000);
                respond(stream, 206, &format!("{wrong}\r\ncontent-length: {length}"), b"")?;
                self.send(stream, file, start, end)
            }
            16..19 if start > 0 => {
                respond(stream, 200, &format!("content-length: {total}"), b"")?;
                self.send(stream, file, 0, total)
            }
            19..22 => respond(stream, 503, "retry-after: 0\r\ncontent-length: 0", b""),
            22..24 => respond(stream, 429, "content-length: 0", b""),
            24..27 if length > 1 => {
                // The two lengths contradict each other.
                respond(stream, 206, &format!("{}\r\ncontent-length: {somewhere}", range(start, end, total)), b"")?;
                self.send(stream, file, start, start + somewhere)
            }
            // For a request of the first byte, these two would be permanent errors.
            27..29 if length > 1 => respond(stream, 200, "content-type: text/html\r\ncontent-length: 6", b"<html>"),
            29..31 => respond(stream, 206, "content-range: bytes 9-1/x\r\ncontent-length: 1", b"x"),
            31..33 if length > 1 => respond(stream, 404, "content-length: 0", b""),
            _ => {
                respond(stream, 206, &full, b"")?;
                self.send(stream, file, start, end)
            }
        }
    }

    /// Sends the response at a limited rate.
    fn send(&self, mut stream: &TcpStream, file: &[u8], start: usize, end: usize) -> std::io::Result<()> {
        let step = Duration::from_millis(20);
        let chunk = (file.len() as f64 * step.as_secs_f64() / self.duration.as_secs_f64()).ceil() as usize;
        for part in file[start..end].chunks(chunk) {
            stream.write_all(part)?;
            self.sent.fetch_add(part.len() as u64, Relaxed);
            if end - start > 1 {
                std::thread::sleep(step);
            }
        }
        Ok(())
    }
}

fn respond(mut stream: &TcpStream, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
    stream.write_all(format!("HTTP/1.1 {status} x\r\nconnection: close\r\n{headers}\r\n\r\n").as_bytes())?;
    stream.write_all(body)
}

/// Kills this many pulls, then lets one finish.
fn kill(kills: u32) {
    let seed = fastrand::u64(..);
    let size = |number: usize| if number < 2 { 34 << 20 } else { 700_000 + 10_000 * number };
    let files: Vec<_> = (0..FILES).map(|number| content(number as u64, size(number))).collect();
    let total: usize = files.iter().map(Vec::len).sum();
    // Downloading five times four files takes longer than all kills.
    let duration = Duration::from_millis(u64::from(kills) * 300);
    let (server, address) = FaultyServer::start(files, duration, seed);
    let mut machine = Machine::new("kills", "all");
    for (name, value) in [
        ("CATALOG_URL", format!("http://{address}")),
        ("MACHINE_MODELS_TRIES", "10".into()),
        ("MACHINE_MODELS_STALL", "1s".into()),
        ("CATALOG_LOG", "debug".into()),
    ] {
        machine.set(name, &value);
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut killed = 0;
    while killed < kills {
        let mut pull = machine.spawn(&[]);
        std::thread::sleep(Duration::from_millis(random.u64(200..2_300)));
        let ended = pull.try_wait().unwrap();
        pull.kill().unwrap();
        let log = pull.wait_with_output().unwrap();
        check(&machine, &server, seed);
        if ended.is_some_and(|status| status.success()) {
            break;
        }
        assert!(ended.is_none(), "seed {seed}: the pull failed: {}", String::from_utf8_lossy(&log.stderr));
        killed += 1;
    }
    let boot = machine.boot(&[]);
    assert_eq!(boot.status, 0, "seed {seed}: {}", boot.log);
    check(&machine, &server, seed);
    assert_eq!(machine.files().len(), FILES, "seed {seed}: {:?}", machine.files());
    let ratio = server.sent.load(Relaxed) as f64 / total as f64;
    println!("{killed} kills, {ratio:.3} of {total} bytes were downloaded, seed {seed}");
    // Includes whole files that were sent in place of a part, of which a kill loses what was received: 1.10 to 1.29 in
    // short runs, 1.37 and 1.44 with 200 kills.
    let limit = 2.0;
    assert!(ratio <= limit, "seed {seed}: {ratio:.3} of the bytes were downloaded");
}

/// Checks that every file with its final name is complete.
fn check(machine: &Machine, server: &FaultyServer, seed: u64) {
    for (number, file) in server.files.iter().enumerate() {
        if let Some(there) = machine.read(&format!("f/{number}")) {
            assert!(there == *file, "seed {seed}: file {number} differs");
        }
    }
}

#[test]
fn killed_pulls_leave_only_exact_files_and_download_little_twice() {
    kill(10);
}

#[test]
#[ignore = "takes minutes: make pull-kills"]
fn two_hundred_killed_pulls() {
    kill(200);
}
