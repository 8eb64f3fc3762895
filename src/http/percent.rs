//! Percent-decoding of path segments and query values. Strict, because a lenient decoder would turn a client's
//! mistake into a 404.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Decodes percent-encoded UTF-8. An error is the rest of a sentence that begins with the name of what is decoded.
pub(super) fn decode(encoded: &str) -> Result<Cow<'_, str>, &'static str> {
    let is_escape =
        |rest: &str| matches!(rest.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    if !encoded.split('%').skip(1).all(is_escape) {
        return Err("is not valid percent-encoding: `%` needs two hexadecimal digits");
    }
    percent_decode_str(encoded).decode_utf8().map_err(|_| "is not valid UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_is_strict() {
        assert_eq!(decode("plain-1.0").as_deref(), Ok("plain-1.0"));
        assert_eq!(decode("a%2Fb%20%c3%a4+").as_deref(), Ok("a/b ä+"));
        for broken in ["%", "%2", "%zz", "a%", "%c3", "%ff", "%+1", "%%41"] {
            assert!(decode(broken).is_err(), "{broken}");
        }
    }
}
