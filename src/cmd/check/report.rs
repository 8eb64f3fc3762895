//! The findings of a check, printed as text for people or as JSON for programs.

use std::fmt::Write;

use postgres_protocol::escape::escape_literal;
use serde::Serialize;

use crate::cli::ReportFormat;
use crate::cmd::terminal::{escape, escape_truncated, is_visible};

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Nothing to fix.
    Ok,
    /// Served, but unusual or slower than necessary.
    Warning,
    /// Something is not served, or is served late.
    Problem,
}

/// The result of one check.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    /// The severity.
    pub(crate) level: Level,
    /// What was checked, in one word.
    pub(crate) subject: &'static str,
    /// The id of the row that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
    /// What was found.
    pub(crate) text: String,
    /// How to fix it: SQL that can be run once words in `<angle brackets>` are replaced, or a shell command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
}

/// The findings of a check, in the order of its steps.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// All findings.
    pub(crate) findings: Vec<Finding>,
    /// Why the check could not be completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unfinished: Option<String>,
}

impl Report {
    /// Adds a finding of level `Ok`.
    pub(crate) fn ok(&mut self, subject: &'static str, text: impl Into<String>) {
        self.push(Level::Ok, subject, None, text.into(), None);
    }

    /// Adds a warning; `fix` may be empty.
    pub(crate) fn warning(&mut self, subject: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.push(Level::Warning, subject, None, text.into(), Some(fix.into()));
    }

    /// Adds a problem; `fix` may be empty.
    pub(crate) fn problem(&mut self, subject: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.push(Level::Problem, subject, None, text.into(), Some(fix.into()));
    }

    /// Adds a finding about one row.
    pub(crate) fn row(&mut self, level: Level, subject: &'static str, id: Option<&str>, text: String) {
        let fix = format!("SELECT * FROM model_catalog.entries WHERE {};", row_condition(id));
        self.push(level, subject, id.map(str::to_owned), text, Some(fix));
    }

    /// Adds a finding about one row with a fix of its own, which may be empty.
    pub(crate) fn row_with_fix(&mut self, level: Level, subject: &'static str, id: &str, text: String, fix: String) {
        self.push(level, subject, Some(id.to_owned()), text, Some(fix));
    }

    fn push(&mut self, level: Level, subject: &'static str, id: Option<String>, text: String, fix: Option<String>) {
        let fix = fix.filter(|fix| !fix.is_empty());
        self.findings.push(Finding { level, subject, id, text, fix });
    }

    /// Number of findings of this level.
    pub(crate) fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// The exit status: 0 if there is nothing to fix, 1 if there is a problem (or, with `strict`, a warning), 2 if the
    /// check could not be completed.
    pub(crate) fn status(&self, strict: bool) -> u8 {
        let limit = if strict { Level::Warning } else { Level::Problem };
        match self.unfinished {
            Some(_) => 2,
            None => u8::from(self.findings.iter().any(|finding| finding.level >= limit)),
        }
    }

    /// The report as text to print. Ids and texts may be hostile, so they are escaped.
    pub(crate) fn render(&self, format: ReportFormat) -> String {
        match format {
            // Serialization fails only for maps with other keys than strings, of which there are none.
            ReportFormat::Json => serde_json::to_string(self).unwrap_or_default() + "\n",
            ReportFormat::Text => self.lines(),
        }
    }

    fn lines(&self) -> String {
        let mut lines = String::new();
        for Finding { level, subject, id, text, fix } in &self.findings {
            let level = match level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Problem => "PROBLEM",
            };
            let id = id.as_ref().map(|id| format!("{}: ", quoted(id))).unwrap_or_default();
            let _ = writeln!(lines, "{level:<8} {subject:<13} {id}{}", escape(text));
            for line in fix.iter().flat_map(|fix| fix.lines()) {
                let _ = writeln!(lines, "    {}", escape(line));
            }
        }
        let (problems, warnings) = (self.count(Level::Problem), self.count(Level::Warning));
        let _ = match &self.unfinished {
            Some(reason) => writeln!(lines, "\nnot completed: {}", escape(reason)),
            None => writeln!(lines, "\nproblems: {problems}, warnings: {warnings}"),
        };
        lines
    }
}

/// Maximum number of characters of an id that are shown, and searched for in a fix.
const MAX_ID_CHARS: usize = 100;

/// An id in quotes, escaped and truncated.
pub(crate) fn quoted(id: &str) -> String {
    format!("\"{}\"", escape_truncated(id, MAX_ID_CHARS).replace('"', "\\\""))
}

/// An SQL condition that selects the row.
fn row_condition(id: Option<&str>) -> String {
    match id {
        None => "id IS NULL".into(),
        Some(id) => match id.char_indices().nth(MAX_ID_CHARS) {
            Some((end, _)) => format!("starts_with(id, {})", literal(&id[..end])),
            None => format!("id = {}", literal(id)),
        },
    }
}

/// An SQL literal that consists only of visible characters.
pub(crate) fn literal(text: &str) -> String {
    if text.chars().all(is_visible) {
        return escape_literal(text).trim_start().to_owned();
    }
    let mut escaped = String::from("E'");
    for c in text.chars() {
        match c {
            '\'' => escaped.push_str("''"),
            '\\' => escaped.push_str("\\\\"),
            c if is_visible(c) => escaped.push(c),
            c => escaped.push_str(&format!("\\U{:08X}", u32::from(c))),
        }
    }
    escaped + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_ids_are_escaped_in_text_and_sql() {
        let mut report = Report::default();
        let id = "x'\u{1b}[2J\n\u{202e}\\";
        report.row(Level::Problem, "rows", Some(id), "bad\u{9b}2J".into());
        report.row(Level::Warning, "rows", None, "odd".into());
        report.row(Level::Warning, "rows", Some(&"ä".repeat(5000)), "long".into());
        let text = report.render(ReportFormat::Text);
        assert!(text.chars().all(|c| c == '\n' || is_visible(c)), "{text:?}");
        assert!(text.contains(r"WHERE id = E'x''\U0000001B[2J\U0000000A\U0000202E\\';"), "{text}");
        assert!(text.contains("WHERE id IS NULL;") && text.contains("starts_with(id, 'äää"), "{text}");
        assert!(text.len() < 2000, "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.render(ReportFormat::Json)).expect("JSON");
        assert_eq!(json["findings"][0]["id"], id);
    }

    #[test]
    fn status_is_that_of_the_worst_finding() {
        let mut report = Report::default();
        report.ok("role", "fine");
        assert_eq!((report.status(false), report.status(true)), (0, 0));
        report.warning("role", "odd", "");
        assert_eq!((report.status(false), report.status(true)), (0, 1));
        report.problem("role", "bad", "");
        assert_eq!((report.status(false), report.status(true)), (1, 1));
        report.unfinished = Some("gone".into());
        assert_eq!((report.status(false), report.status(true)), (2, 2));
    }
}
