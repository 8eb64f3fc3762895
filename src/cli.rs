//! The command line: every command and every setting, with its environment variable and default.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use hyper::header::{HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::check::report::Format;
use crate::http::cors::Cors;

/// Serves a Postgres table of models from memory, live.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    /// How the program logs.
    pub log: Log,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the catalog of a database.
    Serve {
        /// The database.
        #[command(flatten)]
        database: Database,
        /// The server.
        #[command(flatten)]
        serve: Serve,
    },
    /// Try it out: a private Postgres with a sample catalog, served. It is gone when the program ends.
    Demo {
        /// The channel is the demo's own, the database too.
        #[command(flatten)]
        serve: Serve,
    },
    /// Make what the program needs in a database: the schema model_catalog and, where nobody defined the view
    /// model_catalog.entries, the table public.models. Twice is harmless.
    Migrate {
        /// The database.
        #[command(flatten)]
        database: Database,
        /// All but the table public.models, its view and its triggers: you define the view over tables of your own.
        #[arg(long)]
        bare: bool,
    },
    /// Fill or update the table public.models from a file, in one transaction. What is not in the file stays.
    ///
    /// Status 0: all of it is in the table; 3: the entries that were not rejected are; 1: nothing was written.
    Import {
        /// JSON as the API answers it, or ComfyUI-Manager's model-list.json; `-` is the standard input.
        file: PathBuf,
        /// Show what would be added, changed and rejected, and write nothing.
        #[arg(long)]
        dry_run: bool,
        /// Write nothing if an entry is rejected.
        #[arg(long)]
        strict: bool,
        /// The database.
        #[command(flatten)]
        database: Database,
        /// What is rejected.
        #[command(flatten)]
        schemes: Schemes,
    },
    /// Write the catalog as `import` takes it: what servers serve, ordered by id. Rows that break a rule are left out.
    ///
    /// Status 0: all rows are in it; 3: some were left out; 1: there is none.
    Export {
        /// Where to; `-` is the standard output.
        #[arg(default_value = "-")]
        file: PathBuf,
        /// The database.
        #[command(flatten)]
        database: Database,
        /// What is left out.
        #[command(flatten)]
        schemes: Schemes,
    },
    /// Look at a database as a server would, and say what is to be mended and how: 0 = nothing, 1 = something, 2 = the
    /// check could not be made.
    Check {
        /// The database.
        #[command(flatten)]
        database: Database,
        /// The check.
        #[command(flatten)]
        check: Check,
    },
    /// Ask the server on this machine for its health; the exit status is 0 if it is ready, else 1. It needs no shell.
    Health {
        /// The server's own.
        #[command(flatten)]
        listen: Listen,
        /// Ask whether it lives, not whether it is ready.
        #[arg(long)]
        live: bool,
    },
    /// Download the models that a GPU machine needs, verified, and then become the command that uses them.
    ///
    /// Status 0: every model is there; 1: a model is missing; 2: a wrong option; 143: stopped by a signal; 126, 127:
    /// the command cannot be started. With a command its own status is the last word; it is started although a model is
    /// missing, unless --strict is set.
    Pull(crate::cmd::pull::settings::Pull),
}

/// How the program logs.
#[derive(Debug, Args)]
pub struct Log {
    /// What is logged: a level (error, warn, info, debug, trace), or `target=level` pairs with commas between.
    #[arg(
        long = "log",
        env = "CATALOG_LOG",
        default_value = "info,refinery_core=warn",
        global = true,
        value_name = "FILTER"
    )]
    #[arg(value_parser = log_filter)]
    pub filter: String,
    /// How it looks.
    #[arg(
        long = "log-format",
        env = "CATALOG_LOG_FORMAT",
        default_value = "text",
        global = true,
        value_name = "FORMAT"
    )]
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which database.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Database {
    /// The database, as libpq writes it: postgres://user@host:5432/name, or key=value pairs. A password can also come
    /// from PGPASSWORD or PGPASSFILE, the TLS settings from PGSSLMODE and PGSSLROOTCERT.
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Secret,
    /// Channel that changes are announced on; `migrate` writes it into the database.
    #[arg(long, env = "CATALOG_CHANNEL", default_value = "model_catalog", value_name = "NAME")]
    #[arg(value_parser = channel)]
    pub channel: String,
    /// Longest silence of the database within a connect or a statement.
    #[arg(long, env = "CATALOG_DATABASE_TIMEOUT", default_value = "10s", value_name = "DURATION")]
    #[arg(value_parser = duration)]
    pub database_timeout: Duration,
}

