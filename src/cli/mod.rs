//! The command line: every command and every setting, with its environment variable and default.

mod parse;
mod probe;
mod pull;
mod upstream;
mod variables;

use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use hyper::header::HeaderName;
use ipnet::IpNet;

pub use self::probe::ProbeArgs;
pub use self::pull::{PullArgs, Verify};
use crate::catalog::model::Rules;
use crate::http::cors::Cors;
use crate::postgres::config::{DatabaseConfig, DatabaseUrlError, Environment};
pub use upstream::UpstreamArgs;

/// Serves a Postgres table of models from memory, up to date within milliseconds of a change.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    /// Logging.
    pub log: LogArgs,
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the catalog of a database, or of another server.
    #[command(mut_arg("database_url", |arg| arg.required(false).required_unless_present("upstream")))]
    Serve {
        /// The database.
        #[command(flatten)]
        database: DatabaseArgs,
        /// The servers or files in its place.
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
    },
    /// Fill or update the table public.models from a file, in one transaction. Rows that are not in the file stay.
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
    /// Exit status 0: all rows were written; 3: some were omitted; 1: the export failed.
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
    /// HF_TOKEN, CIVITAI_TOKEN, HF_ENDPOINT and the proxy variables have the meaning that they have for `pull`. Exit
    /// status 0: nothing to fix; 1: something to fix; 2: the probe could not be completed.
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
    /// Download the models that a GPU machine needs, verified, and then become the command that uses them.
    ///
    /// Exit status 0: every model is there; 1: a model is missing; 2: invalid option; 143: stopped by a signal; 126,
    /// 127: the command cannot be started. With a command, its own status is the last word; it is started even if a
    /// model is
    /// missing, unless --strict is set.
    Pull(PullArgs),
}

/// Logging.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// Log filter: a level (error, warn, info, debug, trace) or comma-separated `target=level` pairs.
    #[arg(
        long = "log",
        env = "CATALOG_LOG",
        default_value = "info,refinery_core=warn",
        global = true,
        value_name = "FILTER"
    )]
    #[arg(value_parser = parse::log_filter)]
    pub filter: String,
    /// Log output format.
    #[arg(
        long = "log-format",
        env = "CATALOG_LOG_FORMAT",
        default_value = "text",
        global = true,
        value_name = "FORMAT"
    )]
    pub format: LogFormat,
}

/// Log output format.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// Lines of text.
    Text,
    /// One JSON object per line.
    Json,
}

/// The database to connect to.
#[derive(Debug, Args)]
#[group(skip)]
pub struct DatabaseArgs {
    /// The database, in libpq's syntax: postgres://user@host:5432/name, or key=value pairs. The password can also come
    /// from PGPASSWORD or PGPASSFILE, the TLS settings from PGSSLMODE and PGSSLROOTCERT.
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true, required = true)]
    pub database_url: Option<Secret>,
    /// Channel on which Postgres notifies of changes; `migrate` stores it in the database.
    #[arg(long, env = "CATALOG_CHANNEL", default_value = "model_catalog", value_name = "NAME")]
    #[arg(value_parser = parse::channel)]
    pub channel: String,
    /// Maximum time without data from the database while connecting or running a statement.
    #[arg(long, env = "CATALOG_DATABASE_TIMEOUT", default_value = "10s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub database_timeout: Duration,
}

impl DatabaseArgs {
    /// The database, with the settings of libpq's environment variables.
    ///
    /// # Errors
    /// See [`DatabaseUrlError`].
    pub fn config(&self) -> Result<DatabaseConfig, DatabaseUrlError> {
        let environment = Environment::from_env();
        let url = self.database_url.as_ref().map_or("", Secret::expose);
        DatabaseConfig::parse(url, &environment, &self.channel, self.database_timeout)
    }
}

