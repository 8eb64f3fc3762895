//! Settings of a server without a database.

use std::time::Duration;

use clap::Args;

use super::{Secret, parse};
use crate::catalog::model::Rules;
use crate::loader::upstream::UpstreamSettings;
use crate::loader::upstream::config::{self, Location, UpstreamUrlError};

/// The upstreams that a server follows instead of a database.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct UpstreamArgs {
    /// Comma-separated upstreams to follow in place of a database, used in turn when one fails: other servers, such as
    /// http://replica:3000, or snapshots that `export --snapshot` wrote, such as `https://example.org/catalog.jsonl` or
    /// file:///srv/catalog.jsonl.
    #[arg(long, env = "CATALOG_UPSTREAM", value_name = "LIST", value_delimiter = ',', hide_env_values = true)]
    #[arg(conflicts_with = "database_url")]
    pub(crate) upstream: Vec<Secret>,
    /// Time between two requests to an upstream, plus or minus 20 %. Other servers are long-polled, so that a change
    /// arrives at once.
    #[arg(long, env = "CATALOG_UPSTREAM_INTERVAL", default_value = "1s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub(crate) upstream_interval: Duration,
    /// Bearer token that is sent to upstreams.
    #[arg(long, env = "CATALOG_UPSTREAM_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) upstream_token: Option<Secret>,
}

impl UpstreamArgs {
    /// The settings of the upstream, if there is one.
    pub(crate) fn settings(&self, rules: &Rules) -> Result<Option<UpstreamSettings>, UpstreamUrlError> {
        let locations = self.upstream.iter().zip(1..).map(|(url, number)| Location::parse(url.expose(), number));
        let locations = locations.collect::<Result<Vec<_>, _>>()?;
        let token = self.upstream_token.as_ref().map(|token| config::bearer(token.expose())).transpose()?;
        let settings = UpstreamSettings { locations, interval: self.upstream_interval, token, rules: rules.clone() };
        Ok(Some(settings).filter(|settings| !settings.locations.is_empty()))
    }
}
