//! `model-catalog serve`: starts the threads of the server and shuts them down in order.
//!
//! Each worker, the admin server, the loader and the snapshot writer have a thread and a runtime of their own, which
//! [`Supervisor`](crate::supervisor::Supervisor) restarts when it fails. The main thread only waits for signals.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{CommandResult, examples, runtime};
use crate::catalog::model::Rules;
use crate::catalog::snapshot::Snapshot;
use crate::catalog::store::Store;
use crate::cli::{DatabaseArgs, ServerArgs, UpstreamArgs};
use crate::http::client_limits::{self, ClientLimits, RateLimit};
use crate::http::connection::Timeouts;
use crate::http::connection_limit::ConnectionLimit;
use crate::http::fd_limit::{self, ConnectionLimits};
use crate::http::handlers::snapshot::SnapshotFeed;
use crate::http::memory_budget::MemoryBudget;
use crate::http::server::{self, BindError};
use crate::http::{Api, Limits, Routes, SCANS_NICE};
use crate::loader::persist::{self, Pending};
use crate::loader::snapshot_file::PersistedSnapshot;
use crate::loader::upstream::{self, Upstream};
use crate::loader::{self, Loader, replica};
use crate::metrics::Metrics;
use crate::postgres::config::DatabaseConfig;
use crate::stderr::Stderr;
use crate::supervisor::{Duty, ThreadResult};

/// After the grace period and the drain timeout, time for the loader to end and the last state to be written. Then the
/// process exits, even if a disk or a name server does not answer: `fsync` and `getaddrinfo` cannot be cancelled.
const EXIT_TIMEOUT: Duration = Duration::from_millis(1500);

/// Less would report every restart of a database.
const MIN_STALLED_AFTER: Duration = Duration::from_secs(30);

/// Where the catalog comes from.
pub enum Source {
    /// A database.
    Database(Box<DatabaseConfig>),
    /// Other servers, or files.
    Upstream(upstream::Settings),
}

/// Runs the command until a signal stops it. `print_examples` prints commands to try once there is a catalog of a
/// database.
///
/// # Errors
/// An invalid connection string or upstream, or what [`Listeners::bind`] and [`serve`] report.
pub fn run(
    database: &DatabaseArgs,
    upstream: &UpstreamArgs,
    args: &ServerArgs,
    stderr: &Stderr,
    print_examples: bool,
) -> CommandResult {
    if let Some(settings) = upstream.settings(&args.rules.rules())? {
        return serve(Source::Upstream(settings), args, Listeners::bind(args)?, stderr, async |_, _| {});
    }
    let database = Box::new(database.config()?);
    let listeners = Listeners::bind(args)?;
    if !print_examples {
        return serve(Source::Database(database), args, listeners, stderr, async |_, _| {});
    }
    let inspected = database.clone();
    let announce = async |address, store: &Store| examples::announce(address, store, &inspected).await;
    serve(Source::Database(database), args, listeners, stderr, announce)
}

