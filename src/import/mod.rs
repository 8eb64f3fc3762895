//! `model-catalog import`: fills or updates `public.models` from a file. What is not in the file stays.
//!
//! An entry that is no row, or one that the servers would refuse, is listed and left out; the others are written in
//! one transaction.

mod comfyui;
mod file;
mod progress;
mod table;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::catalog::model::{RawModel, RowError, Rules};
use crate::postgres::session::{self, ConnectError, Database};
use file::{Entries, FileError, Kind};
use progress::Progress;
use table::{Difference, Order, TableError};

/// What to import, and how.
#[derive(Debug)]
pub struct Import {
    /// The file; `-` is the standard input.
    pub file: PathBuf,
    /// Only show what would be done.
    pub dry_run: bool,
    /// Write nothing if an entry is rejected.
    pub strict: bool,
    /// What the servers refuse.
    pub rules: Rules,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file can't be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what is needed.
    #[error("cannot import {}: {source}", .path.display())]
    File {
        /// As it was given.
        path: PathBuf,
        /// What is wrong with it.
        source: FileError,
    },
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The table could not be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// An entry was rejected, and that was to end it.
    #[error("{0} of the entries rejected, so nothing was written (--strict)")]
    Strict(usize),
}

/// A row as it is to be written: not yet checked, anything but `auth_required` may be missing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Row {
    id: Option<String>,
    name: Option<String>,
    download_url: Option<String>,
    /// A JSON number.
    file_size_gb: Option<String>,
    hash: Option<String>,
    auth_required: bool,
    auth_provider: Option<String>,
    save_path: Option<String>,
    /// A JSON array of strings.
    dependencies: Option<String>,
    description: Option<String>,
}

/// The default table has `numeric(10, 2)`.
const LARGEST_SIZE: f64 = 99_999_999.99;
/// An index of Postgres holds a little more.
const LONGEST_ID: usize = 2_000;

impl Row {
    /// The answer that servers would give; the rules are theirs, and what would make Postgres refuse all rows.
    fn render(&self, rules: &Rules) -> Result<Vec<u8>, String> {
        let mut json = Vec::new();
        let raw = RawModel {
            id: self.id.as_deref(),
            name: self.name.as_deref(),
            download_url: self.download_url.as_deref(),
            file_size_gb: self.file_size_gb.as_deref(),
            hash: self.hash.as_deref(),
            auth_required: Some(self.auth_required),
            auth_provider: self.auth_provider.as_deref(),
            save_path: self.save_path.as_deref(),
            dependencies: self.dependencies.as_deref(),
            description: self.description.as_deref(),
        };
        raw.render(rules, &mut json).map_err(|fault: RowError| fault.to_string())?;
        if self.file_size_gb.as_ref().is_some_and(|size| size.parse().is_ok_and(|size: f64| size > LARGEST_SIZE)) {
            return Err(format!("file_size_gb is over {LARGEST_SIZE}: the table holds no more"));
        }
        if self.id.as_ref().is_some_and(|id| id.len() > LONGEST_ID) {
            return Err(format!("id is longer than {LONGEST_ID} bytes: an index holds no more"));
        }
        Ok(json)
    }
}

/// An entry that is left out.
#[derive(Debug)]
struct Rejected {
    number: usize,
    reason: String,
}

/// What a file came to: rows that are fine, each of another id, and what is left out.
#[derive(Debug, Default)]
struct Checked {
    rows: Vec<Row>,
    rejected: Vec<Rejected>,
    /// Entries that say just the same as another one.
    repeated: usize,
}

