//! Removes files that an earlier pull downloaded and that are no longer needed, when disk space is short. A requested
//! id protects its file, whatever the catalog answers: a row may be gone or rejected by mistake.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::event::Event;
use super::folder::{Folder, SavePath, space};
use super::plan::FreeSpace;
use super::progress::{ModelProgress, Outcome};
use super::record::{Record, Verified, now};
use super::{Context, Pending};

/// The path and size of the verified file of a model that the catalog does not have.
pub(crate) fn kept_file(folder: &Folder, record: &Record, id: &str) -> Option<(String, u64)> {
    let mut files = record.iter().filter(|(_, file)| file.model == id);
    files.find_map(|(path, file)| {
        let (_, stamp) = folder.existing(&SavePath::parse(path).ok()?)?;
        (stamp == file.stamp).then(|| (path.clone(), stamp.size))
    })
}

/// The time since which files may belong to a requested model whose dependencies are not known, because the catalog
/// does not have it. Files that a pull needs together have equal times.
fn protected_since(context: &Context, record: &Record) -> u64 {
    let unknown = |id: &str| {
        let of_id = |file: &&Arc<ModelProgress>| file.id == id;
        let known =
            context.progress.files.iter().find(of_id).is_some_and(|file| {
                !file.path.is_empty() && !matches!(file.state().outcome, Some(Outcome::Kept { .. }))
            });
        !known
    };
    let files = record.iter().filter(|(_, file)| context.settings.ids.contains(&file.model) && unknown(&file.model));
    files.map(|(_, file)| file.needed_at).min().unwrap_or(u64::MAX)
}

/// Removes files, least recently needed first, until the pending downloads fit on each file system and `--keep-free` is
/// met there. Only files that have not changed since they were recorded are removed.
pub(crate) fn run(context: &Context, pending: &[Pending]) {
    if !context.settings.prune || !context.has_record {
        return;
    }
    let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
    for pending in pending.iter().filter(|pending| !pending.link) {
        let model = &pending.item.0;
        if let Ok(space) = FreeSpace::space(context, model) {
            let bytes = FreeSpace::needed(context, model, pending.source.as_ref());
            let sum = needed.entry(space.device).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
    let keep: HashSet<_> = context.progress.files.iter().map(|file| file.path.clone()).collect();
    let record = Record::load(&context.state_dir, &context.events);
    let since = protected_since(context, &record);
    let unneeded =
        |(path, file): &(&String, &Verified)| file.fetched && !keep.contains(*path) && file.needed_at < since;
    let mut candidates: Vec<_> = record.iter().filter(unneeded).collect();
    candidates.sort_by_key(|(_, file)| file.needed_at);
    let mut removed = Vec::new();
    for (path, file) in candidates {
        let Ok(save_path) = SavePath::parse(path) else { continue };
        let Ok(Some(folder)) = context.folder.parent(&save_path, false) else { continue };
        let Ok(space) = space(&folder) else { continue };
        let required = needed.get(&space.device).copied().unwrap_or(0).saturating_add(context.settings.keep_free);
        let unchanged = context.folder.existing(&save_path).is_some_and(|(_, stamp)| stamp == file.stamp);
        if space.free >= required || !unchanged {
            continue;
        }
        match folder.remove_file(save_path.name()) {
            Ok(()) => {
                context.events.send(Event::Removed { path, model: &file.model, bytes: file.stamp.size });
                removed.push(path.clone());
            }
            Err(error) => context.events.send(Event::NotRemoved { path, error: &error }),
        }
    }
    let updated = Record::update(&context.state_dir, &context.events, |files| {
        for path in &removed {
            let Some(removed) = files.remove(path) else { continue };
            // Removing a link changes the ctime of the other links to the same file, and nothing else.
            for (path, file) in files.iter_mut().filter(|(_, file)| file.stamp.is_same_content(&removed.stamp)) {
                let now = SavePath::parse(path).ok().and_then(|path| context.folder.existing(&path));
                if let Some((_, now)) = now.filter(|(_, now)| now.is_same_content(&file.stamp)) {
                    file.stamp = now;
                }
            }
        }
    });
    if let Err(error) = updated {
        context.events.send(Event::RecordNotWritten(&error));
    }
}

/// Records the time at which the existing files were last needed, for `--prune`.
pub(crate) fn mark_needed(context: &Context) {
    if !context.has_record {
        return;
    }
    let on_disk = |file: &&Arc<ModelProgress>| !matches!(file.state().outcome, None | Some(Outcome::Missing { .. }));
    let needed = context.progress.files.iter().filter(on_disk);
    let (paths, now): (HashSet<_>, _) = (needed.map(|file| file.path.clone()).collect(), now());
    let since = protected_since(context, &context.record);
    let written = context.unrecorded.write(&context.state_dir, &context.events);
    let updated = Record::update(&context.state_dir, &context.events, |files| {
        for (_, file) in files.iter_mut().filter(|(path, file)| paths.contains(*path) || file.needed_at >= since) {
            file.needed_at = now;
        }
    });
    if let Err(error) = written.and(updated) {
        context.events.send(Event::RecordNotWritten(&error));
    }
}
