//! The view, the tables it reads, their triggers, and the indexes that a look-up needs.

use super::CheckError;
use super::plan::Scan;
use super::report::{Report, literal};
use crate::postgres::session::{ReadError, Session, describe};

const COLUMNS: &str = include_str!("../../sql/check/columns.sql");
const VIEW: &str = include_str!("../../sql/check/view.sql");
const SOURCES: &str = include_str!("../../sql/check/sources.sql");
const FUNCTIONS: &str = include_str!("../../sql/check/functions.sql");

/// A table below this is read whole as fast as through an index: eight pages of Postgres.
const SMALL: u64 = 8 * 8192;

/// The events that watch() announces, by their bits in `pg_trigger.tgtype`.
const EVENTS: [(i64, &str); 4] = [(4, "INSERT"), (16, "UPDATE"), (8, "DELETE"), (32, "TRUNCATE")];

/// Something that the view reads.
pub struct Source {
    schema: String,
    table: String,
    /// Both, quoted.
    name: String,
    root: String,
    bytes: u64,
}

/// Looks at the names and types of the view's columns. False = the servers can't read it.
pub async fn columns(session: &Session, report: &mut Report) -> Result<bool, CheckError> {
    let (mut refused, mut odd, mut casts) = (Vec::new(), Vec::new(), Vec::new());
    for row in session.ask(COLUMNS).await? {
        let text = |column: &str| row.get(column).unwrap_or_default();
        let (name, wanted) = (text("name"), text("wanted"));
        casts.push(format!("{} AS {name}", text("cast_to")));
        let said = match row.get("found") {
            None => format!("it has no column {name} of type {wanted}"),
            Some(found) => format!("its column {name} is of type {found} and must be {wanted}"),
        };
        match (text("served"), text("same")) {
            ("f", _) => refused.push(said),
            // varchar is as good as text
            (_, "f") if wanted != "text" => odd.push(said),
            _ => {}
        }
    }
    if refused.is_empty() && odd.is_empty() {
        report.ok("view", "model_catalog.entries has the ten columns with their types");
        return Ok(true);
    }
    let mend = recast(session, &casts).await?;
    if refused.is_empty() {
        report.warning("view", format!("model_catalog.entries: {}; it is served all the same", odd.join("; ")), mend);
        return Ok(true);
    }
    refused.append(&mut odd);
    report.problem("view", format!("model_catalog.entries: {}", refused.join("; ")), mend);
    Ok(false)
}

/// The statements that make the view anew with the right types. `CREATE OR REPLACE` can't change a type.
async fn recast(session: &Session, casts: &[String]) -> Result<String, CheckError> {
    let rows = session.ask(VIEW).await?;
    let Some(row) = rows.first().filter(|row| row.get("relkind") == Some("v")) else { return Ok(String::new()) };
    let text = |column: &str| row.get(column).unwrap_or_default();
    let options = row.get("options").map(|options| format!(" WITH ({options})")).unwrap_or_default();
    let definition = text("definition").trim_end().trim_end_matches(';');
    let columns = casts.join(",\n       ");
    let (owner, grants) = (text("owner"), row.get("grants").map(|grants| format!("{grants}\n")).unwrap_or_default());
    Ok(format!(
        "BEGIN;\nDROP VIEW model_catalog.entries;\nCREATE VIEW model_catalog.entries{options} AS\nSELECT {columns}\nFROM (\n\
         {definition}\n) v;\nALTER VIEW model_catalog.entries OWNER TO {owner};\n{grants}\
         SELECT model_catalog.reload();\nCOMMIT;"
    ))
}

