//! Where the database is and how to get in: `DATABASE_URL`, what libpq's own variables add, and the password file.
//!
//! The driver reads most of an address itself. What it does not know (`sslmode=verify-*`, `sslrootcert`) is taken
//! out first.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls::{self, Mode, TlsError};

/// A dead peer is noticed after about this much silence on the wire: idle time, then so many probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;

/// An address that can't be used; says why without repeating it, for it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It can't be read.
    #[error(
        "DATABASE_URL {0}; write postgres://user@host:5432/database, \
         or key=value pairs such as host=/run/postgresql dbname=models"
    )]
    Syntax(String),
    /// Its TLS settings can't be used.
    #[error("DATABASE_URL: {0}")]
    Tls(#[from] TlsError),
}

/// A database's address, ready to connect to.
#[derive(Clone)]
pub struct Address {
    /// For the driver.
    pub config: Config,
    /// For its TLS.
    pub tls: MakeRustlsConnect,
    /// Whether the server's certificate must be good.
    pub verifies: bool,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

/// The variables that libpq reads, as far as they are read here.
#[derive(Debug, Default, Clone)]
pub struct Surroundings {
    /// `PGPASSWORD`
    pub password: Option<String>,
    /// `PGPASSFILE`, or `.pgpass` in the home directory.
    pub passfile: Option<PathBuf>,
    /// `PGSSLMODE`
    pub sslmode: Option<String>,
    /// `PGSSLROOTCERT`
    pub sslrootcert: Option<String>,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
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

impl Address {
    /// Reads an address. `timeout` limits the connect to each host.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn parse(text: &str, surroundings: &Surroundings, timeout: Duration) -> Result<Self, AddressError> {
        let Split { rest, sslmode, sslrootcert } =
            if text.contains("://") { split_url(text) } else { split_pairs(text) };
        let mut config: Config = rest.parse().map_err(|error: tokio_postgres::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            // Here the driver quotes the address, and where that is misspelt the quotation holds the password.
            let quoted = cause.starts_with("unknown option") || cause.starts_with("unexpected character");
            AddressError::Syntax(match cause.as_str() {
                _ if quoted => "has an option that is not known or a character out of place".into(),
                cause => format!("can't be read: {cause}"),
            })
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(AddressError::Syntax("names no host".into()));
        }
        let sslmode = sslmode.or_else(|| surroundings.sslmode.clone());
        let mode = sslmode.map_or(Ok(Mode::Prefer), |mode| mode.parse())?;
        let root = sslrootcert.or_else(|| surroundings.sslrootcert.clone());
        let (tls, verifies) = tls::connector(mode, root.as_deref())?;
        // libpq, too, does without TLS on a unix socket, whatever the mode.
        let network = config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)));
        config.ssl_mode(match mode {
            _ if !network => SslMode::Disable,
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
        });
        if config.get_password().is_none()
            && let Some(password) = surroundings.password.clone().or_else(|| from_passfile(&config, surroundings))
        {
            config.password(password);
        }
        if config.get_application_name().is_none() {
            config.application_name(env!("CARGO_PKG_NAME"));
        }
        config.keepalives_idle(config.get_keepalives_idle().min(KEEPALIVE_IDLE));
        config.keepalives_interval(config.get_keepalives_interval().unwrap_or(KEEPALIVE_INTERVAL));
        config.keepalives_retries(config.get_keepalives_retries().unwrap_or(KEEPALIVE_PROBES));
        config.tcp_user_timeout(config.get_tcp_user_timeout().copied().unwrap_or(timeout));
        config.connect_timeout(config.get_connect_timeout().copied().unwrap_or(timeout));
        Ok(Self { config, tls, verifies })
    }

    /// The same, trying the hosts in any order: a host that takes connections and is silent must not be the first
    /// one for ever.
    #[must_use]
    pub fn shuffled(&self) -> Self {
        let mut shuffled = self.clone();
        shuffled.config.load_balance_hosts(LoadBalanceHosts::Random);
        shuffled
    }

    /// How many hosts there are to try.
    #[must_use]
    pub fn hosts(&self) -> u32 {
        u32::try_from(self.config.get_hosts().len().max(1)).unwrap_or(u32::MAX)
    }
}

/// An address without what the driver does not know.
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

/// `key = 'value with \' and spaces'`, as libpq writes it.
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
    // What is left is no pair: the driver says so.
    split.rest.push_str(left);
    split
}

/// The value that `text` begins with, and how many bytes of `text` it takes.
fn pair_value(text: &str) -> (String, usize) {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut escaped = false;
    for (place, c) in text.char_indices().skip(usize::from(quoted)) {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '\'' if quoted => return (value, place + 1),
            c if !quoted && c.is_whitespace() => return (value, place),
            c => value.push(c),
        }
    }
    (value, text.len())
}

/// The first line of the password file that fits. Like libpq, one that others may read is not read.
fn from_passfile(config: &Config, surroundings: &Surroundings) -> Option<String> {
    let path = surroundings.passfile.as_ref()?;
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the password file is not read, because others may read it: chmod 0600");
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        _ => "localhost".into(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let user = config.get_user().unwrap_or_default();
    let wanted = [host.as_str(), &port, config.get_dbname().unwrap_or(user), user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = passfile_fields(line);
        let fits =
            fields.len() == 5 && fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        fits.then(|| fields[4].clone())
    })
}

