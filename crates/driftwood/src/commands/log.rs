//! `driftwood log`: what an actor was told and said, message by message, and what it was after each. Reads heads and what they name: no
//! model is needed and no code runs.

use crate::actors;
use crate::cli::Globals;
use crate::output;
use anyhow::Result;
use clap::Args;
use driftwood_actor::{Hash, Moment};
use driftwood_store::HeadTurn;
use serde_json::{Value, json};

const EXAMPLES: &str = "\
Examples:
  driftwood log alice
  driftwood log alice --json

Actors with the same `state` are the same in memory, settings, random numbers and tokens, wherever they are. Several messages that were kept
together have one state, after the last. `driftwood actor rewind alice --to TURN` goes back.";

/// Characters of a text in the table.
const SHOWN_CHARS: usize = 60;
/// Digits of a state in the table.
const SHOWN_DIGITS: usize = 12;

/// Flags of `log`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct LogArgs {
    /// The actor
    name: String,
    /// Print one JSON object: {\"turns\": [{\"role\", \"text\", \"tokens\", \"state\"}]}
    #[arg(long)]
    json: bool,
}

/// A message or a reply.
struct Line<'a> {
    turn: u64,
    role: &'static str,
    text: &'a [u8],
    tokens: &'a [u32],
    /// What the actor was after it.
    after: Option<&'a Moment>,
}

/// Shows it.
///
/// # Errors
/// If there is no such actor, or its history is damaged.
pub fn run(globals: &Globals, args: &LogArgs) -> Result<()> {
    let state = actors::open_state(globals)?;
    let moments = state.history(&args.name)?;
    let present = state.inspect(&args.name)?;
    let handled = present.manifest.guest.as_ref().map_or(0, |guest| guest.state.messages_handled);
    let lines: Vec<Line> = moments.iter().flat_map(lines).collect();
    let unknown = lines.first().map_or(handled, |line| line.turn - 1);
    if args.json {
        let turns: Vec<Value> = lines.iter().map(Line::json).collect();
        let state = moments.last().map(|moment| moment.state);
        return output::json(&json!({
            "turns": turns,
            "messages": handled,
            "unknown_messages": unknown,
            "state": state,
            "bytes": present.bytes,
            "kv_bytes": present.kv_bytes,
        }));
    }
    output::table(&[">turn", "role", ">tokens", "text", "state", ">size"], &lines.iter().map(Line::row).collect::<Vec<_>>())?;
    if unknown > 0 {
        output::remark(&format!("nothing is known of the first {unknown} messages: a portable file carries no history"));
    }
    Ok(())
}

/// Each message of a moment and its reply. Only the last led to a state that is known.
fn lines(moment: &Moment) -> Vec<Line<'_>> {
    moment.numbered().flat_map(|(turn, handled)| both(turn, handled, (turn == moment.turn).then_some(moment))).collect()
}

fn both<'a>(turn: u64, handled: &'a HeadTurn, after: Option<&'a Moment>) -> [Line<'a>; 2] {
    let user = Line { turn, role: "user", text: &handled.message.0, tokens: &[], after: None };
    [user, Line { turn, role: "assistant", text: &handled.reply.0, tokens: &handled.tokens, after }]
}

impl Line<'_> {
    fn json(&self) -> Value {
        let state = self.after.map(|moment| moment.state);
        let mut line = json!({ "role": self.role, "text": String::from_utf8_lossy(self.text), "tokens": self.tokens, "state": state });
        if std::str::from_utf8(self.text).is_err() {
            line["hex"] = self.text.iter().map(|byte| format!("{byte:02x}")).collect();
        }
        line
    }

    fn row(&self) -> Vec<String> {
        let tokens = if self.role == "user" { String::new() } else { self.tokens.len().to_string() };
        let state = self.after.map(|moment| short(moment.state)).unwrap_or_default();
        let size = self.after.map(|moment| output::human_bytes(moment.bytes)).unwrap_or_default();
        vec![self.turn.to_string(), self.role.to_owned(), tokens, one_line(&String::from_utf8_lossy(self.text)), state, size]
    }
}

fn short(state: Hash) -> String {
    state.to_string()[..SHOWN_DIGITS].to_owned()
}

/// The beginning of a text, without what would break a table.
fn one_line(text: &str) -> String {
    let mut shown: String = text.trim().chars().take(SHOWN_CHARS + 1).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if shown.chars().count() > SHOWN_CHARS {
        shown.pop();
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_to_one_line() {
        assert_eq!(one_line(" a\n\u{1b}[2Jb "), "a  [2Jb");
        assert_eq!(one_line(&"ä".repeat(SHOWN_CHARS)), "ä".repeat(SHOWN_CHARS));
        assert_eq!(one_line(&"ä".repeat(99)), "ä".repeat(SHOWN_CHARS) + "…");
    }
}
