//! The download engine: finds out where files are, downloads and verifies them, and gives them their names.
//!
//! Everything is planned before the first byte is downloaded: which files exist, where the others are, and whether they
//! fit on the disk. A file that cannot be downloaded does not stop the others.
//!
//! It knows no arguments, no terminal and no log: it reports [`event::Event`]s, and keeps byte counts in
//! [`progress::Progress`].

mod body;
pub(crate) mod cache;
mod complete;
mod connections;
pub(crate) mod content;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod folder;
mod follower;
pub(crate) mod hash;
pub(crate) mod http;
mod journal;
mod link;
pub(crate) mod model;
mod partial;
mod plan;
pub(crate) mod progress;
mod prune;
mod queue;
pub(crate) mod record;
mod response;
pub(crate) mod retry;
mod round;
mod segments;
mod settings;
pub(crate) mod state_file;
mod step;
pub(crate) mod tokens;
mod transfer;
pub(crate) mod warm;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cap_std::fs::Dir;
use futures_util::StreamExt;
use tokio::sync::{Semaphore, watch};

use cache::Cache;
use connections::Connections;
use error::Problem;
use event::{Event, Events};
use folder::{Folder, Stamp};
use http::{Http, Source};
use model::{Listing, Model};
use plan::{FreeSpace, Plan};
use progress::{ModelProgress, Outcome, Progress};
use record::{Record, Unrecorded};
pub(crate) use settings::Settings;

/// Models planned at a time; most of them wait for a server.
const MAX_PLANS: usize = 32;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// State shared by all parts of a pull.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    folder: Folder,
    /// Folder of the record and the journals.
    state_dir: Dir,
    /// Whether there is a record, or one can be created.
    has_record: bool,
    /// The record as of the start.
    record: Record,
    unrecorded: Unrecorded,
    http: Http,
    /// The caches of the site, in the order in which they are tried.
    pub(crate) caches: Vec<Arc<Cache>>,
    connections: Connections,
    pub(crate) progress: Progress,
    events: Events,
    /// True once a signal was received.
    stop: watch::Receiver<bool>,
}

impl Context {
    /// Prepares the download of the models of a listing, and removes what earlier pulls left long ago.
    pub(crate) fn new(
        settings: Settings,
        storage: Storage,
        http: Http,
        listing: Listing,
        events: Events,
        stop: watch::Receiver<bool>,
    ) -> (Arc<Self>, Vec<Item>) {
        let Storage { folder, state_dir, has_record } = storage;
        let record = if has_record { Record::load(&state_dir, &events) } else { Record::default() };
        if has_record && !settings.dry_run {
            journal::remove_old(&state_dir, |path| folder.parent(path, false).ok().flatten());
        }
        let mut progress = Progress::new(events.clone());
        let models = add_models(&mut progress, listing, &folder, &record);
        let connections = Connections::new(settings.parallel, settings.connections);
        let unrecorded = Unrecorded::default();
        let caches = settings.caches.iter().map(|url| Arc::new(Cache::new(url.clone(), events.clone()))).collect();
        let context = Self {
            settings,
            folder,
            state_dir,
            has_record,
            record,
            unrecorded,
            http,
            caches,
            connections,
            progress,
            events,
            stop,
        };
        (Arc::new(context), models)
    }

    /// The progress of the model with this id.
    fn progress_of(&self, id: &str) -> Option<Arc<ModelProgress>> {
        self.progress.files.iter().find(|file| file.id == id).cloned()
    }
}

/// The models folder and what is kept in it.
pub(crate) struct Storage {
    folder: Folder,
    state_dir: Dir,
    has_record: bool,
}

impl Storage {
    /// Opens the models folder, and creates it if it does not exist.
    pub(crate) fn open(path: &Path, links: bool, events: &Events) -> std::io::Result<Self> {
        let folder = Folder::open(path, links, true)?;
        let (state_dir, has_record) = match folder.state_dir(true) {
            Ok(state_dir) => (state_dir, true),
            // A read-only folder may have the right files.
            Err(error) => {
                events.send(Event::RecordNotCreated(&error));
                (folder.root().try_clone()?, false)
            }
        };
        Ok(Self { folder, state_dir, has_record })
    }
}

/// A model and its progress.
pub(crate) type Item = (Arc<Model>, Arc<ModelProgress>);

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
pub(crate) struct Pending {
    pub(crate) item: Item,
    /// The file at its save path when it was planned.
    before: Option<Stamp>,
    /// Its location, if its server responded.
    pub(crate) source: Option<Source>,
    /// The time before which its server asked not to be requested again.
    not_before: Option<Instant>,
    /// Whether it is linked to a file with the same content, which exists or is downloaded first.
    pub(crate) link: bool,
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
pub(crate) async fn plan_all(context: &Arc<Context>, items: &[Item]) -> Vec<Pending> {
    let mut known = HashSet::new();
    // Servers are asked about many files at a time, but few files are hashed at a time.
    let hashing = &Semaphore::new(context.settings.parallel);
    let plans = items.iter().map(|item| {
        let first = item.0.hash.as_ref().is_none_or(|hash| known.insert(hash.text()));
        async move {
            let before = context.folder.existing(&item.0.path).map(|(_, stamp)| stamp);
            let mut tries = 1;
            loop {
                let planned = plan::plan(context, &item.0, &item.1, first, hashing).await;
                if tries >= context.settings.tries || !planned.as_ref().is_err_and(Problem::is_stale) {
                    return (item, before, planned);
                }
                tries += 1;
                // Nothing tells when a network file system has found its file again.
                tokio::time::sleep(retry::pause(0, None)).await;
            }
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

/// Downloads what is pending, and records that everything on disk was needed.
pub(crate) async fn fetch_all(context: &Arc<Context>, pending: Vec<Pending>) {
    get(context, pending).await;
    prune::mark_needed(context);
}

/// Links models to existing files with the same content, and downloads the others, each content once.
async fn get(context: &Arc<Context>, mut pending: Vec<Pending>) {
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
            context.events.send(Event::NotLinked { model: &model.id, error: &error });
            return false;
        }
    }
    true
}
