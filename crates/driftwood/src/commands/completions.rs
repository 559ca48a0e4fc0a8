//! `driftwood completions`: what a shell needs to complete our commands.

use crate::cli::Cli;
use crate::output;
use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  driftwood completions bash > ~/.local/share/bash-completion/completions/driftwood
  driftwood completions zsh > ~/.zfunc/_driftwood
  driftwood completions fish > ~/.config/fish/completions/driftwood.fish";

/// Flags of `completions`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// If stdout is closed.
pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "driftwood", &mut script);
    output::stream(&script)
}