/// A text that may hold a password, so it is never shown: clap prints a value that it refuses, hence nothing is
/// refused here.
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
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Where the server listens.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct Listen {
    /// Address of the API.
    #[arg(long, env = "CATALOG_ADDR", default_value = "127.0.0.1:3000", value_name = "IP:PORT")]
    #[arg(value_parser = address)]
    pub addr: SocketAddr,
    /// Address of /livez, /readyz and /metrics, on a thread of its own; without it they stand on the API's.
    #[arg(long, env = "CATALOG_ADMIN_ADDR", value_name = "IP:PORT", value_parser = address)]
    pub admin_addr: Option<SocketAddr>,
}

/// How to serve.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct Serve {
    /// Where it listens.
    #[command(flatten)]
    pub listen: Listen,
    /// Serving threads; default: one a core.
    #[arg(long, env = "CATALOG_THREADS", value_name = "NUMBER", value_parser = number)]
    pub threads: Option<NonZeroUsize>,
    /// Time between two looks at the database when nothing is announced.
    #[arg(long, env = "CATALOG_POLL_INTERVAL", default_value = "10s", value_name = "DURATION")]
    #[arg(value_parser = duration)]
    pub poll_interval: Duration,
    /// Time between two audits, give or take a fifth: all of the view is read and compared with what is served.
    #[arg(long, env = "CATALOG_AUDIT_INTERVAL", default_value = "1h", value_name = "DURATION")]
    #[arg(value_parser = duration)]
    pub audit_interval: Duration,
    /// Where the catalog is kept on disk, so that a start needs no database; without it, nowhere.
    #[arg(long, env = "CATALOG_SNAPSHOT_FILE", value_name = "PATH")]
    pub snapshot_file: Option<PathBuf>,
    /// Name of this replica in the view model_catalog.fleet, at most 16 ASCII characters; default: the
    /// application_name of DATABASE_URL, else the host, with the port if that is not 3000.
    #[arg(long, env = "CATALOG_REPLICA_NAME", value_name = "NAME", value_parser = crate::replica::name)]
    pub replica_name: Option<String>,
    /// Ids in one batch at most.
    #[arg(long, env = "CATALOG_MAX_BATCH_IDS", default_value = "1000", value_name = "NUMBER")]
    #[arg(value_parser = number)]
    pub max_batch_ids: NonZeroUsize,
    /// Bytes of a request's body at most.
    #[arg(long, env = "CATALOG_MAX_BODY_BYTES", default_value = "1048576", value_name = "BYTES")]
    #[arg(value_parser = number)]
    pub max_body_bytes: NonZeroUsize,
    /// Connections at most; further ones wait in the kernel's queue.
    #[arg(long, env = "CATALOG_MAX_CONNECTIONS", default_value = "16384", value_name = "NUMBER")]
    #[arg(value_parser = number)]
    pub max_connections: NonZeroUsize,
    /// Connections of one client address at most, an IPv6 /64 being one; further ones are answered 429. Behind a load
    /// balancer or NAT many clients have one address. Default: no limit.
    #[arg(long, env = "CATALOG_MAX_CONNECTIONS_PER_ADDR", value_name = "NUMBER", value_parser = number)]
    pub max_connections_per_addr: Option<NonZeroUsize>,
    /// Requests of one client in a second at most, an IPv6 /64 being one; further ones are answered 429. Default: no
    /// limit.
    #[arg(long, env = "CATALOG_RATE_LIMIT", value_name = "NUMBER", value_parser = rate)]
    pub rate_limit: Option<NonZeroU32>,
    /// Requests of one client at once; default: a second's worth.
    #[arg(long, env = "CATALOG_RATE_BURST", value_name = "NUMBER", value_parser = rate)]
    pub rate_burst: Option<NonZeroU32>,
    /// Networks of load balancers, with commas between: their connections are not counted by address, and the header
    /// below says whose requests they bring.
    #[arg(long, env = "CATALOG_TRUSTED_PROXIES", value_name = "LIST", value_delimiter = ',', value_parser = network)]
    pub trusted_proxies: Vec<IpNet>,
    /// Header in which load balancers name the client, the last one last; only these are believed.
    #[arg(long, env = "CATALOG_CLIENT_ADDR_HEADER", default_value = "x-forwarded-for", value_name = "NAME")]
    #[arg(value_parser = header)]
    pub client_addr_header: HeaderName,
    /// Origins whose pages may read answers, with commas between, or `*`. Default: none.
    #[arg(long, env = "CATALOG_CORS_ALLOW_ORIGIN", value_name = "LIST", value_parser = cors)]
    pub cors_allow_origin: Option<Cors>,
    /// Bytes at most of bodies that come in and answers that wait to be read, all clients together.
    #[arg(long, env = "CATALOG_MAX_BUFFER_BYTES", default_value = "268435456", value_name = "BYTES")]
    #[arg(value_parser = number)]
    pub max_buffer_bytes: NonZeroUsize,
    /// From its first byte, time for a request to be there and its answer to be taken.
    #[arg(long, env = "CATALOG_REQUEST_TIMEOUT", default_value = "30s", value_name = "DURATION")]
    #[arg(value_parser = duration)]
    pub request_timeout: Duration,
    /// Time between two requests on a connection.
    #[arg(long, env = "CATALOG_IDLE_TIMEOUT", default_value = "75s", value_name = "DURATION")]
    #[arg(value_parser = duration)]
    pub idle_timeout: Duration,
    /// After SIGTERM: time to answer as usual while not ready, so that load balancers look elsewhere.
    #[arg(long, env = "CATALOG_DRAIN_GRACE", default_value = "5s", value_name = "DURATION")]
    #[arg(value_parser = duration_or_zero)]
    pub drain_grace: Duration,
    /// After that: time for what is in flight to end.
    #[arg(long, env = "CATALOG_DRAIN_TIMEOUT", default_value = "10s", value_name = "DURATION")]
    #[arg(value_parser = duration_or_zero)]
    pub drain_timeout: Duration,
    /// Which addresses are served.
    #[command(flatten)]
    pub schemes: Schemes,
}

