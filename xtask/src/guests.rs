//! Builds the example guests to bytes that are the same on every machine, into `guest/wasm` or beside it for comparison.
//!
//! The toolchain is Debian's (rustc-web with its library source, lld-19, clang-19), since rustup can't fetch the Wasm target
//! everywhere. `guest/wasm/toolchain.txt` says which versions built what is committed: others give other bytes.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// The actors in Rust, which are packages in `guest/actors`.
const ACTORS: [&str; 4] = ["chat", "echo", "judge", "matmul"];
const C_EXAMPLE: &str = "c_example.wasm";
const VERSIONS: &str = "toolchain.txt";

const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const RUST_SOURCE: &str = "/usr/lib/rustlib/src/rust";
const LINKER: &str = "wasm-ld-19";
const CLANG: &str = "clang-19";
const TARGET: &str = "wasm32-unknown-unknown";

const INSTALL: &str = "apt-get install -y --no-install-recommends rustc-web cargo-web rust-web-src lld-19 clang-19";

/// The guests can't be built here to the bytes that are committed.
#[derive(Debug)]
pub struct ToolchainMissing {
    why: String,
}

impl fmt::Display for ToolchainMissing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}; on Debian: {INSTALL}", self.why)
    }
}

impl std::error::Error for ToolchainMissing {}

/// Builds all guests and puts their bytes in `guest/wasm`, or with `check` compares them with what is there.
///
/// # Errors
/// `ToolchainMissing` if it is missing or, for a check, of other versions; else if a build fails or the bytes differ.
pub fn run(check: bool) -> Result<()> {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?.join("guest");
    let committed = guest.join("wasm");
    let versions = versions()?;
    if check {
        same_versions(&committed.join(VERSIONS), &versions)?;
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| guest.join("target"), |folder| PathBuf::from(folder).join("guest"));
    let built = target.join("wasm");
    fs::create_dir_all(&built).with_context(|| format!("can't make {}", built.display()))?;
    build_rust(&guest, &target, &built)?;
    build_c(&guest, &built)?;
    let names = ACTORS.iter().map(|actor| format!("{actor}.wasm")).chain([C_EXAMPLE.to_string()]);
    if check { compare(&built, &committed, names) } else { publish(&built, &committed, names, &versions) }
}

/// What builds the guests, one line a tool.
fn versions() -> Result<String> {
    for path in [CARGO, RUSTC, &format!("{RUST_SOURCE}/library/core/Cargo.toml")] {
        if !Path::new(path).exists() {
            return Err(ToolchainMissing { why: format!("{path} is missing") }.into());
        }
    }
    Ok([first_line(RUSTC)?, first_line(CLANG)?, first_line(LINKER)?].join("\n") + "\n")
}

fn first_line(tool: &str) -> Result<String> {
    let output = Command::new(tool).arg("--version").output().map_err(|error| ToolchainMissing { why: format!("{tool}: {error}") })?;
    ensure!(output.status.success(), "{tool} --version ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_string())
}

fn same_versions(file: &Path, versions: &str) -> Result<()> {
    let committed = fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    if committed == versions {
        return Ok(());
    }
    let (then, now) = (committed.trim().replace('\n', ", "), versions.trim().replace('\n', ", "));
    Err(ToolchainMissing { why: format!("guest/wasm was built by {then}, here is {now}: rebuild it with `cargo xtask guests`") }.into())
}

/// Builds the Rust actors. Without `std`, so that one build of `core` and `alloc` is all they wait for.
fn build_rust(guest: &Path, target: &Path, built: &Path) -> Result<()> {
    let mut cargo = clean_command(CARGO);
    cargo.current_dir(guest).env("RUSTC", RUSTC).env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", target);
    cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", LINKER);
    cargo.args(["build", "--release", "--locked", "-Zbuild-std=core,alloc", "--target", TARGET]);
    cargo.arg("--config").arg(remapping(guest)?);
    for actor in ACTORS {
        cargo.args(["--package", actor]);
    }
    succeed(cargo)?;
    for actor in ACTORS {
        let name = format!("{actor}.wasm");
        copy(&target.join(TARGET).join("release").join(&name), &built.join(&name))?;
    }
    Ok(())
}

/// The cargo setting that keeps this machine's folders out of the bytes; it adds to the flags of `guest/.cargo/config.toml`.
fn remapping(guest: &Path) -> Result<OsString> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let registry = cargo_home.context("there is neither CARGO_HOME nor a home folder")?.join("registry/src");
    let source = fs::canonicalize(RUST_SOURCE).with_context(|| format!("can't find {RUST_SOURCE}"))?;
    let folders = [(registry.as_path(), "/registry"), (guest, "/guest"), (&source, "/rust"), (Path::new(RUST_SOURCE), "/rust")];
    let flags = folders.map(|(from, to)| format!("'--remap-path-prefix={}={to}'", from.display()));
    Ok(format!("target.{TARGET}.rustflags=[{}]", flags.join(",")).into())
}

/// The command that stands at the top of the C file.
fn build_c(guest: &Path, built: &Path) -> Result<()> {
    let mut clang = clean_command(CLANG);
    clang.current_dir(guest).args([&format!("--target={TARGET}"), "-std=c11", "-O2", "-ffreestanding", "-fno-builtin", "-nostdlib"]);
    clang.args(["-Wall", "-Wextra", "-Werror", "-Iinclude", "-Wl,--no-entry", "-Wl,-s", "-Wl,-z,stack-size=16384"]);
    clang.arg("-o").arg(built.join(C_EXAMPLE)).arg("c/haiku.c");
    succeed(clang)
}

/// A command that does not inherit what cargo, rustup or the user's flags say to the build that runs this chore.
fn clean_command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let cargos = text.starts_with("CARGO") && !matches!(&*text, "CARGO_HOME" | "CARGO_HTTP_CAINFO" | "CARGO_NET_OFFLINE");
        if cargos || text.starts_with("RUST") {
            command.env_remove(&name);
        }
    }
    command
}

fn succeed(mut command: Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("can't run {program}"))?;
    ensure!(status.success(), "{program} ended with {status}");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    // Read and write rather than `fs::copy`, which would keep the executable bit that linkers set.
    let bytes = fs::read(from).with_context(|| format!("can't read {}", from.display()))?;
    fs::write(to, bytes).with_context(|| format!("can't write {}", to.display()))
}

fn publish(built: &Path, committed: &Path, names: impl Iterator<Item = String>, versions: &str) -> Result<()> {
    fs::create_dir_all(committed).with_context(|| format!("can't make {}", committed.display()))?;
    for name in names {
        copy(&built.join(&name), &committed.join(&name))?;
        println!("{:>7} bytes  {}", fs::metadata(committed.join(&name))?.len(), committed.join(&name).display());
    }
    fs::write(committed.join(VERSIONS), versions).context("can't write the versions of the toolchain")
}

fn compare(built: &Path, committed: &Path, names: impl Iterator<Item = String>) -> Result<()> {
    let mut stale = Vec::new();
    for name in names {
        let bytes = fs::read(built.join(&name)).with_context(|| format!("can't read the build of {name}"))?;
        // A missing file differs from every build.
        if fs::read(committed.join(&name)).ok().as_ref() != Some(&bytes) {
            stale.push(name);
        }
    }
    if !stale.is_empty() {
        bail!("guest/wasm differs from a fresh build: {}; run `cargo xtask guests` and commit", stale.join(", "));
    }
    println!("guest/wasm is what a fresh build gives");
    Ok(())
}
