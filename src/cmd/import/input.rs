//! The input file: its format, its entries with their paths, and the row that each entry is converted to.

use std::ops::Range;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use simd_json::prelude::Writable;
use simd_json::{Node, Tape};

use super::comfyui;
use super::row::ImportRow;

/// The format of the entries, detected by their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputFormat {
    /// Models in the format of the API.
    Api,
    /// ComfyUI-Manager's `model-list.json`.
    ComfyUi,
}

/// Why a file can't be imported at all.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It is not JSON.
    #[error("it is not valid JSON: {0}")]
    Syntax(String),
    /// It is neither an array nor an object, or `models` is not an array.
    #[error("it must be an array of models, an object with `models`, or one model")]
    NoModels,
    /// No entry has a known format.
    #[error(
        "its entries are neither models in the format of the API (id, name, download_url, save_path, …) \
         nor entries of ComfyUI-Manager's model-list.json (name, filename, url, save_path, …)"
    )]
    Unknown,
}

/// The entries of a file.
#[derive(Debug)]
pub struct Entries<'a> {
    /// Their format.
    pub format: InputFormat,
    /// The file as simd-json's tape.
    nodes: Vec<Node<'a>>,
    /// The nodes of each entry.
    entries: Vec<Range<usize>>,
    /// jq path of the array; `None` if the file is a single model.
    array: Option<&'static str>,
}

/// The fields by which the formats are distinguished.
#[derive(Deserialize)]
struct Shape {
    id: Option<IgnoredAny>,
    download_url: Option<IgnoredAny>,
    filename: Option<IgnoredAny>,
    url: Option<IgnoredAny>,
}

impl Shape {
    fn format(&self) -> Option<InputFormat> {
        if self.id.is_some() || self.download_url.is_some() {
            Some(InputFormat::Api)
        } else if self.filename.is_some() && self.url.is_some() {
            Some(InputFormat::ComfyUi)
        } else {
            None
        }
    }
}

