//! `model-catalog pull`: from ids to verified files, and then to the command that uses them.
//!
//! Everything is planned before the first byte is downloaded: what is there, where the rest is to be had, whether it
//! fits. What cannot be had is a warning and does not stop the rest.

mod catalog;
mod error;
mod folder;
mod follower;
mod hash;
mod http;
mod journal;
mod link;
mod own;
mod plan;
mod progress;
mod prune;
mod record;
mod report;
mod round;
mod segments;
pub mod settings;
mod tokens;
mod transfer;

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cap_std::fs::Dir;
use futures_util::StreamExt;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use catalog::{Listing, Model};
use error::Problem;
use folder::{Folder, Stamp};
use hash::Hash;
use http::{Http, Source};
use plan::{Planned, Room};
use progress::{File, Outcome, Progress, Screen};
use record::Record;
use settings::Settings;

use crate::cli::PullArgs;

/// Exit status after SIGTERM, SIGINT or SIGHUP, as a shell gives it for SIGTERM.
const STOPPED: u8 = 143;
/// Pause before a file is tried again that another process downloads.
const BUSY_PAUSE: Duration = Duration::from_millis(250);
/// Time that downloads have for their journals after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Threads that do the network's and the disk's work; the hashes have threads of their own.
const MAX_THREADS: usize = 8;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What all parts of a pull share.
struct Context {
    settings: Settings,
    folder: Folder,
    /// Folder of the record and the journals.
    own: Dir,
    /// The record as it was at the beginning.
    record: Record,
    http: Http,
    progress: Progress,
    /// True once a signal said to stop.
    stop: watch::Receiver<bool>,
}

impl Context {
    /// What is shown of a model.
    fn progress_of(&self, id: &str) -> Option<Arc<File>> {
        self.progress.files.iter().find(|file| file.id == id).cloned()
    }
}

/// How a pull ended.
enum End {
    /// Every model is there.
    Complete,
    /// A model is missing, or nothing could be asked.
    Incomplete,
    /// A signal stopped it.
    Stopped,
}

