//! `driftwood bench boundary`: what it costs to drive the model from inside an actor, one host call a token.
//!
//! The engine's own loop and a guest's loop (`guest/bench/bench.wat`) take turns on one model, from the same prompt, with the same sampler, and
//! must choose the same tokens. In the logits case the guest has the logits written into its memory and samples from there.

use super::guest::{self, LOGITS, NEXT, REWIND, TELL};
use super::{Common, prompt};
use crate::cli::Globals;
use crate::decode::{Runner, median, ms_since};
use crate::{actors, output};
use anyhow::{Context, Result, ensure};
use clap::Args;
use driftwood_actor::Host;
use driftwood_compute::KvDType;
use driftwood_engine::Session;
use serde::Serialize;
use std::ops::RangeInclusive;
use std::time::Instant;

/// Alternating runs.
const RUNS: usize = 5;

/// Tokens of a run: some from each of several pairs of sides, every pair with sessions and scratch memory of its own. Where these
/// happen to lie moves a side's time by a percent either way, which would otherwise pass for the boundary.
const PAIRS_PER_RUN: usize = 8;
const SLICES_PER_PAIR: usize = 2;

/// The two sides take turns after about so long: a shared machine drifts by some percent within a second, which would drown what is
/// measured. A turn itself costs the guest's side some 20 µs, since what else hides behind a device's work does not at its edges: so not too short.
const SLICE_MS: f64 = 60.0;

/// Tokens of a slice, however long a step takes. A run is two slices of eight pairs: at least 256 tokens.
const SLICE_TOKENS: RangeInclusive<usize> = 16..=32;

/// Tokens of the prompt. All of a run lies between 64 and 160 tokens: a session's second block of KV costs a device with memory of its own some
/// 5 ms once, and from 192 tokens on attention takes longer.
const PROMPT_TOKENS: usize = 64;

/// The one actor.
const ACTOR: &str = "bench";

