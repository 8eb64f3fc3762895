//! A file to download, and what may be expected of it.

use reqwest::Url;
use sha2::{Digest, Sha256};

use super::error::Problem;
use super::folder::SavePath;
use super::hash::Hash;
use super::journal::KEY_LENGTH;

pub(crate) const GIGABYTE: f64 = 1e9;
const GIBIBYTE: f64 = 1_073_741_824.0;

/// A model that is to be on disk.
#[derive(Debug)]
pub(crate) struct Model {
    /// Its id.
    pub(crate) id: String,
    /// URL to try first.
    pub(crate) url: Url,
    /// Further URLs of the same file.
    pub(crate) mirrors: Vec<Url>,
    /// Size in bytes according to the catalog, which rounds.
    pub(crate) bytes: Option<u64>,
    /// The same in 10^9 bytes, with the digits of the catalog.
    pub(crate) gigabytes: Option<f64>,
    /// Its hash, if it can be computed here.
    pub(crate) hash: Option<Hash>,
    /// Whether its provider's token is sent.
    pub(crate) auth: bool,
    /// Path of the file.
    pub(crate) path: SavePath,
}

impl Model {
    /// Identifies the partial download: equal for models with the same content and the same path.
    pub(crate) fn key(&self) -> String {
        let content = self.hash.as_ref().map_or_else(|| self.url.to_string(), Hash::text);
        let digest = Sha256::digest(format!("{}\0{content}", self.path.text()));
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..KEY_LENGTH].to_owned()
    }

    /// Equal for models with the same content: the hash, otherwise the URL.
    pub(crate) fn content(&self) -> String {
        content(self.hash.as_ref(), &self.url)
    }

    /// Whether `bytes` is consistent with the catalog's size.
    pub(crate) fn is_plausible(&self, bytes: u64) -> bool {
        self.gigabytes.is_none_or(|size| is_plausible(size, bytes))
    }

    /// The largest file that is consistent with the catalog's size.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
    pub(crate) fn largest(&self) -> Option<u64> {
        self.gigabytes.map(|size| ((size + last_digit(size)) * GIBIBYTE).ceil() as u64)
    }

    /// Compares the server's size with the catalog's. With a hash, only the hash counts, because catalogs contain wrong
    /// sizes.
    ///
    /// # Errors
    /// The sizes differ.
    pub(crate) fn check_size(&self, server: Option<u64>) -> Result<(), Problem> {
        match (server, self.bytes) {
            (Some(server), Some(catalog)) if self.hash.is_none() && !self.is_plausible(server) => {
                Err(Problem::Size { server, catalog })
            }
            _ => Ok(()),
        }
    }
}

fn content(hash: Option<&Hash>, url: &Url) -> String {
    let url_text = || {
        let mut url = url.clone();
        // Pages of the Hugging Face hub link to files with this parameter.
        if url.query() == Some("download=true") {
            url.set_query(None);
        }
        url.into()
    };
    hash.map_or_else(url_text, Hash::text)
}

/// The save path of a row as `pull` uses it, and a text that is equal for rows with the same content.
pub(crate) fn path_and_content(save_path: &str, hash: Option<&str>, url: &str) -> Option<(String, String)> {
    let (path, url) = (SavePath::parse(save_path).ok()?, Url::parse(url).ok()?);
    Some((path.text(), content(hash.and_then(Hash::parse).as_ref(), &url)))
}

/// Whether a file without a hash may have this size in its row, which is rounded to its last digit, up or down, and may
/// be in units of 2^30.
pub(crate) fn is_plausible(gigabytes: f64, bytes: u64) -> bool {
    // A little more than one unit of the last digit, because most fractions are not exact.
    let near = |unit: f64| (bytes as f64 / unit - gigabytes).abs() <= last_digit(gigabytes) * 1.000_001;
    (bytes > 0 || gigabytes == 0.0) && (near(GIGABYTE) || near(GIBIBYTE))
}

/// One unit of the last digit of a size: 0.1 for 23.8. It is at most 1.
fn last_digit(size: f64) -> f64 {
    let digits = size.to_string().split_once('.').map_or(0, |(_, digits)| digits.len());
    0.1f64.powi(i32::try_from(digits).unwrap_or(i32::MAX))
}

/// The models and missing ids of a response.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Models with a valid entry; dependencies come first.
    pub(crate) models: Vec<Model>,
    /// Ids without one, with the reason.
    pub(crate) missing: Vec<(String, Problem)>,
    /// Ids of dependencies, with the model that names them.
    pub(crate) dependencies: Vec<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerance_follows_the_digits_of_the_size() {
        for (size, bytes, expected) in [
            (23.81, 23_802_932_552, true),
            (23.8, 23_802_932_552, true),
            (24.0, 23_802_932_552, true),
            (23.7, 23_802_932_552, false),
            (23.7, 23_640_000_000, true),
            // 22.17 GiB
            (22.17, 23_802_932_552, true),
            (12.0, 23_802_932_552, false),
            (0.003, 0, false),
            (0.003, 3_400_000, true),
            (0.01, 0, false),
            (0.01, 700, true),
            (0.01, 25_000_000, false),
            (0.0, 0, true),
        ] {
            assert_eq!(is_plausible(size, bytes), expected, "{size} {bytes}");
        }
    }
}