/// Five fields with colons between, `\` before a colon or backslash that is part of one.
fn passfile_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut escaped = false;
    for c in line.chars() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            ':' if !escaped && fields.len() < 5 => fields.push(String::new()),
            c => fields.last_mut().into_iter().for_each(|field| field.push(c)),
        }
        escaped = false;
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, surroundings: &Surroundings) -> Result<Config, String> {
        let address = Address::parse(text, surroundings, Duration::from_secs(1));
        address.map(|address| address.config).map_err(|error| error.to_string())
    }

    #[test]
    fn tls_settings_are_taken_out_of_both_forms() {
        let none = Surroundings::default();
        for text in [
            "postgres://u:p@h1:1,h2:2/d?sslmode=require&target_session_attrs=read-write",
            "host=h1,h2 port=1,2 user = u password='p' sslmode='require' dbname=d target_session_attrs=read-write",
        ] {
            let config = parse(text, &none).expect(text);
            assert_eq!(config.get_ssl_mode(), SslMode::Require, "{text}");
            assert_eq!((config.get_hosts().len(), config.get_ports()), (2, &[1, 2][..]), "{text}");
            assert_eq!((config.get_dbname(), config.get_password()), (Some("d"), Some(&b"p"[..])), "{text}");
        }
        let quoted = parse(r"host=h password='it\'s \\ secret' sslmode=disable", &none).expect("quoted");
        assert_eq!(quoted.get_password(), Some(&br"it's \ secret"[..]));
        assert_eq!(parse("host=/tmp sslmode=require", &none).expect("socket").get_ssl_mode(), SslMode::Disable);
    }

    #[test]
    fn errors_say_what_would_do_and_hold_no_secret() {
        let none = Surroundings::default();
        for (text, said) in [
            ("postgres://u:secret@h/d?sslmode=maybe", "use disable, prefer, require"),
            ("postgres://u:secret@h/d?sslmode=verify-full", "need sslrootcert"),
            ("postgres://u:secret@h/d?sslmode=verify-ca&sslrootcert=%2Fno%2Fsuch", "sslrootcert /no/such"),
            ("postgres://u:secret@h:port/d", "can't be read"),
            ("password=secret host", "can't be read"),
        ] {
            let error = parse(text, &none).expect_err(text);
            assert!(error.contains(said) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn no_slip_of_a_finger_brings_the_password_into_an_error() {
        let none = Surroundings::default();
        let mut errors = 0;
        for text in [
            "postgres://user:hunter2@host:5432/db?sslmode=prefer&connect_timeout=3",
            "postgres://host/db?user=u&password=hunter2&sslmode=prefer",
            "host=h port=5432 user=u password=hunter2 sslmode=prefer",
            "host=h password='hunter2' sslrootcert = '/no/such'",
        ] {
            let secret = text.find("hunter2").expect("it holds one");
            for place in (0..=text.len()).filter(|place| !(secret + 1..secret + 7).contains(place)) {
                let (before, after) = text.split_at(place);
                let inserted = "@:/?&=%'\\ #[]x".chars().map(|c| format!("{before}{c}{after}"));
                let dropped = after.starts_with('h').then(|| text.to_owned());
                let dropped = dropped.unwrap_or_else(|| format!("{before}{}", after.get(1..).unwrap_or_default()));
                let halves = [before.to_owned(), after.to_owned(), dropped];
                for text in inserted.chain(halves) {
                    let Err(error) = parse(&text, &none) else { continue };
                    errors += 1;
                    assert!(!error.contains("hunter2"), "{text} gave {error}");
                }
            }
        }
        assert!(errors > 500, "only {errors} of them were errors");
    }

    #[test]
    fn passwords_come_from_where_libpq_takes_them() {
        let path = std::env::temp_dir().join(format!("passfile-{:x}", fastrand::u64(..)));
        std::fs::write(&path, "# comment\nh:5432:other:u:wrong\nh:*:d:u:colon\\:and\\\\slash\n*:*:*:*:last\n")
            .expect("file");
        let allow = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let surroundings = Surroundings { passfile: Some(path.clone()), ..Surroundings::default() };
        let password = |text: &str, surroundings: &Surroundings| {
            let config = parse(text, surroundings).expect(text);
            config.get_password().map(|password| String::from_utf8_lossy(password).into_owned())
        };
        allow(0o600);
        assert_eq!(password("postgres://u@h/d", &surroundings).as_deref(), Some("colon:and\\slash"));
        assert_eq!(password("postgres://x@h/d", &surroundings).as_deref(), Some("last"));
        assert_eq!(password("postgres://u:own@h/d", &surroundings).as_deref(), Some("own"));
        let variable = Surroundings { password: Some("variable".into()), ..surroundings.clone() };
        assert_eq!(password("postgres://u@h/d", &variable).as_deref(), Some("variable"));
        allow(0o640);
        assert_eq!(password("postgres://u@h/d", &surroundings), None);
        std::fs::remove_file(path).expect("remove");
    }
}
