//! The tiny models of `tests/fixtures/tiny`: built anew by pinned versions of transformers, MLX and gguf, and compared with what is committed.

use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// Builds the models into `target/tiny` and compares them with the committed ones; with `replace` they take its place.
pub fn run(replace: bool) -> Result<()> {
    let root = crate::root();
    let (environment, built, committed) = (root.join("target/tiny-python"), root.join("target/tiny"), root.join("tests/fixtures/tiny"));
    let python = environment.join("bin/python3");
    if !python.exists() {
        crate::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    }
    crate::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(root.join("tools/tiny/requirements.txt")))?;
    remove(&built)?;
    let mut build = Command::new(&python);
    build.arg(root.join("tools/tiny/build.py")).arg("--out").arg(&built);
    if !replace {
        return crate::run(build.arg("--compare").arg(&committed));
    }
    crate::run(&mut build)?;
    remove(&committed)?;
    std::fs::rename(&built, &committed).context("cannot move the models into tests/fixtures")
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}
