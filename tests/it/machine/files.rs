//! Where the tests' machines download from: a small file server that demands tokens, breaks off, redirects, and looks
//! at every request whether a secret shows among the machine's processes.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// How a path is answered.
#[derive(Clone)]
pub enum Way {
    /// With this file, or the range asked of it.
    File(Vec<u8>),
    /// The same, but the first request for more than a byte is refused, as by an address that has expired.
    Expires(Vec<u8>),
    /// The same, but the first answer of more than a byte breaks off half-way.
    BreaksOff(Vec<u8>),
    /// The same, but of more than a byte only a half comes, and then nothing.
    Stalls(Vec<u8>),
    /// The same, but of more than a byte 10 bytes come every 10 ms.
    Trickles(Vec<u8>),
    /// With these bytes, whatever they are.
    Raw(Vec<u8>),
    /// The same, but ranges are not known and the length is not told.
    Unsized(Vec<u8>),
    /// With this status and this address.
    Redirect(u16, String),
    /// With this status.
    Status(u16),
    /// With this text, to a POST.
    Post(String),
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub token: Option<String>,
    pub range: Option<String>,
    /// Bytes of a file that were sent.
    pub sent: usize,
}

/// A file server on a port of its own; it ends with the process.
pub struct Files {
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// With whether it takes a token.
    ways: Mutex<HashMap<String, (bool, Way)>>,
    /// Entity tags by path.
    tags: Mutex<HashMap<String, String>>,
    asked: Mutex<Vec<Asked>>,
    /// Processes that showed the secret.
    leaks: Mutex<Vec<String>>,
    secret: String,
}

impl Files {
    /// A server that looks for `secret` among the processes.
    pub fn start(secret: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            ways: Mutex::default(),
            tags: Mutex::default(),
            asked: Mutex::default(),
            leaks: Mutex::default(),
            secret: secret.to_owned(),
        });
        let copy = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&copy);
                // A client that hangs up is its own affair.
                std::thread::spawn(move || drop(shared.answer(stream.unwrap())));
            }
        });
        Self { address, shared }
    }

    /// Answers `path` so from now on; gives its address.
    pub fn put(&self, path: &str, way: Way) -> String {
        self.shared.ways.lock().unwrap().insert(path.to_owned(), (false, way));
        format!("http://{}{path}", self.address)
    }

    /// The same for those who bring the token; others get 401.
    pub fn put_for_token(&self, path: &str, way: Way) -> String {
        self.shared.ways.lock().unwrap().insert(path.to_owned(), (true, way));
        format!("http://{}{path}", self.address)
    }

    /// Gives `path` an entity tag.
    pub fn tag(&self, path: &str, tag: &str) {
        self.shared.tags.lock().unwrap().insert(path.to_owned(), tag.to_owned());
    }

    /// What was asked so far, and forgets it.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }

    /// Fails if a process showed the secret while it asked.
    pub fn assert_no_leak(&self) {
        let leaks = self.shared.leaks.lock().unwrap();
        assert!(leaks.is_empty(), "a token shows: {leaks:#?}");
    }
}

impl Shared {
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        self.look_for_leaks();
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
        let refused = for_token && token.as_deref() != Some(&format!("Bearer {}", self.secret));
        let stalls = matches!(way, Some(Way::Stalls(_)));
        let mut asked = Asked { path: path.clone(), token, range, sent: 0 };
        let tag = self.tags.lock().unwrap().get(&known).map(|tag| format!("\r\netag: {tag}\r\n").into_bytes());
        let mut answer = match way {
            _ if refused => head(401, "content-length: 0"),
            None => head(404, "content-length: 0"),
            Some(Way::Status(status)) => head(status, "content-length: 0"),
            Some(Way::Redirect(status, to)) => head(status, &format!("content-length: 0\r\nlocation: {to}")),
            Some(Way::Post(text)) => [head(200, &format!("content-length: {}", text.len())), text.into()].concat(),
            Some(Way::Raw(bytes)) => bytes,
            Some(Way::Trickles(file)) => {
                let answer = part(&file, &mut asked);
                if asked.sent > 1 {
                    for part in answer.chunks(10) {
                        (&stream).write_all(part)?;
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                }
                answer
            }
            Some(Way::Unsized(file)) => [head(200, "x: y"), file].concat(),
            Some(Way::File(file)) => part(&file, &mut asked),
            Some(Way::Expires(file)) => match part(&file, &mut asked) {
                answer if asked.sent == 1 => answer,
                _ => {
                    self.ways.lock().unwrap().insert(known, (for_token, Way::File(file)));
                    asked.sent = 0;
                    head(403, "content-length: 0")
                }
            },
            Some(Way::BreaksOff(file) | Way::Stalls(file)) => {
                let mut answer = part(&file, &mut asked);
                if asked.sent > 1 {
                    if !stalls {
                        self.ways.lock().unwrap().insert(known, (for_token, Way::File(file)));
                    }
                    answer.truncate(answer.len() - asked.sent / 2);
                    asked.sent -= asked.sent / 2;
                }
                answer
            }
        };
        if let Some(tag) = tag {
            // After the status line, in the place of its end.
            let end = answer.windows(2).position(|two| two == b"\r\n").unwrap();
            answer.splice(end..end + 2, tag);
        }
        self.asked.lock().unwrap().push(asked);
        (&stream).write_all(&answer)?;
        if !stalls {
            stream.shutdown(Shutdown::Write)?;
        }
        // Closing with unread bytes would cut the answer off.
        reader.read_to_end(&mut Vec::new()).map(drop)
    }

    /// No command line may hold the secret, and no environment but that of the program itself.
    fn look_for_leaks(&self) {
        for process in std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()) {
            let has = |file: &str| {
                let text = std::fs::read(process.join(file)).unwrap_or_default();
                text.windows(self.secret.len()).any(|part| part == self.secret.as_bytes())
            };
            let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            let program = Path::new(super::PROGRAM).file_name().unwrap().to_str().unwrap();
            if has("cmdline") {
                self.leaks.lock().unwrap().push(format!("on the command line of {name}"));
            }
            if has("environ") && name.trim_end() != program {
                self.leaks.lock().unwrap().push(format!("in the environment of {name}"));
            }
        }
    }
}

fn head(status: u16, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} x\r\nconnection: close\r\n{headers}\r\n\r\n").into()
}

/// The file, or the range of it that was asked.
fn part(file: &[u8], asked: &mut Asked) -> Vec<u8> {
    let range = asked.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let Some((from, to)) = range else {
        asked.sent = file.len();
        return [head(200, &format!("content-length: {}\r\naccept-ranges: bytes", file.len())), file.to_vec()].concat();
    };
    let from: usize = from.parse().unwrap();
    let end = to.parse().map_or(file.len(), |to: usize| file.len().min(to + 1));
    if from >= end {
        return head(416, "content-length: 0");
    }
    asked.sent = end - from;
    let headers = format!("content-length: {}\r\ncontent-range: bytes {from}-{}/{}", end - from, end - 1, file.len());
    [head(206, &headers), file[from..end].to_vec()].concat()
}
