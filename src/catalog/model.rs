//! A model as the database returns it, and the rules a row must pass to be served.
//!
//! Only rows that can harm a machine are rejected. Values that are merely unusual are served unchanged.

use serde_json::value::RawValue;

use super::entry::Fields;
pub use super::row_error::{RowError, SavePathError, UrlError};
pub(crate) use super::rules::DEFAULT_URL_SCHEMES;
pub use super::rules::{RULES_VERSION, Rules};
use super::url_rules::check_url;

/// The columns of the view, in the order in which they are read, written and rendered.
pub(crate) const COLUMNS: [&str; 11] = [
    "id",
    "name",
    "download_url",
    "file_size_gb",
    "hash",
    "auth_required",
    "auth_provider",
    "save_path",
    "dependencies",
    "description",
    "mirrors",
];

/// A row as the database returns it: nothing is validated yet, and any column may be NULL.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawModel<'a> {
    /// Unique id of the model.
    pub id: Option<&'a str>,
    /// File name shown to people.
    pub name: Option<&'a str>,
    /// Absolute URL of the file.
    pub download_url: Option<&'a str>,
    /// Size in GB, in the text format of a Postgres `numeric`.
    pub file_size_gb: Option<&'a str>,
    /// Hash of the file, of any kind.
    pub hash: Option<&'a str>,
    /// Whether the download needs a token.
    pub auth_required: Option<bool>,
    /// The provider that issues the token.
    pub auth_provider: Option<&'a str>,
    /// Path of the file on a machine, relative to its models folder.
    pub save_path: Option<&'a str>,
    /// JSON array of the ids of models that this one needs; NULL means none.
    pub dependencies: Option<&'a str>,
    /// Free text for people.
    pub description: Option<&'a str>,
    /// JSON array of further URLs of the file; NULL means none.
    pub mirrors: Option<&'a str>,
}

impl<'a> RawModel<'a> {
    /// Validates the row and appends its JSON to `json`. After an error, `json` may hold a part of it.
    ///
    /// # Errors
    /// The first rule that the row breaks.
    pub fn render(&self, rules: &Rules, json: &mut Vec<u8>) -> Result<(), RowError> {
        let fields = self.validate(rules)?;
        fields.render(json).map_err(|error| RowError::Unreadable(error.to_string()))
    }

    /// The values in the order of [`COLUMNS`], as Postgres reads them.
    pub(crate) fn texts(&self) -> [Option<&'a str>; COLUMNS.len()] {
        [
            self.id,
            self.name,
            self.download_url,
            self.file_size_gb,
            self.hash,
            self.auth_required.map(|required| if required { "t" } else { "f" }),
            self.auth_provider,
            self.save_path,
            self.dependencies,
            self.description,
            self.mirrors,
        ]
    }

    fn validate(&self, rules: &Rules) -> Result<Fields<'a>, RowError> {
        let fields = Fields {
            id: required("id", self.id)?.into(),
            name: required("name", self.name)?.into(),
            download_url: required("download_url", self.download_url)?.into(),
            file_size_gb: self.file_size_gb.map(size).transpose()?,
            hash: optional("hash", self.hash)?.map(Into::into),
            auth_required: self.auth_required.ok_or(RowError::Missing("auth_required"))?,
            auth_provider: optional("auth_provider", self.auth_provider)?.map(Into::into),
            save_path: required("save_path", self.save_path)?.into(),
            dependencies: strings("dependencies", self.dependencies)?,
            description: optional("description", self.description)?.map(Into::into),
            mirrors: strings("mirrors", self.mirrors)?,
        };
        check_save_path(&fields.save_path)?;
        check_url(&fields.download_url, rules).map_err(RowError::DownloadUrl)?;
        for (index, url) in fields.mirrors.iter().enumerate() {
            check_url(url, rules).map_err(|error| RowError::Mirror(index, error))?;
        }
        Ok(fields)
    }
}

