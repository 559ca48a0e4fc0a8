//! `driftwood actor`: actors in the state folder, one command a message.

use crate::actors::{self, Cast, Stage};
use crate::cli::Globals;
use crate::commands::{inspect, swap};
use crate::decode::ms_since;
use crate::interrupt::Replying;
use crate::{catalogue, guests, output};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use driftwood_actor::{ActorFolder, Exactness, JOURNAL_LOGITS, Listed, Message, Rewound, ThawOptions};
use driftwood_store::Summary;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Instant, SystemTime};

const EXAMPLES: &str = "\
Examples:
  driftwood actor spawn alice --system \"You are a terse sailor.\"
  driftwood actor send alice \"Where does driftwood come from?\"
  driftwood actor fork alice bob
  driftwood actor rewind alice --to 2
  driftwood actor model alice gemma3-270m
  driftwood actor fork alice reader -n 1000
  driftwood actor ls";

/// Copies that one command makes.
const FORKS_MAX: i64 = driftwood_actor::limits::ACTORS_MAX as i64;

/// What can be done with actors.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum ActorCommand {
    /// Make an actor
    Spawn(SpawnArgs),
    /// Send an actor a message and print its reply
    Send(SendArgs),
    /// Finish the message that an actor was in the middle of when its process died
    Resume(ResumeArgs),
    /// List the actors
    Ls(LsArgs),
    /// Show what an actor holds
    Inspect(inspect::InspectArgs),
    /// Copy an actor: the same past, two futures
    Fork(ForkArgs),
    /// Take an actor back to an earlier message
    Rewind(RewindArgs),
    /// Show an actor's model, or give it another
    Model(swap::ModelArgs),
    /// Remove an actor
    Rm(RmArgs),
}

/// Flags of `actor spawn`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  driftwood actor spawn alice\n  driftwood actor spawn judge --guest judge --model smollm2-135m\n  driftwood \
actor spawn bob --guest my_actor.wasm --set temperature=0.2 --set max_tokens=64"
)]
pub struct SpawnArgs {
    /// The actor's name: a-z, 0-9, '-', '_' and '.'
    name: String,
    /// A name that `driftwood models` lists, or the path of a GGUF file or a Hugging Face folder
    #[arg(long, default_value = catalogue::DEFAULT)]
    model: String,
    /// A Wasm module, or a guest in this program: chat, echo, judge, matmul
    #[arg(long, default_value = guests::DEFAULT)]
    guest: String,
    /// The system prompt
    #[arg(long)]
    system: Option<String>,
    /// Carry the logits that the guest sees in its journal, so that a message that is cut off goes on without computing them again (and on machines
    /// where they would have other bits)
    #[arg(long)]
    journal_logits: bool,
    /// A setting for the guest, such as temperature=0, max_tokens=64, kv=q8 (may be given several times)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Flags of `actor send`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  driftwood actor send alice \"Hello!\"\n  driftwood actor send alice --max-tokens 40 --temperature 0 --json \
\"Hello!\"\n  driftwood actor send alice - < letter.txt"
)]
pub struct SendArgs {
    /// The actor
    name: String,
    /// The message; - reads it from stdin
    text: String,
    /// The most tokens of the reply
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 takes the likeliest token, 1 samples from the model's own distribution
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Where the random numbers start
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Print one JSON object when the reply is whole
    #[arg(long)]
    json: bool,
}

/// Flags of `actor resume`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  driftwood actor resume alice\n  driftwood actor resume alice --discard")]
pub struct ResumeArgs {
    /// The actor
    name: String,
    /// Go back to before the message instead
    #[arg(long)]
    discard: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Flags of `actor ls`.
#[derive(Args, Debug)]
pub struct LsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Flags of `actor fork`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  driftwood actor fork alice bob\n  driftwood actor fork alice reader -n 1000 --json   (reader-0001 to reader-1000)"
)]
pub struct ForkArgs {
    /// The actor
    name: String,
    /// The copy's name; with -n what the copies' names begin with
    new_name: String,
    /// Make so many copies in one commit: NEW_NAME-1 and on, the numbers padded with zeros to one width
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=FORKS_MAX))]
    number: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Flags of `actor rewind`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  driftwood actor rewind alice --to 2\n  driftwood actor fork alice before && driftwood actor rewind alice --to 0\n\n\
