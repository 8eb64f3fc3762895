//! The end of a download: the complete file is verified, and gets its final name.

use std::io;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::content::{self, Foreign};
use super::error::{AttemptError, Problem};
use super::folder::Stamp;
use super::journal::{self, Journal};
use super::link::record_verified;
use super::progress::Phase;
use super::segments::UNKNOWN_SIZE;
use super::transfer::Download;
use crate::base::atomic_file::{sync_dir, synced};

impl Download<'_> {
    /// Verifies the complete file against the catalog.
    pub(super) async fn verify(&mut self) -> Result<(), AttemptError> {
        let (total, may_mix_versions) = (self.state.total(), self.state.may_mix_versions);
        self.progress.set_phase(Phase::Checking);
        let matches = match self.state.follower.take() {
            Some(follower) => follower.matches(total).await.map_err(Problem::disk("reading the partial file"))?,
            None => true,
        };
        self.progress.set_phase(Phase::Fetching);
        let problem = if matches && self.model.hash.is_some() {
            return Ok(());
        } else {
            let beginning = content::read_beginning(&self.part).map_err(Problem::disk("reading the partial file"))?;
            match Foreign::identify(&beginning, total, self.model.path.name()) {
                Some(Foreign::Html) => Problem::Html(self.progress.source()),
                Some(foreign) => Problem::Foreign(self.progress.source(), foreign),
                None if !matches => Problem::Checksum,
                None => match self.model.check_size(Some(total)) {
                    Ok(()) => return Ok(()),
                    Err(problem) => problem,
                },
            }
        };
        // Nothing is kept. Several rounds may have downloaded different versions, so that is worth another attempt.
        self.start_over(UNKNOWN_SIZE, None)?;
        Err(if may_mix_versions { AttemptError::TryWhole(problem) } else { AttemptError::Fatal(problem) })
    }

    /// Renames the file to its final name.
    pub(super) async fn finish(&self) -> Result<(), Problem> {
        let part = Arc::clone(&self.part);
        let folder = self.folder.try_clone().map_err(Problem::disk("opening its folder"))?;
        let (from, to) = (journal::part_name(&self.key), self.model.path.name().to_owned());
        let renamed = spawn_blocking(move || {
            // Synced before the rename, so that after a power failure the file is complete or absent.
            synced(part.sync_all())?;
            if !Stamp::of(&part)?.is_named(&folder, &from) {
                return Err(io::Error::other("another program replaced the partial file"));
            }
            folder.rename(&from, &folder, &to)?;
            // Not every file system supports this, and the rename has succeeded in any case.
            let _ = sync_dir(&folder);
            Stamp::of(&part)
        });
        let renamed = renamed.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let stamp = renamed.map_err(Problem::disk("renaming the complete file"))?;
        Journal::remove(&self.context.state_dir, &self.key);
        // Before the lock is released, so that a waiting process finds the file in the record.
        record_verified(self.context, self.model, stamp, true);
        Ok(())
    }
}
