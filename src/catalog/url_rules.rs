//! The rules for URLs, and secrets in valid ones.

use url::Url;

use super::row_error::UrlError;
use super::rules::Rules;

/// Checks that a URL is absolute, unambiguous, of an allowed scheme, and without credentials.
pub(super) fn check_url(text: &str, rules: &Rules) -> Result<(), UrlError> {
    if is_plain_url(text, |scheme| rules.url_schemes.iter().any(|allowed| allowed == scheme)) {
        return Ok(());
    }
    let url = Url::parse(text).map_err(UrlError::NotAbsolute)?;
    if !rules.url_schemes.iter().any(|scheme| scheme == url.scheme()) {
        let (scheme, allowed) = (url.scheme().to_owned(), rules.url_schemes.join(", "));
        return Err(UrlError::Scheme { scheme, allowed });
    }
    if text.contains('\\') {
        return Err(UrlError::Backslash);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::Credentials);
    }
    Ok(())
}

/// The name of the first query parameter that probably carries a secret, such as `token` or `X-Amz-Signature`. Such a
/// URL is served unchanged, because machines need all of it.
pub(crate) fn secret_parameter(url: &str) -> Option<&str> {
    const PARTS: [&str; 6] = ["token", "secret", "signature", "password", "passwd", "apikey"];
    let (_, query) = url.split('#').next()?.split_once('?')?;
    let names = query.split('&').filter_map(|pair| pair.split_once('=')).filter(|(_, value)| !value.is_empty());
    names.map(|(name, _)| name).find(|name| {
        let name = name.to_ascii_lowercase().replace(['-', '_'], "");
        ["sig", "auth", "authorization"].contains(&&*name) || PARTS.iter().any(|part| name.contains(part))
    })
}

/// Whether this URL is so plain that the parser would certainly accept it: an allowed scheme, a host of letters, and
/// nothing but visible ASCII without backslashes. Parsing every URL would take a tenth of a full read.
pub(crate) fn is_plain_url(text: &str, is_allowed: impl FnOnce(&str) -> bool) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let letters = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic()) && !part.starts_with("xn--");
    is_allowed(scheme)
        && host.split('.').all(|part| letters(part) && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
        && path.bytes().fold(true, |plain, byte| plain & byte.is_ascii_graphic() & (byte != b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_queries_are_found_by_parameter_name() {
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
    fn urls_accepted_without_parsing_are_accepted_by_the_parser() {
        let rules = Rules::default();
        let parts = [
            "http", "https", "ftp", ":", "/", "//", "://", "a", "B.c", "-", "1", "xn--", "%", "[", "]", "@", "?", "#",
            "ä", " ", "", "\\",
        ];
        let mut random = fastrand::Rng::with_seed(3);
        let mut plain = 0;
        for _ in 0..200_000 {
            let text: String = (0..random.usize(1..7)).map(|_| parts[random.usize(0..parts.len())]).collect();
            if is_plain_url(&text, |scheme| rules.url_schemes.iter().any(|allowed| allowed == scheme)) {
                plain += 1;
                assert!(Url::parse(&text).is_ok_and(|url| url.has_host()), "{text}");
            }
        }
        assert!(plain > 50, "only {plain} plain URLs were generated");
    }
}
