//! A byte-level BPE vocabulary under Llama 3's numbers: every byte, a few merges of English, made-up pieces until it is full, the special
//! tokens. It has as many merges for its size as Llama 3's own, because reading them is most of the time that loading takes.

use super::shape::Shape;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The two pieces that each of the first merges joins.
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

/// Letters of made-up pieces.
const LETTERS: &str = "etaoinshrdlucmfw";
/// The longest made-up piece, less the space before it.
const LETTERS_MAX: u32 = 5;
/// Merges for a hundred pieces, most of which can be made in several ways: Llama 3 has 280,147 for 128,000.
const MERGES_PERCENT: usize = 219;

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

/// A vocabulary.
#[derive(Debug)]
pub struct Vocabulary {
    /// Every piece by number.
    pub pieces: Vec<(String, Kind)>,
    /// The pairs that are merged, the most wanted first.
    pub merges: Vec<(String, String)>,
}

impl Vocabulary {
    /// That of a shape.
    pub fn new(shape: &Shape) -> Vocabulary {
        let bytes = (0..=255).map(|byte| byte_to_char(byte).to_string());
        let first = bytes.chain(MERGES.iter().map(|(left, right)| format!("{left}{right}")));
        let mut merges: Vec<_> = MERGES.iter().map(|(left, right)| ((*left).to_owned(), (*right).to_owned())).collect();
        let mut known: HashMap<String, usize> = first.enumerate().map(|(number, text)| (text, number)).collect();
        for text in made_up() {
            if known.len() == first_special(shape) {
                break;
            }
            if !known.contains_key(&text) {
                let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
                let possible = splits.filter(|(left, right)| known.contains_key(*left) && known.contains_key(*right));
                let room = ((known.len() + 1) * MERGES_PERCENT / 100).saturating_sub(merges.len()).max(1);
                merges.extend(possible.take(room).map(|(left, right)| (left.to_owned(), right.to_owned())));
                known.insert(text, known.len());
            }
        }
        let mut pieces: Vec<_> = (0..shape.vocabulary).map(|number| (format!("<|unused_{number}|>"), Kind::Unused)).collect();
        known.into_iter().for_each(|(text, number)| pieces[number] = (text, Kind::Normal));
        for (distance, text) in SPECIAL {
            pieces[first_special(shape) + distance] = (text.to_owned(), Kind::Control);
        }
        Vocabulary { pieces, merges }
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = (usize, &str)> {
        self.pieces.iter().enumerate().filter(move |(_, piece)| piece.1 == kind).map(|(number, (text, _))| (number, text.as_str()))
    }
}

/// Words of all lengths over a few letters, the short ones first, each also with a space before it.
fn made_up() -> impl Iterator<Item = String> {
    let letters: Vec<char> = LETTERS.chars().collect();
    (2..=LETTERS_MAX).flat_map(move |len| {
        let letters = letters.clone();
        (0..2 * letters.len().pow(len)).map(move |number| {
            let letter = |place| letters[number / 2 / letters.len().pow(place) % letters.len()];
            let space = (number % 2 == 1).then_some('Ġ');
            space.into_iter().chain((0..len).rev().map(letter)).collect()
        })
    })
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
    let vocabulary = Vocabulary::new(shape);
    let vocab: serde_json::Map<_, _> = vocabulary.of(Kind::Normal).map(|(number, text)| (text.to_owned(), number.into())).collect();
    let added: Vec<_> = vocabulary
        .of(Kind::Control)
        .map(|(id, content)| {
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
            "merges": vocabulary.merges,
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
