//! Metadata that hubs report about a file: its SHA-256, its size, and why they refuse it.
//!
//! Headers and documents are trusted only from an origin that the provider's token may be sent to: whoever controls it
//! controls the file as well.

use reqwest::Url;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use tracing::debug;

use crate::catalog::hash::{FileHash, HashKind};
use crate::fetch::http::Http;
use crate::fetch::tokens::{CIVITAI_TOKEN, HF_TOKEN, Tokens};

/// Entity tag of the file that a `/resolve/` address redirects to: of a large file (LFS or Xet), its SHA-256; of a
/// small one, which git stores, a SHA-1 of git's own. `HUGGINGFACE_HEADER_X_LINKED_ETAG` in
/// <https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/constants.py>, and its use in
/// <https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/file_download.py>.
const LINKED_ETAG: &str = "x-linked-etag";
/// Its size in bytes: `HUGGINGFACE_HEADER_X_LINKED_SIZE`, in the same files.
const LINKED_SIZE: &str = "x-linked-size";
/// The reason for a refusal, such as `RepoNotFound` or `GatedRepo`: `hf_raise_for_status` in
/// <https://github.com/huggingface/huggingface_hub/blob/main/src/huggingface_hub/utils/_http.py>.
const ERROR_CODE: &str = "x-error-code";
/// The response for a repository that is private or does not exist; its status is 401, as that of a gate.
const NO_REPOSITORY: &str = "RepoNotFound";

/// Downloads of Civitai, followed by the number of a model version.
const CIVITAI_DOWNLOAD: &str = "/api/download/models/";
/// The document about a model version: <https://developer.civitai.com/site/reference/model-versions>.
const CIVITAI_VERSION: &str = "/api/v1/model-versions/";
/// Maximum size of that document in bytes. It holds the prompts of example images.
const MAX_DOCUMENT: usize = 8 * 1024 * 1024;
/// Civitai's sizes are in KiB with two decimals.
const SIZE_TOLERANCE: f64 = 1024.0;

/// The metadata in the headers of a chain of responses.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct HubMetadata {
    /// SHA-256 of the file, in lower case.
    pub(crate) sha256: Option<String>,
    /// Bytes of the file.
    pub(crate) bytes: Option<u64>,
    /// Whether the repository does not exist, or is hidden from this token.
    pub(crate) no_repository: bool,
}

impl HubMetadata {
    /// Adds the metadata in the headers of one response.
    pub(crate) fn add(&mut self, tokens: &Tokens, url: &Url, headers: &HeaderMap) {
        if tokens.variable(url) != Some(HF_TOKEN) {
            return;
        }
        let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
        if let Some(hash) = text(LINKED_ETAG).and_then(|tag| sha256(tag.trim_start_matches("W/").trim_matches('"'))) {
            self.sha256 = Some(hash);
        }
        if let Some(bytes) = text(LINKED_SIZE).and_then(|size| size.parse().ok()) {
            self.bytes = Some(bytes);
        }
        self.no_repository |= text(ERROR_CODE) == Some(NO_REPOSITORY);
    }
}

/// A SHA-256 in lower case; `None` for anything else.
fn sha256(text: &str) -> Option<String> {
    let hash = FileHash::parse(text)?;
    (hash.kind == HashKind::Sha256).then_some(hash.digits)
}

/// The address of the file whose page on Hugging Face this is: `/OWNER/NAME/blob/REVISION/PATH`, after `/datasets` or
/// `/spaces` for those, or without an owner for the oldest models.
pub(crate) fn resolve_address(tokens: &Tokens, url: &Url) -> Option<Url> {
    if tokens.variable(url) != Some(HF_TOKEN) {
        return None;
    }
    let mut segments: Vec<_> = url.path_segments()?.collect();
    let blob = segments.iter().position(|segment| *segment == "blob")?;
    if !(1..=3).contains(&blob) || segments.len() < blob + 3 {
        return None;
    }
    segments[blob] = "resolve";
    let mut file = url.clone();
    file.set_path(&segments.join("/"));
    file.set_fragment(None);
    Some(file)
}

#[derive(Deserialize)]
struct Version {
    files: Vec<VersionFile>,
}

#[derive(Deserialize)]
struct VersionFile {
    #[serde(rename = "sizeKB")]
    size_kb: Option<f64>,
    #[serde(default)]
    hashes: Hashes,
}

#[derive(Deserialize, Default)]
struct Hashes {
    #[serde(rename = "SHA256")]
    sha256: Option<String>,
}

/// The SHA-256 that Civitai's API reports for the file at a download address; `None` for other addresses, and if the
/// API does not report it.
pub(crate) async fn civitai_sha256(http: &Http, url: &Url, auth: bool, bytes: Option<u64>) -> Option<String> {
    if http.tokens().variable(url) != Some(CIVITAI_TOKEN) {
        return None;
    }
    let version: u64 = url.path().strip_prefix(CIVITAI_DOWNLOAD)?.trim_end_matches('/').parse().ok()?;
    let mut api = url.clone();
    api.set_path(&format!("{CIVITAI_VERSION}{version}"));
    // The query may hold a token, and selects among the files of the version.
    api.set_query(None);
    match http.document(&api, auth, MAX_DOCUMENT).await {
        Ok(document) => file_sha256(&serde_json::from_slice(&document).ok()?, bytes?),
        Err(problem) => {
            debug!(version, reason = problem.text(), "no document about a model version");
            None
        }
    }
}

