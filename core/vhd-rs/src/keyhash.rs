//! The hash by which an encrypted image knows its key, without giving the key away.

use crate::wire::{bytes_at, put};
use sha2::{Digest, Sha256};

/// SHA-256 of a nonce followed by the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyhash {
    /// Random bytes of the image's own, or zeros.
    pub nonce: [u8; 32],
    /// The hash.
    pub hash: [u8; 32],
}

impl Keyhash {
    /// Bytes in a batmap header: a mark that it is set, the nonce, the hash.
    pub const BYTES: usize = 65;

    const SET: u8 = 1;

    /// The hash of a key.
    pub fn of(nonce: [u8; 32], key: &[u8]) -> Self {
        let hash = Sha256::new()
            .chain_update(nonce)
            .chain_update(key)
            .finalize();
        Self {
            nonce,
            hash: hash.into(),
        }
    }

    /// Whether it is the hash of `key`.
    pub fn matches(&self, key: &[u8]) -> bool {
        *self == Self::of(self.nonce, key)
    }

    pub(crate) fn parse(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        (bytes[0] == Self::SET).then(|| Self {
            nonce: bytes_at(bytes, 1),
            hash: bytes_at(bytes, 33),
        })
    }

    pub(crate) fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = Self::SET;
        put(&mut bytes, 1, &self.nonce);
        put(&mut bytes, 33, &self.hash);
        bytes
    }
}
