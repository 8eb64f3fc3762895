//! Checks of the view, the tables that it reads, their triggers, and the indexes that a look-up needs.

use super::error::CheckError;
use super::plan::Scan;
use super::recorded::{self, Recorded};
use super::report::{Report, literal};
use crate::base::error_chain::chain;
use crate::postgres::error::ReadError;
use crate::postgres::session::Session;

const COLUMNS: &str = include_str!("../../../sql/check/columns.sql");
const VIEW: &str = include_str!("../../../sql/check/view.sql");
const FUNCTIONS: &str = include_str!("../../../sql/check/functions.sql");

/// A smaller table that the view joins without a condition, such as one with a single row of settings, is not reported:
/// eight pages of Postgres. Tables that an index could help are reported while they are small.
const WORTH_REPORTING_BYTES: u64 = 8 * 8192;

/// Maximum number of watched tables that are listed.
const MAX_LISTED_TABLES: usize = 20;

/// The events that the triggers of watch() fire on, by their bits in `pg_trigger.tgtype`.
const EVENTS: [(i64, &str); 4] = [(4, "INSERT"), (16, "UPDATE"), (8, "DELETE"), (32, "TRUNCATE")];

/// A table that the view reads.
pub(crate) struct SourceTable {
    schema: String,
    table: String,
    /// Schema and table, quoted.
    name: String,
    /// The table to call watch() for: the partitioned table of a partition, otherwise the table itself.
    root: String,
    bytes: u64,
    /// The first columns of its indexes, quoted.
    indexed: Vec<String>,
}

/// Checks the names and types of the view's columns. False if servers can't read the view, or not all of it.
pub(crate) async fn columns(session: &Session, report: &mut Report) -> Result<bool, CheckError> {
    let (mut unusable, mut inexact, mut casts) = (Vec::new(), Vec::new(), Vec::new());
    let mut optional = "";
    for row in session.query_system_catalog(COLUMNS).await? {
        let text = |column: &str| row.get(column).unwrap_or_default();
        let (name, expected) = (text("name"), text("wanted"));
        casts.push(format!("{} AS {name}", text("cast_to")));
        if name == "mirrors" {
            optional = " and the optional mirrors";
        }
        let finding = match row.get("found") {
            None => format!("it has no column {name} of type {expected}"),
            Some(found) => format!("its column {name} is of type {found} and must be {expected}"),
        };
        match (text("served"), text("same")) {
            ("f", _) => unusable.push(finding),
            // varchar is as good as text.
            (_, "f") if expected != "text" => inexact.push(finding),
            _ => {}
        }
    }
    if unusable.is_empty() && inexact.is_empty() {
        report.ok("view", format!("model_catalog.entries has the ten columns{optional} with their types"));
        return Ok(true);
    }
    let fix = rebuild_view_sql(session, &casts).await?;
    if unusable.is_empty() {
        report.warning("view", format!("model_catalog.entries: {}; it is served anyway", inexact.join("; ")), fix);
        return Ok(true);
    }
    unusable.append(&mut inexact);
    report.problem("view", format!("model_catalog.entries: {}", unusable.join("; ")), fix);
    Ok(false)
}

/// The statements that recreate the view with the right types. `CREATE OR REPLACE` can't change a type.
async fn rebuild_view_sql(session: &Session, casts: &[String]) -> Result<String, CheckError> {
    let rows = session.query_system_catalog(VIEW).await?;
    let Some(row) = rows.first().filter(|row| row.get("relkind") == Some("v")) else { return Ok(String::new()) };
    let text = |column: &str| row.get(column).unwrap_or_default();
    let options = row.get("options").map(|options| format!(" WITH ({options})")).unwrap_or_default();
    let definition = text("definition").trim_end().trim_end_matches(';');
    let columns = casts.join(",\n       ");
    let (owner, grants) = (text("owner"), row.get("grants").map(|grants| format!("{grants}\n")).unwrap_or_default());
    Ok(format!(
        "BEGIN;\nDROP VIEW model_catalog.entries;\nCREATE VIEW model_catalog.entries{options} AS\n\
         SELECT {columns}\nFROM (\n{definition}\n) v;\nALTER VIEW model_catalog.entries OWNER TO {owner};\n{grants}\
         SELECT model_catalog.reload();\nCOMMIT;"
    ))
}

