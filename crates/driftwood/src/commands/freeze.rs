//! `driftwood freeze`: an actor of the state folder as one file to keep or to move.
//!
//! The chunks that its head names are put together, each verified; no model is loaded.

use crate::actors;
use crate::cli::Globals;
use crate::output;
use anyhow::Result;
use clap::Args;
use driftwood_snapshot::Existing;
use serde_json::json;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  driftwood freeze alice -o alice.safetensors
  driftwood freeze alice -o alice.safetensors --force

The file holds the whole actor, its conversation included; only you can read it. `driftwood thaw FILE` wakes it anywhere.";

/// Flags of `freeze`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct FreezeArgs {
    /// The actor
    name: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Writes the file.
///
/// # Errors
/// If there is no such actor, another process holds it, or the file exists.
pub fn run(globals: &Globals, args: &FreezeArgs) -> Result<()> {
    let folder = actors::open_state(globals)?.hold(&args.name)?;
    let existing = if args.force { Existing::Replace } else { Existing::Refuse };
    let written = folder.export(&args.output, existing)?;
    let (manifest, bytes) = (written.manifest(), written.file_bytes());
    let tokens: u64 = manifest.sessions.iter().filter(|s| s.state.is_open()).map(|session| u64::from(session.tokens)).sum();
    if args.json {
        return output::json(&json!({
            "file": args.output,
            "bytes": bytes,
            "kv_bytes": written.kv_bytes(),
            "tokens": tokens,
            "identity": manifest.identity,
        }));
    }
    output::line(&format!("froze `{}`: {tokens} tokens, {} in {}", args.name, output::human_bytes(bytes), args.output.display()))
}
