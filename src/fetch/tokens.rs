//! Which token is sent to which host. A token is sent only to its provider's own origins, and only for models with
//! `auth_required`; the rule is applied again to the target of every redirect.

use reqwest::Url;
use reqwest::header::HeaderValue;
use url::Origin;

use super::event::{Event, Events};

const HUGGING_FACE: [&str; 2] = ["https://huggingface.co", "https://hf.co"];
const CIVITAI: [&str; 2] = ["https://civitai.com", "https://civitai.red"];

/// The variable of the token of Hugging Face, which also names the provider.
pub(crate) const HF_TOKEN: &str = "HF_TOKEN";
/// The variable of the token of Civitai, which also names the provider.
pub(crate) const CIVITAI_TOKEN: &str = "CIVITAI_TOKEN";

/// A provider: its origins, and its token if this machine has one.
#[derive(Debug)]
struct Provider {
    /// Environment variable of the token.
    variable: &'static str,
    origins: Vec<Origin>,
    /// `Bearer …`, marked as sensitive, so that Debug output does not show it.
    authorization: Option<HeaderValue>,
}

/// The tokens of this machine.
#[derive(Debug)]
pub(crate) struct Tokens {
    providers: Vec<Provider>,
    /// The hub that replaces Hugging Face.
    endpoint: Option<Url>,
}

impl Tokens {
    /// Creates the list from the settings. Invalid tokens and endpoints are ignored and reported.
    pub(crate) fn new(hugging_face: &str, civitai: &str, endpoint: &str, events: &Events) -> Self {
        let mut origins = parse_origins(&HUGGING_FACE);
        let valid = plain_origin(endpoint);
        if valid.is_none() && !endpoint.trim().is_empty() {
            events.send(Event::EndpointIgnored);
        }
        let endpoint = valid.as_ref().and_then(|_| Url::parse(endpoint).ok());
        origins.extend(valid);
        let provider =
            |variable, origins, token| Provider { variable, origins, authorization: bearer(variable, token, events) };
        let civitai = provider(CIVITAI_TOKEN, parse_origins(&CIVITAI), civitai);
        Self { providers: vec![provider(HF_TOKEN, origins, hugging_face), civitai], endpoint }
    }

    /// Reads the settings from the environment. They have no flags, because command lines are public on a machine.
    pub(crate) fn from_env(events: &Events) -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        Self::new(&variable(HF_TOKEN), &variable(CIVITAI_TOKEN), &variable("HF_ENDPOINT"), events)
    }

    /// The URL that is requested instead of `url`: `HF_ENDPOINT` replaces Hugging Face, as in the hub's own client.
    pub(crate) fn at_endpoint(&self, url: &Url) -> Url {
        let plain = url.username().is_empty() && url.password().is_none();
        let Some(endpoint) = self.endpoint.as_ref().filter(|_| plain) else { return url.clone() };
        if !parse_origins(&HUGGING_FACE).contains(&url.origin()) {
            return url.clone();
        }
        let mut replaced = endpoint.clone();
        replaced.set_path(&format!("{}{}", endpoint.path().trim_end_matches('/'), url.path()));
        replaced.set_query(url.query());
        replaced.set_fragment(None);
        replaced
    }

    /// The header for a request to `url`, if its origin belongs to a provider whose token this machine has.
    pub(crate) fn authorization(&self, url: &Url) -> Option<&HeaderValue> {
        self.provider(url)?.authorization.as_ref()
    }

    /// The environment variable with the token for `url`, whether it is set or not.
    pub(crate) fn variable(&self, url: &Url) -> Option<&'static str> {
        self.provider(url).map(|provider| provider.variable)
    }

    fn provider(&self, url: &Url) -> Option<&Provider> {
        // The part before an `@` can look like the host, so a URL with a user name gets no token.
        let plain = url.username().is_empty() && url.password().is_none();
        let origin = url.origin();
        self.providers.iter().find(|provider| plain && provider.origins.contains(&origin))
    }
}

fn parse_origins(origins: &[&str]) -> Vec<Origin> {
    origins.iter().filter_map(|text| plain_origin(text)).collect()
}

fn plain_origin(text: &str) -> Option<Origin> {
    let url = Url::parse(text).ok()?;
    let plain = url.username().is_empty() && url.password().is_none();
    (["http", "https"].contains(&url.scheme()) && plain).then(|| url.origin())
}

/// The header for a token, without any whitespace in it, as the hub's own client does it.
fn bearer(variable: &str, token: &str, events: &Events) -> Option<HeaderValue> {
    let token: String = token.chars().filter(|c| !c.is_whitespace()).collect();
    if token.is_empty() {
        return None;
    }
    // The characters of RFC 6750.
    let legal = token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~+/=-".contains(&byte));
    let header = legal.then(|| HeaderValue::from_str(&format!("Bearer {token}")).ok()).flatten();
    if header.is_none() {
        events.send(Event::TokenIgnored(variable));
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
        let tokens = Tokens::new(" hf_a\r\n", "c-b", "HTTP://Hub.example:8080//", &Events::default());
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
    fn endpoint_replaces_the_hub() {
        for (endpoint, url, expected) in [
            ("", "https://huggingface.co/a", "https://huggingface.co/a"),
            ("ftp://x", "https://huggingface.co/a", "https://huggingface.co/a"),
            ("http://m:8080/", "https://huggingface.co/a/b%20c?x=1", "http://m:8080/a/b%20c?x=1"),
            ("https://m/hf//", "https://hf.co/a", "https://m/hf/a"),
            ("https://m", "https://cdn.huggingface.co/a", "https://cdn.huggingface.co/a"),
            ("https://m", "http://huggingface.co/a", "http://huggingface.co/a"),
            ("https://m", "https://u@huggingface.co/a", "https://u@huggingface.co/a"),
        ] {
            let replaced = Tokens::new("", "", endpoint, &Events::default()).at_endpoint(&Url::parse(url).expect(url));
            assert_eq!(replaced.as_str(), expected, "{endpoint} {url}");
        }
    }

    #[test]
    fn invalid_tokens_are_not_sent() {
        for token in ["", " ", "a\"b", "a:b", "a\u{e4}", "a\0b", "a\u{1b}"] {
            let tokens = Tokens::new(token, token, "", &Events::default());
            assert_eq!(tokens.authorization(&Url::parse("https://hf.co").expect("plain")), None, "{token:?}");
        }
    }
}
