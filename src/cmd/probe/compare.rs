//! Turns the results of the requests into findings, each with its fix.

use reqwest::Url;

use super::address::{Failure, File, Results, Row};
use super::hub::resolve_address;
use crate::catalog::hash::{FileHash, HashKind};
use crate::catalog::size::{gigabytes, matches};
use crate::catalog::url_rules::secret_parameter;
use crate::cmd::check::report::{Level, Report, literal};
use crate::fetch::model::is_plausible;
use crate::fetch::tokens::Tokens;

/// Writes what rows lack.
const FILL: &str = "model-catalog probe --fill";

/// Whether machines can download a file, as far as can be found out from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The beginning of the file came.
    Reachable,
    /// No machine can download it.
    Unreachable,
    /// This machine could not find out: it has no token, or was asked to wait too often.
    Unproven,
}

impl Outcome {
    /// Its name in JSON and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reachable => "reachable",
            Self::Unreachable => "unreachable",
            Self::Unproven => "unproven",
        }
    }

    /// The outcome of a row: a machine needs only one of its addresses.
    pub(crate) fn of(tokens: &Tokens, row: &Row, results: &Results) -> Self {
        let outcomes = || row.urls.iter().zip(results).map(|(url, result)| Self::of_address(tokens, row, url, result));
        [Self::Reachable, Self::Unproven]
            .into_iter()
            .find(|outcome| outcomes().any(|other| other == *outcome))
            .unwrap_or(Self::Unreachable)
    }

    /// The outcome of one address.
    fn of_address(tokens: &Tokens, row: &Row, url: &Url, result: &Result<File, Failure>) -> Self {
        match result {
            Ok(_) => Self::Reachable,
            Err(failure) => match failure.problem.code() {
                "rate_limited" => Self::Unproven,
                "unauthorized" if lacks_token(tokens, row, url) => Self::Unproven,
                _ => Self::Unreachable,
            },
        }
    }
}

/// Whether a token is needed that this machine does not have, and others may.
fn lacks_token(tokens: &Tokens, row: &Row, url: &Url) -> bool {
    row.auth && tokens.variable(url).is_some() && tokens.authorization(url).is_none()
}

fn describe(file: &File) -> String {
    let size = file.bytes.map_or("of unknown size".into(), |bytes| format!("{bytes} bytes"));
    let sha256 = file.sha256.as_ref().map_or(String::new(), |hash| format!(", sha256 {hash}"));
    format!("{size} at {}{sha256}", file.host)
}

/// Adds the findings about rows to a report.
pub(crate) struct Findings<'a> {
    /// The report.
    pub(crate) report: &'a mut Report,
    /// The tokens of this machine.
    pub(crate) tokens: &'a Tokens,
    /// Whether the view reads `public.models`, which the fixes change.
    pub(crate) reads_models: bool,
}

