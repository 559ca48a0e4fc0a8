//! One file a command; each is a thin caller of a library crate.

pub mod actor;
pub mod bench;
pub mod chat;
pub mod completions;
pub mod diff;
pub mod doctor;
pub mod freeze;
pub mod generate;
pub mod inspect;
mod inspect_model;
pub mod log;
pub mod models;
pub mod perplexity;
pub mod pull;
pub mod run;
pub mod store;
pub mod swap;
pub mod thaw;

use crate::cli::{Cli, Command, SHORT_HELP};
use crate::output;
use anyhow::Result;

/// Does what the command line says.
///
/// # Errors
/// Whatever went wrong, for `failure.rs` to show.
pub fn run(cli: Cli) -> Result<()> {
    let globals = &cli.globals;
    match cli.command {
        None => output::line(SHORT_HELP),
        Some(Command::Chat(args)) => chat::run(globals, &args),
        Some(Command::Actor(command)) => actor::run(globals, &command),
        Some(Command::Freeze(args)) => freeze::run(globals, &args),
        Some(Command::Thaw(args)) => thaw::run(globals, &args),
        Some(Command::Run(args)) => run::run(globals, &args),
        Some(Command::Store(command)) => store::run(globals, &command),
        Some(Command::Inspect(args)) => inspect::run(globals, &args),
        Some(Command::Log(args)) => log::run(globals, &args),
        Some(Command::Diff(args)) => diff::run(globals, &args),
        Some(Command::Pull(args)) => pull::run(&args),
        Some(Command::Models(args)) => models::run(&args),
        Some(Command::Generate(args)) => generate::run(globals, &args),
        Some(Command::Perplexity(args)) => perplexity::run(globals, &args),
        Some(Command::Bench(command)) => bench::run(globals, &command),
        Some(Command::Doctor(args)) => doctor::run(globals, &args),
        Some(Command::Completions(args)) => completions::run(&args),
    }
}
