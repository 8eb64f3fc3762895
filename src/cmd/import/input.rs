//! The input file: its format, its entries with their paths, and the row that each entry is converted to.

use std::ops::Range;

use serde::Deserialize;
use serde::de::IgnoredAny;
use simd_json::Node;

use super::row::ImportRow;
use super::tape::{decode, elements, members};
use super::{comfyui, workflow};

/// The format of the entries, detected by their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputFormat {
    /// Models in the format of the API.
    Api,
    /// ComfyUI-Manager's `model-list.json`.
    ComfyUi,
    /// The models embedded in a ComfyUI workflow.
    Workflow,
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
         nor entries of ComfyUI-Manager's model-list.json (name, filename, url, save_path, …), \
         and it is not a ComfyUI workflow"
    )]
    Unknown,
    /// A workflow that does not say where its models are.
    #[error(
        "it is a ComfyUI workflow without embedded models: no node has properties.models (name, url, directory). \
         ComfyUI omits them when it exports in API format, so use the file that it saves or exports otherwise, and \
         embed the models if that has none"
    )]
    NoEmbeddedModels,
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
    paths: Paths,
}

/// jq paths of the entries.
#[derive(Debug)]
enum Paths {
    /// The file is a single model.
    Root,
    /// They are the elements of this array.
    Array(&'static str),
    /// Each has one of its own.
    Each(Vec<String>),
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

/// The text with `null` instead of `NaN`, `Infinity` and `-Infinity`, which Python writes and JSON does not have;
/// `None` if there are none outside of strings.
fn without_nan(text: &str) -> Option<String> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return None;
    }
    let (mut result, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(quote) = rest.find('"') {
        let (outside, string) = rest.split_at(quote);
        result.push_str(&finite(outside));
        let mut escaped = false;
        let is_end = |c: char| {
            let end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            end
        };
        let end = string[1..].find(is_end).map_or(string.len(), |end| end + 2);
        result.push_str(&string[..end]);
        rest = &string[end..];
    }
    result.push_str(&finite(rest));
    Some(result)
}

fn finite(text: &str) -> String {
    text.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null")
}

impl<'a> Entries<'a> {
    /// Splits a text into its entries, without decoding them. simd-json unescapes strings in `buffer`, a copy of the
    /// text.
    ///
    /// # Errors
    /// See [`InputError`].
    pub fn parse(text: &str, buffer: &'a mut Vec<u8>) -> Result<Self, InputError> {
        let text = text.trim_start_matches('\u{feff}');
        let finite = without_nan(text);
        let text = finite.as_deref().unwrap_or(text);
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
        // First: a workflow may have an array `models` at its top, too.
        if workflow::is_workflow(&nodes) {
            let (entries, paths): (Vec<_>, _) = workflow::model_files(&nodes).into_iter().unzip();
            if entries.is_empty() {
                return Err(InputError::NoEmbeddedModels);
            }
            return Ok(Self { format: InputFormat::Workflow, nodes, entries, paths: Paths::Each(paths) });
        }
        let (entries, paths) = match nodes.first() {
            Some(Node::Array { .. }) => (elements(&nodes, 0), Paths::Array(".")),
            Some(Node::Object { .. }) => match members(&nodes, 0).find(|(key, _)| *key == "models") {
                Some((_, models)) if matches!(nodes[models], Node::Array { .. }) => {
                    (elements(&nodes, models), Paths::Array(".models"))
                }
                Some(_) => return Err(InputError::NoModels),
                None => (std::iter::once(0..nodes.len()).collect(), Paths::Root),
            },
            _ => return Err(InputError::NoModels),
        };
        let format = |entry: &Range<usize>| decode::<Shape>(&nodes[entry.clone()]).ok()?.format();
        let format = entries.iter().find_map(format);
        // An empty list is valid in either format.
        let format = format.or_else(|| entries.is_empty().then_some(InputFormat::Api)).ok_or(InputError::Unknown)?;
        Ok(Self { format, nodes, entries, paths })
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The jq path of an entry.
    #[must_use]
    pub fn path(&self, number: usize) -> String {
        match &self.paths {
            Paths::Root => ".".into(),
            Paths::Array(array) => format!("{array}[{number}]"),
            Paths::Each(paths) => paths[number].clone(),
        }
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
            InputFormat::Workflow => workflow::row(decode(nodes)?),
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
    fn numbers_of_python_that_json_does_not_have_become_null() {
        for (text, expected) in [
            (r#"{"a": NaN, "b": [-Infinity, Infinity]}"#, Some(r#"{"a": null, "b": [null, null]}"#)),
            (r#"{"NaN": "x\"NaN\\", "b": NaN}"#, Some(r#"{"NaN": "x\"NaN\\", "b": null}"#)),
            (r#""NaN"#, Some(r#""NaN"#)),
            ("[1]", None),
        ] {
            assert_eq!(without_nan(text).as_deref(), expected, "{text}");
        }
    }

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
