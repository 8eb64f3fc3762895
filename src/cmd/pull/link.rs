//! Equal content is downloaded once: further models with the same hash are hard links to the first file.

use std::collections::HashSet;
use std::io;

use super::catalog::Model;
use super::error::Problem;
use super::folder::{SavePath, Stamp};
use super::journal;
use super::record::{Record, Verified, now};
use super::{Context, Wanted};

/// Divides what is wanted into the first file of each content, which is to be downloaded, and the others.
pub fn first_of_each(wanted: Vec<Wanted>) -> (Vec<Wanted>, Vec<Wanted>) {
    let mut known = HashSet::new();
    wanted.into_iter().partition(|wanted| wanted.item.0.hash.as_ref().is_none_or(|hash| known.insert(hash.text())))
}

/// Whether another file with a model's content is there.
pub fn is_there(context: &Context, model: &Model) -> bool {
    find(context, &context.record, model).is_some()
}

/// Another file that was verified to have the model's hash and has not changed since.
fn find(context: &Context, record: &Record, model: &Model) -> Option<(SavePath, Stamp)> {
    let (hash, own) = (model.hash.as_ref()?.text(), model.path.text());
    let others = record.iter().filter(|(path, file)| file.hash.as_ref() == Some(&hash) && **path != own);
    let mut unchanged = others.filter_map(|(path, file)| {
        let path = SavePath::parse(path).ok()?;
        let (_, stamp) = context.folder.existing(&path)?;
        (stamp == file.stamp).then_some((path, stamp))
    });
    unchanged.next()
}

/// Links a model's file to one with the same content.
///
/// # Errors
/// There is none, or the file system cannot link them.
pub fn link(context: &Context, model: &Model) -> io::Result<()> {
    let no_file = || io::Error::new(io::ErrorKind::NotFound, "no file with the same content is there");
    // Of now: the file may have come since the beginning.
    let record = Record::load(&context.own);
    let (from, stamp) = find(context, &record, model).ok_or_else(no_file)?;
    let folder = |path, create| context.folder.parent(path, create).map_err(|problem| io::Error::other(problem.text()));
    let source = folder(&from, false)?.ok_or_else(no_file)?;
    let target = folder(&model.path, true)?.ok_or_else(no_file)?;
    // Under another name first: there may be another file in its place, which is replaced whole.
    let temporary = format!("{}.link", journal::part_name(&model.key()));
    // Of a process that was killed just here.
    let _ = target.remove_file(&temporary);
    source.hard_link(from.name(), &target, &temporary)?;
    let renamed = target.rename(&temporary, &target, model.path.name());
    // It is still there if the renaming failed, or if both are links to the same file already.
    let _ = target.remove_file(&temporary);
    renamed?;
    // One more link changes the ctime of all of them, and nothing else.
    let (_, linked) = context.folder.existing(&model.path).ok_or_else(no_file)?;
    if !stamp.is_same_content(&linked) {
        return Err(io::Error::other("the file changed while it was linked"));
    }
    Record::update(&context.own, |files| {
        files.values_mut().filter(|file| file.stamp.is_same_content(&linked)).for_each(|file| file.stamp = linked);
    })?;
    remember(context, model, linked, true).map_err(|problem| io::Error::other(problem.text()))
}

/// Records a verified file, and whether a pull put it there: this one if `fetched`, else whatever is recorded.
///
/// # Errors
/// The record cannot be written.
pub fn remember(context: &Context, model: &Model, stamp: Stamp, fetched: bool) -> Result<(), Problem> {
    if context.settings.dry_run {
        return Ok(());
    }
    let hash = model.hash.as_ref().map(super::hash::Hash::text);
    let mut verified = Verified { model: model.id.clone(), hash, stamp, fetched, needed_at: now() };
    let updated = Record::update(&context.own, |files| {
        let path = model.path.text();
        verified.fetched |= files.get(&path).is_some_and(|known| known.fetched && known.stamp == stamp);
        files.insert(path, verified);
    });
    updated.map_err(Problem::disk("writing the record of verified files"))
}
