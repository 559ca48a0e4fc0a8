//! `driftwood bench fork`: what forks of one long conversation cost, asleep and awake in one host, and at rest.
//!
//! The actor is a `chat` with a prompt of so many tokens. Memory is the process's: its share of resident pages, page tables and memory files.

use super::machine::{Machine, memory_bytes};
use super::{Common, prompt};
use crate::actors::{self, Cast};
use crate::cli::Globals;
use crate::decode::{Runner, ms_since};
use crate::{output, paths};
use anyhow::{Context, Result};
use clap::Args;
use driftwood_actor::{Hash, Host, Message, Outcome, SessionInfo, StateFolder};
use driftwood_compute::{KV_BLOCK_TOKENS, KvLayout};
use driftwood_store::PAGE_BYTES;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// The actor that is forked.
const PARENT: &str = "parent";
/// Tokens of the template around the prompt, at most; the rest of the context is for questions and answers.
const TEMPLATE_TOKENS: usize = 48;
/// Forks that are woken first and not counted: what the host makes once is there then.
const WARM_UP: usize = 4;
/// Forks that are woken one by one.
const AWAKE: usize = 20;
/// Forks that answer at once, and as many that answer alone.
const AT_ONCE: usize = 32;
/// Tokens of an answer.
const ANSWER_TOKENS: u32 = 16;

/// Flags of `bench fork`.
#[derive(Args, Debug)]
pub struct ForkArgs {
    #[command(flatten)]
    common: Common,
    /// Tokens of the conversation that is forked
    #[arg(long, default_value_t = 8000, value_name = "N")]
    tokens: usize,
    /// How many forks
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range((WARM_UP + AWAKE + 2 * AT_ONCE) as i64..))]
    forks: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    tokens: usize,
    forks: u32,
    /// Bytes of the process before the first fork.
    before_bytes: u64,
    asleep_bytes: u64,
    asleep_percent: f64,
    asleep_bytes_each: f64,
    fork_ms: f64,
    awake: u32,
    awake_bytes_each: f64,
    /// Of these, what each wrote: pages of linear memory that differ, and pages with rows of KV in blocks of its own.
    written_bytes_each: f64,
    awake_overhead_bytes_each: f64,
    at_once: u32,
    at_once_ms: f64,
    alone_ms: f64,
    /// Tokens, memory, globals and samplers of those who answered at once are those of the ones who answered alone.
    bits_agree: bool,
    at_rest_ms: f64,
    at_rest_bytes_each: f64,
}

/// Measures.
///
/// # Errors
/// If the model cannot be used, the tokens exceed its context, or the state folder cannot be written.
pub fn run(globals: &Globals, args: &ForkArgs) -> Result<()> {
    let mut host = parent(globals, args)?;
    let tokens = session(&host, PARENT)?.evaluated;
    let names: Vec<String> = (1..=args.forks).map(|n| format!("fork-{n}")).collect();
    let before_bytes = memory_bytes()?;
    let start = Instant::now();
    names.iter().try_for_each(|name| host.fork(PARENT, name).map(drop))?;
    let fork_ms = ms_since(start);
    let asleep_bytes = memory_bytes()?.saturating_sub(before_bytes);
    let (warm_up, rest) = names.split_at(WARM_UP);
    awake(&mut host, warm_up)?;
    let (woken, rest) = rest.split_at(AWAKE);
    let awake = awake(&mut host, woken)?;
    let at_once = at_once(&mut host, &rest[..AT_ONCE], &rest[AT_ONCE..2 * AT_ONCE])?;
    let (at_rest_ms, at_rest_bytes) = at_rest(globals, &mut host, &names)?;
    let each = |bytes: u64, count: usize| bytes as f64 / count as f64;
    let report = Report {
        machine: Machine::here(),
        tokens,
        forks: args.forks,
        before_bytes,
        asleep_bytes,
        asleep_percent: 100.0 * asleep_bytes as f64 / before_bytes as f64,
        asleep_bytes_each: each(asleep_bytes, names.len()),
        fork_ms,
        awake: AWAKE as u32,
        awake_bytes_each: each(awake.bytes, AWAKE),
        written_bytes_each: each(awake.written_bytes, AWAKE),
        awake_overhead_bytes_each: each(awake.bytes, AWAKE) - each(awake.written_bytes, AWAKE),
        at_once: AT_ONCE as u32,
        at_once_ms: at_once.together_ms,
        alone_ms: at_once.alone_ms,
        bits_agree: at_once.bits_agree,
        at_rest_ms,
        at_rest_bytes_each: each(at_rest_bytes, names.len()),
    };
    if args.common.json { output::json(&report) } else { show(&report) }
}

fn show(r: &Report) -> Result<()> {
    let bytes = |bytes: f64| output::human_bytes(bytes.max(0.0) as u64);
    let row = |what: String, figure: String| vec![what, figure];
    let rows = [
        row(format!("{} forks of {} tokens asleep, in all", r.forks, r.tokens), bytes(r.asleep_bytes as f64)),
        row(format!("  of the process's {}", bytes(r.before_bytes as f64)), format!("{:.2}%", r.asleep_percent)),
        row("  each".into(), bytes(r.asleep_bytes_each)),
        row("  forking them all".into(), format!("{} ms", output::human_ms(r.fork_ms))),
        row(format!("one of {} awake, after an answer", r.awake), bytes(r.awake_bytes_each)),
        row("  of which it wrote".into(), bytes(r.written_bytes_each)),
        row("  and the rest".into(), bytes(r.awake_overhead_bytes_each)),
        row(format!("{} answers at once", r.at_once), format!("{} ms", output::human_ms(r.at_once_ms))),
        row("  one after the other".into(), format!("{} ms", output::human_ms(r.alone_ms))),
        row("  same bits".into(), if r.bits_agree { "yes" } else { "NO" }.into()),
        row(format!("{} forks at rest, durable", r.forks), format!("{} ms", output::human_ms(r.at_rest_ms))),
        row("  each".into(), bytes(r.at_rest_bytes_each)),
    ];
    output::table(&["", ">"], &rows)?;
    output::line(&r.machine.line())
}

