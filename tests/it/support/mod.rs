//! What the tests stand on: one private Postgres a run, a database a test, the real program as a process, and a
//! small HTTP client. Conditions are waited for, and whatever fails prints the server's log.

pub mod browser;
pub mod cgroup;
pub mod hostile_clients;
pub mod live;
pub mod proxy;
pub mod raw;
pub mod witness;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request};
use hyper_util::client::legacy::{Client as HttpClient, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use model_catalog::postgres::config::{DatabaseConfig, Environment};
use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use model_catalog::postgres::error::describe;
use model_catalog::postgres::migrate::{migrate, migrate_bare};
use model_catalog::postgres::session;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Records that the calling test is skipped, which must then return. `make test` prints the file at its end: the output of
/// a test that passes is not shown.
pub fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("skipped {name}: {}\n", reason.trim());
    eprint!("{line}");
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/skipped-tests.txt");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// Longest wait for any condition. Only a failed test ever waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where `make coverage` wants to know what was run. Only a process that ends by itself says so.
static PROFILE: LazyLock<Option<OsString>> = LazyLock::new(|| std::env::var_os("LLVM_PROFILE_FILE"));

/// Settings under which only the bell brings a change.
pub const ONLY_THE_BELL: &[(&str, &str)] = &[("CATALOG_POLL_INTERVAL", "1h")];

const TEMPLATE: &str = "catalog_template";

/// The run's Postgres. It ends with this process: its guard sees the pipe close.
static CLUSTER: LazyLock<EphemeralPostgres> = LazyLock::new(|| private(&[]));

/// A Postgres of a test's own, on a tmpfs where there is one, without the syncing that only a power cut needs.
pub fn private(settings: &[(&str, &str)]) -> EphemeralPostgres {
    let tmpfs = std::path::PathBuf::from("/dev/shm");
    // A killed server leaves its dynamic shared memory behind; as a mapped file it goes with the data.
    let quick = [
        ("fsync", "off"),
        ("max_connections", "300"),
        ("shared_buffers", "64MB"),
        ("dynamic_shared_memory_type", "mmap"),
    ];
    let settings = quick.iter().chain(settings).map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let options = EphemeralOptions { parent: tmpfs.is_dir().then_some(tmpfs), settings, ..EphemeralOptions::default() };
    EphemeralPostgres::start(options).unwrap_or_else(|error| panic!("{error}"))
}

/// How the library would connect to an address.
pub fn database(url: &str) -> DatabaseConfig {
    DatabaseConfig::parse(url, &Environment::default(), "model_catalog", PATIENCE).unwrap()
}

/// Connects to an address.
pub async fn connect(url: &str) -> Client {
    session::connect(&database(url)).await.unwrap()
}

/// Connects and migrates.
pub async fn migrated(url: &str) -> Client {
    let mut client = session::connect(&database(url)).await.unwrap();
    migrate(&mut client, "model_catalog").await.unwrap();
    client
}

/// Makes all but the default table, its view and its triggers.
pub async fn bare(url: &str) {
    migrate_bare(&mut connect(url).await, "model_catalog").await.unwrap();
}

/// A database of a test's own, with the default table, and a connection to it.
pub struct Db {
    /// Its address, as `DATABASE_URL` takes it.
    pub url: String,
    /// Its name.
    pub name: String,
    /// A superuser's connection.
    pub client: Client,
}

impl Db {
    /// A migrated database of the run's cluster.
    pub async fn new() -> Self {
        static TEMPLATE_MADE: OnceCell<()> = OnceCell::const_new();
        TEMPLATE_MADE
            .get_or_init(|| async {
                let admin = session::connect(&database(&CLUSTER.url("postgres"))).await.unwrap();
                admin.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await.unwrap();
                // CREATE DATABASE wants a template without sessions: this one must be gone before anybody copies it.
                drop(migrated(&CLUSTER.url(TEMPLATE)).await);
                let others = format!("SELECT FROM pg_stat_activity WHERE datname = '{TEMPLATE}'");
                until("the template has no session", || async { admin.query(&others, &[]).await.unwrap().is_empty() })
                    .await;
            })
            .await;
        Self::create(&format!("TEMPLATE {TEMPLATE}")).await
    }

    /// A database of the run's cluster without anything in it.
    pub async fn empty() -> Self {
        Self::create("").await
    }

    async fn create(options: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Relaxed));
        let admin = session::connect(&database(&CLUSTER.url("postgres"))).await.unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {name} {options}")).await.unwrap();
        let url = CLUSTER.url(&name);
        let client = session::connect(&database(&url)).await.unwrap();
        Self { url, name, client }
    }

    /// One more connection.
    pub async fn connect(&self) -> Client {
        connect(&self.url).await
    }

    /// Runs statements; gives the first column of the last row.
    pub async fn sql(&self, statements: &str) -> Option<String> {
        sql(&self.client, statements).await
    }

    /// Adds a model that passes every rule.
    pub async fn add(&self, id: &str) {
        let insert = "INSERT INTO models (id, name, download_url, save_path) \
                      VALUES ($1, $1 || '.safetensors', 'https://example.org/' || $1, 'checkpoints/' || $1)";
        self.client.execute(insert, &[&id]).await.unwrap();
    }
}

