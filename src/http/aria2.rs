//! A batch as an input file for `aria2c --input-file`.
//!
//! An item is a line of URLs and, below it, indented options. Fields without an option of aria2 are comments, whose
//! strings are JSON. A value that aria2 would interpret differently is left out, and a comment says so: the rules for
//! rows were made for JSON, and a file in the wrong place is worse than a missing one.

use std::borrow::Cow;
use std::fmt::Write;

use url::Url;

use crate::catalog::dependencies::Selection;
use crate::catalog::entry::Entry;
use crate::catalog::hash::{FileHash, HashKind};
use crate::catalog::model::check_save_path;
use crate::catalog::url_rules::is_plain_url;

/// The schemes that aria2 supports.
const SCHEMES: [&str; 4] = ["http", "https", "ftp", "sftp"];

/// The format of a batch response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// JSON, the default.
    Json,
    /// An input file for aria2.
    Aria2,
}

impl Format {
    /// The value of the last `format` in a query; JSON if there is none.
    ///
    /// # Errors
    /// An unknown format; the message lists the known ones.
    pub(crate) fn of_query(query: Option<&str>) -> Result<Self, &'static str> {
        let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        match pairs.filter(|(key, _)| key == "format").last().as_ref().map(|(_, value)| &**value) {
            None | Some("json") => Ok(Self::Json),
            Some("aria2") => Ok(Self::Aria2),
            Some(_) => Err("format must be json or aria2"),
        }
    }
}

/// The beginning of the input file, which lists missing models. [`push_item`] appends the others. Paths are relative to
/// the working directory of aria2.
pub(crate) fn head(selection: &Selection<'_>) -> String {
    let mut file = String::with_capacity(128 + 512 * selection.models.len());
    // Writing to a String cannot fail.
    let _ = writeln!(file, "# model-catalog: {} models; run aria2c in the models folder", selection.models.len());
    for id in &selection.not_found {
        let _ = writeln!(file, "# not found: {}", quoted(id));
    }
    for missing in &selection.missing {
        let (id, by) = (quoted(&missing.id), quoted(&missing.required_by));
        let _ = writeln!(file, "# missing dependency: {id} required by {by}");
    }
    file
}

/// Appends the item of a model to the input file. It takes a few microseconds, as the fields are parsed again.
pub(crate) fn push_item(file: &mut String, entry: &Entry) {
    let Some(model) = entry.fields() else { return };
    let _ = writeln!(file, "\n# id: {}", quoted(&model.id));
    if let Some(size) = model.file_size_gb {
        let _ = writeln!(file, "# size: {size} GB");
        if let Ok(size) = size.get().parse::<f64>() {
            // As precise as the catalog, which rounds.
            let _ = writeln!(file, "# bytes: {:.0}", size * 1e9);
        }
    }
    let _ = writeln!(file, "# auth_required: {}", model.auth_required);
    if let Some(provider) = &model.auth_provider {
        let _ = writeln!(file, "# auth_provider: {}", quoted(provider));
    }
    let mut addresses = Vec::new();
    for (place, url) in
        std::iter::once(&*model.download_url).chain(model.mirrors.iter().map(String::as_str)).enumerate()
    {
        match (address(url), place.checked_sub(1)) {
            (Ok(address), _) => addresses.push(address),
            (Err(reason), None) => _ = writeln!(file, "# left out: download_url {reason}"),
            (Err(reason), Some(index)) => _ = writeln!(file, "# left out: mirrors[{index}] {reason}"),
        }
    }
    match path(&model.save_path) {
        Err(reason) => {
            let _ = writeln!(file, "# left out: save_path {reason}");
        }
        Ok(_) if addresses.is_empty() => {}
        Ok((dir, out)) => {
            // aria2 takes URIs that are separated by tabs for sources of the same file.
            let _ = writeln!(file, "{}\n  dir={dir}\n  out={out}", addresses.join("\t"));
            if let Some(checksum) = model.hash.as_deref().and_then(checksum) {
                let _ = writeln!(file, "  checksum={checksum}");
            }
        }
    }
}

/// A JSON string, which is always a single line.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// The URL in visible ASCII. aria2 would take a text without a scheme that it supports for the path of a file.
fn address(url: &str) -> Result<Cow<'_, str>, &'static str> {
    // Parsing every URL would take most of the time.
    if is_plain_url(url, |scheme| SCHEMES.contains(&scheme)) {
        return Ok(Cow::Borrowed(url));
    }
    let plain = url.bytes().all(|byte| byte.is_ascii_graphic());
    let parsed = Url::parse(url).map_err(|_| "is not an absolute URL")?;
    if !SCHEMES.contains(&parsed.scheme()) {
        return Err("has a scheme that aria2 does not support");
    }
    let address = if plain { Cow::Borrowed(url) } else { Cow::Owned(parsed.into()) };
    // aria2 and the parser agree on URLs that start with a literal `scheme://`.
    let known = ["http://", "https://", "ftp://", "sftp://"].iter().any(|start| address.starts_with(start));
    let one_word = address.bytes().all(|byte| byte.is_ascii_graphic());
    if known && one_word { Ok(address) } else { Err("cannot be written in ASCII without spaces") }
}

