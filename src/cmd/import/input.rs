//! The input file: its format, its entries with their paths, and the row that each entry is converted to.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::comfyui;
use super::row::{ImportRow, strip_position};

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
    Syntax(serde_json::Error),
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
    json: Vec<&'a RawValue>,
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
    /// Splits a text into its entries, without decoding them.
    ///
    /// # Errors
    /// See [`InputError`].
    pub fn parse(text: &'a str) -> Result<Self, InputError> {
        #[derive(Deserialize)]
        struct Object<'a> {
            #[serde(borrow)]
            models: Option<&'a RawValue>,
        }
        let text = text.trim_start_matches('\u{feff}');
        let root: &RawValue = serde_json::from_str(text).map_err(InputError::Syntax)?;
        let array = |json: &'a RawValue| serde_json::from_str(json.get()).map_err(|_| InputError::NoModels);
        let (json, array): (Vec<&RawValue>, _) = if root.get().starts_with('[') {
            (array(root)?, Some("."))
        } else {
            let object: Object<'_> = serde_json::from_str(root.get()).map_err(|_| InputError::NoModels)?;
            match object.models {
                Some(models) => (array(models)?, Some(".models")),
                None => (vec![root], None),
            }
        };
        let format = |json: &&RawValue| serde_json::from_str::<Shape>(json.get()).ok()?.format();
        let format = json.iter().find_map(format);
        // An empty list is valid in either format.
        let format = format.or_else(|| json.is_empty().then_some(InputFormat::Api)).ok_or(InputError::Unknown)?;
        Ok(Self { format, json, array })
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.json.len()
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
        let json = self.json[number].get();
        match self.format {
            InputFormat::Api => ApiModel::row(json),
            InputFormat::ComfyUi => comfyui::row(json),
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
        let label: Label = serde_json::from_str(self.json[number].get()).ok()?;
        label.id.or(label.name)
    }
}

/// A model in the format of the API. A missing key means null. An unknown key is an error, because it may be a misspelt
/// one whose value would be lost.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApiModel<'a> {
    id: Option<String>,
    name: Option<String>,
    download_url: Option<String>,
    #[serde(borrow)]
    file_size_gb: Option<&'a RawValue>,
    hash: Option<String>,
    auth_required: Option<bool>,
    auth_provider: Option<String>,
    save_path: Option<String>,
    #[serde(borrow)]
    dependencies: Option<Vec<Cow<'a, str>>>,
    description: Option<String>,
}

impl ApiModel<'_> {
    fn row(json: &str) -> Result<ImportRow, String> {
        let model: ApiModel<'_> = serde_json::from_str(json).map_err(|error| strip_position(&error))?;
        let dependencies = model.dependencies.map(|ids| serde_json::to_string(&ids)).transpose();
        Ok(ImportRow {
            id: model.id,
            name: model.name,
            download_url: model.download_url,
            file_size_gb: model.file_size_gb.map(|number| number.get().into()),
            hash: model.hash,
            auth_required: model.auth_required.unwrap_or_default(),
            auth_provider: model.auth_provider,
            save_path: model.save_path,
            dependencies: dependencies.map_err(|error| strip_position(&error))?,
            description: model.description,
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
            let entries = Entries::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!((entries.format, entries.path(entries.len() - 1).as_str()), (format, path), "{text}");
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