impl<'a> Entries<'a> {
    /// Splits a text into its entries, without decoding them. simd-json unescapes strings in `buffer`, a copy of the
    /// text.
    ///
    /// # Errors
    /// See [`InputError`].
    pub fn parse(text: &str, buffer: &'a mut Vec<u8>) -> Result<Self, InputError> {
        let text = text.trim_start_matches('\u{feff}');
        buffer.clear();
        buffer.extend_from_slice(text.as_bytes());
        let nodes = match simd_json::to_tape(buffer) {
            Ok(tape) => tape.0,
            // serde_json says line and column, which simd-json does not know.
            Err(error) => {
                let message = serde_json::from_str::<IgnoredAny>(text)
                    .map_or_else(|error| error.to_string(), |_| error.to_string());
                return Err(InputError::Syntax(message));
            }
        };
        let (entries, array) = match nodes.first() {
            Some(Node::Array { .. }) => (elements(&nodes, 0), Some(".")),
            Some(Node::Object { .. }) => match members(&nodes).find(|(key, _)| *key == "models") {
                Some((_, models)) if matches!(nodes[models], Node::Array { .. }) => {
                    (elements(&nodes, models), Some(".models"))
                }
                Some(_) => return Err(InputError::NoModels),
                None => (std::iter::once(0..nodes.len()).collect(), None),
            },
            _ => return Err(InputError::NoModels),
        };
        let format = |entry: &Range<usize>| decode::<Shape>(&nodes[entry.clone()]).ok()?.format();
        let format = entries.iter().find_map(format);
        // An empty list is valid in either format.
        let format = format.or_else(|| entries.is_empty().then_some(InputFormat::Api)).ok_or(InputError::Unknown)?;
        Ok(Self { format, nodes, entries, array })
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The jq path of an entry.
    #[must_use]
    pub fn path(&self, number: usize) -> String {
        self.array.map_or(".".into(), |array| format!("{array}[{number}]"))
    }

    /// Converts an entry to a row.
    ///
    /// # Errors
    /// Why the entry can't be converted, for people.
    pub fn row(&self, number: usize) -> Result<ImportRow, String> {
        let nodes = &self.nodes[self.entries[number].clone()];
        match self.format {
            InputFormat::Api => decode::<ApiModel>(nodes)?.row(),
            InputFormat::ComfyUi => comfyui::row(decode(nodes)?),
        }
    }

    /// The id or the name of an entry, if it has one.
    #[must_use]
    pub fn label(&self, number: usize) -> Option<String> {
        #[derive(Deserialize)]
        struct Label {
            id: Option<String>,
            name: Option<String>,
        }
        let label: Label = decode(&self.nodes[self.entries[number].clone()]).ok()?;
        label.id.or(label.name)
    }
}

/// The nodes of the value that begins at `start`.
fn value(nodes: &[Node<'_>], start: usize) -> Range<usize> {
    let descendants = match &nodes[start] {
        Node::Object { count, .. } | Node::Array { count, .. } => *count,
        Node::String(_) | Node::Static(_) => 0,
    };
    start..start + 1 + descendants
}

/// The elements of the array at `array`.
fn elements(nodes: &[Node<'_>], array: usize) -> Vec<Range<usize>> {
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

/// The keys of the object that the file is, each with the node at which its value begins.
fn members<'n>(nodes: &'n [Node<'_>]) -> impl Iterator<Item = (&'n str, usize)> {
    let mut next = 1;
    std::iter::from_fn(move || {
        let Some(Node::String(key)) = nodes.get(next) else { return None };
        let start = next + 1;
        next = value(nodes, start).end;
        Some((*key, start))
    })
}

/// Decodes a value. Where that fails, serde_json is asked for the reason, which it states better.
fn decode<T: DeserializeOwned>(nodes: &[Node<'_>]) -> Result<T, String> {
    let tape = Tape(nodes.to_vec());
    let text = tape.as_value().encode();
    tape.deserialize().or_else(|_| serde_json::from_str(&text).map_err(|error| strip_position(&error)))
}

/// The message of a JSON error without its line and column, which would be relative to the entry.
fn strip_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text).to_owned()
}

/// A model in the format of the API. A missing key means null. An unknown key is an error, because it may be a misspelt
/// one whose value would be lost.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApiModel {
    id: Option<String>,
    name: Option<String>,
    download_url: Option<String>,
    file_size_gb: Option<serde_json::Value>,
    hash: Option<String>,
    auth_required: Option<bool>,
    auth_provider: Option<String>,
    save_path: Option<String>,
    dependencies: Option<Vec<String>>,
    description: Option<String>,
    mirrors: Option<Vec<String>>,
}

impl ApiModel {
    fn row(self) -> Result<ImportRow, String> {
        let model = self;
        let json = |list| serde_json::to_string(&list).map_err(|error| error.to_string());
        Ok(ImportRow {
            id: model.id,
            name: model.name,
            download_url: model.download_url,
            file_size_gb: model.file_size_gb.map(|number| number.to_string()),
            hash: model.hash,
            auth_required: model.auth_required.unwrap_or_default(),
            auth_provider: model.auth_provider,
            save_path: model.save_path,
            dependencies: model.dependencies.map(json).transpose()?,
            description: model.description,
            mirrors: model.mirrors.filter(|urls| !urls.is_empty()).map(json).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_and_paths_are_detected_by_the_fields() {
        let api = r#"{"id":"a","name":"n","download_url":"https://x/y","save_path":"s"}"#;
        let list = r#"{"name":"n","filename":"f","url":"https://x/y","save_path":"vae","type":"VAE"}"#;
        for (text, format, path) in [
            (api.to_owned(), InputFormat::Api, "."),
            (format!(" [{api},{api}]"), InputFormat::Api, ".[1]"),
            (format!("\u{feff}{{\"models\":[1,{api}],\"not_found\":[]}}"), InputFormat::Api, ".models[1]"),
            (format!("{{\"models\":[{{}},{list}]}}"), InputFormat::ComfyUi, ".models[1]"),
            (format!("[{list},{list}]"), InputFormat::ComfyUi, ".[1]"),
        ] {
            let mut buffer = Vec::new();
            let entries = Entries::parse(&text, &mut buffer).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!((entries.format, entries.path(entries.len() - 1).as_str()), (format, path), "{text}");
            assert!(entries.row(entries.len() - 1).is_ok(), "{text}");
        }
        assert_eq!(Entries::parse("[]", &mut Vec::new()).map(|entries| entries.len()).ok(), Some(0));
        for (text, error) in [
            ("", "it is not valid JSON"),
            ("{\"models\":[", "it is not valid JSON"),
            ("3", "it must be an array"),
            ("{\"models\":{}}", "it must be an array"),
            ("[1]", "its entries are neither"),
            ("{\"error\":\"Model not found\"}", "its entries are neither"),
        ] {
            let found = Entries::parse(text, &mut Vec::new()).expect_err(text).to_string();
            assert!(found.starts_with(error), "{text}: {found}");
        }
    }

    #[test]
    fn invalid_entries_are_errors_with_a_reason_and_without_a_position() {
        for (json, reason) in [
            (r#"{"id":1}"#, "invalid type: integer `1`, expected a string"),
            (r#"{"id":"a","file_size":3}"#, "unknown field `file_size`"),
            (r#"{"id":"a","dependencies":["b",2]}"#, "invalid type: integer `2`, expected a string"),
            (r#"{"id":"a","id":"b"}"#, "duplicate field `id`"),
        ] {
            let text = format!("[{{\"id\":\"x\"}},{json}]");
            let mut buffer = Vec::new();
            let error = Entries::parse(&text, &mut buffer).expect("entries").row(1).expect_err(json);
            assert!(error.starts_with(reason) && !error.contains(" at line "), "{json}: {error}");
        }
    }
}
