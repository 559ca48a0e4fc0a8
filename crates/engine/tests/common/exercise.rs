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
    assert!(tensors.values().map(|tensor| tensor.view.bytes().len()).sum::<usize>() <= data.len());
    for view in tensors.values().map(|tensor| &tensor.view) {
        assert!(view.shape().rows() == 0 || view.row(view.shape().rows() - 1).len() == view.row_bytes());
        let _ = view.bytes().iter().map(|byte| u64::from(*byte)).sum::<u64>();
    }
}

/// Opens a folder whose files are the parts of `data` that NULs separate (none where a part is empty): `config.json`, the index, the
/// configurations of generation and tokenizer, and the header of the one shard, behind which lie zeros. Its tokenizer is no good, which is
/// found last. Returns what was wrong.
pub fn folder_error(data: &[u8]) -> String {
    const FILES: [&str; 4] = ["config.json", "model.safetensors.index.json", "generation_config.json", "tokenizer_config.json"];
    const DATA_BYTES: u64 = 1 << 20;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let parts: Vec<&[u8]> = data.splitn(FILES.len() + 1, |byte| *byte == 0).collect();
    for (name, part) in FILES.into_iter().zip(&parts).filter(|(_, part)| !part.is_empty()) {
        std::fs::write(at(name), part).expect("room in it");
    }
    std::fs::write(at("tokenizer.json"), "{}").expect("room in it");
    if let Some(header) = parts.get(FILES.len()) {
        let name = if parts[1].is_empty() { "model.safetensors" } else { "one.safetensors" };
        let mut file = std::fs::File::create(at(name)).expect("room in it");
        file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(header)).expect("room in it");
        file.set_len(8 + header.len() as u64 + DATA_BYTES).expect("room in it");
    }
    driftwood_engine::describe(folder.path()).expect_err("no tokenizer").to_string()
}

/// [`folder_error`] as a target: whatever is wrong, it is said.
pub fn folder(data: &[u8]) {
    assert!(!folder_error(data).is_empty());
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
