//! Recordings as bytes: what an actor's journal holds of each message, and what a snapshot carries of one that is parked.
//!
//! A record is a kind and its fields, little-endian:
//!
//! ```text
//! 0 message      u32 length, the message, JSON of its settings
//! 1 token        u64 fuel used, u32 token
//! 2 logits       u64 fuel used, 32 bytes of hash, the logits or nothing
//! 3 time         u64 fuel used, i64 milliseconds
//! 4 interrupted  u64 fuel used
//! 5 failed       u64 fuel used, text
//! 6 computed     u64 fuel used, 32 bytes of hash
//! 7 done         the message was handled
//! 8 undone       the message failed and had no effect
//! ```

use crate::Error;
use crate::tape::{Answer, Recording, Taped};
use driftwood_snapshot::Hash;
use driftwood_store::{Base, Durability, Journal, Stream, left_behind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

const MESSAGE: u8 = 0;
const TOKEN: u8 = 1;
const LOGITS: u8 = 2;
const TIME: u8 = 3;
const INTERRUPTED: u8 = 4;
const FAILED: u8 = 5;
const COMPUTED: u8 = 6;
const DONE: u8 = 7;
const UNDONE: u8 = 8;

/// A journal that is longer serves the streams that it has, and no new ones.
const JOURNAL_BYTES_ENOUGH: u64 = 256 << 20;

/// The folder of journals, and the one of this process: made when it is first needed.
#[derive(Clone, Debug)]
pub(crate) struct Journals {
    folder: PathBuf,
    durability: Durability,
    own: Arc<Mutex<Own>>,
}

/// The journals of this process.
#[derive(Debug, Default)]
struct Own {
    /// Where streams begin now.
    current: Option<Arc<Journal>>,
    /// Those that were too long for more.
    older: Vec<Weak<Journal>>,
}

impl Journals {
    pub(crate) fn new(folder: PathBuf, durability: Durability) -> Journals {
        Journals { folder, durability, own: Arc::default() }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What dead processes have recorded since a head.
    ///
    /// # Errors
    /// If journals cannot be read, or this program did not write them.
    pub(crate) fn left(&self, base: &Base) -> Result<Left, Error> {
        let own = {
            let held = self.held();
            let older = held.older.iter().filter_map(Weak::upgrade);
            held.current.iter().cloned().chain(older).map(|journal| journal.path().to_owned()).collect::<Vec<_>>()
        };
        let records = left_behind(&self.folder, &own, base)?.map(|left| left.records).unwrap_or_default();
        let recordings = recordings(records.iter().map(Vec::as_slice))?;
        Ok(Left { records, recordings })
    }

    /// The journal for streams that begin now.
    fn own(&self) -> Result<Arc<Journal>, Error> {
        let mut held = self.held();
        if let Some(journal) = held.current.as_ref().filter(|journal| journal.len_bytes() < JOURNAL_BYTES_ENOUGH && !journal.has_failed()) {
            return Ok(journal.clone());
        }
        let journal = Journal::create(&self.folder, self.durability)?;
        held.older.retain(|journal| journal.strong_count() > 0);
        let former = held.current.replace(journal.clone());
        held.older.extend(former.as_ref().map(Arc::downgrade));
        Ok(journal)
    }

    fn held(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What dead processes have left of an actor.
#[derive(Debug)]
pub(crate) struct Left {
    records: Vec<Vec<u8>>,
    /// The messages that may have had an effect.
    pub recordings: Vec<Recording>,
}

/// Where an actor's recordings are made durable: its stream in the journal of this process, begun with the first record.
#[derive(Debug)]
pub(crate) struct Log {
    journals: Journals,
    base: Base,
    stream: Option<Stream>,
    last: u64,
    /// Whether the message that comes next is recorded already.
    accepted: bool,
    /// Whether a record is of use to somebody who goes on: a message was handled since the base, or is being handled.
    of_use: bool,
    in_message: bool,
}

impl Log {
    /// A log of what follows on a head.
    pub(crate) fn new(journals: Journals, base: Base) -> Log {
        Log { journals, base, stream: None, last: 0, accepted: false, of_use: false, in_message: false }
    }

    /// A log of what follows on what dead processes have left since a head. It has every record of theirs, those of messages that failed, too:
    /// of several streams that continue one head the longest has all that the others have.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub(crate) fn after(journals: Journals, base: Base, left: &Left) -> Result<Log, Error> {
        let mut log = Log::new(journals, base);
        log.take_over(&left.records, !left.recordings.is_empty())?;
        Ok(log)
    }

    /// Records a message that comes, unless [`Log::accept`] has.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub(crate) fn message(&mut self, message: &[u8], overrides: &BTreeMap<String, String>) -> Result<(), Error> {
        self.in_message = true;
        if std::mem::take(&mut self.accepted) { Ok(()) } else { self.append(&message_record(message, overrides)) }
    }

    /// Records the message that the actor will handle next, and waits until it is on disk.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub(crate) fn accept(&mut self, message: &[u8], overrides: &BTreeMap<String, String>) -> Result<(), Error> {
        self.append(&message_record(message, overrides))?;
        self.wait()?; // if that fails nobody was told that the message is recorded: it is dropped with the stream
        (self.accepted, self.in_message) = (true, true);
        Ok(())
    }

    /// Appends a record. It becomes durable soon.
    ///
    /// # Errors
    /// If the journal cannot be written any more.
    pub(crate) fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        let stream = match &self.stream {
            Some(stream) => stream,
            None => self.stream.insert(self.journals.own()?.begin(&self.base)?),
        };
        self.last = stream.append(record)?;
        Ok(())
    }

    /// The number of the last record of a message or an answer.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Whether that record, and so all before it, are on disk.
    pub(crate) fn is_durable(&self, number: u64) -> bool {
        self.stream.as_ref().is_none_or(|stream| stream.journal().durable() >= number)
    }

    /// Whether all answers are on disk; the error if they never will be, nothing while that is not known.
    pub(crate) fn is_settled(&self) -> Option<Result<(), Error>> {
        let failed = self.stream.as_ref().is_some_and(|stream| stream.journal().has_failed());
        (failed || self.is_durable(self.last)).then(|| self.wait())
    }

    /// Waits until all answers are on disk.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        match &self.stream {
            Some(stream) => Ok(stream.journal().wait(self.last)?),
            None => Ok(()),
        }
    }

    /// Records the end of a message. Nobody need wait for that: from the answers before it a replay comes to the same end.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub(crate) fn end(&mut self, done: bool) -> Result<(), Error> {
        let last = self.last;
        self.append(&[if done { DONE } else { UNDONE }])?;
        self.last = last;
        self.in_message = false;
        self.of_use |= done;
        Ok(())
    }

    /// Takes over records that others have made.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub(crate) fn take_over(&mut self, records: &[Vec<u8>], of_use: bool) -> Result<(), Error> {
        self.of_use |= of_use;
        records.iter().try_for_each(|record| self.append(record))
    }

    /// A head holds all that was recorded: what follows continues that one. Whether the journal can still be told so makes no difference: nobody
    /// goes on from a head that was replaced.
    pub(crate) fn rebase(&mut self, base: Base) {
        self.base = base;
        self.of_use = false;
        let _ = self.stream.take().map(Stream::end);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // A message that was accepted and never begun, since its actor could not be woken, is withdrawn: whoever sent it was told of an error.
        let under_way = self.in_message && !self.accepted;
        if let Some(stream) = self.stream.take().filter(|_| !self.of_use && !under_way) {
            let _ = stream.end(); // nobody loses anything by records of messages that failed
        }
    }
}

