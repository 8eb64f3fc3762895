//! Checks of every row of the view by the servers' rules, and of what is unusual about rows that are served.
//!
//! It keeps the ids and the dependencies between them, about a hundred bytes per model, but not the rows.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use super::cycles::Graph;
use super::error::CheckError;
use super::recorded::{self, Recorded};
use super::report::{Level, Report, literal, quoted};
use crate::base::error_chain::chain;
use crate::catalog::hash::FileHash;
use crate::catalog::model::{RawModel, RowError, Rules};
use crate::catalog::url_rules::secret_parameter;
use crate::fetch::model::path_and_content;
use crate::postgres::error::ReadError;
use crate::postgres::session::Session;

/// Maximum number of models of a cycle that are listed.
const MAX_CYCLE_SHOWN: usize = 8;

/// Findings about rows: the first few, and the number of all.
struct LimitedFindings {
    level: Level,
    subject: &'static str,
    first: Vec<(Option<String>, String)>,
    count: usize,
    limit: usize,
}

impl LimitedFindings {
    fn new(level: Level, subject: &'static str, limit: usize) -> Self {
        Self { level, subject, first: Vec::new(), count: 0, limit }
    }

    fn add(&mut self, id: Option<&str>, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < self.limit {
            self.first.push((id.map(str::to_owned), text()));
        }
    }

    /// Moves the findings to `report`; `all` is a statement that lists every row, or empty.
    fn report(self, report: &mut Report, all: &str) {
        let more = self.count - self.first.len();
        for (id, text) in self.first {
            report.row(self.level, self.subject, id.as_deref(), text);
        }
        let text = format!("and {more} more; raise --limit to list them");
        match self.level {
            _ if more == 0 => {}
            Level::Problem => report.problem(self.subject, text, all),
            _ => report.warning(self.subject, text, all),
        }
    }
}

/// What is known of an id.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RowState {
    /// Only dependencies refer to it.
    Referenced,
    Rejected,
    Accepted,
}

/// The ids of the view, numbered, and what was found about their rows.
struct ModelCheck {
    numbers: HashMap<Box<str>, u32>,
    states: Vec<RowState>,
    /// Pairs of a model and one that it depends on.
    dependencies: Vec<(u32, u32)>,
    /// By the digest of a save path: its first model, and the digest of that model's content.
    paths: HashMap<u64, (u32, u64)>,
    /// Pairs of a model and an earlier one with the same save path and other content.
    same_path: Vec<(u32, u32)>,
    count: usize,
    rejected: LimitedFindings,
    hashes: LimitedFindings,
    secrets: LimitedFindings,
}

