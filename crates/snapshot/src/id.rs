//! Identities and hashes: fixed numbers of bytes, written as lower-case hex digits.

use crate::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Who an actor is: 128 random bits, minted at each spawn, thaw and fork and never shared.
///
/// Its text form is 32 lower-case hex digits, in JSON too:
///
/// ```
/// use driftwood_snapshot::ActorId;
/// let id: ActorId = "000102030405060708090a0b0c0d0e0f".parse()?;
/// assert_eq!(id.0[15], 15);
/// assert_ne!(ActorId::mint()?, id);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActorId(pub [u8; 16]);

impl ActorId {
    /// A new identity.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn mint() -> Result<ActorId, Error> {
        let mut bytes = [0; 16];
        let no_random = |e: getrandom::Error| Error::system("read random numbers from", Path::new("the system"), std::io::Error::other(e));
        getrandom::fill(&mut bytes).map_err(no_random)?;
        Ok(ActorId(bytes))
    }
}

/// A BLAKE3 hash.
///
/// Of a tensor, of a KV block, of a header, of a model's file: whatever says that bytes are what they were.
/// Its text form is 64 lower-case hex digits, in JSON too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Stands where a hash is not known yet.
    pub(crate) const ZERO: Hash = Hash([0; 32]);

    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(*blake3::hash(bytes).as_bytes())
    }
}

/// Text that is not the expected number of hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {digits} lower-case hex digits")]
pub struct NotHex {
    /// How many digits there must be.
    pub digits: usize,
}

/// Strict: one spelling for each value, so that text can be compared instead of bytes.
fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], NotHex> {
    let bad = NotHex { digits: 2 * N };
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Ok(c - b'0'),
        b'a'..=b'f' => Ok(c - b'a' + 10),
        _ => Err(bad),
    };
    if text.len() != 2 * N {
        return Err(bad);
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = nibble(digits[0])? << 4 | nibble(digits[1])?;
    }
    Ok(bytes)
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

/// Gives a newtype of bytes its text form, in all the ways that Rust asks for it.
macro_rules! hex_text {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }
        impl FromStr for $type {
            type Err = NotHex;
            fn from_str(text: &str) -> Result<Self, NotHex> {
                parse_hex(text).map($type)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}
hex_text!(ActorId);
hex_text!(Hash);

/// A global's 128 bits as 32 hex digits: JSON numbers would lose bits.
pub(crate) mod bits_hex {
    use super::*;

    pub fn serialize<S: Serializer>(bits: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{bits:032x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_hex::<16>(&text).map(u128::from_be_bytes).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_strict_and_round_trips() {
        let id = ActorId::mint().unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(ActorId::mint().unwrap(), id);
        let hash = Hash::of(b"driftwood");
        assert_eq!(serde_json::from_str::<Hash>(&serde_json::to_string(&hash).unwrap()).unwrap(), hash);
        for bad in ["", "0", "0g0102030405060708090a0b0c0d0e0f", "0A0102030405060708090a0b0c0d0e0f", "é00102030405060708090a0b0c0d0e0"] {
            assert_eq!(bad.parse::<ActorId>(), Err(NotHex { digits: 32 }), "{bad}");
        }
    }
}
