//! Synthetic models are what the engine opens, and the same model in every format.

use super::*;
use driftwood_compute::{Arithmetic, Cpu, Simd};
use driftwood_engine::tokenizer::Special;
use driftwood_engine::{Batch, Logits, Model, Session, SessionOptions, Work, argmax};
use std::sync::Arc;

const FORMATS: [Format; 7] = [
    Format::Bf16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Mlx { bits: 4, group: 64 },
    Format::Mlx { bits: 3, group: 32 },
    Format::Mlx { bits: 6, group: 128 },
];

fn tiny() -> &'static Shape {
    Shape::named("tiny").unwrap()
}

fn cpu(threads: usize, simd: Simd, arithmetic: Arithmetic) -> Arc<Cpu> {
    Arc::new(Cpu::new(threads, simd, arithmetic))
}

fn open(path: &Path, device: Arc<Cpu>) -> Arc<Model> {
    Model::open("synthetic", path, device).unwrap()
}

/// Logits after each of `tokens`, evaluated `chunk` at a time.
fn logits(model: &Arc<Model>, tokens: &[u32], chunk: usize) -> Vec<u32> {
    let mut session = Session::open(model, SessionOptions::default()).unwrap();
    let mut batch = Batch::new(model);
    let all = tokens.chunks(chunk).flat_map(|tokens| {
        let mut out = vec![0.0; tokens.len() * model.config().vocabulary];
        session.append(tokens).unwrap();
        batch.step(&mut [Work::new(&mut session, Logits::All(&mut out))]).unwrap();
        out
    });
    all.map(f32::to_bits).collect()
}

/// The largest difference, against the size of what is compared.
fn distance(a: &[u32], b: &[u32]) -> f64 {
    let floats = |x: &[u32]| x.iter().map(|x| f64::from(f32::from_bits(*x))).collect::<Vec<_>>();
    let (a, b) = (floats(a), floats(b));
    let size = a.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size
}

const TOKENS: [u32; 9] = [496, 72, 101, 108, 300, 511, 0, 7, 261];

#[test]
fn every_format_is_the_same_model_but_for_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let exact = || cpu(2, Simd::detect(), Arithmetic::Exact);
    let all = FORMATS.map(|format| {
        let path = folder.path().join(format!("{format:?}"));
        synth("tiny", format, 5, &path).unwrap();
        let model = open(&path, exact());
        assert_eq!((model.config().layers, model.config().vocabulary, model.tokenizer().vocab_len() <= 512), (2, 512, true));
        logits(&model, &TOKENS, 9)
    });
    for (format, (logits, limit)) in FORMATS.into_iter().zip(all.iter().zip([1e-9, 0.02, 0.3, 0.3, 0.3, 0.6, 0.1])) {
        let off = distance(&all[0], logits);
        assert!(off <= limit && (limit < 1e-6 || off > 1e-4), "{format:?} is off by {off}");
    }
    assert!(synth("tiny", Format::Bf16, 5, &folder.path().join("Bf16")).unwrap_err().to_string().contains("exists"));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), FORMATS.len(), "{left:?}");
}

/// Two containers, two orders of Q's and K's rows, two ways to scale RoPE: one model. So with the weights in shards.
#[test]
fn folders_and_gguf_files_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let weights = Weights::new(Format::Bf16, 7);
    folder::write(tiny(), &weights, usize::MAX, &path("whole")).unwrap();
    folder::write(tiny(), &weights, 100_000, &path("shards")).unwrap();
    gguf::write(tiny(), &weights, &path("gguf")).unwrap();
    assert!(path("shards/model.safetensors.index.json").exists() && !path("whole/model.safetensors.index.json").exists());
    let models = ["whole", "shards", "gguf"].map(|name| open(&path(name), cpu(2, Simd::detect(), Arithmetic::Exact)));
    let [whole, shards, gguf] = [0, 1, 2].map(|i| logits(&models[i], &TOKENS, 4));
    assert!(whole.iter().any(|x| *x != 0));
    assert!(whole == shards, "shards differ");
    assert!(whole == gguf, "GGUF is off by {}", distance(&whole, &gguf));
    let prints = models.each_ref().map(|model| model.fingerprint());
    assert!(prints[0] != prints[1] && prints[1] != prints[2]);
    flip_a_weight(&path("shards"));
    let altered = open(&path("shards"), cpu(1, Simd::detect(), Arithmetic::Exact));
    assert_ne!(altered.fingerprint(), prints[1], "a shard is not covered");
}

#[test]
fn every_family_is_what_the_engine_opens() {
    use shape::{Family, Stretch};
    let folder = tempfile::tempdir().unwrap();
    let weights = Weights::new(Format::Bf16, 9);
    let families = [
        (Family::Llama, Stretch::None),
        (Family::Mistral, Stretch::None),
        (Family::Qwen2, Stretch::None),
        (Family::Qwen3, Stretch::None),
        (Family::Gemma2, Stretch::None),
        (Family::Gemma3, Stretch::Linear(8.0)),
        (Family::Phi3, Stretch::Long),
    ];
    for (family, stretch) in families {
        let shape = Shape { family, stretch, window: 4 * usize::from(family != Family::Mistral), ..tiny().clone() };
        let path = |name: &str| folder.path().join(format!("{family:?}-{name}"));
        folder::write(&shape, &weights, usize::MAX, &path("folder")).unwrap();
        gguf::write(&shape, &weights, &path("gguf")).unwrap();
        let [a, b] = ["folder", "gguf"].map(|name| logits(&open(&path(name), cpu(2, Simd::detect(), Arithmetic::Exact)), &TOKENS, 4));
        assert!(a.iter().any(|x| *x != 0) && a == b, "{family:?} is off by {}", distance(&a, &b));
    }
}

