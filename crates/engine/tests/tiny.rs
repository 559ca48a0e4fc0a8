//! Tiny models of every family in every container (`tools/tiny/build.py`), against what transformers answers for them.

#[path = "common/expected.rs"]
mod expected;
#[path = "common/models.rs"]
mod models;

use driftwood_compute::{Arithmetic, Cpu, KvDType, Matrix, Simd};
use driftwood_engine::tokenizer::Special;
use driftwood_engine::{Batch, Logits, Model, Session, SessionOptions, Work, argmax};
use driftwood_region::{DType, Region, View};
use expected::{CONTEXT_TOKENS, Expected, LOGIT_TOLERANCE, rows, u32s};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

/// Greedy tokens are compared up to the first one whose lead over the next is smaller.
const MARGIN_MIN: f64 = 0.01;
/// How far logits of fast arithmetic may be from exact ones, on average, as a share of their size.
const FAST_SHARE_MAX: f64 = 0.1;

fn open(id: &str, container: &str, arithmetic: Arithmetic) -> Arc<Model> {
    models::open(&format!("tiny/{id}/{container}"), 2, Simd::detect(), arithmetic)
}

/// Logits of every position, (position, vocabulary), evaluated in chunks of so many tokens.
fn evaluated(model: &Arc<Model>, context_max: usize, ids: &[u32], chunk: usize) -> Vec<f32> {
    let mut session = Session::open(model, SessionOptions { kv: KvDType::F32, context_max }).unwrap();
    let mut batch = Batch::new(model);
    let parts = ids.chunks(chunk).map(|part| {
        let mut logits = vec![0.0; part.len() * model.config().vocabulary];
        session.append(part).unwrap();
        batch.step(&mut [Work::new(&mut session, Logits::All(&mut logits))]).unwrap();
        logits
    });
    parts.collect::<Vec<_>>().concat()
}

#[test]
fn every_model_and_container_is_listed() {
    let manifest = std::fs::read_to_string(models::fixtures().join("tiny/MANIFEST")).unwrap();
    let folders = manifest.lines().filter_map(|line| line.split_once("  ").unwrap().1.split_once('/'));
    let parts = folders.map(|(id, file)| (id, file.split('/').next().unwrap())).filter(|(_, name)| !name.starts_with("expected."));
    assert_eq!(rows().collect::<BTreeSet<_>>(), parts.collect::<BTreeSet<_>>());
}

#[test]
fn files_are_those_of_the_manifest() {
    let folder = models::fixtures().join("tiny");
    let manifest = std::fs::read_to_string(folder.join("MANIFEST")).unwrap();
    for line in manifest.lines() {
        let (hash, name) = line.split_once("  ").unwrap();
        let found = Sha256::digest(std::fs::read(folder.join(name)).unwrap()).iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        });
        assert_eq!(found, hash, "{name}");
    }
    let listed: BTreeSet<_> = manifest.lines().map(|line| line.split_once("  ").unwrap().1.to_owned()).collect();
    let mut present = BTreeSet::new();
    collect(&folder, &folder, &mut present);
    assert_eq!(present, listed);
}

fn collect(root: &Path, folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(root, &path, names),
            false if path.ends_with("MANIFEST") => {}
            false => drop(names.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned())),
        }
    }
}

#[test]
fn prompts_have_the_tokens_of_transformers() {
    for (id, container) in rows() {
        let (model, expected) = (open(id, container, Arithmetic::Exact), Expected::read(id));
        assert_eq!(model.config().vocabulary, expected.json["vocabulary"].as_u64().unwrap() as usize, "{id} {container}");
        for prompt in expected.prompts() {
            if container.ends_with(".gguf") && prompt["gguf"] == false {
                continue; // cut otherwise there, on purpose
            }
            let text = prompt["text"].as_str().unwrap();
            for (key, add) in [("ids", true), ("ids_plain", false)] {
                let found = model.tokenizer().encode(text, Special { add, parse: true });
                assert_eq!(found, u32s(&prompt[key]), "{id} {container}: {text:?}, {key}");
            }
        }
    }
}

/// What is wrong with a model's logits of one prompt, if anything is.
fn judge(model: &Arc<Model>, expected: &Expected, set: &str, (prompt, ids, positions): &(&str, Vec<u32>, Vec<usize>)) -> Option<String> {
    let vocabulary = model.config().vocabulary;
    let at_once = evaluated(model, CONTEXT_TOKENS, ids, ids.len());
    let got = positions.iter().flat_map(|position| &at_once[position * vocabulary..][..vocabulary]);
    let reference = expected.logits(set, prompt);
    assert_eq!(reference.len(), positions.len() * vocabulary);
    let difference =
        got.zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, |most: f32, x| if x > most || x.is_nan() { x } else { most });
    let again = [1, 7].map(|chunk| evaluated(model, CONTEXT_TOKENS, ids, chunk));
    let same_bits = again.iter().all(|again| at_once.iter().zip(again).all(|(a, b)| a.to_bits() == b.to_bits()));
    let fine = difference <= LOGIT_TOLERANCE && same_bits;
    (!fine).then(|| format!("prompt {prompt}: differs by {difference}, same bits in chunks: {same_bits}"))
}

