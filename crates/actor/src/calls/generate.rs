//! Next and generate: tokens sampled by the host, from logits that never leave it.
//!
//! Text is streamed as soon as it is certain: a character whose bytes are not all there yet, and the beginning of what may become a
//! stop string, are held back.

use super::{Answer, MODULE, granted, with_desk};
use crate::abi::{Finish, GenerateOptions, IGNORE_END, Refused, STREAM};
use crate::desk::Desk;
use crate::instance::Guest;
use crate::limits::{STOP_BYTES_MAX, STOPS_MAX};
use crate::memory::GuestMemory;
use crate::parked::{Target, evaluate};
use crate::tape::fuel_used;
use wasmtime::{Caller, Linker};

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap_async(MODULE, "next", |c, (session,): (i32,)| -> Answer<'_> { Box::new(next(c, session)) })?;
    linker.func_wrap_async(MODULE, "generate", |c, (session, options): (i32, u32)| -> Answer<'_> {
        Box::new(generate(c, session, options))
    })?;
    Ok(())
}

async fn next(mut caller: Caller<'_, Guest>, session: i32) -> wasmtime::Result<i32> {
    let fuel = fuel_used(&caller)?;
    let ready = with_desk(&mut caller, 0, |_, desk| {
        if desk.sessions.get(session)?.room() == 0 {
            return Err(Refused::ContextFull);
        }
        if desk.is_interrupted(fuel)? { Err(Refused::Interrupted) } else { Ok(()) }
    });
    granted!(ready?);
    granted!(evaluate(&mut caller, session, Target::Token).await?);
    Ok(super::number(with_desk(&mut caller, 0, |_, desk| desk.take_token(session).map(|token| token as i32))?))
}

impl Desk {
    /// Appends the token that the step chose.
    fn take_token(&mut self, session: i32) -> Result<u32, Refused> {
        let token = self.token.take().ok_or(Refused::BadArgument)?;
        self.append(session, &[token])?;
        self.sessions.entry(session)?.fresh += 1;
        self.turn().tally.generated.push(token);
        Ok(token)
    }
}

async fn generate(mut caller: Caller<'_, Guest>, session: i32, options: u32) -> wasmtime::Result<i32> {
    let mut run = granted!(with_desk(&mut caller, 0, |memory, desk| Run::new(memory, desk, session, options))?);
    let finish = loop {
        let fuel = fuel_used(&caller)?;
        if let Some(finish) = granted!(with_desk(&mut caller, 0, |_, desk| run.before_token(desk, fuel))?) {
            break finish;
        }
        match evaluate(&mut caller, session, Target::Token).await? {
            Ok(()) => {}
            Err(Refused::TokenLimit) => break Finish::TokenLimit,
            Err(refused) => return Ok(refused as i32),
        }
        if let Some(finish) = granted!(with_desk(&mut caller, 0, |_, desk| run.token(desk))?) {
            break finish;
        }
    };
    Ok(super::number(with_desk(&mut caller, 0, |memory, desk| run.end(memory, desk, finish))?))
}

/// One generation on its way.
struct Run {
    session: i32,
    options_at: u32,
    options: GenerateOptions,
    generated: u32,
    text: Text,
}

impl Run {
    fn new(memory: &GuestMemory<'_>, desk: &Desk, session: i32, options_at: u32) -> Result<Run, Refused> {
        let options: GenerateOptions = memory.read(options_at)?;
        desk.sessions.get(session)?;
        if options.flags & !(STREAM | IGNORE_END) != 0 {
            return Err(Refused::BadArgument);
        }
        let capacity = if options.out_text == 0 { 0 } else { options.out_text_capacity };
        memory.range(options.out_text, capacity as usize)?;
        let stops = stop_strings(memory.bytes(options.stops, options.stops_length)?)?;
        Ok(Run { session, options_at, options, generated: 0, text: Text::new(stops) })
    }

    /// What ends the generation before another token.
    fn before_token(&self, desk: &mut Desk, fuel_used: u64) -> Result<Option<Finish>, Refused> {
        let session = desk.sessions.get(self.session)?;
        if self.generated >= self.options.max_tokens {
            return Ok(Some(Finish::Length));
        }
        if session.room() == 0 {
            return Ok(Some(Finish::Context));
        }
        Ok(desk.is_interrupted(fuel_used)?.then_some(Finish::Interrupted))
    }

    /// Takes the next token from the desk's logits; says so if the generation ends with it.
    fn token(&mut self, desk: &mut Desk) -> Result<Option<Finish>, Refused> {
        let token = desk.take_token(self.session)?;
        self.generated += 1;
        let model = desk.sessions.get(self.session)?.model().clone();
        if self.options.flags & IGNORE_END == 0 && model.tokenizer().is_end(token) {
            return Ok(Some(Finish::End));
        }
        let stopped = self.text.push(&model.tokenizer().piece(token));
        self.stream(desk)?;
        Ok(stopped.then_some(Finish::Stop))
    }

    fn stream(&mut self, desk: &mut Desk) -> Result<(), Refused> {
        let certain = self.text.take_certain();
        if self.options.flags & STREAM != 0 && !certain.is_empty() { desk.reply(certain.as_bytes()) } else { Ok(()) }
    }

    /// Streams what was held back and writes the outcome.
    fn end(&mut self, memory: &mut GuestMemory<'_>, desk: &mut Desk, finish: Finish) -> Result<i32, Refused> {
        if finish != Finish::Stop {
            self.text.flush();
        }
        self.stream(desk)?;
        let text = self.text.settled();
        if self.options.out_text != 0 {
            memory.answer(self.options.out_text, self.options.out_text_capacity, text.as_bytes())?;
        }
        let out_text_length = u32::try_from(text.len()).map_err(|_| Refused::Limit)?;
        memory.write(self.options_at, GenerateOptions { out_text_length, out_finish: finish as u32, ..self.options })?;
        i32::try_from(self.generated).map_err(|_| Refused::Limit)
    }
}

