//! A keep-alive client that requests one model at a steady rate and records each latency.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Result;

/// Pause between two lookups of the probe.
const PACE: Duration = Duration::from_micros(500);

/// Sorted latencies.
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Sorts them.
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    /// The latency at this quantile.
    pub fn quantile(&self, share: f64) -> Duration {
        let place = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(place.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// One keep-alive connection.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects.
    pub fn new(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Status and body of a GET.
    pub fn get(&mut self, path: &str) -> Result<(u16, Vec<u8>)> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n"))?;
        self.receive()
    }

    /// Sends one request, or several in a row.
    pub fn send(&mut self, requests: &str) -> Result<()> {
        Ok(self.stream.get_mut().write_all(requests.as_bytes())?)
    }

    /// Status and body of the next response.
    pub fn receive(&mut self) -> Result<(u16, Vec<u8>)> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).ok_or("no status")?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, body))
    }
}

/// The client on a separate thread; dropping this stops it.
pub struct Probe {
    times: Arc<Mutex<Vec<Duration>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    /// Starts the client on a thread called `probe`.
    pub fn start(address: &str, path: &'static str) -> Result<Self> {
        let (times, ended) = (Arc::<Mutex<Vec<Duration>>>::default(), Arc::<AtomicBool>::default());
        let (noted, end, address) = (Arc::clone(&times), Arc::clone(&ended), address.to_owned());
        let thread = std::thread::Builder::new().name("probe".into()).spawn(move || {
            let run = || -> Result<()> {
                let mut client = Client::new(&address)?;
                while !end.load(Relaxed) {
                    let started = Instant::now();
                    let (status, _) = client.get(path)?;
                    let took = started.elapsed();
                    if status != 200 {
                        return Err(format!("the probe received status {status}").into());
                    }
                    noted.lock().unwrap_or_else(PoisonError::into_inner).push(took);
                    std::thread::sleep(PACE);
                }
                Ok(())
            };
            if let Err(error) = run() {
                eprintln!("FAILED: {error}");
                std::process::exit(1);
            }
        })?;
        Ok(Self { times, ended, thread: Some(thread) })
    }

    /// The latencies recorded since the last call.
    pub fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}
