//! `model-catalog import`: fills or updates `public.models` from a file. Rows that are not in the file stay.
//!
//! Entries that can't be converted to a row, or that servers would reject, are listed and omitted. The others are
//! written in one transaction.

mod comfyui;
mod input;
mod json;
mod row;
mod table;
mod workflow;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::io::Read;
use std::path::{Path, PathBuf};

use tracing::warn;

use self::input::{Entries, InputError, InputFormat, standard_json};
use self::row::ImportRow;
use self::table::{Difference, MergeOptions, TableError};
use super::progress::Progress;
use super::stdout::{self, StdoutError};
use super::terminal::escape_truncated;
use super::{CommandResult, require_all, runtime};
use crate::base::stderr::Stderr;
use crate::catalog::entry::is_preferred;
use crate::catalog::model::Rules;
use crate::cli::DatabaseArgs;
use crate::postgres::config::DatabaseConfig;
use crate::postgres::error::ConnectError;
use crate::postgres::session;

/// Ids, names and reasons are truncated to this many characters in the output.
const MAX_SHOWN: usize = 300;

/// The arguments of the command.
#[derive(Debug)]
pub(crate) struct Import {
    /// The file; `-` is standard input.
    pub(crate) file: PathBuf,
    /// Only show what would be written.
    pub(crate) dry_run: bool,
    /// Write nothing if an entry is rejected.
    pub(crate) strict: bool,
    /// The rules of the servers.
    pub(crate) rules: Rules,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    /// The file can't be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The path on the command line.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file has no known format.
    #[error("cannot import {}", .path.display())]
    Input {
        /// The path on the command line.
        path: PathBuf,
        /// What is wrong with it.
        source: InputError,
    },
    /// The database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The table could not be written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// An entry was rejected, and `strict` was set.
    #[error("rejected entries: {0}; nothing was written (--strict)")]
    Strict(usize),
    /// The result of a dry run could not be printed.
    #[error("cannot print the result of the dry run")]
    Stdout(#[from] StdoutError),
}

/// A rejected entry.
#[derive(Debug)]
struct RejectedEntry {
    number: usize,
    reason: String,
}

/// An accepted entry, so far the only one with its id.
struct AcceptedEntry {
    number: usize,
    row: ImportRow,
    /// The JSON that servers would serve.
    json: Vec<u8>,
}

/// The entries of a file after validation.
#[derive(Debug, Default)]
struct Validated {
    /// Valid rows with distinct ids.
    rows: Vec<ImportRow>,
    rejected: Vec<RejectedEntry>,
    /// Number of entries that are identical to an earlier one.
    repeated: usize,
}

/// Runs the command: reads the file, writes the table and prints what was done.
pub(crate) fn run(import: Import, database: &DatabaseArgs, stderr: &Stderr) -> CommandResult {
    let database = database.config()?;
    let progress = Progress::new(stderr);
    require_all(runtime()?.block_on(import_file(&import, &database, progress))?, "entries")
}

/// Returns the number of rejected entries.
async fn import_file(import: &Import, database: &DatabaseConfig, progress: Progress) -> Result<usize, ImportError> {
    let path = || import.file.clone();
    let text = read(&import.file).map_err(|source| ImportError::Read { path: path(), source })?;
    let text = standard_json(&text);
    let entries = Entries::parse(&text).map_err(|source| ImportError::Input { path: path(), source })?;
    let Validated { rows, rejected, repeated } = validate(&entries, &import.rules, &progress);
    if import.strict && !import.dry_run && !rejected.is_empty() {
        drop(progress);
        print(&list_rejected(&entries, &rejected), import)?;
        return Err(ImportError::Strict(rejected.len()));
    }
    let mut client = progress.during(session::connect(database)).await?;
    let options = MergeOptions {
        dry_run: import.dry_run,
        preserve_existing: entries.format != InputFormat::Api,
        lock_timeout: database.timeout,
    };
    let difference = table::merge(&mut client, &rows, options, &progress).await?;
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
    print(&report, import)?;
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

/// Validates all entries. Of several with one id, the one is accepted that servers would serve. In a workflow, one node
/// may have the hash of a file and another not.
fn validate(entries: &Entries<'_>, rules: &Rules, progress: &Progress) -> Validated {
    progress.begin("checking", entries.len());
    let mut validated = Validated::default();
    let mut accepted: HashMap<String, AcceptedEntry> = HashMap::with_capacity(entries.len());
    for number in 0..entries.len() {
        progress.step();
        let row = entries.row(number).and_then(|row| row.render(rules).map(|json| (row, json)));
        let (row, json) = match row {
            Ok(row) => row,
            Err(reason) => {
                validated.rejected.push(RejectedEntry { number, reason });
                continue;
            }
        };
        match accepted.entry(row.id.clone().unwrap_or_default()) {
            Slot::Vacant(slot) => drop(slot.insert(AcceptedEntry { number, row, json })),
            Slot::Occupied(slot) if slot.get().json == json => validated.repeated += 1,
            Slot::Occupied(mut slot)
                if entries.format == InputFormat::Workflow && row.differs_by_missing_hash(&slot.get().row) =>
            {
                validated.repeated += 1;
                if row.hash.is_some() {
                    slot.insert(AcceptedEntry { number, row, json });
                }
            }
            Slot::Occupied(mut slot) => {
                let mut rejected = AcceptedEntry { number, row, json };
                if is_preferred(&rejected.json, &slot.get().json) {
                    std::mem::swap(slot.get_mut(), &mut rejected);
                }
                let (other, id, number) = (entries.path(slot.get().number), slot.key(), rejected.number);
                let reason = format!("{other} has the same id {id:?} and other values, and only one is accepted");
                validated.rejected.push(RejectedEntry { number, reason });
            }
        }
    }
    let mut rows: Vec<_> = accepted.into_values().collect();
    rows.sort_unstable_by_key(|accepted| accepted.number);
    validated.rows = rows.into_iter().map(|accepted| accepted.row).collect();
    validated.rejected.sort_by_key(|rejected| rejected.number);
    validated
}

fn list_difference(difference: &Difference) -> String {
    let added = difference.added.iter().map(|id| format!("added {}\n", shown(id)));
    let changed =
        difference.changed.iter().map(|(id, fields)| format!("changed {}: {}\n", shown(id), fields.join(", ")));
    added.chain(changed).collect()
}

fn list_rejected(entries: &Entries<'_>, rejected: &[RejectedEntry]) -> String {
    let line = |RejectedEntry { number, reason }: &RejectedEntry| {
        let label = entries.label(*number).map(|label| format!(" {}", shown(&label)));
        format!("rejected {}{}: {}\n", entries.path(*number), label.unwrap_or_default(), shown(reason))
    };
    rejected.iter().map(line).collect()
}

fn shown(text: &str) -> String {
    escape_truncated(text, MAX_SHOWN)
}

/// Only a dry run fails if its report cannot be printed: otherwise the exit status says what was written to the table.
fn print(report: &str, import: &Import) -> Result<(), StdoutError> {
    match stdout::print(report) {
        Err(StdoutError::Write(error)) if !import.dry_run => warn!(%error, "cannot print what was imported"),
        Err(error) if import.dry_run => return Err(error),
        Ok(()) | Err(_) => {}
    }
    Ok(())
}
