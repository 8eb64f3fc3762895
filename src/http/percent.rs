//! Percent-decoding of path segments and query values. Strict, because a lenient decoder would turn a client's
//! mistake into a 404.

use std::borrow::Cow;

/// Decodes percent-encoded UTF-8.
///
/// # Errors
/// The rest of a sentence that begins with the name of what is decoded.
pub(super) fn decode(encoded: &str) -> Result<Cow<'_, str>, &'static str> {
    if !encoded.contains('%') {
        return Ok(Cow::Borrowed(encoded));
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
            match (digit(bytes.next()), digit(bytes.next())) {
                (Some(high), Some(low)) => (high * 16 + low) as u8,
                _ => return Err("is not valid percent-encoding: `%` needs two hexadecimal digits"),
            }
        } else {
            byte
        });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| "is not valid UTF-8")
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
