//! The settings of `pull`, and their validation.
//!
//! An invalid number is a warning, and the default is used: a typo must not keep a machine from booting.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use reqwest::Url;
use tracing::warn;

use crate::cli::{PullArgs, Verify};
use crate::fetch::Settings;

/// Maximum number of files at a time, and of connections per file.
const MAX_CONCURRENT: u32 = 64;

/// Descriptors of everything that is not a download, such as the requests while planning.
const RESERVED_FDS: u64 = 100;
/// Descriptors of a download beside its connections.
const FDS_PER_FILE: usize = 4;

/// Validated settings.
#[derive(Debug)]
pub(crate) struct PullSettings {
    /// Base URLs of the catalog, in the order in which they are tried.
    pub(crate) catalogs: Vec<Url>,
    /// Models folder.
    pub(crate) dir: PathBuf,
    /// File for the progress as JSON.
    pub(crate) status_file: Option<PathBuf>,
    /// File for the metrics.
    pub(crate) metrics_file: Option<PathBuf>,
    /// Those of the downloads.
    pub(crate) fetch: Settings,
}

/// A required setting is missing or invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// No usable catalog URL.
    #[error("CATALOG_URL (--catalog-url) must be an http or https URL such as http://catalog:3000")]
    Catalog,
    /// No models folder.
    #[error("MODELS_DIR (--dir) must name the models folder, such as /workspace/ComfyUI/models")]
    Folder,
}

impl PullArgs {
    /// The needed ids, trimmed and without duplicates. A JSON array of strings is accepted as well.
    pub(crate) fn ids(&self) -> Vec<String> {
        let array: Option<Vec<String>> = serde_json::from_str(&self.needed).ok();
        // No id has a control character, such as a line feed.
        let separated = || self.needed.split(|c: char| c == ',' || c.is_control()).map(str::to_owned).collect();
        let mut known = HashSet::new();
        let ids = array.unwrap_or_else(separated).into_iter().map(|id| id.trim().to_owned());
        ids.filter(|id| !id.is_empty() && known.insert(id.clone())).collect()
    }

    /// Validates the settings. Invalid numbers are logged and replaced by their defaults.
    ///
    /// # Errors
    /// No catalog or no models folder.
    pub(crate) fn check(&self) -> Result<PullSettings, SettingsError> {
        let catalogs = self.catalog_url.split(',').map(str::trim).filter(|text| !text.is_empty());
        let catalogs = catalogs.map(http_url).collect::<Option<Vec<_>>>().filter(|all| !all.is_empty());
        // An empty variable counts as unset.
        let path = |path: &Option<OsString>| path.clone().filter(|path| !path.is_empty()).map(PathBuf::from);
        let verify = |text: &str| Verify::from_str(text.trim(), true).ok();
        Ok(PullSettings {
            catalogs: catalogs.ok_or(SettingsError::Catalog)?,
            dir: path(&self.dir).ok_or(SettingsError::Folder)?,
            status_file: path(&self.status_file),
            metrics_file: path(&self.metrics_file),
            fetch: Settings {
                ids: self.ids(),
                caches: caches(&self.cache),
                wait: Duration::from_secs(number("MACHINE_MODELS_WAIT", &self.wait, 60).into()),
                tries: number("MACHINE_MODELS_TRIES", &self.tries, 3),
                parallel: capped("MACHINE_MODELS_PARALLEL", &self.parallel),
                connections: capped("MACHINE_MODELS_CONNECTIONS", &self.connections),
                links: self.links,
                verify_always: or_default(
                    "MACHINE_MODELS_VERIFY",
                    &self.verify,
                    "changed",
                    verify(&self.verify),
                    Verify::Changed,
                ) == Verify::Always,
                min_speed: or_default(
                    "MACHINE_MODELS_MIN_SPEED",
                    &self.min_speed,
                    "10K",
                    bytes(&self.min_speed),
                    10_000,
                ),
                stall: or_default(
                    "MACHINE_MODELS_STALL",
                    &self.stall,
                    "30s",
                    duration(&self.stall),
                    Duration::from_secs(30),
                ),
                prune: self.prune,
                keep_free: or_default("MACHINE_MODELS_KEEP_FREE", &self.keep_free, "0", bytes(&self.keep_free), 0),
                dry_run: self.dry_run,
            },
        })
    }
}

