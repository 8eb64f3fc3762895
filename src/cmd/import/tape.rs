//! Values in simd-json's tape: where they end, their elements and members, and how they are decoded.

use std::ops::Range;

use serde::de::DeserializeOwned;
use simd_json::prelude::Writable;
use simd_json::{Node, Tape};

/// The nodes of the value that begins at `start`.
pub fn value(nodes: &[Node<'_>], start: usize) -> Range<usize> {
    let descendants = match &nodes[start] {
        Node::Object { count, .. } | Node::Array { count, .. } => *count,
        Node::String(_) | Node::Static(_) => 0,
    };
    start..start + 1 + descendants
}

/// The elements of the array at `array`.
pub fn elements(nodes: &[Node<'_>], array: usize) -> Vec<Range<usize>> {
    let end = value(nodes, array).end;
    let mut next = array + 1;
    std::iter::from_fn(|| {
        (next < end).then(|| {
            let element = value(nodes, next);
            next = element.end;
            element
        })
    })
    .collect()
}

/// The keys of the object at `object`, each with the node at which its value begins.
pub fn members<'n>(nodes: &'n [Node<'_>], object: usize) -> impl Iterator<Item = (&'n str, usize)> {
    let end = value(nodes, object).end;
    let mut next = object + 1;
    std::iter::from_fn(move || {
        let Some(Node::String(key)) = nodes[..end].get(next) else { return None };
        let start = next + 1;
        next = value(nodes, start).end;
        Some((*key, start))
    })
}

/// Decodes a value. Where that fails, serde_json is asked for the reason, which it states better.
///
/// # Errors
/// Why the value is not a `T`, for people.
pub fn decode<T: DeserializeOwned>(nodes: &[Node<'_>]) -> Result<T, String> {
    let tape = Tape(nodes.to_vec());
    let text = tape.as_value().encode();
    tape.deserialize().or_else(|_| serde_json::from_str(&text).map_err(|error| strip_position(&error)))
}

/// The message of a JSON error without its line and column, which would be relative to the entry.
fn strip_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text).to_owned()
}
