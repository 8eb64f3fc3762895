//! The file server that test machines download from. It requires tokens, closes connections early, redirects, and
//! checks at every request that no process of the machine exposes a secret.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

/// The response for a path.
#[derive(Clone)]
pub enum Way {
    /// This file, or the requested range of it.
    File(Vec<u8>),
    /// The same, but the first request for more than a byte is rejected, as for an expired URL.
    Expires(Vec<u8>),
    /// The same, but the first response of more than a byte ends half-way.
    EndsEarly(Vec<u8>),
    /// The same, but a response of more than a byte stalls half-way.
    Stalls(Vec<u8>),
    /// The same, but a response of more than a byte is sent at 10 bytes per 10 ms.
    Trickles(Vec<u8>),
    /// These raw bytes.
    Raw(Vec<u8>),
    /// These raw bytes to the first request, and then another response.
    Once(Vec<u8>, Box<Way>),
    /// The same, but without ranges and without a length.
    Unsized(Vec<u8>),
    /// This status and this `Location`.
    Redirect(u16, String),
    /// A redirect to this URL with a signature that differs each time.
    Signed(String),
    /// This status.
    Status(u16),
    /// This text; for POST.
    Post(String),
}

/// A received request.
#[derive(Clone, Debug)]
pub struct ReceivedRequest {
    pub path: String,
    pub token: Option<String>,
    pub range: Option<String>,
    /// `X-Origin-Url`, which is for caches.
    pub origin: Option<String>,
    /// Bytes of the file that were sent.
    pub sent: usize,
}

/// A file server on its own port; it ends with the process.
pub struct Files {
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// Responses by path, and whether a token is required.
    ways: Mutex<HashMap<String, (bool, Way)>>,
    /// Entity tags by path.
    tags: Mutex<HashMap<String, String>>,
    requests: Mutex<Vec<ReceivedRequest>>,
    /// Processes that exposed the secret.
    leaks: Mutex<Vec<String>>,
    secret: String,
    /// Whether they are searched for, which takes most of the time of a request.
    searches: AtomicBool,
}

impl Files {
    /// A server that searches the processes for `secret`.
    pub fn start(secret: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            ways: Mutex::default(),
            tags: Mutex::default(),
            requests: Mutex::default(),
            leaks: Mutex::default(),
            secret: secret.to_owned(),
            searches: AtomicBool::new(true),
        });
        let copy = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&copy);
                // Ignore I/O errors: the client disconnected.
                std::thread::spawn(move || drop(shared.respond(stream.unwrap())));
            }
        });
        Self { address, shared }
    }

    /// Searches no processes from now on.
    pub fn stop_searching(&self) {
        self.shared.searches.store(false, Relaxed);
    }

    /// Sets the response for `path`; returns its URL.
    pub fn put(&self, path: &str, way: Way) -> String {
        self.shared.ways.lock().unwrap().insert(path.to_owned(), (false, way));
        format!("http://{}{path}", self.address)
    }

    /// The same for requests with the token; others get 401.
    pub fn put_for_token(&self, path: &str, way: Way) -> String {
        self.shared.ways.lock().unwrap().insert(path.to_owned(), (true, way));
        format!("http://{}{path}", self.address)
    }

    /// Gives `path` an entity tag.
    pub fn tag(&self, path: &str, tag: &str) {
        self.shared.tags.lock().unwrap().insert(path.to_owned(), tag.to_owned());
    }

    /// Takes the requests received so far.
    pub fn take_requests(&self) -> Vec<ReceivedRequest> {
        std::mem::take(&mut self.shared.requests.lock().unwrap())
    }

    /// Fails if a process exposed the secret during a request.
    pub fn assert_no_leak(&self) {
        let leaks = self.shared.leaks.lock().unwrap();
        assert!(leaks.is_empty(), "a token was exposed: {leaks:#?}");
    }
}

