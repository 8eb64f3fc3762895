//! Every row of the view, judged by the server's rules; and what is odd about rows that are served.
//!
//! It keeps ids and who needs whom, about a hundred bytes a model, never the rows.

use std::collections::HashMap;

use super::CheckError;
use super::cycles::Graph;
use super::report::{Level, Report, literal, shown};
use crate::catalog::hash::FileHash;
use crate::catalog::model::{RawModel, RowError, Rules, secret_parameter};
use crate::postgres::rows;
use crate::postgres::session::{ReadError, Session};

/// Models of a cycle that are named; in a longer one, the first of them.
const CYCLE_SHOWN: usize = 8;

/// Rows with what is to be said of them: the first few, and how many there are.
struct Listed {
    level: Level,
    subject: &'static str,
    first: Vec<(Option<String>, String)>,
    count: usize,
    limit: usize,
}

impl Listed {
    fn new(level: Level, subject: &'static str, limit: usize) -> Self {
        Self { level, subject, first: Vec::new(), count: 0, limit }
    }

    fn add(&mut self, id: Option<&str>, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < self.limit {
            self.first.push((id.map(str::to_owned), text()));
        }
    }

    /// `all` = the statement that shows all of them.
    fn report(self, report: &mut Report, all: &str) {
        let more = self.count - self.first.len();
        for (id, text) in self.first {
            report.row(self.level, self.subject, id.as_deref(), text);
        }
        let text = format!("and {more} more; --limit shows more of them");
        match self.level {
            _ if more == 0 => {}
            Level::Problem => report.problem(self.subject, text, all),
            _ => report.warning(self.subject, text, all),
        }
    }
}

/// What is kept of a row: `Named` is an id that only dependencies speak of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    Named,
    Bad,
    Good,
}

struct Catalog {
    numbers: HashMap<Box<str>, u32>,
    rows: Vec<Row>,
    needs: Vec<(u32, u32)>,
    count: usize,
    refused: Listed,
    hashes: Listed,
    secrets: Listed,
}