/// The SHA-256 of the file of this size. A version has a file per format and precision, and which one a download gets
/// depends on its query and on the preferences of the token's owner, so the size decides.
fn file_sha256(version: &Version, bytes: u64) -> Option<String> {
    let is_same =
        |file: &&VersionFile| file.size_kb.is_some_and(|size| (size * 1024.0 - bytes as f64).abs() < SIZE_TOLERANCE);
    let mut hashes = version.files.iter().filter(is_same).map(|file| sha256(file.hashes.sha256.as_deref()?));
    let first = hashes.next()??;
    hashes.all(|other| other.as_ref() == Some(&first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    use crate::fetch::event::Events;

    fn url(text: &str) -> Url {
        Url::parse(text).expect(text)
    }

    #[test]
    fn pages_of_files_have_the_address_of_the_file() {
        let tokens = Tokens::new("", "", "http://mirror.example:8080", &Events::default());
        for (page, file) in [
            ("https://huggingface.co/a/b/blob/main/c/d.bin", Some("https://huggingface.co/a/b/resolve/main/c/d.bin")),
            ("https://hf.co/gpt2/blob/main/x", Some("https://hf.co/gpt2/resolve/main/x")),
            ("http://mirror.example:8080/a/b/blob/v/x#L1", Some("http://mirror.example:8080/a/b/resolve/v/x")),
            (
                "https://huggingface.co/datasets/a/b/blob/main/blob/x%20y?z=1",
                Some("https://huggingface.co/datasets/a/b/resolve/main/blob/x%20y?z=1"),
            ),
            ("https://huggingface.co/a/b/resolve/main/blob/x", None),
            ("https://huggingface.co/a/b/blob/main", None),
            ("https://huggingface.co/blob/a/b", None),
            ("https://example.org/a/b/blob/main/x", None),
        ] {
            assert_eq!(resolve_address(&tokens, &url(page)).map(String::from).as_deref(), file, "{page}");
        }
    }

    #[test]
    fn headers_are_trusted_only_from_the_hub() {
        let tokens = Tokens::new("", "", "", &Events::default());
        let digits = "0A".repeat(32);
        let mut headers = HeaderMap::new();
        headers.insert(LINKED_ETAG, HeaderValue::from_str(&format!("\"{digits}\"")).expect("ASCII"));
        headers.insert(LINKED_SIZE, HeaderValue::from_static("17"));
        for (address, expected) in [
            ("https://huggingface.co/a/b/resolve/main/x", Some(digits.to_lowercase())),
            ("https://cdn.huggingface.co/x", None),
            ("http://huggingface.co/x", None),
            ("https://civitai.com/x", None),
        ] {
            let mut metadata = HubMetadata::default();
            metadata.add(&tokens, &url(address), &headers);
            assert_eq!((metadata.sha256, metadata.bytes), (expected.clone(), expected.map(|_| 17)), "{address}");
        }
        // The tag of a small file is a SHA-1 of git.
        headers.insert(LINKED_ETAG, HeaderValue::from_str(&"0a".repeat(20)).expect("ASCII"));
        let mut metadata = HubMetadata::default();
        metadata.add(&tokens, &url("https://huggingface.co/x"), &headers);
        assert_eq!((metadata.sha256, metadata.bytes), (None, Some(17)));
    }

    #[test]
    fn file_of_a_version_is_found_by_its_size() {
        let (first, second) = ("A5".repeat(32), "b6".repeat(32));
        let version = |json: serde_json::Value| serde_json::from_value::<Version>(json).expect("a version");
        let files = serde_json::json!({"id": 1, "files": [
            {"sizeKB": 6_775_430.35, "primary": true, "hashes": {"SHA256": first, "AutoV2": "A5F58EB1C3"}},
            {"sizeKB": 2_000.5, "hashes": {"SHA256": second}},
            {"sizeKB": 2_000.5, "type": "VAE", "hashes": {"SHA256": second}},
            {"sizeKB": 30.0, "hashes": {"AutoV2": "A5F58EB1C3"}},
            {"sizeKB": 40.0, "hashes": {"SHA256": first}},
            {"sizeKB": 40.0, "hashes": {"SHA256": second}},
        ]});
        let version = version(files);
        let lower = first.to_lowercase();
        for (bytes, expected) in
            [(6_938_040_678, Some(&lower)), (2_048_512, Some(&second)), (30_720, None), (40_960, None), (7, None)]
        {
            assert_eq!(file_sha256(&version, bytes).as_ref(), expected, "{bytes}");
        }
    }
}
