//! The cost of a look-up by id, read from the plan that Postgres makes for it.
//!
//! Postgres returns the plan as JSON, in which conditions are texts such as `((n.slug)::text = (w.slug)::text)`. They
//! are only split into equations, and these into their two sides:
//!
//! | step | from | to |
//! |---|---|---|
//! | [`look_up`] | JSON | [`PlanNode`], the tree of the plan |
//! | [`collect_nodes`] | conditions of the scan of a table | [`Node`], the table with its equations |
//! | [`join_conditions`] | conditions of joins | further equations of every [`Node`] |
//! | [`own_sides`] | an equation and an alias | the side that is of this table only, if the other is not |
//! | [`scans`] | the other side is the id that is looked up | the table is found by id |
//! | [`scans`] | the other side is such a column of another table | the table is joined by id |

use serde::Deserialize;

use super::error::CheckError;
use crate::postgres::error::ReadError;
use crate::postgres::session::Session;

const LOOK_UP: &str = include_str!("../../../sql/check/look_up.sql");
/// The id in `look_up.sql`.
const LOOKED_UP_ID: &str = "'model-catalog check'";

/// How the look-up reads one table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Schema of the table.
    pub(crate) schema: String,
    /// The table, or a partition of it.
    pub(crate) table: String,
    /// The whole table is read, because no index finds the rows.
    pub(crate) seq_scan: bool,
    /// Rows are selected by the id of a model.
    pub(crate) by_id: bool,
    /// The column of that id, if it is a plain column.
    pub(crate) id_column: Option<String>,
    /// The expression to index, in the syntax of `CREATE INDEX`, if a condition contains one.
    pub(crate) to_index: Option<String>,
}

/// What `EXPLAIN (FORMAT JSON)` returns.
#[derive(Deserialize)]
struct Explained {
    #[serde(rename = "Plan")]
    plan: PlanNode,
}

/// A node of the plan with what is below it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PlanNode {
    #[serde(rename = "Node Type")]
    kind: String,
    schema: Option<String>,
    #[serde(rename = "Relation Name")]
    table: Option<String>,
    alias: Option<String>,
    #[serde(rename = "Index Cond")]
    index_condition: Option<String>,
    #[serde(rename = "Recheck Cond")]
    recheck_condition: Option<String>,
    filter: Option<String>,
    #[serde(rename = "Join Filter")]
    join_filter: Option<String>,
    #[serde(rename = "Hash Cond")]
    hash_condition: Option<String>,
    #[serde(rename = "Merge Cond")]
    merge_condition: Option<String>,
    #[serde(default)]
    plans: Vec<PlanNode>,
}

/// A node of the plan that scans a table.
struct Node {
    schema: String,
    table: String,
    alias: String,
    seq_scan: bool,
    equations: Vec<(String, String)>,
}

/// Plans the look-up; returns the scan of every table that it reads.
pub(crate) async fn look_up(session: &Session) -> Result<Vec<Scan>, CheckError> {
    let rows = session.query_system_catalog(LOOK_UP).await?;
    let text: String = rows.iter().filter_map(|row| row.get(0)).collect();
    let [explained]: [Explained; 1] = serde_json::from_str(&text)
        .map_err(|error| ReadError::View(format!("EXPLAIN returned another JSON than expected: {error}")))?;
    Ok(scans(&explained.plan))
}

fn scans(plan: &PlanNode) -> Vec<Scan> {
    let mut nodes = Vec::new();
    collect_nodes(plan, &mut nodes);
    let mut joins = Vec::new();
    join_conditions(plan, &mut joins);
    nodes.iter_mut().for_each(|node| node.equations.extend_from_slice(&joins));
    let aliases: Vec<String> = nodes.iter().map(|node| node.alias.clone()).collect();
    // First the tables that are searched for the id itself, then those that are joined with a column found there.
    let searched = |node| own_sides(node, &aliases).find(|(_, other)| other.contains(LOOKED_UP_ID)).map(|(own, _)| own);
    let mut ids: Vec<Option<String>> = nodes.iter().map(searched).collect();
    let column = |(node, id): (&Node, &Option<String>)| Some(format!("{}.{}", node.alias, plain_column(id.as_ref()?)?));
    let known: Vec<String> = nodes.iter().zip(&ids).filter_map(column).collect();
    for (node, id) in nodes.iter().zip(&mut ids).filter(|(_, id)| id.is_none()) {
        let is_known = |other: &str| plain_column(other).is_some_and(|other| known.iter().any(|known| known == other));
        *id = own_sides(node, &aliases).find(|(_, other)| is_known(other)).map(|(own, _)| own);
    }
    let scan = |(node, id): (&Node, Option<String>)| Scan {
        schema: node.schema.clone(),
        table: node.table.clone(),
        seq_scan: node.seq_scan,
        by_id: id.is_some(),
        id_column: id.as_deref().and_then(plain_column).map(unquoted),
        to_index: id.or_else(|| own_sides(node, &aliases).next().map(|(own, _)| own)).map(|own| {
            let column = plain_column(&own) == Some(&own);
            if column { own } else { format!("({own})") }
        }),
    };
    nodes.iter().zip(ids).map(scan).collect()
}

