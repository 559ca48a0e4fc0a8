//! Tokenizers and chat templates against llama.cpp's tokens, on the two real models and on tiny vocabularies.

mod common;
#[path = "common/models.rs"]
mod models;

use common::{byte_char, tiny_bpe, tiny_spm};
use driftwood_engine::gguf::GgufFile;
use driftwood_engine::template::{ChatTemplate, Message, TemplateOrigin};
use driftwood_engine::tokenizer::{FolderTokens, Kind, Special, SpecialToken, Tokenizer};
use models::{GEMMA3, SMOLLM2};
use proptest::prelude::*;
use serde_json::json;
use std::sync::OnceLock;
use std::time::Instant;

fn golden(file: &str) -> serde_json::Value {
    serde_json::from_str(&models::golden(file)).unwrap()
}

const PLAIN: Special = Special { add: false, parse: false };

fn open(name: &str) -> (GgufFile, Tokenizer) {
    let file = GgufFile::open(&models::path(name)).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    (file, tokenizer)
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// Each string, encoded three ways and decoded.
fn check_strings(tokenizer: &Tokenizer, name: &str) {
    let cases = golden(name);
    assert_eq!(cases.as_array().unwrap().len(), 66);
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let plain = tokenizer.encode(text, PLAIN);
        assert_eq!(plain, ids(&case["ids"]), "{text:?}");
        let parsed = tokenizer.encode(text, Special { add: false, parse: true });
        assert_eq!(parsed, ids(case.get("ids_special").unwrap_or(&case["ids"])), "{text:?}, parsed");
        if let Some(expected) = case.get("ids_add_special") {
            assert_eq!(tokenizer.encode(text, Special { add: true, parse: true }), ids(expected), "{text:?}, with special tokens");
        }
        let bytes = case.get("detok_hex").map_or(text.as_bytes().to_vec(), |hex| unhex(hex.as_str().unwrap()));
        assert_eq!(tokenizer.decode(&plain), bytes, "{text:?}, decoded");
    }
}

fn check_prompts(file: &GgufFile, tokenizer: &Tokenizer, name: &str, origin: TemplateOrigin) {
    let template = ChatTemplate::from_gguf(file, tokenizer).unwrap();
    assert_eq!(template.origin(), origin);
    let golden = golden(name);
    for prompt in golden["prompts"].as_array().unwrap() {
        let (text, name) = (prompt["text"].as_str().unwrap(), &prompt["name"]);
        let special = Special { add: prompt["add_special"].as_bool().unwrap(), parse: prompt["parse_special"].as_bool().unwrap() };
        assert_eq!(tokenizer.encode(text, special), ids(&prompt["tokens"]), "{name}");
        for variant in ["f32", "default"] {
            let run = &prompt[variant];
            let mut greedy = ids(&run["greedy"]);
            greedy.truncate(usize::try_from(run["eog_at"].as_i64().unwrap()).unwrap_or(greedy.len()));
            assert_eq!(String::from_utf8_lossy(&tokenizer.decode(&greedy)), run["greedy_text"].as_str().unwrap(), "{name}");
        }
        if let Some(messages) = prompt.get("messages") {
            let messages: Vec<Message> = serde_json::from_value(messages.clone()).unwrap();
            let rendered = template.render(&messages, true).unwrap();
            assert_eq!(rendered, text, "{name}");
            assert_eq!(tokenizer.encode_rendered(&rendered), ids(&prompt["tokens"]), "{name}, rendered");
        }
    }
}

