//! The thread that keeps the catalog in sync with a database or an upstream.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::config::SourceSettings;
use crate::base::supervisor::ThreadResult;
use crate::catalog::model::Rules;
use crate::catalog::snapshot::Snapshot;
use crate::catalog::store::Store;
use crate::cmd::runtime;
use crate::loader::output::Output;
use crate::loader::upstream::{self, Upstream};
use crate::loader::{self, Loader};
use crate::metrics::Metrics;
use crate::snapshot_file::PersistedSnapshot;
use crate::snapshot_file::writer::{self, LatestState};
use crate::sync::SyncStatus;

/// The parts of the server that a loader uses.
pub(super) struct LoaderContext {
    pub(super) snapshot_file: Option<PathBuf>,
    pub(super) store: Arc<Store>,
    pub(super) sync: Arc<SyncStatus>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) latest: watch::Sender<LatestState>,
    pub(super) stop: CancellationToken,
}

impl LoaderContext {
    /// Keeps the catalog in sync until the shutdown.
    pub(super) fn follow(&self, settings: &SourceSettings) -> ThreadResult {
        match settings {
            SourceSettings::Database(settings) => self.follow_database((**settings).clone()),
            SourceSettings::Upstream(settings) => self.follow_upstream(settings.clone()),
        }
    }

    fn follow_database(&self, settings: loader::LoaderSettings) -> ThreadResult {
        let persisted = self.persisted(&settings.rules);
        let mut loader = Loader::new(settings, self.output());
        if let Some(persisted) = persisted {
            loader.restore(persisted);
        }
        self.run(loader.run())
    }

    fn follow_upstream(&self, settings: upstream::UpstreamSettings) -> ThreadResult {
        let persisted = self.persisted(&settings.rules);
        let mut upstream = Upstream::new(settings, self.output())?;
        if let Some(persisted) = persisted {
            upstream.restore(persisted);
        }
        self.run(upstream.run())
    }

    fn output(&self) -> Output {
        let (store, sync, metrics) = (Arc::clone(&self.store), Arc::clone(&self.sync), Arc::clone(&self.metrics));
        Output::new(store, sync, metrics, self.latest.clone())
    }

    /// The content of the snapshot file, at the first start of the loader.
    fn persisted(&self, rules: &Rules) -> Option<PersistedSnapshot<Snapshot>> {
        let path = self.snapshot_file.as_ref().filter(|_| self.store.load().is_none())?;
        writer::restore(path, rules, &self.metrics)
    }

    fn run(&self, loader: impl Future<Output = Infallible>) -> ThreadResult {
        runtime()?.block_on(async {
            // Starts the thread that resolves host names while threads can be started.
            drop(tokio::task::spawn_blocking(|| ()).await);
            tokio::select! {
                never = loader => match never {},
                () = self.stop.cancelled() => Ok(()),
            }
        })
    }
}
