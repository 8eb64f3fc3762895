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
//! | [`own_sides`] | an equation and an alias | a [`Side`]: the side that is of this table only, if the other is not |
//! | [`found_by_id`] | the other side is the id that is looked up | the table is found by id |
//! | [`joined_by_id`] | the other side is such a column of another table | the table is joined by id |

use serde::Deserialize;

use super::error::CheckError;
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
    /// No index finds the rows: the table or all of an index is read.
    pub(crate) reads_whole_table: bool,
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
    reads_whole_table: bool,
    equations: Vec<Equation>,
}

/// The condition `left = right`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Equation {
    left: String,
    right: String,
}

/// A side of an equation that refers to one table only.
struct Side<'a> {
    /// The side, without the alias of its table.
    own: String,
    /// The other side, which does not refer to this table.
    other: &'a str,
}

/// Plans the look-up; returns the scan of every table that it reads.
pub(crate) async fn look_up(session: &Session) -> Result<Vec<Scan>, CheckError> {
    let rows = session.query_system_catalog(LOOK_UP).await?;
    let text: String = rows.iter().filter_map(|row| row.get(0)).collect();
    let [explained]: [Explained; 1] = serde_json::from_str(&text).map_err(CheckError::Plan)?;
    Ok(scans(&explained.plan))
}

fn scans(plan: &PlanNode) -> Vec<Scan> {
    let (mut nodes, mut joins) = (Vec::new(), Vec::new());
    collect_nodes(plan, &mut nodes);
    join_conditions(plan, &mut joins);
    nodes.iter_mut().for_each(|node| node.equations.extend_from_slice(&joins));
    let aliases: Vec<&str> = nodes.iter().map(|node| node.alias.as_str()).collect();
    let sides: Vec<Vec<Side<'_>>> = nodes.iter().map(|node| own_sides(node, &aliases)).collect();
    // First the tables that are searched for the id itself, then those that are joined with a column found there.
    let found: Vec<Option<&str>> = sides.iter().map(|sides| found_by_id(sides)).collect();
    let column = |(node, id): (&Node, &Option<&str>)| Some(format!("{}.{}", node.alias, plain_column((*id)?)?));
    let ids: Vec<String> = nodes.iter().zip(&found).filter_map(column).collect();
    let all = nodes.iter().zip(&sides).zip(found);
    all.map(|((node, sides), found)| scan(node, sides, found.or_else(|| joined_by_id(sides, &ids)))).collect()
}

/// What is compared with the id that is looked up: `(uid)::text` in `(m.uid)::text = 'model-catalog check'::text`.
fn found_by_id<'a>(sides: &'a [Side<'_>]) -> Option<&'a str> {
    sides.iter().find(|side| side.other.contains(LOOKED_UP_ID)).map(|side| side.own.as_str())
}

/// What is compared with one of `ids`, which are columns with aliases: `model` in `n.model = m.uid`.
fn joined_by_id<'a>(sides: &'a [Side<'_>], ids: &[String]) -> Option<&'a str> {
    let is_id = |side: &&Side<'_>| plain_column(side.other).is_some_and(|other| ids.iter().any(|id| id == other));
    sides.iter().find(is_id).map(|side| side.own.as_str())
}

/// `id`: the expression by which the table is found or joined.
fn scan(node: &Node, sides: &[Side<'_>], id: Option<&str>) -> Scan {
    let indexable = id.or_else(|| sides.first().map(|side| side.own.as_str()));
    Scan {
        schema: node.schema.clone(),
        table: node.table.clone(),
        reads_whole_table: node.reads_whole_table,
        by_id: id.is_some(),
        id_column: id.and_then(plain_column).map(unquoted),
        to_index: indexable.map(|own| if plain_column(own) == Some(own) { own.into() } else { format!("({own})") }),
    }
}

/// The equations of joins; each may refer to any table below the join.
fn join_conditions(plan: &PlanNode, all: &mut Vec<Equation>) {
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
            reads_whole_table: plan.kind == "Seq Scan" || full_index_scan,
            equations,
        });
    }
    plan.plans.iter().for_each(|below| collect_nodes(below, nodes));
}

/// The sides of equations that refer only to this table, if the other side does not.
fn own_sides<'a>(node: &'a Node, aliases: &[&str]) -> Vec<Side<'a>> {
    let both = |Equation { left, right }: &'a Equation| [(left, right), (right, left)];
    let is_of_another = |own: &str| aliases.iter().any(|alias| *alias != node.alias && refers_to(own, alias));
    let side = |(own, other): (&String, &'a String)| {
        let bare = without_alias(own, &node.alias)?;
        (!refers_to(other, &node.alias) && !is_of_another(own)).then_some(Side { own: bare, other })
    };
    node.equations.iter().flat_map(both).filter_map(side).collect()
}

