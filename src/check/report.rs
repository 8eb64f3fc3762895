//! What a check found, and how it is printed: as lines for people or as JSON for programs.
//!
//! Ids and names come from the database and may be hostile: nothing that could steer a terminal is printed as it is.

use std::fmt::Write;

use clap::ValueEnum;
use postgres_protocol::escape::escape_literal;
use serde::Serialize;

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: a line for each finding, and below it what mends it.
    Text,
    /// One JSON object.
    Json,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Served all the same, but odd or slower than it could be.
    Warning,
    /// Something is not served, or not in time.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at, in one word.
    pub subject: &'static str,
    /// The row it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What was found.
    pub text: String,
    /// What mends it: SQL that can be run as it stands, but for words in `<angle brackets>`, or a shell command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// What a check found, in the order in which it looked.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// All findings.
    pub findings: Vec<Finding>,
    /// Why it could not be finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<String>,
}

impl Report {
    /// All is well with `subject`.
    pub fn ok(&mut self, subject: &'static str, text: impl Into<String>) {
        self.push(Level::Ok, subject, None, text.into(), None);
    }

    /// Odd; `mend` may be empty.
    pub fn warning(&mut self, subject: &'static str, text: impl Into<String>, mend: impl Into<String>) {
        self.push(Level::Warning, subject, None, text.into(), Some(mend.into()));
    }

    /// Bad; `mend` may be empty.
    pub fn problem(&mut self, subject: &'static str, text: impl Into<String>, mend: impl Into<String>) {
        self.push(Level::Problem, subject, None, text.into(), Some(mend.into()));
    }

    /// Odd or bad, about one row.
    pub fn row(&mut self, level: Level, subject: &'static str, id: Option<&str>, text: String) {
        let mend = format!("SELECT * FROM model_catalog.entries WHERE {};", row_with(id));
        self.push(level, subject, id.map(str::to_owned), text, Some(mend));
    }

    fn push(&mut self, level: Level, subject: &'static str, id: Option<String>, text: String, mend: Option<String>) {
        let mend = mend.filter(|mend| !mend.is_empty());
        self.findings.push(Finding { level, subject, id, text, mend });
    }

    /// Findings of this level.
    #[must_use]
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }

    /// The exit status: 0 = nothing to mend, 1 = a problem (a warning too, where `strict`), 2 = could not be finished.
    #[must_use]
    pub fn status(&self, strict: bool) -> u8 {
        let limit = if strict { Level::Warning } else { Level::Problem };
        match self.unfinished {
            Some(_) => 2,
            None => u8::from(self.findings.iter().any(|finding| finding.level >= limit)),
        }
    }

    /// All of it, to be printed.
    #[must_use]
    pub fn print(&self, format: Format) -> String {
        match format {
            // Maps and numbers of other types are not in it, so it can always be written.
            Format::Json => serde_json::to_string(self).unwrap_or_default() + "\n",
            Format::Text => self.lines(),
        }
    }

    fn lines(&self) -> String {
        let mut lines = String::new();
        for Finding { level, subject, id, text, mend } in &self.findings {
            let level = match level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Problem => "PROBLEM",
            };
            let id = id.as_ref().map(|id| format!("{}: ", shown(id))).unwrap_or_default();
            let _ = writeln!(lines, "{level:<8} {subject:<13} {id}{}", visible(text));
            for line in mend.iter().flat_map(|mend| mend.lines()) {
                let _ = writeln!(lines, "    {}", visible(line));
            }
        }
        let (problems, warnings) = (self.count(Level::Problem), self.count(Level::Warning));
        let _ = match &self.unfinished {
            Some(why) => writeln!(lines, "\nnot finished: {}", visible(why)),
            None => writeln!(lines, "\nproblems: {problems}, warnings: {warnings}"),
        };
        lines
    }
}

/// Ids are shown and looked for up to here.
const SHOWN: usize = 100;

/// An id as it can be shown in a line.
#[must_use]
pub fn shown(id: &str) -> String {
    let short: String = id.chars().take(SHOWN).collect();
    let rest = if short.len() < id.len() { "…" } else { "" };
    format!("\"{}{rest}\"", visible(&short).replace('"', "\\\""))
}

fn row_with(id: Option<&str>) -> String {
    match id {
        None => "id IS NULL".into(),
        Some(id) => match id.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("starts_with(id, {})", literal(&id[..end])),
            None => format!("id = {}", literal(id)),
        },
    }
}

/// A text as an SQL literal of visible characters only.
#[must_use]
pub fn literal(text: &str) -> String {
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

/// Without what a terminal would obey or hide: control characters, and marks that turn or hide text.
fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        if is_visible(c) {
            visible.push(c);
        } else {
            visible.extend(c.escape_unicode());
        }
    }
    visible
}

fn is_visible(c: char) -> bool {
    let marks = ['\u{200b}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2060}'..='\u{206f}', '\u{feff}'..='\u{feff}'];
    !c.is_control() && c != '\u{ad}' && !marks.iter().any(|range| range.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_id_steers_no_terminal() {
        let mut report = Report::default();
        let id = "x'\u{1b}[2J\n\u{202e}\\";
        report.row(Level::Problem, "rows", Some(id), "bad\u{9b}2J".into());
        report.row(Level::Warning, "rows", None, "odd".into());
        report.row(Level::Warning, "rows", Some(&"ä".repeat(5000)), "long".into());
        let text = report.print(Format::Text);
        assert!(text.chars().all(|c| c == '\n' || is_visible(c)), "{text:?}");
        assert!(text.contains(r"WHERE id = E'x''\U0000001B[2J\U0000000A\U0000202E\\';"), "{text}");
        assert!(text.contains("WHERE id IS NULL;") && text.contains("starts_with(id, 'äää"), "{text}");
        assert!(text.len() < 2000, "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.print(Format::Json)).expect("JSON");
        assert_eq!(json["findings"][0]["id"], id);
    }

    #[test]
    fn the_status_follows_the_worst_finding() {
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
