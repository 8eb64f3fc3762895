//! The system that is measured: a database of a given size, and a server that reads it.

use std::cell::{Cell, RefCell};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use model_catalog::catalog::model::Rules;
use model_catalog::postgres::config::{DatabaseConfig, Environment};
use model_catalog::postgres::ephemeral::{EphemeralOptions, EphemeralPostgres};
use model_catalog::postgres::migrate::{ModelsTable, migrate};
use model_catalog::postgres::session;
use tokio::runtime::Runtime;
use tokio_postgres::Client as Sql;

use crate::Result;
use crate::probe::Client;
use crate::process::Process;

const PATIENCE: Duration = Duration::from_secs(300);
/// Interval for checking whether a change is served; it adds up to twice this time to the result.
const POLL_PAUSE: Duration = Duration::from_micros(20);
/// Interval for reading a metric while the p99 of lookups is measured.
const SCRAPE_PAUSE: Duration = Duration::from_millis(100);
/// Batches that are measured, and how many of them are sent at once, so that the server rarely waits.
const BATCHES: usize = 20_000;
const PIPELINED: usize = 8;
const CHANNEL: &str = "model_catalog";

/// An ephemeral Postgres.
pub struct Database {
    server: EphemeralPostgres,
    runtime: Runtime,
}

/// One of its databases.
pub struct Source<'a> {
    database: &'a Database,
    name: String,
    sql: Sql,
    number: Cell<u32>,
}

impl Database {
    pub fn start() -> Result<Self> {
        let settings = [("fsync", "off"), ("shared_buffers", "1GB"), ("max_wal_size", "16GB"), ("autovacuum", "on")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let server = EphemeralPostgres::start(EphemeralOptions { settings, ..EphemeralOptions::default() })?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { server, runtime })
    }

    /// Creates a database with generated models of realistic size.
    pub fn fill(&self, models: usize) -> Result<Source<'_>> {
        let name = format!("scale_{models}");
        self.runtime.block_on(async {
            let admin = session::connect(&self.target("postgres")?).await?;
            admin.batch_execute(&format!("CREATE DATABASE {name}")).await?;
            let target = self.target(&name)?;
            let mut sql = session::connect(&target).await?;
            migrate(&mut sql, CHANNEL, &Rules::default(), ModelsTable::Create).await?;
            let insert = format!(
                "INSERT INTO models
                 SELECT 'model-' || n, 'model-' || n || '.safetensors',
                        'https://huggingface.co/some-organisation/repository-' || n || '/resolve/main/model-' || n || '.safetensors',
                        (n % 3000) / 100.0, md5(n::text) || md5((n + 1)::text), n % 3 = 0,
                        CASE WHEN n % 3 = 0 THEN 'huggingface' END, 'checkpoints/model-' || n || '.safetensors',
                        CASE WHEN n % 5 = 0 THEN jsonb_build_array('model-' || (n % {models} + 1)) ELSE '[]' END,
                        'Generated for a benchmark, number ' || n
                 FROM generate_series(1, {models}) n"
            );
            sql.batch_execute(&insert).await?;
            sql.batch_execute("VACUUM ANALYZE").await?;
            Ok(Source { database: self, name, sql, number: Cell::new(0) })
        })
    }

    fn target(&self, name: &str) -> Result<DatabaseConfig> {
        Ok(DatabaseConfig::parse(&self.server.url(name), &Environment::default(), CHANNEL, PATIENCE)?)
    }
}