/// The answer for a model that [`Db::add`] added. The id must need no escaping in JSON.
pub fn plain(id: &str) -> String {
    format!(
        r#"{{"id":"{id}","name":"{id}.safetensors","download_url":"https://example.org/{id}","file_size_gb":null,"hash":null,"auth_required":false,"auth_provider":null,"save_path":"checkpoints/{id}","dependencies":[],"description":null}}"#
    )
}

/// A database with the model `a`, and a server of it.
pub async fn with_a(settings: &[(&str, &str)]) -> (Db, Server) {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, settings).await;
    (db, server)
}

/// Runs statements; gives the first column of the last row.
pub async fn sql(client: &Client, statements: &str) -> Option<String> {
    let messages = client.simple_query(statements).await.unwrap_or_else(|error| {
        panic!("{}\n{statements}", describe(&error));
    });
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
        _ => None,
    });
    rows.last().flatten()
}

/// Lets this process have as many descriptors as it may: shells give 1,024 by default.
pub fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The revision of the snapshot that answered.
    pub fn revision(&self) -> String {
        self.header("catalog-revision").to_owned()
    }
}

/// The program, running.
pub struct Server {
    child: Mutex<Child>,
    log: Arc<Mutex<Vec<String>>>,
    /// `127.0.0.1:PORT` of the API.
    pub address: String,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

impl Server {
    /// Serves `db`, with a catalog to serve.
    pub async fn start(db: &Db) -> Self {
        Self::start_with(&db.url, &[]).await
    }

    /// The same with settings.
    pub async fn start_with(url: &str, settings: &[(&str, &str)]) -> Self {
        let server = Self::spawn(url, settings).await;
        server.until("it is ready", |s| async move { s.get("/readyz").await.status == 200 }).await;
        server
    }

    /// Starts the program and waits for its port, not for a catalog.
    pub async fn spawn(url: &str, settings: &[(&str, &str)]) -> Self {
        Self::spawn_by(&[], url, settings).await
    }