#[test]
fn smollm2_agrees_with_llama_cpp() {
    let (file, tokenizer) = open(SMOLLM2);
    check_strings(&tokenizer, "tok_smollm2.json");
    check_prompts(&file, &tokenizer, "smollm2.json", TemplateOrigin::File);
    assert_eq!((tokenizer.vocab_len(), tokenizer.bos(), tokenizer.eos()), (49_152, Some(1), Some(2)));
    assert!(!tokenizer.adds_bos());
    assert_eq!((0..49_152).filter(|&t| tokenizer.is_end(t)).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn gemma3_agrees_with_llama_cpp() {
    let (file, tokenizer) = open(GEMMA3);
    check_strings(&tokenizer, "tok_gemma3.json");
    check_prompts(&file, &tokenizer, "gemma3.json", TemplateOrigin::Family("gemma"));
    assert_eq!((tokenizer.vocab_len(), tokenizer.bos(), tokenizer.eos()), (262_144, Some(2), Some(1)));
    assert!(tokenizer.adds_bos());
    assert_eq!((0..262_144).filter(|&t| tokenizer.is_end(t)).collect::<Vec<_>>(), [1, 106]);
}

/// What `tools/tiny/tokenizer_cases.py` recorded; a longer run of it in the folder that `DRIFTWOOD_TOKENIZERS` names.
fn recorded(kind: &str) -> serde_json::Value {
    match std::env::var_os("DRIFTWOOD_TOKENIZERS") {
        Some(folder) => {
            serde_json::from_slice(&std::fs::read(std::path::Path::new(&folder).join(format!("{kind}.json"))).unwrap()).unwrap()
        }
        None => golden(&format!("tokenizers/{kind}.json")),
    }
}

/// Kinds of `tokenizer.json`, and whether their vocabularies are of bytes.
const KINDS: [(&str, bool); 13] = [
    ("gpt2", true),
    ("smollm", true),
    ("llama3", true),
    ("qwen2", true),
    ("tekken", true),
    ("gpt4o", true),
    ("legacy", false),
    ("legacy_normalized", false),
    ("phi3", false),
    ("metaspace_always", false),
    ("metaspace_first", false),
    ("metaspace_cut", false),
    ("gemma", false),
];

#[test]
fn every_kind_of_tokenizer_json_agrees_with_hugging_face() {
    for (kind, _) in KINDS {
        let record = recorded(kind);
        let tokenizer = Tokenizer::from_json(record["tokenizer"].to_string().as_bytes(), &FolderTokens::default()).unwrap();
        let cases = record["cases"].as_array().unwrap();
        assert!(cases.len() >= 60, "{kind}");
        for case in cases {
            let text = case[0].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, Special { add: true, parse: true }), ids(&case[1]), "{kind} {text:?}");
        }
    }
}

/// A recorded `tokenizer.json` with one value replaced.
fn altered(kind: &str, pointer: &str, value: serde_json::Value) -> Vec<u8> {
    let mut json = recorded(kind)["tokenizer"].take();
    match json.pointer_mut(pointer) {
        Some(place) => *place = value,
        None => {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            json.pointer_mut(parent).unwrap()[key] = value;
        }
    }
    json.to_string().into_bytes()
}

#[test]
fn what_a_tokenizer_json_may_not_have_is_refused_by_name() {
    let steps = |first: serde_json::Value| json!([first, { "type": "ByteLevel", "add_prefix_space": false, "use_regex": false }]);
    let split = |regex: &str| steps(json!({ "type": "Split", "behavior": "Isolated", "invert": false, "pattern": { "Regex": regex } }));
    let template = |before: serde_json::Value| json!({ "type": "TemplateProcessing", "single": [before, { "Sequence": { "id": "A" } }] });
    for (kind, pointer, value, expected) in [
        ("gpt2", "/model/type", json!("WordPiece"), "the tokenizer model `WordPiece` is not supported"),
        ("gpt2", "/model/dropout", json!(0.1), "option of the tokenizer `dropout`"),
        ("gpt2", "/model/end_of_word_suffix", json!("</w>"), "`end_of_word_suffix`"),
        ("gpt2", "/model/continuing_subword_prefix", json!("##"), "`continuing_subword_prefix`"),
        ("gpt2", "/added_tokens/0/single_word", json!(true), "single_word of the added token `<s>`"),
        ("gpt2", "/added_tokens/0/content", json!("x".repeat(300)), "has 300 bytes; at most 256 are possible"),
        ("gpt2", "/added_tokens/0/content", json!("</s>"), "the added token `</s>` is piece"),
        ("gpt2", "/added_tokens/0/id", json!(3), "are both piece 3"),
        ("gpt2", "/added_tokens/0/id", json!(-1), "tokenizer.json is not understood"),
        ("gpt2", "/normalizer", json!({ "type": "Lowercase" }), "the normaliser `Lowercase`"),
        ("gpt2", "/pre_tokenizer", json!({ "type": "Whitespace" }), "the pre-tokenizer `Whitespace`"),
        ("llama3", "/pre_tokenizer/pretokenizers", split(r"\p{L}+"), r"the pre-tokenizer `\\p{L}+`"),
        ("llama3", "/pre_tokenizer/pretokenizers/0/behavior", json!("Removed"), "the pre-tokenizer"),
        ("gpt2", "/post_processor", json!({ "type": "RobertaProcessing" }), "the post-processor `RobertaProcessing`"),
        ("gpt2", "/post_processor", template(json!({ "SpecialToken": { "id": "<x>" } })), "the post-processor `TemplateProcessing`"),
        ("gpt2", "/post_processor/processors/1/special_tokens/<s>/ids", json!([9999]), "the special token `9999` is not in the vocabulary"),
        ("gpt2", "/model/merges", json!([["a", "b", "c"]]), "tokenizer.json is not understood"),
        ("gpt2", "/model/merges", json!([7]), "tokenizer.json is not understood"),
        ("gpt2", "/model/merges", json!("a b"), "tokenizer.json is not understood"),
        ("gpt2", "/model/merges", json!([["zz", "q"]]), "merge 0, `zz q`, does not join two pieces to a third"),
        ("gpt2", "/model/vocab", json!({}), "merge 0, `Ġ t`, does not join"),
        ("legacy", "/model/byte_fallback", json!(false), "the pre-tokenizer `null`"),
        ("legacy", "/model/vocab/<0x00>", json!(559), "are both piece"),
        ("legacy", "/normalizer/normalizers/0/prepend", json!("x"), "the normaliser `Prepend`"),
        ("metaspace_first", "/pre_tokenizer/prepend_scheme", json!("maybe"), "the pre-tokenizer `Metaspace`"),
        ("metaspace_first", "/pre_tokenizer/replacement", json!("_"), "the pre-tokenizer `Metaspace`"),
    ] {
        let error =
            Tokenizer::from_json(&altered(kind, pointer, value), &FolderTokens::default()).map(drop).expect_err(pointer).to_string();
        assert!(error.contains(expected), "{kind} {pointer}: {error}");
    }
    let unknown = FolderTokens { ends: vec![SpecialToken::Text("<nothing>".to_owned())], ..FolderTokens::default() };
    let error = Tokenizer::from_json(&altered("gpt2", "/version", json!("1.0")), &unknown).map(drop).unwrap_err().to_string();
    assert!(error.contains("the special token `<nothing>` is not in the vocabulary"), "{error}");
}

