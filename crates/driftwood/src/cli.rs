//! The grammar of the command line. Each command's own flags stand in its file under `commands/`.

use crate::commands::{
    actor, bench, chat, completions, diff, doctor, freeze, generate, inspect, log, models, perplexity, pull, run, store, thaw,
};
use crate::device::DeviceArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// What `driftwood` alone says.
pub const SHORT_HELP: &str = "\
driftwood: stateful WebAssembly actors with inference inside

  driftwood chat                                     talk to a small model (fetched on first use); the conversation is kept
  driftwood actor spawn alice --system \"Be terse.\"   make an actor, then: driftwood actor send alice \"Hello!\"
  driftwood freeze alice -o alice.safetensors        a conversation as one file, then: driftwood thaw alice.safetensors --as bob

`driftwood --help` lists all commands.";

const EXAMPLES: &str = "\
Examples:
  driftwood chat
  driftwood actor spawn alice --system \"You are a terse sailor.\"
  driftwood actor send alice \"Where does driftwood come from?\"
  driftwood freeze alice -o alice.safetensors
  driftwood generate --model smollm2-135m --prompt \"Once upon a time\" --max-tokens 40

Exit codes: 0 done, 2 something that you can put right (the message says how), 1 anything else.";

/// Stateful WebAssembly actors with inference inside.
#[derive(Debug, Parser)]
#[command(name = "driftwood", version, about, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// Flags of all commands.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags of all commands.
#[derive(Args, Clone, Debug)]
pub struct Globals {
    /// Folder of the actors [default: the platform's data folder]
    #[arg(long, global = true, value_name = "DIR", env = "DRIFTWOOD_STATE", hide_env_values = true, help_heading = "Everywhere")]
    pub state: Option<PathBuf>,
    /// What a reply must survive before it is shown: a power cut (disk), or the end of this process (process)
    #[arg(long, global = true, value_name = "WHAT", default_value = "disk", help_heading = "Everywhere")]
    pub durability: Durability,
    /// Say more on stderr (-vv: much more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Everywhere")]
    pub verbose: u8,
    /// The device.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// What must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// A power cut.
    Disk,
    /// The death of this process, by whatever hand.
    Process,
}

impl From<Durability> for driftwood_actor::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Disk => Self::Disk,
            Durability::Process => Self::Process,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Talk to a model through an actor; the conversation is kept
    Chat(chat::ChatArgs),
    /// Make actors, send them messages, list, fork and remove them
    #[command(subcommand)]
    Actor(actor::ActorCommand),
    /// Write an actor to a file
    Freeze(freeze::FreezeArgs),
    /// Wake an actor from a file, under a new identity
    Thaw(thaw::ThawArgs),
    /// Send one message to an actor that lives no longer than that
    Run(run::RunArgs),
    /// Show what an actor, a snapshot file or a model holds
    Inspect(inspect::InspectArgs),
    /// Show what an actor was told and said, and what it was after each message
    Log(log::LogArgs),
    /// Show where two actors part: tokens, logits, memory, settings
    Diff(diff::DiffArgs),
    /// Show, check and clean what actors share on the disk
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Fetch a model of the catalogue, or one from the Hugging Face hub
    Pull(pull::PullArgs),
    /// List the models of the catalogue and those that are here, with their sizes
    Models(models::ModelsArgs),
    /// Continue a prompt, without an actor
    Generate(Box<generate::GenerateArgs>),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::PerplexityArgs),
    /// Measure decoding, snapshots and the cost of the sandbox's border
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Check what this machine shares between guests and the GPU, link by link
    Doctor(doctor::DoctorArgs),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}