/// A host with the actor that is forked. The prompt leaves room for a question and its answer.
fn parent(globals: &Globals, args: &ForkArgs) -> Result<Host> {
    let runner = Runner::open(&args.common.model, &globals.device, None)?;
    super::check_counts(&runner, &[args.tokens], 2 * TEMPLATE_TOKENS + ANSWER_TOKENS as usize)?;
    let tokens = prompt(&runner, &args.common, args.tokens.saturating_sub(TEMPLATE_TOKENS).max(1))?;
    let text = String::from_utf8_lossy(&runner.model.tokenizer().decode(&tokens)).into_owned();
    let mut host = actors::host(globals)?;
    host.add_model(runner.model.clone());
    host.spawn(actors::spec(Cast { name: PARENT, guest: "chat", model: &args.common.model, settings: BTreeMap::new() })?)?;
    let sent = output::spinning("reading the prompt", || host.send(Message { bytes: text.into(), ..question(PARENT, 0, 1) }, &mut |_| {}));
    sent.context("the prompt failed")?;
    Ok(host)
}

/// A question that differs with `number`, and asks for an answer of so many tokens.
fn question(name: &str, number: usize, tokens: u32) -> Message {
    let settings = [("max_tokens", tokens.to_string()), ("temperature", "0".to_owned())];
    let settings = settings.map(|(key, value)| (key.to_owned(), value)).into();
    Message { settings, ..Message::new(name, format!("What was on day {number}?")) }
}

fn session(host: &Host, name: &str) -> Result<SessionInfo> {
    host.info(name)?.sessions.pop().context("the guest has no session")
}

struct Awake {
    bytes: u64,
    written_bytes: u64,
}

/// Has forks answer one after the other, and what the process takes more for it.
fn awake(host: &mut Host, names: &[String]) -> Result<Awake> {
    let before_bytes = memory_bytes()?;
    let mut written_bytes = 0;
    for (number, name) in names.iter().enumerate() {
        host.send(question(name, number, ANSWER_TOKENS), &mut |_| {})?;
    }
    let bytes = memory_bytes()?.saturating_sub(before_bytes);
    for name in names {
        let session = session(host, name)?;
        let layout = host.model(&session.model)?.kv_layout(session.kv);
        written_bytes += host.info(name)?.memory_own_bytes as u64 + own_pages_bytes(&session, layout);
    }
    Ok(Awake { bytes, written_bytes })
}

/// Bytes of the pages that hold rows of blocks that a session does not share.
fn own_pages_bytes(session: &SessionInfo, layout: KvLayout) -> u64 {
    let shared_tokens = session.kv_shared_bytes / layout.block_bytes() * KV_BLOCK_TOKENS;
    let own_tokens = session.evaluated.saturating_sub(shared_tokens);
    let last_tile_bytes = (own_tokens % KV_BLOCK_TOKENS * layout.row_bytes()).next_multiple_of(PAGE_BYTES);
    (own_tokens / KV_BLOCK_TOKENS * layout.block_bytes() + 2 * layout.layers * layout.kv_heads * last_tile_bytes) as u64
}

struct AtOnce {
    together_ms: f64,
    alone_ms: f64,
    bits_agree: bool,
}

/// Has one group of forks answer different questions in one delivery, and the other the same questions one by one.
fn at_once(host: &mut Host, together: &[String], alone: &[String]) -> Result<AtOnce> {
    let messages = together.iter().enumerate().map(|(number, name)| question(name, number, ANSWER_TOKENS)).collect();
    let start = Instant::now();
    let outcomes = host.deliver(messages, &mut |_, _| {}).into_iter().collect::<Result<Vec<Outcome>, _>>()?;
    let together_ms = ms_since(start);
    let start = Instant::now();
    let mut expected = Vec::new();
    for (number, name) in alone.iter().enumerate() {
        expected.push(host.send(question(name, number, ANSWER_TOKENS), &mut |_| {})?);
    }
    let alone_ms = ms_since(start);
    let mut bits_agree = outcomes.iter().zip(&expected).all(|(a, b)| (&a.tokens, &a.reply) == (&b.tokens, &b.reply));
    for (a, b) in together.iter().zip(alone) {
        let states: [Hash; 2] = [host.state_hash(a)?, host.state_hash(b)?];
        bits_agree &= states[0] == states[1];
    }
    Ok(AtOnce { together_ms, alone_ms, bits_agree })
}

/// Forks the actor in a state folder: milliseconds, and bytes of their heads.
fn at_rest(globals: &Globals, host: &mut Host, names: &[String]) -> Result<(f64, u64)> {
    let root = paths::state_folder(globals.state.as_deref())?;
    std::fs::create_dir_all(&root).with_context(|| format!("cannot make the state folder {}", root.display()))?;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&root).context("cannot write to the state folder")?;
    let state = StateFolder::open(folder.path())?;
    let held = state.create(PARENT)?;
    held.save(host)?;
    let start = Instant::now();
    state.fork(&held, names)?;
    let ms = ms_since(start);
    Ok((ms, std::fs::metadata(held.head())?.len() * names.len() as u64))
}