/// Which addresses are served.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct Schemes {
    /// Schemes that a download_url may have, with commas between.
    #[arg(long, env = "CATALOG_URL_SCHEMES", default_value = "http,https", value_name = "LIST")]
    #[arg(value_delimiter = ',', value_parser = scheme)]
    pub url_schemes: Vec<String>,
}

/// How to check.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct Check {
    /// Count warnings as something to be mended.
    #[arg(long, env = "CATALOG_CHECK_STRICT")]
    pub strict: bool,
    /// How the findings are printed.
    #[arg(long = "format", env = "CATALOG_CHECK_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub output: Format,
    /// Rows named at most for each kind of bad or odd row; the rest is counted.
    #[arg(long, env = "CATALOG_CHECK_LIMIT", default_value = "20", value_name = "NUMBER", value_parser = number)]
    pub limit: NonZeroUsize,
    /// Schemes that a download_url may have, with commas between.
    #[arg(long, env = "CATALOG_URL_SCHEMES", default_value = "http,https", value_name = "LIST")]
    #[arg(value_delimiter = ',', value_parser = scheme)]
    pub url_schemes: Vec<String>,
}

/// The command line of this process; ends it with a message where it is wrong.
#[must_use]
pub fn parse() -> Cli {
    let parsed = Cli::command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| name_the_variable(error).exit())
}

