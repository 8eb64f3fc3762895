//! `model-catalog pull`: downloads models by their ids, verifies them, and then executes the command that uses them.
//!
//! Everything is planned before the first byte is downloaded: which files exist, where the others are, and whether they
//! fit on the disk. A model that cannot be downloaded is a warning and does not stop the others.

mod batches;
mod body;
pub(super) mod catalog;
mod complete;
mod connections;
pub(super) mod content;
pub(super) mod error;
mod fd_limit;
mod folder;
mod follower;
mod hash;
pub(super) mod http;
mod journal;
mod link;
mod partial;
mod plan;
mod progress;
mod prune;
mod queue;
mod record;
mod report;
mod response;
pub(super) mod retry;
mod round;
mod segments;
pub mod settings;
mod state_file;
pub(super) mod tokens;
mod transfer;

use std::collections::{HashMap, HashSet};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cap_std::fs::Dir;
use futures_util::StreamExt;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tracing::{error, info, warn};

use catalog::{Listing, Model};
use connections::Connections;
use error::Problem;
use fd_limit::FdLimit;
use folder::{Folder, Stamp};
use http::{Http, Source};
use plan::{FreeSpace, Plan};
use progress::{ModelProgress, Outcome, Progress, Screen};
use record::{Record, Unrecorded};
use settings::Settings;

use crate::cli::PullArgs;
use crate::cmd::CommandRuntime;
use crate::cmd::stdout::{self, StdoutError};
use crate::stderr::Stderr;

/// Exit status after SIGTERM, SIGINT or SIGHUP: the one that shells report for SIGTERM.
const EXIT_SIGNALED: u8 = 143;
/// Time for downloads to write their journals after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum threads for network and disk I/O; hashing has its own threads.
const MAX_THREADS: usize = 8;
/// Models planned at a time; most of them wait for a server.
const MAX_PLANS: usize = 32;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// State shared by all parts of a pull.
struct Context {
    settings: Settings,
    folder: Folder,
    /// Folder of the record and the journals.
    state_dir: Dir,
    /// Whether there is a record, or one can be created.
    has_record: bool,
    /// The record as of the start.
    record: Record,
    unrecorded: Unrecorded,
    http: Http,
    connections: Connections,
    progress: Progress,
    /// True once a signal was received.
    stop: watch::Receiver<bool>,
}

impl Context {
    /// The progress of the model with this id.
    fn progress_of(&self, id: &str) -> Option<Arc<ModelProgress>> {
        self.progress.files.iter().find(|file| file.id == id).cloned()
    }
}

/// How a pull ended.
enum PullResult {
    /// Every model is on disk.
    Complete,
    /// A model is missing, or the pull could not start.
    Incomplete,
    /// A signal stopped it.
    Stopped,
    /// The reader of a dry run's output closed it.
    OutputClosed,
}