/// The equations of joins; each may refer to any table below the join.
fn join_conditions(plan: &PlanNode, all: &mut Vec<(String, String)>) {
    let conditions = [&plan.join_filter, &plan.hash_condition, &plan.merge_condition];
    all.extend(conditions.into_iter().flatten().flat_map(|condition| equations(condition)));
    plan.plans.iter().for_each(|below| join_conditions(below, all));
}

fn collect_nodes(plan: &PlanNode, nodes: &mut Vec<Node>) {
    if let Some(table) = &plan.table {
        let conditions = [&plan.index_condition, &plan.recheck_condition, &plan.filter];
        let equations = conditions.into_iter().flatten().flat_map(|condition| equations(condition)).collect();
        let full_index_scan = plan.kind.starts_with("Index") && plan.index_condition.is_none();
        nodes.push(Node {
            schema: plan.schema.clone().unwrap_or_default(),
            table: table.clone(),
            alias: quoted(plan.alias.as_deref().unwrap_or_default()),
            seq_scan: plan.kind == "Seq Scan" || full_index_scan,
            equations,
        });
    }
    plan.plans.iter().for_each(|below| collect_nodes(below, nodes));
}

/// The sides of equations that refer only to this table, without its alias, each with the other side, which does not
/// refer to it.
fn own_sides<'a>(node: &'a Node, aliases: &'a [String]) -> impl Iterator<Item = (String, &'a str)> {
    let both = |(left, right): &'a (String, String)| [(left.as_str(), right.as_str()), (right.as_str(), left.as_str())];
    node.equations.iter().flat_map(both).filter_map(move |(own, other)| {
        let (own_refers, bare) = without_alias(own, &node.alias);
        let (other_refers, _) = without_alias(other, &node.alias);
        let foreign = aliases.iter().any(|alias| *alias != node.alias && without_alias(own, alias).0);
        (own_refers && !other_refers && !foreign).then_some((bare, other))
    })
}

/// The `a = b` among the operands of AND.
fn equations(condition: &str) -> Vec<(String, String)> {
    let inner = without_parentheses(condition);
    let parts = split(inner, " AND ");
    if parts.len() > 1 {
        return parts.into_iter().flat_map(equations).collect();
    }
    match split(inner, " = ")[..] {
        [left, right] => vec![(without_parentheses(left).into(), without_parentheses(right).into())],
        _ => Vec::new(),
    }
}

/// `(…)` without the parentheses, if they match each other.
fn without_parentheses(text: &str) -> &str {
    let text = text.trim();
    let Some(inner) = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else { return text };
    let mut depth = 0_i32;
    let balanced = tokens(inner).all(|token| {
        depth += i32::from(token == "(") - i32::from(token == ")");
        depth >= 0
    });
    if balanced { without_parentheses(inner) } else { text }
}

/// Splits at a separator outside parentheses, quotes and literals.
fn split<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let (mut parts, mut start, mut depth, mut offset) = (Vec::new(), 0, 0_i32, 0);
    for token in tokens(text) {
        if depth == 0 && offset >= start && text[offset..].starts_with(separator) {
            parts.push(&text[start..offset]);
            start = offset + separator.len();
        }
        depth += i32::from(token == "(") - i32::from(token == ")");
        offset += token.len();
    }
    parts.push(&text[start..]);
    parts
}

/// Tokens: literals, quoted names, words, and any other character alone.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let length = match first {
            // A doubled quote ends one token and begins another, which does no harm here.
            '\'' | '"' => rest[1..].find(first).map_or(rest.len(), |end| end + 2),
            c if word(c) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        Some(token)
    })
}

