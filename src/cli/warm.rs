//! The flags of `warm`.

use clap::Args;
use url::Url;

use super::parse;

/// What to let which caches fetch.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct WarmArgs {
    /// Ids of models, whose dependencies are added; default: every model of the catalog.
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// URLs of the catalog, separated by commas; if one fails, the next one is used.
    #[arg(long, env = "CATALOG_URL", value_name = "URLS", required = true, hide_env_values = true)]
    #[arg(value_delimiter = ',', value_parser = parse::http_url)]
    pub(crate) catalog_url: Vec<Url>,
    /// URLs of the caches, separated by commas.
    #[arg(long, env = "MACHINE_MODELS_CACHE", value_name = "URLS", required = true, hide_env_values = true)]
    #[arg(value_delimiter = ',', value_parser = parse::http_url)]
    pub(crate) cache: Vec<Url>,
    /// Show what the caches have, judged by the first and the last byte of each file, and fetch nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}