/// Flags of `bench boundary`.
#[derive(Args, Debug)]
pub struct BoundaryArgs {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Report {
    engine_ms_per_token: f64,
    actor_ms_per_token: f64,
    engine_logits_ms_per_token: f64,
    actor_logits_ms_per_token: f64,
    ratio: f64,
}

/// Measures.
///
/// # Errors
/// If the model cannot be used, or the two sides choose different tokens.
pub fn run(globals: &Globals, args: &BoundaryArgs) -> Result<()> {
    // The guest opens its session with f16 KV.
    let runner = Runner::open(&args.common.model, &globals.device, Some(KvDType::F16))?;
    let prompt = prompt(&runner, &args.common, PROMPT_TOKENS)?;
    let bar = output::steps_bar((RUNS + 1) * PAIRS_PER_RUN, "pairs");
    let mut runs = [[0.0; RUNS]; 4]; // ms a token of each run
    let mut pairs = Vec::new(); // kept, so that none gets the memory of another
    for pair in 0..(RUNS + 1) * PAIRS_PER_RUN {
        let (mut engine, mut actor) = open(globals, &runner, &prompt, pair.is_multiple_of(2))?;
        let [next, logits] = deeper(pair, &mut || {
            let tokens = warm_up(&mut engine, &mut actor)?;
            anyhow::Ok([alternate(&mut engine, &mut actor, NEXT, tokens)?, alternate(&mut engine, &mut actor, LOGITS, tokens)?])
        })?;
        pairs.push((engine, actor));
        bar.inc(1);
        if pair >= PAIRS_PER_RUN {
            // The first pairs warm up. The runs' pairs take turns, so that a machine's drift meets all runs.
            runs.iter_mut().zip(next.into_iter().chain(logits)).for_each(|(run, ms)| run[pair % RUNS] += ms / PAIRS_PER_RUN as f64);
        }
    }
    bar.finish_and_clear();
    let [engine, actor, engine_logits, actor_logits] = runs.map(|run| median(&run));
    let report = Report {
        engine_ms_per_token: engine,
        actor_ms_per_token: actor,
        engine_logits_ms_per_token: engine_logits,
        actor_logits_ms_per_token: actor_logits,
        ratio: (actor / engine).max(actor_logits / engine_logits),
    };
    if args.common.json { output::json(&report) } else { show(&report) }
}

/// Does work so many frames of some hundred bytes further down the stack: where the stack happens to begin moves one side or the other by
/// up to 4% for a whole process, most likely because its lines get into the way of the kernels' buffers (12 bits of the address).
fn deeper<T>(frames: usize, work: &mut dyn FnMut() -> T) -> T {
    if frames == 0 {
        return work();
    }
    let frame = std::hint::black_box([0u8; 240]);
    let done = deeper(frames - 1, work);
    std::hint::black_box(frame);
    done
}

/// A pair of sides. Which of them is opened first decides where each lies in memory, so they take turns at that, too.
fn open(globals: &Globals, runner: &Runner, prompt: &[u32], engine_first: bool) -> Result<(EngineSide, ActorSide)> {
    if engine_first {
        let engine = EngineSide::open(runner.beside(), prompt)?;
        return Ok((engine, ActorSide::open(globals, runner, prompt)?));
    }
    let actor = ActorSide::open(globals, runner, prompt)?;
    Ok((EngineSide::open(runner.beside(), prompt)?, actor))
}

/// A slice of each kind, since a GPU's commands are recorded when they are first needed. Gives the tokens of a slice from then on.
fn warm_up(engine: &mut EngineSide, actor: &mut ActorSide) -> Result<usize> {
    let tokens = *SLICE_TOKENS.start();
    let mut ms = 0.0;
    for how in [NEXT, LOGITS] {
        actor.steps(how, tokens, tokens, &mut || {})?;
        ms = engine.slice(how, tokens)?;
    }
    let tokens = (SLICE_MS * tokens as f64 / ms) as usize;
    Ok(tokens.clamp(*SLICE_TOKENS.start(), *SLICE_TOKENS.end()))
}

/// One pair's share of a run: the engine's and the actor's milliseconds a token. The engine takes its slices while the actor's guest is
/// parked between its own, all in one message; the message's way in and its commit count for the actor. The first slice of each does
/// not count: a GPU has the next step of the one in its queue when the other begins, but for the first.
fn alternate(engine: &mut EngineSide, actor: &mut ActorSide, how: u32, slice_tokens: usize) -> Result<[f64; 2]> {
    engine.rewind()?;
    actor.rewind()?;
    let (mut engine_ms, mut actor_ms) = (Vec::new(), Vec::new());
    let mut failed = None;
    let mut started = Instant::now();
    actor.steps(how, (1 + SLICES_PER_PAIR) * slice_tokens, slice_tokens, &mut || {
        actor_ms.push(ms_since(started));
        match engine.slice(how, slice_tokens) {
            Ok(ms) => engine_ms.push(ms),
            Err(error) => failed = Some(error),
        }
        started = Instant::now();
    })?;
    actor_ms.push(ms_since(started)); // the commit
    failed.map_or(Ok(()), Err)?;
    ensure!(actor.tokens()? == engine.tokens(), "the actor chose other tokens than the engine");
    Ok([engine_ms, actor_ms].map(|slices| slices[1..].iter().sum::<f64>() / (SLICES_PER_PAIR * slice_tokens) as f64))
}

fn show(report: &Report) -> Result<()> {
    let row = |what: &str, engine: f64, actor: f64| {
        vec![what.to_owned(), format!("{engine:.4}"), format!("{actor:.4}"), format!("{:.4}", actor / engine)]
    };
    let rows = [
        row("next token", report.engine_ms_per_token, report.actor_ms_per_token),
        row("logits in the guest's memory", report.engine_logits_ms_per_token, report.actor_logits_ms_per_token),
    ];
    output::table(&["", ">engine ms/token", ">actor ms/token", ">ratio"], &rows)
}

/// The loop without an actor.
struct EngineSide {
    runner: Runner,
    session: Session,
    prompt_tokens: usize,
    logits: Vec<f32>,
}

impl EngineSide {
    fn open(mut runner: Runner, prompt: &[u32]) -> Result<EngineSide> {
        let mut session = runner.session(0)?;
        let mut logits = runner.logits();
        runner.prefill(&mut session, prompt, &mut logits)?;
        Ok(EngineSide { runner, session, prompt_tokens: prompt.len(), logits })
    }

    fn rewind(&mut self) -> Result<()> {
        Ok(self.session.truncate(self.prompt_tokens)?)
    }

    /// Milliseconds of one slice.
    fn slice(&mut self, how: u32, tokens: usize) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..tokens {
            let token = if how == LOGITS {
                self.runner.step(&mut self.session, &mut self.logits)?;
                self.session.sample(&self.logits)?
            } else {
                self.runner.next(&mut self.session)?
            };
            self.session.append(&[token])?;
        }
        Ok(ms_since(start))
    }

    fn tokens(&self) -> &[u32] {
        &self.session.tokens()[self.prompt_tokens..]
    }
}

/// The loop inside a guest.
struct ActorSide {
    host: Host,
}

impl ActorSide {
    fn open(globals: &Globals, runner: &Runner, prompt: &[u32]) -> Result<ActorSide> {
        let mut host = actors::host(globals)?;
        host.add_model(runner.model.clone());
        guest::open(&mut host, runner, ACTOR, prompt)?;
        Ok(ActorSide { host })
    }

    fn tokens(&mut self) -> Result<Vec<u32>> {
        let reply = guest::ask(&mut self.host, ACTOR, &[TELL])?;
        Ok(reply.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
    }

    fn rewind(&mut self) -> Result<()> {
        guest::ask(&mut self.host, ACTOR, &[REWIND]).map(drop)
    }

    /// Takes so many tokens; `heard` is called after each slice of them.
    fn steps(&mut self, how: u32, tokens: usize, slice_tokens: usize, heard: &mut dyn FnMut()) -> Result<()> {
        let message = guest::message(ACTOR, &[how, tokens as u32, slice_tokens as u32]);
        self.host.send(message, &mut |_| heard()).map(drop).context(guest::FAILED)
    }
}