impl Findings<'_> {
    /// Adds the findings about one row; `filled` names the columns that were written.
    pub(crate) fn add(&mut self, row: &Row, results: &Results, filled: &[&str]) {
        let mut addresses = row.urls.iter().zip(results);
        let Some((url, result)) = addresses.next() else { return };
        match result {
            Ok(file) => {
                self.ok("address", row, describe(file));
                if !filled.is_empty() {
                    self.ok("filled", row, filled.join(", "));
                }
                if let Some(bytes) = file.bytes {
                    self.add_size(row, bytes, filled);
                }
                if let Some(sha256) = &file.sha256 {
                    self.add_hash(row, sha256, filled.contains(&"hash"));
                }
            }
            Err(failure) => self.add_failure(row, url, failure, Outcome::of(self.tokens, row, results)),
        }
        let bytes = result.as_ref().ok().and_then(|file| file.bytes);
        for (index, (_, mirror)) in addresses.enumerate() {
            self.add_mirror(row, index, mirror, bytes);
        }
    }

    /// A failed `download_url`; `outcome` is that of all addresses.
    fn add_failure(&mut self, row: &Row, url: &Url, failure: &Failure, outcome: Outcome) {
        let level = if outcome == Outcome::Unreachable { Level::Problem } else { Level::Warning };
        let mut text = failure.problem.text();
        let mut fix = None;
        if let Some(file) = resolve_address(self.tokens, url) {
            text = format!("it is the address of the page about a file, not of the file: {text}");
            // An address with a secret is not printed.
            fix = (secret_parameter(file.as_str()).is_none())
                .then(|| format!("download_url = {}", literal(file.as_str())));
        } else if failure.no_repository {
            text.push_str("; the hub has no such repository, or it is private");
        } else if failure.problem.code() == "unauthorized" && !row.auth && self.tokens.variable(url).is_some() {
            fix = Some("auth_required = true".into());
        }
        if outcome == Outcome::Reachable {
            text.push_str("; machines download from a mirror");
        }
        self.row(level, "address", row, text, fix);
    }

    /// A mirror; `bytes` is the size of the file at `download_url`. Machines try the next address if a mirror fails, so
    /// this is never a problem.
    fn add_mirror(&mut self, row: &Row, index: usize, result: &Result<File, Failure>, bytes: Option<u64>) {
        let file = match result {
            Ok(file) => file,
            Err(failure) => {
                let text = format!("mirrors[{index}]: {}", failure.problem.text());
                return self.row(Level::Warning, "mirror", row, text, None);
            }
        };
        let hash = row.hash.as_deref().and_then(FileHash::parse).filter(|hash| hash.kind == HashKind::Sha256);
        let other_hash = hash.zip(file.sha256.as_ref()).is_some_and(|(hash, sha256)| hash.digits != *sha256);
        let other_size = bytes.zip(file.bytes).filter(|(bytes, mirror)| bytes != mirror);
        let difference = if other_hash {
            Some("its hash is not that of the row, so machines refuse it".into())
        } else {
            other_size.map(|(bytes, mirror)| format!("it has {mirror} bytes, that of download_url {bytes}"))
        };
        match difference {
            Some(difference) => {
                let text = format!("mirrors[{index}] is another file: {difference}");
                self.row(Level::Warning, "mirror", row, text, None);
            }
            None => self.ok("mirror", row, format!("mirrors[{index}]: {}", describe(file))),
        }
    }

    fn add_size(&mut self, row: &Row, bytes: u64, filled: &[&str]) {
        let exact = gigabytes(bytes.into());
        match &row.size {
            None if filled.contains(&"file_size_gb") => {}
            None => {
                self.fillable("size", row, format!("file_size_gb is NULL, the file has {bytes} bytes ({exact} GB)"))
            }
            Some(size) if matches(size, bytes) => {}
            Some(size) => {
                // `pull` refuses a file whose size alone could show that it is another one.
                let has_hash = row.hash.as_deref().is_some_and(|hash| FileHash::parse(hash).is_some());
                let hashed = has_hash || filled.contains(&"hash");
                let refused = !hashed && size.parse().is_ok_and(|size| !is_plausible(size, bytes));
                let level = if refused { Level::Problem } else { Level::Warning };
                let result = if refused { ", so machines refuse it" } else { "" };
                let text = format!("file_size_gb is {size}, the file has {bytes} bytes ({exact} GB){result}");
                self.row(level, "size", row, text, Some(format!("file_size_gb = {exact}")));
            }
        }
    }

    fn add_hash(&mut self, row: &Row, sha256: &str, filled: bool) {
        match row.hash.as_deref().map(FileHash::parse) {
            None if filled => {}
            None => self.fillable("hash", row, "hash is NULL, so machines cannot verify the file".into()),
            Some(Some(hash)) if hash.kind == HashKind::Sha256 && hash.digits != sha256 => {
                let text = "hash is not that of the file, so machines refuse it: another file is at the address now";
                self.row(Level::Problem, "hash", row, text.into(), Some(format!("hash = {}", literal(sha256))));
            }
            // Another kind cannot be compared; `check` warns of unknown ones.
            Some(_) => {}
        }
    }

    fn ok(&mut self, subject: &'static str, row: &Row, text: String) {
        self.report.row_with_fix(Level::Ok, subject, &row.id, text, String::new());
    }

    /// A warning about a value that `--fill` would write.
    fn fillable(&mut self, subject: &'static str, row: &Row, text: String) {
        let fix = if self.reads_models { FILL.into() } else { String::new() };
        self.report.row_with_fix(Level::Warning, subject, &row.id, text, fix);
    }

    /// A finding that an assignment to a column fixes.
    fn row(&mut self, level: Level, subject: &'static str, row: &Row, text: String, assignment: Option<String>) {
        match assignment.filter(|_| self.reads_models) {
            Some(assignment) => {
                let fix = format!("UPDATE public.models SET {assignment} WHERE id = {};", literal(&row.id));
                self.report.row_with_fix(level, subject, &row.id, text, fix);
            }
            None => self.report.row(level, subject, Some(&row.id), text),
        }
    }
}