#[test]
fn logits_are_those_of_transformers_in_whatever_chunks() {
    let mut wrong = Vec::new();
    for (id, container) in rows() {
        let expected = Expected::read(id);
        let set = expected.json["containers"][container].as_str().unwrap();
        let cpu = Arc::new(Cpu::new(2, Simd::detect(), Arithmetic::Exact));
        match Model::open(id, &models::path(&format!("tiny/{id}/{container}")), cpu) {
            Err(error) => wrong.push(format!("{id} {container}: {error}")),
            Ok(model) => {
                let judged = expected.with_logits().filter_map(|prompt| judge(&model, &expected, set, &prompt));
                wrong.extend(judged.map(|what| format!("{id} {container}, {what}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// transformers has the long factors for a text that is longer than the original context, the engine for a session that may become so.
#[test]
fn a_long_session_has_the_long_factors() {
    let (model, expected) = (open("phi4-mini", "bf16", Arithmetic::Exact), Expected::read("phi4-mini"));
    let (prompt, ids, positions) = expected.with_logits().last().unwrap();
    let (vocabulary, reference) = (model.config().vocabulary, expected.logits("long", prompt));
    let long = evaluated(&model, 256, &ids, ids.len());
    let got = positions.iter().flat_map(|position| &long[position * vocabulary..][..vocabulary]);
    assert!(got.zip(&reference).all(|(a, b)| (a - b).abs() <= LOGIT_TOLERANCE));
    assert!(expected.logits("float", prompt).iter().zip(&reference).any(|(a, b)| (a - b).abs() > 0.1));
    assert!(long == evaluated(&model, 256, &ids, 5));
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for (id, container) in rows().filter(|(_, container)| !container.contains('-') && !container.starts_with('q')) {
        let (model, expected) = (open(id, container, Arithmetic::Exact), Expected::read(id));
        for greedy in expected.json["greedy"].as_array().unwrap() {
            let prompt = greedy["prompt"].as_u64().unwrap() as usize;
            let mut session = Session::open(&model, SessionOptions { kv: KvDType::F32, context_max: CONTEXT_TOKENS }).unwrap();
            let (mut batch, mut logits) = (Batch::new(&model), vec![0.0; model.config().vocabulary]);
            session.append(&u32s(&expected.prompts()[prompt]["ids"])).unwrap();
            for (token, margin) in u32s(&greedy["tokens"]).iter().zip(greedy["margins"].as_array().unwrap()) {
                if margin.as_f64().unwrap() < MARGIN_MIN {
                    break;
                }
                batch.step(&mut [Work::new(&mut session, Logits::Last(&mut logits))]).unwrap();
                assert_eq!(argmax(&logits).unwrap(), *token, "{id} {container}, prompt {prompt}, after {} tokens", session.tokens().len());
                session.append(&[*token]).unwrap();
            }
        }
    }
}

#[test]
fn fast_arithmetic_is_near_the_exact_one() {
    for (id, container) in rows() {
        let (fast, exact) = (open(id, container, Arithmetic::Fast), open(id, container, Arithmetic::Exact));
        for (prompt, ids, _) in Expected::read(id).with_logits() {
            let [fast, exact] = [&fast, &exact].map(|model| evaluated(model, CONTEXT_TOKENS, &ids, 16));
            let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
            let apart = squares(&mut fast.iter().zip(&exact).map(|(a, b)| a - b));
            let share = (apart / squares(&mut exact.iter().copied())).sqrt();
            assert!(share <= FAST_SHARE_MAX, "{id} {container}, prompt {prompt}: {share}");
        }
    }
}

#[test]
fn groups_of_every_width_stand_for_mlxs_numbers() {
    let region = Arc::new(Region::map_path(&models::fixtures().join("tiny/mlx_sweep.safetensors")).unwrap());
    let tensors = driftwood_engine::safetensors::parse(&region).unwrap();
    for (bits, dtype) in [(2, DType::U2), (3, DType::U3), (4, DType::U4), (5, DType::U5), (6, DType::U6), (8, DType::U8)] {
        for group in [32, 64, 128] {
            for floats in ["f32", "f16", "bf16"] {
                let name = format!("{bits}.{group}.{floats}");
                let part = |part: &str| tensors[format!("{name}.{part}").as_str()].view.clone();
                let (words, expected) = (part("weight"), part("floats"));
                let weight = View::new(words.region(), words.offset_bytes(), dtype, expected.shape()).unwrap();
                assert_stands_for(&Matrix::grouped(weight, part("scales"), part("biases"), group), &expected, &name);
            }
        }
    }
}

fn assert_stands_for(matrix: &Matrix, expected: &View, name: &str) {
    for row in 0..matrix.rows() {
        let mut got = vec![0.0; matrix.row_len()];
        matrix.dequantise_row(row, &mut got);
        let expected = expected.row(row).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let off = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off <= 4.0 * f32::EPSILON, "{name}: off by {off}"); // numbers up to 4, rounded once or twice
    }
}
