//! `driftwood store`: the chunks that all actors share: how much that saves, what nobody names any more, and whether all of it is intact.

use crate::actors;
use crate::cli::Globals;
use crate::failure::mistake;
use crate::output;
use anyhow::Result;
use clap::{Args, Subcommand};
use driftwood_actor::{Listed, StateFolder};
use driftwood_store::Flawed;
use serde_json::json;
use std::path::Path;

const EXAMPLES: &str = "\
Examples:
  driftwood store stats
  driftwood store gc
  driftwood store fsck --json";

/// `store`'s own commands.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum StoreCommand {
    /// Show how much the actors share
    Stats(StoreArgs),
    /// Remove what no actor names any more; safe while actors are at work
    Gc(StoreArgs),
    /// Read everything that the actors name, and say what is missing or altered
    Fsck(StoreArgs),
}

/// Flags of all of them.
#[derive(Args, Debug)]
pub struct StoreArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
/// If the state folder cannot be read, a head is damaged, or `fsck` found something.
pub fn run(globals: &Globals, command: &StoreCommand) -> Result<()> {
    let state = actors::open_state(globals)?;
    match command {
        StoreCommand::Stats(args) => stats(&state, args),
        StoreCommand::Gc(args) => collect(&state, args),
        StoreCommand::Fsck(args) => check(&state, args),
    }
}

fn stats(state: &StateFolder, args: &StoreArgs) -> Result<()> {
    let stats = state.chunks().stats(&state.heads()?)?;
    let journals = state.journal_files()?;
    let ratio = stats.unique_bytes as f64 / stats.named_bytes.max(1) as f64;
    let file_ratio = stats.file_bytes as f64 / (stats.unique_bytes + stats.history_bytes).max(1) as f64;
    if args.json {
        return output::json(&json!({
            "actors": stats.heads,
            "named_bytes": stats.named_bytes,
            "unique_bytes": stats.unique_bytes,
            "unique_ratio": ratio,
            "history_bytes": stats.history_bytes,
            "former_heads": stats.former_heads,
            "file_bytes": stats.file_bytes,
            "file_ratio": file_ratio,
            "files": stats.files,
            "journals": journals.files,
            "journal_bytes": journals.bytes,
        }));
    }
    let bytes = output::human_bytes;
    output::line(&format!("{} actors name {}", stats.heads, bytes(stats.named_bytes)))?;
    output::line(&format!("of which {} are different ({:.1}%)", bytes(stats.unique_bytes), 100.0 * ratio))?;
    output::line(&format!("{} former heads name {} more, to which actors can be rewound", stats.former_heads, bytes(stats.history_bytes)))?;
    let times = format!("{file_ratio:.2} times what is named in them");
    output::line(&format!("in {} files of {}, {times}", stats.files, bytes(stats.file_bytes)))?;
    output::line(&format!("{} journals of {} tell of messages that are under way or were cut off", journals.files, bytes(journals.bytes)))
}

fn collect(state: &StateFolder, args: &StoreArgs) -> Result<()> {
    let swept = output::spinning("collecting", || state.sweep())?;
    if args.json {
        return output::json(&swept);
    }
    output::line(&format!("removed {} files of {}", swept.files, output::human_bytes(swept.bytes)))
}

fn check(state: &StateFolder, args: &StoreArgs) -> Result<()> {
    let actors = state.list()?;
    let flawed = output::spinning("reading", || state.check())?;
    let line = |flaw: &Flawed| json!({ "actor": actor_of(&flaw.head, &actors), "head": flaw.head, "error": flaw.error.to_string() });
    if args.json {
        output::json(&json!({ "actors": actors.len(), "flawed": flawed.iter().map(line).collect::<Vec<_>>() }))?;
    } else {
        flawed.iter().try_for_each(|flaw| output::line(&format!("{}: {}", flaw.head.display(), flaw.error)))?;
    }
    match flawed.len() {
        0 if args.json => Ok(()),
        0 => output::line(&format!("{} actors are intact", actors.len())),
        many => Err(mistake(format!("{many} times something is missing or altered; restore it from a backup, or remove those actors"))),
    }
}

/// Whose file it is; none of a journal's, which many actors share.
fn actor_of<'a>(file: &Path, actors: &'a [Listed]) -> Option<&'a str> {
    let folder = file.parent()?.file_name()?;
    actors.iter().map(|actor| actor.name.as_str()).find(|name| *name == folder)
}