    /// The same by another program, which is given its arguments and ours and becomes us.
    pub async fn spawn_by(prefix: &[&str], url: &str, settings: &[(&str, &str)]) -> Self {
        let words: Vec<_> = prefix.iter().copied().chain([env!("CARGO_BIN_EXE_model-catalog"), "serve"]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_clear().env("RUST_BACKTRACE", "1");
        command.env("DATABASE_URL", url).env("CATALOG_ADDR", "127.0.0.1:0").env("CATALOG_DRAIN_GRACE", "0s");
        command.env("CATALOG_LOG_FORMAT", "json").env("CATALOG_LOG", "debug,tokio_postgres=info");
        command.envs(settings.iter().copied()).envs(PROFILE.as_ref().map(|file| ("LLVM_PROFILE_FILE", file)));
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (lines, copy) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        std::thread::spawn(move || {
            lines.lines().map_while(Result::ok).for_each(|line| copy.lock().unwrap().push(line))
        });
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        let mut server = Self { child: Mutex::new(child), log, address: String::new(), http };
        server
            .until("it listens", |s| async move { s.logged("\"message\":\"serving\"") > 0 || s.exited().is_some() })
            .await;
        let field =
            |line: &String| serde_json::from_str::<serde_json::Value>(line).ok()?["address"].as_str().map(String::from);
        let serving = |line: &&String| line.contains("\"message\":\"serving\"");
        let address = server.log.lock().unwrap().iter().find(serving).and_then(field);
        server.address = address.unwrap_or_else(|| panic!("the server did not start: {:#?}", server.log()));
        server
    }

    /// Lines logged so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// How many lines contain `text`.
    pub fn logged(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// Waits until `text` has been logged so many times, which must not be more: a line comes by another way than an
    /// answer, and may come after it.
    pub async fn until_logged(&self, text: &str, times: usize) {
        let what = format!("{text:?} is logged {times} times");
        self.until(&what, |s| std::future::ready(s.logged(text) >= times)).await;
        assert_eq!(self.logged(text), times, "{text:?}: {:#?}", self.log());
    }

    /// Forgets the panics in the log, which would fail the test at its end; gives their number.
    pub fn take_panics(&self) -> usize {
        let mut log = self.log.lock().unwrap();
        let before = log.len();
        log.retain(|line| !line.contains("panicked"));
        before - log.len()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// How it ended, if it has.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    /// Sends it a signal. After STOP none of its threads runs any more: each stops when it is its turn.
    pub fn signal(&self, name: &str) {
        let pid = self.pid();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
        let stopped = |thread: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        };
        while name == "STOP" && !std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().all(stopped) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for a condition of this server.
    pub async fn until<'a, F: Future<Output = bool>>(&'a self, what: &str, mut condition: impl FnMut(&'a Self) -> F) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self).await {
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// Sends a request on a pooled connection.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        let answer = self.http.request(request).await;
        let answer = answer.unwrap_or_else(|error| panic!("no answer: {error:?}"));
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap_or_else(|error| panic!("the answer broke off: {error}")).to_bytes();
        Reply { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// A request to be changed and sent.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        request.body(Full::from(body.to_owned())).unwrap()
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(self.request("GET", path, "")).await
    }

    /// A batch with this body.
    pub async fn batch(&self, body: &str) -> Reply {
        self.send(self.request("POST", "/api/models/batch", body)).await
    }

    /// One field of a model; null if there is none.
    pub async fn field(&self, id: &str, field: &str) -> serde_json::Value {
        let asked = serde_json::json!({"model_ids": [id]}).to_string();
        self.batch(&asked).await.json()["models"][0][field].clone()
    }

    /// Waits until a model has this name.
    pub async fn until_named(&self, id: &str, name: &str) {
        self.until(&format!("{id} is named {name}"), |s| async move { s.field(id, "name").await == name }).await;
    }

    /// Waits until there is no such model.
    pub async fn until_gone(&self, id: &str) {
        self.until(&format!("{id} is gone"), |s| async move { s.field(id, "id").await.is_null() }).await;
    }

    /// Reads of the database that succeeded, by kind.
    pub async fn refreshes(&self, kind: &str) -> f64 {
        self.metric(&format!("catalog_refreshes_total{{kind=\"{kind}\",outcome=\"ok\"}}")).await
    }

    /// The value of a metric, with its labels as they are printed; 0 where there is none.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        if PROFILE.is_some() {
            // The second one ends it at once.
            let pid = child.id().to_string();
            for _ in 0..2 {
                let _ = Command::new("kill").args(["-TERM", &pid]).status();
                std::thread::sleep(Duration::from_millis(300));
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        let log = self.log.lock().unwrap();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", log.join("\n"));
        } else {
            let panicked: Vec<_> = log.iter().filter(|line| line.contains("panicked")).collect();
            assert!(panicked.is_empty(), "the server panicked: {panicked:#?}");
        }
    }
}
