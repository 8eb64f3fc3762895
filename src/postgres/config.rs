//! How to reach the database: `DATABASE_URL`, libpq's environment variables and the password file.
//!
//! The driver parses most of a connection string. The TLS settings that it does not know (`sslmode=verify-*`,
//! `sslrootcert`) are removed first.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::passfile;
use super::tls::{self, Mode, TlsError};

/// TCP keepalive: a peer that is gone is noticed after the idle time and the probes, about 20 seconds.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;

/// Why a connection string can't be used. Never quotes it, because it may contain a password.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseUrlError {
    /// It can't be parsed.
    #[error(
        "DATABASE_URL {0}; write postgres://user@host:5432/database, \
         or key=value pairs such as host=/run/postgresql dbname=models"
    )]
    Syntax(String),
    /// Its TLS settings can't be used.
    #[error("DATABASE_URL: {0}")]
    Tls(#[from] TlsError),
}

/// A database, how to connect to it and how long to wait for it.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// Settings of the driver.
    pub driver: Config,
    /// TLS of the connections.
    pub tls: MakeRustlsConnect,
    /// Whether the server's certificate is verified.
    pub verifies_server: bool,
    /// The channel on which Postgres sends notifications of changes.
    pub channel: String,
    /// Maximum time without data from the database while connecting or running a statement.
    pub timeout: Duration,
}

impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.driver.fmt(f)
    }
}

/// The environment variables of libpq that are supported.
#[derive(Debug, Default, Clone)]
pub struct Environment {
    /// `PGPASSWORD`
    pub password: Option<String>,
    /// `PGPASSFILE`, or `.pgpass` in the home directory.
    pub passfile: Option<PathBuf>,
    /// `PGSSLMODE`
    pub sslmode: Option<String>,
    /// `PGSSLROOTCERT`
    pub sslrootcert: Option<String>,
}

impl Environment {
    /// Reads the environment of this process.
    #[must_use]
    pub fn from_env() -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = || Some(PathBuf::from(var("HOME")?).join(".pgpass"));
        Self {
            password: var("PGPASSWORD"),
            passfile: var("PGPASSFILE").map(PathBuf::from).or_else(home),
            sslmode: var("PGSSLMODE"),
            sslrootcert: var("PGSSLROOTCERT"),
        }
    }
}

impl DatabaseConfig {
    /// Parses a connection string; settings that it lacks come from `environment`.
    ///
    /// # Errors
    /// See [`DatabaseUrlError`].
    pub fn parse(
        url: &str,
        environment: &Environment,
        channel: &str,
        timeout: Duration,
    ) -> Result<Self, DatabaseUrlError> {
        let scheme = url_scheme(url);
        if scheme.is_some_and(|scheme| !["postgres", "postgresql"].contains(&scheme)) {
            return Err(DatabaseUrlError::Syntax("is a URL whose scheme is not postgres".into()));
        }
        let Split { rest, sslmode, sslrootcert } = if scheme.is_some() { split_url(url) } else { split_pairs(url) };
        let mut driver = parse_driver(&rest)?;
        let sslmode = sslmode.or_else(|| environment.sslmode.clone());
        let mode = sslmode.map_or(Ok(Mode::Prefer), |mode| mode.parse())?;
        let root = sslrootcert.or_else(|| environment.sslrootcert.clone());
        let (tls, verifies_server) = tls::connector(mode, root.as_deref())?;
        // Like libpq, never use TLS on a unix socket.
        let tcp = driver.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)));
        let network = tcp || !driver.get_hostaddrs().is_empty();
        driver.ssl_mode(match mode {
            _ if !network => SslMode::Disable,
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        let from_file = |driver: &Config| passfile::password(environment.passfile.as_ref()?, driver);
        if driver.get_password().is_none()
            && let Some(password) = environment.password.clone().or_else(|| from_file(&driver))
        {
            driver.password(password);
        }
        set_defaults(&mut driver, timeout);
        Ok(Self { driver, tls, verifies_server, channel: channel.into(), timeout })
    }

    /// The same database with its hosts tried in random order: otherwise a first host that accepts connections and
    /// never responds would be tried first every time.
    #[must_use]
    pub fn shuffled(&self) -> Self {
        let mut shuffled = self.clone();
        shuffled.driver.load_balance_hosts(LoadBalanceHosts::Random);
        shuffled
    }

    /// The addresses to try, as `host:port` or the path of the unix socket, for error messages.
    #[must_use]
    pub fn address(&self) -> String {
        let ports = self.driver.get_ports();
        let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let hosts = self.driver.get_hosts().iter().enumerate().map(|(index, host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port(index)),
            Host::Unix(directory) => format!("{}/.s.PGSQL.{}", directory.display(), port(index)),
        });
        hosts.collect::<Vec<_>>().join(", ")
    }

    /// Number of hosts to try.
    #[must_use]
    pub fn hosts(&self) -> u32 {
        u32::try_from(self.driver.get_hosts().len().max(1)).unwrap_or(u32::MAX)
    }
}

