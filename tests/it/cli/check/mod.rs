//! `model-catalog check`: each finding is provoked once, and disappears after the statement that it prints.

mod database;
mod problems;
mod rows;
mod rules;
mod sources;

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::Db;

/// The result of a run of `check`.
#[derive(Debug)]
pub struct Checked {
    status: i32,
    pub findings: Vec<Value>,
    unfinished: Value,
}

/// Runs `check`; returns its exit status and output.
fn run(url: &str, arguments: &[&str], settings: &[(&str, &str)]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-catalog"));
    command.arg("check").args(arguments).env_clear().env("DATABASE_URL", url).envs(settings.iter().copied());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned() + &errors)
}

pub fn check_with(url: &str, settings: &[(&str, &str)]) -> Checked {
    let (status, printed) = run(url, &["--format", "json"], settings);
    let mut report: Value = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    let Value::Array(findings) = report["findings"].take() else { panic!("{printed}") };
    Checked { status, findings, unfinished: report["unfinished"].take() }
}

fn check(db: &Db) -> Checked {
    check_with(&db.url, &[])
}

impl Checked {
    /// The findings that are not "ok".
    pub fn bad(&self) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["level"] != "ok").collect()
    }

    /// The only bad finding.
    pub fn only(&self, level: &str, subject: &str, text: &str) -> &Value {
        let bad = self.bad();
        assert_eq!(bad.len(), 1, "{self:#?}");
        assert_eq!((bad[0]["level"].as_str(), bad[0]["subject"].as_str()), (Some(level), Some(subject)), "{self:#?}");
        assert!(bad[0]["text"].as_str().unwrap().contains(text), "no `{text}` in {self:#?}");
        assert_eq!(self.status, i32::from(level == "problem"), "{self:#?}");
        bad[0]
    }

    pub fn clean(&self) {
        assert_eq!((self.status, self.bad().len()), (0, 0), "{self:#?}");
    }
}

pub fn fix(finding: &Value) -> &str {
    finding["fix"].as_str().unwrap_or_else(|| panic!("no fix in {finding:#}"))
}

/// Runs the fix of each bad finding.
async fn apply_fixes(db: &Db, checked: &Checked) {
    for finding in checked.bad() {
        db.sql(fix(finding)).await;
    }
}

/// Breaks a healthy database, expects exactly one finding, and applies its fix, which must be SQL.
async fn break_and_fix(db: &Db, statements: &str, level: &str, subject: &str, text: &str) {
    db.sql(statements).await;
    let checked = check(db);
    checked.only(level, subject, text);
    apply_fixes(db, &checked).await;
    check(db).clean();
}

/// A view over `from`, in which `m` is the table with the model.
fn view(id: &str, dependencies: &str, from: &str) -> String {
    format!(
        "DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT {id} AS id, 'x'::text AS name, \
         'https://example.org/x'::text AS download_url, NULL::numeric AS file_size_gb, NULL::text AS hash, \
         false AS auth_required, NULL::text AS auth_provider, 'x/y'::text AS save_path, \
         {dependencies} AS dependencies, NULL::text AS description FROM {from};"
    )
}

const NONE: &str = "'[]'::jsonb";