impl Source<'_> {
    fn run(&self, statement: &str) -> Result<()> {
        Ok(self.database.runtime.block_on(self.sql.batch_execute(statement))?)
    }

    /// Time that `psql` takes to copy all rows of the view.
    pub fn copy(&self) -> Result<Duration> {
        let copy = "COPY (SELECT * FROM model_catalog.entries) TO STDOUT (FORMAT binary)";
        let mut psql = self.database.server.program("psql");
        let started = Instant::now();
        let status =
            psql.arg(self.database.server.url(&self.name)).args(["-c", copy]).stdout(Stdio::null()).status()?;
        if status.success() { Ok(started.elapsed()) } else { Err("psql failed".into()) }
    }

    /// Changes one row; returns the time from sending the commit until the change is served.
    pub fn change_and_see(&self, server: &Server) -> Result<Duration> {
        let text = self.next();
        self.run(&format!("BEGIN; UPDATE models SET description = '{text}' WHERE id = 'model-7'"))?;
        let started = Instant::now();
        self.run("COMMIT")?;
        server.until_served("/api/models/model-7", &text)?;
        let took = started.elapsed();
        // Lets the loader become idle before the next change, as in production.
        std::thread::sleep(Duration::from_millis(3));
        Ok(took)
    }

    /// Changes many rows in one transaction; returns the time from the end of the commit.
    pub fn change_many(&self, server: &Server, rows: usize) -> Result<Duration> {
        let text = self.next();
        self.run(&format!(
            "UPDATE models SET description = '{text}'
             WHERE id IN (SELECT 'model-' || n FROM generate_series(1, {rows}) n)"
        ))?;
        let started = Instant::now();
        server.until_served(&format!("/api/models/model-{rows}"), &text)?;
        Ok(started.elapsed())
    }

    /// Makes the server read everything again.
    pub fn reload(&self, server: &Server) -> Result<()> {
        let before = server.metric(FULL_READS)?;
        self.run("SELECT model_catalog.reload()")?;
        server.until("the reload", || {
            // A scrape takes longer than a lookup and delays it; at this interval that affects one lookup in two
            // hundred.
            std::thread::sleep(SCRAPE_PAUSE);
            Ok(server.metric(FULL_READS)? > before)
        })
    }

    /// Runs `changes` transactions of one row each.
    pub fn churn(&self, server: &Server, changes: usize) -> Result<()> {
        self.run(&format!(
            "DO $$ BEGIN
               FOR n IN 1..{changes} LOOP
                 UPDATE models SET description = 'churned ' || n
                 WHERE id = 'model-' || (1 + (n::bigint * 7919) % (SELECT greatest(reltuples::bigint, 1) FROM pg_class WHERE oid = 'models'::regclass));
                 COMMIT;
               END LOOP;
             END $$"
        ))?;
        let text = self.next();
        self.run(&format!("UPDATE models SET description = '{text}' WHERE id = 'model-7'"))?;
        server.until_served("/api/models/model-7", &text)
    }

    fn next(&self) -> String {
        self.number.set(self.number.get() + 1);
        format!("change {} of {}", self.number.get(), self.name)
    }
}

const FULL_READS: &str = "catalog_refreshes_total{kind=\"full\",outcome=\"ok\"}";
const FULL_SECONDS: &str = "catalog_refresh_duration_seconds_sum{kind=\"full\"}";

/// A running server.
pub struct Server {
    process: Process,
    address: String,
    client: RefCell<Option<Client>>,
    file: Option<PathBuf>,
}

impl Server {
    pub fn start(source: &Source<'_>, file: Option<&str>) -> Result<Self> {
        let file = file.map(|name| std::env::temp_dir().join(format!("{}-{}-{name}", source.name, std::process::id())));
        Self::spawn(&source.database.server.url(&source.name), file)
    }

    /// Starts from the snapshot file of a stopped server.
    pub fn start_without_database(file: &std::path::Path) -> Result<Self> {
        Self::spawn("host=/nowhere user=nobody", Some(file.into()))
    }

