//! Which token may go to which host. A token is sent only to its provider's own origins, and only for models with
//! `auth_required`; the policy is applied again to every address of a redirect.

use reqwest::Url;
use reqwest::header::HeaderValue;
use tracing::warn;
use url::Origin;

const HUGGING_FACE: [&str; 2] = ["https://huggingface.co", "https://hf.co"];
const CIVITAI: [&str; 2] = ["https://civitai.com", "https://civitai.red"];

/// The variable of the token of Hugging Face, which also names the provider.
pub const HF_TOKEN: &str = "HF_TOKEN";
/// The variable of the token of Civitai, which also names the provider.
pub const CIVITAI_TOKEN: &str = "CIVITAI_TOKEN";

/// A provider's origins and its token, if this machine has one.
#[derive(Debug)]
struct Provider {
    /// Environment variable of the token.
    variable: &'static str,
    origins: Vec<Origin>,
    /// `Bearer …`, marked sensitive, so that no Debug output shows it.
    authorization: Option<HeaderValue>,
}

/// The tokens of this machine.
#[derive(Debug)]
pub struct Tokens(Vec<Provider>);

impl Tokens {
    /// Reads the settings; what cannot be a token or an endpoint is ignored with a warning that does not repeat it.
    #[must_use]
    pub fn new(hugging_face: &str, civitai: &str, endpoint: &str) -> Self {
        let mut origins = known(&HUGGING_FACE);
        if !endpoint.trim().is_empty() {
            match plain_origin(endpoint) {
                Some(origin) => origins.push(origin),
                None => warn!("HF_ENDPOINT is ignored: it is not a plain http or https URL"),
            }
        }
        let provider =
            |variable, origins, token| Provider { variable, origins, authorization: bearer(variable, token) };
        Self(vec![provider(HF_TOKEN, origins, hugging_face), provider(CIVITAI_TOKEN, known(&CIVITAI), civitai)])
    }

    /// The header for a request to `url`, if its origin is a provider's whose token this machine has.
    #[must_use]
    pub fn authorization(&self, url: &Url) -> Option<&HeaderValue> {
        self.provider(url)?.authorization.as_ref()
    }

    /// The environment variable of the token that requests to `url` could carry.
    #[must_use]
    pub fn variable(&self, url: &Url) -> Option<&'static str> {
        self.provider(url).map(|provider| provider.variable)
    }

    fn provider(&self, url: &Url) -> Option<&Provider> {
        // With a user name, the part before the `@` looks like a host to people: such an address gets no token.
        let plain = url.username().is_empty() && url.password().is_none();
        let origin = url.origin();
        self.0.iter().find(|provider| plain && provider.origins.contains(&origin))
    }
}

fn known(origins: &[&str]) -> Vec<Origin> {
    origins.iter().filter_map(|text| plain_origin(text)).collect()
}

fn plain_origin(text: &str) -> Option<Origin> {
    let url = Url::parse(text).ok()?;
    let plain = url.username().is_empty() && url.password().is_none();
    (["http", "https"].contains(&url.scheme()) && plain).then(|| url.origin())
}

/// The token without white space around or within it, as the hub's own client reads it.
fn bearer(variable: &str, token: &str) -> Option<HeaderValue> {
    let token: String = token.chars().filter(|c| !c.is_whitespace()).collect();
    if token.is_empty() {
        return None;
    }
    // RFC 6750, and `_` and `.` are among it.
    let legal = token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~+/=-".contains(&byte));
    let header = legal.then(|| HeaderValue::from_str(&format!("Bearer {token}")).ok()).flatten();
    if header.is_none() {
        warn!("{variable} is ignored: it has characters that no token has");
    }
    header.map(|mut header| {
        header.set_sensitive(true);
        header
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_bound_to_provider_origins() {
        let tokens = Tokens::new(" hf_a\r\n", "c-b", "HTTP://Hub.example:8080//");
        let sent = |url: &str| {
            let header = tokens.authorization(&Url::parse(url).expect(url));
            header.map(|header| header.to_str().expect("ASCII").to_owned())
        };
        let (hub, civitai) = (Some("Bearer hf_a".to_owned()), Some("Bearer c-b".to_owned()));
        for (url, expected) in [
            ("https://huggingface.co/a", &hub),
            ("https://HuggingFace.co:443/a", &hub),
            ("https://hf.co/a", &hub),
            ("http://hub.example:8080/a", &hub),
            ("https://civitai.com/a", &civitai),
            ("https://civitai.red/a", &civitai),
        ] {
            assert_eq!(&sent(url), expected, "{url}");
        }
        for url in [
            "http://huggingface.co/a",
            "https://huggingface.co:8443/a",
            "https://huggingface.co./a",
            "https://cdn.huggingface.co/a",
            "https://huggingface.co.example.org/a",
            "https://huggingface.co@example.org/a",
            "https://user@huggingface.co/a",
            "https://:x@huggingface.co/a",
            "https://xn--huggingface-.co/a",
            "https://example.org/https://huggingface.co/",
            "http://civitai.com/a",
            "https://www.civitai.com/a",
            "https://hub.example:8080/a",
            "http://hub.example/a",
            "data:text/plain,huggingface.co",
        ] {
            assert_eq!(Url::parse(url).ok().and_then(|_| sent(url)), None, "{url}");
        }
        assert!(!format!("{tokens:?}").contains("hf_a"), "{tokens:?}");
    }

    #[test]
    fn invalid_tokens_are_not_sent() {
        for token in ["", " ", "a\"b", "a:b", "a\u{e4}", "a\0b", "a\u{1b}"] {
            let tokens = Tokens::new(token, token, "");
            assert_eq!(tokens.authorization(&Url::parse("https://hf.co").expect("plain")), None, "{token:?}");
        }
    }
}
