//! SentencePiece by score, as GGUF stores it: neighbours are joined to the best-scored piece there is, unknown characters become bytes.
//!
//! The file holds pieces and scores but no merges: any two neighbours whose joined text is a piece may join. Spaces are written `▁`.

use super::merge::{Merger, NONE};
use super::vocab::Vocab;
use crate::error::Error;
use crate::gguf::GgufFile;

/// What a space is written as in pieces.
pub(super) const SPACE: char = '\u{2581}';

/// Scores, and the pieces of single bytes.
#[derive(Debug)]
pub(super) struct Spm {
    ranks: Box<[u32]>, // token -> its score as an ordered integer
    bytes: [u32; 256],
    space_prefix: bool,
}

impl Spm {
    /// Reads `tokenizer.ggml.scores` and `tokenizer.ggml.add_space_prefix`; `unknown` stands for bytes without a piece.
    pub(super) fn new(file: &GgufFile, vocab: &Vocab, unknown: Option<u32>) -> Result<Spm, Error> {
        let scores = file.floats("tokenizer.ggml.scores")?;
        if scores.len() != vocab.len() {
            return Err(Error::Tokenizer { why: format!("it has {} scores for {} pieces", scores.len(), vocab.len()) });
        }
        let mut bytes = [NONE; 256];
        for (byte, token) in bytes.iter_mut().enumerate() {
            let found = vocab.find(format!("<0x{byte:02X}>").as_bytes()).or_else(|| vocab.find(&[byte as u8])).or(unknown);
            *token =
                found.ok_or_else(|| Error::Tokenizer { why: format!("it has neither a piece <0x{byte:02X}> nor an unknown piece") })?;
        }
        let space_prefix = file.optional_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        Ok(Spm { ranks: scores.map(ordered).collect(), bytes, space_prefix })
    }

    /// Appends the tokens of `text`; `first` says that it begins the whole text or follows a special piece.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, first: bool, merger: &mut Merger, tokens: &mut Vec<u32>) {
        let mut escaped: String = (first && self.space_prefix).then_some(SPACE).into_iter().collect();
        escaped.reserve(text.len());
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let bytes = escaped.as_bytes();
        merger.clear();
        for c in escaped.chars() {
            merger.push(c.len_utf8(), NONE);
        }
        merger.merge(|left, right| {
            let token = vocab.find(&bytes[left.start as usize..(right.start + right.len) as usize])?;
            Some((self.ranks[token as usize], token))
        });
        for symbol in merger.symbols() {
            let text = &bytes[symbol.start as usize..][..symbol.len as usize];
            match if symbol.token == NONE { vocab.find(text) } else { Some(symbol.token) } {
                Some(token) => tokens.push(token),
                None => tokens.extend(text.iter().map(|&byte| self.bytes[usize::from(byte)])),
            }
        }
    }
}

/// An integer that is greater where the score is; NaN is the least.
fn ordered(score: f32) -> u32 {
    if score.is_nan() {
        return 0;
    }
    let bits = (score + 0.0).to_bits(); // the two zeros are one
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_keep_their_order() {
        let scores = [f32::NAN, f32::NEG_INFINITY, -1000.0, -1.5, -1.0, -f32::MIN_POSITIVE, 0.0, 1.0, 3e38, f32::INFINITY];
        assert!(scores.windows(2).all(|w| ordered(w[0]) < ordered(w[1])));
        assert_eq!(ordered(0.0), ordered(-0.0));
    }
}
