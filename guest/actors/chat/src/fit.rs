//! How much of a transcript fits a context: all of it, or what is left without its oldest turns.

use alloc::format;

use driftwood_guest::{Error, Message, Result};

use crate::feed::Feed;

/// How many tokens a session can hold, and how many of them the reply shall find free.
#[derive(Clone, Copy)]
pub struct Room {
    context: u32,
    reserve: u32,
}

/// What fits.
#[derive(Debug, PartialEq)]
pub struct Fitted {
    /// How many of the oldest turns (a question and its reply) must go.
    pub dropped: usize,
    /// How to feed the rest.
    pub feed: Feed,
}

impl Room {
    /// A reply may take `max_tokens`, but a quarter of the context is enough to begin with.
    pub fn new(context: u32, max_tokens: u32) -> Room {
        Room { context, reserve: max_tokens.min(context / 4) }
    }

    fn holds(self, length: u32, free: u32) -> bool {
        length.saturating_add(free) <= self.context
    }
}

/// Drops as few turns as it takes, or rather, once some must go, as many as it takes to leave a quarter of the context free, so that
/// not every message from then on pays for prefilling again. The last message stays; where it fits alone, it is tried.
///
/// # Errors
/// If the last message is too long by itself, or planning fails.
pub fn fit(turns: &[Message], room: Room, mut plan: impl FnMut(&[Message]) -> Result<Feed>) -> Result<Fitted> {
    let feed = plan(turns)?;
    if room.holds(feed.length(), room.reserve) {
        return Ok(Fitted { dropped: 0, feed });
    }
    // The fewest turns to drop lie in low..=high: a longer transcript has a longer rendering.
    let (mut low, mut high) = (1, turns.len() / 2);
    while low < high {
        let middle = (low + high) / 2;
        let fits = room.holds(plan(&turns[2 * middle..])?.length(), room.context / 4);
        (low, high) = if fits { (low, middle) } else { (middle + 1, high) };
    }
    let feed = plan(&turns[2 * high..])?;
    if room.holds(feed.length(), 1) {
        return Ok(Fitted { dropped: high, feed });
    }
    let (length, context) = (feed.length(), room.context);
    Err(Error::Failed(format!("the message is too long: {length} tokens with its prompt, and the context holds {context}; shorten it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transcript in which every message has as many tokens as its text has bytes; a prompt of 10 comes before.
    fn fit_lengths(lengths: &[usize], context: u32, max_tokens: u32) -> Result<(usize, u32)> {
        let turns: Vec<Message> = lengths.iter().map(|length| Message::user("x".repeat(*length))).collect();
        let plan = |turns: &[Message]| {
            let length = 10 + turns.iter().map(|turn| turn.content.len() as u32).sum::<u32>();
            Ok(Feed { kept: 0, tokens: vec![0; length as usize], rendering: String::new() })
        };
        fit(&turns, Room::new(context, max_tokens), plan).map(|fitted| (fitted.dropped, fitted.feed.length()))
    }

    #[test]
    fn what_fits_stays_whole() {
        assert_eq!(fit_lengths(&[5], 100, 512), Ok((0, 15)));
        assert_eq!(fit_lengths(&[20, 20, 25], 100, 512), Ok((0, 75)));
        assert_eq!(fit_lengths(&[30, 30, 25], 100, 5), Ok((0, 95)));
    }

    #[test]
    fn oldest_turns_go_until_a_quarter_is_free() {
        assert_eq!(fit_lengths(&[20, 20, 26], 100, 512), Ok((1, 36)));
        assert_eq!(fit_lengths(&[10, 10, 10, 10, 10, 10, 10, 10, 10], 100, 512), Ok((2, 60)));
        // One token too many of a small reserve drops to a quarter all the same.
        assert_eq!(fit_lengths(&[10, 10, 10, 10, 10, 10, 10, 6, 10], 100, 5), Ok((2, 56)));
    }

    #[test]
    fn the_last_message_is_tried_alone() {
        assert_eq!(fit_lengths(&[10, 10, 85], 100, 512), Ok((1, 95)));
        assert_eq!(fit_lengths(&[89], 100, 512), Ok((0, 99)));
    }

    #[test]
    fn a_message_too_long_is_an_error() {
        for lengths in [&[90][..], &[10, 10, 90], &[10, 10, 10, 10, 400]] {
            let error = fit_lengths(lengths, 100, 512).unwrap_err();
            assert!(error.to_string().contains("the message is too long: "), "{error}");
        }
    }
}
