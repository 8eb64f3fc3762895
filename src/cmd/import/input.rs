//! The input file: its format, its entries with their paths, and the row that each entry is converted to.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::json::{decode, elements, members};
use super::row::ImportRow;
use super::{comfyui, workflow};

/// The format of the entries, detected by their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputFormat {
    /// Models in the format of the API.
    Api,
    /// ComfyUI-Manager's `model-list.json`.
    ComfyUi,
    /// The models embedded in a ComfyUI workflow.
    Workflow,
}

/// Why a file can't be imported at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// It is not JSON.
    #[error("it is not valid JSON")]
    Syntax(#[source] serde_json::Error),
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

/// The entries of a file, not decoded yet.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    pub(super) format: InputFormat,
    /// Each with its jq path.
    entries: Vec<(String, &'a RawValue)>,
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

/// The text without a byte order mark, and with `null` instead of `NaN`, `Infinity` and `-Infinity`, which Python
/// writes and JSON does not have.
pub(super) fn standard_json(text: &str) -> Cow<'_, str> {
    let text = text.trim_start_matches('\u{feff}');
    if !text.contains("NaN") && !text.contains("Infinity") {
        return text.into();
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
    result.into()
}

fn finite(text: &str) -> String {
    text.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null")
}

impl<'a> Entries<'a> {
    /// Splits a text into its entries, without decoding them.
    pub(super) fn parse(text: &'a str) -> Result<Self, InputError> {
        let document: &RawValue = serde_json::from_str(text).map_err(InputError::Syntax)?;
        // First: a workflow may have an array `models` at its top, too.
        if workflow::is_workflow(document) {
            let entries = workflow::model_files(document);
            if entries.is_empty() {
                return Err(InputError::NoEmbeddedModels);
            }
            return Ok(Self { format: InputFormat::Workflow, entries });
        }
        let numbered = |path: &str, elements: Vec<&'a RawValue>| {
            elements.into_iter().enumerate().map(|(number, entry)| (format!("{path}[{number}]"), entry)).collect()
        };
        let entries: Vec<_> = if let Some(entries) = elements(document) {
            numbered(".", entries)
        } else {
            match members(document).ok_or(InputError::NoModels)?.iter().find(|(key, _)| key == "models") {
                Some((_, models)) => numbered(".models", elements(models).ok_or(InputError::NoModels)?),
                None => vec![(".".into(), document)],
            }
        };
        let format = entries.iter().find_map(|(_, entry)| decode::<Shape>(entry).ok()?.format());
        // An empty list is valid in either format.
        let format = format.or_else(|| entries.is_empty().then_some(InputFormat::Api)).ok_or(InputError::Unknown)?;
        Ok(Self { format, entries })
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The jq path of an entry.
    pub(super) fn path(&self, number: usize) -> &str {
        &self.entries[number].0
    }

    /// Converts an entry to a row.
    ///
    /// # Errors
    /// Why the entry can't be converted, for people.
    pub(super) fn row(&self, number: usize) -> Result<ImportRow, String> {
        let (_, entry) = self.entries[number];
        match self.format {
            InputFormat::Api => decode(entry),
            InputFormat::ComfyUi => comfyui::row(decode(entry)?),
            InputFormat::Workflow => workflow::row(decode(entry)?),
        }
    }

    /// The id or the name of an entry, if it has one.
    pub(super) fn label(&self, number: usize) -> Option<String> {
        #[derive(Deserialize)]
        struct Label {
            id: Option<String>,
            name: Option<String>,
        }
        let label: Label = decode(self.entries[number].1).ok()?;
        label.id.or(label.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_python_that_json_does_not_have_become_null() {
        for (text, expected) in [
            (r#"{"a": NaN, "b": [-Infinity, Infinity]}"#, r#"{"a": null, "b": [null, null]}"#),
            (r#"{"NaN": "x\"NaN\\", "b": NaN}"#, r#"{"NaN": "x\"NaN\\", "b": null}"#),
            (r#""NaN"#, r#""NaN"#),
            ("\u{feff}[1]", "[1]"),
        ] {
            assert_eq!(standard_json(text), expected, "{text}");
        }
    }

    #[test]
    fn format_and_paths_are_detected_by_the_fields() {
        let api = r#"{"id":"a","name":"n","download_url":"https://x/y","save_path":"s"}"#;
        let list = r#"{"name":"n","filename":"f","url":"https://x/y","save_path":"vae","type":"VAE"}"#;
        for (text, format, path) in [
            (api.to_owned(), InputFormat::Api, "."),
            (format!(" [{api},{api}]"), InputFormat::Api, ".[1]"),
            (format!("{{\"models\":[1,{api}],\"not_found\":[]}}"), InputFormat::Api, ".models[1]"),
            (format!("{{\"models\":[{{}},{list}]}}"), InputFormat::ComfyUi, ".models[1]"),
            (format!("[{list},{list}]"), InputFormat::ComfyUi, ".[1]"),
        ] {
            let entries = Entries::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!((entries.format, entries.path(entries.len() - 1)), (format, path), "{text}");
            assert!(entries.row(entries.len() - 1).is_ok(), "{text}");
        }
        assert_eq!(Entries::parse("[]").map(|entries| entries.len()).ok(), Some(0));
        for (text, error) in [
            ("", "it is not valid JSON"),
            ("{\"models\":[", "it is not valid JSON"),
            ("3", "it must be an array"),
            ("{\"models\":{}}", "it must be an array"),
            ("[1]", "its entries are neither"),
            ("{\"error\":\"Model not found\"}", "its entries are neither"),
        ] {
            let found = Entries::parse(text).expect_err(text).to_string();
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
            let error = Entries::parse(&text).expect("entries").row(1).expect_err(json);
            assert!(error.starts_with(reason) && !error.contains(" at line "), "{json}: {error}");
        }
    }
}
