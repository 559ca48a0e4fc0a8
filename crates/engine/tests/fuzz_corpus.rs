//! Replays the fuzz targets of model files on stable: the seeds in the repository, and a corpus where fuzzing has left one.

mod common;

use common::{GgufBuilder, tiny_bpe, tiny_spm};
use std::path::{Path, PathBuf};

fn folder(name: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(name).join(target)
}

#[test]
fn inputs_do_no_harm() {
    replay("gguf", common::exercise::gguf);
    replay("safetensors", common::exercise::safetensors);
}

fn replay(target: &str, exercise: fn(&[u8])) {
    for folder in [folder("seeds", target), folder("corpus", target)] {
        let Ok(entries) = folder.read_dir() else { continue };
        for entry in entries {
            exercise(&std::fs::read(entry.unwrap().path()).unwrap());
        }
    }
}

fn seeds() -> [(&'static str, GgufBuilder); 4] {
    let chat = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}";
    let values = (0..13).filter(|kind| ![8, 9].contains(kind)).fold(GgufBuilder::default(), |b, kind| {
        let bytes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][kind as usize];
        b.raw(&format!("value.{kind}"), kind, &vec![1; bytes]).array(&format!("array.{kind}"), kind, 2, &vec![1; 2 * bytes])
    });
    let aligned = GgufBuilder { alignment_bytes: Some(64), ..GgufBuilder::default() }.u32("general.alignment", 64);
    let tensors = [(0, 4), (1, 2), (30, 2)]
        .into_iter()
        .fold(aligned, |b, (kind, bytes)| b.tensor(&format!("plain.{kind}"), &[3, 2], kind, &vec![0; 6 * bytes]));
    let blocks = [(8, 32, 34), (2, 32, 18), (3, 32, 20), (6, 32, 22), (7, 32, 24), (12, 256, 144), (13, 256, 176), (14, 256, 210)];
    let tensors =
        blocks.into_iter().fold(tensors, |b, (kind, len, bytes)| b.tensor(&format!("blocks.{kind}"), &[len, 2], kind, &vec![0; 2 * bytes]));
    [
        ("bpe", tiny_bpe().str("tokenizer.chat_template", chat)),
        ("spm", tiny_spm()),
        ("values", values.strings("array.8", &["a", ""])),
        ("tensors", tensors),
    ]
}

/// The seeds are what the builder writes; `DRIFTWOOD_WRITE_SEEDS=1` writes them anew.
#[test]
fn seeds_are_valid_and_up_to_date() {
    for (name, builder) in seeds() {
        let (path, bytes) = (folder("seeds", "gguf").join(format!("{name}.gguf")), builder.build());
        builder.parse().unwrap();
        assert!(bytes.len() < 10_000, "{name} has {} bytes", bytes.len());
        if std::env::var_os("DRIFTWOOD_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(folder("seeds", "gguf")).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(&path).ok() == Some(bytes), "{} is stale: run with DRIFTWOOD_WRITE_SEEDS=1", path.display());
    }
}