/// Pulls, then replaces this process with the command. `bars` allows progress bars if standard error is a terminal.
#[must_use]
pub fn run(pull: &PullArgs, bars: bool, stderr: &Stderr) -> ExitCode {
    let screen = Screen::of_stderr(stderr, bars && !pull.dry_run);
    let end = if pull.ids().is_empty() {
        PullResult::Complete
    } else {
        // tokio panics if the threads of its runtime cannot be started. The panic hook has logged it.
        catch_unwind(AssertUnwindSafe(|| pull_models(pull, screen))).unwrap_or(PullResult::Incomplete)
    };
    let complete = match end {
        PullResult::Stopped => return ExitCode::from(EXIT_SIGNALED),
        PullResult::OutputClosed => return ExitCode::from(stdout::CLOSED),
        PullResult::Complete => true,
        PullResult::Incomplete => false,
    };
    match pull.command.first() {
        Some(command) if !complete && pull.strict && !pull.dry_run => {
            error!(command = %command.display(), "MACHINE_MODELS_STRICT is set: the command is not started");
            ExitCode::FAILURE
        }
        Some(_) if !pull.dry_run => exec_command(pull, stderr),
        _ if complete => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Replaces this process with the command, which inherits the environment and the working directory.
fn exec_command(pull: &PullArgs, stderr: &Stderr) -> ExitCode {
    stderr.flush();
    let error = Command::new(&pull.command[0]).args(&pull.command[1..]).exec();
    ignore_broken_pipes();
    error!(command = %pull.command[0].display(), %error, "the command cannot be started");
    // The exit statuses of shells.
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
}

/// Ignores SIGPIPE again. A failed `exec` has restored its default, by which the next log line might end this process.
#[allow(unsafe_code, reason = "no crate has a safe way to ignore a signal")]
fn ignore_broken_pipes() {
    // SAFETY: no handler is installed that could run.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

fn pull_models(pull: &PullArgs, screen: Screen) -> PullResult {
    let fd_limit = FdLimit::raise();
    let done = pull.check().map_err(Failure::from).and_then(|mut settings| {
        settings.fit(fd_limit.allowed);
        let runtime = runtime()?;
        runtime.block_on(async {
            // Installed first, so that no signal arrives before its handler.
            let mut signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
            let [terminate, interrupt, hangup] = &mut signals;
            let (terminate, interrupt, hangup) = (
                terminate.as_mut().map_err(|error| error.to_string())?,
                interrupt.as_mut().map_err(|error| error.to_string())?,
                hangup.as_mut().map_err(|error| error.to_string())?,
            );
            let (stop, stopped) = watch::channel(false);
            let mut end = std::pin::pin!(get_models(settings, screen, stopped));
            tokio::select! {
                end = &mut end => return end,
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            stop.send_replace(true);
            // Downloads write their journals; everything else is dropped.
            let _ = tokio::time::timeout(STOP_TIMEOUT, end).await;
            Ok(PullResult::Stopped)
        })
    });
    done.unwrap_or_else(|error| {
        if matches!(error.downcast_ref(), Some(StdoutError::Closed)) {
            return PullResult::OutputClosed;
        }
        error!("{}", error::chain(&*error));
        PullResult::Incomplete
    })
}

/// Dropping it does not wait for a thread that waits for a slow disk or a name server: that must not delay the command.
fn runtime() -> std::io::Result<CommandRuntime> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_THREADS);
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    Ok(CommandRuntime(Some(runtime)))
}

async fn get_models(settings: Settings, screen: Screen, stop: watch::Receiver<bool>) -> Result<PullResult, Failure> {
    let unusable = |error| format!("cannot open the models folder {}: {error}", settings.dir.display());
    let folder = Folder::open(&settings.dir, settings.links, true).map_err(unusable)?;
    let (state_dir, has_record) = match folder.state_dir(true) {
        Ok(state_dir) => (state_dir, true),
        // A read-only folder may have the right files.
        Err(error) => {
            warn!(%error, "the record of verified files cannot be created: files are hashed at every start");
            (folder.root().try_clone().map_err(unusable)?, false)
        }
    };
    let http = Http::new(PullArgs::tokens())?;
    let listing = batches::request_models(&http, &settings)
        .await
        .map_err(|error| format!("cannot get the models from the catalog: {}", error::chain(&error)))?;
    let record = if has_record { Record::load(&state_dir) } else { Record::default() };
    if has_record && !settings.dry_run {
        journal::remove_old(&state_dir, |path| folder.parent(path, false).ok().flatten());
    }
    let mut progress = Progress::new(screen);
    let models = add_models(&mut progress, listing, &folder, &record);
    let unrecorded = Unrecorded::default();
    let connections = Connections::new(settings.parallel, settings.connections);
    let context =
        Context { settings, folder, state_dir, has_record, record, unrecorded, http, connections, progress, stop };
    let context = Arc::new(context);
    let reporter = tokio::spawn(report::run(Arc::clone(&context)));
    let planned = plan_all(&context, &models).await;
    if context.settings.dry_run {
        reporter.abort();
        stdout::print(&report::dry_run(&context, &planned))?;
    } else {
        fetch_all(&context, planned).await;
        prune::mark_needed(&context);
        reporter.abort();
        // The final report below must be the last one.
        let _ = reporter.await;
        report::finish(&context).await;
    }
    let complete =
        if context.settings.dry_run { context.progress.count("missing") == 0 } else { context.progress.is_complete() };
    Ok(if complete { PullResult::Complete } else { PullResult::Incomplete })
}

/// A model and its progress.
type Item = (Arc<Model>, Arc<ModelProgress>);

/// Adds the models of the response to the progress. Of several models with the same path, the first is downloaded; the
/// others are missing unless they have the same content. The verified file of a model that the catalog does not have is
/// kept.
fn add_models(progress: &mut Progress, listing: Listing, folder: &Folder, record: &Record) -> Vec<Item> {
    let (mut items, mut first) = (Vec::new(), HashMap::new());
    for (id, problem) in listing.missing {
        match prune::kept_file(folder, record, &id) {
            Some((path, size)) => progress.add(&id, path, size).finish(Outcome::Kept { reason: problem.text() }),
            None => progress.add(&id, String::new(), 0).missing(&problem),
        }
    }
    let folders: HashSet<String> =
        listing.models.iter().flat_map(|model| model.path.folders()).map(str::to_owned).collect();
    for model in listing.models {
        let content = model.content();
        let path = model.path.text();
        match first.get(&path) {
            None if folders.contains(&path) => {
                let problem = Problem::SavePath(format!("{path} is the folder of another model"));
                progress.add(&model.id, path, 0).missing(&problem);
            }
            None => {
                first.insert(path.clone(), content);
                let progress = progress.add(&model.id, path, model.bytes.unwrap_or(0));
                items.push((Arc::new(model), progress));
            }
            Some(other) if *other == content => {}
            Some(_) => progress.add(&model.id, path.clone(), 0).missing(&Problem::SamePath(path)),
        }
    }
    items
}

/// A model to download or link.
struct Pending {
    item: Item,
    /// The file at its save path when it was planned.
    before: Option<Stamp>,
    /// Its location, if its server responded.
    source: Option<Source>,
    /// The time before which its server asked not to be requested again.
    not_before: Option<Instant>,
    /// Whether it is linked to a file with the same content, which exists or is downloaded first.
    link: bool,
    /// While another process downloads it: since when that made no progress, and the bytes that it had then.
    elsewhere: Option<(Instant, u64)>,
    /// How often its files were opened again.
    reopened: u32,
}

impl Pending {
    fn new(item: &Item, before: Option<Stamp>, source: Option<Source>, link: bool) -> Self {
        Self { item: item.clone(), before, source, not_before: None, link, elsewhere: None, reopened: 0 }
    }
}

/// Plans all models. Those that are on disk or cannot be downloaded get their outcome here; the others are returned.
async fn plan_all(context: &Arc<Context>, items: &[Item]) -> Vec<Pending> {
    let mut known = HashSet::new();
    // Servers are asked about many files at a time, but few files are hashed at a time.
    let hashing = &Semaphore::new(context.settings.parallel);
    let plans = items.iter().map(|item| {
        let first = item.0.hash.as_ref().is_none_or(|hash| known.insert(hash.text()));
        async move {
            let before = context.folder.existing(&item.0.path).map(|(_, stamp)| stamp);
            let mut planned = plan::plan(context, &item.0, &item.1, first, hashing).await;
            for _ in 1..context.settings.tries {
                if planned.as_ref().is_err_and(Problem::is_stale) {
                    tokio::time::sleep(retry::pause(0, None)).await;
                    planned = plan::plan(context, &item.0, &item.1, first, hashing).await;
                }
            }
            (item, before, planned)
        }
    });
    let mut plans = futures_util::stream::iter(plans).buffered(MAX_PLANS);
    let mut pending = Vec::new();
    while let Some((item, before, planned)) = plans.next().await {
        match planned {
            Ok(Plan::Present) => item.1.finish(Outcome::Present),
            Ok(Plan::Fetch(source)) => pending.push(Pending::new(item, before, Some(source), false)),
            Ok(Plan::FetchLater(retry_after)) => {
                let not_before = retry_after.map(|asked| Instant::now() + asked);
                pending.push(Pending { not_before, ..Pending::new(item, before, None, false) });
            }
            Ok(Plan::Link) => pending.push(Pending::new(item, before, None, true)),
            Err(problem) => item.1.missing(&problem),
        }
    }
    pending
}

/// Links models to existing files with the same content, and downloads the others, each content once.
async fn fetch_all(context: &Arc<Context>, mut pending: Vec<Pending>) {
    prune::run(context, &pending);
    let mut free_space = FreeSpace::default();
    // A host that does not respond must not delay the files of others.
    pending.sort_by_key(|pending| pending.source.is_none());
    loop {
        pending.retain(|pending| !linked(context, pending));
        if pending.is_empty() || *context.stop.borrow() {
            return;
        }
        let (fetch, others) = link::split_by_content(pending);
        let fits = |pending: &Pending| {
            let (model, progress) = &pending.item;
            let needed = FreeSpace::needed(context, model, pending.source.as_ref());
            match free_space.reserve(context, model, needed) {
                Err(problem) if !problem.is_stale() => {
                    progress.missing(&problem);
                    false
                }
                _ => true,
            }
        };
        queue::download(context, fetch.into_iter().filter(fits).collect()).await;
        pending = others;
    }
}

/// Links a model's file to one with the same content; false if that is not possible.
fn linked(context: &Context, pending: &Pending) -> bool {
    let (model, progress) = &pending.item;
    match link::link(context, model) {
        Ok(()) => progress.finish(Outcome::Linked),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
        // Not every file system supports hard links.
        Err(error) => {
            context.progress.screen.log(|| info!(model = &*model.id, %error, "cannot be linked, downloading it"));
            return false;
        }
    }
    true
}
