//! `generate --exact` against llama.cpp's tokens and logits (near-exact f32 variant), a few prompts a model.

use crate::support::{GEMMA3, Home, SMOLLM2};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// Logits may differ by this much, and greedy tokens part where the two best logits are closer than this.
const LOGIT_TOLERANCE: f64 = 0.02;
const MARGIN_MIN: f64 = 0.05;

/// Prompts that take a debug build no minutes.
const PROMPTS: [&str; 4] = ["one_word", "fact_5tok", "story", "chat_simple"];

fn golden(file: &str) -> Value {
    let folder = std::env::var_os("DRIFTWOOD_GOLDEN").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"));
    serde_json::from_slice(&fs::read(folder.join(file)).expect("the golden files are in tests/golden")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
}

fn agrees(model: &str, file: &str) {
    let home = Home::new();
    let mut compared = 0;
    for prompt in golden(file)["prompts"].as_array().unwrap().iter().filter(|p| PROMPTS.contains(&p["name"].as_str().unwrap())) {
        let name = &prompt["name"];
        let text = prompt.get("messages").map_or_else(|| prompt["text"].as_str().unwrap().to_owned(), Value::to_string);
        fs::write(home.path("prompt"), text).unwrap();
        let flags = ["--exact", "--max-tokens", "32", "--ignore-eos", "--top-logits", "10", "--json"];
        let mut args = vec!["generate", "--model", model, "--prompt-file", "prompt"];
        args.extend(flags);
        args.extend(prompt.get("messages").map(|_| "--chat"));
        let report = home.json(&args);
        assert_eq!(report["prompt_tokens"], prompt["tokens"], "{name}: prompt tokens");
        let expected = &prompt["f32"];
        for (index, (id, logit)) in numbers(&expected["top10_ids"]).into_iter().zip(numbers(&expected["top10_logits"])).enumerate() {
            let all = report["top_logits"].as_array().unwrap();
            // Ids whose logits are closer than the tolerance may change places.
            let found = all.iter().find(|pair| pair[0].as_f64() == Some(id)).unwrap_or(&all[index]);
            assert!((found[1].as_f64().unwrap() - logit).abs() < LOGIT_TOLERANCE, "{name}: logit of {id} is {found}, expected {logit}");
        }
        let firm = numbers(&expected["greedy_margin"]).iter().take_while(|margin| **margin >= MARGIN_MIN).count().min(32);
        assert_eq!(numbers(&report["tokens"])[..firm], numbers(&expected["greedy"])[..firm], "{name}: greedy tokens");
        compared += 1;
    }
    assert!(compared >= 3, "the golden file has other prompts than expected");
}

#[test]
fn smollm2_agrees() {
    agrees(SMOLLM2.0, "smollm2.json");
}

#[test]
fn gemma3_agrees() {
    agrees(GEMMA3.0, "gemma3.json");
}
