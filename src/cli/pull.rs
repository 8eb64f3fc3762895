//! The flags of `pull`. Values are strings here and validated later, because an invalid one is only a warning: it must
//! not keep a machine from booting.

use std::ffi::OsString;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

/// The flags of `pull`.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct PullArgs {
    /// Ids of the models that this machine needs, separated by commas; dependencies are added. Without ids, the command
    /// starts immediately.
    #[arg(long, env = "MACHINE_MODELS_NEEDED", value_name = "IDS", default_value = "", hide_default_value = true)]
    pub(crate) needed: String,
    /// URLs of the catalog, separated by commas; if one fails, the next one is used.
    #[arg(long, env = "CATALOG_URL", value_name = "URLS", default_value = "", hide_default_value = true)]
    pub(crate) catalog_url: String,
    /// URLs of caches, separated by commas, that have files as URL/sha256/DIGEST; each is tried before the URLs in the
    /// catalog.
    #[arg(long, env = "MACHINE_MODELS_CACHE", value_name = "URLS", default_value = "", hide_default_value = true)]
    pub(crate) cache: String,
    /// Models folder, which save paths are relative to.
    #[arg(long, env = "MODELS_DIR", value_name = "PATH")]
    pub(crate) dir: Option<OsString>,
    /// Do not start the command if a model is missing; exit with status 1.
    #[arg(long, env = "MACHINE_MODELS_STRICT", value_parser = FalseyValueParser::new())]
    pub(crate) strict: bool,
    /// Seconds to wait for the catalog, and as many, from the start, for hosts that are down.
    #[arg(long, env = "MACHINE_MODELS_WAIT", value_name = "SECONDS", default_value = "60")]
    pub(crate) wait: String,
    /// Consecutive attempts with less than 1 MiB of progress at each URL of a file. If nothing arrives from any, and an
    /// error may be temporary, such as 503, its URLs are tried again until the time in --wait is over.
    #[arg(long, env = "MACHINE_MODELS_TRIES", value_name = "NUMBER", default_value = "3")]
    pub(crate) tries: String,
    /// Files downloaded concurrently; small ones, of one connection each, up to this number times --connections.
    #[arg(long, env = "MACHINE_MODELS_PARALLEL", value_name = "NUMBER", default_value = "4")]
    pub(crate) parallel: String,
    /// Connections per file while --parallel files are downloaded; fewer files get more. With 1, each file has one.
    #[arg(long, env = "MACHINE_MODELS_CONNECTIONS", value_name = "NUMBER", default_value = "4")]
    pub(crate) connections: String,
    /// Allow folders inside the models folder to be symbolic links that lead out of it.
    #[arg(long, env = "MACHINE_MODELS_LINKS", value_parser = FalseyValueParser::new())]
    pub(crate) links: bool,
    /// Which existing files to hash: those not verified since they changed ("changed"), or all ("always").
    #[arg(long, env = "MACHINE_MODELS_VERIFY", value_name = "WHICH", default_value = "changed")]
    pub(crate) verify: String,
    /// Bytes per second below which a connection counts as stalled, such as 10K or 1M.
    #[arg(long, env = "MACHINE_MODELS_MIN_SPEED", value_name = "BYTES", default_value = "10K")]
    pub(crate) min_speed: String,
    /// Period over which that speed is measured.
    #[arg(long, env = "MACHINE_MODELS_STALL", value_name = "DURATION", default_value = "30s")]
    pub(crate) stall: String,
    /// Remove files that an earlier pull downloaded and that are no longer needed, least recently needed first, until
    /// the new files fit and --keep-free is met.
    #[arg(long, env = "MACHINE_MODELS_PRUNE", value_parser = FalseyValueParser::new())]
    pub(crate) prune: bool,
    /// Disk space to leave free in bytes, such as 20G.
    #[arg(long, env = "MACHINE_MODELS_KEEP_FREE", value_name = "BYTES", default_value = "0")]
    pub(crate) keep_free: String,
    /// File for the progress as JSON, replaced atomically every second.
    #[arg(long, env = "MACHINE_MODELS_STATUS_FILE", value_name = "PATH")]
    pub(crate) status_file: Option<OsString>,
    /// File for the textfile collector of Prometheus' node_exporter, replaced atomically; its name must end in .prom.
    #[arg(long, env = "MACHINE_MODELS_METRICS_FILE", value_name = "PATH")]
    pub(crate) metrics_file: Option<OsString>,
    /// Print which files would be downloaded, from which host and with how many bytes; download nothing and start no
    /// command.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Command to execute once the models are on disk, after `--`.
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Which existing files are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verify {
    /// Files that changed since they were verified, or were never verified.
    Changed,
    /// Every file.
    Always,
}
