//! The unit, as systemd itself reads it.

use std::process::Command;

use super::{duration, longest_end, place, text};

const UNIT: &str = "deploy/systemd/model-catalog.service";

fn analyze(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("systemd-analyze: {error}; `make test-tools` installs it"));
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said.into_owned())
}

#[test]
fn systemd_verifies_the_unit_without_warnings() {
    // It looks whether the program is there, so it is shown ours; a directory, because the unit's name is its file's.
    let directory = std::env::temp_dir().join(format!("unit-{:x}", fastrand::u64(..)));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("model-catalog.service");
    let unit = text(UNIT).replace("/usr/local/bin/model-catalog", env!("CARGO_BIN_EXE_model-catalog"));
    std::fs::write(&path, unit).unwrap();
    let (sound, said) = analyze(&["verify", "--man=no", path.to_str().unwrap()]);
    // Complaints about other units of the machine are none of ours; a setting it does not know is only a warning.
    let ours: Vec<_> = said.lines().filter(|line| line.contains("model-catalog")).collect();
    assert!(sound && ours.is_empty(), "{said}");
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn sandbox_score_matches_the_document() {
    let unit = place(UNIT);
    let (_, said) = analyze(&["security", "--offline=true", "--no-pager", unit.to_str().unwrap()]);
    let score = said.split("model-catalog.service: ").nth(1).unwrap_or_else(|| panic!("{said}"));
    let score = score.split(' ').next().unwrap();
    let documented = text("docs/deployment.md");
    assert!(documented.contains(&format!("scores it {score} ")), "docs/deployment.md lacks the score {score}: {said}");
    assert!(score.parse::<f64>().unwrap() < 2.0, "{said}");
}

#[test]
fn stop_timeout_covers_the_drain() {
    let unit = text(UNIT);
    let setting =
        |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
    let stop = duration(&format!("{}s", setting("TimeoutStopSec").unwrap()));
    assert!(stop >= longest_end(|name| setting(&format!("Environment={name}"))), "{stop:?}");
}
