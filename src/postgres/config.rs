//! How to reach the database: settings of libpq, each supported, ignored where that is harmless, or refused by name.
//!
//! The driver interprets most of them. Those of TLS, the password file and the roles of servers are interpreted here,
//! because it does not know them or gives them another meaning.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::warn;

use super::connection_string::{ConnectionString, Setting, is_of_the_driver, refuse};
pub use super::connection_string::{DatabaseUrlError, Environment};
use super::passfile;
use super::tls::{self, Mode, TlsError, TlsFiles};
use crate::base::error_chain::chain;

/// TCP keepalive: a peer that is gone is noticed after the idle time and the probes, about 20 seconds.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;

/// The roles of servers that `target_session_attrs` can demand and the driver does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRole {
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// In recovery if a host is, otherwise any.
    PreferStandby,
}

/// A database, how to connect to it and how long to wait for it.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// The settings of the driver.
    pub driver: Config,
    /// The role that the server must have, which the driver does not know.
    pub role: Option<ServerRole>,
    /// TLS of the connections.
    pub tls: MakeRustlsConnect,
    /// Whether the server's certificate is verified.
    pub verifies_server: bool,
    /// The channel on which Postgres sends notifications of changes.
    pub channel: String,
    /// Maximum time without data from the database while connecting or running a statement.
    pub timeout: Duration,
    url: String,
    environment: Environment,
    /// The password file, if it is ignored because others may read it.
    ignored_passfile: Option<PathBuf>,
}

impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.driver.fmt(f)
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
        let config = Self::read(url, environment, channel, timeout)?;
        if let Some(path) = &config.ignored_passfile {
            warn!(path = %path.display(), "password file ignored because others may read it: run chmod 0600");
        }
        Ok(config)
    }

    /// Reads the files that the settings name again, as libpq does for each connection: passwords and certificates are
    /// replaced while the program runs.
    ///
    /// # Errors
    /// See [`DatabaseUrlError`].
    pub(crate) fn reread(&self) -> Result<Self, DatabaseUrlError> {
        Self::read(&self.url, &self.environment, &self.channel, self.timeout)
    }

    fn read(url: &str, environment: &Environment, channel: &str, timeout: Duration) -> Result<Self, DatabaseUrlError> {
        let settings = ConnectionString::collect(url, environment)?;
        for setting in &settings.all {
            refuse(setting)?;
        }
        let mut driver = parse_driver(&settings)?;
        let mode = tls_mode(&settings, environment)?;
        let files = tls_files(&settings, environment, mode);
        let (tls, verifies_server) = tls::connector(mode, &files).map_err(|error| of_tls(&settings, &error))?;
        // Like libpq, never use TLS on a unix socket.
        let tcp = driver.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)));
        let network = tcp || !driver.get_hostaddrs().is_empty();
        driver.ssl_mode(match mode {
            _ if !network => SslMode::Disable,
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        let passfile = settings.get("passfile").map(PathBuf::from);
        let passfile = passfile.or_else(|| Some(environment.home.as_ref()?.join(".pgpass")));
        let mut ignored_passfile = None;
        if driver.get_password().is_none()
            && let Some(path) = passfile
        {
            match passfile::password(&path, &driver) {
                Ok(Some(password)) => drop(driver.password(password)),
                Ok(None) => {}
                Err(passfile::ReadableByOthers) => ignored_passfile = Some(path),
            }
        }
        let role = server_role(&settings, &mut driver)?;
        set_timeouts(&settings, &mut driver, timeout)?;
        if driver.get_application_name().is_none() {
            driver.application_name(settings.get("fallback_application_name").unwrap_or(env!("CARGO_PKG_NAME")));
        }
        let (url, environment, channel) = (url.into(), environment.clone(), channel.into());
        Ok(Self { driver, role, tls, verifies_server, channel, timeout, url, environment, ignored_passfile })
    }

    /// The same database with its hosts tried in random order: otherwise a first host that accepts connections and
    /// never responds would be tried first every time.
    pub(crate) fn shuffled(&self) -> Self {
        let mut shuffled = self.clone();
        shuffled.driver.load_balance_hosts(LoadBalanceHosts::Random);
        shuffled
    }

    /// The addresses to try, as `host:port` or the path of the unix socket, for error messages.
    pub fn address(&self) -> String {
        let hosts = self.driver.get_hosts().iter().enumerate().map(|(index, host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port(&self.driver, index)),
            Host::Unix(directory) => format!("{}/.s.PGSQL.{}", directory.display(), port(&self.driver, index)),
        });
        hosts.collect::<Vec<_>>().join(", ")
    }

    /// Number of hosts to try.
    pub(crate) fn hosts(&self) -> u32 {
        u32::try_from(self.driver.get_hosts().len().max(1)).unwrap_or(u32::MAX)
    }
}

