//! Chat templates of well-known models against `transformers`' renderings, recorded by `tools/tiny/templates.py`.
//!
//! The templates are not ours to keep: `cargo xtask test` fetches them.

#[path = "common/models.rs"]
mod models;

use driftwood_engine::template::{ChatTemplate, Message};
use driftwood_engine::tokenizer::{FolderTokens, Tokenizer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// The folder of the templates: `DRIFTWOOD_TEMPLATES`, or `templates` beside the test models.
fn source(name: &str) -> String {
    let folder = match std::env::var_os("DRIFTWOOD_TEMPLATES") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::var_os("DRIFTWOOD_MODELS")
            .map(PathBuf::from)
            .expect("set DRIFTWOOD_MODELS: `cargo xtask test` does")
            .join("templates"),
    };
    let path = folder.join(format!("{name}.jinja"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; `cargo xtask test` fetches it", path.display()))
}

fn recorded(file: &str) -> Value {
    serde_json::from_str(&models::golden(file)).unwrap()
}

/// A tokenizer whose special tokens have the names and texts that a template may ask for.
fn tokenizer(tokens: &Value) -> Tokenizer {
    let named = tokens.as_object().unwrap().iter().map(|(name, text)| (name.clone(), text.as_str().unwrap().to_owned())).collect();
    let json = recorded("tokenizers/gpt2.json")["tokenizer"].to_string();
    Tokenizer::from_json(json.as_bytes(), &FolderTokens { named, ..FolderTokens::default() }).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What differs in one rendering, if something does.
fn difference(template: &ChatTemplate, record: &Value, run: &str, expected: &Value) -> Option<String> {
    let (conversation, add_prompt) = run.strip_suffix(", prompt").map_or((run, false), |name| (name, true));
    let messages: Vec<Message> = serde_json::from_value(record["conversations"][conversation].clone()).unwrap();
    let rendered = template.render_at(&messages, add_prompt, record["unix_seconds"].as_u64().unwrap());
    match (rendered, expected["text"].as_str(), expected["error"].as_str()) {
        (Ok(text), Some(expected), _) if text == expected => None,
        (Err(error), _, Some(expected)) if error.to_string().contains(expected) => None,
        (rendered, ..) => Some(format!("{run}:\n  {rendered:?}\n  {expected}\n")),
    }
}

#[test]
fn well_known_templates_render_as_transformers_renders_them() {
    let record = recorded("templates.json");
    let tokenizer = tokenizer(&record["tokens"]);
    let templates = record["templates"].as_object().unwrap();
    assert!(templates.len() >= 10);
    let mut differences = String::new();
    for (name, expected) in templates {
        let source = source(name);
        assert_eq!(hex(&Sha256::digest(&source)), expected["sha256"].as_str().unwrap(), "{name} is another template than was recorded");
        let runs = expected["runs"].as_object().unwrap();
        assert!(runs.len() >= 20);
        match ChatTemplate::new(Some(&source), "", &tokenizer) {
            Ok(template) => {
                let differing = runs.iter().filter_map(|(run, expected)| difference(&template, &record, run, expected));
                differing.for_each(|text| differences += &format!("{name}, {text}"));
            }
            Err(error) => differences += &format!("{name}: {error}\n"),
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

#[test]
fn jinja_does_what_python_does() {
    let record = recorded("templates.json");
    let tokenizer = tokenizer(&record["tokens"]);
    let snippets = record["snippets"].as_array().unwrap();
    assert!(snippets.len() >= 20);
    let mut differences = String::new();
    for snippet in snippets {
        let source = snippet[0].as_str().unwrap();
        match ChatTemplate::new(Some(source), "", &tokenizer) {
            Ok(template) => {
                differences.extend(difference(&template, &record, "turns", &snippet[1]).map(|text| format!("{source}\n  {text}")))
            }
            Err(error) => differences += &format!("{source}: {error}\n"),
        }
    }
    assert!(differences.is_empty(), "{differences}");
}
