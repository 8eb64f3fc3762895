//! The settings of `pull`, checked.
//!
//! A wrong number is a warning and its default is used: a typing error must not keep a machine from booting.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use tracing::warn;

use super::tokens::Tokens;
use crate::cli::{PullArgs, Verify};

/// Checked settings.
#[derive(Debug)]
pub struct Settings {
    /// Ids to ask the catalog for.
    pub ids: Vec<String>,
    /// Base URLs of the catalog, in the order in which they are asked.
    pub catalogs: Vec<Url>,
    /// Models folder.
    pub dir: PathBuf,
    /// Time to wait for the catalog.
    pub wait: Duration,
    /// Attempts without progress before a file is given up.
    pub tries: u32,
    /// Files at a time.
    pub parallel: usize,
    /// Connections per file.
    pub connections: usize,
    /// Whether folders may be links to elsewhere.
    pub links: bool,
    /// Which complete files are hashed.
    pub verify: Verify,
    /// Bytes per second below which a connection is stalled.
    pub min_speed: u64,
    /// Time over which the speed is measured.
    pub stall: Duration,
    /// Whether unneeded files are removed.
    pub prune: bool,
    /// Bytes that stay free.
    pub keep_free: u64,
    /// Where the progress is written as JSON.
    pub status_file: Option<PathBuf>,
    /// Where the metrics are written.
    pub metrics_file: Option<PathBuf>,
    /// Whether nothing is to be written.
    pub dry_run: bool,
}

/// A setting without which nothing can be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No usable catalog URL.
    #[error("CATALOG_URL (--catalog-url) must be an http or https URL such as http://catalog:3000")]
    Catalog,
    /// No models folder.
    #[error("MODELS_DIR (--dir) must name the models folder, such as /workspace/ComfyUI/models")]
    Folder,
}

impl PullArgs {
    /// The ids that are needed, each once and without the white space around it.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        for part in self.needed.split([',', '\n']) {
            let id: String = part.trim().chars().filter(|c| !c.is_control()).collect();
            if !id.is_empty() && !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    /// Checks the settings; wrong numbers are logged and replaced by their defaults.
    ///
    /// # Errors
    /// No catalog or no models folder.
    pub fn check(&self) -> Result<Settings, SettingsError> {
        let catalogs = self.catalog_url.split(',').map(str::trim).filter(|text| !text.is_empty());
        let catalogs = catalogs.map(catalog).collect::<Option<Vec<_>>>().filter(|all| !all.is_empty());
        // An empty variable is as good as none.
        let path = |path: &Option<OsString>| path.clone().filter(|path| !path.is_empty()).map(PathBuf::from);
        Ok(Settings {
            ids: self.ids(),
            catalogs: catalogs.ok_or(SettingsError::Catalog)?,
            dir: path(&self.dir).ok_or(SettingsError::Folder)?,
            wait: Duration::from_secs(number("MACHINE_MODELS_WAIT", &self.wait, 60).into()),
            tries: number("MACHINE_MODELS_TRIES", &self.tries, 3),
            parallel: number("MACHINE_MODELS_PARALLEL", &self.parallel, 4) as usize,
            connections: number("MACHINE_MODELS_CONNECTIONS", &self.connections, 4) as usize,
            links: self.links,
            verify: self.verify,
            min_speed: checked("MACHINE_MODELS_MIN_SPEED", &self.min_speed, "10K", bytes(&self.min_speed), 10_000),
            stall: checked("MACHINE_MODELS_STALL", &self.stall, "30s", duration(&self.stall), Duration::from_secs(30)),
            prune: self.prune,
            keep_free: checked("MACHINE_MODELS_KEEP_FREE", &self.keep_free, "0", bytes(&self.keep_free), 0),
            status_file: path(&self.status_file),
            metrics_file: path(&self.metrics_file),
            dry_run: self.dry_run,
        })
    }

    /// The tokens of this process's environment. They have no flags: command lines are public on a machine.
    #[must_use]
    pub fn tokens() -> Tokens {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        Tokens::new(&variable("HF_TOKEN"), &variable("CIVITAI_TOKEN"), &variable("HF_ENDPOINT"))
    }
}

fn catalog(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    (["http", "https"].contains(&url.scheme()) && url.has_host()).then_some(url)
}

/// `value`, or `default` and a warning.
fn checked<T>(name: &str, text: &str, default_text: impl Display, value: Option<T>, default: T) -> T {
    value.unwrap_or_else(|| {
        warn!("{name} is {text:?}, which is no usable value: using {default_text}");
        default
    })
}

fn number(name: &str, text: &str, default: u32) -> u32 {
    let text = text.trim();
    // An empty variable is as good as none.
    let value = if text.is_empty() { Some(default) } else { text.parse().ok().filter(|number| *number > 0) };
    checked(name, text, default, value, default)
}

fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text.trim()).ok().filter(|duration| !duration.is_zero())
}

/// A count of bytes with an optional unit: K, M, G and T are powers of 1000, with an `i` powers of 1024.
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
    fn invalid_number_gives_the_default() {
        for (text, expected) in [("5", 5), (" 7 ", 7), ("", 3), ("0", 3), ("four", 3), ("-1", 3)] {
            assert_eq!(number("MACHINE_MODELS_TRIES", text, 3), expected, "{text:?}");
        }
    }
}