/// The record of a message that came.
pub(crate) fn message_record(message: &[u8], overrides: &BTreeMap<String, String>) -> Vec<u8> {
    let settings = serde_json::to_vec(overrides).expect("texts always serialise");
    [&[MESSAGE][..], &(message.len() as u32).to_le_bytes(), message, &settings].concat()
}

/// The record of an answer.
pub(crate) fn answer_record(taped: &Taped) -> Vec<u8> {
    let (kind, fields): (u8, Vec<u8>) = match &taped.answer {
        Answer::Token(token) => (TOKEN, token.to_le_bytes().to_vec()),
        Answer::Logits(hash, bytes) => (LOGITS, [&hash.0[..], bytes.as_deref().unwrap_or_default()].concat()),
        Answer::TimeMs(time) => (TIME, time.to_le_bytes().to_vec()),
        Answer::Interrupted => (INTERRUPTED, Vec::new()),
        Answer::Failed(why) => (FAILED, why.as_bytes().to_vec()),
        Answer::Computed(hash) => (COMPUTED, hash.0.to_vec()),
    };
    [&[kind][..], &taped.fuel_used.to_le_bytes(), &fields].concat()
}

/// All records of some messages.
pub(crate) fn records_of(recordings: &[Recording]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    for recording in recordings {
        records.push(message_record(&recording.message, &recording.overrides));
        records.extend(recording.answers.iter().map(answer_record));
        records.extend(recording.done.then(|| vec![DONE]));
    }
    records
}