/// A text that may contain a password and is never shown. Any text is accepted here, because clap prints values that it
/// rejects.
#[derive(Clone)]
pub struct Secret(String);

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
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Where the server listens.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct ListenArgs {
    /// Address of the API.
    #[arg(long, env = "CATALOG_ADDR", default_value = "127.0.0.1:3000", value_name = "IP:PORT")]
    #[arg(value_parser = parse::socket_addr)]
    pub addr: SocketAddr,
    /// Address of /livez, /readyz and /metrics, served by a thread of their own; default: the address of the API.
    #[arg(long, env = "CATALOG_ADMIN_ADDR", value_name = "IP:PORT", value_parser = parse::socket_addr)]
    pub admin_addr: Option<SocketAddr>,
}

/// The server.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct ServerArgs {
    /// Where it listens.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Worker threads; default: one per core.
    #[arg(long, env = "CATALOG_THREADS", value_name = "NUMBER", value_parser = parse::number)]
    pub threads: Option<NonZeroUsize>,
    /// Time between two reads of the database when no notification arrives.
    #[arg(long, env = "CATALOG_POLL_INTERVAL", default_value = "10s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub poll_interval: Duration,
    /// Time between two reads of a hot standby, which sends no notifications.
    #[arg(long, env = "CATALOG_STANDBY_POLL_INTERVAL", default_value = "250ms", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub standby_poll_interval: Duration,
    /// Time between two audits, plus or minus 20 %. An audit reads the whole view and compares it with what is served.
    #[arg(long, env = "CATALOG_AUDIT_INTERVAL", default_value = "1h", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub audit_interval: Duration,
    /// File that the catalog is saved to, so that the next start does not need the database; default: none.
    #[arg(long, env = "CATALOG_SNAPSHOT_FILE", value_name = "PATH")]
    pub snapshot_file: Option<PathBuf>,
    /// Name of this replica in the view model_catalog.fleet, up to 16 ASCII characters; default: the application_name
    /// in DATABASE_URL, otherwise the host name, with the port if that is not 3000.
    #[arg(long, env = "CATALOG_REPLICA_NAME", value_name = "NAME", value_parser = crate::loader::replica::parse_name)]
    pub replica_name: Option<String>,
    /// Maximum number of ids in a batch.
    #[arg(long, env = "CATALOG_MAX_BATCH_IDS", default_value = "1000", value_name = "NUMBER")]
    #[arg(value_parser = parse::number)]
    pub max_batch_ids: NonZeroUsize,
    /// Maximum request body size in bytes.
    #[arg(long, env = "CATALOG_MAX_BODY_BYTES", default_value = "1048576", value_name = "BYTES")]
    #[arg(value_parser = parse::number)]
    pub max_body_bytes: NonZeroUsize,
    /// Maximum number of open connections; further ones wait in the kernel's queue.
    #[arg(long, env = "CATALOG_MAX_CONNECTIONS", default_value = "16384", value_name = "NUMBER")]
    #[arg(value_parser = parse::number)]
    pub max_connections: NonZeroUsize,
    /// Maximum number of connections per client address, an IPv6 /64 counting as one; further ones receive 429. Clients
    /// behind a load balancer or NAT share an address. Default: no limit.
    #[arg(long, env = "CATALOG_MAX_CONNECTIONS_PER_ADDR", value_name = "NUMBER", value_parser = parse::number)]
    pub max_connections_per_addr: Option<NonZeroUsize>,
    /// Maximum number of requests per second and client, an IPv6 /64 counting as one; further ones receive 429.
    /// Default: no limit.
    #[arg(long, env = "CATALOG_RATE_LIMIT", value_name = "NUMBER", value_parser = parse::rate)]
    pub rate_limit: Option<NonZeroU32>,
    /// Maximum number of requests in a burst of one client; default: the number per second.
    #[arg(long, env = "CATALOG_RATE_BURST", value_name = "NUMBER", value_parser = parse::rate)]
    pub rate_burst: Option<NonZeroU32>,
    /// Comma-separated networks of load balancers. Their connections are not limited per address, and the header below
    /// names the clients of their requests.
    #[arg(long, env = "CATALOG_TRUSTED_PROXIES", value_name = "LIST", value_delimiter = ',')]
    #[arg(value_parser = parse::network)]
    pub trusted_proxies: Vec<IpNet>,
    /// Header in which load balancers append the address of the client; ignored on other connections.
    #[arg(long, env = "CATALOG_CLIENT_ADDR_HEADER", default_value = "x-forwarded-for", value_name = "NAME")]
    #[arg(value_parser = parse::header_name)]
    pub client_addr_header: HeaderName,
    /// Comma-separated origins whose pages may read responses, or `*`. Default: none.
    #[arg(long, env = "CATALOG_CORS_ALLOW_ORIGIN", value_name = "LIST", value_parser = parse::cors)]
    pub cors_allow_origin: Option<Cors>,
    /// Maximum memory in bytes for request bodies and unsent responses of all clients together.
    #[arg(long, env = "CATALOG_MAX_BUFFER_BYTES", default_value = "268435456", value_name = "BYTES")]
    #[arg(value_parser = parse::number)]
    pub max_buffer_bytes: NonZeroUsize,
    /// Maximum time to receive a request and send its response, counted from its first byte.
    #[arg(long, env = "CATALOG_REQUEST_TIMEOUT", default_value = "30s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub request_timeout: Duration,
    /// Maximum time between two requests on a connection.
    #[arg(long, env = "CATALOG_IDLE_TIMEOUT", default_value = "75s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration)]
    pub idle_timeout: Duration,
    /// After SIGTERM, time to keep serving while not ready, so that load balancers take this server out of rotation.
    #[arg(long, env = "CATALOG_DRAIN_GRACE", default_value = "5s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration_or_zero)]
    pub drain_grace: Duration,
    /// After the grace period, maximum time for requests in flight to finish.
    #[arg(long, env = "CATALOG_DRAIN_TIMEOUT", default_value = "10s", value_name = "DURATION")]
    #[arg(value_parser = parse::duration_or_zero)]
    pub drain_timeout: Duration,
    /// The rules for rows.
    #[command(flatten)]
    pub rules: RuleArgs,
}

