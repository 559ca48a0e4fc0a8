//! The benches' guest (`guest/bench/bench.wat`): what it can be asked to do, and how.

use crate::decode::Runner;
use crate::guests;
use anyhow::{Context, Result};
use driftwood_actor::{Host, Limits, Message, SpawnSpec};
use std::collections::BTreeMap;

/// Take tokens as the session's sampler chooses them.
pub const NEXT: u32 = 1;
/// Take tokens from logits that come into the guest's memory.
pub const LOGITS: u32 = 2;
/// Reply the tokens after the prompt.
pub const TELL: u32 = 3;
/// Go back to the prompt's end.
pub const REWIND: u32 = 4;
/// Open a session with a prompt.
const OPEN: u32 = 0;

/// Spawns an actor whose session has the prompt, on the runner's model, which the host must have.
pub fn open(host: &mut Host, runner: &Runner, name: &str, prompt: &[u32]) -> Result<()> {
    let settings = BTreeMap::from([("model".to_owned(), runner.model.name().to_owned())]);
    let module = guests::BENCH.into();
    host.spawn(SpawnSpec { name: name.to_owned(), module, settings, limits: Limits::default(), models: Vec::new() })?;
    ask(host, name, &[&[OPEN, prompt.len() as u32], prompt].concat()).map(drop)
}

/// Has an actor do one thing; answers its reply.
pub fn ask(host: &mut Host, name: &str, words: &[u32]) -> Result<Vec<u8>> {
    let outcome = host.send(message(name, words), &mut |_| {}).context(FAILED)?;
    Ok(outcome.reply)
}

/// The message that asks for one thing.
pub fn message(name: &str, words: &[u32]) -> Message {
    Message::new(name, words.iter().copied().flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
}

/// What is said where it does not do so.
pub const FAILED: &str = "the bench guest failed";
