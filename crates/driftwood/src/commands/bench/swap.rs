//! `driftwood bench swap`: an actor that leaves its model in mid-conversation and comes back, against reading the conversation again.
//!
//! The actor is the guest `chat`. It reads a long message on one model, goes to the other and talks there, and comes back. All that it holds
//! then is also prefilled in a fresh session on the same model, without an actor, and the bytes of both are compared.

use super::{Common, prompt};
use crate::actors::{self, Cast};
use crate::cli::Globals;
use crate::decode::{Runner, median, ms_since};
use crate::output;
use anyhow::{Context, Result, ensure};
use clap::Args;
use driftwood_actor::{Existing, Host, Message, SwapReport};
use driftwood_compute::KvDType;
use driftwood_snapshot::Snapshot;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Runs that a median is of.
const RUNS: usize = 5;
/// The one actor, as it was before it left.
const ACTOR: &str = "bench";
/// Tokens of a reply.
const REPLY_TOKENS: usize = 16;
/// Tokens of a turn beside its message: the reply, and the template's.
const AROUND_TOKENS: usize = REPLY_TOKENS + 14;

/// Flags of `bench swap`.
#[derive(Args, Debug)]
pub struct SwapArgs {
    #[command(flatten)]
    common: Common,
    /// The model that it goes to and comes back from
    #[arg(long, default_value = "gemma3-270m", value_name = "MODEL")]
    other: String,
    /// About so many tokens of context before it leaves
    #[arg(long, default_value_t = 4000, value_name = "N")]
    tokens: usize,
    /// About so many tokens of conversation on the other model
    #[arg(long, default_value_t = 100, value_name = "N")]
    new: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    other: String,
    /// To the other model: it reads all.
    there_recomputed_tokens: usize,
    there_ms: f64,
    /// And back.
    restored_tokens: usize,
    recomputed_tokens: usize,
    back_ms: f64,
    /// All of it, in a fresh session.
    prefill_ms: f64,
    /// What `back_ms` may be: 5% of `prefill_ms` and 20 ms.
    bound_ms: f64,
    bits_agree: bool,
}

/// Measures.
///
/// # Errors
/// If a model cannot be used or cannot hold so many tokens.
pub fn run(globals: &Globals, args: &SwapArgs) -> Result<()> {
    let mut runner = Runner::open(&args.common.model, &globals.device, Some(KvDType::F16))?;
    let other = Runner::open(&args.other, &globals.device, Some(KvDType::F16))?;
    let mut host = talked(globals, args, [&runner, &other])?;
    let short = text(&other, &args.common, args.new.saturating_sub(AROUND_TOKENS))?;
    let bar = output::steps_bar(RUNS, "swaps");
    let folder = tempfile::tempdir()?;
    let mut swaps = Vec::new();
    for run in 0..RUNS {
        let name = format!("{ACTOR}-{run}");
        host.fork(ACTOR, &name)?;
        let left = host.swap_model(&name, other.model.name(), false, &mut |_| {})?;
        host.send(Message::new(name.clone(), short.as_bytes()), &mut |_| {})?;
        let returned = host.swap_model(&name, runner.model.name(), false, &mut |_| {})?;
        let (prefill_ms, same) = read_again(&mut runner, &mut host, &name, &folder.path().join(&name))?;
        swaps.push(Swap { left, returned, prefill_ms, same });
        host.remove(&name)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = report(&swaps).context("there is at least one run")?;
    if args.common.json { output::json(&report) } else { show(&report) }
}

/// A host with both models and an actor that has read a long message on the first.
fn talked(globals: &Globals, args: &SwapArgs, runners: [&Runner; 2]) -> Result<Host> {
    let mut host = actors::host(globals)?;
    runners.iter().for_each(|runner| host.add_model(runner.model.clone()));
    let settings = BTreeMap::from([("temperature".to_owned(), "0".to_owned()), ("max_tokens".to_owned(), REPLY_TOKENS.to_string())]);
    host.spawn(actors::spec(Cast { name: ACTOR, guest: "chat", model: &args.common.model, settings })?)?;
    let long = text(runners[0], &args.common, args.tokens)?;
    host.send(Message::new(ACTOR, long.as_bytes()), &mut |_| {})
        .context("the model cannot hold so long a conversation; give fewer --tokens")?;
    Ok(host)
}

/// One way there and back.
struct Swap {
    left: SwapReport,
    returned: SwapReport,
    prefill_ms: f64,
    same: bool,
}

fn report(swaps: &[Swap]) -> Option<Report> {
    let of = |ms: fn(&Swap) -> f64| median(&swaps.iter().map(ms).collect::<Vec<_>>());
    let Swap { left, returned, .. } = swaps.last()?;
    let prefill_ms = of(|swap| swap.prefill_ms);
    Some(Report {
        model: returned.to.clone(),
        other: left.to.clone(),
        there_recomputed_tokens: left.recomputed_tokens,
        there_ms: of(|swap| swap.left.ms),
        restored_tokens: returned.restored_tokens,
        recomputed_tokens: returned.recomputed_tokens,
        back_ms: of(|swap| swap.returned.ms),
        prefill_ms,
        bound_ms: 0.05 * prefill_ms + 20.0,
        bits_agree: swaps.iter().all(|swap| swap.same),
    })
}

fn show(report: &Report) -> Result<()> {
    output::line(&format!(
        "{} -> {}: {} tokens read in {} ms",
        report.model,
        report.other,
        report.there_recomputed_tokens,
        output::human_ms(report.there_ms)
    ))?;
    output::line(&format!(
        "and back: {} tokens restored, {} read, in {} ms; reading all takes {} ms; the bits are {}",
        report.restored_tokens,
        report.recomputed_tokens,
        output::human_ms(report.back_ms),
        output::human_ms(report.prefill_ms),
        if report.bits_agree { "the same" } else { "NOT the same" }
    ))
}

/// A text of about so many tokens.
fn text(runner: &Runner, common: &Common, tokens: usize) -> Result<String> {
    let tokens = prompt(runner, common, tokens.max(2))?;
    Ok(String::from_utf8_lossy(&runner.model.tokenizer().decode(&tokens[1..])).into_owned())
}

/// Prefills what the actor's session holds in a fresh one: how long that takes, and whether the KV has the same bytes.
fn read_again(runner: &mut Runner, host: &mut Host, name: &str, path: &Path) -> Result<(f64, bool)> {
    host.freeze(name, path, Existing::Refuse)?;
    let file = Snapshot::open(path)?;
    let open = file.manifest().sessions.iter().position(|session| session.state.handle == 1).context("the actor has no session")?;
    let stored = &file.manifest().sessions[open];
    let pool = stored.state.pool as usize;
    let block_bytes = file.manifest().pools[pool].info.block_bytes as usize;
    ensure!(!stored.blocks.is_empty(), "so short a conversation fills no block of KV; give more --tokens");
    let (mut fresh, mut logits) = (runner.session(0)?, runner.logits());
    let start = Instant::now();
    runner.prefill(&mut fresh, &file.tokens(open)[..stored.evaluated as usize], &mut logits)?;
    let ms = ms_since(start);
    let blocks = file.blocks(pool).context("the file has no KV")?;
    let at_rest = fresh.at_rest()?;
    let same = stored
        .blocks
        .iter()
        .zip(at_rest.blocks())
        .all(|(&stored, here)| blocks.bytes()[stored as usize * block_bytes..][..block_bytes] == here.bytes()[..block_bytes]);
    Ok((ms, same))
}
