//! Hosts, guests and models for the tests of whole journeys.
#![allow(dead_code)] // each test file uses its part

use driftwood_actor::{Error, Host, HostOptions, Limits, Message, Outcome, SpawnSpec};
use driftwood_compute::{Arithmetic, Cpu, Simd};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The file names of real models, by the names that tests use.
pub const SMOLLM2: &str = "smollm2";
pub const GEMMA3: &str = "gemma3";

/// A host without models.
pub fn bare_host() -> Host {
    let device = Arc::new(Cpu::new(1, Simd::Portable, Arithmetic::Fast)).into();
    Host::new(HostOptions { device, models: Box::new(|_| Err("this test has no models".into())) }).unwrap()
}

/// A host with the real models of the folder `DRIFTWOOD_MODELS`.
pub fn model_host(threads: usize) -> Host {
    let folder = std::env::var_os("DRIFTWOOD_MODELS")
        .map(PathBuf::from)
        .expect("set DRIFTWOOD_MODELS to the folder of the test models: `cargo xtask test` does");
    let resolver = move |name: &str| match name {
        SMOLLM2 => Ok(folder.join("smollm2-135m.gguf")),
        GEMMA3 => Ok(folder.join("gemma3-270m.gguf")),
        _ => Err("this test knows smollm2 and gemma3 only".to_owned()),
    };
    let device = Arc::new(Cpu::new(threads, Simd::detect(), Arithmetic::Fast)).into();
    Host::new(HostOptions { device, models: Box::new(resolver) }).unwrap()
}

/// A host with the same models in the reference's arithmetic.
pub fn exact_host() -> Host {
    let folder = PathBuf::from(std::env::var_os("DRIFTWOOD_MODELS").expect("model_host() says what it needs"));
    let device = Arc::new(Cpu::new(2, Simd::detect(), Arithmetic::Exact)).into();
    Host::new(HostOptions { device, models: Box::new(move |_| Ok(folder.join("smollm2-135m.gguf"))) }).unwrap()
}

/// A guest from `tests/guests`, or `.wasm` from the examples.
pub fn guest(name: &str) -> Arc<[u8]> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    if let Some(example) = name.strip_suffix(".wasm") {
        return std::fs::read(root.join(format!("../../guest/wasm/{example}.wasm"))).unwrap().into();
    }
    wat::parse_file(root.join(format!("tests/guests/{name}.wat"))).unwrap().into()
}

/// Limits that end a looping test soon.
pub fn tight() -> Limits {
    Limits { fuel: 200_000_000, memory_bytes: 4 << 20, wall: Duration::from_secs(20), ..Limits::default() }
}

pub fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

pub fn spawn(host: &mut Host, name: &str, module: Arc<[u8]>, limits: Limits, pairs: &[(&str, &str)]) -> Result<(), Error> {
    host.spawn(SpawnSpec { name: name.into(), module, settings: settings(pairs), limits, models: Vec::new() }).map(|_| ())
}

pub fn send(host: &mut Host, name: &str, text: &str) -> Result<Outcome, Error> {
    host.send(Message::new(name, text), &mut |_| {})
}

/// The reply to a message that must succeed.
pub fn reply(host: &mut Host, name: &str, text: &str) -> String {
    String::from_utf8(send(host, name, text).unwrap().reply).unwrap()
}
