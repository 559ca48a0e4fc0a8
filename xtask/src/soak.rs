//! What takes too long for every change.

use anyhow::Result;

/// The fuzz targets, as `fuzz/Cargo.toml` names them.
const FUZZ_TARGETS: [&str; 8] = ["gguf", "safetensors", "folder", "snapshot", "head", "journal", "host_calls", "guest_kernel"];

/// Fuzzes every target, runs the property tests with many cases, and the kernels under qemu.
pub fn soak(fuzz_seconds: u32) -> Result<()> {
    for target in FUZZ_TARGETS {
        let time = format!("-max_total_time={fuzz_seconds}");
        let seeds = format!("seeds/{target}");
        let corpus = format!("corpus/{target}");
        std::fs::create_dir_all(crate::root().join("fuzz").join(&corpus))?;
        let mut cargo = std::process::Command::new("cargo");
        cargo.current_dir(crate::root().join("fuzz")).args(["+nightly", "fuzz", "run", "--fuzz-dir", ".", target, &corpus, &seeds]);
        crate::run(cargo.args(["--", &time, "-rss_limit_mb=4096", "-timeout=20"]))?;
    }
    let models = crate::test::fetch_models()?;
    let mut cargo = crate::cargo();
    // As users run it: the plain path takes a minute a reply with debug assertions, and a soak has thousands of replies.
    cargo
        .args(["test", "--workspace", "--release"])
        .env("DRIFTWOOD_MODELS", models)
        .env("PROPTEST_CASES", "2000") // slow ones take an eighth of it or less
        .env("DRIFTWOOD_SOAK", "1");
    crate::run(&mut cargo)?;
    crate::cross::arm()
}