/// Serves until a signal stops it. Runs `announce` meanwhile, with the address of the API.
///
/// # Errors
/// A thread that could not be started. After the start, no error ends it.
pub fn serve(
    source: Source,
    args: &ServerArgs,
    listeners: Listeners,
    stderr: &Stderr,
    announce: impl AsyncFnOnce(SocketAddr, &Store),
) -> CommandResult {
    // With huge pages a connection occupies all of hyper's buffers: 19 KiB instead of 11. Without them, with a million
    // models, a lookup takes about 5 % more CPU time and the start from the snapshot file 1.6 times as long. Where the
    // call is forbidden, connections only need more memory.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let address = listeners.api[0].local_addr()?;
    let threads = listeners.api.len();
    let store = Arc::new(Store::default());
    let metrics = Arc::new(Metrics::new()?);
    stderr.count_dropped(&metrics.log_lines_dropped);
    metrics.connections_limit.set(listeners.limits.api.try_into().unwrap_or(i64::MAX));
    let (pending, latest) = watch::channel(None);
    // The other half of the connections is for requests that do not wait.
    let feed = SnapshotFeed::new(latest.clone(), listeners.limits.api / 2);
    let stalled_after = stalled_after(&source, args);
    let api = Arc::new(Api { stalled_after, ..api(args, &store, &metrics, feed) });

    let runtime = runtime()?;
    // Installed before anything is announced, so that an early signal is handled.
    let mut signals = runtime.block_on(async { Signals::new() })?;
    let (shutdown, workers, writers) = (CancellationToken::new(), TaskTracker::new(), TaskTracker::new());
    listeners.spawn(args, &api, &workers, &shutdown)?;
    spawn_scans(&api)?;
    if let Some(path) = args.snapshot_file.clone() {
        spawn_snapshot_writer(path, latest, &api, &writers)?;
    }
    let (snapshot_file, waiters) = (args.snapshot_file.clone(), pending.clone());
    let context = LoaderContext { snapshot_file, store, metrics, pending, shutdown: shutdown.clone() };
    let source = match source {
        Source::Database(database) => LoaderSource::Database(Box::new(loader_settings(args, *database, address))),
        Source::Upstream(settings) => LoaderSource::Upstream(settings),
    };
    // A thread of its own, so that building a snapshot and freeing an old one never delay a request. After a panic the
    // current snapshot is still served, and a new loader reads everything again.
    api.threads.spawn(("loader".into(), Duty::Support), &writers, move || context.follow(&source))?;

    info!(%address, threads, "listening");
    runtime.block_on(async {
        let announced = async {
            tokio::join!(log_first_snapshot(&api.store), announce(address, &api.store));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = announced => {}
            () = signals.shutdown() => {}
        }
        api.draining.store(true, Relaxed);
        // Requests that wait for a change see the drain now. The loader must be left as the only sender.
        waiters.send_modify(|_| {});
        drop(waiters);
        drain(args, &workers, &writers, &shutdown).await;
    });
    Ok(())
}

async fn log_first_snapshot(store: &Store) {
    let snapshot = examples::first_snapshot(store).await;
    info!(models = snapshot.len(), revision = format!("{:016x}", snapshot.revision()), "first catalog loaded");
}

/// An address that the server cannot listen on.
#[derive(Debug, thiserror::Error)]
#[error("{source}; set {variable} or {flag} to another address, or stop the process that uses this one")]
pub struct ListenError {
    variable: &'static str,
    flag: &'static str,
    source: BindError,
}

/// The bound sockets, and how many connections they may accept.
pub struct Listeners {
    /// One socket per worker.
    api: Vec<TcpListener>,
    admin: Option<TcpListener>,
    limits: ConnectionLimits,
}

impl Listeners {
    /// Binds the addresses of the API and of the admin routes.
    ///
    /// # Errors
    /// An address or enough file descriptors could not be allocated.
    pub fn bind(args: &ServerArgs) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let threads = args.threads.or_else(|| std::thread::available_parallelism().ok());
        let threads = threads.map_or(1, |threads| threads.get());
        let limits = fd_limit::allocate(args.max_connections.get(), threads)?;
        let in_use = |variable, flag| move |source| ListenError { variable, flag, source };
        let api = server::bind(args.listen.addr, threads).map_err(in_use("CATALOG_ADDR", "--addr"))?;
        let admin = args.listen.admin_addr.map(|address| server::bind(address, 1)).transpose();
        let admin = admin.map_err(in_use("CATALOG_ADMIN_ADDR", "--admin-addr"))?;
        Ok(Self { api, admin: admin.and_then(|mut sockets| sockets.pop()), limits })
    }

    /// Starts a thread per socket.
    fn spawn(
        self,
        args: &ServerArgs,
        api: &Arc<Api>,
        workers: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> io::Result<()> {
        let routes = if self.admin.is_some() { Routes::Api } else { Routes::All };
        let limit = ConnectionLimit::new(self.limits.api, if self.admin.is_some() { 0 } else { self.limits.ops });
        let timeouts = Timeouts { request: args.request_timeout, idle: args.idle_timeout };
        let serve = |name, socket, routes, limit: ConnectionLimit| {
            let (served, shutdown, mut socket) = (Arc::clone(api), shutdown.clone(), Some(socket));
            api.threads.spawn((name, Duty::Serve), workers, move || {
                let (api, limit, shutdown) = (Arc::clone(&served), limit.clone(), shutdown.clone());
                Ok(runtime()?.block_on(server::serve(&mut socket, api, routes, limit, timeouts, shutdown))?)
            })
        };
        for (number, socket) in self.api.into_iter().enumerate() {
            serve(format!("http-{number}"), socket, routes, limit.clone())?;
        }
        if let Some(socket) = self.admin {
            info!(address = %socket.local_addr()?, "serving the admin routes");
            serve("admin".into(), socket, Routes::Ops, ConnectionLimit::new(self.limits.ops, 0))?;
        }
        Ok(())
    }
}

