//! The servers that are measured: how each is started, and the check that all send the same bytes.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Result;
use crate::client::{self, Response};
use crate::process::Process;
use crate::sample::{Request, Sample};
use crate::settings::SERVER_CORE;

const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");
const START_LIMIT: Duration = Duration::from_secs(20);

/// The kinds of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    Single,
    Batch10,
    Batch50,
    /// A new connection for each batch of 10.
    Storm,
    /// A large number of simultaneous connections, one batch of 10 each. All are opened before the first one sends.
    Burst,
    /// The same, but each connection sends as soon as it is open.
    BurstAtOnce,
}

impl Load {
    pub const ALL: [Self; 6] =
        [Self::Single, Self::Batch10, Self::Batch50, Self::Storm, Self::Burst, Self::BurstAtOnce];

    pub fn request(self, sample: &Sample) -> &Request {
        match self {
            Self::Single => &sample.single,
            Self::Batch50 => &sample.batch50,
            Self::Batch10 | Self::Storm | Self::Burst | Self::BurstAtOnce => &sample.batch10,
        }
    }

    /// Value of the Connection header.
    pub fn connection(self) -> &'static str {
        if self == Self::Storm { "close" } else { "keep-alive" }
    }

    /// Whether this is a burst.
    pub fn is_burst(self) -> bool {
        matches!(self, Self::Burst | Self::BurstAtOnce)
    }
}

/// The servers that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The catalog as it is released: optimized with a profile of these loads.
    Catalog,
    /// The catalog without a profile.
    Plain,
    /// nginx with constant bytes in memory.
    Constant,
    /// nginx with static files.
    Nginx,
    Limit,
    Axum,
    Express,
}

/// A running server.
pub struct Peer {
    pub kind: Kind,
    pub process: Process,
    /// By load; most servers use one port for all.
    ports: [u16; Load::ALL.len()],
}

impl Peer {
    pub fn port(&self, load: Load) -> u16 {
        self.ports[load as usize]
    }

    /// Sends one request of this load.
    pub fn send(&self, load: Load, sample: &Sample) -> Result<Response> {
        let port = self.port(load);
        client::exchange(&mut client::connect(port)?, &load.request(sample).bytes(port, load.connection()))
    }