/// The scheme, if the connection string is a URL and not pairs.
fn url_scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let valid = |c: char| c.is_ascii_alphanumeric() || "+-.:".contains(c);
    (!scheme.is_empty() && scheme.chars().all(valid)).then_some(scheme)
}

fn parse_driver(text: &str) -> Result<Config, DatabaseUrlError> {
    let mut driver: Config = text.parse().map_err(|error: tokio_postgres::Error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        // These messages quote the connection string, and with a typo in it the quoted part can be the password.
        let quotes = cause.starts_with("unknown option") || cause.starts_with("unexpected character");
        DatabaseUrlError::Syntax(match cause.as_str() {
            _ if quotes => "has an unknown option or an unexpected character".into(),
            cause => format!("can't be parsed: {cause}"),
        })
    })?;
    // Addresses without names are their own names, as in libpq: for certificates, the password file and messages.
    if driver.get_hosts().is_empty() {
        for address in driver.get_hostaddrs().to_vec() {
            driver.host(address.to_string());
        }
    }
    if driver.get_hosts().is_empty() {
        return Err(DatabaseUrlError::Syntax("names no host".into()));
    }
    Ok(driver)
}

fn set_defaults(driver: &mut Config, timeout: Duration) {
    if driver.get_application_name().is_none() {
        driver.application_name(env!("CARGO_PKG_NAME"));
    }
    driver.keepalives_idle(driver.get_keepalives_idle().min(KEEPALIVE_IDLE));
    driver.keepalives_interval(driver.get_keepalives_interval().unwrap_or(KEEPALIVE_INTERVAL));
    driver.keepalives_retries(driver.get_keepalives_retries().unwrap_or(KEEPALIVE_PROBES));
    driver.tcp_user_timeout(driver.get_tcp_user_timeout().copied().unwrap_or(timeout));
    driver.connect_timeout(driver.get_connect_timeout().copied().unwrap_or(timeout));
}

/// A connection string without the settings that the driver does not know.
#[derive(Default)]
struct Split {
    rest: String,
    sslmode: Option<String>,
    sslrootcert: Option<String>,
}

impl Split {
    fn take(&mut self, key: &str, value: &str) -> bool {
        match key {
            "sslmode" => self.sslmode = Some(value.into()),
            "sslrootcert" => self.sslrootcert = Some(value.into()),
            _ => return false,
        }
        true
    }
}

fn split_url(text: &str) -> Split {
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    let mut split = Split { rest: base.into(), ..Split::default() };
    let mut separator = '?';
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_encoding::percent_decode_str(value).decode_utf8_lossy();
        if !split.take(key, &value) {
            split.rest.push(separator);
            split.rest.push_str(pair);
            separator = '&';
        }
    }
    split
}

/// Splits pairs in libpq's syntax: `key = 'value with \' and spaces'`.
fn split_pairs(text: &str) -> Split {
    let mut split = Split::default();
    let mut left = text.trim_start();
    while let Some((key, after)) = left.split_once('=') {
        let after = after.trim_start();
        let (value, length) = pair_value(after);
        if !split.take(key.trim(), &value) {
            split.rest.push_str(&format!("{}={} ", key.trim(), &after[..length]));
        }
        left = after[length..].trim_start();
    }
    // The rest is not a pair, which the driver reports.
    split.rest.push_str(left);
    split
}