/// Three intervals and a timeout without a sync are not explained by the settings. An edge adds how long its upstream
/// may hold back a response, twice, and the age of the upstream's own catalog.
fn stalled_after(source: &Source, args: &ServerArgs) -> Duration {
    let limit = match source {
        Source::Database(database) => {
            args.poll_interval.max(args.standby_poll_interval).saturating_mul(3).saturating_add(database.timeout)
        }
        Source::Upstream(settings) => settings.interval.saturating_mul(3).saturating_add(upstream::MAX_AGE),
    };
    limit.max(MIN_STALLED_AFTER)
}

fn api(args: &ServerArgs, store: &Arc<Store>, metrics: &Arc<Metrics>, snapshots: SnapshotFeed) -> Api {
    let limits = Limits { batch_ids: args.max_batch_ids.get(), body_bytes: args.max_body_bytes.get() };
    let memory = MemoryBudget::new(args.max_buffer_bytes.get());
    let clients = client_limits::Settings {
        max_connections: args.max_connections_per_addr,
        rate: args.rate_limit.map(|limit| RateLimit::new(limit, args.rate_burst.unwrap_or(limit))),
        trusted: args.trusted_proxies.clone(),
        header: Some(args.client_addr_header.clone()),
    };
    Api {
        snapshots,
        clients: Arc::new(ClientLimits::new(clients)),
        cors: args.cors_allow_origin.clone(),
        ..Api::new(Arc::clone(store), Arc::clone(metrics), limits, memory)
    }
}

fn loader_settings(args: &ServerArgs, database: DatabaseConfig, address: SocketAddr) -> loader::Settings {
    let default_name = || replica::default_name(database.driver.get_application_name(), address);
    loader::Settings {
        replica: args.replica_name.clone().unwrap_or_else(default_name),
        database,
        poll_interval: args.poll_interval,
        standby_poll_interval: args.standby_poll_interval,
        audit_interval: args.audit_interval,
        rules: args.rules.rules(),
    }
}

fn spawn_scans(api: &Arc<Api>) -> io::Result<()> {
    let scans = Arc::clone(api);
    // Nothing waits for its end: jobs of requests that are gone may run until the process exits.
    api.threads.spawn(("scans".into(), Duty::Support), &TaskTracker::new(), move || {
        scans.scans.run_jobs(SCANS_NICE);
        Ok(())
    })
}

fn spawn_snapshot_writer(
    path: PathBuf,
    latest: watch::Receiver<Pending>,
    api: &Api,
    writers: &TaskTracker,
) -> io::Result<()> {
    let metrics = Arc::clone(&api.metrics);
    api.threads.spawn(("snapshot-writer".into(), Duty::Support), writers, move || {
        runtime()?.block_on(persist::run(&path, latest.clone(), &metrics));
        Ok(())
    })
}