/// The folder and the file name, without empty and `.` segments.
fn path(path: &str) -> Result<(String, &str), &'static str> {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parts: Vec<_> = folder.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let dir = if parts.is_empty() { ".".to_owned() } else { parts.join("/") };
    if check_save_path(path).is_err() {
        Err("escapes the models folder")
    } else if name.is_empty() || name == "." {
        Err("has no file name")
    } else if dir.trim() != dir || name.trim() != name {
        Err("has leading or trailing spaces, which aria2 would strip")
    } else if dir.contains("${HOME}") || path.contains(char::is_control) {
        Err("would be interpreted by aria2")
    } else {
        Ok((dir, name))
    }
}

/// The value `KIND=DIGITS` of the option `checksum`; `None` for kinds that aria2 does not support.
fn checksum(hash: &str) -> Option<String> {
    let hash = FileHash::parse(hash)?;
    let kind = match hash.kind {
        HashKind::Md5 => "md5",
        HashKind::Sha1 => "sha-1",
        HashKind::Sha224 => "sha-224",
        HashKind::Sha256 => "sha-256",
        HashKind::Sha384 => "sha-384",
        HashKind::Sha512 => "sha-512",
        HashKind::Adler32 => "adler32",
        HashKind::Crc32 | HashKind::Sha3_256 | HashKind::Blake2b | HashKind::Blake3 => return None,
    };
    Some(format!("{kind}={}", hash.digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_format_in_a_query_is_used() {
        for (query, format) in [
            ("", Ok(Format::Json)),
            ("formats=x&x", Ok(Format::Json)),
            ("format=json", Ok(Format::Json)),
            ("a=b&format=%61ria2", Ok(Format::Aria2)),
            ("format=xml&format=aria2", Ok(Format::Aria2)),
            ("format=", Err(())),
            ("format", Err(())),
            ("format=aria2&format=Aria2", Err(())),
        ] {
            assert_eq!(Format::of_query(Some(query)).map_err(|_| ()), format, "{query}");
        }
        assert_eq!(Format::of_query(None), Ok(Format::Json));
    }

    #[test]
    fn hashes_become_checksums_of_known_kinds() {
        let digits = |count: usize| "0123456789abcdef".repeat(8)[..count].to_owned();
        for (hash, kind) in [
            (digits(32), Some("md5")),
            (digits(40), Some("sha-1")),
            (digits(56), Some("sha-224")),
            (digits(64).to_uppercase(), Some("sha-256")),
            (digits(96), Some("sha-384")),
            (digits(128), Some("sha-512")),
            (format!("sha256:{}", digits(64)), Some("sha-256")),
            (format!("SHA-256={}", digits(64)), Some("sha-256")),
            (format!(" md5: {} ", digits(32)), Some("md5")),
            (format!("adler32:{}", digits(8)), Some("adler32")),
            (digits(8), None),
            (digits(10), None),
            (format!("blake3:{}", digits(64)), None),
            (format!("md5:{}", digits(64)), None),
            (format!("sha-256:{}", "g".repeat(64)), None),
            ("g".repeat(64), None),
            ("ä".repeat(32), None),
            (String::new(), None),
        ] {
            let checksum = checksum(&hash);
            assert_eq!(checksum.as_deref().and_then(|text| text.split('=').next()), kind, "{hash}: {checksum:?}");
        }
        assert_eq!(checksum(&digits(64).to_uppercase()), Some(format!("sha-256={}", digits(64))));
    }

    #[test]
    fn urls_are_ascii_without_spaces_or_rejected() {
        for (url, written) in [
            ("https://h/a%20b?x=1&y=[2]", Some("https://h/a%20b?x=1&y=[2]")),
            ("https://h/a b", Some("https://h/a%20b")),
            (" https://h/a", Some("https://h/a")),
            ("https://ä.example/ö", Some("https://xn--4ca.example/%C3%B6")),
            ("HTTPS://h/a", None),
            ("https:h/a", None),
            ("magnet:?xt=x", None),
            ("file:///etc/passwd", None),
            ("s3://bucket/key", None),
        ] {
            assert_eq!(address(url).ok().as_deref(), written, "{url}");
        }
    }

    #[test]
    fn paths_that_aria2_would_interpret_are_rejected() {
        for (text, written) in [
            ("a/b/c.bin", Some(("a/b", "c.bin"))),
            ("c.bin", Some((".", "c.bin"))),
            (".//a/./b", Some(("a", "b"))),
            ("a = b/#c", Some(("a = b", "#c"))),
            ("/etc/passwd", None),
            ("a/../b", None),
            ("a\\b", None),
            ("a/", None),
            ("a/.", None),
            (" a/b", None),
            ("a/b ", None),
            ("a/ b", None),
            ("${HOME}/.profile", None),
            ("a\n  dir=/etc", None),
        ] {
            let written = written.map(|(dir, name)| (dir.to_owned(), name));
            assert_eq!(path(text).ok(), written, "{text}");
        }
    }
}