/// Whether the expression has columns of this alias, and the expression with the alias removed.
fn without_alias(expression: &str, alias: &str) -> (bool, String) {
    let prefix = format!("{alias}.");
    let (mut found, mut bare, mut offset, mut skip) = (false, String::new(), 0, 0);
    for token in tokens(expression) {
        let before = expression[..offset].chars().next_back();
        let begins = !before.is_some_and(|c| c.is_alphanumeric() || "_$.\"'".contains(c));
        if begins && !token.starts_with('\'') && expression[offset..].starts_with(&prefix) {
            found = true;
            skip = offset + prefix.len();
        }
        if offset >= skip {
            bare.push_str(token);
        }
        offset += token.len();
    }
    (found, bare)
}

/// The column of an expression that is only a column, possibly with casts; with its alias and quotes.
fn plain_column(expression: &str) -> Option<&str> {
    let inner = expression.trim_start_matches('(');
    let name = |token: &str| token.starts_with(|c: char| c == '"' || c == '_' || c.is_alphabetic());
    let mut end = 0;
    // A name with a doubled quote is two tokens.
    for token in tokens(inner).take_while(|token| *token == "." || name(token)) {
        end += token.len();
    }
    let (column, rest) = inner.split_at(end);
    let casts = rest.split("::").next().is_some_and(|before| before.chars().all(|c| c == ')'));
    (!column.is_empty() && casts).then_some(column)
}

fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.into() } else { postgres_protocol::escape::escape_identifier(name) }
}

fn unquoted(name: &str) -> String {
    match name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_split_into_equations() {
        let pair = |left: &str, right: &str| vec![(left.to_owned(), right.to_owned())];
        assert_eq!(equations("(w.slug = 'x'::text)"), pair("w.slug", "'x'::text"));
        assert_eq!(equations("((m.uid)::text = 'a AND (b = c'::text)"), pair("(m.uid)::text", "'a AND (b = c'::text"));
        assert_eq!(
            equations("((NOT n.old) AND ((n.model)::text = (m.id)::text))"),
            pair("(n.model)::text", "(m.id)::text")
        );
        assert_eq!(equations("(a.b > 1)"), []);
        assert_eq!(equations("((a.b = 1) OR (a.c = 2))"), []);
        assert_eq!(equations(""), []);
    }

    #[test]
    fn aliases_are_removed_and_columns_found() {
        let bare = |expression, alias| without_alias(expression, alias);
        assert_eq!(bare("(m.uid)::text", "m"), (true, "(uid)::text".into()));
        assert_eq!(bare("lower(m.\"Id\" || xm.a || 'm.x')", "m"), (true, "lower(\"Id\" || xm.a || 'm.x')".into()));
        assert_eq!(bare("\"My M\".id", "\"My M\""), (true, "id".into()));
        assert_eq!(bare("other.id", "m"), (false, "other.id".into()));
        for (expression, column) in [
            ("id", Some("id")),
            ("(uid)::text", Some("uid")),
            ("((\"Model \"\"Id\"\"\")::character varying)::text", Some("\"Model \"\"Id\"\"\"")),
            ("w.slug", Some("w.slug")),
            ("(\"W w\".\"a.b\")::text", Some("\"W w\".\"a.b\"")),
            ("lower(id)", None),
            ("(a || b)", None),
            ("'x'::text", None),
        ] {
            assert_eq!(plain_column(expression), column, "{expression}");
        }
    }

    #[test]
    fn join_tables_are_recognized_by_the_column_they_are_joined_with() {
        let plan = serde_json::json!({"Node Type": "Seq Scan", "Schema": "s", "Relation Name": "models", "Alias": "m",
            "Filter": "((m.uid)::text = 'model-catalog check'::text)", "Plans": [
                {"Node Type": "Aggregate", "Plans": [
                    {"Node Type": "Index Scan", "Schema": "s", "Relation Name": "needs", "Alias": "n",
                     "Index Cond": "(n.model = m.uid)"}]},
                {"Node Type": "Seq Scan", "Schema": "s", "Relation Name": "families", "Alias": "f",
                 "Filter": "(f.name = m.family)"}]});
        let scan = |table: &str, seq_scan, id: Option<&str>, to_index: &str| Scan {
            schema: "s".into(),
            table: table.into(),
            seq_scan,
            by_id: id.is_some(),
            id_column: id.map(str::to_owned),
            to_index: Some(to_index.into()),
        };
        let expected = [
            scan("models", true, Some("uid"), "((uid)::text)"),
            scan("needs", false, Some("model"), "model"),
            scan("families", true, None, "name"),
        ];
        let plan: PlanNode = serde_json::from_value(plan).expect("a plan");
        assert_eq!(scans(&plan), expected);
    }
}