/// The `a = b` among the operands of AND: two of `((a.x = b.x) AND (NOT a.old) AND ((a.y)::text = 'z'::text))`.
fn equations(condition: &str) -> Vec<Equation> {
    let inner = without_parentheses(condition);
    let parts = split(inner, " AND ");
    if parts.len() > 1 {
        return parts.into_iter().flat_map(equations).collect();
    }
    match split(inner, " = ")[..] {
        [left, right] => {
            vec![Equation { left: without_parentheses(left).into(), right: without_parentheses(right).into() }]
        }
        _ => Vec::new(),
    }
}

/// `a = b` of `((a = b))`, and all of `(a) = (b)`, whose outer parentheses do not match each other.
fn without_parentheses(text: &str) -> &str {
    let text = text.trim();
    let Some(inner) = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) else { return text };
    let mut depth = 0;
    let balanced = tokens(inner).all(|(_, token)| {
        depth += nesting(token);
        depth >= 0
    });
    if balanced { without_parentheses(inner) } else { text }
}

/// Splits at a separator outside parentheses, quotes and literals: `(a AND b) AND 'c AND d'` into two parts.
fn split<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (offset, token) in tokens(text) {
        if depth == 0 && offset >= start && text[offset..].starts_with(separator) {
            parts.push(&text[start..offset]);
            start = offset + separator.len();
        }
        depth += nesting(token);
    }
    parts.push(&text[start..]);
    parts
}

fn nesting(token: &str) -> i32 {
    i32::from(token == "(") - i32::from(token == ")")
}

/// Tokens with their offsets: literals, quoted names, words, and any other character alone. `m."Id"` has three.
fn tokens(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let rest = &text[offset..];
        let first = rest.chars().next()?;
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let length = match first {
            // A doubled quote ends one token and begins another, which does no harm here.
            '\'' | '"' => rest[1..].find(first).map_or(rest.len(), |end| end + 2),
            c if word(c) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let token = (offset, &rest[..length]);
        offset += length;
        Some(token)
    })
}

fn refers_to(expression: &str, alias: &str) -> bool {
    without_alias(expression, alias).is_some()
}

/// The expression with the alias removed, if it has columns of it: `lower(uid)` of `lower(m.uid)` and `m`.
fn without_alias(expression: &str, alias: &str) -> Option<String> {
    let prefix = format!("{alias}.");
    let (mut bare, mut skip) = (String::new(), 0);
    for (offset, token) in tokens(expression) {
        let before = expression[..offset].chars().next_back();
        let begins = !before.is_some_and(|c| c.is_alphanumeric() || "_$.\"'".contains(c));
        if begins && !token.starts_with('\'') && expression[offset..].starts_with(&prefix) {
            skip = offset + prefix.len();
        }
        if offset >= skip {
            bare.push_str(token);
        }
    }
    (skip > 0).then_some(bare)
}

/// The column of an expression that is only a column, possibly with casts; with its alias and quotes: `m.uid` of
/// `((m.uid)::character varying)::text`.
fn plain_column(expression: &str) -> Option<&str> {
    let inner = expression.trim_start_matches('(');
    let name = |token: &str| token.starts_with(|c: char| c == '"' || c == '_' || c.is_alphabetic());
    // A name with a doubled quote is two tokens.
    let last = tokens(inner).take_while(|(_, token)| *token == "." || name(token)).last();
    let (column, rest) = inner.split_at(last.map_or(0, |(offset, token)| offset + token.len()));
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
        let pair = |left: &str, right: &str| vec![Equation { left: left.into(), right: right.into() }];
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
        assert_eq!(bare("(m.uid)::text", "m"), Some("(uid)::text".into()));
        assert_eq!(bare("lower(m.\"Id\" || xm.a || 'm.x')", "m"), Some("lower(\"Id\" || xm.a || 'm.x')".into()));
        assert_eq!(bare("\"My M\".id", "\"My M\""), Some("id".into()));
        assert_eq!(bare("other.id", "m"), None);
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
        let scan = |table: &str, reads_whole_table, id: Option<&str>, to_index: &str| Scan {
            schema: "s".into(),
            table: table.into(),
            reads_whole_table,
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