`driftwood log NAME` shows the messages with their numbers. What comes after is forgotten, unless a fork has it too."
)]
pub struct RewindArgs {
    /// The actor
    name: String,
    /// How many messages to keep; 0 is the actor as it was spawned
    #[arg(long, value_name = "TURN")]
    to: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Flags of `actor rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// The actors
    #[arg(required = true)]
    names: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Does what the command line says.
///
/// # Errors
/// If there is no such actor, a name is taken, or a message failed.
pub fn run(globals: &Globals, command: &ActorCommand) -> Result<()> {
    match command {
        ActorCommand::Spawn(args) => spawn(globals, args),
        ActorCommand::Send(args) => send(globals, args),
        ActorCommand::Resume(args) => resume(globals, args),
        ActorCommand::Ls(args) => list(globals, args),
        ActorCommand::Inspect(args) => inspect::run(globals, args),
        ActorCommand::Fork(args) => fork(globals, args),
        ActorCommand::Rewind(args) => rewind(globals, args),
        ActorCommand::Model(args) => swap::run(globals, args),
        ActorCommand::Rm(args) => remove(globals, args),
    }
}

fn spawn(globals: &Globals, args: &SpawnArgs) -> Result<()> {
    let mut settings = actors::settings(globals, &args.settings)?;
    settings.extend(args.system.clone().map(|text| ("system".to_owned(), text)));
    settings.extend(args.journal_logits.then(|| (JOURNAL_LOGITS.to_owned(), "true".to_owned())));
    let mut stage = Stage::open(globals)?;
    stage.spawn(Cast { name: &args.name, guest: &args.guest, model: &args.model, settings })?;
    let info = stage.host.info(&args.name)?;
    if args.json {
        return output::json(&json!({ "name": args.name, "identity": info.identity, "settings": info.settings }));
    }
    output::line(&format!("spawned `{0}`; talk to it with `driftwood actor send {0} TEXT` or `driftwood chat {0}`", args.name))
}

fn send(globals: &Globals, args: &SendArgs) -> Result<()> {
    let message = Message { settings: overrides(args), ..Message::new(args.name.clone(), text(&args.text)?) };
    let mut stage = Stage::open(globals)?;
    let start = Instant::now();
    let (folder, report) = stage.wake_for(Some(&message), &args.name, ThawOptions::default())?;
    let thaw_ms = ms_since(start);
    let woken = actors::thawed("woke", &args.name, &report);
    if matches!(report.exactness, Exactness::OtherNumerics { .. }) {
        output::remark(&woken)
    } else {
        tracing::info!("{woken}")
    }
    let replying = Replying::watch(stage.host.interrupt_handle())?;
    let sent = replying.run(|| actors::send(&mut stage.host, message, args.json));
    let outcome = sent.map_err(|error| if is_of_disk(&error) { error.context(recorded(&args.name)) } else { error })?;
    let start = Instant::now();
    folder.save(&mut stage.host).with_context(|| recorded(&args.name))?;
    if args.json {
        return output::json(&json!({
            "reply": String::from_utf8_lossy(&outcome.reply),
            "tokens": outcome.tokens,
            "restored_tokens": outcome.restored_tokens,
            "prefilled_tokens": outcome.prefilled_tokens,
            "timings": actors::timings(&outcome, thaw_ms, ms_since(start)),
        }));
    }
    if outcome.reply.ends_with(b"\n") { Ok(()) } else { output::line("") }
}

/// Whether it was the disk that ended a message, which its journal then still has.
fn is_of_disk(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(driftwood_actor::Error::Store(_))))
}

fn recorded(name: &str) -> String {
    format!("the message is recorded, and `driftwood actor resume {name}` finishes it")
}

fn resume(globals: &Globals, args: &ResumeArgs) -> Result<()> {
    let state = actors::open_state(globals)?;
    let folder = state.hold(&args.name)?;
    if !folder.is_cut_off()? {
        let nothing = json!({ "name": args.name, "resumed": 0, "discarded": 0, "reply": null, "tokens": [] });
        let line = format!("nothing to do: `{}` is not in the middle of a message", args.name);
        return if args.json { output::json(&nothing) } else { output::line(&line) };
    }
    let mut stage = Stage { host: actors::host(globals)?, state };
    stage.thaw(&folder, ThawOptions::default())?;
    if args.discard {
        return discard(&mut stage, &folder, args);
    }
    let replying = Replying::watch(stage.host.interrupt_handle())?;
    let outcomes = replying.run(|| stage.resume(&folder, args.json))?;
    let last = outcomes.last();
    let reply = last.map(|outcome| String::from_utf8_lossy(&outcome.reply));
    if args.json {
        let tokens = last.map(|outcome| outcome.tokens.clone()).unwrap_or_default();
        return output::json(&json!({ "name": args.name, "resumed": outcomes.len(), "discarded": 0, "reply": reply, "tokens": tokens }));
    }
    if reply.is_some_and(|reply| reply.ends_with('\n')) { Ok(()) } else { output::line("") }
}

/// Gives up what the actor was in the middle of.
fn discard(stage: &mut Stage, folder: &ActorFolder, args: &ResumeArgs) -> Result<()> {
    let discarded = stage.host.discard(&args.name)?;
    folder.save(&mut stage.host)?;
    if args.json {
        return output::json(&json!({ "name": args.name, "resumed": 0, "discarded": discarded, "reply": null, "tokens": [] }));
    }
    output::line(&format!("`{}` is as it was before its last message", args.name))
}

fn text(given: &str) -> Result<Vec<u8>> {
    let mut text = given.as_bytes().to_vec();
    if given == "-" {
        text.clear();
        std::io::stdin().lock().read_to_end(&mut text)?;
    }
    Ok(text)
}

fn overrides(args: &SendArgs) -> BTreeMap<String, String> {
    let max_tokens = args.max_tokens.map(|n| ("max_tokens", n.to_string()));
    let temperature = args.temperature.map(|t| ("temperature", t.to_string()));
    let seed = args.seed.map(|seed| ("seed", seed.to_string()));
    [max_tokens, temperature, seed].into_iter().flatten().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn list(globals: &Globals, args: &LsArgs) -> Result<()> {
    let state = actors::open_state(globals)?;
    let listed = state.list()?;
    let summaries = state.summaries(&listed);
    let rows = || listed.iter().zip(&summaries).map(|(actor, summary)| Row::new(actor, summary.as_ref()));
    if args.json {
        return output::json(&BTreeMap::from([("actors", rows().collect::<Vec<_>>())]));
    }
    if listed.is_empty() {
        return output::line("no actors yet; `driftwood chat` makes one, and so does `driftwood actor spawn NAME`");
    }
    let cells = |(actor, row): (&Listed, Row<'_>)| {
        let held = row.held_by.map(|by| format!("held by {by}")).unwrap_or_default();
        let age = actor.modified.map(age).unwrap_or_default();
        let tokens = row.tokens.map(|tokens| tokens.to_string()).unwrap_or_default();
        let size = row.bytes.map(output::human_bytes).unwrap_or_default();
        vec![actor.name.clone(), row.model.unwrap_or_default().to_owned(), tokens, size, age, held]
    };
    let titles = ["actor", "model", ">tokens", ">size", ">changed", ""];
    output::table(&titles, &listed.iter().zip(rows()).map(cells).collect::<Vec<_>>())
}

/// What a listing says of an actor. A file that cannot be read shows as one without model and tokens.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    model: Option<&'a str>,
    tokens: Option<u64>,
    bytes: Option<u64>,
    modified_ms: Option<u64>,
    held_by: Option<&'a str>,
}

impl<'a> Row<'a> {
    fn new(actor: &'a Listed, summary: Option<&'a Summary>) -> Row<'a> {
        Row {
            name: &actor.name,
            model: summary.and_then(|summary| summary.model.as_deref()),
            tokens: summary.map(|summary| summary.tokens),
            bytes: summary.map(|summary| summary.bytes),
            modified_ms: actor.modified.map(actors::unix_ms),
            held_by: actor.held_by.as_deref(),
        }
    }
}

/// How long ago, in one unit.
fn age(time: SystemTime) -> String {
    let seconds = time.elapsed().map_or(0, |elapsed| elapsed.as_secs());
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

fn fork(globals: &Globals, args: &ForkArgs) -> Result<()> {
    let mut state = actors::open_state(globals)?;
    let mut parent = state.hold(&args.name)?;
    if !parent.is_kept() || parent.is_cut_off()? {
        drop(parent);
        let mut stage = Stage { host: actors::host(globals)?, state };
        (parent, _) = stage.wake(&args.name, ThawOptions::default())?;
        state = stage.state;
    }
    let names = fork_names(args);
    let forks = state.fork(&parent, &names)?;
    let (first, last) = (&names[0], &names[names.len() - 1]);
    match args.number {
        None if args.json => output::json(&json!({ "name": args.new_name, "parent": args.name })),
        None => output::line(&format!("forked `{}` from `{}`", args.new_name, args.name)),
        Some(_) if args.json => {
            let forks: Vec<Value> = forks.iter().map(|fork| json!({ "name": fork.name, "id": fork.id })).collect();
            output::json(&json!({ "parent": args.name, "forks": forks }))
        }
        Some(_) => output::line(&format!("forked {} actors from `{}`: `{first}` to `{last}`", names.len(), args.name)),
    }
}

/// The names of all copies, of which there is at least one.
fn fork_names(args: &ForkArgs) -> Vec<String> {
    let Some(number) = args.number else { return vec![args.new_name.clone()] };
    let width = number.to_string().len();
    (1..=number).map(|n| format!("{}-{n:0width$}", args.new_name)).collect()
}

fn rewind(globals: &Globals, args: &RewindArgs) -> Result<()> {
    let Rewound { turn, dropped_turns, tokens: (before, after) } = actors::open_state(globals)?.hold(&args.name)?.rewind(args.to)?;
    if args.json {
        return output::json(&json!({
            "name": args.name,
            "turn": turn,
            "dropped_turns": dropped_turns,
            "tokens_before": before,
            "tokens": after,
        }));
    }
    output::line(&match dropped_turns {
        0 => format!("`{}` is at message {turn} already", args.name),
        _ => format!("rewound `{}` to message {turn}: dropped {dropped_turns} messages, {before} tokens became {after}", args.name),
    })
}

fn remove(globals: &Globals, args: &RmArgs) -> Result<()> {
    let state = actors::open_state(globals)?;
    for name in &args.names {
        state.remove(name)?;
        if !args.json {
            output::line(&format!("removed `{name}`"))?;
        }
    }
    if args.json { output::json(&json!({ "removed": args.names })) } else { Ok(()) }
}
