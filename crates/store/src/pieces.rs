//! The pieces of a session's blocks in JSON: one string for each block, since they are most of a head. Of a piece it says
//! `HASH AT tTOKENS lLEN pPACK`, the hash in base64url, and pieces stand behind commas. Tokens, length and pack are left out where they are
//! those of the piece before, in this block or an earlier one.
//!
//! Version 1 had an array of `{"tokens": .., "rows": "hash pack at_bytes len_bytes"}` for each block, which is read, too.

use crate::{Chunk, HeadPiece, PackId};
use driftwood_snapshot::Hash;
use serde::{Deserialize, Deserializer, Serializer, de};

/// Digits of base64url.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Digits of a hash.
const HASH_DIGITS: usize = 43;

pub fn serialize<S: Serializer>(blocks: &[Vec<HeadPiece>], serializer: S) -> Result<S::Ok, S::Error> {
    let mut before = None;
    serializer.collect_seq(blocks.iter().map(|pieces| {
        let pieces: Vec<String> = pieces.iter().map(|piece| text(piece, before.replace(*piece))).collect();
        pieces.join(",")
    }))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum BlockJson {
    Text(String),
    Pieces(Vec<HeadPiece>),
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<HeadPiece>>, D::Error> {
    let mut before = None;
    let mut piece = |text: &str| {
        before = parse(text, before);
        before.ok_or_else(|| de::Error::custom("expected `HASH AT tTOKENS lLEN pPACK` of a piece"))
    };
    let block = |block| match block {
        BlockJson::Text(text) => text.split(',').filter(|text| !text.is_empty()).map(&mut piece).collect(),
        BlockJson::Pieces(pieces) => Ok(pieces),
    };
    Vec::<BlockJson>::deserialize(deserializer)?.into_iter().map(block).collect()
}

fn text(piece: &HeadPiece, before: Option<HeadPiece>) -> String {
    let HeadPiece { tokens, rows } = *piece;
    let changed = |same: fn(&HeadPiece, &HeadPiece) -> bool| before.is_none_or(|before| !same(&before, piece));
    let mut text = format!("{} {}", digits(rows.hash), rows.at_bytes);
    if changed(|a, b| a.tokens == b.tokens) {
        text += &format!(" t{tokens}");
    }
    if changed(|a, b| a.rows.len_bytes == b.rows.len_bytes) {
        text += &format!(" l{}", rows.len_bytes);
    }
    if changed(|a, b| a.rows.pack == b.rows.pack) {
        text += &format!(" p{}", rows.pack);
    }
    text
}

fn parse(text: &str, before: Option<HeadPiece>) -> Option<HeadPiece> {
    let mut words = text.split(' ');
    let (hash, at_bytes) = (hash(words.next()?)?, words.next()?.parse().ok()?);
    let (mut tokens, mut len_bytes) = (before.map(|before| before.tokens), before.map(|before| before.rows.len_bytes));
    let mut pack = before.map(|before| before.rows.pack);
    for word in words {
        match word.split_at_checked(1)? {
            ("t", number) => tokens = Some(number.parse().ok()?),
            ("l", number) => len_bytes = Some(number.parse().ok()?),
            ("p", id) => pack = Some(id.parse::<PackId>().ok()?),
            _ => return None,
        }
    }
    let rows = Chunk { hash, pack: pack?, at_bytes, len_bytes: len_bytes? };
    let ends = rows.at_bytes.checked_add(rows.len_bytes).is_some_and(|end| end <= i64::MAX as u64);
    ends.then_some(HeadPiece { tokens: tokens?, rows })
}

fn digits(hash: Hash) -> String {
    let six_bits = |at: usize| {
        let bit = 6 * at;
        let pair = u16::from(hash.0[bit / 8]) << 8 | hash.0.get(bit / 8 + 1).copied().map_or(0, u16::from);
        DIGITS[usize::from(pair >> (10 - bit % 8)) & 63]
    };
    (0..HASH_DIGITS).map(|at| char::from(six_bits(at))).collect()
}

/// Strict: one spelling for each hash.
fn hash(text: &str) -> Option<Hash> {
    let mut bytes = [0; 32];
    for (at, &digit) in text.as_bytes().iter().enumerate().take(HASH_DIGITS) {
        let value = DIGITS.iter().position(|&known| known == digit)? as u16;
        let bits = value << (10 - 6 * at % 8);
        bytes[6 * at / 8] |= (bits >> 8) as u8;
        if let Some(byte) = bytes.get_mut(6 * at / 8 + 1) {
            *byte |= bits as u8;
        }
    }
    let hash = Hash(bytes);
    (digits(hash) == text).then_some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize, serde::Deserialize, Debug, PartialEq)]
    struct Blocks(#[serde(with = "super")] Vec<Vec<HeadPiece>>);

    fn piece(seed: u8, tokens: u32, pack: u64) -> HeadPiece {
        let rows =
            Chunk { hash: Hash::of(&[seed]), pack: PackId(pack), at_bytes: 64 * u64::from(seed), len_bytes: 128 * u64::from(tokens) };
        HeadPiece { tokens, rows }
    }

    #[test]
    fn pieces_come_back_and_say_only_what_is_new() {
        let blocks = Blocks(vec![vec![piece(1, 16, 7), piece(2, 16, 7)], vec![], vec![piece(3, 16, 7), piece(4, 9, 8)]]);
        let json = serde_json::to_string(&blocks).unwrap();
        let [a, b, c, d] = [1, 2, 3, 4].map(|seed| digits(Hash::of(&[seed])));
        let expected = format!(r#"["{a} 64 t16 l2048 p0000000000000007,{b} 128","","{c} 192,{d} 256 t9 l1152 p0000000000000008"]"#);
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<Blocks>(&json).unwrap(), blocks);
        let as_before: Vec<Vec<serde_json::Value>> =
            blocks.0.iter().map(|b| b.iter().map(|p| serde_json::to_value(p).unwrap()).collect()).collect();
        assert_eq!(serde_json::from_value::<Blocks>(serde_json::json!(as_before)).unwrap(), blocks, "the form of version 1");
    }

    #[test]
    fn hashes_have_one_spelling() {
        for seed in 0..=255 {
            let of = Hash::of(&[seed]);
            assert_eq!((digits(of).len(), hash(&digits(of))), (HASH_DIGITS, Some(of)));
        }
        assert_eq!(digits(Hash([0xff; 32])), "_".repeat(42) + "8");
        assert_eq!(hash(&"_".repeat(43)), None, "bits beyond the last");
        for bad in ["", "A", &"A".repeat(42), &"A".repeat(44), &("+".to_owned() + &"A".repeat(42)), &"ä".repeat(22)] {
            assert_eq!(hash(bad), None, "{bad}");
        }
    }

    #[test]
    fn pieces_that_say_too_little_or_nonsense_are_refused() {
        let good = format!("{} 64 t16 l2048 p0000000000000007", digits(Hash::of(b"x")));
        assert!(serde_json::from_value::<Blocks>(serde_json::json!([&good])).is_ok());
        let cases = [
            (" t16", ""),
            (" l2048", ""),
            (" p0000000000000007", ""),
            (" 64", " -1"),
            (" 64", " 9223372036854775807"),
            ("t16", "x16"),
            ("p0", "p"),
            ("t16", "ä"),
            (" t16", "  t16"),
        ];
        for (from, to) in cases {
            let bad = good.replacen(from, to, 1);
            assert!(serde_json::from_value::<Blocks>(serde_json::json!([&bad])).is_err(), "{bad}");
        }
    }
}