/// The valid URLs of a list. Others are logged: without caches, a machine boots as well. They may contain a password.
fn caches(text: &str) -> Vec<Url> {
    let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty()).enumerate();
    let urls = texts.filter_map(|(number, text)| {
        let url = http_url(text);
        if url.is_none() {
            let number = number + 1;
            warn!("URL {number} in MACHINE_MODELS_CACHE is ignored: it is not an http or https URL");
        }
        url
    });
    urls.collect()
}

fn http_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    (["http", "https"].contains(&url.scheme()) && url.has_host()).then_some(url)
}

/// `value`, or `default` with a warning.
fn or_default<T>(name: &str, text: &str, default_text: impl Display, value: Option<T>, default: T) -> T {
    value.unwrap_or_else(|| {
        warn!("{name} is {text:?}, which is invalid: using {default_text}");
        default
    })
}

fn number(name: &str, text: &str, default: u32) -> u32 {
    let text = text.trim();
    // An empty variable counts as unset.
    let value = if text.is_empty() { Some(default) } else { text.parse().ok().filter(|number| *number > 0) };
    or_default(name, text, default, value, default)
}

impl PullSettings {
    /// Reduces connections and files at a time to what `allowed` descriptors suffice for.
    pub(crate) fn fit(&mut self, allowed: u64) {
        let left = usize::try_from(allowed.saturating_sub(RESERVED_FDS)).unwrap_or(usize::MAX);
        let parallel = self.fetch.parallel.min(left / (FDS_PER_FILE + 1)).max(1);
        let connections = self.fetch.connections.min((left / parallel).saturating_sub(FDS_PER_FILE)).max(1);
        if (parallel, connections) != (self.fetch.parallel, self.fetch.connections) {
            warn!(parallel, connections, allowed, "fewer connections than configured: raise `ulimit -n`");
            (self.fetch.parallel, self.fetch.connections) = (parallel, connections);
        }
    }
}

/// A number of connections or files at a time. More than the limit only costs memory and file descriptors.
fn capped(name: &str, text: &str) -> usize {
    let number = number(name, text, 4);
    if number > MAX_CONCURRENT {
        warn!("{name} is {number}: using {MAX_CONCURRENT}, the maximum");
    }
    number.min(MAX_CONCURRENT) as usize
}

fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text.trim()).ok().filter(|duration| !duration.is_zero())
}

/// Parses a number of bytes with an optional unit: K, M, G and T are powers of 1000, Ki, Mi, Gi and Ti of 1024.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_uppercase();
    let unit = unit.strip_suffix('B').unwrap_or(&unit);
    let (unit, base) = unit.strip_suffix('I').map_or((unit, 1000u64), |unit| (unit, 1024));
    let power = ["", "K", "M", "G", "T"].iter().position(|known| *known == unit)?;
    number.parse::<u64>().ok()?.checked_mul(base.pow(power.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_have_decimal_and_binary_units() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1500", Some(1500)),
            ("10K", Some(10_000)),
            ("10 KiB", Some(10_240)),
            ("20G", Some(20_000_000_000)),
            ("20gb", Some(20_000_000_000)),
            ("1Ti", Some(1 << 40)),
            ("", None),
            ("G", None),
            ("1.5G", None),
            ("10X", None),
            ("-1", None),
            ("99999999999T", None),
        ] {
            assert_eq!(bytes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn ids_are_separated_by_commas_and_control_characters() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            pull: PullArgs,
        }
        for (text, expected) in [
            ("", &[][..]),
            (" , ,\n", &[]),
            ("a", &["a"]),
            (" a,b ,a,\u{e4} b;c", &["a", "b", "\u{e4} b;c"]),
            ("a\tb\r\nc\u{85}d,,e", &["a", "b", "c", "d", "e"]),
            (r#"["a", "b,c ", "", "a"]"#, &["a", "b,c"]),
            ("[]", &[]),
            ("[a]", &["[a]"]),
        ] {
            let cli = <Cli as clap::Parser>::parse_from(["pull", "--needed", text]);
            assert_eq!(cli.pull.ids(), expected, "{text:?}");
        }
    }

    #[test]
    fn invalid_number_gives_the_default() {
        for (text, expected) in [("5", 5), (" 7 ", 7), ("", 3), ("0", 3), ("four", 3), ("-1", 3)] {
            assert_eq!(number("MACHINE_MODELS_TRIES", text, 3), expected, "{text:?}");
        }
    }
}