/// What a loader reads, with its settings.
enum LoaderSource {
    Database(Box<loader::Settings>),
    Upstream(upstream::Settings),
}

/// What a loader needs besides its settings.
struct LoaderContext {
    snapshot_file: Option<PathBuf>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    pending: watch::Sender<Pending>,
    shutdown: CancellationToken,
}

impl LoaderContext {
    /// Keeps the catalog in sync until the shutdown.
    fn follow(&self, source: &LoaderSource) -> ThreadResult {
        match source {
            LoaderSource::Database(settings) => self.follow_database((**settings).clone()),
            LoaderSource::Upstream(settings) => self.follow_upstream(settings.clone()),
        }
    }

    fn follow_database(&self, settings: loader::Settings) -> ThreadResult {
        let persisted = self.persisted(&settings.rules);
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        let mut loader = Loader::new(settings, store, metrics, self.pending.clone());
        if let Some(persisted) = persisted {
            loader.restore(persisted);
        }
        self.run(loader.run())
    }

    fn follow_upstream(&self, settings: upstream::Settings) -> ThreadResult {
        let persisted = self.persisted(&settings.rules);
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        let mut upstream = Upstream::new(settings, store, metrics, self.pending.clone())?;
        if let Some(persisted) = persisted {
            upstream.restore(persisted);
        }
        self.run(upstream.run())
    }

    /// The content of the snapshot file, at the first start of the loader.
    fn persisted(&self, rules: &Rules) -> Option<PersistedSnapshot<Snapshot>> {
        let path = self.snapshot_file.as_ref().filter(|_| self.store.load().is_none())?;
        persist::restore(path, rules, &self.metrics)
    }

    fn run(&self, loader: impl Future<Output = Infallible>) -> ThreadResult {
        runtime()?.block_on(async {
            // Starts the thread that resolves host names while threads can be started.
            drop(tokio::task::spawn_blocking(|| ()).await);
            tokio::select! {
                never = loader => match never {},
                () = self.shutdown.cancelled() => Ok(()),
            }
        })
    }
}

/// The signals that a server handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Installs the handlers. After one SIGTERM or SIGINT, the next one exits in the handler itself: at any time, and
    /// whatever the threads wait for.
    fn new() -> io::Result<Self> {
        let received = Arc::new(AtomicBool::new(false));
        for number in [SIGTERM, SIGINT] {
            // In this order, so that the first signal does not exit.
            signal_hook::flag::register_conditional_shutdown(number, 0, Arc::clone(&received))?;
            signal_hook::flag::register(number, Arc::clone(&received))?;
        }
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal to shut down: SIGTERM, SIGINT, or SIGHUP if it means that the terminal was closed.
    async fn shutdown(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {}
            }
            if io::stdin().is_terminal() {
                return;
            }
            info!("SIGHUP is ignored: settings are read at the start, and SIGTERM shuts down");
        }
    }
}

/// Serves on for the grace period, then accepts no connections and waits for the open ones to finish, for the loader to
/// end, and for the last state to be written.
async fn drain(args: &ServerArgs, workers: &TaskTracker, writers: &TaskTracker, shutdown: &CancellationToken) {
    info!(grace = ?args.drain_grace, "shutting down: no longer ready");
    tokio::time::sleep(args.drain_grace).await;
    shutdown.cancel();
    workers.close();
    writers.close();
    let ended = async {
        // A worker ends when its last connection is closed.
        if tokio::time::timeout(args.drain_timeout, workers.wait()).await.is_err() {
            warn!(after = ?args.drain_timeout, "drain timeout: exiting with open connections");
        }
        // The loader ends first, which closes the channel that the snapshot writer reads from.
        writers.wait().await;
    };
    match tokio::time::timeout(args.drain_timeout + EXIT_TIMEOUT, ended).await {
        Ok(()) => info!("stopped"),
        Err(_) => warn!("stopped without waiting for a disk or a name server that does not answer"),
    }
}
