//! Removes files that an earlier pull downloaded and that are no longer needed, when disk space is short.

use std::collections::{BTreeMap, HashSet};

use tracing::{info, warn};

use super::folder::{SavePath, space};
use super::plan::FreeSpace;
use super::record::Record;
use super::{Context, Pending};

/// Removes files, least recently needed first, until the pending downloads fit on each file system and `--keep-free` is
/// met there. Only files that have not changed since they were recorded are removed.
pub fn run(context: &Context, pending: &[Pending]) {
    if !context.settings.prune {
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
    let record = Record::load(&context.state_dir);
    let mut candidates: Vec<_> = record.iter().filter(|(path, file)| file.fetched && !keep.contains(*path)).collect();
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
                info!(path = &**path, model = &*file.model, bytes = file.stamp.size, "removed: no longer needed");
                removed.push(path.clone());
            }
            Err(error) => warn!(path = &**path, %error, "a file that is no longer needed cannot be removed"),
        }
    }
    let updated = Record::update(&context.state_dir, |files| {
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
        warn!(%error, "the record of verified files cannot be written");
    }
}
