//! `model-catalog probe`: requests the beginning of every `download_url` and mirror as a machine would, and compares
//! size and hash of the file, as hubs and servers report them, with its row.
//!
//! Nothing is downloaded. No connection to the database is held during the requests, which may take minutes.

mod address;
mod compare;
mod fill;
mod hub;
mod metrics;

use std::time::Instant;

use reqwest::Url;
use serde_json::{Value, json};

use self::address::{Failure, File, Prober, Results, Row};
use self::compare::{Findings, Outcome};
use self::fill::{FillError, Filled, fill};
use super::check::report::{Level, Report};
use super::models_table::{ServedError, require_served};
use super::progress::Progress;
use super::{ReportResult, fetch_log, runtime, stdout};
use crate::base::error_chain::chain;
use crate::base::stderr::Stderr;
use crate::catalog::model::{RawModel, RowError};
use crate::cli::{DatabaseArgs, ProbeArgs, ReportFormat};
use crate::fetch::error::Problem;
use crate::fetch::event::Events;
use crate::fetch::http::Http;
use crate::fetch::tokens::Tokens;
use crate::postgres::config::DatabaseConfig;
use crate::postgres::error::{ConnectError, ReadError};
use crate::postgres::session::{self, Session};

/// Why a probe could not be completed. What the probe finds is not an error but a finding.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("cannot read")]
    Read(#[from] ReadError),
    #[error(transparent)]
    Served(#[from] ServedError),
    #[error("cannot set up TLS: {0}")]
    Http(Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Fill(#[from] FillError),
    #[error("cannot write the metrics file {}: {error}", .path.display())]
    Metrics { path: std::path::PathBuf, error: metrics::MetricsError },
}

/// Probed rows and their results, in the same order.
#[derive(Default)]
struct Probed {
    rows: Vec<Row>,
    results: Vec<Results>,
    outcomes: Vec<Outcome>,
    filled: Filled,
}

/// Runs the command and prints the report; returns the exit status.
///
/// # Errors
/// An invalid connection string, no runtime, or a [`StdoutError`](super::stdout::StdoutError).
pub(crate) fn run(database: &DatabaseArgs, args: &ProbeArgs, stderr: &Stderr) -> ReportResult {
    let database = database.config()?;
    let runtime = runtime().map_err(|error| format!("cannot start a runtime: {error}"))?;
    let (mut report, mut probed) = (Report::default(), Probed::default());
    let progress = Progress::new(stderr);
    if let Err(error) = runtime.block_on(probe(&database, args, progress, &mut report, &mut probed)) {
        report.unfinished = Some(chain(&error));
    }
    let text = if args.json { json(&report, &probed) } else { report.render(ReportFormat::Text) };
    stdout::print(&text)?;
    Ok(report.status(args.strict))
}

async fn probe(
    database: &DatabaseConfig,
    args: &ProbeArgs,
    progress: Progress,
    report: &mut Report,
    probed: &mut Probed,
) -> Result<(), ProbeError> {
    let started = Instant::now();
    let session = Session::open(database, || {}).await?;
    let reads_models = match require_served(session.client()).await {
        Ok(_) => true,
        Err(ServedError::OtherTables) if !args.fill => false,
        Err(error) => return Err(error.into()),
    };
    probed.rows = read(&session, args, report).await?;
    drop(session);
    let events = Events::new(|event| fetch_log::log(&event));
    let http = Http::new(Tokens::from_env(&events), events).map_err(ProbeError::Http)?;
    let attempts = args.attempts.get().try_into().unwrap_or(u32::MAX);
    let prober = Prober { http, per_host: args.per_host.get(), attempts };
    let Probed { rows, results, outcomes, filled } = probed;
    *results = prober.probe_all(rows, &progress).await;
    let tokens = prober.http.tokens();
    *outcomes = rows.iter().zip(&*results).map(|(row, results)| Outcome::of(tokens, row, results)).collect();
    let mut written = Ok(());
    if args.fill {
        let mut client = progress.during(session::connect(database)).await?;
        match fill(&mut client, rows, results, database.timeout).await {
            Ok(columns) => *filled = columns,
            Err(error) => written = Err(error.into()),
        }
    }
    drop(progress);
    let mut findings = Findings { report, tokens, reads_models };
    for (number, (row, results)) in rows.iter().zip(&*results).enumerate() {
        findings.add(row, results, filled.get(&number).map_or(&[], Vec::as_slice));
    }
    if let Some(path) = &args.metrics_file {
        let wrote = metrics::write(path, rows, results, outcomes, started.elapsed());
        wrote.map_err(|error| ProbeError::Metrics { path: path.clone(), error })?;
    }
    written
}

/// Reads the rows to probe, ordered by id. Rows that break a rule and ids without a row are findings.
async fn read(session: &Session, args: &ProbeArgs, report: &mut Report) -> Result<Vec<Row>, ReadError> {
    let rules = args.rules.rules();
    let (mut rows, mut found) = (Vec::new(), Vec::new());
    let mut json = Vec::new();
    let entries = session.entries_by_id().await?;
    let visit = |id: &str, row: Result<RawModel<'_>, RowError>| {
        if !args.ids.is_empty() && !args.ids.iter().any(|wanted| wanted == id) {
            return Ok(());
        }
        found.push(id.to_owned());
        json.clear();
        match row.and_then(|row| row.render(&rules, &mut json).map(|()| row)) {
            Ok(row) => rows.extend(to_probe(id, &row)),
            Err(error) => {
                let text = format!("not probed, because it breaks a rule: {error}");
                report.row(Level::Warning, "row", Some(id).filter(|id| !id.is_empty()), text);
            }
        }
        Ok::<_, ReadError>(())
    };
    entries.for_each(visit).await?;
    for id in args.ids.iter().filter(|id| !found.contains(id)) {
        let text = "model_catalog.entries has no row with this id".to_owned();
        report.row_with_fix(Level::Problem, "row", id, text, String::new());
    }
    Ok(rows)
}

/// What of a valid row is probed; `None` cannot occur, because the rules require absolute URLs.
fn to_probe(id: &str, row: &RawModel<'_>) -> Option<Row> {
    let url_text = row.download_url?.to_owned();
    let mirrors: Vec<String> = row.mirrors.and_then(|mirrors| serde_json::from_str(mirrors).ok()).unwrap_or_default();
    let urls = std::iter::once(&url_text).chain(&mirrors).map(|text| Url::parse(text).ok());
    Some(Row {
        id: id.to_owned(),
        urls: urls.collect::<Option<_>>()?,
        url_text,
        auth: row.auth_required.unwrap_or_default(),
        size: row.file_size_gb.map(str::to_owned),
        hash: row.hash.map(str::to_owned),
        save_path: row.save_path?.to_owned(),
    })
}

/// The report as one JSON object, with the results by model.
fn json(report: &Report, probed: &Probed) -> String {
    let address = |result: &Result<File, Failure>| {
        let (file, problem) = (result.as_ref().ok(), result.as_ref().err().map(|failure| &failure.problem));
        json!({
            "reason": problem.map(Problem::code),
            "detail": problem.map(Problem::text),
            "host": file.map(|file| &file.host),
            "bytes": file.and_then(|file| file.bytes),
            "sha256": file.and_then(|file| file.sha256.as_ref()),
        })
    };
    let model = |(number, (row, results)): (usize, (&Row, &Results))| {
        let mut model = results.first().map_or(json!({}), address);
        model["id"] = json!(row.id);
        model["outcome"] = json!(probed.outcomes.get(number).map(|outcome| outcome.name()));
        model["filled"] = json!(probed.filled.get(&number).map_or(&[][..], Vec::as_slice));
        model["mirrors"] = results.iter().skip(1).map(address).collect();
        model
    };
    let models: Vec<Value> = probed.rows.iter().zip(&probed.results).enumerate().map(model).collect();
    json!({"models": models, "findings": report.findings, "unfinished": report.unfinished}).to_string() + "\n"
}
