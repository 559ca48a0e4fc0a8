//! `driftwood diff`: where two actors part. Everything but the logits is read from their heads; those are evaluated from the KV at rest, one
//! token for each side.

use crate::actors;
use crate::cli::Globals;
use crate::decode::Runner;
use crate::failure::mistake;
use crate::output;
use anyhow::Result;
use clap::Args;
use driftwood_actor::{Hash, StateFolder};
use driftwood_snapshot::GuestState;
use driftwood_store::{Head, HeadTurn, PAGE_BYTES};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const EXAMPLES: &str = "\
Examples:
  driftwood diff alice bob
  driftwood diff alice bob --no-logits --json

The logits are those that follow the first token in which two sessions differ. Exit code 0 whether or not the actors differ.";

/// Addresses of changed pages that are told.
const ADDRESSES_SHOWN: usize = 8;

/// Flags of `diff`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct DiffArgs {
    /// An actor
    a: String,
    /// Another actor
    b: String,
    /// Leave the model alone: no logits, and no texts of tokens
    #[arg(long)]
    no_logits: bool,
    /// Print one JSON object; in pairs the first is A's
    #[arg(long)]
    json: bool,
}

/// Whatever both have, A's first.
type Both<T> = [T; 2];

/// One of the two.
struct Side {
    head: Head,
    state: Hash,
    /// Messages by their number.
    turns: BTreeMap<u64, HeadTurn>,
    /// Pages of linear memory that are not zero.
    pages: BTreeMap<u32, Hash>,
    /// The token ids of sessions, by handle, and each one's index in the head.
    sessions: BTreeMap<u32, (usize, Vec<u32>)>,
}

/// What there is to tell.
#[derive(Serialize)]
struct Difference {
    same_state: bool,
    messages: Both<u64>,
    /// Messages with the same texts and tokens before the first that differs, counted from the first that both histories know.
    messages_in_common: u64,
    sessions: Vec<SessionDifference>,
    memory: MemoryDifference,
    settings: Vec<Value>,
    globals: Vec<Value>,
}

#[derive(Serialize)]
struct SessionDifference {
    handle: u32,
    /// How many tokens each has; null where there is no such session.
    tokens: Both<Option<usize>>,
    first_difference: Option<TokenDifference>,
}

#[derive(Serialize)]
struct TokenDifference {
    index: usize,
    /// Null where the session ends before it.
    ids: Both<Option<u32>>,
    texts: Both<Option<String>>,
    /// Between the logits that follow it; null where they were not evaluated.
    logits: Option<Distance>,
}

/// Of two vectors of logits.
#[derive(Debug, PartialEq, Serialize)]
struct Distance {
    max_abs: f64,
    rms: f64,
}

#[derive(Serialize)]
struct MemoryDifference {
    bytes: Both<u64>,
    changed_pages: usize,
    /// Where the first of them begin.
    addresses: Vec<u64>,
}

/// Shows it.
///
/// # Errors
/// If one of them is not there or damaged, or the model of a session that differs cannot be used.
pub fn run(globals: &Globals, args: &DiffArgs) -> Result<()> {
    let state = actors::open_state(globals)?;
    let sides = [Side::read(&state, &args.a)?, Side::read(&state, &args.b)?];
    let mut difference = compare(&sides);
    if !args.no_logits {
        evaluate(globals, &state, &sides, &mut difference.sessions)?;
    }
    if args.json { output::json(&difference) } else { show([&args.a, &args.b], &difference) }
}

impl Side {
    fn read(state: &StateFolder, name: &str) -> Result<Side> {
        let in_file = || mistake(format!("`{name}` is not kept in chunks yet; send it a message first"));
        let (head, chunks) = (state.head(name)?.ok_or_else(in_file)?, state.chunks());
        let mut turns = BTreeMap::new();
        for moment in state.history(name)? {
            turns.extend(moment.numbered().map(|(number, turn)| (number, turn.clone())));
        }
        let pages = head.guest.as_ref().map(|guest| guest.memory.pages(chunks)).transpose()?.unwrap_or_default();
        let pages = pages.into_iter().map(|(page, chunk)| (page, chunk.hash)).collect();
        let mut sessions = BTreeMap::new();
        for (index, session) in head.sessions.iter().enumerate() {
            sessions.insert(session.state.handle, (index, session.token_ids(chunks)?));
        }
        Ok(Side { state: head.state_hash(chunks)?, head, turns, pages, sessions })
    }

    fn guest(&self) -> GuestState {
        self.head.guest.as_ref().map(|guest| guest.state.clone()).unwrap_or_default()
    }

    /// The fingerprint of a session's model.
    fn model(&self, handle: u32) -> Option<(&str, Hash)> {
        let (index, _) = self.sessions.get(&handle)?;
        let pool = self.head.pools.get(self.head.sessions[*index].state.pool as usize)?;
        Some((&pool.model, pool.fingerprint))
    }
}