impl Fields<'_> {
    /// Checks fields that were rendered earlier, maybe under other rules.
    ///
    /// # Errors
    /// The first rule that they break.
    pub(super) fn check(&self, rules: &Rules) -> Result<(), RowError> {
        let json = |column, list| serde_json::to_string(list).map_err(|_| RowError::NotStrings(column));
        let (dependencies, mirrors) = (json("dependencies", &self.dependencies)?, json("mirrors", &self.mirrors)?);
        let row = RawModel {
            id: Some(&self.id),
            name: Some(&self.name),
            download_url: Some(&self.download_url),
            file_size_gb: self.file_size_gb.map(RawValue::get),
            hash: self.hash.as_deref(),
            auth_required: Some(self.auth_required),
            auth_provider: self.auth_provider.as_deref(),
            save_path: Some(&self.save_path),
            dependencies: Some(&dependencies),
            description: self.description.as_deref(),
            mirrors: Some(&mirrors),
        };
        row.validate(rules).map(drop)
    }
}

fn required<'a>(column: &'static str, value: Option<&'a str>) -> Result<&'a str, RowError> {
    let value = value.filter(|text| !text.is_empty()).ok_or(RowError::Missing(column))?;
    no_control(column, value)?;
    Ok(value)
}

fn optional<'a>(column: &'static str, value: Option<&'a str>) -> Result<Option<&'a str>, RowError> {
    value.map_or(Ok(()), |text| no_control(column, text))?;
    Ok(value)
}

fn no_control(column: &'static str, text: &str) -> Result<(), RowError> {
    // C1 controls are two bytes, the first of which is 0xC2, so plain ASCII is never decoded. Without an early exit the
    // loop is vectorized.
    if !text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == 0x7f) | (byte == 0xc2)) {
        return Ok(());
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(RowError::ControlCharacter(column, c.into())),
        None => Ok(()),
    }
}

/// Prefix of the names of the files of `pull` in the models folder. No part of a save path may begin with it.
pub(crate) const RESERVED_PREFIX: &str = ".model-catalog";
/// Bytes of a path that Linux accepts (`PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;
/// Bytes of a name that file systems accept (`NAME_MAX`). The names of the files that `pull` adds do not contain it.
const MAX_NAME_BYTES: usize = 255;

/// Checks that a path stays inside the models folder it is joined to, and that a file can have it. Machines write files
/// there, so this is the rule that matters most.
///
/// # Errors
/// [`RowError::SavePath`] with the part of the rule that is broken.
pub(crate) fn check_save_path(path: &str) -> Result<(), RowError> {
    let reserved =
        |part: &str| part.get(..RESERVED_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_PREFIX));
    let parts = || path.split('/');
    let broken = if path.starts_with('/') {
        SavePathError::Absolute
    } else if path.contains('\\') {
        SavePathError::Backslash
    } else if parts().any(|part| part == "..") {
        SavePathError::Escapes
    } else if parts().next_back().is_none_or(|name| ["", "."].contains(&name)) {
        SavePathError::NoFileName
    } else if parts().any(reserved) {
        SavePathError::Reserved
    } else if path.len() > MAX_PATH_BYTES {
        SavePathError::TooLong
    } else if parts().any(|part| part.len() > MAX_NAME_BYTES) {
        SavePathError::LongPart
    } else {
        return Ok(());
    };
    Err(RowError::SavePath(broken))
}

/// The shortest form of a `numeric` in Postgres' text format (digits, an optional fraction, `NaN`, `Infinity`).
fn size(text: &str) -> Result<&RawValue, RowError> {
    let invalid = || RowError::Size(text.chars().take(40).collect());
    let shortest = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
    let finite = shortest.parse::<f64>().is_ok_and(|value| value.is_finite() && !shortest.starts_with('-'));
    if !finite {
        return Err(invalid());
    }
    serde_json::from_str(shortest).map_err(|_| invalid())
}

