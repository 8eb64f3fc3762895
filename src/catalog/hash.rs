//! Kinds of file hashes, and how rows write them. Hashes are served unchanged; this module is for code that interprets
//! them.

use std::fmt;

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum HashKind {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Crc32,
    Adler32,
    Sha3_256,
    Blake2b,
    Blake3,
}

impl HashKind {
    /// All kinds. Where several have the same number of digits, digits without a name are taken for the first of them.
    const ALL: [Self; 11] = [
        Self::Md5,
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::Crc32,
        Self::Adler32,
        Self::Sha3_256,
        Self::Blake2b,
        Self::Blake3,
    ];

    /// The name in lower case and without separators, and the number of hexadecimal digits.
    const fn spelling(self) -> (&'static str, usize) {
        match self {
            Self::Md5 => ("md5", 32),
            Self::Sha1 => ("sha1", 40),
            Self::Sha224 => ("sha224", 56),
            Self::Sha256 => ("sha256", 64),
            Self::Sha384 => ("sha384", 96),
            Self::Sha512 => ("sha512", 128),
            Self::Crc32 => ("crc32", 8),
            Self::Adler32 => ("adler32", 8),
            Self::Sha3_256 => ("sha3256", 64),
            Self::Blake2b => ("blake2b", 128),
            Self::Blake3 => ("blake3", 64),
        }
    }
}

/// The hash of a file, with its kind known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileHash {
    /// The hash function.
    pub(crate) kind: HashKind,
    /// The hash in hexadecimal digits, in lower case, as many as the kind has.
    pub(crate) digits: String,
}

impl FileHash {
    /// Parses `DIGITS`, `KIND:DIGITS` or `KIND=DIGITS`; `None` if the kind is unknown or the digits do not fit it.
    /// Case, spaces around each part, and `-` and `_` in the kind are ignored, so `SHA-256: 0A…` is a hash as well.
    /// Digits without a kind are taken for the most common kind with this many.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let (name, digits) = match text.split_once([':', '=']) {
            Some((name, digits)) => (Some(name.trim().replace(['-', '_'], "")), digits.trim()),
            None => (None, &*text),
        };
        let kind = HashKind::ALL.into_iter().find(|kind| match (kind.spelling(), &name) {
            ((known, _), Some(name)) => name == known,
            ((_, length), None) => length == digits.len(),
        })?;
        let fits = digits.len() == kind.spelling().1 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        fits.then(|| Self { kind, digits: digits.to_owned() })
    }
}

/// `KIND:DIGITS`, which is equal for equal hashes and which `FileHash::parse` accepts.
impl fmt::Display for FileHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.spelling().0, self.digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits(count: usize) -> String {
        "0123456789abcdef".repeat(8)[..count].to_owned()
    }

    #[test]
    fn displayed_hashes_are_parsed_again() {
        for kind in HashKind::ALL {
            let hash = FileHash { kind, digits: digits(kind.spelling().1) };
            assert_eq!(FileHash::parse(&hash.to_string()), Some(hash));
        }
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
