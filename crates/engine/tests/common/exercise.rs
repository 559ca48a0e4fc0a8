//! What the fuzz targets of model files do with their input, shared with the tests that replay the corpus.

use driftwood_engine::gguf::GgufFile;
use driftwood_engine::template::{ChatTemplate, Message};
use driftwood_engine::tokenizer::{Special, Tokenizer};
use driftwood_region::Region;
use std::io::Write;
use std::sync::Arc;

/// Parses `data` as a GGUF file and uses whatever it holds: metadata, tensors, tokenizer, chat template. Errors are fine, panics are not.
pub fn gguf(data: &[u8]) {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(data).expect("room in it");
    let Ok(region) = Region::map_file(&file) else { return };
    let Ok(file) = GgufFile::parse(Arc::new(region)) else { return };
    for (key, value) in file.metadata() {
        let _ = (value.to_string(), file.optional_u32(key), file.optional_f32(key), file.optional_bool(key), file.optional_string(key));
        let _ =
            (file.strings(key).map(Iterator::count), file.integers(key).map(Iterator::sum::<i128>), file.floats(key).map(Iterator::count));
    }
    for (_, view) in file.tensors() {
        assert!(view.row(view.shape().rows() - 1).len() == view.row_bytes());
    }
    let Ok(tokenizer) = Tokenizer::from_gguf(&file) else { return };
    use_tokenizer(&tokenizer);
    let Ok(template) = ChatTemplate::from_gguf(&file, &tokenizer) else { return };
    let messages =
        [Message::new("system", "be brief"), Message::new("user", "hi"), Message::new("assistant", "ho"), Message::new("user", "?")];
    if let Ok(text) = template.render(&messages, true) {
        tokenizer.encode_rendered(&text[..text.floor_char_boundary(4096)]);
    }
}

/// Parses `data` as a safetensors file: an error, or tensors that lie in it and apart.
pub fn safetensors(data: &[u8]) {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(data).expect("room in it");
    let Ok(region) = Region::map_file(&file) else { return };
    let Ok(tensors) = driftwood_engine::safetensors::parse(&Arc::new(region)) else { return };
    assert!(tensors.values().map(|view| view.bytes().len()).sum::<usize>() <= data.len());
    for view in tensors.values() {
        assert!(view.shape().rows() == 0 || view.row(view.shape().rows() - 1).len() == view.row_bytes());
        let _ = view.bytes().iter().map(|byte| u64::from(*byte)).sum::<u64>();
    }
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    for (add, parse) in [(false, false), (true, true)] {
        let tokens = tokenizer.encode("Hello  wörld\n\n123 <|im_end|> 日本 aaaaaaaaaaaa\u{0}", Special { add, parse });
        assert!(tokens.iter().all(|&t| (t as usize) < tokenizer.vocab_len()));
        tokenizer.decode(&tokens);
    }
    for token in 0..tokenizer.vocab_len().min(1000) as u32 + 1 {
        let _ = (tokenizer.piece(token), tokenizer.token_text(token), tokenizer.is_end(token));
    }
}
