//! What `deploy/` holds, each with the real thing it is for where a machine has it, and held against the program where not.

mod booted;
mod image;
mod manifests;
mod prometheus;
pub mod rolling;
mod systemd;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

/// A path inside the repository.
fn place(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of the repository.
fn text(path: &str) -> String {
    std::fs::read_to_string(place(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A file with one YAML document.
fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The array at a place, empty where there is none.
fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text at a place.
fn word<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {pointer} of {value:#}"))
}

/// A duration as this program takes it.
fn duration(text: &str) -> Duration {
    humantime::parse_duration(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn help(command: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_model-catalog")).args([command, "--help"]).output().unwrap();
    assert!(output.status.success(), "there is no command {command}");
    String::from_utf8(output.stdout).unwrap()
}

/// The default of a setting, as `--help` shows it.
fn default_of(variable: &str) -> String {
    let help = help("serve");
    let rest = help.split(&format!("[env: {variable}=")).nth(1).unwrap_or_else(|| panic!("no {variable} in {help}"));
    rest.split("[default: ").nth(1).unwrap().split(']').next().unwrap().to_owned()
}

/// Time from SIGTERM to the last write, with these settings on top of the defaults, and a few seconds for that write.
fn longest_end(setting: impl Fn(&str) -> Option<String>) -> Duration {
    let of = |variable: &str| duration(&setting(variable).unwrap_or_else(|| default_of(variable)));
    of("CATALOG_DRAIN_GRACE") + of("CATALOG_DRAIN_TIMEOUT") + Duration::from_secs(10)
}

/// A port that was free a moment ago, for programs that can't say which they were given.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn settings_named_in_deploy_exist() {
    let help = ["serve", "migrate", "health"].map(help).concat();
    let mut named = BTreeSet::new();
    // A machine's script has settings of its own, and tests of its own.
    let ours = |path: &PathBuf| !path.starts_with(place("deploy/machine"));
    for path in files(&place("deploy")).into_iter().filter(ours) {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in text.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
            if word == "DATABASE_URL" || word.starts_with("CATALOG_") {
                // A value that help hides, as that of DATABASE_URL, has no `=`.
                let known = ["=", "]"].iter().any(|end| help.contains(&format!("[env: {word}{end}")));
                assert!(known, "{}: {word} is no setting", path.display());
                named.insert(word.to_owned());
            }
        }
    }
    assert!(named.len() > 5, "{named:?}");
}