/// The messages that records tell of. Those that had no effect are left out; only the last may be without its end.
///
/// # Errors
/// If the records are not such as this module writes.
pub(crate) fn recordings<'a>(records: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Recording>, Error> {
    let mut recordings: Vec<Recording> = Vec::new();
    let mut open: Option<Recording> = None;
    for (at, record) in records.into_iter().enumerate() {
        let bad = || Error::BadJournal { at };
        let (&kind, fields) = record.split_first().ok_or_else(bad)?;
        match (kind, &mut open) {
            (MESSAGE, None) => open = Some(parse_message(fields).ok_or_else(bad)?),
            (DONE, Some(_)) if fields.is_empty() => recordings.extend(open.take().map(|recording| Recording { done: true, ..recording })),
            (UNDONE, Some(_)) if fields.is_empty() => open = None,
            (TOKEN..=COMPUTED, Some(recording)) => recording.answers.push(parse_answer(kind, fields).ok_or_else(bad)?),
            _ => return Err(bad()),
        }
    }
    recordings.extend(open);
    Ok(recordings)
}

fn parse_message(fields: &[u8]) -> Option<Recording> {
    let (length, rest) = fields.split_first_chunk()?;
    let (message, settings) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let overrides = serde_json::from_slice(settings).ok()?;
    Some(Recording { message: message.to_vec(), overrides, ..Recording::default() })
}

fn parse_answer(kind: u8, fields: &[u8]) -> Option<Taped> {
    let (fuel, rest) = fields.split_first_chunk()?;
    let hash = |bytes: &[u8]| bytes.try_into().ok().map(Hash);
    let answer = match kind {
        TOKEN => Answer::Token(u32::from_le_bytes(rest.try_into().ok()?)),
        LOGITS => {
            let (own, bytes) = rest.split_at_checked(32)?;
            Answer::Logits(hash(own)?, (!bytes.is_empty()).then(|| bytes.into()))
        }
        TIME => Answer::TimeMs(i64::from_le_bytes(rest.try_into().ok()?)),
        INTERRUPTED if rest.is_empty() => Answer::Interrupted,
        FAILED => Answer::Failed(std::str::from_utf8(rest).ok()?.to_owned()),
        COMPUTED => Answer::Computed(hash(rest)?),
        _ => return None,
    };
    Some(Taped { fuel_used: u64::from_le_bytes(*fuel), answer })
}

/// Records behind one another, each behind its length, as a snapshot carries them.
pub(crate) fn pack(records: &[Vec<u8>]) -> Vec<u8> {
    records.iter().flat_map(|record| (record.len() as u32).to_le_bytes().into_iter().chain(record.iter().copied())).collect()
}

/// The records of [`pack`].
///
/// # Errors
/// If a length is not that of its record.
pub(crate) fn unpack(mut packed: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let mut records = Vec::new();
    while !packed.is_empty() {
        let bad = || Error::BadJournal { at: records.len() };
        let (length, rest) = packed.split_first_chunk().ok_or_else(bad)?;
        let (record, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(bad)?;
        records.push(record);
        packed = rest;
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<Recording> {
        let answers = [
            Answer::Token(7),
            Answer::Logits(Hash([3; 32]), None),
            Answer::Logits(Hash([4; 32]), Some([1, 2, 3, 4].as_slice().into())),
            Answer::TimeMs(-5),
            Answer::Interrupted,
            Answer::Failed("the device is gone".into()),
            Answer::Computed(Hash([5; 32])),
        ];
        let answers = (10..).zip(answers).map(|(fuel_used, answer)| Taped { fuel_used, answer }).collect();
        let overrides = BTreeMap::from([("seed".to_owned(), "1".to_owned())]);
        let first = Recording { message: b"hello".to_vec(), overrides, answers, done: true };
        vec![first, Recording { message: Vec::new(), ..Recording::default() }]
    }

    #[test]
    fn recordings_come_back_from_their_records() {
        let packed = pack(&records_of(&some()));
        let records = unpack(&packed).unwrap();
        assert_eq!(recordings(records.iter().copied()).unwrap(), some());
        let with_undone: Vec<&[u8]> = records.iter().copied().chain([&[UNDONE][..]]).collect();
        assert_eq!(recordings(with_undone).unwrap(), some()[..1], "a message that failed leaves nothing");
    }

    #[test]
    fn records_that_are_none_are_refused() {
        let message = message_record(b"x", &BTreeMap::new());
        let token = answer_record(&Taped { fuel_used: 1, answer: Answer::Token(1) });
        let cases: [&[&[u8]]; 9] = [
            &[&[]],
            &[&token],
            &[&message, &message],
            &[&message, &token[..12]],
            &[&message, &[9]],
            &[&message, &[DONE, 0]],
            &[&message, &[DONE], &[DONE]],
            &[&message[..3]],
            &[&[MESSAGE, 9, 0, 0, 0, b'x', b'{', b'}']],
        ];
        for (at, case) in cases.iter().enumerate() {
            assert!(matches!(recordings(case.iter().copied()), Err(Error::BadJournal { .. })), "case {at}");
        }
        for bad in [&[1][..], &[1, 0, 0, 0], &[200, 0, 0, 0, 1]] {
            assert!(matches!(unpack(bad), Err(Error::BadJournal { .. })), "{bad:?}");
        }
    }
}
