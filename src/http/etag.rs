//! Revisions and entity tags as clients see them, and `If-None-Match`.

use hyper::HeaderMap;
use hyper::header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH};

/// Hexadecimal digits of a digest.
pub(crate) const DIGITS: usize = 16;

/// 16 hexadecimal digits, as revisions and entity tags are written.
pub(crate) fn hex_digits(digest: u64) -> [u8; DIGITS] {
    std::array::from_fn(|place| b"0123456789abcdef"[(digest >> (60 - 4 * place)) as usize & 0xf])
}

/// The digits as a string.
pub fn hex(digest: u64) -> String {
    hex_digits(digest).map(char::from).iter().collect()
}

/// A header value of hexadecimal digits or an entity tag.
pub(crate) fn header(text: &[u8]) -> HeaderValue {
    // Only hexadecimal digits and quotes come here, which are valid in every header value.
    HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static(""))
}

/// The entity tag of a digest, with its quotes.
pub(crate) fn entity_tag(digest: u64) -> [u8; DIGITS + 2] {
    let mut tag = [b'"'; DIGITS + 2];
    tag[1..=DIGITS].copy_from_slice(&hex_digits(digest));
    tag
}

/// RFC 9110 §13.1.2: `*` or a list of tags, compared weakly.
pub(crate) fn matches_etag(headers: &HeaderMap, etag: &[u8]) -> bool {
    let tags = headers.get_all(IF_NONE_MATCH).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tags.map(<[u8]>::trim_ascii).any(|tag| tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag)
}

/// Sets the entity tag of a response; caches must revalidate it before each use.
pub(crate) fn set_etag(headers: &mut HeaderMap, etag: &[u8]) {
    headers.insert(ETAG, header(etag));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_are_compared_weakly() {
        let matches = |value: &'static str| {
            let headers = HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_static(value))]);
            matches_etag(&headers, &entity_tag(0x0123_4567_89ab_cdef))
        };
        for value in ["\"0123456789abcdef\"", "W/\"0123456789abcdef\"", "\"x\", \"0123456789abcdef\"", "*"] {
            assert!(matches(value), "{value}");
        }
        for value in ["", "0123456789abcdef", "\"0123456789ABCDEF\"", "\"x\"", "\"\"", "\""] {
            assert!(!matches(value), "{value}");
        }
    }
}