/// Pulls, then becomes the command. `bars` says whether a terminal may be drawn on.
#[must_use]
pub fn run(pull: &PullArgs, bars: bool) -> ExitCode {
    let end = if pull.ids().is_empty() { End::Complete } else { pull_models(pull, bars) };
    let complete = match end {
        End::Stopped => return ExitCode::from(STOPPED),
        End::Complete => true,
        End::Incomplete => false,
    };
    match pull.command.first() {
        Some(command) if !complete && pull.strict && !pull.dry_run => {
            error!(command = %command.display(), "MACHINE_MODELS_STRICT is set: the command is not started");
            ExitCode::FAILURE
        }
        Some(_) if !pull.dry_run => become_command(pull),
        _ if complete => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The process is the command from here on, with the environment and the folder it was started with.
fn become_command(pull: &PullArgs) -> ExitCode {
    let error = Command::new(&pull.command[0]).args(&pull.command[1..]).exec();
    error!(command = %pull.command[0].display(), %error, "the command cannot be started");
    // As shells have it.
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
}

fn pull_models(pull: &PullArgs, bars: bool) -> End {
    let done = pull.check().map_err(Failure::from).and_then(|settings| {
        let runtime = runtime()?;
        let end = runtime.block_on(async {
            // Before anything begins: a signal that comes early must find its handler.
            let mut signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
            let [terminate, interrupt, hangup] = &mut signals;
            let (terminate, interrupt, hangup) = (
                terminate.as_mut().map_err(|error| error.to_string())?,
                interrupt.as_mut().map_err(|error| error.to_string())?,
                hangup.as_mut().map_err(|error| error.to_string())?,
            );
            let (stop, stopped) = watch::channel(false);
            let mut end = std::pin::pin!(get_models(settings, bars, stopped));
            tokio::select! {
                end = &mut end => return end,
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            stop.send_replace(true);
            // Downloads write their journals; whatever else is going on is dropped.
            let _ = tokio::time::timeout(STOP_TIMEOUT, end).await;
            Ok(End::Stopped)
        });
        // A thread that waits for a slow disk must not hold up the command.
        runtime.shutdown_background();
        end
    });
    done.unwrap_or_else(|error| {
        error!("{}", error::chain(&*error));
        End::Incomplete
    })
}

fn runtime() -> std::io::Result<Runtime> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_THREADS);
    Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

async fn get_models(settings: Settings, bars: bool, stop: watch::Receiver<bool>) -> Result<End, Failure> {
    let folder = Folder::open(&settings.dir, settings.links, true)
        .and_then(|folder| folder.own(true).map(|own| (folder, own)))
        .map_err(|error| format!("the models folder {} cannot be used: {error}", settings.dir.display()));
    let (folder, own) = folder?;
    let http = Http::new(PullArgs::tokens())?;
    let listing = catalog::ask(&http, &settings)
        .await
        .map_err(|error| format!("the catalog cannot be asked: {}", error::chain(&error)))?;
    let record = Record::load(&own);
    if !settings.dry_run {
        journal::remove_old(&own, |path| folder.parent(path, false).ok().flatten());
    }
    let mut progress = Progress::new(Screen::of_stderr(bars && !settings.dry_run));
    let models = add_models(&mut progress, listing);
    let context = Arc::new(Context { settings, folder, own, record, http, progress, stop });
    let reporter = tokio::spawn(report::run(Arc::clone(&context)));
    let planned = plan_all(&context, &models).await;
    if context.settings.dry_run {
        reporter.abort();
        print!("{}", report::dry_run(&context, &planned));
    } else {
        fetch_all(&context, planned).await;
        touch(&context, &models);
        reporter.abort();
        // Its last words are said below, so it must not say any after them.
        let _ = reporter.await;
        report::finish(&context);
    }
    let complete =
        if context.settings.dry_run { context.progress.count("missing") == 0 } else { context.progress.is_complete() };
    Ok(if complete { End::Complete } else { End::Incomplete })
}

/// A model and what is shown of it.
type Item = (Arc<Model>, Arc<File>);

/// Adds what the catalog said to what is shown. Of several models with one path the first has it; the others are
/// there with it if they are the same file.
fn add_models(progress: &mut Progress, listing: Listing) -> Vec<Item> {
    let (mut items, mut first) = (Vec::new(), HashMap::new());
    for (id, problem) in listing.missing {
        progress.add(&id, String::new(), 0).missing(&problem);
    }
    for model in listing.models {
        let content = (model.hash.as_ref().map(Hash::text), model.url.clone());
        let path = model.path.text();
        match first.get(&path) {
            None => {
                first.insert(path.clone(), content);
                let shown = progress.add(&model.id, path, model.bytes.unwrap_or(0));
                items.push((Arc::new(model), shown));
            }
            Some(other) if *other == content => {}
            Some(_) => progress.add(&model.id, path.clone(), 0).missing(&Problem::SamePath(path)),
        }
    }
    items
}

/// A model that is to be downloaded.
struct Wanted {
    item: Item,
    /// The file at its save path when it was planned.
    before: Option<Stamp>,
    /// Where it is to be had, if its server was asked and responded.
    source: Option<Source>,
    /// Whether its content is there, or comes with a model before it.
    link: bool,
}

/// Plans all models; what is there or cannot be had is done with.
async fn plan_all(context: &Arc<Context>, items: &[Item]) -> Vec<Wanted> {
    let mut known = HashSet::new();
    let plans = items.iter().map(|item| {
        let first = item.0.hash.as_ref().is_none_or(|hash| known.insert(hash.text()));
        async move {
            let before = context.folder.existing(&item.0.path).map(|(_, stamp)| stamp);
            (item, before, plan::plan(context, &item.0, &item.1, first).await)
        }
    });
    let mut plans = futures_util::stream::iter(plans).buffered(context.settings.parallel);
    let mut wanted = Vec::new();
    while let Some((item, before, planned)) = plans.next().await {
        match planned {
            Ok(Planned::Present) => item.1.finish(Outcome::Present),
            Ok(Planned::Fetch(source)) => wanted.push(Wanted { item: item.clone(), before, source, link: false }),
            Ok(Planned::Link) => wanted.push(Wanted { item: item.clone(), before, source: None, link: true }),
            Err(problem) => item.1.missing(&problem),
        }
    }
    wanted
}

/// Links what is wanted to files with the same content, and downloads the rest, of each content one file first.
async fn fetch_all(context: &Arc<Context>, mut wanted: Vec<Wanted>) {
    prune::run(context, &wanted);
    let mut room = Room::default();
    loop {
        wanted.retain(|wanted| !linked(context, wanted));
        if wanted.is_empty() || *context.stop.borrow() {
            return;
        }
        let (fetch, others) = link::first_of_each(wanted);
        let fits = |wanted: &Wanted| {
            let (model, shown) = &wanted.item;
            let needed = Room::needed(context, model, wanted.source.as_ref());
            room.take(context, model, needed).map_err(|problem| shown.missing(&problem)).is_ok()
        };
        download(context, fetch.into_iter().filter(fits).collect()).await;
        wanted = others;
    }
}

/// Whether a model's file is now a link to one with the same content.
fn linked(context: &Context, wanted: &Wanted) -> bool {
    let (model, shown) = &wanted.item;
    match link::link(context, model) {
        Ok(()) => shown.finish(Outcome::Linked),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
        // Not every file system has links.
        Err(error) => {
            context.progress.screen.log(|| info!(model = &*model.id, %error, "not linked, downloading it"));
            return false;
        }
    }
    true
}

/// Downloads files, some at a time.
async fn download(context: &Arc<Context>, wanted: Vec<Wanted>) {
    let queue = Arc::new(Mutex::new(VecDeque::from(wanted)));
    let mut tasks = JoinSet::new();
    for _ in 0..context.settings.parallel {
        tasks.spawn(work(Arc::clone(context), Arc::clone(&queue)));
    }
    while tasks.join_next().await.is_some() {}
}

/// Downloads from the queue until it is empty. A file that another process downloads goes back to its end, so that
/// processes that share a folder divide the work.
async fn work(context: Arc<Context>, queue: Arc<Mutex<VecDeque<Wanted>>>) {
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if *context.stop.borrow() {
            return;
        }
        let Some(wanted) = lock().pop_front() else { return };
        let shown = &wanted.item.1;
        match transfer::run(&context, &wanted).await {
            Ok(transfer::Outcome::Fetched) => shown.finish(Outcome::Fetched),
            Ok(transfer::Outcome::Present) => shown.finish(Outcome::Present),
            Ok(transfer::Outcome::Busy) => {
                lock().push_back(wanted);
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(problem) => shown.missing(&problem),
        }
    }
}

/// Records that the files that are there were needed now, for `--prune`.
fn touch(context: &Context, items: &[Item]) {
    let there = |item: &&Item| !matches!(item.1.state().outcome, Some(Outcome::Missing { .. }));
    let paths: Vec<_> = items.iter().filter(there).map(|(model, _)| model.path.text()).collect();
    let updated = Record::update(&context.own, |files| {
        for path in &paths {
            if let Some(file) = files.get_mut(path) {
                file.needed_at = record::now();
            }
        }
    });
    if let Err(error) = updated {
        warn!(%error, "the record of verified files cannot be written");
    }
}
