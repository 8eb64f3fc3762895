//! The program as a child process, with its log and an HTTP client with pooled connections.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::{Client as HttpClient, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use model_catalog::postgres::ephemeral::free_port;

use super::{Db, Response, WAIT_LIMIT};

/// Set by `make coverage`. Only a process that exits normally writes its profile.
static PROFILE: LazyLock<Option<OsString>> = LazyLock::new(|| std::env::var_os("LLVM_PROFILE_FILE"));

/// Settings under which only a notification makes the server read changes.
pub const NOTIFY_ONLY: &[(&str, &str)] = &[("CATALOG_POLL_INTERVAL", "1h")];

/// The program, running as `serve`.
pub struct Server {
    child: Mutex<Child>,
    log: Arc<Mutex<Vec<String>>>,
    /// The reading end of the pipe of the log, and whether it is not read for a while.
    log_pipe: Option<OwnedFd>,
    log_paused: Arc<AtomicBool>,
    /// `127.0.0.1:PORT` of the API.
    pub address: String,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

impl Server {
    /// Starts a server for `db` and waits until it is ready.
    pub async fn start(db: &Db) -> Self {
        Self::start_with(&db.url, &[]).await
    }

    /// Like [`Server::start`], with settings. Without a snapshot file it is also in sync.
    pub async fn start_with(url: &str, settings: &[(&str, &str)]) -> Self {
        let server = Self::spawn(url, settings).await;
        let from_file = settings.iter().any(|(name, _)| *name == "CATALOG_SNAPSHOT_FILE");
        server
            .until("it is ready", |s| async move {
                let ready = s.get("/readyz").await;
                ready.status == 200 && (from_file || !ready.json()["synced_seconds_ago"].is_null())
            })
            .await;
        server
    }

    /// Starts the program and waits until it listens, but not until it has a catalog.
    pub async fn spawn(url: &str, settings: &[(&str, &str)]) -> Self {
        Self::spawn_wrapped(&[], url, settings).await
    }

    /// Starts a server that follows these upstreams in place of a database, and waits until it listens.
    pub async fn edge(upstreams: &str, settings: &[(&str, &str)]) -> Self {
        let upstream = [("CATALOG_UPSTREAM", upstreams), ("CATALOG_UPSTREAM_INTERVAL", "100ms")];
        Self::spawn("", &[&upstream, settings].concat()).await
    }