/// Checks that the view can be read.
pub(crate) async fn readable(session: &Session, report: &mut Report) -> Result<bool, CheckError> {
    match session.query_system_catalog("SELECT FROM model_catalog.entries LIMIT 0").await {
        Ok(_) => Ok(true),
        Err(ReadError::Postgres(error)) if error.as_db_error().is_some() => {
            report.problem("view", format!("model_catalog.entries can't be read: {}", chain(&error)), "");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Checks that every table that the view reads is watched. Returns these tables, and what their triggers record.
pub(crate) async fn watched(
    session: &Session,
    scans: &[Scan],
    readable: bool,
    report: &mut Report,
) -> Result<(Vec<SourceTable>, Vec<Recorded>), CheckError> {
    let id = |scan: &Scan| {
        let [schema, table, column] = [&scan.schema, &scan.table, scan.id_column.as_ref()?].map(|name| literal(name));
        Some(format!("({schema}, {table}, {column})"))
    };
    let ids: Vec<String> = scans.iter().filter_map(id).collect();
    let (mut sources, mut recorded, before) = (Vec::new(), Vec::new(), report.findings.len());
    for row in session.sources(&ids).await? {
        let text = |column: &str| row.get(column).unwrap_or_default();
        if !readable && let Some(grants) = row.get("grants") {
            report.problem("rights", format!("the view may not read {}", text("name")), grants);
        }
        sources.push(SourceTable {
            schema: text("schema_name").into(),
            table: text("table_name").into(),
            name: text("name").into(),
            root: text("root").into(),
            bytes: text("bytes").parse().unwrap_or(0),
            indexed: text("indexed").lines().map(str::to_owned).collect(),
        });
        let is_table =
            |scan: &&Scan| (scan.schema.as_str(), scan.table.as_str()) == (text("schema_name"), text("table_name"));
        let expression = |scan: &Scan| scan.to_index.clone().filter(|_| scan.by_id && scan.id_column.is_none());
        let expression = scans.iter().filter(is_table).find_map(expression);
        if check_source(&row, expression.as_deref(), report) {
            recorded.extend(recorded::sample(session, &row).await?);
        }
    }
    for row in session.query_system_catalog(FUNCTIONS).await? {
        let name = row.get(0).unwrap_or_default();
        report.warning(
            "source",
            format!("the view calls {name}: changes to the tables that it reads are noticed only if they are watched"),
            "",
        );
        if let Some(fix) = row.get("fix") {
            let text = "has no search_path of its own: triggers call it with the rights of the owner of \
                        model_catalog, so a writer's temporary table could take the place of one that it reads";
            report.warning("function", format!("{name} {text}"), fix);
        }
    }
    if report.findings.len() == before {
        let names: Vec<_> = sources.iter().map(|source| source.name.as_str()).take(MAX_LISTED_TABLES).collect();
        let rest = if sources.len() > names.len() { ", …" } else { "" };
        let (number, names) = (sources.len(), names.join(", "));
        report.ok("sources", format!("tables that the view reads: {number}, all watched: {names}{rest}"));
    }
    Ok((sources, recorded))
}

/// Checks the triggers of one source; `expression` is what the id of the view is computed by from its columns, if it is
/// not a column. Returns whether what they record may be ids of models.
fn check_source(row: &tokio_postgres::SimpleQueryRow, expression: Option<&str>, report: &mut Report) -> bool {
    let text = |column: &str| row.get(column).unwrap_or_default();
    let name = text("name");
    let unwatchable = match text("kind") {
        "r" | "p" if text("of_the_system") == "f" => None,
        "r" => Some("a system table"),
        "m" => Some("a materialized view"),
        "f" => Some("a foreign table"),
        _ => Some("not a table"),
    };
    if let Some(kind) = unwatchable {
        let finding = format!(
            "{name} is {kind} and can't be watched: its changes are found only by audits; to publish a change at \
             once, run"
        );
        report.warning("source", finding, "SELECT model_catalog.reload();");
        return false;
    }
    let bits = |column: &str| text(column).parse::<i64>().unwrap_or(0);
    let (present, firing, id) = (bits("present"), bits("firing"), row.get("id_column"));
    let events = |matches: &dyn Fn(i64) -> bool| {
        let names = EVENTS.iter().filter(|(bit, _)| matches(*bit)).map(|(_, name)| *name);
        names.collect::<Vec<_>>().join(", ")
    };
    let column = match (id, expression) {
        (Some(id), _) => format!(", {}", literal(id)),
        (None, Some(_)) => String::new(),
        (None, None) => ", '<the column with the id of the model>'".into(),
    };
    let watch = format!("SELECT model_catalog.watch({}{column});", literal(text("root")));
    let missing = events(&|bit| present & bit == 0);
    let disabled = events(&|bit| present & bit != 0 && firing & bit == 0);
    // One call covers all partitions and is reported once.
    let reported = report.findings.iter().any(|finding| finding.fix.as_deref() == Some(&watch));
    let problem = if present == 0 {
        Some(format!("{name} is not watched: servers are not notified of its changes"))
    } else if !missing.is_empty() {
        Some(format!("{name} has no trigger for {missing}"))
    } else if let Some(lost) = row.get("lost") {
        Some(format!("the triggers of {name} name a column that does not exist: {lost}"))
    } else if let Some((column, expression)) = row.get("columns").zip(expression) {
        Some(format!(
            "{name} is watched by {column}, but the id of the view is the expression {expression}: watched without a \
             column, each change makes servers read all models"
        ))
    } else {
        // Watched without a column, every change makes the servers read everything, which is right for any view.
        let differing = row.get("columns").zip(id).filter(|(column, id)| column != id);
        differing.map(|(column, id)| format!("{name} is watched by {column}, but the id of the view comes from {id}"))
    };
    let plausible = problem.is_none();
    if let Some(problem) = problem.filter(|_| !reported) {
        report.problem("source", problem, watch);
    }
    if !disabled.is_empty() {
        report.problem("source", format!("{name}: the triggers for {disabled} are disabled"), text("enable"));
    }
    check_successor(row, report);
    plausible
}

/// Checks whether a table has taken the place of one that the view reads.
fn check_successor(row: &tokio_postgres::SimpleQueryRow, report: &mut Report) {
    let text = |column: &str| row.get(column).unwrap_or_default();
    if let Some(successor) = row.get("successor") {
        let name = text("name");
        let finding = format!(
            "the view reads {name}, but not {successor}, which has the same columns: if they were swapped by renaming, \
             the view followed the old table"
        );
        let column = row.get("columns").map(|column| format!(", {}", literal(column))).unwrap_or_default();
        let watch = format!("SELECT model_catalog.watch({}{column});", literal(successor));
        report.problem("source", finding, format!("{}\n{watch}\nSELECT model_catalog.reload();", text("follow")));
    }
}

/// Checks that the look-up of a model uses an index on each table.
pub(crate) fn indexes(scans: &[Scan], sources: &[SourceTable], report: &mut Report) {
    let mut reported: Vec<String> = Vec::new();
    for scan in scans.iter().filter(|scan| scan.reads_whole_table) {
        let source = sources.iter().find(|source| (&source.schema, &source.table) == (&scan.schema, &scan.table));
        let Some(source) = source.filter(|source| scan.to_index.is_some() || source.bytes >= WORTH_REPORTING_BYTES)
        else {
            continue;
        };
        // For a small table that is joined, the planner may read all of an index.
        if !scan.by_id && scan.to_index.as_ref().is_some_and(|columns| source.indexed.contains(columns)) {
            continue;
        }
        // An index on a partitioned table covers every partition, but can't be created concurrently.
        let (table, concurrently) =
            if source.root == source.name { (&source.name, "CONCURRENTLY ") } else { (&source.root, "") };
        let index = scan.to_index.as_ref().map(|columns| format!("CREATE INDEX {concurrently}ON {table} ({columns});"));
        let key = index.clone().unwrap_or_else(|| table.clone());
        if reported.contains(&key) {
            continue;
        }
        reported.push(key);
        let text = format!("for each changed model, all of {table} is read, because an index is missing");
        match (index, scan.by_id) {
            (Some(index), true) => report.problem("look-up", text, index),
            (Some(index), false) => report.warning("look-up", text, index),
            (None, _) => report.warning(
                "look-up",
                format!("for each changed model, all of {table} is read: the view passes no condition on the id to it"),
                "",
            ),
        }
    }
    if reported.is_empty() {
        report.ok("look-up", "each model is found by an index");
    }
}
