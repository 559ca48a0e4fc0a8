//! The tests, with the two real models that they need.

use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// The models that tests run on, by their names in the catalogue.
const MODELS: [&str; 2] = ["smollm2-135m", "gemma3-270m"];

/// Fetches the models if they are not there yet, and runs every test; without those of the GPU where `driftwood doctor` finds none.
pub fn test(extra: &[String]) -> Result<()> {
    let models = fetch_models()?;
    let mut cargo = crate::cargo();
    cargo.args(["test", "--workspace"]).args(extra).env("DRIFTWOOD_MODELS", models);
    if !gpu_works()? {
        eprintln!("\nNo GPU is usable here: its tests are LEFT OUT. A software one will do: apt install libvulkan1 mesa-vulkan-drivers\n");
        let separator = (!extra.iter().any(|arg| arg == "--")).then_some("--");
        cargo.args(separator).args(["--skip", "gpu"]);
    }
    crate::run(&mut cargo)
}

/// Whether the whole chain from a guest's memory to the GPU works on this machine.
fn gpu_works() -> Result<bool> {
    let doctor = Command::new(binary()).args(["doctor", "--json"]).output().context("driftwood doctor")?;
    Ok(doctor.status.success())
}

/// The folder of the models, filled by the binary itself: it verifies their hashes.
pub fn fetch_models() -> Result<PathBuf> {
    crate::run(crate::cargo().args(["build", "--package", "driftwood"]))?;
    for model in MODELS {
        crate::run(Command::new(binary()).args(["pull", model]))?;
    }
    let listed = Command::new(binary()).args(["models", "--json"]).output().context("driftwood models")?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).context("the answer of `driftwood models --json`")?;
    let folder = listed["folder"].as_str().context("`driftwood models --json` names no folder")?;
    Ok(PathBuf::from(folder))
}

/// The binary of the test profile.
pub fn binary() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    target.join("debug/driftwood")
}
