//! The command line: every command and every setting, with its environment variable and default.

mod parse;
mod probe;
mod pull;
mod server;
mod upstream;
mod variables;
mod warm;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub(crate) use self::probe::ProbeArgs;
pub(crate) use self::pull::{PullArgs, Verify};
pub(crate) use self::server::{ListenArgs, ServerArgs};
use crate::base::stderr::LogFormat;
use crate::catalog::model::{DEFAULT_URL_SCHEMES, Rules};
use crate::metrics::COMMIT;
use crate::postgres::config::{DatabaseConfig, DatabaseUrlError, Environment};
use crate::postgres::migrate::SCHEMA_VERSION;
pub(crate) use upstream::UpstreamArgs;
pub(crate) use warm::WarmArgs;

static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (commit {COMMIT}, schema {SCHEMA_VERSION})", env!("CARGO_PKG_VERSION")));

/// Serves a Postgres table of models from memory, up to date within milliseconds of a change.
#[derive(Debug, Parser)]
#[command(version = VERSION.as_str(), max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    /// Logging.
    pub(crate) log: LogArgs,
    /// The command to run.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command to run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the catalog of a database, or of another server.
    #[command(mut_arg("database_url", |arg| arg.required(false).required_unless_present("upstream")))]
    Serve {
        /// The database.
        #[command(flatten)]
        database: DatabaseArgs,
        /// The servers or files to follow instead.
        #[command(flatten)]
        upstream: UpstreamArgs,
        /// The server.
        #[command(flatten)]
        server: ServerArgs,
        /// Print commands to try once the catalog is loaded.
        #[arg(long)]
        examples: bool,
    },
    /// Serve a sample catalog from an ephemeral Postgres, which is removed when the program ends.
    Demo {
        /// The server. The database and its channel are the demo's own.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Create what the program needs in a database: the schema model_catalog and, unless the view
    /// model_catalog.entries exists, the table public.models. Safe to run more than once.
    Migrate {
        /// The database.
        #[command(flatten)]
        database: DatabaseArgs,
        /// Do not create the table public.models, its view and its triggers, because you define the view over your own
        /// tables.
        #[arg(long)]
        bare: bool,
        /// Create the table public.models even if the schema public has other tables.
        #[arg(long, conflicts_with = "bare")]
        with_models_table: bool,
        /// The rules that triggers check.
        #[command(flatten)]
        rules: RuleArgs,
    },
    /// Fill or update the table public.models from a file, in one transaction. Rows that are not in the file are kept.
    ///
    /// Exit status 0: all entries are in the table; 3: all except the rejected ones; 1: nothing was written.
    Import {
        /// JSON in the format of the API, ComfyUI-Manager's model-list.json, or a ComfyUI workflow with embedded
        /// models; `-` reads from standard input.
        file: PathBuf,
        /// Show what would be added, changed and rejected, without writing.
        #[arg(long)]
        dry_run: bool,
        /// Write nothing if any entry is rejected.
        #[arg(long)]
        strict: bool,
        /// The database.
        #[command(flatten)]
        database: DatabaseArgs,
        /// The rules for entries.
        #[command(flatten)]
        rules: RuleArgs,
    },
    /// Write the catalog that servers serve, ordered by id, in a format that `import` reads, or as a snapshot. Rows
    /// that break a rule are omitted.
    ///
    /// Exit status 0: all rows were written; 3: some were omitted; 1: the export failed; 141: the reader of standard
    /// output closed it.
    Export {
        /// Output file; `-` writes to standard output.
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Write the format of the snapshot file, which `serve --upstream` follows, in no order.
        #[arg(long)]
        snapshot: bool,
        /// The database.
        #[command(flatten)]
        database: DatabaseArgs,
        /// The rules for rows.
        #[command(flatten)]
        rules: RuleArgs,
    },
    /// Check a database as a server would use it, and print how to fix what is wrong. Exit status 0: nothing to fix;
    /// 1: something to fix; 2: the check could not be completed.
    Check {
        /// The database.
        #[command(flatten)]
        database: DatabaseArgs,
        /// The check.
        #[command(flatten)]
        check: CheckArgs,
    },
    /// Request the first byte of every download_url, as a machine would, and compare the file with its row. Nothing is
    /// downloaded.
    ///
    /// HF_TOKEN, CIVITAI_TOKEN, HF_ENDPOINT and the proxy variables work as in `pull`. Exit status 0: nothing to fix;
    /// 1: something to fix; 2: the probe could not be completed.
    Probe {
        /// The database.
        #[command(flatten)]
        database: DatabaseArgs,
        /// The probe.
        #[command(flatten)]
        probe: ProbeArgs,
    },
    /// Check the health of the server on this machine, without a shell or curl. Exit status 0: ready; 1: not ready.
    Health {
        /// The addresses of the server.
        #[command(flatten)]
        listen: ListenArgs,
        /// Check that the server is alive, not that it is ready.
        #[arg(long)]
        live: bool,
    },
    /// Download and verify the models that a GPU machine needs, then exec the command that uses them.
    ///
    /// Exit status 0: every model is there; 1: a model is missing; 2: invalid option; 143: stopped by a signal; 126,
    /// 127: the command cannot be started. If a command is given, its exit status is returned. It starts even if a
    /// model is missing, unless --strict is set.
    Pull(PullArgs),
    /// Let the caches of a site fetch files before GPU machines need them, and verify what they have. No file is
    /// written here.
    ///
    /// HF_TOKEN, CIVITAI_TOKEN, HF_ENDPOINT and the proxy variables work as in `pull`. Exit status 0: the caches have
    /// every file that has a SHA-256; 1: they do not; 2: there is no list of models.
    Warm(WarmArgs),
    /// Write man pages and shell completions to a directory, for packages.
    #[command(hide = true)]
    Generate {
        /// The directory, which must exist.
        directory: PathBuf,
    },
}

