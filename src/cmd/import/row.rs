//! A row that is to be written to `public.models`, and the rules that it must pass.

use serde::{Deserialize, Deserializer};

use crate::catalog::model::{RawModel, Rules};

/// The column is `numeric(10, 2)` in the default table.
const MAX_SIZE_GB: f64 = 99_999_999.99;
/// Slightly less than the maximum size of a btree entry.
const MAX_ID_BYTES: usize = 2_000;

/// A row to write, not validated yet: any value but `auth_required` may be missing.
///
/// It is read from a model in the format of the API, where a missing key means null. An unknown key is an error,
/// because it may be a misspelt one whose value would be lost.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportRow {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) download_url: Option<String>,
    /// A JSON number.
    #[serde(default, deserialize_with = "number")]
    pub(super) file_size_gb: Option<String>,
    pub(super) hash: Option<String>,
    #[serde(default, deserialize_with = "true_or_not")]
    pub(super) auth_required: bool,
    pub(super) auth_provider: Option<String>,
    pub(super) save_path: Option<String>,
    /// A JSON array of strings.
    #[serde(default, deserialize_with = "strings")]
    pub(super) dependencies: Option<String>,
    pub(super) description: Option<String>,
    /// A JSON array of strings, not an empty one.
    #[serde(default, deserialize_with = "some_strings")]
    pub(super) mirrors: Option<String>,
}

fn number<'de, D: Deserializer<'de>>(json: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<serde_json::Value>::deserialize(json)?.map(|number| number.to_string()))
}

fn true_or_not<'de, D: Deserializer<'de>>(json: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(json)?.unwrap_or_default())
}

fn strings<'de, D: Deserializer<'de>>(json: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(json)?.map(|texts| serde_json::Value::from(texts).to_string()))
}

fn some_strings<'de, D: Deserializer<'de>>(json: D) -> Result<Option<String>, D::Error> {
    Ok(strings(json)?.filter(|texts| texts != "[]"))
}

impl ImportRow {
    /// Whether two rows are equal but for the hash, which one of them lacks.
    pub(super) fn differs_by_missing_hash(&self, other: &Self) -> bool {
        let without = |row: &Self| Self { hash: None, ..row.clone() };
        self.hash.is_some() != other.hash.is_some() && without(self) == without(other)
    }

    /// The JSON that servers would serve for the row.
    ///
    /// # Errors
    /// The first rule that the row breaks: those of the servers, and limits of the table that would fail the import.
    pub(super) fn render(&self, rules: &Rules) -> Result<Vec<u8>, String> {
        let mut json = Vec::new();
        self.raw().render(rules, &mut json).map_err(|error| error.to_string())?;
        if self.file_size_gb.as_ref().is_some_and(|size| size.parse().is_ok_and(|size: f64| size > MAX_SIZE_GB)) {
            return Err(format!("file_size_gb is over {MAX_SIZE_GB}, the maximum of the column"));
        }
        if self.id.as_ref().is_some_and(|id| id.len() > MAX_ID_BYTES) {
            return Err(format!("id is longer than {MAX_ID_BYTES} bytes, the maximum for an index"));
        }
        Ok(json)
    }

    pub(super) fn raw(&self) -> RawModel<'_> {
        RawModel {
            id: self.id.as_deref(),
            name: self.name.as_deref(),
            download_url: self.download_url.as_deref(),
            file_size_gb: self.file_size_gb.as_deref(),
            hash: self.hash.as_deref(),
            auth_required: Some(self.auth_required),
            auth_provider: self.auth_provider.as_deref(),
            save_path: self.save_path.as_deref(),
            dependencies: self.dependencies.as_deref(),
            description: self.description.as_deref(),
            mirrors: self.mirrors.as_deref(),
        }
    }
}