#[test]
fn files_beside_tokenizer_json_say_what_stands_around_a_text() {
    let open = |tokens: FolderTokens| Tokenizer::from_json(&altered("gemma", "/version", json!("1.0")), &tokens).unwrap();
    let token = |text: &str| SpecialToken::Text(text.to_owned());
    let texts = |tokenizer: &Tokenizer| -> Vec<String> {
        let tokens = tokenizer.encode("a", Special { add: true, parse: true });
        tokens.iter().map(|&t| tokenizer.token_text(t).unwrap().to_owned()).collect()
    };
    let ends = || vec![token("</s>"), token("<|end|>")];
    for (tokens, expected) in [
        (FolderTokens::default(), &["<s>", "a"][..]),
        (FolderTokens { add_bos: Some(false), ..FolderTokens::default() }, &["a"]),
        (FolderTokens { ends: ends(), add_eos: Some(true), ..FolderTokens::default() }, &["<s>", "a", "</s>"]),
        (FolderTokens { bos: Some(token("<|user|>")), ends: ends(), ..FolderTokens::default() }, &["<s>", "a"]),
    ] {
        assert_eq!(texts(&open(tokens.clone())), expected, "{tokens:?}");
    }
    let tokenizer = open(FolderTokens { ends: ends(), ..FolderTokens::default() });
    let end = |text: &str| tokenizer.is_end(tokenizer.find(text).unwrap());
    assert!(end("</s>") && end("<|end|>") && !end("<|user|>"));
    assert_eq!(tokenizer.eos(), tokenizer.find("</s>"));
    let (space, byte, unknown) = (tokenizer.find("▁").unwrap(), tokenizer.find("<0xC3>").unwrap(), tokenizer.find("<unk>").unwrap());
    assert_eq!(tokenizer.decode(&[space, byte, unknown]), b" \xc3");
    assert_eq!((tokenizer.kind(byte), tokenizer.kind(unknown)), (Some(Kind::Byte), Some(Kind::Control)));
}

/// What llama.cpp does by the model's name: the special pieces of Phi-3 take the spaces after them, but for three.
#[test]
fn special_pieces_of_phi3_take_spaces_in_gguf_too() {
    let texts = |name: &str| -> Vec<String> {
        let tokenizer = Tokenizer::from_gguf(&tiny_spm().str("general.name", name).parse().unwrap()).unwrap();
        let tokens = tokenizer.encode("</s>  a<s> b", Special { add: false, parse: true });
        tokens.iter().map(|&t| tokenizer.token_text(t).unwrap().to_owned()).collect()
    };
    assert_eq!(texts("Phi 3"), ["</s>", "▁", "▁", "▁a", "<s>", "▁", "▁", "b"]);
    assert_eq!(texts("My Phi-3 mini"), ["</s>", "▁a", "<s>", "▁", "▁", "b"]);
}