/// Reads the view once.
pub async fn read(session: &Session, rules: &Rules, limit: usize, report: &mut Report) -> Result<(), CheckError> {
    let mut catalog = Catalog {
        numbers: HashMap::new(),
        rows: Vec::new(),
        needs: Vec::new(),
        count: 0,
        refused: Listed::new(Level::Problem, "row", limit),
        hashes: Listed::new(Level::Warning, "hash", limit),
        secrets: Listed::new(Level::Warning, "secret", limit),
    };
    session.begin().await?;
    match catalog.fill(session, rules).await {
        Ok(()) => session.commit().await?,
        // The database is there and refuses: an expression of the view that fails for some row, or a lock.
        Err(ReadError::Postgres(error)) if error.as_db_error().is_some() => {
            let text = format!("the view can't be read: {}", crate::postgres::session::describe(&error));
            report.problem("view", text, "");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    catalog.report(rules, limit, report);
    Ok(())
}

impl Catalog {
    async fn fill(&mut self, session: &Session, rules: &Rules) -> Result<(), ReadError> {
        let no_row = || ReadError::View("the database sent something that is no row of model_catalog.entries".into());
        let mut answer = Vec::new();
        let mut copied = session.entries().await?;
        while let Some(chunk) = copied.next().await? {
            for message in chunk.iter().filter(|message| !rows::is_copy_end(message)) {
                let (id, row) = rows::copied(message).ok_or_else(no_row)?;
                answer.clear();
                self.add(id, row, |row| row.render(rules, &mut answer));
            }
        }
        Ok(())
    }

    fn add(
        &mut self,
        id: &str,
        row: Result<RawModel<'_>, RowError>,
        judge: impl FnOnce(&RawModel<'_>) -> Result<(), RowError>,
    ) {
        self.count += 1;
        let missing = row.as_ref().is_ok_and(|row| row.id.is_none());
        let judged = row.and_then(|row| judge(&row).map(|()| row));
        let number = self.number(id);
        let before = &mut self.rows[number as usize];
        let fault = match &judged {
            Ok(_) if *before == Row::Good => RowError::Duplicate,
            Ok(row) => {
                *before = Row::Good;
                self.odd(number, id, row);
                return;
            }
            Err(fault) => fault.clone(),
        };
        if *before == Row::Named {
            *before = Row::Bad;
        }
        self.refused.add(Some(id).filter(|_| !missing), || fault.to_string());
    }

    fn odd(&mut self, number: u32, id: &str, row: &RawModel<'_>) {
        if let Some(hash) = row.hash.filter(|hash| FileHash::parse(hash).is_none()) {
            self.hashes.add(Some(id), || {
                format!("the hash {} is of no known kind: hexadecimal digits as of sha256, or NULL, are", shown(hash))
            });
        }
        if let Some(name) = row.download_url.and_then(secret_parameter) {
            self.secrets.add(Some(id), || {
                let name = shown(name);
                format!("its download_url carries {name}: who reaches a server can read it; auth_required keeps it out")
            });
        }
        let needs = row.dependencies.filter(|json| *json != "[]");
        let needs: Vec<String> = needs.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
        for needed in needs {
            let needed = self.number(&needed);
            self.needs.push((number, needed));
        }
    }

    fn number(&mut self, id: &str) -> u32 {
        if let Some(number) = self.numbers.get(id) {
            return *number;
        }
        // Four thousand million ids would not fit into the memory of any server either.
        let number = self.rows.len() as u32;
        self.numbers.insert(id.into(), number);
        self.rows.push(Row::Named);
        number
    }

    fn report(self, rules: &Rules, limit: usize, report: &mut Report) {
        let mut names = vec![""; self.rows.len()];
        self.numbers.iter().for_each(|(id, number)| names[*number as usize] = id);
        let (refused, odd, needs) = (self.refused.count, self.hashes.count, self.needs.len());
        report.ok("rows", format!("{} in the view, {refused} of them refused", self.count));
        self.refused.report(report, &problems(rules));

        let mut dangling = Listed::new(Level::Warning, "dependency", limit);
        for (number, needed) in &self.needs {
            if self.rows[*needed as usize] == Row::Named {
                let text = || format!("it needs {}, and no row has that id", shown(names[*needed as usize]));
                dangling.add(Some(names[*number as usize]), text);
            }
        }
        let mut circular = Listed::new(Level::Warning, "dependency", limit);
        Graph::new(names.len(), self.needs).cycles(|cycle| {
            let way = || {
                let ids: Vec<_> = cycle.iter().take(CYCLE_SHOWN).map(|number| shown(names[*number as usize])).collect();
                let rest = if cycle.len() > CYCLE_SHOWN { " → …" } else { "" };
                format!("it needs itself: {}{rest} → {}", ids.join(" → "), ids[0])
            };
            circular.add(cycle.first().map(|number| names[*number as usize]), way);
        });
        if dangling.count + circular.count == 0 {
            report.ok("dependencies", format!("{needs}, each to be found, none in a circle"));
        }
        dangling.report(report, "");
        circular.report(report, "");
        if odd == 0 {
            report.ok("hashes", "each is of a known kind");
        }
        self.hashes.report(report, "");
        if self.secrets.count == 0 {
            report.ok("secrets", "no download_url seems to hold one");
        }
        self.secrets.report(report, "");
    }
}

/// The statement that shows every refused row.
fn problems(rules: &Rules) -> String {
    if rules.text() == Rules::default().text() {
        return "SELECT * FROM model_catalog.problems;".into();
    }
    let schemes: Vec<_> = rules.url_schemes.iter().map(|scheme| literal(scheme)).collect();
    format!("SELECT * FROM model_catalog.problems(ARRAY[{}]);", schemes.join(", "))
}
