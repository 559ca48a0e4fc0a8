//! Targets that cannot run here, or only under emulation: Apple Silicon is checked and linted, aarch64 Linux runs its kernels.
//!
//! Both use Debian's own toolchain with its library source, because rustup may be unable to fetch a target.

use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;

const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const PACKAGES: &str =
    "apt-get install rustc-web cargo-web rust-web-src rust-web-clippy gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user";

/// Type-checks and lints every crate for Apple Silicon.
pub fn apple() -> Result<()> {
    let mut cargo = debian_cargo()?;
    cargo.args([
        "clippy",
        "-Zbuild-std=std,panic_abort",
        "--target",
        "aarch64-apple-darwin",
        "--workspace",
        "--exclude",
        "xtask",
        "--quiet",
    ]);
    // No C is compiled for a check.
    cargo.env("CC_aarch64_apple_darwin", "/bin/true").env("AR_aarch64_apple_darwin", "/bin/true");
    crate::run(cargo.args(["--", "-D", "warnings"]))
}

/// Runs the kernels' tests for aarch64 Linux under qemu: the same golden bits as on x86-64. There is no GPU driver under qemu.
pub fn arm() -> Result<()> {
    let mut cargo = debian_cargo()?;
    cargo.args(["test", "-Zbuild-std", "--target", "aarch64-unknown-linux-gnu", "--quiet", "--package", "driftwood-compute", "--lib"]);
    // The GPU's libraries are built only because the crate has them.
    cargo.args(["--config", "profile.dev.package.'*'.opt-level=0", "--", "cpu::"]);
    cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
    cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "qemu-aarch64 -L /usr/aarch64-linux-gnu");
    crate::run(&mut cargo)
}

fn debian_cargo() -> Result<Command> {
    ensure!(Path::new(DEBIAN_CARGO).exists(), "Debian's Rust is not installed: {PACKAGES}");
    let mut cargo = Command::new(DEBIAN_CARGO);
    cargo.env("RUSTUP_TOOLCHAIN", "/usr").env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", crate::root().join("target/debian"));
    cargo.current_dir(crate::root());
    cargo.env_remove("RUSTC").env_remove("CARGO").env_remove("RUSTUP_HOME");
    Ok(cargo)
}
