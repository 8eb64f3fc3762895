//! Computing the hashes of files.

use std::fs::File;
use std::io::{self, Read};

use md5::Md5;
use sha1::Sha1;
use sha2::digest::DynDigest;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use crate::catalog::hash::{FileHash, HashKind};

/// Large enough that a read costs little beside hashing, small enough to stay in the second-level cache.
pub const BUFFER: usize = 256 * 1024;

/// A hash that can be computed here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash {
    kind: Kind,
    digits: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    /// Reads the hash of a row; `None` if it cannot be computed here.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let FileHash { kind, digits } = FileHash::parse(text)?;
        let kind = match kind {
            HashKind::Md5 => Kind::Md5,
            HashKind::Sha1 => Kind::Sha1,
            HashKind::Sha224 => Kind::Sha224,
            HashKind::Sha256 => Kind::Sha256,
            HashKind::Sha384 => Kind::Sha384,
            HashKind::Sha512 => Kind::Sha512,
            HashKind::Crc32 | HashKind::Adler32 | HashKind::Sha3_256 | HashKind::Blake2b | HashKind::Blake3 => {
                return None;
            }
        };
        Some(Self { kind, digits })
    }

    /// `KIND:DIGITS`; equal for equal hashes.
    #[must_use]
    pub fn text(&self) -> String {
        let name = match self.kind {
            Kind::Md5 => "md5",
            Kind::Sha1 => "sha1",
            Kind::Sha224 => "sha224",
            Kind::Sha256 => "sha256",
            Kind::Sha384 => "sha384",
            Kind::Sha512 => "sha512",
        };
        format!("{name}:{}", self.digits)
    }

    /// Starts to compute a hash of this kind.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        Hasher(match self.kind {
            Kind::Md5 => Box::new(Md5::default()),
            Kind::Sha1 => Box::new(Sha1::default()),
            Kind::Sha224 => Box::new(Sha224::default()),
            Kind::Sha256 => Box::new(Sha256::default()),
            Kind::Sha384 => Box::new(Sha384::default()),
            Kind::Sha512 => Box::new(Sha512::default()),
        })
    }

    /// Whether a computed hash is this one.
    #[must_use]
    pub fn matches(&self, hasher: Hasher) -> bool {
        let computed = hasher.0.finalize();
        let digits = computed.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        digits == self.digits
    }

    /// Whether all of `file` has this hash. `progress` is given the bytes read so far.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn matches_file(&self, mut file: &File, progress: impl Fn(u64)) -> io::Result<bool> {
        let (mut hasher, mut buffer, mut total) = (self.hasher(), vec![0; BUFFER], 0);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(self.matches(hasher)),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    total += count as u64;
                    progress(total);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A hash being computed.
pub struct Hasher(Box<dyn DynDigest + Send>);

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_match_known_values() {
        for (text, input) in [
            ("d41d8cd98f00b204e9800998ecf8427e", ""),
            ("MD5:900150983CD24FB0D6963F7D28E17F72", "abc"),
            ("sha-1=a9993e364706816aba3e25717850c26c9cd0d89d", "abc"),
            ("sha_224: 23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7", "abc"),
            ("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "abc"),
            ("cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7", "abc"),
            (
                " sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
                "abc",
            ),
        ] {
            let hash = Hash::parse(text).expect(text);
            let mut hasher = hash.hasher();
            hasher.update(input.as_bytes());
            assert!(hash.matches(hasher), "{text}");
            assert_eq!(Hash::parse(&hash.text()), Some(hash));
        }
    }

    #[test]
    fn unsupported_hashes_are_not_computed() {
        for text in
            ["", "0123", "blake3:00", "adler32:01234567", "md5:0123", &"g".repeat(64), "sha-256:", &"ä".repeat(32)]
        {
            assert_eq!(Hash::parse(text), None, "{text}");
        }
    }
}
