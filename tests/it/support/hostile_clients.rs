//! Hostile and broken clients that misbehave at random until they are stopped.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;

type Attack = fn(&mut TcpStream) -> io::Result<()>;

/// What a client does on a connection. I/O errors are ignored, except where the request is valid and must get a response.
const ATTACKS: [(&str, Attack); 12] = [
    ("vanish", |_| Ok(())),
    ("half a head", |stream| stream.write_all(b"GET /api/models/pair-0-a HTTP/1.1\r\nhos")),
    ("half a body", |stream| {
        stream.write_all(
            b"POST /api/models/batch HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n{\"model_ids\":[\"pair",
        )
    }),
    ("a byte at a time", |stream| {
        for byte in b"GET /api/models/pair-0-a HTTP/1.1\r\nhost: x\r\n\r\n" {
            stream.write_all(&[*byte])?;
            std::thread::sleep(Duration::from_millis(fastrand::u64(..20)));
        }
        read_responses(stream, 1)
    }),
    ("garbage", |stream| {
        let garbage: Vec<u8> = (0..fastrand::usize(1..40_000)).map(|_| fastrand::u8(..)).collect();
        stream.write_all(&garbage)
    }),
    ("garbage as a body", |stream| {
        stream.write_all(b"POST /api/models/batch HTTP/1.1\r\ncontent-length: 40\r\n\r\n")?;
        stream.write_all(&std::array::from_fn::<u8, 40, _>(|_| fastrand::u8(..)))?;
        stream.read(&mut [0; 9]).map(drop)
    }),
    ("huge headers", |stream| {
        stream.write_all(b"GET /api/models/pair-0-a HTTP/1.1\r\n")?;
        (0..fastrand::u32(..4_000)).try_for_each(|number| write!(stream, "x-{number}: {number:0>80}\r\n"))
    }),
    ("a pipeline", |stream| {
        let request = b"GET /api/models/pair-0-a HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
        stream.write_all(&request)?;
        read_responses(stream, 100)
    }),
    ("a pipeline with unread responses", |stream| {
        SockRef::from(&*stream).set_recv_buffer_size(1)?;
        let ids: Vec<String> = (0..50).map(|number| format!("\"pair-{number}-a\"")).collect();
        let body = format!("{{\"model_ids\":[{}]}}", ids.join(","));
        let head = format!("POST /api/models/batch HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.set_write_timeout(Some(Duration::from_millis(300)))?;
        (0..2_000).try_for_each(|_| stream.write_all((head.clone() + &body).as_bytes()))
    }),
    ("an endless body", |stream| {
        stream.write_all(b"POST /api/models/batch HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")?;
        (0..3_000).try_for_each(|_| write!(stream, "400\r\n{}\r\n", " ".repeat(0x400)))
    }),
    ("two lengths", |stream| {
        stream.write_all(
            b"POST /api/models/batch HTTP/1.1\r\nhost: x\r\ncontent-length: 16\r\ntransfer-encoding: chunked\r\n\r\n\
              0\r\n\r\nGET /api/models/pair-0-a HTTP/1.1\r\n\r\n",
        )?;
        stream.read(&mut [0; 9]).map(drop)
    }),
    ("a reset", |stream| {
        stream.write_all(b"GET /api/models/pair-0-a HTTP/1.1\r\nhost: x\r\n\r\n")?;
        SockRef::from(&*stream).set_linger(Some(Duration::ZERO))
    }),
];

/// Reads `count` responses with status 200. An earlier end of the stream is an error, any other status a panic.
fn read_responses(stream: &mut TcpStream, count: usize) -> io::Result<()> {
    let (mut read, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    let found = |read: &[u8], text: &str| String::from_utf8_lossy(read).matches(text).count();
    while found(&read, "\"description\":") < count {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        read.extend_from_slice(&buffer[..length]);
    }
    assert_eq!(found(&read, "HTTP/1.1 200 OK\r\n"), count, "{}", String::from_utf8_lossy(&read));
    Ok(())
}

/// Hostile clients in the background, one thread each.
pub struct HostileClients {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<BTreeMap<&'static str, u32>>>,
}

impl HostileClients {
    /// Starts attacking this address.
    pub fn start(address: &str, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |_| {
            let (address, stop) = (address.to_owned(), Arc::clone(&stop));
            std::thread::spawn(move || client(&address, &stop))
        };
        Self { clients: (0..clients).map(client).collect(), stop }
    }

    /// Stops the clients, closes their connections and returns the number of attacks of each kind.
    pub fn finish(self) -> BTreeMap<&'static str, u32> {
        self.stop.store(true, SeqCst);
        let mut all = BTreeMap::new();
        for client in self.clients {
            client.join().unwrap().into_iter().for_each(|(attack, times)| *all.entry(attack).or_default() += times);
        }
        all
    }
}

fn client(address: &str, stop: &AtomicBool) -> BTreeMap<&'static str, u32> {
    /// Abandoned connections that are kept open; the oldest is closed first.
    const LEFT_OPEN: usize = 40;
    let mut done = BTreeMap::new();
    let mut open = std::collections::VecDeque::new();
    while !stop.load(SeqCst) {
        let (name, attack) = ATTACKS[fastrand::usize(..ATTACKS.len())];
        let mut stream = TcpStream::connect(address).expect("the server accepts connections");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream.set_write_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        match attack(&mut stream) {
            Err(error) if name.starts_with("a pipeline") || name == "a byte at a time" => {
                assert!(name.ends_with("unread responses"), "{name}: {error}");
            }
            _ => {}
        }
        *done.entry(name).or_default() += 1;
        if fastrand::bool() {
            open.push_back(stream);
        }
        if open.len() > LEFT_OPEN {
            open.pop_front();
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(..30)));
    }
    done
}
