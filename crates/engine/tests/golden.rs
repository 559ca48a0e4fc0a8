//! Exact arithmetic against llama.cpp's near-exact reference, on both real models and every golden prompt.

#[path = "common/models.rs"]
mod models;

use driftwood_compute::{Arithmetic, KvDType, Simd};
use driftwood_engine::tokenizer::Special;
use driftwood_engine::{Batch, Logits, Model, Session, SessionOptions, Work, argmax};
use serde_json::Value;
use std::sync::Arc;

const LOGIT_TOLERANCE: f32 = 0.02;
const MARGIN_MIN: f64 = 0.05;

fn u32s(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn check_prompt(model: &Arc<Model>, batch: &mut Batch, prompt: &Value) {
    let name = prompt["name"].as_str().unwrap();
    let special = Special { add: prompt["add_special"].as_bool().unwrap(), parse: prompt["parse_special"].as_bool().unwrap() };
    let tokens = model.tokenizer().encode(prompt["text"].as_str().unwrap(), special);
    assert_eq!(tokens, u32s(&prompt["tokens"]), "{name}: prompt tokens");

    let mut session = Session::open(model, SessionOptions { kv: KvDType::F32, context_max: 0 }).unwrap();
    session.append(&tokens).unwrap();
    let mut logits = vec![0.0; model.config().vocabulary];
    batch.step(&mut [Work::new(&mut session, Logits::Last(&mut logits))]).unwrap();
    let reference = &prompt["f32"];
    for (id, expected) in u32s(&reference["top10_ids"]).iter().zip(reference["top10_logits"].as_array().unwrap()) {
        let (got, expected) = (logits[*id as usize], expected.as_f64().unwrap() as f32);
        assert!((got - expected).abs() <= LOGIT_TOLERANCE, "{name}: logit of {id} is {got}, expected {expected}");
    }
    let margins = reference["greedy_margin"].as_array().unwrap();
    for (step, (&expected, margin)) in u32s(&reference["greedy"]).iter().zip(margins).enumerate() {
        if margin.as_f64().unwrap() < MARGIN_MIN {
            break;
        }
        let token = argmax(&logits).unwrap();
        assert_eq!(token, expected, "{name}: greedy token {step}");
        session.append(&[token]).unwrap();
        batch.step(&mut [Work::new(&mut session, Logits::Last(&mut logits))]).unwrap();
    }
}

fn check_model(file: &str, golden: &str) {
    let model = models::open(file, 2, Simd::detect(), Arithmetic::Exact);
    let mut batch = Batch::new(&model);
    let golden: Value = serde_json::from_str(&models::golden(golden)).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 12);
    for prompt in prompts {
        check_prompt(&model, &mut batch, prompt);
    }
}

#[test]
fn smollm2_matches_the_reference() {
    check_model(models::SMOLLM2, "smollm2.json");
}

#[test]
fn gemma3_matches_the_reference() {
    check_model(models::GEMMA3, "gemma3.json");
}
