//! The body of a batch request, parsed by simd-json.

use simd_json::{Buffers, Node, StaticNode};

/// Buffers of more bytes than this are released after the request that needed them.
const MAX_KEPT_BUFFER: usize = 64 * 1024;

/// An invalid batch body. The messages are part of the HTTP contract.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Not JSON; says where.
    #[error("invalid JSON: {0}")]
    Syntax(String),
    /// `model_ids` is missing or not an array.
    #[error("model_ids must be an array")]
    NotAnArray,
    /// The first element that is not a string, by index.
    #[error("model_ids[{0}] must be a string")]
    NotAString(usize),
    /// `resolve_dependencies` is neither true nor false.
    #[error("resolve_dependencies must be a boolean")]
    NotABoolean,
    /// More ids than the limit.
    #[error("model_ids has {count} ids, the limit is {limit}: split the request")]
    TooMany {
        /// Ids in the request.
        count: usize,
        /// Ids allowed.
        limit: usize,
    },
}

/// A valid batch request.
#[derive(Debug, PartialEq, Eq)]
pub struct BatchRequest<'a> {
    /// In request order, duplicates kept.
    pub ids: Vec<&'a str>,
    /// Whether dependencies are to be included.
    pub resolve_dependencies: bool,
}

/// Parses batch bodies with buffers that one thread reuses.
#[derive(Default)]
pub struct BatchParser {
    buffers: Buffers,
    /// simd-json unescapes strings in place; the original is kept for the error message.
    copy: Vec<u8>,
}

impl BatchParser {
    /// Parses `body`. If several things are wrong, invalid JSON is reported first.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub fn parse(&mut self, body: &[u8], max_batch_ids: usize) -> Result<BatchRequest<'_>, BatchError> {
        if self.copy.capacity() > MAX_KEPT_BUFFER {
            *self = Self::default();
        }
        self.copy.clear();
        self.copy.extend_from_slice(body);
        let tape = simd_json::to_tape_with_buffers(&mut self.copy, &mut self.buffers)
            .map_err(|error| BatchError::Syntax(syntax_error(body, &error)))?;
        from_tape(&tape.0, max_batch_ids)
    }
}

/// serde_json says line and column, which simd-json does not know. It is asked only here, for invalid input.
fn syntax_error(body: &[u8], error: &simd_json::Error) -> String {
    match serde_json::from_slice::<serde_json::Value>(body) {
        Err(error) => error.to_string(),
        Ok(_) => error.to_string(),
    }
}

/// Reads the two keys. As in JavaScript, the last of several equal keys counts.
fn from_tape<'a>(tape: &[Node<'a>], max_batch_ids: usize) -> Result<BatchRequest<'a>, BatchError> {
    let (mut ids, mut resolve_dependencies) = (None, Some(false));
    let mut rest = match tape.split_first() {
        Some((Node::Object { .. }, members)) => members,
        _ => &[],
    };
    while let [Node::String(key), value, ..] = rest {
        let (members, after) = rest[1..].split_at(1 + descendants(value));
        match *key {
            "model_ids" => ids = matches!(value, Node::Array { .. }).then_some(&members[1..]),
            "resolve_dependencies" => {
                resolve_dependencies = match value {
                    Node::Static(StaticNode::Bool(value)) => Some(*value),
                    _ => None,
                }
            }
            _ => {}
        }
        rest = after;
    }
    let ids = strings(ids.ok_or(BatchError::NotAnArray)?)?;
    let resolve_dependencies = resolve_dependencies.ok_or(BatchError::NotABoolean)?;
    if ids.len() > max_batch_ids {
        return Err(BatchError::TooMany { count: ids.len(), limit: max_batch_ids });
    }
    Ok(BatchRequest { ids, resolve_dependencies })
}

/// Up to the first element that is not a string every element is one node, so its place is its index.
fn strings<'a>(elements: &[Node<'a>]) -> Result<Vec<&'a str>, BatchError> {
    let mut strings = Vec::with_capacity(elements.len());
    for element in elements {
        let Node::String(text) = element else { return Err(BatchError::NotAString(strings.len())) };
        strings.push(*text);
    }
    Ok(strings)
}

