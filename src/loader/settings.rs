//! What a loader is configured with.

use std::time::Duration;

use crate::catalog::model::Rules;
use crate::postgres::config::DatabaseConfig;

/// The settings of a [`Loader`](super::Loader).
#[derive(Clone)]
pub struct LoaderSettings {
    /// The database to read.
    pub database: DatabaseConfig,
    /// Time between two deltas when no notification arrives.
    pub poll_interval: Duration,
    /// Time between two deltas on a hot standby.
    pub standby_poll_interval: Duration,
    /// Time between two audits, varied at random by up to 20 %.
    pub audit_interval: Duration,
    /// The rules that rows must pass.
    pub rules: Rules,
    /// The name of this replica in `model_catalog.fleet`.
    pub replica: String,
}
