//! Hashing of what is hashed already.

use std::hash::{BuildHasherDefault, Hasher};

/// Takes eight bytes of a key that is a SHA-256 as its hash: nobody can choose
/// keys that collide in them.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct KeyHasher(u64);

pub(crate) type BuildKeyHasher = BuildHasherDefault<KeyHasher>;

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            self.0 = u64::from_ne_bytes(*last);
        }
    }

    /// The length of an array comes first and says nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Hashes names of streams and ids of requests. Both carry bytes that the fleet
/// draws at random, so it need not withstand an attack.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct NameHasher(u64);

pub(crate) type BuildNameHasher = BuildHasherDefault<NameHasher>;

impl NameHasher {
    fn add(&mut self, word: u64) {
        const K: u64 = 0xf135_7aea_2e62_a9c5;
        self.0 = (self.0 ^ word).wrapping_mul(K).rotate_left(23);
    }
}

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.add(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.add(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56));
    }

    fn write_u8(&mut self, _: u8) {}

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn finish(&self) -> u64 {
        // The table takes its position from the low bits and its tag from the
        // high ones; a product is good in the high ones only.
        self.0 ^ (self.0 >> 32)
    }
}