    fn spawn(url: &str, file: Option<PathBuf>) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let path = file.as_ref().map(|path| path.display().to_string());
        let mut variables = vec![("DATABASE_URL", url), ("CATALOG_ADDR", &address), ("CATALOG_THREADS", "1")];
        variables.extend([("CATALOG_DRAIN_GRACE", "0s"), ("CATALOG_DATABASE_TIMEOUT", "60s")]);
        variables.extend(path.as_deref().map(|path| ("CATALOG_SNAPSHOT_FILE", path)));
        let log = std::env::temp_dir().join(format!("scale-{}.log", std::process::id()));
        let program = [env!("CARGO_BIN_EXE_model-catalog"), "serve"];
        let process = Process::start("0-1", &program, &variables, &log)?;
        Ok(Self { process, address, client: RefCell::default(), file })
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Uses the kept-alive connection, or a new one if the server has closed it after its idle timeout.
    fn get(&self, path: &str) -> Result<(u16, Vec<u8>)> {
        let mut client = self.client.borrow_mut();
        if let Some(Ok(response)) = client.as_mut().map(|client| client.get(path)) {
            return Ok(response);
        }
        *client = None;
        let mut new = Client::new(&self.address)?;
        let response = new.get(path)?;
        *client = Some(new);
        Ok(response)
    }

    fn until(&self, what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !condition()? {
            if Instant::now() > deadline {
                return Err(format!("timed out waiting for {what}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits for the first load; returns its duration from the metrics of the server.
    pub fn loaded(&self) -> Result<Duration> {
        self.until("the first load", || Ok(matches!(self.get("/readyz"), Ok((200, _)))))?;
        Ok(Duration::from_secs_f64(self.metric(FULL_SECONDS)?))
    }

    /// Waits for the first response.
    pub fn wait_for_response(&self) -> Result<()> {
        self.until("the first response", || Ok(matches!(self.get("/api/models/model-1"), Ok((200, _)))))
    }

    /// Repeats the request until the response contains `text`.
    pub fn until_served(&self, path: &str, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let (_, body) = self.get(path)?;
            if body.windows(text.len()).any(|part| part == text.as_bytes()) {
                return Ok(());
            }
            // Without a pause these requests would delay the probe.
            std::thread::sleep(POLL_PAUSE);
        }
        Err(format!("timed out waiting for {text}").into())
    }

    /// Searches all models for a text that none contains; returns the duration.
    pub fn search(&self) -> Result<Duration> {
        let started = Instant::now();
        match self.get("/api/models?q=no-such-text")? {
            (200, _) => Ok(started.elapsed()),
            (status, _) => Err(format!("a search returned status {status}").into()),
        }
    }

    /// CPU time of the server per batch of `count` random ids, of which it has `models`.
    pub fn batches(&self, models: usize, count: usize) -> Result<Duration> {
        let mut client = Client::new(&self.address)?;
        let mut random = fastrand::Rng::with_seed(7);
        let mut requests = |number: usize| {
            let batch = |_| {
                let ids: Vec<_> = (0..count).map(|_| format!("\"model-{}\"", random.usize(1..=models))).collect();
                let body = format!("{{\"model_ids\":[{}]}}", ids.join(","));
                let length = body.len();
                format!("POST /api/models/batch HTTP/1.1\r\nHost: bench\r\nContent-Length: {length}\r\n\r\n{body}")
            };
            (0..number).map(batch).collect::<String>()
        };
        let before = self.process.cpu_ns()?;
        for _ in 0..BATCHES / PIPELINED {
            client.send(&requests(PIPELINED))?;
            for _ in 0..PIPELINED {
                let (status, _) = client.receive()?;
                if status != 200 {
                    return Err(format!("a batch received status {status}").into());
                }
            }
        }
        Ok(Duration::from_nanos((self.process.cpu_ns()? - before) / BATCHES as u64))
    }

    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, body) = self.get("/metrics")?;
        let text = String::from_utf8(body)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.ok_or_else(|| format!("there is no metric {name}").into())
    }

    /// `VmRSS` or `VmHWM`, in bytes.
    pub fn memory(&self, what: &str) -> Result<f64> {
        self.process.memory(what).map(|bytes| bytes as f64)
    }

    /// Stops the server gracefully; returns the path of its snapshot file.
    pub fn stop(mut self) -> Result<PathBuf> {
        let file = self.file.take();
        drop(self);
        file.ok_or_else(|| "the server has no snapshot file".into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for path in self.file.iter() {
            let _ = std::fs::remove_file(path);
        }
    }
}