/// Tries to read the view.
pub async fn readable(session: &Session, report: &mut Report) -> Result<bool, CheckError> {
    match session.ask("SELECT FROM model_catalog.entries LIMIT 0").await {
        Ok(_) => Ok(true),
        Err(ReadError::Postgres(error)) if error.as_db_error().is_some() => {
            report.problem("view", format!("model_catalog.entries can't be read: {}", describe(&error)), "");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Looks at every source of the view: can its changes be announced, and are they?
pub async fn watched(
    session: &Session,
    scans: &[Scan],
    readable: bool,
    report: &mut Report,
) -> Result<Vec<Source>, CheckError> {
    let id = |scan: &Scan| {
        let [schema, table, column] = [&scan.schema, &scan.table, scan.id_column.as_ref()?].map(|name| literal(name));
        Some(format!("({schema}, {table}, {column})"))
    };
    let mut ids: Vec<String> = scans.iter().filter_map(id).collect();
    ids.push("(NULL, NULL, NULL)".into());
    let question = SOURCES.replace("$ids$", &ids.join(", "));
    let (mut sources, before) = (Vec::new(), report.findings.len());
    for row in session.ask(&question).await? {
        let text = |column: &str| row.get(column).unwrap_or_default();
        if !readable && let Some(grants) = row.get("grants") {
            report.problem("rights", format!("the view may not read {}", text("name")), grants);
        }
        sources.push(Source {
            schema: text("schema_name").into(),
            table: text("table_name").into(),
            name: text("name").into(),
            root: text("root").into(),
            bytes: text("bytes").parse().unwrap_or(0),
        });
        source(&row, report);
    }
    for row in session.ask(FUNCTIONS).await? {
        let name = row.get(0).unwrap_or_default();
        report.warning(
            "source",
            format!("the view calls {name}: changes of what it reads are seen only if it is watched"),
            "",
        );
    }
    if report.findings.len() == before {
        report.ok("sources", format!("tables that the view reads: {}, all watched", sources.len()));
    }
    Ok(sources)
}

/// One source.
fn source(row: &tokio_postgres::SimpleQueryRow, report: &mut Report) {
    let text = |column: &str| row.get(column).unwrap_or_default();
    let name = text("name");
    let unheard = match text("kind") {
        "r" | "p" if text("of_the_system") == "f" => None,
        "r" => Some("a table of the system"),
        "m" => Some("a materialized view"),
        "f" => Some("a foreign table"),
        _ => Some("no table"),
    };
    if let Some(kind) = unheard {
        let said = format!(
            "{name} is {kind} and can't be watched: its changes are found by audits; to have them at once, after each"
        );
        report.warning("source", said, "SELECT model_catalog.reload();");
        return;
    }
    let bits = |column: &str| text(column).parse::<i64>().unwrap_or(0);
    let (present, firing, id) = (bits("present"), bits("firing"), row.get("id_column"));
    let events = |wanted: &dyn Fn(i64) -> bool| {
        let named = EVENTS.iter().filter(|(bit, _)| wanted(*bit)).map(|(_, name)| *name);
        named.collect::<Vec<_>>().join(", ")
    };
    let column = id.map_or("'<the column with the id of the model>'".into(), literal);
    let watch = format!("SELECT model_catalog.watch({}, {column});", literal(text("root")));
    let missing = events(&|bit| present & bit == 0);
    let silent = events(&|bit| present & bit != 0 && firing & bit == 0);
    // One call serves all partitions, and is said once.
    let said = report.findings.iter().any(|finding| finding.mend.as_deref() == Some(&watch));
    let wrong = if present == 0 {
        Some(format!("{name} is not watched: its changes are not announced"))
    } else if !missing.is_empty() {
        Some(format!("{name} has no trigger for {missing}"))
    } else if let Some(lost) = row.get("lost") {
        Some(format!("the triggers of {name} speak of a column that it has not: {lost}"))
    } else {
        let other = id.filter(|id| *id != text("columns"));
        other.map(|id| format!("{name} is watched by {}, but the view has its id from {id}", text("columns")))
    };
    if let Some(wrong) = wrong.filter(|_| !said) {
        report.problem("source", wrong, watch);
    }
    if !silent.is_empty() {
        report.problem("source", format!("{name}: the triggers for {silent} are disabled"), text("enable"));
    }
}

/// Whether an index leads to each table's rows when a model is looked up.
pub fn indexes(scans: &[Scan], sources: &[Source], report: &mut Report) {
    let mut said: Vec<String> = Vec::new();
    for scan in scans.iter().filter(|scan| scan.whole) {
        let source = sources.iter().find(|source| (&source.schema, &source.table) == (&scan.schema, &scan.table));
        let Some(source) = source.filter(|source| scan.by_id || source.bytes >= SMALL) else { continue };
        // An index on a partitioned table is one on every partition, but can't be made beside running writes.
        let (table, concurrently) =
            if source.root == source.name { (&source.name, "CONCURRENTLY ") } else { (&source.root, "") };
        let index = scan.to_index.as_ref().map(|what| format!("CREATE INDEX {concurrently}ON {table} ({what});"));
        let key = index.clone().unwrap_or_else(|| table.clone());
        if said.contains(&key) {
            continue;
        }
        said.push(key);
        let text = format!("for each changed model, all of {table} is read, for want of an index");
        match (index, scan.by_id) {
            (Some(index), true) => report.problem("look-up", text, index),
            (Some(index), false) => report.warning("look-up", text, index),
            (None, _) => report.warning(
                "look-up",
                format!(
                    "for each changed model, all of {table} is read: in the view, no condition on the id reaches it"
                ),
                "",
            ),
        }
    }
    if said.is_empty() {
        report.ok("look-up", "an index leads to each model");
    }
}
