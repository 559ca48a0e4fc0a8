//! A fast hash with a secret: short pieces are hashed by the hundred thousand when a vocabulary is opened, and the file is hostile.
//!
//! Folded multiplication, as in wyhash. The secret is the standard library's random one, so that no file can be made to collide.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The secret of one table.
#[derive(Clone, Debug)]
pub(super) struct Secret {
    start: u64,
    factor: u64,
}

impl Secret {
    /// A new one.
    pub(super) fn random() -> Secret {
        let random = RandomState::new();
        Secret { start: random.hash_one(0), factor: random.hash_one(1) | 1 }
    }
}

impl BuildHasher for Secret {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded { state: self.start, factor: self.factor }
    }
}

/// The state of one hash.
pub(super) struct Folded {
    state: u64,
    factor: u64,
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        let (words, tail) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        if !tail.is_empty() {
            let mut word = [0; 8];
            word[..tail.len()].copy_from_slice(tail);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        self.state = (product as u64 ^ (product >> 64) as u64).wrapping_add(self.factor);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        // A factor of small magnitude spreads small words badly by itself; the finaliser of SplitMix64 makes every bit depend on all.
        let once = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let twice = (once ^ once >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        twice ^ twice >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_spread_over_low_and_high_bits() {
        for secret in std::iter::repeat_with(Secret::random).take(100) {
            for shift in [0, 57] {
                let buckets: std::collections::BTreeSet<_> = (0..10_000u64).map(|n| secret.hash_one(n) >> shift & 127).collect();
                assert_eq!(buckets.len(), 128);
            }
            assert_ne!(secret.hash_one(*b"a"), secret.hash_one(*b"a\0"));
        }
    }
}