/// clap names the flag alone; who set the variable in a unit file looks for that.
fn name_the_variable(mut error: clap::Error) -> clap::Error {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => {
            // clap puts quotes around the whole, so the inner ones stand here.
            if let Some(variable) = variable_of(argument) {
                let both = format!("{argument}' or '{variable}");
                error.insert(ContextKind::InvalidArg, ContextValue::String(both));
            }
        }
        Some(ContextValue::Strings(missing)) => {
            let both = |argument: &String| match variable_of(argument) {
                Some(variable) => format!("{argument} or the environment variable {variable}"),
                None => argument.clone(),
            };
            let both = missing.iter().map(both).collect();
            error.insert(ContextKind::InvalidArg, ContextValue::Strings(both));
        }
        _ => {}
    }
    error
}

/// The environment variable of `--flag <VALUE>`.
fn variable_of(argument: &str) -> Option<String> {
    let flag = argument.split_whitespace().next().unwrap_or_default().trim_start_matches("--");
    let commands = Cli::command();
    let all = commands.get_subcommands().flat_map(clap::Command::get_arguments).chain(commands.get_arguments());
    let mut named = all.filter(|argument| argument.get_long() == Some(flag));
    named.find_map(|argument| Some(argument.get_env()?.to_string_lossy().into_owned()))
}

/// No setting is better for being longer.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

fn duration(text: &str) -> Result<Duration, String> {
    let duration = duration_or_zero(text)?;
    if duration.is_zero() { Err("it must be longer than zero, such as 500ms, 10s or 1h".into()) } else { Ok(duration) }
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number with a unit, such as 500ms, 10s or 1h"))?;
    // What is added to the present must stay a moment that there is.
    if duration > LONGEST { Err("it must be at most 1year, such as 500ms, 10s or 1h".into()) } else { Ok(duration) }
}

fn number(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "write a whole number above 0, such as 1000".into())
}

fn scheme(text: &str) -> Result<String, String> {
    // RFC 3986 §3.1. Without this `https://` would be taken, and every row rejected for it.
    let rest = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(rest) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("write schemes with commas between, such as https or http,https,s3".into())
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:3000, 0.0.0.0:3000 or [::]:3000".into())
}

fn rate(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| "write a whole number above 0, such as 100".into())
}

fn header(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| "write the name of a header, such as x-forwarded-for".into())
}

fn cors(text: &str) -> Result<Cors, String> {
    if text == "*" {
        return Ok(Cors::Any);
    }
    // As browsers write it: no path, no default port, lower case. Anything else would never be equal.
    let origin = |text: &str| {
        let origin = url::Url::parse(text).ok()?.origin();
        (origin.is_tuple() && origin.ascii_serialization() == text).then(|| HeaderValue::from_str(text).ok()).flatten()
    };
    let origins = text.split(',').map(|text| origin(text.trim())).collect::<Option<_>>();
    let wrong = || "write origins with commas between, such as https://example.org,http://localhost:8080, or *".into();
    origins.map(Cors::Only).ok_or_else(wrong)
}

fn network(text: &str) -> Result<IpNet, String> {
    let alone = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| alone()).map_err(|_| "write networks with commas between, such as 10.0.0.0/8,::1".into())
}

fn channel(text: &str) -> Result<String, String> {
    // Postgres cuts names at NAMEDATALEN - 1 bytes, and a cut channel would never ring.
    if text.is_empty() || text.len() > 63 {
        return Err("a channel's name has 1 to 63 bytes".into());
    }
    Ok(text.into())
}

fn log_filter(text: &str) -> Result<String, String> {
    let filter = text.parse::<tracing_subscriber::EnvFilter>();
    filter.map(|_| text.into()).map_err(|error| format!("{error}; write a level such as info, or target=level pairs"))
}