impl Shared {
    fn respond(&self, stream: TcpStream) -> std::io::Result<()> {
        if self.searches.load(Relaxed) {
            self.search_for_leaks();
        }
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.trim_end().is_empty() {
                break;
            }
            lines.push(line.trim_end().to_owned());
        }
        let header = |name: &str| {
            let mut pairs = lines.iter().filter_map(|line| line.split_once(": "));
            pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body)?;
        let path = lines[0].split(' ').nth(1).unwrap_or_default().to_owned();
        let (token, range) = (header("authorization"), header("range"));
        let known = path.split('?').next().unwrap_or_default().to_owned();
        let way = self.ways.lock().unwrap().get(&known).cloned();
        let (for_token, way) = way.map_or((false, None), |(for_token, way)| (for_token, Some(way)));
        let rejected = for_token && token.as_deref() != Some(&format!("Bearer {}", self.secret));
        let stalls = matches!(way, Some(Way::Stalls(_)));
        let mut request = ReceivedRequest { path: path.clone(), token, range, origin: header("x-origin-url"), sent: 0 };
        let tag = self.tags.lock().unwrap().get(&known).map(|tag| format!("\r\netag: {tag}\r\n").into_bytes());
        let mut response = match way {
            _ if rejected => head(401, "content-length: 0"),
            None => head(404, "content-length: 0"),
            Some(Way::Status(status)) => head(status, "content-length: 0"),
            Some(Way::Redirect(status, to)) => head(status, &format!("content-length: 0\r\nlocation: {to}")),
            Some(Way::Signed(to)) => {
                head(302, &format!("content-length: 0\r\nlocation: {to}?signature={:032x}", fastrand::u128(..)))
            }
            Some(Way::Post(text)) => [head(200, &format!("content-length: {}", text.len())), text.into()].concat(),
            Some(Way::Raw(bytes)) => bytes,
            Some(Way::Once(bytes, next)) => {
                self.ways.lock().unwrap().insert(known.clone(), (for_token, *next));
                bytes
            }
            Some(Way::Trickles(file)) => {
                let response = part(&file, &mut request);
                if request.sent > 1 {
                    for part in response.chunks(10) {
                        (&stream).write_all(part)?;
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                }
                response
            }
            Some(Way::Unsized(file)) => [head(200, "x: y"), file].concat(),
            Some(Way::File(file)) => part(&file, &mut request),
            Some(Way::Expires(file)) => match part(&file, &mut request) {
                response if request.sent == 1 => response,
                _ => {
                    self.ways.lock().unwrap().insert(known, (for_token, Way::File(file)));
                    request.sent = 0;
                    head(403, "content-length: 0")
                }
            },
            Some(Way::EndsEarly(file) | Way::Stalls(file)) => {
                let mut response = part(&file, &mut request);
                if request.sent > 1 {
                    if !stalls {
                        self.ways.lock().unwrap().insert(known, (for_token, Way::File(file)));
                    }
                    response.truncate(response.len() - request.sent / 2);
                    request.sent -= request.sent / 2;
                }
                response
            }
        };
        if let Some(tag) = tag {
            // Inserted after the status line.
            let end = response.windows(2).position(|two| two == b"\r\n").unwrap();
            response.splice(end..end + 2, tag);
        }
        self.requests.lock().unwrap().push(request);
        (&stream).write_all(&response)?;
        if !stalls {
            stream.shutdown(Shutdown::Write)?;
        }
        // Closing with unread bytes would reset the connection and lose the response.
        reader.read_to_end(&mut Vec::new()).map(drop)
    }

    /// No command line may contain the secret, and no environment except the program's own.
    fn search_for_leaks(&self) {
        for process in std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()) {
            let has = |file: &str| {
                let text = std::fs::read(process.join(file)).unwrap_or_default();
                text.windows(self.secret.len()).any(|part| part == self.secret.as_bytes())
            };
            let program = Path::new(super::PROGRAM).file_name().unwrap().to_str().unwrap();
            let (on_command_line, in_environment) = (has("cmdline"), has("environ"));
            // Read last: before a process has executed the program, it has the name of the test, and no secret.
            let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            if on_command_line {
                self.leaks.lock().unwrap().push(format!("on the command line of {name}"));
            }
            // Without a name, it has ended meanwhile.
            if in_environment && !name.is_empty() && name.trim_end() != program {
                self.leaks.lock().unwrap().push(format!("in the environment of {name}"));
            }
        }
    }
}

fn head(status: u16, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} x\r\nconnection: close\r\n{headers}\r\n\r\n").into()
}

/// The file, or the requested range of it.
fn part(file: &[u8], request: &mut ReceivedRequest) -> Vec<u8> {
    let range = request.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let Some((from, to)) = range else {
        request.sent = file.len();
        return [head(200, &format!("content-length: {}\r\naccept-ranges: bytes", file.len())), file.to_vec()].concat();
    };
    let from: usize = from.parse().unwrap();
    let end = to.parse().map_or(file.len(), |to: usize| file.len().min(to + 1));
    if from >= end {
        return head(416, "content-length: 0");
    }
    request.sent = end - from;
    let headers = format!("content-length: {}\r\ncontent-range: bytes {from}-{}/{}", end - from, end - 1, file.len());
    [head(206, &headers), file[from..end].to_vec()].concat()
}