/// Replaces the second shard by an altered copy: the old one is mapped.
fn flip_a_weight(folder: &Path) {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let path = names.into_iter().find(|path| path.to_string_lossy().contains("model-00002-of-")).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn company_does_not_matter_in_any_format() {
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let path = folder.path().join(format!("{format:?}"));
        synth("tiny", format, 3, &path).unwrap();
        for arithmetic in [Arithmetic::Fast, Arithmetic::Exact] {
            let expected = logits(&open(&path, cpu(1, Simd::Portable, arithmetic)), &TOKENS, 9);
            for (threads, simd, chunk) in [(3, Simd::Portable, 1), (1, Simd::detect(), 2), (2, Simd::detect(), 5)] {
                let got = logits(&open(&path, cpu(threads, simd, arithmetic)), &TOKENS, chunk);
                assert!(got == expected, "{format:?} {arithmetic:?} on {threads} threads, {simd}, in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn every_format_generates_and_tokenises() {
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let path = folder.path().join(format!("{format:?}"));
        synth("tiny", format, 1, &path).unwrap();
        let model = open(&path, cpu(2, Simd::detect(), Arithmetic::Fast));
        let tokenizer = model.tokenizer();
        let text = "on the nearing\n\n42 äöü <|eot_id|>";
        let tokens = tokenizer.encode(text, Special { add: true, parse: false });
        assert_eq!((tokens[0], &tokenizer.decode(&tokens)[..]), (496, text.as_bytes()), "{format:?}");
        assert_eq!(tokenizer.encode(" the<|eot_id|>", Special { add: false, parse: true }), [262, 505]);
        assert!(tokenizer.is_end(505) && tokenizer.is_end(504) && !tokenizer.is_end(262));
        assert!(model.chat_template().unwrap().source().contains("start_header_id"));
        let (mut session, mut batch) = (Session::open(&model, SessionOptions::default()).unwrap(), Batch::new(&model));
        let mut logits = vec![0.0; 512];
        session.append(&tokens).unwrap();
        for _ in 0..20 {
            batch.step(&mut [Work::new(&mut session, Logits::Last(&mut logits))]).unwrap();
            session.append(&[argmax(&logits).unwrap()]).unwrap();
        }
        assert!(logits.iter().all(|x| x.is_finite()) && logits.iter().any(|x| x.abs() > 0.01), "{format:?}");
    }
}

#[test]
fn shapes_have_the_parameters_of_their_namesakes() {
    let expected = [
        ("llama-3.2-1b", 1235),
        ("llama-3.2-3b", 3212),
        ("llama-3.1-8b", 8030),
        ("smollm2-1.7b", 1711),
        ("tinyllama-1.1b", 1100),
        ("llama-2-7b", 6738),
        ("mistral-7b-v0.1", 7241),
        ("mistral-7b-v0.3", 7248),
        ("qwen2.5-0.5b", 494),
        ("qwen2.5-1.5b", 1543),
        ("qwen2.5-7b", 7615),
        ("qwen3-0.6b", 596),
        ("qwen3-4b", 4022),
        ("gemma2-2b", 2614),
        ("gemma3-1b", 999),
        ("gemma3-4b", 3880),
        ("phi-3-mini", 3821),
        ("phi-4-mini", 3836),
    ];
    assert_eq!(expected.len() + 1, SHAPES.len());
    for (name, millions) in expected {
        let tensors = Shape::named(name).unwrap().tensors();
        let elements = tensors.iter().map(|tensor| tensor.kind.elements());
        assert_eq!(elements.sum::<usize>() / 1_000_000, millions, "{name}");
    }
    assert!(Shape::named("gpt-2").unwrap_err().to_string().contains("llama-3.2-3b"));
}

#[test]
fn a_vocabulary_has_as_many_merges_as_a_real_one() {
    let vocabulary = tokenizer::Vocabulary::new(Shape::named("llama-3.2-1b").unwrap());
    let texts: std::collections::HashSet<_> = vocabulary.pieces.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!((vocabulary.pieces.len(), texts.len()), (128_256, 128_256));
    assert!((275_000..285_000).contains(&vocabulary.merges.len()), "{}", vocabulary.merges.len());
    assert!(vocabulary.merges.iter().all(|(left, right)| texts.contains(format!("{left}{right}").as_str())));
}

#[test]
fn formats_are_known_by_their_names() {
    assert_eq!("mlx4".parse::<Format>().unwrap(), Format::Mlx { bits: 4, group: 64 });
    assert_eq!("mlx6-32".parse::<Format>().unwrap(), Format::Mlx { bits: 6, group: 32 });
    for bad in ["mlx7", "mlx4-63", "mlx", "q5_0", ""] {
        assert!(bad.parse::<Format>().is_err(), "{bad}");
    }
    let groups = synth("gemma3-1b", "mlx4-128".parse().unwrap(), 1, Path::new("/nowhere/at/all")).unwrap_err().to_string();
    assert!(groups.contains("cannot make the folder"), "{groups}");
}