    /// Like [`Server::spawn`], through another program: `prefix` is that program with arguments, and it must exec the rest.
    pub async fn spawn_wrapped(prefix: &[&str], url: &str, settings: &[(&str, &str)]) -> Self {
        let mut child = Self::command(prefix, url, settings).stderr(Stdio::piped()).spawn().unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let log_paused = Arc::new(AtomicBool::new(false));
        let pipe = child.stderr.take().unwrap();
        let log_pipe = Some(pipe.as_fd().try_clone_to_owned().unwrap());
        let (lines, copy) = (BufReader::new(pipe), Arc::clone(&log));
        let paused = Arc::clone(&log_paused);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                copy.lock().unwrap().push(line);
                while paused.load(Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        let mut server = Self { child: Mutex::new(child), log, log_pipe, log_paused, address: String::new(), http };
        server
            .until("it listens", |s| async move { s.logged("\"message\":\"listening\"") > 0 || s.exited().is_some() })
            .await;
        let field =
            |line: &String| serde_json::from_str::<serde_json::Value>(line).ok()?["address"].as_str().map(String::from);
        let listening = |line: &&String| line.contains("\"message\":\"listening\"");
        let address = server.log.lock().unwrap().iter().find(listening).and_then(field);
        server.address = address.unwrap_or_else(|| panic!("the server did not start: {:#?}", server.log()));
        server
    }

    /// Starts the program with an output in the place of its log, and waits until it has a catalog.
    pub async fn spawn_unlogged(prefix: &[String], stderr: Stdio, url: &str, settings: &[(&str, &str)]) -> Self {
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
        let mut command = Self::command(&prefix, url, &[&[("CATALOG_ADDR", &*address)], settings].concat());
        let child = Mutex::new(command.stderr(stderr).spawn().unwrap());
        let http = HttpClient::builder(TokioExecutor::new()).build_http();
        let server = Self { child, log: Arc::default(), log_pipe: None, log_paused: Arc::default(), address, http };
        server
            .until("it is ready", |s| async move {
                assert!(s.exited().is_none(), "the server ended: {:?}", s.exited());
                let listens = std::net::TcpStream::connect(&s.address).is_ok();
                listens && s.get("/readyz").await.status == 200
            })
            .await;
        server
    }

    fn command(prefix: &[&str], url: &str, settings: &[(&str, &str)]) -> Command {
        let arguments: Vec<_> = prefix.iter().copied().chain([env!("CARGO_BIN_EXE_model-catalog"), "serve"]).collect();
        let mut command = Command::new(arguments[0]);
        command.args(&arguments[1..]).env_clear().env("RUST_BACKTRACE", "1");
        command.env("CATALOG_ADDR", "127.0.0.1:0").env("CATALOG_DRAIN_GRACE", "0s");
        if !url.is_empty() {
            command.env("DATABASE_URL", url);
        }
        command.env("CATALOG_LOG_FORMAT", "json").env("CATALOG_LOG", "debug,tokio_postgres=info");
        command.envs(settings.iter().copied()).envs(PROFILE.as_ref().map(|file| ("LLVM_PROFILE_FILE", file)));
        command.stdin(Stdio::null());
        command
    }

    /// The lines logged so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Stops or continues reading the log, through a pipe that holds a page.
    pub fn pause_log(&self, paused: bool) {
        self.log_paused.store(paused, Relaxed);
        // Fails while it holds more.
        let _ = rustix::pipe::fcntl_setpipe_size(self.log_pipe.as_ref().unwrap(), 4096);
    }

    /// The number of log lines that contain `text`.
    pub fn logged(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// Waits until `text` has been logged `times` times, and fails if it was logged more often. A log line can arrive
    /// after the response that it belongs to.
    pub async fn until_logged(&self, text: &str, times: usize) {
        let what = format!("{text:?} is logged {times} times");
        self.until(&what, |s| std::future::ready(s.logged(text) >= times)).await;
        assert_eq!(self.logged(text), times, "{text:?}: {:#?}", self.log());
    }

    /// Removes panics from the log, which would fail the test when the server is dropped.
    pub fn forget_panics(&self) {
        self.log.lock().unwrap().retain(|line| !line.contains("panicked"));
    }

    /// The address of the admin routes, if they have one of their own.
    pub fn admin_address(&self) -> String {
        let line = self.log().into_iter().find(|line| line.contains("serving the admin routes")).unwrap();
        serde_json::from_str::<serde_json::Value>(&line).unwrap()["address"].as_str().unwrap().to_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// Its exit status, if it has exited.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    /// Ends the process and waits for its exit.
    pub async fn terminate(&self) {
        self.signal("TERM");
        self.until("the process has exited", |s| async { s.exited().is_some() }).await;
        assert!(self.exited().unwrap().success());
    }

    /// Sends a signal. After STOP, waits until every thread has stopped.
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

    /// Waits for a condition on this server.
    pub async fn until<'a, F: Future<Output = bool>>(&'a self, what: &str, mut condition: impl FnMut(&'a Self) -> F) {
        let deadline = Instant::now() + WAIT_LIMIT;
        while !condition(self).await {
            assert!(Instant::now() < deadline, "timed out after {WAIT_LIMIT:?} waiting until {what}");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    /// Sends a request on a pooled connection.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response {
        let response = self.http.request(request).await;
        let response = response.unwrap_or_else(|error| panic!("no response: {error:?}"));
        let (head, body) = response.into_parts();
        let body =
            body.collect().await.unwrap_or_else(|error| panic!("the response was truncated: {error}")).to_bytes();
        Response { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// Builds a request for [`Server::send`].
    pub fn request(&self, method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        request.body(Full::from(body.to_owned())).unwrap()
    }

    /// Sends a GET request.
    pub async fn get(&self, path: &str) -> Response {
        self.send(self.request("GET", path, "")).await
    }

    /// Sends a batch request with this body.
    pub async fn batch(&self, body: &str) -> Response {
        self.send(self.request("POST", "/api/models/batch", body)).await
    }

    /// One field of a model; null if the model does not exist.
    pub async fn field(&self, id: &str, field: &str) -> serde_json::Value {
        let body = serde_json::json!({"model_ids": [id]}).to_string();
        self.batch(&body).await.json()["models"][0][field].clone()
    }

    /// Waits until a model has this name.
    pub async fn until_named(&self, id: &str, name: &str) {
        self.until(&format!("{id} is named {name}"), |s| async move { s.field(id, "name").await == name }).await;
    }

    /// Waits until a model is no longer served.
    pub async fn until_gone(&self, id: &str) {
        self.until(&format!("{id} is gone"), |s| async move { s.field(id, "id").await.is_null() }).await;
    }

    /// Successful reads of the database, by kind.
    pub async fn refreshes(&self, kind: &str) -> f64 {
        self.metric(&format!("catalog_refreshes_total{{kind=\"{kind}\",outcome=\"ok\"}}")).await
    }

    /// The value of a metric, named with its labels as exposed; 0 if there is none.
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
            // The second signal ends it at once.
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

/// Creates a database with the model `a` and starts a server for it.
pub async fn start_with_model_a(settings: &[(&str, &str)]) -> (Db, Server) {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::start_with(&db.url, settings).await;
    (db, server)
}