/// Stop strings, each ended by a zero byte.
fn stop_strings(bytes: &[u8]) -> Result<Vec<String>, Refused> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let list = bytes.strip_suffix(&[0]).ok_or(Refused::BadArgument)?;
    let mut stops = Vec::new();
    for stop in list.split(|&b| b == 0) {
        let bad = stop.is_empty() || stop.len() > STOP_BYTES_MAX || stops.len() == STOPS_MAX;
        if bad {
            return Err(Refused::BadArgument);
        }
        stops.push(std::str::from_utf8(stop).map_err(|_| Refused::BadText)?.to_owned());
    }
    Ok(stops)
}

/// Text that grows by pieces of bytes, up to a stop string.
#[derive(Debug)]
struct Text {
    stops: Vec<String>,
    /// The text so far; what is not UTF-8 became U+FFFD.
    text: String,
    /// Bytes of a character that is not complete yet.
    pending: Vec<u8>,
    taken: usize,
    certain: usize,
}

impl Text {
    fn new(stops: Vec<String>) -> Text {
        Text { stops, text: String::new(), pending: Vec::new(), taken: 0, certain: 0 }
    }

    /// Adds a piece; true if a stop string is complete, from which on the text is cut.
    fn push(&mut self, piece: &[u8]) -> bool {
        self.pending.extend_from_slice(piece);
        let complete = complete_len(&self.pending);
        self.text.push_str(&String::from_utf8_lossy(&self.pending[..complete]));
        self.pending.drain(..complete);
        let stopped = self.stops.iter().filter_map(|stop| self.text[self.certain..].find(stop.as_str())).min();
        if let Some(at) = stopped {
            self.text.truncate(self.certain + at);
        }
        let held = if stopped.is_some() { 0 } else { self.held_len() };
        self.certain = self.text.len() - held;
        stopped.is_some()
    }

    /// Bytes at the end that may be the beginning of a stop string.
    fn held_len(&self) -> usize {
        let tail = &self.text.as_bytes()[self.certain..];
        let begins = |stop: &String| {
            let longest = tail.len().min(stop.len() - 1);
            (1..=longest).rev().find(|&len| tail.ends_with(&stop.as_bytes()[..len])).unwrap_or(0)
        };
        self.stops.iter().map(begins).max().unwrap_or(0)
    }

    /// The text that became certain since the last call.
    fn take_certain(&mut self) -> String {
        let new = self.text[self.taken..self.certain].to_owned();
        self.taken = self.certain;
        new
    }

    /// Nothing more comes: what was held back is text.
    fn flush(&mut self) {
        self.text.push_str(&String::from_utf8_lossy(&self.pending));
        self.pending.clear();
        self.certain = self.text.len();
    }

    fn settled(&self) -> &str {
        &self.text[..self.certain]
    }
}

/// Bytes that do not end within a character.
fn complete_len(bytes: &[u8]) -> usize {
    let start = bytes.iter().rposition(|b| b & 0xc0 != 0x80).unwrap_or(0);
    match std::str::from_utf8(&bytes[start..]) {
        Err(e) if e.error_len().is_none() => start + e.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, String, bool) {
        let mut text = Text::new(stops.iter().map(|s| s.to_string()).collect());
        let mut parts = Vec::new();
        let mut stopped = false;
        for piece in pieces {
            stopped = text.push(piece);
            parts.push(text.take_certain());
            if stopped {
                break;
            }
        }
        if !stopped {
            text.flush();
            parts.push(text.take_certain());
        }
        assert_eq!(parts.concat(), text.settled());
        (parts, text.settled().to_owned(), stopped)
    }

    #[test]
    fn characters_are_streamed_whole() {
        let (parts, text, _) = streamed(&[], &[b"a\xe2", b"\x82", b"\xac!", b"\xff", b"\xf0\x9f"]);
        assert_eq!(parts, ["a", "", "€!", "\u{fffd}", "", "\u{fffd}"]);
        assert_eq!(text, "a€!\u{fffd}\u{fffd}");
    }

    #[test]
    fn stop_strings_cut_the_text_and_are_held_back() {
        assert_eq!(streamed(&["END"], &[b"the E", b"N", b"D and"]), (vec!["the ".into(), "".into(), "".into()], "the ".into(), true));
        let (parts, text, stopped) = streamed(&["END"], &[b"the E", b"nd", b" EN"]);
        assert_eq!((parts.concat().as_str(), text.as_str(), stopped), ("the End EN", "the End EN", false));
        assert_eq!(streamed(&["aab", "b"], &[b"a", b"a", b"a", b"b"]).1, "a", "the earliest match wins");
        assert_eq!(streamed(&["\u{20ac}"], &[b"x\xe2\x82", b"\xac"]).1, "x");
    }

    #[test]
    fn bad_stop_strings_are_refused() {
        assert_eq!(stop_strings(b"a\0bc\0"), Ok(vec!["a".to_owned(), "bc".to_owned()]));
        for (bytes, refused) in [
            (&b"a"[..], Refused::BadArgument),
            (b"\0", Refused::BadArgument),
            (b"a\0\0", Refused::BadArgument),
            (b"\xff\0", Refused::BadText),
        ] {
            assert_eq!(stop_strings(bytes), Err(refused), "{bytes:?}");
        }
        assert!(stop_strings(&b"a\0".repeat(STOPS_MAX + 1)).is_err());
    }
}
