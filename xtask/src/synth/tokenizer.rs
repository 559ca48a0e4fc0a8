//! A small byte-level BPE vocabulary under Llama 3's numbers: every byte, a few merges, the special tokens; all else is unused.

use super::shape::Shape;
use serde_json::{Value, json};

/// The two pieces that each merge joins.
const MERGES: [(&str, &str); 12] = [
    ("Ġ", "t"),
    ("h", "e"),
    ("i", "n"),
    ("Ġ", "a"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("in", "g"),
    ("a", "t"),
    ("o", "u"),
    ("Ġa", "n"),
];

/// Special tokens, by their distance from the first.
const SPECIAL: [(usize, &str); 6] = [
    (0, "<|begin_of_text|>"),
    (1, "<|end_of_text|>"),
    (6, "<|start_header_id|>"),
    (7, "<|end_header_id|>"),
    (8, "<|eom_id|>"),
    (9, "<|eot_id|>"),
];

/// What a piece is for, numbered as in GGUF.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Normal = 1,
    Control = 3,
    Unused = 5,
}

/// Every piece of a vocabulary by number, unused ones included.
pub fn pieces(shape: &Shape) -> Vec<(String, Kind)> {
    let bytes = (0..=255).map(|byte| byte_to_char(byte).to_string());
    let merged = MERGES.iter().map(|(left, right)| format!("{left}{right}"));
    let mut pieces: Vec<_> = bytes.chain(merged).map(|text| (text, Kind::Normal)).collect();
    pieces.extend((pieces.len()..shape.vocabulary).map(|number| (format!("<|unused_{number}|>"), Kind::Unused)));
    for (distance, text) in SPECIAL {
        pieces[first_special(shape) + distance] = (text.to_owned(), Kind::Control);
    }
    pieces
}

/// Merges as both containers write them.
pub fn merges() -> Vec<String> {
    MERGES.iter().map(|(left, right)| format!("{left} {right}")).collect()
}

/// The number of a special token.
pub fn special(shape: &Shape, text: &str) -> usize {
    let (distance, _) = SPECIAL.iter().find(|(_, t)| *t == text).expect("one of the table");
    first_special(shape) + distance
}

/// Llama 3 keeps its last 256 numbers for special tokens.
fn first_special(shape: &Shape) -> usize {
    shape.vocabulary - if shape.vocabulary > 1024 { 256 } else { 16 }
}

/// `tokenizer.json`: Llama 3's pipeline over these pieces. Unused numbers are left out.
pub fn tokenizer_json(shape: &Shape) -> Value {
    let pieces = pieces(shape);
    let of = |kind: Kind| pieces.iter().enumerate().filter(move |(_, piece)| piece.1 == kind);
    let vocab: serde_json::Map<_, _> = of(Kind::Normal).map(|(number, (text, _))| (text.clone(), number.into())).collect();
    let added: Vec<_> = of(Kind::Control)
        .map(|(id, (content, _))| {
            json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let begin = json!({ "SpecialToken": { "id": SPECIAL[0].1, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text("A")],
            "pair": [begin, text("A"), begin, text("B")],
            "special_tokens": { SPECIAL[0].1: { "id": SPECIAL[0].1, "ids": [special(shape, SPECIAL[0].1)], "tokens": [SPECIAL[0].1] } },
        },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "byte_fallback": false,
            "ignore_merges": true,
            "vocab": vocab,
            "merges": merges(),
        },
    })
}

/// The character that stands for a byte: itself where it is printable, else the next free one from U+0100 (GPT-2's table).
fn byte_to_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).expect("no surrogate")
}
