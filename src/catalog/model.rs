//! The ten fields of a model, the rules a row must pass to be served, and its JSON.
//!
//! Only what can hurt a machine is refused; what is merely odd is served as it stands.

use serde::Serialize;
use serde_json::value::RawValue;
use url::Url;

/// A row as it comes from the database: text as it stands, anything may be missing.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawModel<'a> {
    /// Unique name of the model.
    pub id: Option<&'a str>,
    /// File name shown to people.
    pub name: Option<&'a str>,
    /// Absolute URL of the file.
    pub download_url: Option<&'a str>,
    /// Size in GB as Postgres prints a `numeric`.
    pub file_size_gb: Option<&'a str>,
    /// Hash of the file, of any kind.
    pub hash: Option<&'a str>,
    /// Whether the download needs a token.
    pub auth_required: Option<bool>,
    /// Whose token it needs.
    pub auth_provider: Option<&'a str>,
    /// Where a machine writes the file, relative to its models folder.
    pub save_path: Option<&'a str>,
    /// JSON array of the ids it needs; NULL counts as none.
    pub dependencies: Option<&'a str>,
    /// Free text for people.
    pub description: Option<&'a str>,
}

/// Why a row is not served. Its text is shown to DBAs, so it names the column and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A column that must have a value has none.
    #[error("{0} is missing: it needs a value that is not NULL or empty")]
    Missing(&'static str),
    /// A text contains a control character.
    #[error("{0} contains the control character U+{1:04X}: remove it")]
    ControlCharacter(&'static str, u32),
    /// The path could make a machine write outside its models folder.
    #[error("save_path {0}: it must be relative to the models folder, without `..` and without backslashes")]
    SavePath(&'static str),
    /// The address cannot be downloaded from.
    #[error("download_url {0}")]
    DownloadUrl(String),
    /// The size is no number a machine could compare with its free disk.
    #[error("file_size_gb is {0}: it must be a finite number that is not negative, or NULL")]
    Size(String),
    /// The dependencies are no list of ids.
    #[error("dependencies must be a JSON array of strings")]
    Dependencies,
    /// Another row with the same id is served instead.
    #[error("another row has the same id: ids must be unique in the view")]
    Duplicate,
    /// The database sent something that is no text.
    #[error("the row can't be read: {0}")]
    Unreadable(String),
}

/// The settings among the rules.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Schemes that a `download_url` may have, in lower case.
    pub url_schemes: Vec<String>,
}

impl Rules {
    /// The rules in one line, to be compared with those of another run.
    #[must_use]
    pub fn text(&self) -> String {
        self.url_schemes.join(",")
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self { url_schemes: vec!["http".into(), "https".into()] }
    }
}

/// A row that passed the rules, in the order in which its keys are answered.
#[derive(Debug, Serialize)]
struct Model<'a> {
    id: &'a str,
    name: &'a str,
    download_url: &'a str,
    file_size_gb: Option<&'a RawValue>,
    hash: Option<&'a str>,
    auth_required: bool,
    auth_provider: Option<&'a str>,
    save_path: &'a str,
    dependencies: Vec<String>,
    description: Option<&'a str>,
}

impl<'a> RawModel<'a> {
    /// Appends the row's answer to `json`; on a fault, nothing or a part of it.
    ///
    /// # Errors
    /// The first rule that the row breaks.
    pub fn render(&self, rules: &Rules, json: &mut Vec<u8>) -> Result<(), Fault> {
        let model = self.check(rules)?;
        serde_json::to_writer(json, &model).map_err(|error| Fault::Unreadable(error.to_string()))
    }

    fn check(&self, rules: &Rules) -> Result<Model<'a>, Fault> {
        let model = Model {
            id: required("id", self.id)?,
            name: required("name", self.name)?,
            download_url: required("download_url", self.download_url)?,
            file_size_gb: self.file_size_gb.map(size).transpose()?,
            hash: optional("hash", self.hash)?,
            auth_required: self.auth_required.ok_or(Fault::Missing("auth_required"))?,
            auth_provider: optional("auth_provider", self.auth_provider)?,
            save_path: required("save_path", self.save_path)?,
            dependencies: self.dependencies.map_or(Ok(Vec::new()), dependencies)?,
            description: optional("description", self.description)?,
        };
        check_save_path(model.save_path)?;
        check_url(model.download_url, rules)?;
        Ok(model)
    }
}

fn required<'a>(column: &'static str, value: Option<&'a str>) -> Result<&'a str, Fault> {
    let value = value.filter(|text| !text.is_empty()).ok_or(Fault::Missing(column))?;
    no_control(column, value)?;
    Ok(value)
}

