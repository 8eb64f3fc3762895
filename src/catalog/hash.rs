//! Kinds of file hashes, and the ways in which rows write them.
//!
//! A hash is served as it is written in its row, whatever it is; this module is for code that has to interpret it.

/// A function that hashes are made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HashKind {
    Crc32,
    Adler32,
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Sha3_256,
    Blake2b,
    Blake3,
}

/// Names without separators, with the number of hexadecimal digits. Where several kinds have the same number of digits,
/// the first is what digits without a name are taken for.
const KINDS: [(&str, usize, HashKind); 11] = [
    ("md5", 32, HashKind::Md5),
    ("sha1", 40, HashKind::Sha1),
    ("sha224", 56, HashKind::Sha224),
    ("sha256", 64, HashKind::Sha256),
    ("sha384", 96, HashKind::Sha384),
    ("sha512", 128, HashKind::Sha512),
    ("crc32", 8, HashKind::Crc32),
    ("adler32", 8, HashKind::Adler32),
    ("sha3256", 64, HashKind::Sha3_256),
    ("blake2b", 128, HashKind::Blake2b),
    ("blake3", 64, HashKind::Blake3),
];

/// The hash of a file, with its kind known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHash {
    /// The function it was made by.
    pub kind: HashKind,
    /// The hash in hexadecimal digits, in lower case, as many as the kind has.
    pub digits: String,
}

impl FileHash {
    /// Reads `DIGITS`, `KIND:DIGITS` or `KIND=DIGITS`; `None` if the kind is unknown or the digits do not fit it. Case,
    /// spaces around each part, and `-` and `_` in the kind do not matter, so `SHA-256: 0A…` is a hash as well. Digits
    /// alone are of the most common kind that has this many.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let (name, digits) = match text.split_once([':', '=']) {
            Some((name, digits)) => (Some(name.trim().replace(['-', '_'], "")), digits.trim()),
            None => (None, &*text),
        };
        let is_kind = |known: &str, length: usize| match &name {
            Some(name) => name == known,
            None => length == digits.len(),
        };
        let (_, length, kind) = KINDS.into_iter().find(|(known, length, _)| is_kind(known, *length))?;
        let fits = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        fits.then(|| Self { kind, digits: digits.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits(count: usize) -> String {
        "0123456789abcdef".repeat(8)[..count].to_owned()
    }

    #[test]
    fn digits_alone_are_of_the_most_common_kind_of_their_length() {
        for (length, kind) in [
            (8, HashKind::Crc32),
            (32, HashKind::Md5),
            (40, HashKind::Sha1),
            (56, HashKind::Sha224),
            (64, HashKind::Sha256),
            (96, HashKind::Sha384),
            (128, HashKind::Sha512),
        ] {
            let digits = digits(length);
            assert_eq!(FileHash::parse(&digits.to_uppercase()), Some(FileHash { kind, digits }));
        }
    }

    #[test]
    fn names_are_read_in_every_common_spelling() {
        for (name, length, kind) in [
            ("crc32:", 8, HashKind::Crc32),
            ("adler32:", 8, HashKind::Adler32),
            (" MD5 : ", 32, HashKind::Md5),
            ("sha-1=", 40, HashKind::Sha1),
            ("SHA-256=", 64, HashKind::Sha256),
            ("sha_256:", 64, HashKind::Sha256),
            ("sha3-256:", 64, HashKind::Sha3_256),
            ("BLAKE3:", 64, HashKind::Blake3),
            ("blake2b:", 128, HashKind::Blake2b),
            ("sha512:", 128, HashKind::Sha512),
        ] {
            let digits = digits(length);
            assert_eq!(FileHash::parse(&format!("{name}{digits} ")), Some(FileHash { kind, digits }), "{name}");
        }
    }

    #[test]
    fn unknown_kinds_and_digits_that_do_not_fit_are_not_hashes() {
        let of = |name: &str, digits: &str| format!("{name}{digits}");
        for text in [
            String::new(),
            "x".into(),
            "abc".into(),
            "zzzzzzzz".into(),
            "0123456g".into(),
            "ä".repeat(32),
            "g".repeat(64),
            digits(10),
            "sha256:abc".into(),
            of("md4:", &digits(32)),
            of(":", &digits(64)),
            of("md5:", &digits(64)),
            of("sha-256:", &"g".repeat(64)),
            of("sha256:sha256:", &digits(64)),
        ] {
            assert_eq!(FileHash::parse(&text), None, "{text}");
        }
    }
}