/// The value at the start of `text`, and its length in bytes.
fn pair_value(text: &str) -> (String, usize) {
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
            '\'' if quoted => return (value, index + 1),
            c if !quoted && c.is_whitespace() => return (value, index),
            c => value.push(c),
        }
    }
    (value, text.len())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn parse(url: &str, environment: &Environment) -> Result<Config, String> {
        let config = DatabaseConfig::parse(url, environment, "model_catalog", Duration::from_secs(1));
        config.map(|config| config.driver).map_err(|error| error.to_string())
    }

    #[test]
    fn tls_settings_are_parsed_from_urls_and_from_pairs() {
        let none = Environment::default();
        for url in [
            "postgres://u:p@h1:1,h2:2/d?sslmode=require&target_session_attrs=read-write",
            "host=h1,h2 port=1,2 user = u password='p' sslmode='require' dbname=d target_session_attrs=read-write",
        ] {
            let config = parse(url, &none).expect(url);
            assert_eq!(config.get_ssl_mode(), SslMode::Require, "{url}");
            assert_eq!((config.get_hosts().len(), config.get_ports()), (2, &[1, 2][..]), "{url}");
            assert_eq!((config.get_dbname(), config.get_password()), (Some("d"), Some(&b"p"[..])), "{url}");
        }
        let quoted = parse(r"host=h password='it\'s \\ secret' sslmode=disable", &none).expect("quoted");
        assert_eq!(quoted.get_password(), Some(&br"it's \ secret"[..]));
        assert_eq!(parse("host=/tmp sslmode=require", &none).expect("socket").get_ssl_mode(), SslMode::Disable);
        for address in ["hostaddr=127.0.0.1,::1", "host=a,b hostaddr=127.0.0.1,::1", "host=/tmp hostaddr=127.0.0.1"] {
            let config = parse(&format!("{address} user=u sslmode=require"), &none).expect(address);
            assert_eq!(config.get_ssl_mode(), SslMode::Require, "{address}");
            assert_eq!(config.get_hosts().len(), config.get_hostaddrs().len(), "{address}");
        }
    }

    #[test]
    fn errors_suggest_a_fix_and_contain_no_secret() {
        let none = Environment::default();
        for (url, expected) in [
            ("postgres://u:secret@h/d?sslmode=maybe", "use disable, prefer, require"),
            ("postgres://u:secret@h/d?sslmode=verify-full", "need sslrootcert"),
            ("postgres://u:secret@h/d?sslmode=verify-ca&sslrootcert=%2Fno%2Fsuch", "sslrootcert /no/such"),
            ("postgres://u:secret@h:port/d", "can't be parsed"),
            ("password=secret host", "can't be parsed"),
        ] {
            let error = parse(url, &none).expect_err(url);
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn typos_never_leak_the_password_into_an_error() {
        let none = Environment::default();
        let mut errors = 0;
        for url in [
            "postgres://user:hunter2@host:5432/db?sslmode=prefer&connect_timeout=3",
            "postgres://host/db?user=u&password=hunter2&sslmode=prefer",
            "host=h port=5432 user=u password=hunter2 sslmode=prefer",
            "host=h password='hunter2' sslrootcert = '/no/such'",
        ] {
            let secret = url.find("hunter2").expect("every URL contains the password");
            for index in (0..=url.len()).filter(|index| !(secret + 1..secret + 7).contains(index)) {
                let (before, after) = url.split_at(index);
                let inserted = "@:/?&=%'\\ #[]x".chars().map(|c| format!("{before}{c}{after}"));
                let dropped = after.starts_with('h').then(|| url.to_owned());
                let dropped = dropped.unwrap_or_else(|| format!("{before}{}", after.get(1..).unwrap_or_default()));
                let halves = [before.to_owned(), after.to_owned(), dropped];
                for url in inserted.chain(halves) {
                    let Err(error) = parse(&url, &none) else { continue };
                    errors += 1;
                    assert!(!error.contains("hunter2"), "{url} gave {error}");
                }
            }
        }
        assert!(errors > 500, "only {errors} of them were errors");
    }

    #[test]
    fn passwords_are_found_where_libpq_finds_them() {
        let path = std::env::temp_dir().join(format!("passfile-{:x}", fastrand::u64(..)));
        std::fs::write(&path, "# comment\nh:5432:other:u:wrong\nh:*:d:u:colon\\:and\\\\slash\n*:*:*:*:last\n")
            .expect("file");
        let chmod = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let environment = Environment { passfile: Some(path.clone()), ..Environment::default() };
        let password = |url: &str, environment: &Environment| {
            let config = parse(url, environment).expect(url);
            config.get_password().map(|password| String::from_utf8_lossy(password).into_owned())
        };
        chmod(0o600);
        assert_eq!(password("postgres://u@h/d", &environment).as_deref(), Some("colon:and\\slash"));
        assert_eq!(password("postgres://x@h/d", &environment).as_deref(), Some("last"));
        assert_eq!(password("postgres://u:own@h/d", &environment).as_deref(), Some("own"));
        let variable = Environment { password: Some("variable".into()), ..environment.clone() };
        assert_eq!(password("postgres://u@h/d", &variable).as_deref(), Some("variable"));
        chmod(0o640);
        assert_eq!(password("postgres://u@h/d", &environment), None);
        std::fs::remove_file(path).expect("remove");
    }
}
