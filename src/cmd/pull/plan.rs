//! What each model needs, before anything is downloaded: is its file there, where is it to be had, does it fit.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::catalog::Model;
use super::error::Problem;
use super::folder::{Space, Stamp, space};
use super::http::Source;
use super::journal::Journal;
use super::progress::{File as Shown, Phase};
use super::record::Record;
use super::{Context, Wanted, link};
use crate::cli::Verify;

/// What is to be done for a model.
#[derive(Debug)]
pub enum Planned {
    /// Its file is there.
    Present,
    /// Its file is to be linked to another one with the same content.
    Link,
    /// Its file is to be downloaded; without a source its server did not respond, which may pass.
    Fetch(Option<Source>),
}

/// What is at a model's save path.
enum Existing {
    Absent,
    Same,
    Other,
    /// There is no hash to compare; its bytes.
    Unhashed(u64),
}

/// Plans one model; `first` is the first of its content.
///
/// # Errors
/// Why it cannot be had.
pub async fn plan(context: &Arc<Context>, model: &Arc<Model>, shown: &Shown, first: bool) -> Result<Planned, Problem> {
    context.folder.parent(&model.path, !context.settings.dry_run)?;
    let existing = existing(context, model, shown, &context.record).await?;
    if matches!(existing, Existing::Same) {
        return Ok(Planned::Present);
    }
    // What will be linked needs no address that works.
    if !first || link::is_there(context, model) {
        return Ok(Planned::Link);
    }
    let resolved = context.http.resolve(&model.url, model.auth).await;
    if let Existing::Unhashed(size) = existing {
        // A file gets its name when it is whole, so while its server is silent the size in the catalog will do.
        let same = match &resolved {
            Ok(Source { total: Some(total), .. }) => size == *total,
            _ => model.is_plausible(size),
        };
        if same {
            return Ok(Planned::Present);
        }
    }
    match resolved {
        Ok(source) => {
            shown.set_source(&source.host());
            // With mirrors, another address may have the right file.
            if model.mirrors.is_empty() {
                model.check_size(source.total)?;
            }
            shown.set_bytes(0, source.total.or(model.bytes).unwrap_or(0));
            Ok(Planned::Fetch(Some(source)))
        }
        Err(problem) if problem.is_transient() || !model.mirrors.is_empty() => Ok(Planned::Fetch(None)),
        Err(problem) => Err(problem),
    }
}

/// Whether another process put the file there since it was planned, when it was as `before` says.
///
/// # Errors
/// The file cannot be read.
pub async fn present_meanwhile(context: &Arc<Context>, wanted: &Wanted) -> Result<bool, Problem> {
    let (model, shown) = &wanted.item;
    let now = context.folder.existing(&model.path).map(|(_, stamp)| stamp);
    if now.is_none() || now == wanted.before {
        return Ok(false);
    }
    // The other process may not have come to its record yet; then the file is hashed.
    let total = wanted.source.as_ref().and_then(|source| source.total);
    Ok(match existing(context, model, shown, &Record::load(&context.own)).await? {
        Existing::Same => true,
        Existing::Unhashed(size) => total.map_or_else(|| model.is_plausible(size), |total| total == size),
        Existing::Absent | Existing::Other => false,
    })
}

async fn existing(
    context: &Arc<Context>,
    model: &Arc<Model>,
    shown: &Shown,
    record: &Record,
) -> Result<Existing, Problem> {
    if context.folder.is_folder(&model.path) {
        return Err(Problem::SavePath("is a folder".into()));
    }
    let Some((path, stamp)) = context.folder.existing(&model.path) else { return Ok(Existing::Absent) };
    let Some(hash) = model.hash.clone() else { return Ok(Existing::Unhashed(stamp.size)) };
    let known = record.get(&model.path.text());
    let verified = known.is_some_and(|known| known.stamp == stamp && known.hash.as_ref() == Some(&hash.text()));
    if verified && context.settings.verify == Verify::Changed {
        return Ok(Existing::Same);
    }
    shown.set_phase(Phase::Checking);
    shown.set_bytes(0, stamp.size);
    let reader = context.progress_of(&model.id);
    let hashed = spawn_blocking(move || {
        let file = std::fs::File::open(path)?;
        let report = |bytes| reader.iter().for_each(|shown| shown.set_checked(bytes));
        let same = hash.matches_file(&file, report)?;
        // What was written to meanwhile is not what was hashed.
        Ok(same && Stamp::of(&file)? == stamp)
    });
    let same = hashed.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
    shown.set_phase(Phase::Waiting);
    match same.map_err(Problem::disk("reading the file that is there"))? {
        true => {
            link::remember(context, model, stamp, false)?;
            Ok(Existing::Same)
        }
        false => Ok(Existing::Other),
    }
}

/// Room of the file systems that models are written to.
#[derive(Debug, Default)]
pub struct Room(HashMap<u64, u64>);

impl Room {
    /// Bytes that are still to be written for a model.
    #[must_use]
    pub fn needed(context: &Context, model: &Model, source: Option<&Source>) -> u64 {
        // The larger of both: a catalog may round, a server may send more.
        let size = source.and_then(|source| source.total).unwrap_or(0).max(model.bytes.unwrap_or(0));
        let done = Journal::peek(&context.own, &model.key()).map_or(0, |(done, _)| done);
        size.saturating_sub(done)
    }

    /// Where a model is written.
    ///
    /// # Errors
    /// The file system cannot be asked.
    pub fn space(context: &Context, model: &Model) -> Result<Space, Problem> {
        let asked = match context.folder.parent(&model.path, false)? {
            Some(folder) => space(&folder),
            None => space(context.folder.root()),
        };
        asked.map_err(Problem::disk("asking for free space"))
    }

    /// Takes room for a model.
    ///
    /// # Errors
    /// There is too little.
    pub fn take(&mut self, context: &Context, model: &Model, needed: u64) -> Result<(), Problem> {
        let space = Self::space(context, model)?;
        let free = self.0.entry(space.device).or_insert(space.free.saturating_sub(context.settings.keep_free));
        match free.checked_sub(needed) {
            Some(rest) => {
                *free = rest;
                Ok(())
            }
            None => Err(Problem::NoRoom { needed, free: *free }),
        }
    }
}