fn compare(sides: &Both<Side>) -> Difference {
    let [a, b] = sides;
    let handles: BTreeSet<u32> = sides.iter().flat_map(|side| side.sessions.keys().copied()).collect();
    let guests = sides.each_ref().map(Side::guest);
    Difference {
        same_state: a.state == b.state,
        messages: sides.each_ref().map(|side| side.head.turn()),
        messages_in_common: in_common(&a.turns, &b.turns),
        sessions: handles.into_iter().map(|handle| session(handle, sides)).collect(),
        memory: memory(sides),
        settings: settings(&guests),
        globals: globals_of(&guests),
    }
}

fn in_common(a: &BTreeMap<u64, HeadTurn>, b: &BTreeMap<u64, HeadTurn>) -> u64 {
    let first = [a, b].iter().filter_map(|turns| turns.keys().next().copied()).max().unwrap_or(1);
    (first..).take_while(|number| a.contains_key(number) && a.get(number) == b.get(number)).count() as u64
}

fn session(handle: u32, sides: &Both<Side>) -> SessionDifference {
    let ids = sides.each_ref().map(|side| side.sessions.get(&handle).map(|(_, ids)| &ids[..]));
    let at = |index: usize| ids.map(|ids| ids.and_then(|ids| ids.get(index).copied()));
    let longer = ids.iter().flatten().map(|ids| ids.len()).max().unwrap_or(0);
    let index = (0..longer).find(|&index| at(index)[0] != at(index)[1]);
    let first_difference = index.map(|index| TokenDifference { index, ids: at(index), texts: [None, None], logits: None });
    SessionDifference { handle, tokens: ids.map(|ids| ids.map(<[u32]>::len)), first_difference }
}

fn memory(sides: &Both<Side>) -> MemoryDifference {
    let [a, b] = sides;
    let all: BTreeSet<u32> = sides.iter().flat_map(|side| side.pages.keys().copied()).collect();
    let changed: Vec<u32> = all.into_iter().filter(|page| a.pages.get(page) != b.pages.get(page)).collect();
    MemoryDifference {
        bytes: sides.each_ref().map(|side| side.head.guest.as_ref().map_or(0, |guest| guest.memory.bytes)),
        changed_pages: changed.len(),
        addresses: changed.iter().take(ADDRESSES_SHOWN).map(|&page| u64::from(page) * PAGE_BYTES as u64).collect(),
    }
}

fn settings([a, b]: &Both<GuestState>) -> Vec<Value> {
    let keys: BTreeSet<&String> = a.settings.keys().chain(b.settings.keys()).collect();
    let differ = keys.into_iter().filter(|key| a.settings.get(*key) != b.settings.get(*key));
    differ.map(|key| json!({ "key": key, "values": [a.settings.get(key), b.settings.get(key)] })).collect()
}

fn globals_of(guests: &Both<GuestState>) -> Vec<Value> {
    let [a, b] =
        guests.each_ref().map(|guest| guest.globals.iter().map(|g| (g.index, format!("{:x}", g.bits))).collect::<BTreeMap<_, _>>());
    let indices: BTreeSet<u32> = a.keys().chain(b.keys()).copied().collect();
    let differ = indices.into_iter().filter(|index| a.get(index) != b.get(index));
    differ.map(|index| json!({ "index": index, "bits_hex": [a.get(&index), b.get(&index)] })).collect()
}

/// Adds the texts of the tokens and the distance of the logits that follow them, where both sessions are of one model.
fn evaluate(globals: &Globals, state: &StateFolder, sides: &Both<Side>, sessions: &mut [SessionDifference]) -> Result<()> {
    let mut runners: BTreeMap<Hash, Runner> = BTreeMap::new();
    for session in sessions {
        let Some(difference) = &mut session.first_difference else { continue };
        let [a, b] = sides.each_ref().map(|side| side.model(session.handle));
        let Some((name, fingerprint)) = a.or(b).filter(|_| a.is_none() || b.is_none() || a == b) else { continue };
        let runner = match runners.entry(fingerprint) {
            std::collections::btree_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::btree_map::Entry::Vacant(slot) => slot.insert(open(globals, name, fingerprint)?),
        };
        let text = |id: Option<u32>| id.map(|id| String::from_utf8_lossy(&runner.model.tokenizer().piece(id)).into_owned());
        difference.texts = difference.ids.map(text);
        if let [Some(_), Some(_)] = difference.ids {
            let mut logits = |side| logits_after(runner, state, side, session.handle, difference.index);
            difference.logits = Some(distance(&logits(&sides[0])?, &logits(&sides[1])?));
        }
    }
    Ok(())
}

