//! What is in a file: which kind it is, its entries with their places, and the row that each becomes.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{Row, comfyui};

/// What the entries of a file are, told by their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Models as the API answers them.
    Api,
    /// ComfyUI-Manager's `model-list.json`.
    ComfyUi,
}

/// Why a file can't be read at all.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is no JSON.
    #[error("it is no JSON: {0}")]
    Syntax(serde_json::Error),
    /// It is neither an array nor an object.
    #[error("it must be an array of models, an object with `models`, or one model")]
    NoModels,
    /// No entry is of a kind.
    #[error(
        "its entries are neither models as the API answers them (id, name, download_url, save_path, …) \
         nor those of ComfyUI-Manager's model-list.json (name, filename, url, save_path, …)"
    )]
    Unknown,
}

/// The entries of a file.
#[derive(Debug)]
pub struct Entries<'a> {
    /// What they are.
    pub kind: Kind,
    json: Vec<&'a RawValue>,
    /// Path of the array, as jq writes it; `None` = the file is one model.
    array: Option<&'static str>,
}

/// The fields by which the kinds are told apart.
#[derive(Deserialize)]
struct Shape {
    id: Option<IgnoredAny>,
    download_url: Option<IgnoredAny>,
    filename: Option<IgnoredAny>,
    url: Option<IgnoredAny>,
}

impl Shape {
    fn kind(&self) -> Option<Kind> {
        if self.id.is_some() || self.download_url.is_some() {
            Some(Kind::Api)
        } else if self.filename.is_some() && self.url.is_some() {
            Some(Kind::ComfyUi)
        } else {
            None
        }
    }
}

impl<'a> Entries<'a> {
    /// The entries of a text, each still to be read.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn of(text: &'a str) -> Result<Self, FileError> {
        #[derive(Deserialize)]
        struct Object<'a> {
            #[serde(borrow)]
            models: Option<&'a RawValue>,
        }
        let text = text.trim_start_matches('\u{feff}');
        let whole: &RawValue = serde_json::from_str(text).map_err(FileError::Syntax)?;
        let array = |json: &'a RawValue| serde_json::from_str(json.get()).map_err(|_| FileError::NoModels);
        let (json, array): (Vec<&RawValue>, _) = if whole.get().starts_with('[') {
            (array(whole)?, Some("."))
        } else {
            let object: Object<'_> = serde_json::from_str(whole.get()).map_err(|_| FileError::NoModels)?;
            match object.models {
                Some(models) => (array(models)?, Some(".models")),
                None => (vec![whole], None),
            }
        };
        let shape = |json: &&RawValue| serde_json::from_str::<Shape>(json.get()).ok()?.kind();
        let kind = json.iter().find_map(shape);
        // An empty list is of any kind.
        let kind = kind.or_else(|| json.is_empty().then_some(Kind::Api)).ok_or(FileError::Unknown)?;
        Ok(Self { kind, json, array })
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.json.len()
    }

    /// Where an entry stands, as jq would be asked for it.
    #[must_use]
    pub fn place(&self, number: usize) -> String {
        self.array.map_or(".".into(), |array| format!("{array}[{number}]"))
    }

    /// The row of an entry, or why there can't be one.
    ///
    /// # Errors
    /// A text for people.
    pub fn row(&self, number: usize) -> Result<Row, String> {
        let json = self.json[number].get();
        match self.kind {
            Kind::Api => Model::row(json),
            Kind::ComfyUi => comfyui::row(json),
        }
    }

    /// What people would know an entry by, if it has that.
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

/// A model as the API answers it. A key that is missing counts as null; one that does not exist is an error, for it
/// may be a misspelt one, whose value would be lost.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model<'a> {
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

impl Model<'_> {
    fn row(json: &str) -> Result<Row, String> {
        let model: Model<'_> = serde_json::from_str(json).map_err(|error| wrong(&error))?;
        let dependencies = model.dependencies.map(|ids| serde_json::to_string(&ids)).transpose();
        Ok(Row {
            id: model.id,
            name: model.name,
            download_url: model.download_url,
            file_size_gb: model.file_size_gb.map(|number| number.get().into()),
            hash: model.hash,
            auth_required: model.auth_required.unwrap_or_default(),
            auth_provider: model.auth_provider,
            save_path: model.save_path,
            dependencies: dependencies.map_err(|error| wrong(&error))?,
            description: model.description,
        })
    }
}

/// What is wrong with an entry. serde_json adds line and column, which would be counted from the entry's beginning.
pub fn wrong(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_places_are_told_by_the_shape() {
        let api = r#"{"id":"a","name":"n","download_url":"https://x/y","save_path":"s"}"#;
        let list = r#"{"name":"n","filename":"f","url":"https://x/y","save_path":"vae","type":"VAE"}"#;
        for (text, kind, place) in [
            (api.to_owned(), Kind::Api, "."),
            (format!(" [{api},{api}]"), Kind::Api, ".[1]"),
            (format!("\u{feff}{{\"models\":[1,{api}],\"not_found\":[]}}"), Kind::Api, ".models[1]"),
            (format!("{{\"models\":[{{}},{list}]}}"), Kind::ComfyUi, ".models[1]"),
            (format!("[{list},{list}]"), Kind::ComfyUi, ".[1]"),
        ] {
            let entries = Entries::of(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!((entries.kind, entries.place(entries.len() - 1).as_str()), (kind, place), "{text}");
            assert!(entries.row(entries.len() - 1).is_ok(), "{text}");
        }
        assert_eq!(Entries::of("[]").map(|entries| entries.len()).ok(), Some(0));
        for (text, error) in [
            ("", "it is no JSON"),
            ("{\"models\":[", "it is no JSON"),
            ("3", "it must be an array"),
            ("{\"models\":{}}", "it must be an array"),
            ("[1]", "its entries are neither"),
            ("{\"error\":\"Model not found\"}", "its entries are neither"),
        ] {
            let said = Entries::of(text).expect_err(text).to_string();
            assert!(said.starts_with(error), "{text}: {said}");
        }
    }

    #[test]
    fn an_entry_that_is_wrong_says_what() {
        for (json, reason) in [
            (r#"{"id":1}"#, "invalid type: integer `1`, expected a string"),
            (r#"{"id":"a","file_size":3}"#, "unknown field `file_size`"),
            (r#"{"id":"a","dependencies":["b",2]}"#, "invalid type: integer `2`, expected a string"),
            (r#"{"id":"a","id":"b"}"#, "duplicate field `id`"),
        ] {
            let text = format!("[{{\"id\":\"x\"}},{json}]");
            let said = Entries::of(&text).expect("entries").row(1).expect_err(json);
            assert!(said.starts_with(reason) && !said.contains(" at line "), "{json}: {said}");
        }
    }
}