fn optional<'a>(column: &'static str, value: Option<&'a str>) -> Result<Option<&'a str>, Fault> {
    value.map_or(Ok(()), |text| no_control(column, text))?;
    Ok(value)
}

fn no_control(column: &'static str, text: &str) -> Result<(), Fault> {
    // C1 controls are two bytes that start with 0xC2, so plain ASCII never takes the slow look.
    if !text.bytes().any(|byte| byte < 0x20 || byte == 0x7f || byte == 0xc2) {
        return Ok(());
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(Fault::ControlCharacter(column, c.into())),
        None => Ok(()),
    }
}

/// Whether a machine can write to the path without leaving its models folder.
///
/// # Errors
/// The rule that it breaks.
pub fn check_save_path(path: &str) -> Result<(), Fault> {
    if path.starts_with('/') {
        Err(Fault::SavePath("is absolute"))
    } else if path.contains('\\') {
        Err(Fault::SavePath("has a backslash"))
    } else if path.split('/').any(|part| part == "..") {
        Err(Fault::SavePath("climbs out of the models folder"))
    } else {
        Ok(())
    }
}

fn check_url(text: &str, rules: &Rules) -> Result<(), Fault> {
    if is_plain_url(text, rules) {
        return Ok(());
    }
    // What is said here is logged and shown to everybody, so no more of the address may be in it than its scheme.
    let url = Url::parse(text).map_err(|error| Fault::DownloadUrl(format!("is no absolute URL: {error}")))?;
    if !rules.url_schemes.iter().any(|scheme| scheme == url.scheme()) {
        let allowed = rules.url_schemes.join(", ");
        return Err(Fault::DownloadUrl(format!("has the scheme `{}`: allowed are {allowed}", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Fault::DownloadUrl(CREDENTIALS.into()));
    }
    Ok(())
}

const CREDENTIALS: &str = "has a user name or a password before the host, which everybody who asks for the model would \
                           read: take it out and set auth_required";

/// The name of a parameter in the query of an address that is likely to be a secret, such as `token` or
/// `X-Amz-Signature`. Such an address is served as it stands, because machines need all of it.
#[must_use]
pub fn secret_parameter(url: &str) -> Option<&str> {
    const PARTS: [&str; 6] = ["token", "secret", "signature", "password", "passwd", "apikey"];
    let (_, query) = url.split('#').next()?.split_once('?')?;
    let names = query.split('&').filter_map(|pair| pair.split_once('=')).filter(|(_, value)| !value.is_empty());
    names.map(|(name, _)| name).find(|name| {
        let name = name.to_ascii_lowercase().replace(['-', '_'], "");
        ["sig", "auth", "authorization"].contains(&&*name) || PARTS.iter().any(|part| name.contains(part))
    })
}

/// Whether this is so plain an address that no parser could refuse it: an allowed scheme, a host of letters, and
/// nothing but visible ASCII. The parser would be a tenth of a full load.
fn is_plain_url(text: &str, rules: &Rules) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let letters = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic()) && !part.starts_with("xn--");
    rules.url_schemes.iter().any(|allowed| allowed == scheme)
        && host.split('.').all(|part| letters(part) && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
        && path.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The shortest form of a `numeric` as Postgres prints it (digits, an optional fraction, `NaN`, `Infinity`).
fn size(text: &str) -> Result<&RawValue, Fault> {
    let fault = || Fault::Size(text.chars().take(40).collect());
    let shortest = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
    let finite = shortest.parse::<f64>().is_ok_and(|value| value.is_finite() && !shortest.starts_with('-'));
    if !finite {
        return Err(fault());
    }
    serde_json::from_str(shortest).map_err(|_| fault())
}

fn dependencies(json: &str) -> Result<Vec<String>, Fault> {
    let ids: Vec<String> = serde_json::from_str(json).map_err(|_| Fault::Dependencies)?;
    ids.iter().try_for_each(|id| no_control("dependencies", id))?;
    Ok(ids)
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
    };

    fn render(raw: RawModel<'_>) -> Result<String, Fault> {
        let mut json = Vec::new();
        raw.render(&Rules::default(), &mut json)?;
        Ok(String::from_utf8(json).expect("JSON is UTF-8"))
    }

    #[test]
    fn keys_are_answered_in_the_order_of_the_contract() {
        assert_eq!(
            render(GOOD).as_deref(),
            Ok(concat!(
                r#"{"id":"flux-dev","name":"flux1-dev.safetensors","#,
                r#""download_url":"https://example.org/flux1-dev.safetensors","file_size_gb":23.8,"hash":null,"#,
                r#""auth_required":true,"auth_provider":"huggingface","save_path":"checkpoints/flux1-dev.safetensors","#,
                r#""dependencies":["ae","clip \"l\""],"description":"größer / ≥ 12B"}"#
            ))
        );
    }

    #[test]
    fn sizes_are_in_shortest_form() {
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
            let fault = render(RawModel { file_size_gb: Some(text), ..GOOD });
            assert!(matches!(fault, Err(Fault::Size(_))), "{text} gave {fault:?}");
        }
    }

    #[test]
    fn paths_that_leave_the_models_folder_are_refused() {
        for path in ["", "/etc/passwd", "../x", "../../etc/passwd", "a/../../b", "a/..", "..", "a\\b", "..\\x", "a\nb"]
        {
            assert!(render(RawModel { save_path: Some(path), ..GOOD }).is_err(), "{path:?} was accepted");
        }
        for path in ["a", "a/b..c", "...", "a/.../b", ".hidden/x", "loras/ä ö.safetensors"] {
            assert!(render(RawModel { save_path: Some(path), ..GOOD }).is_ok(), "{path:?} was refused");
        }
    }

    #[test]
    fn addresses_need_an_allowed_scheme() {
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
    fn addresses_with_a_password_are_refused_and_no_reason_repeats_them() {
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
            let fault = render(RawModel { download_url: Some(url), ..GOOD }).expect_err(url).to_string();
            assert!(fault.starts_with("download_url ") && !fault.contains("hunter2"), "{url} gave {fault}");
        }
        for url in ["https://host/a@b", "https://host/?u=a:b@c", "https://@host/x", "https://host/x?token=hunter2"] {
            assert!(render(RawModel { download_url: Some(url), ..GOOD }).is_ok(), "{url} was refused");
        }
    }

    #[test]
    fn secrets_in_queries_are_known_by_their_names() {
        for (url, name) in [
            ("https://h/x?token=1", Some("token")),
            ("https://h/x?type=Model&api_key=1#f", Some("api_key")),
            ("https://h/x?X-Amz-Date=1&X-Amz-Signature=1", Some("X-Amz-Signature")),
            ("https://h/x?sv=1&sig=1", Some("sig")),
            ("https://h/x?type=Model&format=SafeTensor&size=pruned&fp=fp16", None),
            ("https://h/x?token=", None),
            ("https://h/x?download=true#token=1", None),
            ("https://h/token=1/x", None),
        ] {
            assert_eq!(secret_parameter(url), name, "{url}");
        }
    }

    #[test]
    fn plain_addresses_are_those_the_parser_takes() {
        let rules = Rules::default();
        let parts = [
            "http", "https", "ftp", ":", "/", "//", "://", "a", "B.c", "-", "1", "xn--", "%", "[", "]", "@", "?", "#",
            "ä", " ", "",
        ];
        let mut random = fastrand::Rng::with_seed(3);
        let mut plain = 0;
        for _ in 0..200_000 {
            let text: String = (0..random.usize(1..7)).map(|_| parts[random.usize(0..parts.len())]).collect();
            if is_plain_url(&text, &rules) {
                plain += 1;
                assert!(Url::parse(&text).is_ok_and(|url| url.has_host()), "{text}");
            }
        }
        assert!(plain > 50, "only {plain} plain addresses were made");
    }

    #[test]
    fn missing_values_and_control_characters_are_refused() {
        assert_eq!(render(RawModel { id: None, ..GOOD }), Err(Fault::Missing("id")));
        assert_eq!(render(RawModel { name: None, ..GOOD }), Err(Fault::Missing("name")));
        assert_eq!(render(RawModel { auth_required: None, ..GOOD }), Err(Fault::Missing("auth_required")));
        for text in ["a\0b", "a\u{1b}[31m", "tab\t", "\u{85}", "\u{7f}"] {
            let fault = render(RawModel { description: Some(text), ..GOOD });
            assert!(matches!(fault, Err(Fault::ControlCharacter("description", _))), "{text:?} gave {fault:?}");
        }
        assert!(
            render(RawModel { hash: None, auth_provider: None, description: None, file_size_gb: None, ..GOOD }).is_ok()
        );
    }

    #[test]
    fn dependencies_are_always_an_array_of_strings() {
        assert!(
            render(RawModel { dependencies: None, ..GOOD }).is_ok_and(|json| json.contains(r#""dependencies":[]"#))
        );
        for json in ["null", "{}", "\"a\"", "[1]", "[null]", "[[\"a\"]]", "[\"a\\u0000\"]"] {
            assert!(render(RawModel { dependencies: Some(json), ..GOOD }).is_err(), "{json} was accepted");
        }
    }
}
