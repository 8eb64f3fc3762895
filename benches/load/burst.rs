//! The bursts: all connections are opened at once, with one request each, and stay open until the last response.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::Result;
use crate::client::response_size;
use crate::peers::{Load, Peer};
use crate::wrk::{Bench, Figures};

/// A request without a response after this time has failed. The kernel retries a connection after 1, 3 and 7 s.
const LIMIT: Duration = Duration::from_secs(30);

struct Client {
    stream: Option<TcpStream>,
    sent: bool,
    received: usize,
    head: Vec<u8>,
    size: Option<usize>,
}

enum Step {
    Waits,
    Done,
    Failed,
    Reset,
}

/// Opens `count` connections to `peer`. The time is that of the last response; percentiles count from the first
/// connect.
pub fn burst(bench: &Bench<'_>, peer: &Peer, load: Load, count: usize) -> Result<Figures> {
    bench.bodies.check(peer, load, bench.sample)?;
    let port = peer.port(load);
    let request = load.request(bench.sample).bytes(port, load.connection());
    let wanted = bench.bodies.body(load).len();
    let (cpu, overflows) = (peer.process.cpu_ns()?, overflows()?);
    let mut poll = Poll::new()?;
    let mut clients: Vec<Client> = Vec::with_capacity(count);
    let mut buffer = vec![0; 64 * 1024];

    let started = Instant::now();
    for number in 0..count {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))
            .map_err(|error| format!("connection {number} of the burst: {error}"))?;
        poll.registry().register(&mut stream, Token(number), Interest::READABLE | Interest::WRITABLE)?;
        let mut client = Client { stream: Some(stream), sent: false, received: 0, head: Vec::new(), size: None };
        if load == Load::BurstAtOnce {
            // A loopback connection is open as soon as it is begun, unless the listen queue is full.
            client.send(&request);
        }
        clients.push(client);
    }

    let mut events = Events::with_capacity(1024);
    let mut responses = Vec::with_capacity(count);
    let (mut failed, mut resets) = (0, 0);
    while responses.len() + failed + resets < count {
        let Some(left) = LIMIT.checked_sub(started.elapsed()) else { break };
        poll.poll(&mut events, Some(left))?;
        for event in &events {
            let client = &mut clients[event.token().0];
            match client.step(&request, wanted, &mut buffer) {
                Step::Waits => continue,
                Step::Done => responses.push(started.elapsed().as_secs_f64()),
                Step::Failed => failed += 1,
                Step::Reset => resets += 1,
            }
        }
    }
    let cpu_seconds = (peer.process.cpu_ns()? - cpu) as f64 / 1e9;
    let overflows = self::overflows()? - overflows;
    drop(clients);

    bench.bodies.check(peer, load, bench.sample)?;
    let figures = figures(&responses, count, cpu_seconds);
    Ok(Figures { resets: resets as f64, overflows: overflows as f64, ..figures })
}

/// Every missing or wrong response is a failure.
fn figures(responses: &[f64], count: usize, cpu_seconds: f64) -> Figures {
    // Recorded in the order of arrival, so sorted.
    let at =
        |share: f64| responses.get((responses.len() as f64 * share) as usize).map_or(f64::NAN, |seconds| seconds * 1e3);
    Figures {
        requests: responses.len() as f64,
        seconds: responses.last().copied().unwrap_or(f64::NAN),
        cpu_seconds,
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        failures: (count - responses.len()) as f64,
        ..Figures::default()
    }
}

impl Client {
    /// Advances until the socket would block. A connection with a complete response stays open.
    fn step(&mut self, request: &[u8], wanted: usize, buffer: &mut [u8]) -> Step {
        if self.stream.is_none() || self.done() {
            return Step::Waits;
        }
        match self.advance(request, wanted, buffer) {
            Ok(Step::Waits) => Step::Waits,
            Ok(Step::Done) => Step::Done,
            Ok(step) => {
                self.stream = None;
                step
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Step::Waits,
            Err(error) if error.kind() == ErrorKind::NotConnected => Step::Waits,
            Err(error) => {
                self.stream = None;
                if error.kind() == ErrorKind::ConnectionReset { Step::Reset } else { Step::Failed }
            }
        }
    }

    /// Sends the request if the connection is open. It fits the send buffer of a new connection, so it is written
    /// completely or not at all.
    fn send(&mut self, request: &[u8]) {
        let Some(stream) = &mut self.stream else { return };
        self.sent = stream.write(request).is_ok_and(|length| length == request.len());
    }

    fn done(&self) -> bool {
        self.size.is_some_and(|size| self.received >= size)
    }

    fn advance(&mut self, request: &[u8], wanted: usize, buffer: &mut [u8]) -> std::io::Result<Step> {
        if !self.sent {
            self.send(request);
        }
        let Some(stream) = &mut self.stream else { return Ok(Step::Waits) };
        loop {
            let count = stream.read(buffer)?;
            if count == 0 {
                return Ok(Step::Failed);
            }
            self.received += count;
            if self.size.is_none() {
                self.head.extend_from_slice(&buffer[..count]);
                if let Some(size) = response_size(&self.head) {
                    if size.status != 200 || size.body != wanted {
                        return Ok(Step::Failed);
                    }
                    self.size = Some(size.head + size.body);
                    self.head = Vec::new();
                }
            }
            if self.size.is_some_and(|size| self.received >= size) {
                return Ok(Step::Done);
            }
        }
    }
}

/// How often a listen queue on this machine has overflowed.
fn overflows() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/net/netstat")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let found = pairs.find(|(name, _)| *name == "ListenOverflows").and_then(|(_, value)| value.parse().ok());
    found.ok_or_else(|| "/proc/net/netstat has no ListenOverflows".into())
}
