//! What an actor was before: the messages since it was last kept, the head that it continues, and the history of actors at rest.

use crate::Error;
use crate::limits::UNKEPT_TURNS_BYTES_MAX;
use driftwood_snapshot::Hash;
use driftwood_store::{Chunk, Chunks, Commit, Head, HeadTurn, write_turns};
use std::path::Path;
use std::sync::Arc;

/// Where an actor in a host comes from. Forks share it.
#[derive(Clone, Default)]
pub(crate) struct Past {
    /// The head that it continues, and the folder of its chunks.
    head: Option<(Arc<Head>, Arc<Path>)>,
    /// Messages handled since then, oldest first.
    turns: Vec<Arc<HeadTurn>>,
    /// Bytes of them.
    turns_bytes: usize,
    /// Messages that were cut off and given up.
    pub given_up: u64,
}

impl Past {
    /// That of an actor that is what a head says.
    pub(crate) fn at(head: Head, chunks: &Chunks) -> Past {
        Past { given_up: head.given_up, head: Some((Arc::new(head), chunks.root().into())), ..Past::default() }
    }

    /// Takes note of a head that was published. One that says what the head before said, but of whom, leaves that one in its place: so kept
    /// forks share it until they part.
    pub(crate) fn kept(&mut self, mut head: Head, chunks: &Chunks) {
        let continues = self.head.as_ref().filter(|(_, root)| **root == *chunks.root()).is_some_and(|(before, _)| {
            head.identity = before.identity.clone();
            head == **before
        });
        if !continues {
            *self = Past::at(head, chunks);
        }
    }

    /// Takes note of a message that was handled. If nobody keeps the actor and there are too many, its history begins later.
    pub(crate) fn handled(&mut self, turn: HeadTurn) {
        let bytes = |turn: &HeadTurn| turn.message.0.len() + turn.reply.0.len() + 4 * turn.tokens.len();
        self.turns_bytes += bytes(&turn);
        self.turns.push(Arc::new(turn));
        let mut dropped = 0;
        while self.turns_bytes > UNKEPT_TURNS_BYTES_MAX && dropped + 1 < self.turns.len() {
            self.turns_bytes -= bytes(&self.turns[dropped]);
            dropped += 1;
        }
        if dropped > 0 {
            self.turns.drain(..dropped);
            self.head = None;
        }
    }

    /// What the next head names as its former and as its turns. Without a new message it takes the place of the one that it continues.
    pub(crate) fn write(&self, chunks: &Chunks, commit: &Commit<'_>) -> Result<(Option<Chunk>, Option<Chunk>), Error> {
        let head = self.head.as_ref().filter(|(_, root)| **root == *chunks.root()).map(|(head, _)| head);
        match head {
            Some(head) if self.turns.is_empty() => Ok((head.former, head.turns)),
            _ => {
                let turns: Vec<&HeadTurn> = self.turns.iter().map(|turn| &**turn).collect();
                let former = head.map(|head| Ok::<_, Error>(commit.put(head.text()?.as_bytes())?)).transpose()?;
                Ok((former, write_turns(commit, &turns)?))
            }
        }
    }
}

/// An actor at rest at one moment of its history, and how it came there.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// Messages handled until then.
    pub turn: u64,
    /// Those that led there from the moment before.
    pub turns: Vec<HeadTurn>,
    /// What it was: [`Head::state_hash`].
    pub state: Hash,
    /// Bytes that it names: of chunks that others name, too, all of them.
    pub bytes: u64,
}

impl Moment {
    /// Its messages with their numbers: the first that an actor handles is 1.
    pub fn numbered(&self) -> impl Iterator<Item = (u64, &HeadTurn)> {
        let before = self.turn.saturating_sub(self.turns.len() as u64);
        self.turns.iter().zip(1..).map(move |(turn, number)| (before + number, turn))
    }
}

/// All moments that a head and those before it are, oldest first.
pub(crate) fn moments(head: &Head, chunks: &Chunks) -> Result<Vec<Moment>, Error> {
    let moment = |head: Result<Head, _>| {
        let head = head?;
        let (turns, state) = (head.turns(chunks)?, head.state_hash(chunks)?);
        Ok(Moment { turn: head.turn(), turns, state, bytes: head.named_bytes() })
    };
    let mut moments: Vec<Moment> = head.history(chunks).map(moment).collect::<Result<_, Error>>()?;
    moments.reverse();
    Ok(moments)
}

/// The head of an actor when it had handled `turn` messages.
pub(crate) fn head_at(head: &Head, chunks: &Chunks, turn: u64) -> Result<Head, Error> {
    let mut known = Vec::new();
    for moment in head.history(chunks) {
        let moment = moment?;
        known.push(moment.turn());
        if moment.turn() == turn {
            return Ok(moment);
        }
    }
    Err(Error::NoSuchTurn { turn, known: ranges(known) })
}

/// Numbers that fall, as text: `0 to 3, 5`.
fn ranges(falling: Vec<u64>) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in falling.into_iter().rev() {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text = |(first, last)| if first == last { format!("{first}") } else { format!("{first} to {last}") };
    ranges.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftwood_store::Text;

    #[test]
    fn turns_are_named_in_ranges() {
        for (numbers, text) in [(vec![], ""), (vec![4], "4"), (vec![7, 3, 2, 1, 0], "0 to 3, 7")] {
            assert_eq!(ranges(numbers), text);
        }
    }

    #[test]
    fn what_nobody_keeps_is_bounded() {
        let mut past = Past::default();
        let turn = HeadTurn { message: Text(vec![b'x'; UNKEPT_TURNS_BYTES_MAX / 4]), ..HeadTurn::default() };
        for _ in 0..6 {
            past.handled(turn.clone());
        }
        assert_eq!((past.turns.len(), past.turns_bytes), (4, UNKEPT_TURNS_BYTES_MAX));
        past.handled(HeadTurn { reply: Text(vec![b'x'; UNKEPT_TURNS_BYTES_MAX * 2]), ..HeadTurn::default() });
        assert_eq!((past.turns.len(), past.turns_bytes), (1, UNKEPT_TURNS_BYTES_MAX * 2), "the newest stays");
    }
}