/// The model, if it is the one that the KV came from.
fn open(globals: &Globals, name: &str, fingerprint: Hash) -> Result<Runner> {
    let runner = Runner::open(name, &globals.device, None)?;
    if Hash(runner.model.fingerprint()) == fingerprint {
        return Ok(runner);
    }
    Err(mistake(format!("the model `{name}` here is another file than the one that these actors used; leave it alone with --no-logits")))
}

/// The logits behind the token at `index`: the session is restored, cut to before it, and makes one step.
fn logits_after(runner: &mut Runner, state: &StateFolder, side: &Side, handle: u32, index: usize) -> Result<Vec<f32>> {
    let (at, tokens) = &side.sessions[&handle];
    let pool = &side.head.pools[side.head.sessions[*at].state.pool as usize];
    let kv = driftwood_actor::live_dtype(pool.dtype);
    let mut session = driftwood_actor::restore_session(&runner.model, &side.head, *at, state.chunks(), kv)?;
    session.truncate(index)?;
    session.append(&tokens[index..=index])?;
    let mut logits = runner.logits();
    runner.step(&mut session, &mut logits)?;
    Ok(logits)
}

fn distance(a: &[f32], b: &[f32]) -> Distance {
    let apart = || a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b));
    let squares: f64 = apart().map(|apart| apart * apart).sum();
    Distance { max_abs: apart().map(f64::abs).fold(0.0, f64::max), rms: (squares / a.len().max(1) as f64).sqrt() }
}

fn show([a, b]: Both<&String>, difference: &Difference) -> Result<()> {
    let [of_a, of_b] = difference.messages;
    if difference.same_state {
        return output::line(&format!("`{a}` and `{b}` are the same after {of_a} and {of_b} messages"));
    }
    let common = difference.messages_in_common;
    output::line(&format!("`{a}` has {of_a} messages, `{b}` {of_b}; {common} are in common"))?;
    difference.sessions.iter().try_for_each(show_session)?;
    let MemoryDifference { bytes, changed_pages, addresses } = &difference.memory;
    if *changed_pages > 0 || bytes[0] != bytes[1] {
        let more = if addresses.len() < *changed_pages { ", .." } else { "" };
        let addresses = addresses.iter().map(|address| format!("{address:#x}")).collect::<Vec<_>>().join(", ");
        let [a, b] = bytes.map(output::human_bytes);
        output::line(&format!("memory of {a} and {b}: {changed_pages} pages differ: {addresses}{more}"))?;
    }
    let pairs = difference.settings.iter().map(|s| format!("setting {}: {} and {}", s["key"], s["values"][0], s["values"][1]));
    let globals = difference.globals.iter().map(|g| format!("global {}: {} and {}", g["index"], g["bits_hex"][0], g["bits_hex"][1]));
    pairs.chain(globals).try_for_each(|line| output::line(&line))
}

fn show_session(session: &SessionDifference) -> Result<()> {
    let handle = session.handle;
    let [a, b] = session.tokens.map(|tokens| tokens.map_or("no".to_owned(), |tokens| tokens.to_string()));
    let Some(difference) = &session.first_difference else {
        return output::line(&format!("session {handle}: the same {a} tokens"));
    };
    let token = |side: usize| match (difference.ids[side], &difference.texts[side]) {
        (Some(id), Some(text)) => format!("{id} {text:?}"),
        (Some(id), None) => id.to_string(),
        _ => "none".to_owned(),
    };
    let (first, second, index) = (token(0), token(1), difference.index);
    output::line(&format!("session {handle}: {a} and {b} tokens; the first that differs is at {index}: {first} and {second}"))?;
    let Some(Distance { max_abs, rms }) = difference.logits else { return Ok(()) };
    output::line(&format!("session {handle}: the logits after it are at most {max_abs:.3} apart, {rms:.3} in the root mean square"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_of_the_largest_and_of_all() {
        assert_eq!(distance(&[1.0, 2.0], &[1.0, 2.0]), Distance { max_abs: 0.0, rms: 0.0 });
        assert_eq!(distance(&[0.0, 3.0, 0.0, 0.0], &[4.0, 0.0, 0.0, 0.0]), Distance { max_abs: 4.0, rms: 2.5 });
    }

    #[test]
    fn messages_in_common_are_counted_from_where_both_are_known() {
        let turn = |text: &str| HeadTurn { message: driftwood_store::Text(text.into()), ..HeadTurn::default() };
        let turns = |first: u64, texts: &str| (first..).zip(texts.split(' ').map(turn)).collect::<BTreeMap<_, _>>();
        for (a, b, common) in [
            (turns(1, "a b c"), turns(1, "a b d e"), 2),
            (turns(1, "a b c"), turns(2, "b c"), 2),
            (turns(1, "a"), turns(3, "c"), 0),
            (turns(1, "a"), BTreeMap::new(), 0),
        ] {
            assert_eq!((in_common(&a, &b), in_common(&b, &a)), (common, common));
        }
    }
}
