//! Recognizes what servers send instead of a file, by its first bytes. Only used where no hash says what the file is,
//! or to explain why the hash differs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Longest error body that is parsed. It is far below the size of a model.
const MAX_DOCUMENT: usize = 64 * 1024;

/// Content that is not a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// A web page.
    Html,
    /// A git-lfs pointer, which names the file and its size.
    Pointer,
    /// A JSON document.
    Json,
    /// An XML document.
    Xml,
    /// Compressed data.
    Gzip,
}

impl Foreign {
    /// The name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Html => "a web page (HTML)",
            Self::Pointer => "a git-lfs pointer",
            Self::Json => "a JSON document",
            Self::Xml => "an XML document",
            Self::Gzip => "gzip data",
        }
    }

    /// Identifies a file of `total` bytes by its `beginning`; `None` if it can be the file with this name.
    pub(crate) fn identify(beginning: &[u8], total: u64, name: &str) -> Option<Self> {
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).unwrap_or_default();
        let is = |extensions: &[&str]| extensions.contains(&&*extension);
        if beginning.starts_with(b"version https://git-lfs.github.com/spec/") {
            return Some(Self::Pointer);
        }
        if beginning.starts_with(&[0x1f, 0x8b]) {
            return (!is(&["gz", "tgz"])).then_some(Self::Gzip);
        }
        let text = String::from_utf8_lossy(beginning);
        let text = without_comments(text.trim_start_matches('\u{feff}').trim_start());
        let start: String = text.chars().take(16).collect::<String>().to_ascii_lowercase();
        let begins = |tags: &[&str]| tags.iter().any(|tag| start.starts_with(tag));
        if begins(&["<!doctype html", "<html", "<head", "<body"]) {
            return (!is(&["html", "htm"])).then_some(Self::Html);
        }
        if begins(&["<?xml", "<error>"]) {
            return (!is(&["xml", "svg", "html", "htm"])).then_some(Self::Xml);
        }
        let whole = usize::try_from(total).is_ok_and(|total| total == beginning.len());
        let json = (whole && begins(&["{", "["])).then(|| serde_json::from_str(text).ok()).flatten();
        let is_error = |json: &serde_json::Value| json.get("error").is_some() || json.get("errors").is_some();
        json.filter(|json| !is(&["json"]) || is_error(json)).map(|_| Self::Json)
    }
}

/// The text after leading HTML comments.
fn without_comments(mut text: &str) -> &str {
    while let Some(comment) = text.strip_prefix("<!--") {
        text = comment.split_once("-->").map_or("", |(_, rest)| rest.trim_start());
    }
    text
}

/// Reads the beginning of a file.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read_beginning(file: &File) -> io::Result<Vec<u8>> {
    let (mut beginning, mut length) = (vec![0; MAX_DOCUMENT], 0);
    while length < beginning.len() {
        match file.read_at(&mut beginning[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    beginning.truncate(length);
    Ok(beginning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_identified_by_its_first_bytes() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n";
        for (beginning, name, expected) in [
            (&b"<!DOCTYPE html><html>"[..], "x.bin", Some(Foreign::Html)),
            (b"\xef\xbb\xbf\n <HTML lang=en>", "x.bin", Some(Foreign::Html)),
            (b"<!-- a --> <!-- b -->\n<html>", "x", Some(Foreign::Html)),
            (b"<!doctype html>", "x.html", None),
            (b"<?xml version=\"1.0\"?><Error>", "x.safetensors", Some(Foreign::Xml)),
            (b"<Error><Code>AccessDenied</Code></Error>", "x.safetensors", Some(Foreign::Xml)),
            (b"<?xml version=\"1.0\"?>", "x.xml", None),
            (pointer, "x.safetensors", Some(Foreign::Pointer)),
            (b" {\"message\": \"not found\"}", "x.safetensors", Some(Foreign::Json)),
            (b"[]", "x.safetensors", Some(Foreign::Json)),
            (b"{\"model_type\": \"clip\"}", "config.json", None),
            (b"{\"error\": \"not found\"}", "config.json", Some(Foreign::Json)),
            (b"{not json", "x.safetensors", None),
            (b"\x1f\x8b\x08\0", "x.safetensors", Some(Foreign::Gzip)),
            (b"\x1f\x8b\x08\0", "x.tar.GZ", None),
            (b"<!-- never closed", "x", None),
            (b"GGUF<html>", "x", None),
            (b"", "x", None),
        ] {
            assert_eq!(Foreign::identify(beginning, beginning.len() as u64, name), expected, "{beginning:?} {name}");
        }
        // The header of a safetensors file is JSON, but the file is longer.
        assert_eq!(Foreign::identify(b"{}", 3, "x"), None);
    }
}