/// Reads the view once and checks every row, and that what triggers recorded are ids of these rows.
pub(crate) async fn check(
    session: &Session,
    rules: &Rules,
    recorded: &[Recorded],
    limit: usize,
    report: &mut Report,
) -> Result<(), CheckError> {
    let mut models = ModelCheck {
        numbers: HashMap::new(),
        states: Vec::new(),
        dependencies: Vec::new(),
        paths: HashMap::new(),
        same_path: Vec::new(),
        count: 0,
        rejected: LimitedFindings::new(Level::Problem, "row", limit),
        hashes: LimitedFindings::new(Level::Warning, "hash", limit),
        secrets: LimitedFindings::new(Level::Warning, "secret", limit),
    };
    session.begin().await?;
    match models.read(session, rules).await {
        Ok(()) => session.commit().await?,
        // The database works and reports an error: an expression of the view fails for some row, or a lock timeout.
        Err(ReadError::Postgres(error)) if error.as_db_error().is_some() => {
            report.problem("view", format!("the view can't be read: {}", chain(&error)), "");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    if models.count > 0 {
        let state = |id: &str| models.numbers.get(id).map(|number| models.states[*number as usize]);
        recorded::compare(recorded, |id| state(id).is_some_and(|state| state != RowState::Referenced), report);
    }
    models.report(rules, limit, report);
    Ok(())
}

impl ModelCheck {
    async fn read(&mut self, session: &Session, rules: &Rules) -> Result<(), ReadError> {
        let mut json = Vec::new();
        let rows = session.entries().await?;
        rows.for_each(|id, row| {
            json.clear();
            self.add(id, row, |row| row.render(rules, &mut json));
            Ok(())
        })
        .await
    }

    fn add(
        &mut self,
        id: &str,
        row: Result<RawModel<'_>, RowError>,
        validate: impl FnOnce(&RawModel<'_>) -> Result<(), RowError>,
    ) {
        self.count += 1;
        let id_is_null = row.as_ref().is_ok_and(|row| row.id.is_none());
        let validated = row.and_then(|row| validate(&row).map(|()| row));
        let number = self.number(id);
        let state = &mut self.states[number as usize];
        let error = match validated {
            Ok(_) if *state == RowState::Accepted => RowError::Duplicate,
            Ok(row) => {
                *state = RowState::Accepted;
                self.warn_row(number, id, &row);
                return;
            }
            Err(error) => error,
        };
        if *state == RowState::Referenced {
            *state = RowState::Rejected;
        }
        self.rejected.add(Some(id).filter(|_| !id_is_null), || error.to_string());
    }

    /// Adds warnings about a row that is served.
    fn warn_row(&mut self, number: u32, id: &str, row: &RawModel<'_>) {
        if let Some(hash) = row.hash.filter(|hash| FileHash::parse(hash).is_none()) {
            let hint = "use hexadecimal digits, of sha256 for example, or NULL";
            self.hashes.add(Some(id), || format!("the hash {} is of an unknown kind: {hint}", quoted(hash)));
        }
        if let (Some(path), Some(url)) = (row.save_path, row.download_url)
            && let Some((path, content)) = path_and_content(path, row.hash, url)
        {
            let (path, content) = (xxh3_64(path.as_bytes()), xxh3_64(content.as_bytes()));
            let (first, other) = *self.paths.entry(path).or_insert((number, content));
            if other != content {
                self.same_path.push((number, first));
            }
        }
        let mirrors = strings(row.mirrors);
        let urls = row.download_url.map(|url| ("its download_url", url)).into_iter();
        for (place, url) in urls.chain(mirrors.iter().map(|url| ("one of its mirrors", url.as_str()))) {
            if let Some(name) = secret_parameter(url) {
                let text = "which anyone who can reach a server can read; remove it and set auth_required";
                self.secrets.add(Some(id), || format!("{place} contains {}, {text}", quoted(name)));
            }
        }
        for id in strings(row.dependencies) {
            let dependency = self.number(&id);
            self.dependencies.push((number, dependency));
        }
    }

    fn number(&mut self, id: &str) -> u32 {
        if let Some(number) = self.numbers.get(id) {
            return *number;
        }
        // The memory of a server would not suffice for 2³² ids either.
        let number = self.states.len() as u32;
        self.numbers.insert(id.into(), number);
        self.states.push(RowState::Referenced);
        number
    }

    fn report(self, rules: &Rules, limit: usize, report: &mut Report) {
        let mut ids = vec![""; self.states.len()];
        self.numbers.iter().for_each(|(id, number)| ids[*number as usize] = id);
        let count = self.rejected.count;
        report.ok("rows", format!("{} in the view, {count} of them rejected", self.count));
        self.rejected.report(report, &problems_sql(rules));
        report_dependencies(&ids, &self.states, self.dependencies, limit, report);
        report_paths(&ids, &self.same_path, limit, report);
        if self.hashes.count == 0 {
            report.ok("hashes", "all are of a known kind");
        }
        self.hashes.report(report, "");
        if self.secrets.count == 0 {
            report.ok("secrets", "no URL seems to contain one");
        }
        self.secrets.report(report, "");
    }
}

/// The elements of a JSON array of strings that passed the rules.
fn strings(json: Option<&str>) -> Vec<String> {
    let json = json.filter(|json| *json != "[]");
    json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
}

/// Reports models of which a machine can have only one.
fn report_paths(ids: &[&str], same_path: &[(u32, u32)], limit: usize, report: &mut Report) {
    let mut findings = LimitedFindings::new(Level::Warning, "save_path", limit);
    for (number, first) in same_path {
        let text = || {
            let first = quoted(ids[*first as usize]);
            format!("{first} has the same save_path and other content: a machine that needs both gets one")
        };
        findings.add(Some(ids[*number as usize]), text);
    }
    if findings.count == 0 {
        report.ok("save_paths", "no two models with different content have the same");
    }
    findings.report(report, "");
}

/// Reports dependencies that do not exist, and circular ones.
fn report_dependencies(
    ids: &[&str],
    states: &[RowState],
    dependencies: Vec<(u32, u32)>,
    limit: usize,
    report: &mut Report,
) {
    let count = dependencies.len();
    let mut missing = LimitedFindings::new(Level::Warning, "dependency", limit);
    for (number, dependency) in &dependencies {
        if states[*dependency as usize] == RowState::Referenced {
            let text = || format!("it depends on {}, which does not exist", quoted(ids[*dependency as usize]));
            missing.add(Some(ids[*number as usize]), text);
        }
    }
    let mut circular = LimitedFindings::new(Level::Warning, "dependency", limit);
    Graph::new(ids.len(), dependencies).cycles(|cycle| {
        let text = || {
            let path: Vec<_> = cycle.iter().take(MAX_CYCLE_SHOWN).map(|number| quoted(ids[*number as usize])).collect();
            let rest = if cycle.len() > MAX_CYCLE_SHOWN { " → …" } else { "" };
            format!("it depends on itself: {}{rest} → {}", path.join(" → "), path[0])
        };
        circular.add(cycle.first().map(|number| ids[*number as usize]), text);
    });
    if missing.count + circular.count == 0 {
        report.ok("dependencies", format!("{count}, all exist, none is circular"));
    }
    missing.report(report, "");
    circular.report(report, "");
}

/// The statement that lists every rejected row.
fn problems_sql(rules: &Rules) -> String {
    if rules.text() == Rules::default().text() {
        return "SELECT * FROM model_catalog.problems;".into();
    }
    let schemes: Vec<_> = rules.url_schemes.iter().map(|scheme| literal(scheme)).collect();
    format!("SELECT * FROM model_catalog.problems(ARRAY[{}]);", schemes.join(", "))
}
