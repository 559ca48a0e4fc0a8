//! `driftwood bench`: the figures that the documents quote, each measured by one command.

pub mod boundary;
pub mod decode;
pub mod fork;
mod guest;
pub mod journal;
pub mod kv;
pub mod load;
mod machine;
pub mod swap;
pub mod wake;

use crate::catalogue;
use crate::cli::Globals;
use crate::commands::generate::read_text;
use crate::decode::Runner;
use crate::failure::mistake;
use anyhow::Result;
use clap::{Args, Subcommand};
use driftwood_engine::tokenizer::Special;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  driftwood bench decode --tokens 24,512,4096
  driftwood bench kv --model gemma3-270m --tokens 24,512,2048,4096 --json
  driftwood bench fork --tokens 8000 --forks 1000 --json
  driftwood bench wake --actors 10000 --json
  driftwood bench boundary --json
  driftwood bench load smollm2-135m --json
  driftwood bench journal --sessions 1,32 --json
  driftwood bench swap --model smollm2-135m --other gemma3-270m --json";

/// The benches.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum BenchCommand {
    /// Freezing and thawing KV, against computing it again
    Kv(kv::KvArgs),
    /// Prefill and decoding at several depths
    Decode(decode::DecodeArgs),
    /// A thousand forks, asleep, awake and at rest
    Fork(fork::ForkArgs),
    /// Waking one of many actors at rest
    Wake(wake::WakeArgs),
    /// What it costs to drive the model from inside an actor
    Boundary(boundary::BoundaryArgs),
    /// Opening a model: time until it is ready, and memory
    Load(load::LoadArgs),
    /// Changing an actor's model and coming back, against reading all again
    Swap(swap::SwapArgs),
    /// Recording every token durably before it is shown, against not recording it
    Journal(journal::JournalArgs),
}

/// Flags of all benches.
#[derive(Args, Debug)]
pub struct Common {
    /// A name that `driftwood models` lists, or the path of a GGUF file or a Hugging Face folder
    #[arg(long, default_value = catalogue::DEFAULT)]
    model: String,
    /// The text whose first tokens are the prompt [default: a text of our own, repeated]
    #[arg(long)]
    file: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs a bench.
///
/// # Errors
/// If the model cannot be used or a measurement fails.
pub fn run(globals: &Globals, command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Kv(args) => kv::run(globals, args),
        BenchCommand::Decode(args) => decode::run(globals, args),
        BenchCommand::Fork(args) => fork::run(globals, args),
        BenchCommand::Wake(args) => wake::run(globals, args),
        BenchCommand::Boundary(args) => boundary::run(globals, args),
        BenchCommand::Load(args) => load::run(globals, args),
        BenchCommand::Swap(args) => swap::run(globals, args),
        BenchCommand::Journal(args) => journal::run(globals, args),
    }
}

/// What prompts are made of: each sentence differs by its number, so that the text does not repeat itself token for token.
const SENTENCE: &str = "On day number the tide left a piece of driftwood on the beach, grey and smooth, and nobody could say from which forest it \
came, over which rivers, through which storms, or how long it had been at sea before the children found it and carried it home. ";

/// The first `count` tokens of the given text, or of our own.
fn prompt(runner: &Runner, common: &Common, count: usize) -> Result<Vec<u32>> {
    let text = match &common.file {
        Some(path) => read_text(path)?,
        None => (1..=count / 40 + 1).map(|day| SENTENCE.replace("number", &day.to_string())).collect(),
    };
    let mut tokens = runner.model.tokenizer().encode(&text, Special { add: true, parse: false });
    if tokens.len() < count {
        return Err(mistake(format!("the text has {} tokens, {count} are wanted; give a longer --file or fewer --tokens", tokens.len())));
    }
    tokens.truncate(count);
    Ok(tokens)
}

/// Refuses counts that the model's context cannot hold together with `more` tokens.
fn check_counts(runner: &Runner, counts: &[usize], more: usize) -> Result<()> {
    let context_max = runner.model.config().context_max;
    match counts.iter().find(|&&count| count == 0 || count + more > context_max) {
        Some(count) => {
            Err(mistake(format!("--tokens {count} is out of range: this model takes 1 to {} here", context_max.saturating_sub(more))))
        }
        None => Ok(()),
    }
}
