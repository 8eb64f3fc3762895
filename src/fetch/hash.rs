//! Computes the hashes of files.

use std::fs::File;
use std::io::{self, Read};

use md5::Md5;
use sha1::Sha1;
use sha2::digest::DynDigest;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use crate::catalog::hash::{FileHash, HashKind};

/// Large enough that a read costs little beside hashing, small enough for the L2 cache.
pub(crate) const BUFFER: usize = 256 * 1024;

/// A hash of a kind that can be computed here.
#[derive(Debug, Clone)]
pub(crate) struct Hash {
    hash: FileHash,
    new_hasher: fn() -> Hasher,
}

/// The function that creates a hasher of this kind; `None` for kinds that cannot be computed here.
fn hasher_of(kind: HashKind) -> Option<fn() -> Hasher> {
    fn new<D: DynDigest + Send + Default + 'static>() -> Hasher {
        Hasher(Box::new(D::default()))
    }
    match kind {
        HashKind::Md5 => Some(new::<Md5>),
        HashKind::Sha1 => Some(new::<Sha1>),
        HashKind::Sha224 => Some(new::<Sha224>),
        HashKind::Sha256 => Some(new::<Sha256>),
        HashKind::Sha384 => Some(new::<Sha384>),
        HashKind::Sha512 => Some(new::<Sha512>),
        HashKind::Crc32 | HashKind::Adler32 | HashKind::Sha3_256 | HashKind::Blake2b | HashKind::Blake3 => None,
    }
}

impl Hash {
    /// Parses the hash of a model; `None` if it cannot be computed here.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hash = FileHash::parse(text)?;
        Some(Self { new_hasher: hasher_of(hash.kind)?, hash })
    }

    /// `KIND:DIGITS`, which is equal for equal hashes.
    pub(crate) fn text(&self) -> String {
        self.hash.to_string()
    }

    /// Creates a hasher of this kind.
    pub(crate) fn hasher(&self) -> Hasher {
        (self.new_hasher)()
    }

    /// Whether the hasher's result equals this hash.
    pub(crate) fn matches(&self, hasher: Hasher) -> bool {
        let computed = hasher.0.finalize();
        let digits = computed.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        digits == self.hash.digits
    }

    /// Hashes the whole of `file` and compares. `progress` receives the number of bytes read so far.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn matches_file(&self, mut file: &File, progress: impl Fn(u64)) -> io::Result<bool> {
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

/// A hash in progress.
pub(crate) struct Hasher(Box<dyn DynDigest + Send>);

impl Hasher {
    /// Adds bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
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
            assert_eq!(Hash::parse(&hash.text()).map(|hash| hash.text()), Some(hash.text()));
        }
    }

    #[test]
    fn unsupported_hashes_are_not_computed() {
        for text in
            ["", "0123", "blake3:00", "adler32:01234567", "md5:0123", &"g".repeat(64), "sha-256:", &"ä".repeat(32)]
        {
            assert!(Hash::parse(text).is_none(), "{text}");
        }
    }
}
