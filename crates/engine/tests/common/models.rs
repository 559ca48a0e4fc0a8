//! The models that tests run on, and where they lie: two real ones, and one tiny one of each family (`tests/fixtures/tiny`).

#![allow(dead_code, reason = "each test uses its part")]

use driftwood_compute::gpu::Gpu;
use driftwood_compute::{Arithmetic, Cpu, Simd};
use driftwood_engine::{Device, Model};
use std::path::PathBuf;
use std::sync::Arc;

pub const SMOLLM2: &str = "smollm2-135m.gguf";
pub const GEMMA3: &str = "gemma3-270m.gguf";

/// One tiny model of each family, in containers of all kinds.
pub const FAMILIES: [&str; 7] = [
    "tiny/llama/q4_1.gguf",
    "tiny/mistral/bf16",
    "tiny/qwen2/mlx-4-64",
    "tiny/qwen3/q8_0.gguf",
    "tiny/gemma2/mlx-4-64",
    "tiny/gemma3/multimodal",
    "tiny/phi4-mini/mlx-4-64",
];

/// The model's file in the folder that `DRIFTWOOD_MODELS` names, or the tiny model `tiny/MODEL/CONTAINER`.
pub fn path(file: &str) -> PathBuf {
    if file.starts_with("tiny/") {
        return fixtures().join(file);
    }
    let folder =
        std::env::var_os("DRIFTWOOD_MODELS").expect("set DRIFTWOOD_MODELS to the folder of the test models: `cargo xtask test` does");
    let path = PathBuf::from(folder).join(file);
    assert!(path.exists(), "{} is missing: `cargo xtask test` fetches it", path.display());
    path
}

/// `tests/fixtures`.
pub fn fixtures() -> PathBuf {
    std::env::var_os("DRIFTWOOD_FIXTURES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")), PathBuf::from)
}

/// A file of `tests/golden`.
pub fn golden(file: &str) -> String {
    let folder = std::env::var_os("DRIFTWOOD_GOLDEN")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")), PathBuf::from);
    std::fs::read_to_string(folder.join(file)).expect("tests/golden is part of the repository")
}

/// On this machine's graphics processor, or the software one that stands in for it.
pub fn open_gpu(file: &str, arithmetic: Arithmetic) -> Arc<Model> {
    let gpu = Gpu::open(None).expect("tests of the GPU need a Vulkan driver: apt install mesa-vulkan-drivers");
    let cpu = Arc::new(Cpu::new(2, Simd::detect(), arithmetic));
    Model::open(file, &path(file), Device { cpu, gpu: Some(gpu) }).unwrap()
}

pub fn open(file: &str, threads: usize, simd: Simd, arithmetic: Arithmetic) -> Arc<Model> {
    Model::open(file, &path(file), Arc::new(Cpu::new(threads, simd, arithmetic))).unwrap()
}
