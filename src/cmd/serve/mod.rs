//! `model-catalog serve`: configure, start, run until a signal, shut down.
//!
//! Each worker, the admin server, the loader and the snapshot writer have a thread and a runtime of their own, which
//! [`Supervisor`](crate::base::supervisor::Supervisor) restarts when it fails. The main thread only waits for signals.

mod config;
mod follow;
mod listeners;
mod shutdown;

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

pub(crate) use self::config::ServerConfig;
use self::follow::LoaderContext;
pub(crate) use self::listeners::Listeners;
use self::shutdown::{ShutdownTimes, Signals, drain};
use super::{CommandResult, CommandRuntime, examples, runtime};
use crate::base::log_filter::{Log, LogFilter};
use crate::base::stderr::Stderr;
use crate::base::supervisor::Duty;
use crate::catalog::store::Store;
use crate::cli::{DatabaseArgs, ServerArgs, UpstreamArgs};
use crate::http::connection::Timeouts;
use crate::http::connection_limit::ConnectionLimit;
use crate::http::handlers::snapshot::SnapshotFeed;
use crate::http::memory_budget::MemoryBudget;
use crate::http::{Api, Routes, SCANS_NICE, server};
use crate::metrics::{Metrics, set_count};
use crate::snapshot_file::writer::{self, LatestState};

/// Runs the command until a signal stops it. `print_examples` prints commands to try once there is a catalog of a
/// database.
pub(crate) fn run(
    database: &DatabaseArgs,
    upstream: &UpstreamArgs,
    args: &ServerArgs,
    log: Log<'_>,
    print_examples: bool,
) -> CommandResult {
    if let Some(settings) = upstream.settings(&args.rules.rules())? {
        let config = ServerConfig::of_upstream(args, settings);
        Server::start(config, Listeners::bind(args)?, log.stderr)?.run(log.filter, std::future::pending());
        return Ok(());
    }
    let database = database.config()?;
    let listeners = Listeners::bind(args)?;
    let address = listeners.address()?;
    let server = Server::start(ServerConfig::of_database(args, database.clone(), address), listeners, log.stderr)?;
    let store = Arc::clone(server.store());
    server.run(log.filter, async {
        if print_examples {
            examples::announce(address, &store, &database).await;
        }
    });
    Ok(())
}

/// A running server.
pub(crate) struct Server {
    api: Arc<Api>,
    threads: Threads,
    /// The loader is the other sender of new states.
    latest: watch::Sender<LatestState>,
    runtime: CommandRuntime,
    signals: Signals,
    shutdown: ShutdownTimes,
}

/// The threads of a server.
#[derive(Default)]
pub(in crate::cmd::serve) struct Threads {
    workers: TaskTracker,
    loader: TaskTracker,
    snapshot_writer: TaskTracker,
    /// Cancelled when they have to end.
    stop: CancellationToken,
}

impl Server {
    /// Starts the threads. After that, no error ends the server.
    pub(crate) fn start(
        config: ServerConfig,
        listeners: Listeners,
        stderr: &Stderr,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        // With huge pages a connection occupies all of hyper's buffers: 19 KiB instead of 11. Without them, with a
        // million models, a lookup takes about 5 % more CPU time and the start from the snapshot file 1.6 times as
        // long. Where the call is forbidden, connections only need more memory.
        let _ = rustix::thread::disable_transparent_huge_pages(true);
        let (address, workers) = (listeners.address()?, listeners.api.len());
        let metrics = Arc::new(Metrics::new()?);
        stderr.count_dropped(&metrics.log_lines_dropped);
        let latest = watch::Sender::new(None);
        let api = Arc::new(api(&config, &listeners, metrics, latest.subscribe()));

        let runtime = runtime()?;
        // Installed before anything is announced, so that an early signal is handled.
        let signals = runtime.block_on(async { Signals::new() })?;
        let threads = Threads::default();
        threads.start_workers(&api, listeners, config.timeouts)?;
        start_scans(&api)?;
        if let Some(path) = config.snapshot_file.clone() {
            threads.start_snapshot_writer(&api, path, latest.subscribe())?;
        }
        threads.start_loader(&api, config.loader, config.snapshot_file, latest.clone())?;
        info!(%address, threads = workers, "listening");
        Ok(Self { api, threads, latest, runtime, signals, shutdown: config.shutdown })
    }

