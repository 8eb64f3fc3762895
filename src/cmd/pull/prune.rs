//! Removes files that an earlier pull downloaded and that nobody needs any more, when the disk is short.

use std::collections::{BTreeMap, HashSet};

use tracing::{info, warn};

use super::folder::{SavePath, space};
use super::plan::Room;
use super::record::Record;
use super::{Context, Wanted};

/// Removes files, least recently needed first, until what is to be downloaded fits on each file system and
/// `--keep-free` is met there. Only files that still look as they were recorded are removed.
pub fn run(context: &Context, wanted: &[Wanted]) {
    if !context.settings.prune {
        return;
    }
    let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
    for wanted in wanted.iter().filter(|wanted| !wanted.link) {
        let model = &wanted.item.0;
        if let Ok(space) = Room::space(context, model) {
            let bytes = Room::needed(context, model, wanted.source.as_ref());
            let sum = needed.entry(space.device).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
    let keep: HashSet<_> = context.progress.files.iter().map(|file| file.path.clone()).collect();
    let record = Record::load(&context.own);
    let mut candidates: Vec<_> = record.iter().filter(|(path, file)| file.fetched && !keep.contains(*path)).collect();
    candidates.sort_by_key(|(_, file)| file.needed_at);
    let mut removed = Vec::new();
    for (path, file) in candidates {
        let Ok(save_path) = SavePath::parse(path) else { continue };
        let Ok(Some(folder)) = context.folder.parent(&save_path, false) else { continue };
        let Ok(space) = space(&folder) else { continue };
        let wanted = needed.get(&space.device).copied().unwrap_or(0).saturating_add(context.settings.keep_free);
        let unchanged = context.folder.existing(&save_path).is_some_and(|(_, stamp)| stamp == file.stamp);
        if space.free >= wanted || !unchanged {
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
    let updated = Record::update(&context.own, |files| {
        for path in &removed {
            let Some(removed) = files.remove(path) else { continue };
            // Other links to the same file have another ctime now, and nothing else.
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
