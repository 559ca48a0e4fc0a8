//! An actor's random generator: blake3 in counter mode, so that its whole state is a key and a counter.

use crate::Error;

/// A deterministic generator. A snapshot holds its state, so a thawed actor draws what it would have drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Random {
    key: [u8; 32],
    draws: u64,
}

impl Random {
    /// A generator with a key from the system.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(crate) fn seeded() -> Result<Random, Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| Error::Host { operation: "seed a random generator", why: e.to_string() })?;
        Ok(Random { key, draws: 0 })
    }

    /// The next bytes.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        let mut stream = blake3::Hasher::new_keyed(&self.key);
        stream.update(&self.draws.to_le_bytes());
        stream.finalize_xof().fill(out);
        self.draws += 1;
    }

    /// The state as text.
    pub(crate) fn to_text(&self) -> String {
        format!("blake3:{}:{}", blake3::Hash::from_bytes(self.key).to_hex(), self.draws)
    }

    /// A generator from the text of [`Random::to_text`].
    pub(crate) fn from_text(text: &str) -> Option<Random> {
        let (key, draws) = text.strip_prefix("blake3:")?.split_once(':')?;
        Some(Random { key: *blake3::Hash::from_hex(key).ok()?.as_bytes(), draws: draws.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_text_and_draws_differ() {
        let mut a = Random::seeded().unwrap();
        let (mut x, mut y, mut z) = ([0; 40], [0; 40], [0; 40]);
        a.fill(&mut x);
        let mut b = Random::from_text(&a.to_text()).unwrap();
        a.fill(&mut y);
        b.fill(&mut z);
        assert_eq!(y, z);
        assert_ne!(x, y);
        for bad in ["", "blake3:", "blake3:00:1", "blake3:zz", "xoshiro:1:2"] {
            assert!(Random::from_text(bad).is_none(), "{bad}");
        }
    }
}