/// Nodes inside of `node` on the tape.
fn descendants(node: &Node<'_>) -> usize {
    match node {
        Node::Object { count, .. } | Node::Array { count, .. } => *count,
        Node::String(_) | Node::Static(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &[u8]) -> Result<(Vec<String>, bool), String> {
        let mut parser = BatchParser::default();
        let request = parser.parse(body, 3).map_err(|error| error.to_string())?;
        Ok((request.ids.iter().map(ToString::to_string).collect(), request.resolve_dependencies))
    }

    fn ids(body: &str) -> Result<Vec<String>, String> {
        parse(body.as_bytes()).map(|(ids, _)| ids)
    }

    #[test]
    fn accepts_strings_in_any_form() {
        assert_eq!(ids(r#"{"model_ids":["a","b\n\u00e4","😀"]}"#), Ok(vec!["a".into(), "b\nä".into(), "😀".into()]));
        assert_eq!(ids(r#" {"x":{"model_ids":[1]},"model_ids":[],"y":[[]]} "#), Ok(vec![]));
        assert_eq!(ids(r#"{"model\u005fids":["a"]}"#), Ok(vec!["a".into()]));
        assert_eq!(ids(r#"{"model_ids":3,"model_ids":["last"]}"#), Ok(vec!["last".into()]));
    }

    #[test]
    fn reports_wrong_types_and_too_many_ids() {
        for body in ["{}", "[]", "null", "3", "-3", "1.5", "true", r#""model_ids""#, r#"{"model_ids":null}"#] {
            assert_eq!(ids(body), Err("model_ids must be an array".into()), "{body}");
        }
        for body in [r#"{"model_ids":"a"}"#, r#"{"model_ids":{"0":"a"}}"#, r#"{"Model_ids":[]}"#] {
            assert_eq!(ids(body), Err("model_ids must be an array".into()), "{body}");
        }
        for element in ["1", "-1", "0.5", "null", "true", "[]", "[\"a\"]", "{}", "{\"a\":1}"] {
            let body = format!(r#"{{"model_ids":["a","b",{element},4]}}"#);
            assert_eq!(ids(&body), Err("model_ids[2] must be a string".into()), "{body}");
        }
        let many = ids(r#"{"model_ids":["a","b","c","a"]}"#);
        assert_eq!(many, Err("model_ids has 4 ids, the limit is 3: split the request".into()));
    }

    #[test]
    fn resolve_dependencies_is_an_optional_boolean() {
        let parsed =
            |rest: &str| parse(format!(r#"{{"model_ids":["a"]{rest}}}"#).as_bytes()).map(|(_, resolve)| resolve);
        for (rest, expected) in [
            ("", false),
            (r#","resolve_dependencies": true "#, true),
            (r#","resolve_dependencies":false"#, false),
            (r#","resolve_dependencies":1,"resolve_dependencies":true"#, true),
            (r#","x":{"resolve_dependencies":1}"#, false),
        ] {
            assert_eq!(parsed(rest), Ok(expected), "{rest}");
        }
        for value in ["null", "1", "0", "\"true\"", "[]", "[true]", "{}", "1.5"] {
            let error = parsed(&format!(r#","resolve_dependencies":{value}"#));
            assert_eq!(error, Err("resolve_dependencies must be a boolean".into()), "{value}");
        }
        let both = ids(r#"{"resolve_dependencies":1,"model_ids":["a",1]}"#);
        assert_eq!(both, Err("model_ids[1] must be a string".into()));
        let broken = ids(r#"{"model_ids":[],"resolve_dependencies":tru}"#);
        assert!(broken.is_err_and(|error| error.starts_with("invalid JSON: ")));
    }

    #[test]
    fn invalid_json_is_reported_first_with_its_position() {
        let deep = "[".repeat(100_000);
        for body in
            ["", " ", "{", "{]", r#"{"model_ids":[1,}"#, r#"{"model_ids":[]} x"#, r#"{"model_ids":["\ud800"]}"#, &deep]
        {
            let error = ids(body).expect_err(body);
            assert!(error.starts_with("invalid JSON: ") && error.contains("line 1 column"), "{error}");
        }
        assert!(parse(b"{\"model_ids\":[\"\xff\"]}").is_err_and(|error| error.starts_with("invalid JSON: ")));
    }

    #[test]
    fn damaged_bodies_are_refused_where_serde_json_refuses_them() {
        let pieces = [
            "{",
            "}",
            "[",
            "]",
            "\"",
            "\"model_ids\"",
            ":",
            ",",
            " ",
            "\t\n",
            "\"a\"",
            "\"ä/😀\"",
            "\"\"",
            "\\",
            "\\n",
            "\"\\u0041\"",
            "\"\\ud83d\\ude00\"",
            "\"\\ud83d\"",
            "1",
            "-",
            "01",
            "1e400",
            "18446744073709551616",
            ".5",
            "-0",
            "1e",
            "null",
            "tru",
            "x",
            "\u{1}",
            "\u{7f}",
            "\0",
            "\u{2028}",
            "\"model_ids\":[",
            "{\"model_ids\":[\"a\"",
            ",\"b\"",
            "]}",
        ];
        let mut random = fastrand::Rng::with_seed(5);
        let mut parser = BatchParser::default();
        let mut accepted = 0;
        for _ in 0..300_000 {
            let some: String = (0..random.usize(1..6)).map(|_| pieces[random.usize(0..pieces.len())]).collect();
            let text = if random.bool() { some } else { format!("{{\"model_ids\":[\"a\"{some}") };
            let refused = matches!(parser.parse(text.as_bytes(), 10), Err(BatchError::Syntax(_)));
            let expected = serde_json::from_str::<serde_json::Value>(&text).is_err();
            accepted += usize::from(!refused);
            assert_eq!(refused, expected, "{text:?}");
        }
        assert!(accepted > 500, "only {accepted} bodies were valid JSON");
    }
}
