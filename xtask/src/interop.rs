//! A frozen conversation, opened by Python's `safetensors` and numpy.

use crate::test::{binary, fetch_models};
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// Freezes a short conversation on each model and checks the file in Python, in a virtual environment under `target/`.
pub fn interop() -> Result<()> {
    let folder = crate::root().join("target/interop");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let python = virtual_environment(&folder)?;
    fetch_models()?;
    for model in ["smollm2-135m", "gemma3-270m"] {
        let file = folder.join(format!("{model}.safetensors"));
        let driftwood = |args: &[&str]| crate::run(Command::new(binary()).arg("--state").arg(folder.join("state")).args(args));
        driftwood(&["actor", "spawn", model, "--model", model])?;
        driftwood(&["actor", "send", model, "Why is the sea salty? Tell me all about it.", "--max-tokens", "60", "--temperature", "0"])?;
        driftwood(&["freeze", model, "-o", &file.to_string_lossy()])?;
        crate::run(Command::new(&python).arg(crate::root().join("tools/interop/check_snapshot.py")).arg(&file))?;
    }
    Ok(())
}

fn virtual_environment(folder: &Path) -> Result<std::path::PathBuf> {
    let environment = folder.join("python");
    crate::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    let python = environment.join("bin/python");
    crate::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "safetensors", "numpy"]))?;
    Ok(python)
}