/// Logging.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// Log filter: a level (error, warn, info, debug, trace) or comma-separated `target=level` pairs.
    #[arg(
        long = "log",
        env = "CATALOG_LOG",
        default_value = "info,refinery_core=warn",
        global = true,
        value_name = "FILTER"
    )]
    #[arg(value_parser = parse::log_filter)]
    pub(crate) filter: String,
    /// Log output format.
    #[arg(
        long = "log-format",
        env = "CATALOG_LOG_FORMAT",
        default_value = "text",
        global = true,
        value_name = "FORMAT"
    )]
    pub(crate) format: LogFormat,
    /// Variables of the above with invalid values, which `pull` ignores.
    #[arg(skip)]
    pub(crate) ignored: Vec<&'static str>,
}

/// The channel of a database that has no other.
pub(crate) const DEFAULT_CHANNEL: &str = "model_catalog";

/// The database to connect to.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct DatabaseArgs {
    /// The database, in libpq's syntax: postgres://user@host:5432/name, or key=value pairs. Missing settings come from
    /// a service file and from libpq's environment variables, such as PGPASSWORD and PGSSLMODE.
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true, required = true)]
    pub(crate) database_url: Option<Secret>,
    /// Channel on which Postgres notifies of changes; `migrate` stores it in the database.
    #[arg(long, env = "CATALOG_CHANNEL", default_value = DEFAULT_CHANNEL, value_name = "NAME")]
    #[arg(value_parser = parse::channel)]
    pub(crate) channel: String,
    /// Maximum time without data from the database while connecting or running a statement.
    #[arg(long, env = "CATALOG_DATABASE_TIMEOUT", default_value = "10s", value_name = "DURATION")]
    #[arg(value_parser = parse::database_timeout)]
    pub(crate) database_timeout: Duration,
}

impl DatabaseArgs {
    /// The database, with the settings of libpq's environment variables.
    pub(crate) fn config(&self) -> Result<DatabaseConfig, DatabaseUrlError> {
        let environment = Environment::from_env();
        let url = self.database_url.as_ref().map_or("", Secret::expose);
        DatabaseConfig::parse(url, &environment, &self.channel, self.database_timeout)
    }
}

