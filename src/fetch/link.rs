//! Content is downloaded once: further models with the same hash become hard links to the first file.

use std::collections::HashSet;
use std::io;

use super::event::Event;
use super::folder::{SavePath, Stamp};
use super::journal;
use super::model::Model;
use super::record::{Record, Verified, now};
use super::{Context, Pending};

/// Splits files into the first with each content, which are downloaded, and the others.
pub(crate) fn split_by_content(pending: Vec<Pending>) -> (Vec<Pending>, Vec<Pending>) {
    let mut known = HashSet::new();
    pending.into_iter().partition(|pending| pending.item.0.hash.as_ref().is_none_or(|hash| known.insert(hash.text())))
}

/// Whether another file with the model's content exists.
pub(crate) fn has_copy(context: &Context, model: &Model) -> bool {
    find_copy(context, &context.record, model).is_some()
}

/// Finds another file that was verified to have the model's hash and has not changed since.
fn find_copy(context: &Context, record: &Record, model: &Model) -> Option<(SavePath, Stamp)> {
    let (hash, own_path) = (model.hash.as_ref()?.text(), model.path.text());
    let others = record.iter().filter(|(path, file)| file.hash.as_ref() == Some(&hash) && **path != own_path);
    let mut unchanged = others.filter_map(|(path, file)| {
        let path = SavePath::parse(path).ok()?;
        let (_, stamp) = context.folder.existing(&path)?;
        (stamp == file.stamp).then_some((path, stamp))
    });
    unchanged.next()
}

/// Creates a model's file as a hard link to one with the same content.
///
/// # Errors
/// `NotFound` if there is none; other errors if the file system cannot link them.
pub(crate) fn link(context: &Context, model: &Model) -> io::Result<()> {
    let no_file = || io::Error::new(io::ErrorKind::NotFound, "there is no file with the same content");
    context.unrecorded.write(&context.state_dir, &context.events)?;
    // Read again, because the file may have appeared since the start.
    let record = Record::load(&context.state_dir, &context.events);
    let (from, stamp) = find_copy(context, &record, model).ok_or_else(no_file)?;
    let folder = |path, create| context.folder.parent(path, create).map_err(|problem| io::Error::other(problem.text()));
    let source = folder(&from, false)?.ok_or_else(no_file)?;
    let target = folder(&model.path, true)?.ok_or_else(no_file)?;
    // Under a temporary name first, so that an existing file is replaced atomically.
    let temporary = format!("{}.link", journal::part_name(&model.key()));
    // Left by a process that was killed at this point.
    let _ = target.remove_file(&temporary);
    source.hard_link(from.name(), &target, &temporary)?;
    let renamed = target.rename(&temporary, &target, model.path.name());
    // It still exists if the rename failed, or if both names were links to the same file already.
    let _ = target.remove_file(&temporary);
    renamed?;
    // A further link changes the ctime of all links, and nothing else.
    let (_, linked) = context.folder.existing(&model.path).ok_or_else(no_file)?;
    if !stamp.is_same_content(&linked) {
        return Err(io::Error::other("the file changed while it was linked"));
    }
    Record::update(&context.state_dir, &context.events, |files| {
        files.values_mut().filter(|file| file.stamp.is_same_content(&linked)).for_each(|file| file.stamp = linked);
    })?;
    record_verified(context, model, linked, true);
    Ok(())
}

/// Records a verified file. `fetched`: this process downloaded or linked it; otherwise that flag is kept from the
/// record. Without the record, the file is hashed again.
pub(crate) fn record_verified(context: &Context, model: &Model, stamp: Stamp, fetched: bool) {
    if context.settings.dry_run || !context.has_record {
        return;
    }
    let hash = model.hash.as_ref().map(super::hash::Hash::text);
    let verified = Verified { model: model.id.clone(), hash, stamp, fetched, needed_at: now() };
    if let Err(error) = context.unrecorded.add(&context.state_dir, &context.events, model.path.text(), verified) {
        context.events.send(Event::RecordNotWritten(&error));
    }
}