/// The port of a host.
pub(super) fn port(driver: &Config, index: usize) -> u16 {
    let ports = driver.get_ports();
    ports.get(index).or(ports.first()).copied().unwrap_or(5432)
}

fn parse_driver(settings: &ConnectionString) -> Result<Config, DatabaseUrlError> {
    let mut text = settings.url.clone();
    let is_url = !text.is_empty();
    let mut seen: Vec<&str> = Vec::new();
    for Setting { key, value, .. } in settings.all.iter().rev().filter(|setting| is_of_the_driver(&setting.key)) {
        if seen.contains(&&**key) {
            continue;
        }
        text += &if is_url {
            let separator = if seen.is_empty() { '?' } else { '&' };
            format!("{separator}{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))
        } else {
            format!("{key}='{}' ", value.replace('\\', r"\\").replace('\'', r"\'"))
        };
        seen.push(key);
    }
    let mut driver: Config = text.parse().map_err(|error: tokio_postgres::Error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        // These messages quote the connection string, and with a typo in it the quoted part can be the password.
        let quotes = cause.starts_with("unknown option") || cause.starts_with("unexpected character");
        let setting = cause.strip_prefix("invalid value for option `").and_then(|rest| rest.strip_suffix('`'));
        match setting.map(|key| settings.origin(key)) {
            _ if quotes => DatabaseUrlError::Syntax("has an unknown option or an unexpected character".into()),
            Some(origin) if origin != "DATABASE_URL" => invalid(origin, &cause),
            _ => DatabaseUrlError::Syntax(format!("can't be parsed: {cause}")),
        }
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

fn invalid(origin: &str, message: &str) -> DatabaseUrlError {
    DatabaseUrlError::Setting { origin: origin.into(), message: message.into() }
}

/// The mode of TLS. As in libpq, a root certificate makes `require` verify it, and `system` needs verify-full.
fn tls_mode(settings: &ConnectionString, environment: &Environment) -> Result<Mode, DatabaseUrlError> {
    let system = settings.get("sslrootcert") == Some("system");
    let default = if system { Mode::VerifyFull } else { Mode::Prefer };
    let mode = settings.get("sslmode").map_or(Ok(default), str::parse).map_err(|error| of_tls(settings, &error))?;
    let verifies = mode == Mode::Require && tls_files(settings, environment, mode).root.is_some();
    match mode {
        _ if system && mode != Mode::VerifyFull => Err(of_tls(settings, &TlsError::WeakMode)),
        _ if verifies => Ok(Mode::VerifyCa),
        mode => Ok(mode),
    }
}

/// The files of TLS: those that are set, and libpq's defaults.
fn tls_files(settings: &ConnectionString, environment: &Environment, mode: Mode) -> TlsFiles {
    let file = |key: &str, default: &str| {
        let set = settings.get(key).map(ToOwned::to_owned);
        set.or_else(|| environment.default_file(default)).filter(|_| mode != Mode::Disable)
    };
    let sends = settings.get("sslcertmode") != Some("disable");
    TlsFiles {
        root: file("sslrootcert", "root.crt"),
        crl: file("sslcrl", "root.crl"),
        certificate: file("sslcert", "postgresql.crt").filter(|_| sends),
        key: file("sslkey", "postgresql.key"),
        sni: settings.get("sslsni") != Some("0"),
        min_version: settings.get("ssl_min_protocol_version").map(ToOwned::to_owned),
        max_version: settings.get("ssl_max_protocol_version").map(ToOwned::to_owned),
    }
}

/// The error of TLS with the place where its setting was made.
fn of_tls(settings: &ConnectionString, error: &TlsError) -> DatabaseUrlError {
    invalid(settings.origin(error.setting()), &chain(error))
}

/// The role that the server must have. The driver knows the others of libpq's.
fn server_role(settings: &ConnectionString, driver: &mut Config) -> Result<Option<ServerRole>, DatabaseUrlError> {
    Ok(match settings.get("target_session_attrs") {
        None | Some("any") => None,
        Some("read-write") => {
            driver.target_session_attrs(TargetSessionAttrs::ReadWrite);
            None
        }
        Some("read-only") => {
            driver.target_session_attrs(TargetSessionAttrs::ReadOnly);
            None
        }
        Some("primary") => Some(ServerRole::Primary),
        Some("standby") => Some(ServerRole::Standby),
        Some("prefer-standby") => Some(ServerRole::PreferStandby),
        Some(_) => {
            let message = "target_session_attrs must be any, read-write, read-only, primary, standby or prefer-standby";
            return Err(invalid(settings.origin("target_session_attrs"), message));
        }
    })
}

fn set_timeouts(settings: &ConnectionString, driver: &mut Config, timeout: Duration) -> Result<(), DatabaseUrlError> {
    let number = |key: &str| {
        let number = settings.get(key).map(str::parse::<u32>).transpose();
        number.map_err(|_| invalid(settings.origin(key), &format!("{key} must be a whole number")))
    };
    // libpq's unit is the millisecond, the driver's the second.
    let user_timeout = number("tcp_user_timeout")?.filter(|milliseconds| *milliseconds > 0);
    driver.tcp_user_timeout(user_timeout.map_or(timeout, |number| Duration::from_millis(number.into())));
    driver.keepalives_idle(driver.get_keepalives_idle().min(KEEPALIVE_IDLE));
    driver.keepalives_interval(driver.get_keepalives_interval().unwrap_or(KEEPALIVE_INTERVAL));
    let probes = number("keepalives_count")?.or(driver.get_keepalives_retries());
    driver.keepalives_retries(probes.unwrap_or(KEEPALIVE_PROBES));
    driver.connect_timeout(driver.get_connect_timeout().copied().unwrap_or(timeout));
    Ok(())
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
        let with = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(variable, _)| *variable == name);
            Environment::new(|name| find(name).map(|(_, value)| (*value).to_owned()))
        };
        let file = path.display().to_string();
        let environment = with(&[("PGPASSFILE", &file)]);
        let password = |url: &str, environment: &Environment| {
            let config = parse(url, environment).expect(url);
            config.get_password().map(|password| String::from_utf8_lossy(password).into_owned())
        };
        chmod(0o600);
        assert_eq!(password("postgres://u@h/d", &environment).as_deref(), Some("colon:and\\slash"));
        assert_eq!(password("postgres://x@h/d", &environment).as_deref(), Some("last"));
        assert_eq!(password("postgres://u:own@h/d", &environment).as_deref(), Some("own"));
        let variable = with(&[("PGPASSFILE", &file), ("PGPASSWORD", "variable")]);
        let own = format!("host=h user=u dbname=d passfile={file}");
        assert_eq!(password(&own, &Environment::default()).as_deref(), Some("colon:and\\slash"));
        assert_eq!(password("postgres://u@h/d", &variable).as_deref(), Some("variable"));
        chmod(0o640);
        assert_eq!(password("postgres://u@h/d", &environment), None);
        std::fs::remove_file(path).expect("remove");
    }
}