/// Reads the file, writes the table, prints what was done. Gives the number of entries that were rejected.
///
/// # Errors
/// See [`ImportError`]; nothing was written then.
pub async fn run(import: &Import, database: &Database) -> Result<usize, ImportError> {
    let path = || import.file.clone();
    let text = read(&import.file).map_err(|source| ImportError::Read { path: path(), source })?;
    let entries = Entries::of(&text).map_err(|source| ImportError::File { path: path(), source })?;
    let progress = Progress::default();
    let Checked { rows, rejected, repeated } = check(&entries, &import.rules, &progress);
    if import.strict && !import.dry_run && !rejected.is_empty() {
        drop(progress);
        print(&list_rejected(&entries, &rejected));
        return Err(ImportError::Strict(rejected.len()));
    }
    let mut client = progress.during(session::connect(database)).await?;
    let keep = entries.kind == Kind::ComfyUi;
    let order = Order { dry_run: import.dry_run, keep, patience: database.timeout };
    let difference = table::merge(&mut client, &rows, order, &progress).await?;
    drop(progress);

    let mut report = if import.dry_run { list_difference(&difference) } else { String::new() };
    report.push_str(&list_rejected(&entries, &rejected));
    let (added, changed) = (difference.added.len(), difference.changed.len());
    let unchanged = rows.len() - added - changed;
    report.push_str(&format!("{added} added, {changed} changed, {unchanged} unchanged, {} rejected", rejected.len()));
    if repeated > 0 {
        report.push_str(&format!(", {repeated} repeated"));
    }
    report.push_str(if import.dry_run { " (dry run: nothing was written)\n" } else { "\n" });
    print(&report);
    if import.strict && !rejected.is_empty() {
        return Err(ImportError::Strict(rejected.len()));
    }
    Ok(rejected.len())
}

fn read(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(path)
}

/// Of several entries with one id, the one with the smallest answer is taken, as servers do with such rows: so it
/// does not matter in which order they stand.
fn check(entries: &Entries<'_>, rules: &Rules, progress: &Progress) -> Checked {
    progress.begin("checking", entries.len());
    let mut checked = Checked::default();
    let mut taken: HashMap<String, (usize, Row, Vec<u8>)> = HashMap::with_capacity(entries.len());
    for number in 0..entries.len() {
        progress.step();
        let row = entries.row(number).and_then(|row| row.render(rules).map(|json| (row, json)));
        let (row, json) = match row {
            Ok(row) => row,
            Err(reason) => {
                checked.rejected.push(Rejected { number, reason });
                continue;
            }
        };
        match taken.entry(row.id.clone().unwrap_or_default()) {
            Slot::Vacant(slot) => drop(slot.insert((number, row, json))),
            Slot::Occupied(slot) if slot.get().2 == json => checked.repeated += 1,
            Slot::Occupied(mut slot) => {
                let loser = if json < slot.get().2 { slot.insert((number, row, json)).0 } else { number };
                let (winner, id) = (entries.place(slot.get().0), slot.key());
                let reason = format!("{winner} has the same id {id:?} and other values: one of the two is taken");
                checked.rejected.push(Rejected { number: loser, reason });
            }
        }
    }
    let mut rows: Vec<_> = taken.into_values().collect();
    rows.sort_unstable_by_key(|(number, ..)| *number);
    checked.rows = rows.into_iter().map(|(_, row, _)| row).collect();
    checked.rejected.sort_by_key(|rejected| rejected.number);
    checked
}

fn list_difference(difference: &Difference) -> String {
    let added = difference.added.iter().map(|id| format!("added {}\n", printable(id)));
    let changed =
        difference.changed.iter().map(|(id, fields)| format!("changed {}: {}\n", printable(id), fields.join(", ")));
    added.chain(changed).collect()
}

fn list_rejected(entries: &Entries<'_>, rejected: &[Rejected]) -> String {
    let line = |Rejected { number, reason }: &Rejected| {
        let label = entries.label(*number).map(|label| format!(" {}", printable(&label)));
        format!("rejected {}{}: {}\n", entries.place(*number), label.unwrap_or_default(), printable(reason))
    };
    rejected.iter().map(line).collect()
}

/// What a file says may do nothing to a terminal but be shown.
fn printable(text: &str) -> String {
    const LONGEST: usize = 300;
    let shown = text.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect::<String>();
    if text.chars().nth(LONGEST).is_some() { shown + "…" } else { shown }
}

fn print(report: &str) {
    // It is done, whoever may have stopped reading.
    let _ = std::io::stdout().lock().write_all(report.as_bytes());
}
