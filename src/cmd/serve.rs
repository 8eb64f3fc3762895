//! `model-catalog serve`: starts the threads of the server and shuts them down in order.
//!
//! Each worker, the admin server, the loader and the snapshot writer have a thread and a runtime of their own. The main
//! thread only waits for signals.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

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

/// Pause before a loader that panicked is restarted.
const LOADER_RESTART_PAUSE: Duration = Duration::from_secs(1);

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
pub fn run(database: &DatabaseArgs, upstream: &UpstreamArgs, args: &ServerArgs, print_examples: bool) -> CommandResult {
    if let Some(settings) = upstream.settings(&args.rules.rules())? {
        return serve(Source::Upstream(settings), args, Listeners::bind(args)?, async |_, _| {});
    }
    let database = Box::new(database.config()?);
    let listeners = Listeners::bind(args)?;
    if !print_examples {
        return serve(Source::Database(database), args, listeners, async |_, _| {});
    }
    let inspected = database.clone();
    let announce = async |address, store: &Store| examples::announce(address, store, &inspected).await;
    serve(Source::Database(database), args, listeners, announce)
}

/// Serves until a signal stops it. Runs `announce` meanwhile, with the address of the API.
///
/// # Errors
/// A thread that could not be started. After the start, no error ends it.
pub fn serve(
    source: Source,
    args: &ServerArgs,
    listeners: Listeners,
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
    metrics.connections_limit.set(listeners.limits.api.try_into().unwrap_or(i64::MAX));
    let (pending, latest) = watch::channel(None);
    // The other half of the connections is for requests that do not wait.
    let feed = SnapshotFeed::new(latest.clone(), listeners.limits.api / 2);
    let api = Arc::new(api(args, &store, &metrics, feed));

    let runtime = runtime()?;
    // Installed before anything is announced, so that an early signal is handled.
    let mut signal = runtime.block_on(async { ShutdownSignal::new() })?;
    let (shutdown, workers) = (CancellationToken::new(), TaskTracker::new());
    let scans = Arc::clone(&api);
    std::thread::Builder::new().name("scans".into()).spawn(move || scans.scans.run_jobs(SCANS_NICE))?;
    listeners.spawn(args, &api, &workers, &shutdown)?;
    let writer = spawn_snapshot_writer(args.snapshot_file.clone(), latest, &metrics)?;
    let snapshot_file = args.snapshot_file.clone();
    let waiters = pending.clone();
    let context = LoaderContext { snapshot_file, store, metrics, pending, shutdown: shutdown.clone() };
    let loader = match source {
        Source::Database(database) => {
            let settings = loader_settings(args, *database, address);
            spawn_loader(move || context.follow_database(settings.clone()))?
        }
        Source::Upstream(settings) => spawn_loader(move || context.follow_upstream(settings.clone()))?,
    };

    info!(%address, threads, "listening");
    let drained = runtime.block_on(async {
        let announced = async {
            tokio::join!(log_first_snapshot(&api.store), announce(address, &api.store));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = announced => {}
            () = signal.recv() => {}
        }
        api.draining.store(true, Relaxed);
        // Requests that wait for a change see the drain now. The loader must be left as the only sender.
        waiters.send_modify(|_| {});
        drop(waiters);
        drain(args, &workers, &shutdown, &mut signal).await
    });
    if drained {
        // The loader ends first, which closes the channel that the snapshot writer reads from.
        std::iter::once(loader).chain(writer).for_each(|thread| drop(thread.join()));
    }
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
        for (number, socket) in self.api.into_iter().enumerate() {
            let task = server::serve(socket, Arc::clone(api), routes, limit.clone(), timeouts, shutdown.clone());
            spawn(format!("http-{number}"), workers.track_future(task))?;
        }
        if let Some(socket) = self.admin {
            info!(address = %socket.local_addr()?, "serving the admin routes");
            let limit = ConnectionLimit::new(self.limits.ops, 0);
            let task = server::serve(socket, Arc::clone(api), Routes::Ops, limit, timeouts, shutdown.clone());
            spawn("admin".into(), workers.track_future(task))?;
        }
        Ok(())
    }
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

/// Runs one task on a thread and a runtime of its own.
fn spawn(name: String, task: impl Future<Output = io::Result<()>> + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        if let Err(error) = runtime().and_then(|runtime| runtime.block_on(task)) {
            error!(thread = name, %error, "thread ended");
        }
    })
}

fn spawn_snapshot_writer(
    path: Option<PathBuf>,
    to_write: watch::Receiver<Pending>,
    metrics: &Arc<Metrics>,
) -> io::Result<Option<JoinHandle<()>>> {
    let Some(path) = path else { return Ok(None) };
    let metrics = Arc::clone(metrics);
    let task = async move {
        persist::run(path, to_write, metrics).await;
        Ok(())
    };
    spawn("snapshot-writer".into(), task).map(Some)
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
    fn follow_database(&self, settings: loader::Settings) -> CommandResult {
        let persisted = self.persisted(&settings.rules);
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        let mut loader = Loader::new(settings, store, metrics, self.pending.clone());
        if let Some(persisted) = persisted {
            loader.restore(persisted);
        }
        self.run(loader.run())
    }

    fn follow_upstream(&self, settings: upstream::Settings) -> CommandResult {
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

    fn run(&self, loader: impl Future<Output = Infallible>) -> CommandResult {
        runtime()?.block_on(async {
            tokio::select! {
                never = loader => match never {},
                () = self.shutdown.cancelled() => Ok(()),
            }
        })
    }
}

/// Runs the loader on a thread of its own, so that building a snapshot and freeing an old one never delay a request. It
/// ends after the grace period: requests in flight are served from the current snapshot.
fn spawn_loader(mut run: impl FnMut() -> CommandResult + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("loader".into()).spawn(move || {
        // After a panic the current snapshot is still served, and a new loader reads everything again.
        loop {
            match catch_unwind(AssertUnwindSafe(&mut run)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error!(%error, "cannot start the loader, trying again"),
                Err(_) => error!("the loader panicked, restarting it"),
            }
            std::thread::sleep(LOADER_RESTART_PAUSE);
        }
    })
}

/// SIGTERM and SIGINT.
struct ShutdownSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl ShutdownSignal {
    /// Installs the handlers.
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of the signals.
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves on for the grace period, then accepts no connections and waits for the open ones to finish. Returns false if
/// a second signal interrupted it.
async fn drain(
    args: &ServerArgs,
    workers: &TaskTracker,
    shutdown: &CancellationToken,
    signal: &mut ShutdownSignal,
) -> bool {
    info!(grace = ?args.drain_grace, "shutting down: no longer ready");
    let drain = async {
        tokio::time::sleep(args.drain_grace).await;
        shutdown.cancel();
        workers.close();
        // A worker ends when its last connection is closed.
        if tokio::time::timeout(args.drain_timeout, workers.wait()).await.is_err() {
            warn!(after = ?args.drain_timeout, "drain timeout: exiting with open connections");
        }
    };
    tokio::select! {
        () = drain => {
            info!("stopped");
            true
        }
        () = signal.recv() => {
            warn!("second signal: exiting now");
            false
        }
    }
}
