//! Connection settings as libpq finds them: in the connection string, a service file, or environment variables, in this
//! order of precedence. This module knows which there are and where each comes from, and `config` what they mean.

use std::path::{Path, PathBuf};

/// The environment variables of libpq, each with the setting that it is the default of.
const VARIABLES: [(&str, &str); 35] = [
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGDATABASE", "dbname"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGSERVICE", "service"),
    ("PGREQUIREAUTH", "require_auth"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGOPTIONS", "options"),
    ("PGAPPNAME", "application_name"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSSLCOMPRESSION", "sslcompression"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLCERTMODE", "sslcertmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGSSLSNI", "sslsni"),
    ("PGREQUIREPEER", "requirepeer"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGSSLMAXPROTOCOLVERSION", "ssl_max_protocol_version"),
    ("PGMINPROTOCOLVERSION", "min_protocol_version"),
    ("PGMAXPROTOCOLVERSION", "max_protocol_version"),
    ("PGGSSENCMODE", "gssencmode"),
    ("PGKRBSRVNAME", "krbsrvname"),
    ("PGGSSLIB", "gsslib"),
    ("PGGSSDELEGATION", "gssdelegation"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGCLIENTENCODING", "client_encoding"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGLOADBALANCEHOSTS", "load_balance_hosts"),
];

/// Why the settings of a connection can't be used. Never quotes a connection string, because it may contain a password.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseUrlError {
    /// It can't be parsed.
    #[error(
        "DATABASE_URL {0}; write postgres://user@host:5432/database, \
         or key=value pairs such as host=/run/postgresql dbname=models"
    )]
    Syntax(String),
    /// A setting can't be used.
    #[error("{origin}: {message}")]
    Setting {
        /// `DATABASE_URL`, an environment variable or a service.
        origin: String,
        /// The setting, what is wrong with it and what would do.
        message: String,
    },
}

/// What libpq reads from the environment of a process.
#[derive(Debug, Default, Clone)]
pub struct Environment {
    /// Variables that are not empty, each with its name.
    variables: Vec<(&'static str, String)>,
    /// The home directory.
    pub(super) home: Option<PathBuf>,
}

impl Environment {
    /// Reads the environment of this process.
    #[must_use]
    pub fn from_env() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }

    /// Reads the environment through `variable`.
    pub fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let files = ["PGSERVICEFILE", "PGSYSCONFDIR"];
        let names = VARIABLES.iter().map(|(name, _)| *name).chain(files);
        let variables = names.filter_map(|name| Some((name, variable(name)?))).collect();
        Self { variables, home: variable("HOME").map(PathBuf::from) }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| &**value)
    }

    /// A file in the directory of libpq's defaults, if it exists.
    pub(super) fn default_file(&self, name: &str) -> Option<String> {
        let path = self.home.as_ref()?.join(".postgresql").join(name);
        path.is_file().then(|| path.display().to_string())
    }
}

/// A setting and where it comes from.
#[derive(Clone)]
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) value: String,
    /// `DATABASE_URL`, the name of a variable, or a service.
    pub(super) origin: String,
}

/// The settings of one connection.
pub(super) struct ConnectionString {
    /// The part of a URL before its parameters; empty if the connection string is not a URL.
    pub(super) url: String,
    pub(super) all: Vec<Setting>,
}

impl ConnectionString {
    /// Collects the settings of a connection string, and those that it lacks from its service and the environment.
    pub(super) fn collect(text: &str, environment: &Environment) -> Result<Self, DatabaseUrlError> {
        let mut settings = match url_scheme(text) {
            Some("postgres" | "postgresql") => split_url(text),
            Some(_) => return Err(DatabaseUrlError::Syntax("is a URL whose scheme is not postgres".into())),
            None => split_pairs(text)?,
        };
        settings.all.retain(|setting| !setting.value.is_empty());
        let of_url = settings.url.parse::<tokio_postgres::Config>().unwrap_or_default();
        let in_url = |key: &str| match key {
            "user" => of_url.get_user().is_some(),
            "password" => of_url.get_password().is_some(),
            "dbname" => of_url.get_dbname().is_some(),
            "host" | "port" => !of_url.get_hosts().is_empty(),
            _ => false,
        };
        if let Some(service) =
            settings.get("service").map(ToOwned::to_owned).or(environment.get("PGSERVICE").map(Into::into))
        {
            let (path, pairs) = service_settings(&service, environment)?;
            let origin = format!("service {service} in {}", path.display());
            settings.add(pairs.into_iter().filter(|(key, _)| !in_url(key)), &origin);
        }
        for (name, key) in VARIABLES {
            let value = environment.get(name).filter(|_| !in_url(key));
            settings.add(value.map(|value| (key.to_owned(), value.to_owned())), name);
        }
        Ok(settings)
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.all.iter().rev().find(|setting| setting.key == key).map(|setting| &*setting.value)
    }

    /// Where a setting comes from; the connection string, if it is not set.
    pub(super) fn origin(&self, key: &str) -> &str {
        self.all.iter().rev().find(|setting| setting.key == key).map_or("DATABASE_URL", |setting| &*setting.origin)
    }

    /// Adds settings that are not set yet.
    fn add(&mut self, pairs: impl IntoIterator<Item = (String, String)>, origin: &str) {
        for (key, value) in pairs {
            if self.get(&key).is_none() && !value.is_empty() {
                self.all.push(Setting { key, value, origin: origin.into() });
            }
        }
    }
}