/// A megabyte of one letter, of spaces, of anything without a break: a quadratic step would take minutes.
#[test]
fn long_runs_take_linear_time() {
    let from_json = |kind| Tokenizer::from_json(&altered(kind, "/version", json!("1.0")), &FolderTokens::default()).unwrap();
    let recorded = ["gpt4o", "qwen2", "phi3", "metaspace_cut"].map(from_json);
    let recorded = recorded.into_iter().map(|tokenizer| (tokenizer, 1 << 17));
    for (tokenizer, text_bytes) in recorded.chain([(open(SMOLLM2).1, 1 << 20), (open(GEMMA3).1, 1 << 20)]) {
        for unit in ["a", " ", "\n", "=", "1", "é", "日", "'", "<|im_end|>", "a ", "\u{301}", "Aあ", "<|end|> \n", "<tool>"] {
            let text = unit.repeat(text_bytes / unit.len());
            let begun = Instant::now();
            let tokens = tokenizer.encode(&text, PLAIN);
            assert!(begun.elapsed().as_secs() < 10, "{unit:?} took {:?}", begun.elapsed());
            let decoded = tokenizer.decode(&tokens);
            assert!(decoded == text.as_bytes() || decoded.strip_prefix(b" ") == Some(text.as_bytes()), "{unit:?}");
        }
    }
}

#[test]
fn tiny_bpe_merges_by_rank_and_finds_special_pieces() {
    let tokenizer = Tokenizer::from_gguf(&tiny_bpe().parse().unwrap()).unwrap();
    let texts = |text, parse| -> Vec<String> {
        tokenizer.encode(text, Special { add: true, parse }).iter().map(|&t| tokenizer.token_text(t).unwrap().to_owned()).collect()
    };
    assert_eq!(texts("hello hello wow", false), ["hello", "Ġhello", "Ġw", "o", "w"]);
    assert_eq!(texts("lll", false), ["ll", "l"]);
    assert_eq!(texts("h<tool>e", false), ["h", "<tool>", "e"]);
    assert_eq!(texts("<|im_end|>", true), ["<|im_end|>"]);
    assert_eq!(texts("<|im_end|>", false).len(), 10);
    assert_eq!((tokenizer.kind(263), tokenizer.kind(264), tokenizer.kind(265)), (Some(Kind::Control), Some(Kind::UserDefined), None));
    assert_eq!(tokenizer.decode(&[262, 260, 264, 263, 9999]), b" hello<tool>");
}

#[test]
fn tiny_spm_joins_by_score_and_falls_back_to_bytes() {
    let tokenizer = Tokenizer::from_gguf(&tiny_spm().parse().unwrap()).unwrap();
    let texts = |text, special| -> Vec<String> {
        tokenizer.encode(text, special).iter().map(|&t| tokenizer.token_text(t).unwrap().to_owned()).collect()
    };
    assert_eq!(texts("ab", PLAIN), ["▁ab"]);
    assert_eq!(texts("abb", PLAIN), ["▁a", "bb"], "the better score wins over the left");
    assert_eq!(texts("é", PLAIN), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(texts("a\n\na", PLAIN), ["▁a", "\n\n", "▁a"], "a space is put after a special piece too");
    assert_eq!(texts("</s>", Special { add: true, parse: true }), ["<s>", "</s>"]);
    assert_eq!(tokenizer.encode_rendered("<s>a"), tokenizer.encode_rendered("a"));
    assert_eq!(tokenizer.decode(&tokenizer.encode("é b", PLAIN)), " é b".as_bytes());
}

fn smollm2() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| open(SMOLLM2).1)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn byte_level_bpe_round_trips(text in any::<String>(), ascii in "[ -~\\n\\t]{0,200}", letters in "[a-z '0-9]{0,200}") {
        for text in [text, ascii, letters] {
            let tokens = smollm2().encode(&text, PLAIN);
            // The vocabulary lacks a few bytes, which are passed over: what it has comes back.
            let known: Vec<u8> = text.bytes().filter(|&b| smollm2().find(&byte_char(b).to_string()).is_some()).collect();
            prop_assert_eq!(smollm2().decode(&tokens), known, "{:?}", text);
        }
    }
}
