//! What several tests share: a builder of small GGUF files, and two tiny vocabularies.
#![allow(dead_code)] // each test uses a part

pub mod exercise;

use driftwood_engine::gguf::GgufFile;
use driftwood_region::Region;
use std::io::Write;
use std::sync::Arc;

/// Writes GGUF files, good and bad ones: counts can be forced to lie.
#[derive(Clone, Default)]
pub struct GgufBuilder {
    pub keys: Vec<Vec<u8>>,
    pub infos: Vec<Vec<u8>>,
    pub data: Vec<u8>,
    pub magic: Option<[u8; 4]>,
    pub version: Option<u32>,
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
    pub alignment_bytes: Option<usize>,
}

impl GgufBuilder {
    /// A key with a value of a numbered type, given as bytes.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push([&string(key.as_bytes())[..], &kind.to_le_bytes(), value].concat());
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[value.into()])
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &string(value.as_bytes()))
    }

    pub fn strings(self, key: &str, values: &[&str]) -> Self {
        let items: Vec<_> = values.iter().flat_map(|v| string(v.as_bytes())).collect();
        self.array(key, 8, values.len() as u64, &items)
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        self.array(key, 5, values.len() as u64, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        self.array(key, 6, values.len() as u64, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    /// An array of a numbered type, which may lie about its length.
    pub fn array(self, key: &str, element: u32, len: u64, items: &[u8]) -> Self {
        self.raw(key, 9, &[&element.to_le_bytes()[..], &len.to_le_bytes(), items].concat())
    }

    /// A tensor of `ne` (innermost first, as the file has it) whose data is appended at the next multiple of 32.
    pub fn tensor(mut self, name: &str, ne: &[u64], kind: u32, data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(data);
        self.info(name, ne, kind, offset)
    }

    /// An entry of the tensor table alone.
    pub fn info(mut self, name: &str, ne: &[u64], kind: u32, offset: u64) -> Self {
        let mut info = string(name.as_bytes());
        info.extend((ne.len() as u32).to_le_bytes());
        info.extend(ne.iter().flat_map(|n| n.to_le_bytes()));
        info.extend(kind.to_le_bytes());
        info.extend(offset.to_le_bytes());
        self.infos.push(info);
        self
    }

    /// The file's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = self.magic.unwrap_or(*b"GGUF").to_vec();
        bytes.extend(self.version.unwrap_or(3).to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.infos.len() as u64).to_le_bytes());
        bytes.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        bytes.extend(self.keys.concat());
        bytes.extend(self.infos.concat());
        bytes.resize(bytes.len().next_multiple_of(self.alignment_bytes.unwrap_or(32)), 0);
        bytes.extend(&self.data);
        bytes
    }

    /// The file, mapped and parsed.
    pub fn parse(&self) -> Result<GgufFile, driftwood_engine::Error> {
        parse(&self.build())
    }
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// Maps `bytes` and parses them.
pub fn parse(bytes: &[u8]) -> Result<GgufFile, driftwood_engine::Error> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    GgufFile::parse(Arc::new(Region::map_file(&file)?))
}

/// A byte-level BPE vocabulary: all bytes, a few merges, ChatML's control tokens.
pub fn tiny_bpe() -> GgufBuilder {
    let bytes: Vec<String> = (0u8..=255).map(|b| byte_char(b).to_string()).collect();
    let merged = ["he", "ll", "hell", "hello", "Ġhello", "Ġw"];
    let special = ["<|im_start|>", "<|im_end|>", "<tool>"];
    let pieces: Vec<&str> = bytes.iter().map(String::as_str).chain(merged).chain(special).collect();
    let kinds: Vec<i32> = (0..pieces.len())
        .map(|i| {
            if i < 262 {
                1
            } else if i < 264 {
                3
            } else {
                4
            }
        })
        .collect();
    GgufBuilder::default()
        .str("general.architecture", "llama")
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .strings("tokenizer.ggml.tokens", &pieces)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings("tokenizer.ggml.merges", &["h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ w"])
        .u32("tokenizer.ggml.bos_token_id", 262)
        .u32("tokenizer.ggml.eos_token_id", 263)
}

/// GPT-2's printable character of a byte, written a second time on purpose.
pub fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    if printable(byte) { byte as char } else { char::from_u32(256 + (0..byte).filter(|&b| !printable(b)).count() as u32).unwrap() }
}

/// A SentencePiece vocabulary: bytes, a few scored pieces, BOS and EOS, a user-defined piece.
pub fn tiny_spm() -> GgufBuilder {
    let bytes: Vec<String> = (0u8..=255).map(|b| format!("<0x{b:02X}>")).collect();
    let scored = [("▁", -1.0), ("a", -2.0), ("b", -3.0), ("ab", -4.0), ("▁a", -5.0), ("bb", -3.5), ("▁ab", -6.0)];
    let pieces: Vec<&str> =
        ["<unk>", "<s>", "</s>", "\n\n"].into_iter().chain(bytes.iter().map(String::as_str)).chain(scored.map(|s| s.0)).collect();
    let kinds: Vec<i32> = [2, 3, 3, 4].into_iter().chain([6; 256]).chain([1; 7]).collect();
    let scores: Vec<f32> = [0.0; 260].into_iter().chain(scored.map(|s| s.1)).collect();
    GgufBuilder::default()
        .str("general.architecture", "gemma3")
        .str("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &pieces)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .f32s("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0)
}
