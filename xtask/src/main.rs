//! The one door for chores: `cargo xtask CHORE`.
//!
//! Each chore is one file with one `run`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a chore speaks to whoever runs it")]
#![forbid(unsafe_code)]

mod cross;
mod guests;
mod interop;
mod soak;
mod synth;
mod test;
mod tiny;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Driftwood's chores.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Fetch the test models and run every test.
    Test {
        /// Handed to `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        extra: Vec<String>,
    },
    /// What takes too long for every change: fuzzing, the property tests with many cases, aarch64 under qemu.
    Soak {
        /// Seconds for each fuzz target.
        #[arg(long, default_value_t = 600)]
        fuzz_seconds: u32,
    },
    /// Freeze conversations and open the files with Python's safetensors.
    Interop,
    /// Type-check and lint for Apple Silicon.
    Apple,
    /// Run the kernels' tests for aarch64 Linux under qemu.
    Arm,
    /// Build the guests into guest/wasm.
    Guests {
        /// Build them elsewhere and compare with what is committed.
        #[arg(long)]
        check: bool,
        /// Like --check, but pass where the guests' toolchain is missing or is another version.
        #[arg(long)]
        check_if_possible: bool,
    },
    /// Build the tiny models of tests/fixtures anew, with Python's transformers and MLX, and compare them with those that are committed.
    TinyModels {
        /// Take them instead of those.
        #[arg(long)]
        replace: bool,
    },
    /// Write a model of a real one's shape with random weights.
    SynthModel {
        /// The shape.
        #[arg(long, value_parser = synth::SHAPES)]
        shape: String,
        /// How its weights are stored: q8_0, q4_0 and q4_1 are GGUF files; bf16 and MLX's, like mlx4 or mlx6-32 (bits, group), folders.
        #[arg(long)]
        format: synth::Format,
        /// The file or folder to make.
        #[arg(short, long)]
        output: PathBuf,
        /// Of the random numbers; the same seed gives the same weights in every format.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Test { extra } => test::test(&extra),
        Chore::Soak { fuzz_seconds } => soak::soak(fuzz_seconds),
        Chore::Interop => interop::interop(),
        Chore::Apple => cross::apple(),
        Chore::Arm => cross::arm(),
        Chore::Guests { check, check_if_possible: false } => guests::run(check),
        Chore::TinyModels { replace } => tiny::run(replace),
        Chore::SynthModel { shape, format, output, seed } => synth::synth(&shape, format, seed, &output),
        Chore::Guests { check_if_possible: true, .. } => guests::run(true).or_else(pass_without_toolchain),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(if error.is::<guests::ToolchainMissing>() { 2 } else { 1 })
        }
    }
}

fn pass_without_toolchain(error: anyhow::Error) -> Result<()> {
    let missing = error.downcast::<guests::ToolchainMissing>()?;
    println!("guests not checked: {missing}");
    Ok(())
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the root").to_path_buf()
}

/// The cargo that runs this chore, in the root.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<()> {
    eprintln!("> {command:?}");
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