/// The rules for rows.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct RuleArgs {
    /// Comma-separated URL schemes that are allowed in a download_url.
    #[arg(long, env = "CATALOG_URL_SCHEMES", default_value = "http,https", value_name = "LIST")]
    #[arg(value_delimiter = ',', value_parser = parse::url_scheme)]
    pub url_schemes: Vec<String>,
}

impl RuleArgs {
    /// The rules that rows are checked by.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules { url_schemes: self.url_schemes.clone() }
    }
}

/// The check.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct CheckArgs {
    /// Treat warnings as something to fix.
    #[arg(long, env = "CATALOG_CHECK_STRICT")]
    pub strict: bool,
    // Not named `format`, the id of the global argument in `LogArgs`.
    /// Output format.
    #[arg(long = "format", env = "CATALOG_CHECK_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub output: ReportFormat,
    /// Maximum number of rows listed per kind of finding; further ones are counted.
    #[arg(long, env = "CATALOG_CHECK_LIMIT", default_value = "20", value_name = "NUMBER")]
    #[arg(value_parser = parse::number)]
    pub limit: NonZeroUsize,
    /// The rules for rows.
    #[command(flatten)]
    pub rules: RuleArgs,
}

/// Output format of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// A line per finding, and below it how to fix it.
    Text,
    /// One JSON object.
    Json,
}

/// The command line. A demo has no load balancer that it must wait for: it stops at the first Ctrl-C.
fn command() -> clap::Command {
    let without_grace = |demo: clap::Command| demo.mut_arg("drain_grace", |arg| arg.default_value("0s"));
    Cli::command().mut_subcommand("demo", without_grace)
}

/// Parses the command line of this process; exits with a message if it is invalid.
#[must_use]
pub fn parse() -> Cli {
    let parsed = command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| variables::with_variable(error).exit())
}