    /// Waits until the server responds with 200.
    fn ready(self, sample: &Sample, log: &Path) -> Result<Self> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let response = self.send(Load::Single, sample);
            match response {
                Ok(response) if response.status == 200 => return Ok(self),
                response if Instant::now() > deadline => {
                    let printed = fs::read_to_string(log).unwrap_or_default();
                    let last = response.map(|response| response.status);
                    return Err(format!("{:?} is not responding ({last:?}): {printed}", self.kind).into());
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// A directory for the files of a run, removed when dropped.
pub struct TempDir {
    pub directory: PathBuf,
}

impl TempDir {
    pub fn open() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("model-catalog-bench-{:08x}", fastrand::u32(..)));
        fs::create_dir(&directory)?;
        Ok(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let path = self.path(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, bytes)?;
        Ok(path.display().to_string())
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The program that `make pgo` builds.
pub const OPTIMIZED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/pgo/model-catalog");
/// The program of the release profile.
const PLAIN: &str = env!("CARGO_BIN_EXE_model-catalog");

/// The catalog server as it is released.
pub fn catalog(temp: &TempDir, sample: &Sample, threads: usize, cores: &str) -> Result<Peer> {
    catalog_program(Kind::Catalog, OPTIMIZED, temp, sample, threads, cores)
}

/// A catalog server, with all metrics enabled.
pub fn catalog_program(
    kind: Kind,
    program: &str,
    temp: &TempDir,
    sample: &Sample,
    threads: usize,
    cores: &str,
) -> Result<Peer> {
    let port = free_port()?;
    let (address, threads) = (format!("127.0.0.1:{port}"), threads.to_string());
    let database = sample.postgres.url("postgres");
    let variables = [
        ("DATABASE_URL", database.as_str()),
        ("CATALOG_ADDR", address.as_str()),
        ("CATALOG_THREADS", threads.as_str()),
        ("CATALOG_LOG", "warn"),
        ("CATALOG_DRAIN_GRACE", "0s"),
        ("CATALOG_DRAIN_TIMEOUT", "1s"),
    ];
    let log = temp.path("catalog.log");
    let process = Process::start(cores, &[program, "serve"], &variables, &log)?;
    Peer { kind, process, ports: [port; Load::ALL.len()] }.ready(sample, &log)
}

/// Starts a server of any kind; the catalog with one thread.
pub fn start(kind: Kind, temp: &TempDir, sample: &Sample, bodies: &Bodies) -> Result<Peer> {
    match kind {
        Kind::Catalog => catalog(temp, sample, 1, SERVER_CORE),
        Kind::Plain => catalog_program(kind, PLAIN, temp, sample, 1, SERVER_CORE),
        Kind::Constant => constant(temp, sample, bodies),
        Kind::Nginx => static_files(temp, sample, bodies),
        Kind::Limit => limit(temp, sample, bodies),
        Kind::Axum => axum(temp, sample),
        Kind::Express => express(temp, sample),
    }
}

/// The responses of the catalog server; all peers must send the same bodies.
pub struct Bodies {
    pub single: Response,
    pub batch10: Response,
    pub batch50: Response,
    /// With the head for a connection that is closed.
    pub close: Response,
}

impl Bodies {
    pub fn of(catalog: &Peer, sample: &Sample) -> Result<Self> {
        let [single, batch10, batch50, close] =
            [Load::Single, Load::Batch10, Load::Batch50, Load::Storm].map(|load| catalog.send(load, sample));
        Ok(Self { single: single?, batch10: batch10?, batch50: batch50?, close: close? })
    }

    pub fn body(&self, load: Load) -> &[u8] {
        match load {
            Load::Single => &self.single.body,
            Load::Batch50 => &self.batch50.body,
            Load::Batch10 | Load::Storm | Load::Burst | Load::BurstAtOnce => &self.batch10.body,
        }
    }

    /// Checks status and body of a response of `peer`; returns its size in bytes with the head.
    pub fn check(&self, peer: &Peer, load: Load, sample: &Sample) -> Result<usize> {
        let response = peer.send(load, sample)?;
        if !response.is(self.body(load)) {
            let (got, wanted) = (response.body.len(), self.body(load).len());
            let status = response.status;
            return Err(
                format!("{:?} responds to {load:?} with {status} and {got} bytes, not {wanted}", peer.kind).into()
            );
        }
        Ok(response.head.len() + response.body.len())
    }
}

/// nginx, serving files with the same bytes.
fn static_files(temp: &TempDir, sample: &Sample, bodies: &Bodies) -> Result<Peer> {
    let files = format!("static/files{}", sample.single.path);
    temp.write(&files, &bodies.single.body)?;
    temp.write("static/files/batch10.json", &bodies.batch10.body)?;
    temp.write("static/files/batch50.json", &bodies.batch50.body)?;
    nginx(Kind::Nginx, &fs::read_to_string(format!("{PEERS}/nginx.conf"))?, temp, sample)
}

/// nginx, returning the same bytes from its configuration: it opens no file, looks nothing up and discards the body.
fn constant(temp: &TempDir, sample: &Sample, bodies: &Bodies) -> Result<Peer> {
    let mut config = fs::read_to_string(format!("{PEERS}/nginx-constant.conf"))?;
    for (name, response) in [("SINGLE", &bodies.single), ("BATCH10", &bodies.batch10), ("BATCH50", &bodies.batch50)] {
        let (variables, value) = constant_variables(&name.to_lowercase(), std::str::from_utf8(&response.body)?)?;
        config = config.replace(&format!("VARIABLES_{name}"), &variables).replace(&format!("VALUE_{name}"), &value);
    }
    nginx(Kind::Constant, &config, temp, sample)
}

/// The definitions of variables that together are `body`, and the text that names them: a word of the configuration has
/// 4,096 bytes at most.
fn constant_variables(name: &str, body: &str) -> Result<(String, String)> {
    if body.contains('$') {
        return Err("nginx would read a $ of the response as a variable".into());
    }
    let (mut variables, mut value) = (String::new(), String::new());
    let characters: Vec<_> = body.chars().collect();
    for (number, part) in characters.chunks(3_000).enumerate() {
        let text = part.iter().collect::<String>().replace('\\', r"\\").replace('\'', r"\'");
        variables += &format!("map '' ${name}_{number} {{ default '{text}'; }}\n");
        value += &format!("${name}_{number}");
    }
    Ok((variables, value))
}

fn nginx(kind: Kind, config: &str, temp: &TempDir, sample: &Sample) -> Result<Peer> {
    let ports = [free_port()?, free_port()?, free_port()?];
    let mut config = config.to_owned();
    for (word, port) in ["PORT_SINGLE", "PORT_BATCH10", "PORT_BATCH50"].into_iter().zip(ports) {
        config = config.replace(word, &port.to_string());
    }
    let name = if kind == Kind::Nginx { "static" } else { "constant" };
    let config = temp.write(&format!("{name}/nginx.conf"), config.as_bytes())?;
    let prefix = temp.path(name).display().to_string();
    let log = temp.path(&format!("{name}.log"));
    let program = ["nginx", "-p", &prefix, "-c", &config, "-e", "stderr"];
    let process = Process::start(SERVER_CORE, &program, &[], &log)?;
    let [single, batch10, batch50] = ports;
    let ports = [single, batch10, batch50, batch10, batch10, batch10];
    Peer { kind, process, ports }.ready(sample, &log)
}

/// The limit: this program, started as a peer.
pub fn limit(temp: &TempDir, sample: &Sample, bodies: &Bodies) -> Result<Peer> {
    let responses = [
        ("single", &bodies.single),
        ("batch10", &bodies.batch10),
        ("batch50", &bodies.batch50),
        ("batch10.close", &bodies.close),
    ];
    let mut program = vec![std::env::current_exe()?.display().to_string(), crate::LIMIT.into()];
    let mut ports = [0; 4];
    for ((name, response), port) in responses.into_iter().zip(&mut ports) {
        *port = free_port()?;
        let file = temp.write(&format!("limit/{name}"), &[&response.head[..], &response.body].concat())?;
        program.push(format!("{port}={file}"));
    }
    let log = temp.path("limit.log");
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    let process = Process::start(SERVER_CORE, &program, &[], &log)?;
    let [single, batch10, batch50, close] = ports;
    let ports = [single, batch10, batch50, close, batch10, batch10];
    Peer { kind: Kind::Limit, process, ports }.ready(sample, &log)
}

/// Where `make bench-peers` builds the peer that uses axum.
pub const AXUM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers/release/axum-peer");

/// axum with a map in memory, with one worker thread as the others.
pub fn axum(temp: &TempDir, sample: &Sample) -> Result<Peer> {
    let port = free_port()?;
    let text = port.to_string();
    let database = sample.postgres.url("postgres");
    let variables = [("DATABASE_URL", database.as_str()), ("PORT", &text), ("TOKIO_WORKER_THREADS", "1")];
    let log = temp.path("axum.log");
    let process = Process::start(SERVER_CORE, &[AXUM], &variables, &log)?;
    Peer { kind: Kind::Axum, process, ports: [port; Load::ALL.len()] }.ready(sample, &log)
}

/// Whether the npm packages are installed.
pub fn express_is_installed() -> bool {
    Path::new(PEERS).join("express/node_modules").is_dir()
}

/// Express with node-postgres.
pub fn express(temp: &TempDir, sample: &Sample) -> Result<Peer> {
    let port = free_port()?;
    let (script, text) = (format!("{PEERS}/express/server.js"), port.to_string());
    let database = sample.postgres.loopback_url("postgres");
    let variables = [("DATABASE_URL", database.as_str()), ("PORT", &text), ("NODE_ENV", "production")];
    let log = temp.path("express.log");
    let process = Process::start(SERVER_CORE, &["node", &script], &variables, &log)?;
    Peer { kind: Kind::Express, process, ports: [port; Load::ALL.len()] }.ready(sample, &log)
}
