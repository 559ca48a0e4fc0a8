//! What an actor was before: each head names the one that it follows and the messages that were handled in between, so that heads are a
//! chain that is as long as the actor is old while none of them grows with its age.
//!
//! A head that brings no message takes the place of its former in the chain: it names what the former named. So the number of messages
//! falls from head to head, and a chain ends.

use crate::head::{Flaw, require};
use crate::{Chunk, Chunks, Commit, Error, Head, HeadSession};
use driftwood_snapshot::Hash;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Heads of one chain at most.
pub const HISTORY_HEADS_MAX: u64 = 10_000_000;
/// Bytes of the messages, replies and tokens that one head names.
const TURNS_BYTES_MAX: u64 = 1 << 30;

/// A message that was handled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeadTurn {
    /// What the guest received.
    pub message: Text,
    /// What it replied.
    pub reply: Text,
    /// The ids of the tokens that were generated meanwhile, in order.
    pub tokens: Vec<u32>,
}

/// Bytes that are text as a rule. In JSON: a string, or if they are no UTF-8 `{"hex": "00ff"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "TextJson", into = "TextJson")]
pub struct Text(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum TextJson {
    Text(String),
    Bytes { hex: HexBytes },
}

/// Bytes as pairs of lower-case hex digits.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct HexBytes(Vec<u8>);

impl Head {
    /// How many messages the actor has handled at this head.
    pub fn turn(&self) -> u64 {
        self.guest.as_ref().map_or(0, |guest| guest.state.messages_handled)
    }

    /// The head that this one follows, checked as any other; `None` where history begins.
    ///
    /// # Errors
    /// [`Error::BadHistory`], or if its chunk is missing or altered.
    pub fn former(&self, chunks: &Chunks) -> Result<Option<Head>, Error> {
        Link::of(self).former(chunks)
    }

    /// This head and all that it follows, newest first. Ends with the first error.
    pub fn history<'a>(&self, chunks: &'a Chunks) -> History<'a> {
        History { chunks, first: Some(Box::new(self.clone())), link: Link::of(self), left: HISTORY_HEADS_MAX }
    }

    /// The messages that were handled since the former head, oldest first.
    ///
    /// # Errors
    /// If their chunk is missing, altered, or not what [`write_turns`] writes.
    pub fn turns(&self, chunks: &Chunks) -> Result<Vec<HeadTurn>, Error> {
        let Some(chunk) = &self.turns else { return Ok(Vec::new()) };
        let bad = |why: String| Error::BadHistory { chunk: chunk.hash, why };
        let turns: Vec<HeadTurn> = serde_json::from_slice(chunks.read(chunk)?.bytes()).map_err(|e| bad(e.to_string()))?;
        let fits = !turns.is_empty() && turns.len() as u64 <= self.turn();
        if fits { Ok(turns) } else { Err(bad(format!("it has {} messages where {} were handled", turns.len(), self.turn()))) }
    }

    /// A hash of what the actor is at this head, by its meaning alone: equal wherever chunks stand, whoever wrote them and whatever is
    /// evaluated already. Two actors of one past that were told the same and chose the same tokens have the same.
    ///
    /// It is the BLAKE3 of a JSON array: the module's hash, bytes and pages (index, hash) of memory, globals, settings, random state,
    /// messages handled, and for each session in order of handles its handle, model (fingerprint, dtype of KV), bound, sampler and tokens.
    ///
    /// # Errors
    /// If a leaf or token ids are missing or altered.
    pub fn state_hash(&self, chunks: &Chunks) -> Result<Hash, Error> {
        let mut sessions: Vec<&HeadSession> = self.sessions.iter().collect();
        sessions.sort_by_key(|session| session.state.handle);
        let sessions = sessions.into_iter().map(|session| {
            let (pool, state) = (&self.pools[session.state.pool as usize], &session.state);
            Ok(json!([state.handle, pool.fingerprint, pool.dtype, state.context_max, state.sampler, session.token_ids(chunks)?]))
        });
        let sessions = sessions.collect::<Result<Vec<_>, Error>>()?;
        let guest = self.guest.as_ref().map(|guest| {
            let pages = guest.memory.pages(chunks)?.into_iter().map(|(page, chunk)| (page, chunk.hash)).collect::<Vec<_>>();
            let state = &guest.state;
            let outside = (&state.globals, &state.settings, &state.random_state, state.messages_handled);
            Ok::<_, Error>(json!([guest.module.hash, guest.memory.bytes, pages, outside]))
        });
        Ok(Hash::of(json!([guest.transpose()?, sessions]).to_string().as_bytes()))
    }

    pub(crate) fn check_history(&self) -> Result<(), Flaw> {
        let max = |chunk: &Option<Chunk>| chunk.map_or(0, |chunk| chunk.len_bytes);
        require(max(&self.turns) <= TURNS_BYTES_MAX, || format!("its turns have more than {TURNS_BYTES_MAX} bytes"))?;
        require(self.former.is_none() || self.turns.is_some(), || "it follows a head without a message in between".into())?;
        require(self.turns.is_none() || self.turn() > 0, || "it has turns and handled no message".into())
    }
}

