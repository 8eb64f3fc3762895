//! The flags of `probe`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::{RuleArgs, parse};

/// What to probe, and how.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct ProbeArgs {
    /// Ids of the models to probe; default: all.
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Write the hashes and sizes that were found into rows of public.models that have none, in one transaction.
    #[arg(long)]
    pub(crate) fill: bool,
    /// Print one JSON object instead of lines.
    #[arg(long)]
    pub(crate) json: bool,
    /// Treat warnings as something to fix.
    #[arg(long, env = "CATALOG_PROBE_STRICT")]
    pub(crate) strict: bool,
    /// Maximum number of requests at a time to one host.
    #[arg(long, env = "CATALOG_PROBE_PER_HOST", default_value = "4", value_name = "NUMBER")]
    #[arg(value_parser = parse::number)]
    pub(crate) per_host: NonZeroUsize,
    /// Maximum number of attempts per address, if errors are temporary; pauses that a server asks for are respected up
    /// to five minutes.
    #[arg(long, env = "CATALOG_PROBE_ATTEMPTS", default_value = "3", value_name = "NUMBER")]
    #[arg(value_parser = parse::number)]
    pub(crate) attempts: NonZeroUsize,
    /// File for the textfile collector of Prometheus' node_exporter, replaced atomically; its name must end in .prom.
    /// Default: none.
    #[arg(long, env = "CATALOG_PROBE_METRICS_FILE", value_name = "PATH")]
    pub(crate) metrics_file: Option<PathBuf>,
    /// The rules for rows; one that breaks a rule is not probed.
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
}
