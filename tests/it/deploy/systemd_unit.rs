//! The systemd unit, checked by systemd-analyze.

use std::process::Command;

use super::{duration, max_shutdown_time, repository_path, text};
use crate::support::TempFolder;

const UNIT: &str = "deploy/systemd/model-catalog.service";

pub fn analyze(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("systemd-analyze: {error}; `make test-tools` installs it"));
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), printed.into_owned())
}

#[test]
fn systemd_verifies_the_unit_without_warnings() {
    // systemd-analyze requires the program to exist, and takes the name of the unit from the file.
    let directory = TempFolder::new("unit");
    let path = directory.join("model-catalog.service");
    let unit = text(UNIT).replace("/usr/local/bin/model-catalog", env!("CARGO_BIN_EXE_model-catalog"));
    std::fs::write(&path, unit).unwrap();
    let (valid, printed) = analyze(&["verify", "--man=no", path.to_str().unwrap()]);
    // An unknown setting is only a warning, so the output is searched. It may also report other units of this machine.
    let warnings: Vec<_> = printed.lines().filter(|line| line.contains("model-catalog")).collect();
    assert!(valid && warnings.is_empty(), "{printed}");
}

#[test]
fn sandbox_score_matches_the_document() {
    let unit = repository_path(UNIT);
    let (_, printed) = analyze(&["security", "--offline=true", "--no-pager", unit.to_str().unwrap()]);
    let score = printed.split("model-catalog.service: ").nth(1).unwrap_or_else(|| panic!("{printed}"));
    let score = score.split(' ').next().unwrap();
    let documented = text("docs/deployment.md");
    assert!(
        documented.contains(&format!("scores it {score} ")),
        "docs/deployment.md lacks the score {score}: {printed}"
    );
    assert!(score.parse::<f64>().unwrap() < 2.0, "{printed}");
}

#[test]
fn stop_timeout_covers_the_drain() {
    let unit = text(UNIT);
    let setting =
        |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
    let stop = duration(&format!("{}s", setting("TimeoutStopSec").unwrap()));
    assert!(stop >= max_shutdown_time(|name| setting(&format!("Environment={name}"))), "{stop:?}");
}