/// Fails on a setting that can't be followed and must not be ignored.
pub(super) fn refuse(setting: &Setting) -> Result<(), DatabaseUrlError> {
    let value = setting.value.as_str();
    let reason = match setting.key.as_str() {
        "gssencmode" if value == "require" => "use sslmode",
        "gssdelegation" if value != "0" => "remove it",
        "client_encoding" if !["utf8", "utf-8", "unicode", "auto"].contains(&&*value.to_ascii_lowercase()) => {
            "the encoding is always UTF8"
        }
        "replication" if !["false", "off", "no", "0"].contains(&value) => "a replication connection can't read tables",
        "min_protocol_version" if value != "3.0" => "version 3.0 of the protocol is used",
        "require_auth" => "the method of authentication can't be restricted: use sslmode=verify-full",
        "requirepeer" => "the owner of a socket is not checked: use a directory that only its owner can write to",
        "sslcertmode" if value == "require" => "whether the server asked for a certificate is not checked",
        "sslpassword" => "decrypt the key with `openssl pkey -in KEY -out NEW`",
        "sslcrldir" => "use sslcrl with one file",
        "sslkeylogfile" => "session keys are not written",
        "scram_client_key" | "scram_server_key" => "use a password",
        key if key.starts_with("oauth_") => "use another method of authentication",
        _ => return Ok(()),
    };
    // All of these names are libpq's, so none is a part of a password.
    Err(DatabaseUrlError::Setting {
        origin: setting.origin.clone(),
        message: format!("{} is not supported: {reason}", setting.key),
    })
}

/// Whether a setting is passed to the driver, which reports unknown ones. The others are interpreted here or ignored.
pub(super) fn is_of_the_driver(key: &str) -> bool {
    let own = [
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslcrl",
        "sslsni",
        "sslcertmode",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "passfile",
        "service",
        "target_session_attrs",
        "tcp_user_timeout",
        "keepalives_count",
        "fallback_application_name",
    ];
    let ignored = [
        "gssencmode",
        "gssdelegation",
        "gsslib",
        "krbsrvname",
        "sslcompression",
        "client_encoding",
        "replication",
        "min_protocol_version",
        "max_protocol_version",
    ];
    !own.contains(&key) && !ignored.contains(&key)
}

/// The scheme, if the connection string is a URL and not pairs.
fn url_scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let valid = |c: char| c.is_ascii_alphanumeric() || "+-.:".contains(c);
    (!scheme.is_empty() && scheme.chars().all(valid)).then_some(scheme)
}

fn in_database_url(key: &str, value: String) -> Setting {
    Setting { key: key.into(), value, origin: "DATABASE_URL".into() }
}

fn split_url(text: &str) -> ConnectionString {
    let (url, query) = text.split_once('?').unwrap_or((text, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = match pair.split_once('=').unwrap_or((pair, "")) {
            // libpq accepts this setting of the JDBC driver.
            ("ssl", "true") => ("sslmode", "require"),
            pair => pair,
        };
        in_database_url(key, percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned())
    });
    ConnectionString { url: url.into(), all: pairs.collect() }
}

/// Splits pairs in libpq's syntax: `key = 'value with \' and spaces'`.
fn split_pairs(text: &str) -> Result<ConnectionString, DatabaseUrlError> {
    let mut all = Vec::new();
    let mut left = text.trim_start();
    while let Some((key, after)) = left.split_once('=') {
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            break;
        }
        let after = after.trim_start();
        let (value, length) = pair_value(after).ok_or_else(|| not_a_pair("a quote is not closed"))?;
        all.push(in_database_url(key, value));
        left = after[length..].trim_start();
    }
    if left.is_empty() {
        Ok(ConnectionString { url: String::new(), all })
    } else {
        Err(not_a_pair("a part has no `=`"))
    }
}

fn not_a_pair(why: &str) -> DatabaseUrlError {
    DatabaseUrlError::Syntax(format!("can't be parsed: {why}"))
}

/// The value at the start of `text`, and its length in bytes; `None` if its quote is not closed.
fn pair_value(text: &str) -> Option<(String, usize)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(usize::from(quoted)) {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '\'' if quoted => return Some((value, index + 1)),
            c if !quoted && c.is_whitespace() => return Some((value, index)),
            c => value.push(c),
        }
    }
    (!quoted).then_some((value, text.len()))
}

/// The settings of a service: the file and its `key=value` lines below `[service]`.
fn service_settings(
    service: &str,
    environment: &Environment,
) -> Result<(PathBuf, Vec<(String, String)>), DatabaseUrlError> {
    let own = environment.get("PGSERVICEFILE").map(PathBuf::from);
    let own = own.or_else(|| Some(environment.home.as_ref()?.join(".pg_service.conf")));
    let of_system = environment.get("PGSYSCONFDIR").map(|directory| Path::new(directory).join("pg_service.conf"));
    let tried: Vec<PathBuf> = own.into_iter().chain(of_system).collect();
    for path in &tried {
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        if lines.any(|line| line == format!("[{service}]")) {
            let pairs = lines.take_while(|line| !line.starts_with('[')).map(|line| line.split_once('='));
            let pairs = pairs.map(|pair| pair.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())));
            let pairs = pairs.collect::<Option<Vec<_>>>().ok_or_else(|| DatabaseUrlError::Setting {
                origin: format!("service {service} in {}", path.display()),
                message: "a line is not key=value".into(),
            })?;
            return Ok((path.clone(), pairs));
        }
    }
    let tried: Vec<_> = tried.iter().map(|path| path.display().to_string()).collect();
    Err(DatabaseUrlError::Setting {
        origin: format!("service {service}"),
        message: format!("it is defined in none of these files: {}; set PGSERVICEFILE", tried.join(", ")),
    })
}
