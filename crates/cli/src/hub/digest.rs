//! What a file must hash to.

use std::fmt;
use std::io::{self, Read};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A digest as the hub gives it, in lower-case hexadecimals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Digest {
    /// Of the contents.
    Sha256(String),
    /// Of git's blob: sha1 over `blob `, the length, a zero byte and the contents.
    Git(String),
}

impl Digest {
    /// `None` where it is not 64 hexadecimals.
    pub(crate) fn sha256(hex: &str) -> Option<Self> {
        lower(hex, 64).map(Self::Sha256)
    }

    /// `None` where it is not 40 hexadecimals.
    pub(crate) fn git(hex: &str) -> Option<Self> {
        lower(hex, 40).map(Self::Git)
    }

    /// The hexadecimals.
    pub(crate) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) => hex,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "sha256 {hex}"),
            Self::Git(hex) => write!(f, "git blob {hex}"),
        }
    }
}

fn lower(hex: &str, length: usize) -> Option<String> {
    (hex.len() == length && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| hex.to_ascii_lowercase())
}

/// Computes a digest of the kind of another one.
pub(super) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    /// For contents of `size` bytes that should have this digest.
    pub(super) fn like(digest: &Digest, size: u64) -> Self {
        match digest {
            Digest::Sha256(_) => Self::Sha256(Sha256::new()),
            Digest::Git(_) => Self::Git(Sha1::new().chain_update(format!("blob {size}\0"))),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    /// All that a reader gives.
    pub(super) fn read(&mut self, mut from: impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                count => self.update(&buffer[..count]),
            }
        }
    }

    pub(super) fn finish(self) -> Digest {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hex(&hasher.finalize())),
            Self::Git(hasher) => Digest::Git(hex(&hasher.finalize())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_sha256sum() {
        let of = |like: Digest, text: &[u8]| {
            let mut hasher = Hasher::like(&like, text.len() as u64);
            hasher.read(text).unwrap();
            hasher.finish()
        };
        // `git hash-object` and `sha256sum` of "hello\n".
        let git = Digest::git("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        assert_eq!(of(git.clone(), b"hello\n"), git);
        let sha256 =
            Digest::sha256("5891B5B522D5DF086D0FF0B110FBD9D21BB4FC7163AF34D08286A2E846F6BE03").unwrap();
        assert_eq!(of(sha256.clone(), b"hello\n"), sha256);
        assert_eq!(Digest::git(sha256.hex()), None);
        assert_eq!(Digest::sha256(&"x".repeat(64)), None);
    }
}
