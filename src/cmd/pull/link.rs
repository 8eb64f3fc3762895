//! Equal content is downloaded once: further models with the same hash are hard links to the first file.

use std::collections::HashSet;
use std::io;

use super::catalog::Model;
use super::folder::{SavePath, Stamp};
use super::hash::Hash;
use super::journal;
use super::plan::remember;
use super::record::Record;
use super::{Context, Wanted};

/// Divides what is wanted into files to download and files to link once those are there.
pub fn split(context: &Context, wanted: Vec<Wanted>) -> (Vec<Wanted>, Vec<Wanted>) {
    let mut known = HashSet::new();
    let (mut fetch, mut link) = (Vec::new(), Vec::new());
    for wanted in wanted {
        let hash = wanted.item.0.hash.clone();
        let elsewhere = hash.is_some_and(|hash| !known.insert(hash.text()) || find(context, &hash).is_some());
        if elsewhere { link.push(wanted) } else { fetch.push(wanted) }
    }
    (fetch, link)
}

/// A file that was verified to have this hash and has not changed since.
fn find(context: &Context, hash: &Hash) -> Option<(SavePath, Stamp)> {
    let record = Record::load(&context.own);
    let text = hash.text();
    record.iter().filter(|(_, file)| file.hash.as_ref() == Some(&text)).find_map(|(path, file)| {
        let path = SavePath::parse(path).ok()?;
        let (_, stamp) = context.folder.existing(&path)?;
        (stamp == file.stamp).then_some((path, stamp))
    })
}

/// Links a model's file to one with the same content.
///
/// # Errors
/// There is none, or the file system cannot link them.
pub fn link(context: &Context, model: &Model) -> io::Result<()> {
    let no_file = || io::Error::new(io::ErrorKind::NotFound, "no file with the same content is there");
    let (from, stamp) = model.hash.as_ref().and_then(|hash| find(context, hash)).ok_or_else(no_file)?;
    let folder = |path, create| context.folder.parent(path, create).map_err(|problem| io::Error::other(problem.text()));
    let source = folder(&from, false)?.ok_or_else(no_file)?;
    let target = folder(&model.path, true)?.ok_or_else(no_file)?;
    // Under another name first: there may be another file in its place, which is replaced whole.
    let temporary = format!("{}.link", journal::part_name(&model.key()));
    // Of a process that was killed just here.
    let _ = target.remove_file(&temporary);
    source.hard_link(from.name(), &target, &temporary)?;
    let renamed = target.rename(&temporary, &target, model.path.name());
    if renamed.is_err() {
        let _ = target.remove_file(&temporary);
    }
    renamed?;
    // One more link changes the ctime of both, and nothing else.
    let (_, linked) = context.folder.existing(&model.path).ok_or_else(no_file)?;
    if !stamp.is_same_content(&linked) {
        return Err(io::Error::other("the file changed while it was linked"));
    }
    Record::update(&context.own, |files| {
        if let Some(file) = files.get_mut(&from.text()) {
            file.stamp = linked;
        }
    })?;
    remember(context, model, linked, true).map_err(|problem| io::Error::other(problem.text()))
}
