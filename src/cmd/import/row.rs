//! A row that is to be written to `public.models`, and the rules that it must pass.

use crate::catalog::model::{RawModel, Rules};

/// The column is `numeric(10, 2)` in the default table.
const MAX_SIZE_GB: f64 = 99_999_999.99;
/// Slightly less than the maximum size of a btree entry.
const MAX_ID_BYTES: usize = 2_000;

/// A row to write, not validated yet: any value but `auth_required` may be missing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ImportRow {
    pub id: Option<String>,
    pub name: Option<String>,
    pub download_url: Option<String>,
    /// A JSON number.
    pub file_size_gb: Option<String>,
    pub hash: Option<String>,
    pub auth_required: bool,
    pub auth_provider: Option<String>,
    pub save_path: Option<String>,
    /// A JSON array of strings.
    pub dependencies: Option<String>,
    pub description: Option<String>,
    /// A JSON array of strings, not an empty one.
    pub mirrors: Option<String>,
}

impl ImportRow {
    /// Whether two rows are equal but for the hash, which one of them lacks.
    #[must_use]
    pub fn differs_by_missing_hash(&self, other: &Self) -> bool {
        let without = |row: &Self| Self { hash: None, ..row.clone() };
        self.hash.is_some() != other.hash.is_some() && without(self) == without(other)
    }

    /// The JSON that servers would serve for the row.
    ///
    /// # Errors
    /// The first rule that the row breaks: those of the servers, and limits of the table that would fail the import.
    pub fn render(&self, rules: &Rules) -> Result<Vec<u8>, String> {
        let mut json = Vec::new();
        let raw = RawModel {
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
        };
        raw.render(rules, &mut json).map_err(|error| error.to_string())?;
        if self.file_size_gb.as_ref().is_some_and(|size| size.parse().is_ok_and(|size: f64| size > MAX_SIZE_GB)) {
            return Err(format!("file_size_gb is over {MAX_SIZE_GB}, the maximum of the column"));
        }
        if self.id.as_ref().is_some_and(|id| id.len() > MAX_ID_BYTES) {
            return Err(format!("id is longer than {MAX_ID_BYTES} bytes, the maximum for an index"));
        }
        Ok(json)
    }
}