fn strings(column: &'static str, json: Option<&str>) -> Result<Vec<String>, RowError> {
    let Some(json) = json else { return Ok(Vec::new()) };
    let texts: Vec<String> = serde_json::from_str(json).map_err(|_| RowError::NotStrings(column))?;
    texts.iter().try_for_each(|text| no_control(column, text))?;
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: RawModel<'static> = RawModel {
        id: Some("flux-dev"),
        name: Some("flux1-dev.safetensors"),
        download_url: Some("https://example.org/flux1-dev.safetensors"),
        file_size_gb: Some("23.80"),
        hash: None,
        auth_required: Some(true),
        auth_provider: Some("huggingface"),
        save_path: Some("checkpoints/flux1-dev.safetensors"),
        dependencies: Some(r#"["ae", "clip \"l\""]"#),
        description: Some("größer / ≥ 12B"),
        mirrors: None,
    };

    fn render(raw: RawModel<'_>) -> Result<String, RowError> {
        let mut json = Vec::new();
        raw.render(&Rules::default(), &mut json)?;
        Ok(String::from_utf8(json).expect("JSON is UTF-8"))
    }

    #[test]
    fn keys_are_rendered_in_the_documented_order() {
        assert_eq!(
            render(GOOD).as_deref(),
            Ok(concat!(
                r#"{"id":"flux-dev","name":"flux1-dev.safetensors","#,
                r#""download_url":"https://example.org/flux1-dev.safetensors","file_size_gb":23.8,"hash":null,"#,
                r#""auth_required":true,"auth_provider":"huggingface","#,
                r#""save_path":"checkpoints/flux1-dev.safetensors","#,
                r#""dependencies":["ae","clip \"l\""],"description":"größer / ≥ 12B"}"#
            ))
        );
        let json = render(RawModel { mirrors: Some(r#"["https://a/x"]"#), ..GOOD }).expect("valid");
        let places: Vec<_> = COLUMNS.iter().map(|column| json.find(&format!("\"{column}\":"))).collect();
        assert!(places.is_sorted() && !places.contains(&None), "{places:?}");
    }

    #[test]
    fn sizes_are_rendered_in_shortest_form_and_invalid_ones_rejected() {
        for (text, shortest) in [
            ("23.80", "23.8"),
            ("6.00", "6"),
            ("0.00", "0"),
            ("100", "100"),
            ("0.050", "0.05"),
            ("12345678901234567890.10", "12345678901234567890.1"),
        ] {
            let json = render(RawModel { file_size_gb: Some(text), ..GOOD }).expect(text);
            assert!(json.contains(&format!(r#""file_size_gb":{shortest},"#)), "{text} gave {json}");
        }
        let huge = "9".repeat(400);
        for text in ["-1", "NaN", "Infinity", "-Infinity", "", "1e3x", &huge] {
            let error = render(RawModel { file_size_gb: Some(text), ..GOOD });
            assert!(matches!(error, Err(RowError::Size(_))), "{text} gave {error:?}");
        }
    }

    #[test]
    fn save_paths_that_escape_the_models_folder_are_rejected() {
        for path in ["", "/etc/passwd", "../x", "../../etc/passwd", "a/../../b", "a/..", "..", "a\\b", "..\\x", "a\nb"]
        {
            assert!(render(RawModel { save_path: Some(path), ..GOOD }).is_err(), "{path:?} was accepted");
        }
        let (longest, long) = (format!("a/{}", "b".repeat(255)), format!("a/{}", "ä".repeat(128)));
        let (deepest, deep) = ("a/".repeat(2047) + "bc", "a/".repeat(2048) + "b");
        for (path, broken) in [
            ("a/", SavePathError::NoFileName),
            ("a/.", SavePathError::NoFileName),
            (".", SavePathError::NoFileName),
            (".model-catalog/x", SavePathError::Reserved),
            ("a/.Model-Catalog.json", SavePathError::Reserved),
            (&deep, SavePathError::TooLong),
            (&long, SavePathError::LongPart),
        ] {
            let error = render(RawModel { save_path: Some(path), ..GOOD });
            assert_eq!(error, Err(RowError::SavePath(broken)), "{path:?}");
        }
        for path in ["a", "a/b..c", "...", "a/.../b", ".hidden/x", ".model", "./a", "a//b", "ä ö", &longest, &deepest]
        {
            assert!(render(RawModel { save_path: Some(path), ..GOOD }).is_ok(), "{path:?} was rejected");
        }
    }

    #[test]
    fn urls_need_an_allowed_scheme() {
        for url in
            ["", "flux.safetensors", "//host/x", "ftp://host/x", "file:///etc/passwd", "https://", "javascript:1"]
        {
            assert!(render(RawModel { download_url: Some(url), ..GOOD }).is_err(), "{url:?} was accepted");
        }
        let rules = Rules { url_schemes: vec!["s3".into()] };
        let raw = RawModel { download_url: Some("s3://bucket/key"), ..GOOD };
        assert_eq!(raw.render(&rules, &mut Vec::new()), Ok(()));
    }

    #[test]
    fn urls_with_a_backslash_are_rejected() {
        for url in
            ["http://A\\@B/x", "https:\\\\host\\x", "https://host/a\\b", "https://host/?a\\b", "https://host/#\\"]
        {
            let error = render(RawModel { download_url: Some(url), ..GOOD });
            assert_eq!(error, Err(RowError::DownloadUrl(UrlError::Backslash)), "{url}");
        }
        assert!(render(RawModel { download_url: Some("https://host/a%5Cb"), ..GOOD }).is_ok());
    }

    #[test]
    fn urls_with_credentials_are_rejected_and_not_repeated_in_the_error() {
        for url in [
            "https://hunter2@host/x",
            "https://user:hunter2@host/x",
            "https://:hunter2@host/x",
            "https:user:hunter2@host",
            "ftp://user:hunter2@host/x?token=hunter2",
            "https://host:hunter2/x",
            "https://ho st/?token=hunter2",
            "//hunter2@host",
            "/x?api_key=hunter2",
        ] {
            let error = render(RawModel { download_url: Some(url), ..GOOD }).expect_err(url).to_string();
            assert!(error.starts_with("download_url ") && !error.contains("hunter2"), "{url} gave {error}");
        }
        for url in ["https://host/a@b", "https://host/?u=a:b@c", "https://@host/x", "https://host/x?token=hunter2"] {
            assert!(render(RawModel { download_url: Some(url), ..GOOD }).is_ok(), "{url} was rejected");
        }
    }

    #[test]
    fn mirrors_are_rendered_last_and_only_if_there_are_any() {
        let ten_fields = render(GOOD).expect("valid");
        assert!(!ten_fields.contains("mirrors"));
        assert_eq!(render(RawModel { mirrors: Some("[]"), ..GOOD }).as_ref(), Ok(&ten_fields));
        let json = render(RawModel { mirrors: Some(r#"["https://a/x", "http://b/y"]"#), ..GOOD }).expect("valid");
        let mirrors = r#","mirrors":["https://a/x","http://b/y"]}"#;
        assert_eq!(json, format!("{}{mirrors}", ten_fields.strip_suffix('}').expect("an object")));
    }

    #[test]
    fn mirrors_are_checked_like_the_download_url() {
        for (mirrors, error) in [
            (r#"["https://a/x", "ftp://b/x"]"#, "mirrors[1] has the scheme `ftp`: allowed are http, https"),
            (r#"["https://hunter2@a/x"]"#, "mirrors[0] has a user name or a password before the host"),
            (r#"[""]"#, "mirrors[0] is not an absolute URL: "),
            (r#"["https://a/x", "https:// /hunter2"]"#, "mirrors[1] is not an absolute URL: "),
            (r#"["https://a/\u001b"]"#, "mirrors contains the control character U+001B"),
            ("null", "mirrors must be a JSON array of strings"),
            ("[null]", "mirrors must be a JSON array of strings"),
            (r#""https://a/x""#, "mirrors must be a JSON array of strings"),
        ] {
            let found = render(RawModel { mirrors: Some(mirrors), ..GOOD }).expect_err(mirrors).to_string();
            assert!(found.starts_with(error) && !found.contains("hunter2"), "{mirrors} gave {found}");
        }
    }

    #[test]
    fn missing_values_and_control_characters_are_rejected() {
        assert_eq!(render(RawModel { id: None, ..GOOD }), Err(RowError::Missing("id")));
        assert_eq!(render(RawModel { name: None, ..GOOD }), Err(RowError::Missing("name")));
        assert_eq!(render(RawModel { auth_required: None, ..GOOD }), Err(RowError::Missing("auth_required")));
        for text in ["a\0b", "a\u{1b}[31m", "tab\t", "\u{85}", "\u{7f}"] {
            let error = render(RawModel { description: Some(text), ..GOOD });
            assert!(matches!(error, Err(RowError::ControlCharacter("description", _))), "{text:?} gave {error:?}");
        }
        assert!(
            render(RawModel { hash: None, auth_provider: None, description: None, file_size_gb: None, ..GOOD }).is_ok()
        );
    }

    #[test]
    fn dependencies_are_rendered_as_an_array_of_strings_or_rejected() {
        assert!(
            render(RawModel { dependencies: None, ..GOOD }).is_ok_and(|json| json.contains(r#""dependencies":[]"#))
        );
        for json in ["null", "{}", "\"a\"", "[1]", "[null]", "[[\"a\"]]", "[\"a\\u0000\"]"] {
            assert!(render(RawModel { dependencies: Some(json), ..GOOD }).is_err(), "{json} was accepted");
        }
    }
}
