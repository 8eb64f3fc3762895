//! The files of `deploy/`, run with the real tools where this machine has them, and otherwise compared with the program.

mod cache;
mod image;
mod manifests;
mod prometheus;
pub mod rolling;
mod systemd_container;
mod systemd_unit;
mod upgrade;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

/// A path inside the repository.
fn repository_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of the repository.
fn text(path: &str) -> String {
    std::fs::read_to_string(repository_path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A file with one YAML document.
fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The array at a JSON pointer, or an empty one.
fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The string at a JSON pointer.
fn string_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no string at {pointer} in {value:#}"))
}

/// A duration in the syntax of the program's settings.
fn duration(text: &str) -> Duration {
    humantime::parse_duration(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn help(command: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_model-catalog")).args([command, "--help"]).output().unwrap();
    assert!(output.status.success(), "{command} --help failed");
    String::from_utf8(output.stdout).unwrap()
}

/// The default of a setting, as `--help` shows it.
fn default_of(variable: &str) -> String {
    let help = help("serve");
    let rest = help.split(&format!("[env: {variable}=")).nth(1).unwrap_or_else(|| panic!("no {variable} in {help}"));
    rest.split("[default: ").nth(1).unwrap().split(']').next().unwrap().to_owned()
}

/// Maximum time from SIGTERM to exit with these settings and the defaults; ten seconds are for the last write of the
/// snapshot file.
fn max_shutdown_time(setting: impl Fn(&str) -> Option<String>) -> Duration {
    let of = |variable: &str| duration(&setting(variable).unwrap_or_else(|| default_of(variable)));
    of("CATALOG_DRAIN_GRACE") + of("CATALOG_DRAIN_TIMEOUT") + Duration::from_secs(10)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn settings_named_in_deploy_exist() {
    let help = ["serve", "migrate", "health"].map(help).concat();
    let mut named = BTreeSet::new();
    for path in files(&repository_path("deploy")) {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in text.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
            if word == "DATABASE_URL" || word.starts_with("CATALOG_") {
                // Help shows no `=` for DATABASE_URL, whose value it hides.
                let known = ["=", "]"].iter().any(|end| help.contains(&format!("[env: {word}{end}")));
                assert!(known, "{}: there is no setting {word}", path.display());
                named.insert(word.to_owned());
            }
        }
    }
    assert!(named.len() > 5, "{named:?}");
}
