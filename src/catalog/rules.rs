//! The settings of the rules for rows, and their version.

/// Version of the rules that are not settings. Incremented whenever a rule is added or changed, so that the rows of
/// older snapshot files are checked again. A test holds the verdicts on a list of rows, and fails if that is
/// forgotten.
pub const RULES_VERSION: u32 = 3;

/// The configurable part of the rules.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Schemes that are allowed in URLs, in lower case.
    pub url_schemes: Vec<String>,
}

impl Rules {
    /// The rules as one line of text, to detect that a snapshot file was written under other rules.
    pub(crate) fn text(&self) -> String {
        format!("{RULES_VERSION}:{}", self.url_schemes.join(","))
    }
}

/// The schemes that are allowed by default.
pub(crate) const DEFAULT_URL_SCHEMES: &str = "http,https";

impl Default for Rules {
    fn default() -> Self {
        Self { url_schemes: DEFAULT_URL_SCHEMES.split(',').map(String::from).collect() }
    }
}