    /// The catalog that is served.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.api.store
    }

    /// Serves until a signal arrives, then shuts down. Runs `meanwhile` until then. Other signals change `filter`.
    pub(crate) fn run(mut self, filter: &LogFilter, meanwhile: impl Future<Output = ()>) {
        self.runtime.block_on(async {
            let until_signal = async {
                tokio::join!(log_first_snapshot(&self.api.store), meanwhile);
                std::future::pending().await
            };
            tokio::select! {
                () = until_signal => {}
                () = self.signals.shutdown(filter) => {}
            }
            self.api.draining.store(true, Relaxed);
            // Requests that wait for a change see the drain now. The loader must be left as the only sender.
            self.latest.send_modify(|_| {});
            drop(self.latest);
            drain(&self.threads, self.shutdown).await;
        });
    }
}

/// The state that all worker threads share.
fn api(
    config: &ServerConfig,
    listeners: &Listeners,
    metrics: Arc<Metrics>,
    latest: watch::Receiver<LatestState>,
) -> Api {
    set_count(&metrics.connections_limit, listeners.limits.api);
    Api {
        // The other half of the connections is for requests that do not wait.
        snapshots: SnapshotFeed::new(latest, listeners.limits.api / 2),
        clients: Arc::clone(&config.clients),
        cors: config.cors.clone(),
        log_slow: config.log_slow,
        stalled_after: config.stalled_after,
        ..Api::new(Arc::new(Store::default()), metrics, config.limits, MemoryBudget::new(config.max_buffer_bytes))
    }
}

impl Threads {
    /// Starts a thread per socket.
    fn start_workers(&self, api: &Arc<Api>, listeners: Listeners, timeouts: Timeouts) -> io::Result<()> {
        let Listeners { api: sockets, admin, limits } = listeners;
        let routes = if admin.is_some() { Routes::Api } else { Routes::All };
        let limit = ConnectionLimit::new(limits.api, if admin.is_some() { 0 } else { limits.ops });
        for (number, socket) in sockets.into_iter().enumerate() {
            self.start_worker(format!("http-{number}"), api, socket, routes, limit.clone(), timeouts)?;
        }
        if let Some(socket) = admin {
            info!(address = %socket.local_addr()?, "serving the admin routes");
            let limit = ConnectionLimit::new(limits.ops, 0);
            self.start_worker("admin".into(), api, socket, Routes::Ops, limit, timeouts)?;
        }
        Ok(())
    }

    fn start_worker(
        &self,
        name: String,
        api: &Arc<Api>,
        socket: TcpListener,
        routes: Routes,
        limit: ConnectionLimit,
        timeouts: Timeouts,
    ) -> io::Result<()> {
        let (served, stop, mut socket) = (Arc::clone(api), self.stop.clone(), Some(socket));
        api.threads.spawn(name, Duty::Serve, &self.workers, move || {
            let (api, limit, stop) = (Arc::clone(&served), limit.clone(), stop.clone());
            Ok(runtime()?.block_on(server::serve(&mut socket, api, routes, limit, timeouts, stop))?)
        })
    }

    fn start_snapshot_writer(&self, api: &Api, path: PathBuf, latest: watch::Receiver<LatestState>) -> io::Result<()> {
        let metrics = Arc::clone(&api.metrics);
        api.threads.spawn("snapshot-writer".into(), Duty::Support, &self.snapshot_writer, move || {
            runtime()?.block_on(writer::run(&path, latest.clone(), &metrics));
            Ok(())
        })
    }

    /// Starts the loader on a thread of its own, so that building a snapshot and freeing an old one never delay a
    /// request. After a panic the current snapshot is still served, and a new loader reads everything again.
    fn start_loader(
        &self,
        api: &Api,
        settings: config::SourceSettings,
        snapshot_file: Option<PathBuf>,
        latest: watch::Sender<LatestState>,
    ) -> io::Result<()> {
        let context = LoaderContext {
            snapshot_file,
            store: Arc::clone(&api.store),
            sync: Arc::clone(&api.sync),
            metrics: Arc::clone(&api.metrics),
            latest,
            stop: self.stop.clone(),
        };
        api.threads.spawn("loader".into(), Duty::Support, &self.loader, move || context.follow(&settings))
    }
}

fn start_scans(api: &Arc<Api>) -> io::Result<()> {
    let scans = Arc::clone(api);
    // Nothing waits for its end: jobs of requests that are gone may run until the process exits.
    api.threads.spawn("scans".into(), Duty::Support, &TaskTracker::new(), move || {
        scans.scans.run_jobs(SCANS_NICE);
        Ok(())
    })
}

async fn log_first_snapshot(store: &Store) {
    let snapshot = examples::first_snapshot(store).await;
    info!(models = snapshot.len(), revision = format!("{:016x}", snapshot.revision()), "first catalog loaded");
}
