//! Exact arithmetic against llama.cpp's near-exact reference, on both real models: every golden prompt on the CPU, two short ones of each
//! on the GPU, and all of them there with `--ignored`.

#[path = "common/models.rs"]
mod models;

use driftwood_compute::{Arithmetic, KvDType, Simd};
use driftwood_engine::tokenizer::Special;
use driftwood_engine::{Batch, Logits, Model, Session, SessionOptions, Work, argmax};
use serde_json::Value;
use std::sync::Arc;

/// How near the reference a device must be.
struct Bar {
    logit_tolerance: f32,
    /// Greedy tokens are compared up to the first one whose lead over the next is smaller.
    margin_min: f64,
}

const CPU: Bar = Bar { logit_tolerance: 0.02, margin_min: 0.05 };
const GPU: Bar = Bar { logit_tolerance: 0.05, margin_min: 0.1 };

/// The prompts that are evaluated on the GPU where that may be a program on two cores.
const SHORT: [&str; 2] = ["one_word", "fact_5tok"];

fn u32s(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn check_prompt(model: &Arc<Model>, batch: &mut Batch, prompt: &Value, bar: &Bar, greedy_max: usize) {
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
        assert!((got - expected).abs() <= bar.logit_tolerance, "{name}: logit of {id} is {got}, expected {expected}");
    }
    let margins = reference["greedy_margin"].as_array().unwrap();
    for (step, (&expected, margin)) in u32s(&reference["greedy"]).iter().zip(margins).enumerate().take(greedy_max) {
        if margin.as_f64().unwrap() < bar.margin_min {
            break;
        }
        let token = argmax(&logits).unwrap();
        assert_eq!(token, expected, "{name}: greedy token {step}");
        session.append(&[token]).unwrap();
        batch.step(&mut [Work::new(&mut session, Logits::Last(&mut logits))]).unwrap();
    }
}

fn prompts(golden: &str) -> Vec<Value> {
    let golden: Value = serde_json::from_str(&models::golden(golden)).unwrap();
    let prompts = golden["prompts"].as_array().unwrap().clone();
    assert_eq!(prompts.len(), 12);
    prompts
}

fn check_cpu(file: &str, golden: &str) {
    let model = models::open(file, 2, Simd::detect(), Arithmetic::Exact);
    let mut batch = Batch::new(&model);
    for prompt in prompts(golden) {
        check_prompt(&model, &mut batch, &prompt, &CPU, usize::MAX);
    }
}

fn check_gpu(file: &str, golden: &str, chosen: impl Fn(&str) -> bool, greedy_max: usize) {
    let model = models::open_gpu(file, Arithmetic::Exact);
    let mut batch = Batch::new(&model);
    for prompt in prompts(golden).iter().filter(|p| chosen(p["name"].as_str().unwrap())) {
        check_prompt(&model, &mut batch, prompt, &GPU, greedy_max);
    }
}

#[test]
fn smollm2_matches_the_reference() {
    check_cpu(models::SMOLLM2, "smollm2.json");
}

#[test]
fn gemma3_matches_the_reference() {
    check_cpu(models::GEMMA3, "gemma3.json");
}

#[test]
fn smollm2_on_the_gpu_matches_the_reference() {
    check_gpu(models::SMOLLM2, "smollm2.json", |name| SHORT.contains(&name), 24);
}

#[test]
fn gemma3_on_the_gpu_matches_the_reference() {
    check_gpu(models::GEMMA3, "gemma3.json", |name| SHORT.contains(&name), 8);
}

#[test]
#[ignore = "all prompts take many minutes on a software GPU"]
fn every_prompt_on_the_gpu_matches_the_reference() {
    check_gpu(models::SMOLLM2, "smollm2.json", |_| true, usize::MAX);
    check_gpu(models::GEMMA3, "gemma3.json", |_| true, usize::MAX);
}
