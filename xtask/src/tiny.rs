//! The tiny models of `tests/fixtures/tiny`: built anew by pinned versions of transformers, MLX and gguf, and compared by their hashes.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// Builds the models into `target/tiny` and compares their manifest with the committed one; with `replace` they take its place.
pub fn run(replace: bool) -> Result<()> {
    let root = crate::root();
    let (environment, built, committed) = (root.join("target/tiny-python"), root.join("target/tiny"), root.join("tests/fixtures/tiny"));
    let python = environment.join("bin/python3");
    if !python.exists() {
        crate::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    }
    crate::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(root.join("tools/tiny/requirements.txt")))?;
    remove(&built)?;
    crate::run(Command::new(&python).arg(root.join("tools/tiny/build.py")).arg("--out").arg(&built))?;
    if replace {
        remove(&committed)?;
        return std::fs::rename(&built, &committed).context("cannot move the models into tests/fixtures");
    }
    let [new, old] = [&built, &committed].map(|folder| manifest(folder));
    let (new, old) = (new?, old?);
    let differing: Vec<_> = new.lines().filter(|line| !old.lines().any(|l| l == *line)).collect();
    ensure!(new == old, "what was built is not what is committed:\n{}", differing.join("\n"));
    println!("{} files are those of tests/fixtures/tiny", new.lines().count());
    Ok(())
}

fn manifest(folder: &Path) -> Result<String> {
    std::fs::read_to_string(folder.join("MANIFEST")).with_context(|| format!("cannot read the manifest in {}", folder.display()))
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}