/// A head and those before it, newest first. Each is read when it is asked for.
#[derive(Debug)]
pub struct History<'a> {
    chunks: &'a Chunks,
    first: Option<Box<Head>>,
    link: Link,
    left: u64,
}

impl History<'_> {
    /// The name of the head that comes next, if one was there already.
    pub(crate) fn upcoming(&self) -> Option<Hash> {
        self.link.former.map(|chunk| chunk.hash)
    }
}

impl Iterator for History<'_> {
    type Item = Result<Head, Error>;

    fn next(&mut self) -> Option<Result<Head, Error>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(*first));
        }
        let next = self.link.former(self.chunks).transpose()?;
        self.left = self.left.saturating_sub(1);
        let next = if self.left > 0 { next } else { Err(self.link.bad(format!("it has more than {HISTORY_HEADS_MAX} heads"))) };
        self.link = next.as_ref().map(Link::of).unwrap_or_default();
        Some(next)
    }
}

/// What a head says of the one before it.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    former: Option<Chunk>,
    turn: u64,
}

impl Link {
    fn of(head: &Head) -> Link {
        Link { former: head.former, turn: head.turn() }
    }

    fn former(&self, chunks: &Chunks) -> Result<Option<Head>, Error> {
        let Some(chunk) = &self.former else { return Ok(None) };
        let former = Head::parse(chunks.read(chunk)?.bytes()).map_err(|flaw| match flaw {
            Flaw::Future(found) => self.bad(format!("it has format {found}, which is newer than this program; update driftwood")),
            Flaw::Bad(why) => self.bad(why),
        })?;
        let falls = former.turn() < self.turn;
        if falls { Ok(Some(former)) } else { Err(self.bad("it has no fewer messages than the head that follows it".into())) }
    }

    fn bad(&self, why: String) -> Error {
        Error::BadHistory { chunk: self.former.map_or(Hash([0; 32]), |chunk| chunk.hash), why }
    }
}

/// Writes messages as one chunk; `None` of none.
///
/// # Errors
/// If the disk refuses.
pub fn write_turns(commit: &Commit<'_>, turns: &[&HeadTurn]) -> Result<Option<Chunk>, Error> {
    let json = serde_json::to_vec(turns).expect("texts and numbers are JSON");
    if turns.is_empty() { Ok(None) } else { commit.put(&json).map(Some) }
}

impl From<TextJson> for Text {
    fn from(json: TextJson) -> Text {
        match json {
            TextJson::Text(text) => Text(text.into_bytes()),
            TextJson::Bytes { hex } => Text(hex.0),
        }
    }
}

impl From<Text> for TextJson {
    fn from(text: Text) -> TextJson {
        String::from_utf8(text.0).map_or_else(|e| TextJson::Bytes { hex: HexBytes(e.into_bytes()) }, TextJson::Text)
    }
}

impl From<HexBytes> for String {
    fn from(bytes: HexBytes) -> String {
        bytes.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for HexBytes {
    type Error = &'static str;

    fn try_from(hex: String) -> Result<HexBytes, &'static str> {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err("expected lower-case hex digits"),
        };
        let pairs = hex.as_bytes().chunks(2).map(|pair| match *pair {
            [high, low] => Ok(digit(high)? << 4 | digit(low)?),
            _ => Err("expected pairs of hex digits"),
        });
        pairs.collect::<Result<_, _>>().map(HexBytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_whatever_they_are() {
        for (bytes, json) in [(&b"a\"\n\x00\xc3\xa4"[..], r#""a\"\n\u0000ä""#), (b"\xff\x00a", r#"{"hex":"ff0061"}"#), (b"", r#""""#)] {
            let text = Text(bytes.to_vec());
            assert_eq!(serde_json::to_string(&text).unwrap(), json);
            assert_eq!(serde_json::from_str::<Text>(json).unwrap(), text);
        }
        for bad in [r#"{"hex":"f"}"#, r#"{"hex":"FF"}"#, r#"{"hex":"ä"}"#, "1", "[1]", "{}"] {
            assert!(serde_json::from_str::<Text>(bad).is_err(), "{bad}");
        }
    }
}
