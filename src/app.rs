//! The only wiring: what runs on which thread, and in what order it ends.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::catalog::model::Rules;
use crate::catalog::store::Store;
use crate::check;
use crate::cli::{self, Cli, Command, LogFormat};
use crate::descriptors;
use crate::export;
use crate::health;
use crate::http::clients::{self, Clients};
use crate::http::connections::Timeouts;
use crate::http::memory::Memory;
use crate::http::rate::Rate;
use crate::http::server::{self, Phase};
use crate::http::{Api, Limits, Routes};
use crate::import::{self, Import};
use crate::loader::{self, Loader};
use crate::metrics::Metrics;
use crate::postgres::address::{Address, AddressError, Surroundings};
use crate::postgres::migrate::{migrate, migrate_bare};
use crate::postgres::private::{Options, Private};
use crate::postgres::session::{self, Database};
use crate::replica;
use crate::saver::{self, Newest};

const SAMPLE: &str = include_str!("../sql/sample_models.sql");
/// Pause before a loader that panicked is started again.
const LOADER_PAUSE: Duration = Duration::from_secs(1);

/// Time between two looks for the first catalog.
const ANNOUNCE_POLL: Duration = Duration::from_millis(10);

type Failure = Box<dyn Error + Send + Sync>;

/// Runs one command; the exit status says whether it did what it was asked.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    set_up_logging(&cli.log);
    let done = match cli.command {
        Command::Serve { database, serve } => {
            connection(&database).and_then(|database| run_server(database, &serve, |_| {}))
        }
        Command::Demo { serve } => demo(&serve),
        Command::Migrate { database, bare } => run_migrate(&database, bare),
        Command::Import { file, dry_run, strict, database, schemes } => {
            run_import(&Import { file, dry_run, strict, rules: rules(&schemes) }, &database)
        }
        Command::Export { file, database, schemes } => run_export(&file, &rules(&schemes), &database),
        Command::Check { database, check } => return run_check(&database, &check),
        Command::Health { listen, live } => run_health(&listen, live),
        Command::Pull(pull) => return crate::cmd::pull::run(&pull, matches!(cli.log.format, LogFormat::Text)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // A wrong setting like any other: said as clap says them, whatever the log's filter.
        Err(error) if error.is::<AddressError>() => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
        Err(error) if error.is::<LeftOut>() => {
            warn!("{error}");
            ExitCode::from(3)
        }
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn set_up_logging(log: &cli::Log) {
    let builder =
        tracing_subscriber::fmt().with_env_filter(&log.filter).with_writer(std::io::stderr).with_target(false);
    match log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

fn connection(database: &cli::Database) -> Result<Database, Failure> {
    let timeout = database.database_timeout;
    let address = Address::parse(database.database_url.reveal(), &Surroundings::of_process(), timeout)?;
    Ok(Database { address, channel: database.channel.clone(), timeout })
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn run_migrate(database: &cli::Database, bare: bool) -> Result<(), Failure> {
    let database = connection(database)?;
    runtime()?.block_on(async {
        let mut client = session::connect(&database).await?;
        match bare {
            true => migrate_bare(&mut client, &database.channel).await,
            false => migrate(&mut client, &database.channel).await,
        }
    })?;
    info!("the database has all that model-catalog makes in it");
    Ok(())
}

/// A command did what it was asked, but not with everything.
#[derive(Debug, thiserror::Error)]
#[error("{0} of the {1} rejected, see above")]
struct LeftOut(usize, &'static str);

fn all_but(left_out: usize, what: &'static str) -> Result<(), Failure> {
    if left_out == 0 { Ok(()) } else { Err(LeftOut(left_out, what).into()) }
}

fn rules(schemes: &cli::Schemes) -> Rules {
    Rules { url_schemes: schemes.url_schemes.clone() }
}

fn run_import(import: &Import, database: &cli::Database) -> Result<(), Failure> {
    let database = connection(database)?;
    all_but(runtime()?.block_on(import::run(import, &database))?, "entries")
}

fn run_export(path: &Path, rules: &Rules, database: &cli::Database) -> Result<(), Failure> {
    let database = connection(database)?;
    all_but(runtime()?.block_on(export::run(path, rules, &database))?, "rows")
}

/// Says what a server would find; its exit status tells a check that was not made from one that found something.
fn run_check(database: &cli::Database, options: &cli::Check) -> ExitCode {
    let rules = Rules { url_schemes: options.url_schemes.clone() };
    let checked = connection(database)
        .and_then(|database| Ok(runtime()?.block_on(check::run(&database, &rules, options.limit.get()))));
    match checked {
        Ok(report) => {
            // Who has read enough of it has closed the pipe.
            let _ = std::io::stdout().write_all(report.print(options.output).as_bytes());
            ExitCode::from(report.status(options.strict))
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run_health(listen: &cli::Listen, live: bool) -> Result<(), Failure> {
    let path = if live { "/livez" } else { "/readyz" };
    println!("{}", health::ask(listen.admin_addr.unwrap_or(listen.addr), path)?);
    Ok(())
}

/// Serves a private Postgres with the sample catalog.
fn demo(serve: &cli::Serve) -> Result<(), Failure> {
    info!("making a private Postgres");
    let server = Private::start(Options { loopback: true, ..Options::default() })?;
    let timeout = Duration::from_secs(10);
    let address = Address::parse(&server.url("postgres"), &Surroundings::default(), timeout)?;
    let database = Database { address, channel: "model_catalog".into(), timeout };
    runtime()?.block_on(async {
        let mut client = session::connect(&database).await?;
        migrate(&mut client, &database.channel).await?;
        client.batch_execute(SAMPLE).await?;
        Ok::<_, Failure>(())
    })?;
    let postgres_port = server.port();
    run_server(database, serve, |address| {
        println!(
            "\nmodel-catalog serves http://{address}, from a private Postgres at 127.0.0.1:{postgres_port}. \
             Ctrl-C ends both. Try:\n\n  \
             curl http://{address}/api/models/flux-dev\n  \
             curl -d '{{\"model_ids\":[\"flux-dev\",\"sdxl-base\",\"no-such-model\"]}}' http://{address}/api/models/batch\n  \
             psql -h 127.0.0.1 -p {postgres_port} -U postgres \
             -c \"UPDATE models SET description = 'changed just now' WHERE id = 'flux-dev'\"\n\n\
             and the first line again: it shows the change.\n"
        );
    })
}

fn limits_of_clients(serve: &cli::Serve) -> clients::Settings {
    clients::Settings {
        max_connections: serve.max_connections_per_addr,
        rate: serve.rate_limit.map(|limit| Rate::new(limit, serve.rate_burst.unwrap_or(limit))),
        trusted: serve.trusted_proxies.clone(),
        header: Some(serve.client_addr_header.clone()),
    }
}

/// Serves until a signal says to stop. `announce` is given the address once there is a catalog.
fn run_server(
    database: Database,
    serve: &cli::Serve,
    announce: impl FnOnce(std::net::SocketAddr),
) -> Result<(), Failure> {
    let threads =
        serve.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, |threads| threads.get());
    let shares = descriptors::divide(serve.max_connections.get(), threads)?;
    let sockets = server::bind(serve.listen.addr, threads)?;
    let admin = serve.listen.admin_addr.map(|address| server::bind(address, 1)).transpose()?;
    let address = sockets[0].local_addr()?;

    let store = Arc::new(Store::default());
    let metrics = Arc::new(Metrics::new()?);
    metrics.connections_limit.set(serve.max_connections.get().try_into().unwrap_or(i64::MAX));
    let limits = Limits { batch_ids: serve.max_batch_ids.get(), body_bytes: serve.max_body_bytes.get() };
    let api = Arc::new(Api {
        clients: Arc::new(Clients::new(limits_of_clients(serve))),
        cors: serve.cors_allow_origin.clone(),
        ..Api::new(Arc::clone(&store), Arc::clone(&metrics), limits, Memory::new(serve.max_buffer_bytes.get()))
    });

    let runtime = runtime()?;
    // Before anything is announced: a signal that comes early must find its handler.
    let mut stop = runtime.block_on(async { Stop::new() })?;
    let (phase, phases) = watch::channel(Phase::Serve);
    let routes = if admin.is_some() { Routes::Api } else { Routes::All };
    let share = shares.connections.div_ceil(threads);
    let timeouts = Timeouts { request: serve.request_timeout, idle: serve.idle_timeout };
    let mut serving = Vec::new();
    for (number, socket) in sockets.into_iter().enumerate() {
        let task = server::serve(socket, Arc::clone(&api), routes, share, timeouts, phases.clone());
        serving.push(spawn(format!("http-{number}"), task)?);
    }
    for socket in admin.into_iter().flatten() {
        info!(address = %socket.local_addr()?, "operations are served apart");
        let task = server::serve(socket, Arc::clone(&api), Routes::Ops, shares.admin, timeouts, phases.clone());
        serving.push(spawn("admin".into(), task)?);
    }
    let (newest, to_save) = watch::channel(None);
    let saver = serve.snapshot_file.clone().map(|path| {
        let metrics = Arc::clone(&metrics);
        spawn("saver".into(), async move {
            saver::run(path, to_save, metrics).await;
            Ok(())
        })
    });
    let own_name = || replica::default_name(database.address.config.get_application_name(), address);
    let replica = serve.replica_name.clone().unwrap_or_else(own_name);
    let settings = loader::Settings {
        replica,
        database,
        poll_interval: serve.poll_interval,
        audit_interval: serve.audit_interval,
        rules: rules(&serve.schemes),
    };
    let loader = spawn_loader(settings, serve.snapshot_file.clone(), store, metrics, newest, phases)?;

    info!(%address, threads, "serving");
    let orderly = runtime.block_on(async {
        let announced = async {
            while api.store.load().is_none() {
                tokio::time::sleep(ANNOUNCE_POLL).await;
            }
            announce(address);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = announced => {}
            () = stop.asked() => {}
        }
        drain(serve, &api, &phase, &mut stop).await
    });
    if orderly {
        // The loader ends first; its end of the channel is what the saver waits for.
        let threads = std::iter::once(loader).chain(saver.transpose()?);
        threads.for_each(|thread| drop(thread.join()));
    }
    Ok(())
}

/// Runs one task on a thread and a runtime of its own.
fn spawn(
    name: String,
    task: impl Future<Output = std::io::Result<()>> + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        if let Err(error) = runtime().and_then(|runtime| runtime.block_on(task)) {
            error!(thread = name, %error, "ended");
        }
    })
}

/// The loader has a thread of its own: making a snapshot and freeing an old one never hold up a request. It ends
/// when the drain begins: what is in flight is answered from what there is.
fn spawn_loader(
    settings: loader::Settings,
    snapshot_file: Option<PathBuf>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    newest: watch::Sender<Newest>,
    mut phase: watch::Receiver<Phase>,
) -> std::io::Result<JoinHandle<()>> {
    let mut run = move || {
        let mut loader = Loader::new(settings.clone(), Arc::clone(&store), Arc::clone(&metrics), newest.clone());
        if let Some(path) = snapshot_file.as_ref().filter(|_| store.load().is_none())
            && let Some(saved) = saver::restore(path, &metrics)
        {
            loader.restore(saved);
        }
        runtime()?.block_on(async {
            tokio::select! {
                never = loader.run() => match never {},
                _ = phase.wait_for(|phase| *phase == Phase::Drain) => Ok::<_, std::io::Error>(()),
            }
        })
    };
    std::thread::Builder::new().name("loader".into()).spawn(move || {
        // After a panic the catalog goes on being served, and a fresh loader reads everything again.
        loop {
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mut run)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error!(%error, "the loader has no runtime, trying again"),
                Err(_) => error!("the loader panicked, starting another"),
            }
            std::thread::sleep(LOADER_PAUSE);
        }
    })
}

/// SIGTERM and Ctrl-C.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Not ready at once, as usual for the grace period, then no new connections and the end of those there are. A
/// second signal ends it at once; false then.
async fn drain(serve: &cli::Serve, api: &Api, phase: &watch::Sender<Phase>, stop: &mut Stop) -> bool {
    info!(grace = ?serve.drain_grace, "stopping: not ready any more");
    api.draining.store(true, Relaxed);
    let orderly = async {
        tokio::time::sleep(serve.drain_grace).await;
        phase.send_replace(Phase::Drain);
        // Every serving thread drops its receiver when its last connection has ended.
        if tokio::time::timeout(serve.drain_timeout, phase.closed()).await.is_err() {
            warn!(after = ?serve.drain_timeout, "connections are still open, ending all the same");
        }
    };
    tokio::select! {
        () = orderly => {
            info!("stopped");
            true
        }
        () = stop.asked() => {
            warn!("a second signal: ending at once");
            false
        }
    }
}