/// A text that may contain a password and is never shown. Any text is accepted here, because clap prints values that it
/// rejects.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Secret {
    /// The text itself.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// The rules for rows.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct RuleArgs {
    /// Comma-separated URL schemes that are allowed in a download_url.
    #[arg(long, env = "CATALOG_URL_SCHEMES", default_value = DEFAULT_URL_SCHEMES, value_name = "LIST")]
    #[arg(value_delimiter = ',', value_parser = parse::url_scheme)]
    pub(crate) url_schemes: Vec<String>,
}

impl RuleArgs {
    /// The rules that rows are checked by.
    pub(crate) fn rules(&self) -> Rules {
        Rules { url_schemes: self.url_schemes.clone() }
    }
}

/// The check.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub(crate) struct CheckArgs {
    /// Treat warnings as something to fix.
    #[arg(long, env = "CATALOG_CHECK_STRICT")]
    pub(crate) strict: bool,
    // Not named `format`, the id of the global argument in `LogArgs`.
    /// Output format.
    #[arg(long = "format", env = "CATALOG_CHECK_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub(crate) output: ReportFormat,
    /// Maximum number of rows listed per kind of finding; further ones are counted.
    #[arg(long, env = "CATALOG_CHECK_LIMIT", default_value = "20", value_name = "NUMBER")]
    #[arg(value_parser = parse::number)]
    pub(crate) limit: NonZeroUsize,
    /// The rules for rows.
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
}

/// Output format of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// A line per finding, and below it how to fix it.
    Text,
    /// One JSON object.
    Json,
}

/// The command line. A demo has no load balancer that it must wait for: it stops at the first Ctrl-C.
pub(crate) fn command() -> clap::Command {
    let without_grace = |demo: clap::Command| demo.mut_arg("drain_grace", |arg| arg.default_value("0s"));
    Cli::command().mut_subcommand("demo", without_grace)
}

/// Drops empty environment variables: they count as unset, because Compose files write `X=${X:-}`.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let unset = |arg: clap::Arg| if arg.get_env().is_some_and(is_empty) { arg.env(None::<&str>) } else { arg };
    command.mut_args(unset).mut_subcommands(without_empty_variables)
}

/// Parses the command line of this process. Help and version are errors, too. Invalid variables of the log do not stop
/// `pull`: a typo must not keep a machine from booting.
pub(crate) fn parse() -> Result<Cli, clap::Error> {
    let parsed = try_parse(command());
    let is_value = |error: &clap::Error| matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation);
    if parsed.as_ref().is_err_and(is_value) {
        let ignored = invalid_log_variables();
        let is_ignored = |arg: &clap::Arg| ignored.iter().any(|name| arg.get_env() == Some(name.as_ref()));
        let ignore = |arg: clap::Arg| if is_ignored(&arg) { arg.env(None::<&str>) } else { arg };
        if let Ok(mut cli @ Cli { command: Command::Pull(_), .. }) = try_parse(command().mut_args(ignore)) {
            cli.log.ignored = ignored;
            return Ok(cli);
        }
    }
    parsed
}

fn invalid_log_variables() -> Vec<&'static str> {
    let invalid = |(name, is_valid): (&'static str, fn(&str) -> bool)| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        (!value.to_str().is_some_and(is_valid)).then_some(name)
    };
    let filter: fn(&str) -> bool = |text| parse::log_filter(text).is_ok();
    let format: fn(&str) -> bool = |text| LogFormat::from_str(text, false).is_ok();
    let variables = [("CATALOG_LOG", filter), ("CATALOG_LOG_FORMAT", format)];
    variables.into_iter().filter_map(invalid).collect()
}

fn try_parse(arguments: clap::Command) -> Result<Cli, clap::Error> {
    let parsed = without_empty_variables(arguments).try_get_matches();
    let parsed = parsed.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(|error| match error.kind() {
        // The help names every variable.
        ErrorKind::DisplayHelp => command().try_get_matches().err().unwrap_or(error),
        _ => error,
    });
    parsed.map_err(variables::with_variable)
}
