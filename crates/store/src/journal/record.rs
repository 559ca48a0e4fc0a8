//! The journal's format: a page that says what the file is, then records, each checked by itself. The spec stands in the crate's README.

use crate::Error;
use driftwood_snapshot::{ActorId, Hash};
use std::io::{ErrorKind, Read, Result as IoResult};

/// The format that this crate writes, and the newest that it reads.
pub const JOURNAL_VERSION: u32 = 1;
/// What a journal begins with, before its version.
const MAGIC: &str = "driftwood-journal";
/// Where records begin: the first page is written once, so that no torn write can reach it.
pub(crate) const RECORDS_AT_BYTES: u64 = 4096;
/// Bytes of one record at most: a guest's longest message and what comes with it.
pub const RECORD_BYTES_MAX: usize = 32 << 20;
/// Bytes of a journal at most: beyond them a stream neither begins nor goes on.
pub const JOURNAL_BYTES_MAX: u64 = 1 << 30;
/// Streams of one pass at most.
pub(crate) const STREAMS_MAX: u32 = 1 << 20;
/// Bytes that are read at most: a stream can be ended in a full journal, too.
const READ_BYTES_MAX: u64 = JOURNAL_BYTES_MAX + STREAMS_MAX as u64 * FRAME_BYTES as u64;
/// Length, stream, kind, salt.
const HEADER_BYTES: usize = 4 + 4 + 1 + 8;
const CHECK_BYTES: usize = 8;
/// Bytes of a record beside its payload.
pub(crate) const FRAME_BYTES: usize = HEADER_BYTES + CHECK_BYTES;
/// Identity and head in the payload of a beginning; the name is the rest.
const BASE_FIXED_BYTES: usize = 16 + 32;

/// What a stream continues: an actor's state, as its head says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The actor's name.
    pub name: String,
    /// Its identity.
    pub id: ActorId,
    /// The hash in the first line of its head.
    pub head: Hash,
}

impl Base {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        [&self.id.0[..], &self.head.0, self.name.as_bytes()].concat()
    }

    fn parse(payload: &[u8]) -> Option<Base> {
        let (id, rest) = payload.split_first_chunk::<16>()?;
        let (head, name) = rest.split_first_chunk::<32>()?;
        let name = std::str::from_utf8(name).ok()?.to_owned();
        (name.len() <= driftwood_snapshot::limits::NAME_BYTES_MAX).then_some(Base { name, id: ActorId(*id), head: Hash(*head) })
    }
}

/// What a record says of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// It begins; the payload is its [`Base`].
    Begin = 1,
    /// It goes on with the payload.
    Record = 2,
    /// It is of no more use; there is no payload.
    End = 3,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        [Kind::Begin, Kind::Record, Kind::End].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A record that is about to be written.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    /// Of this pass over the file: what an earlier one left behind has another.
    pub salt: u64,
    /// Streams are numbered from 0 in each pass.
    pub stream: u32,
    pub kind: Kind,
    /// At most [`RECORD_BYTES_MAX`].
    pub payload: &'a [u8],
}

/// The same with its check, for which no lock need be held.
pub(crate) struct Sealed<'a> {
    header: [u8; HEADER_BYTES],
    payload: &'a [u8],
    check: [u8; CHECK_BYTES],
}

impl<'a> Record<'a> {
    pub fn seal(self) -> Sealed<'a> {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&self.stream.to_le_bytes());
        header[8] = self.kind as u8;
        header[9..].copy_from_slice(&self.salt.to_le_bytes());
        Sealed { header, payload: self.payload, check: check(&header, self.payload) }
    }
}

impl Sealed<'_> {
    pub fn len_bytes(&self) -> u64 {
        (FRAME_BYTES + self.payload.len()) as u64
    }

    pub fn write_to(&self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(&self.header);
        buffer.extend_from_slice(self.payload);
        buffer.extend_from_slice(&self.check);
    }
}

fn check(header: &[u8; HEADER_BYTES], payload: &[u8]) -> [u8; CHECK_BYTES] {
    let hash = blake3::Hasher::new().update(header).update(payload).finalize();
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// The first page of a journal.
pub(crate) fn first_page() -> Vec<u8> {
    let mut page = format!("{MAGIC} {JOURNAL_VERSION}\n").into_bytes();
    page.resize(RECORDS_AT_BYTES as usize, 0);
    page
}

/// What a first page says.
#[derive(Debug, PartialEq)]
pub(crate) enum Version {
    /// A journal as this crate writes it.
    Known,
    /// One of a later version.
    Future(u32),
    /// None: its writer was killed before it was one.
    None,
    /// Something that no writer put there.
    Damaged,
}

/// What a process left of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// What the records continue.
    pub base: Base,
    /// In the order in which they were appended; every record that was durable is there, and maybe more.
    pub records: Vec<Vec<u8>>,
}

/// Reads what a first page says; records stand behind it.
pub(crate) fn read_version(from: &mut impl Read) -> IoResult<Version> {
    let mut page = [0; RECORDS_AT_BYTES as usize];
    if !fill(from, &mut page)? {
        return Ok(Version::None);
    }
    let line = page.split(|&byte| byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
    let version = line.and_then(|line| line.strip_prefix(MAGIC)?.strip_prefix(' ')?.parse().ok());
    Ok(match version {
        Some(JOURNAL_VERSION) if page[..] == first_page() => Version::Known,
        Some(found) if found > JOURNAL_VERSION => Version::Future(found),
        _ if page.iter().all(|&byte| byte == 0) => Version::None,
        _ => Version::Damaged,
    })
}

/// Reads the streams that were begun and not ended, as far as the file is intact. Payloads are held only of streams whose base `wanted` wants.
pub(crate) fn read_streams(from: impl Read, wanted: impl Fn(&Base) -> bool) -> IoResult<Vec<Left>> {
    let mut from = from.take(READ_BYTES_MAX);
    let mut streams: Vec<Option<(bool, Left)>> = Vec::new();
    let mut salt = None;
    while let Some(found) = read_record(&mut from, &mut salt)? {
        let (number, is_next) = (found.stream as usize, found.stream as usize == streams.len());
        match (found.kind, streams.get_mut(number)) {
            (Kind::Begin, None) if is_next && found.stream < STREAMS_MAX => {
                let Some(base) = Base::parse(&found.payload) else { break };
                streams.push(Some((wanted(&base), Left { base, records: Vec::new() })));
            }
            (Kind::Record, Some(Some((true, left)))) => left.records.push(found.payload),
            (Kind::Record, Some(Some((false, _)))) => {}
            (Kind::End, Some(stream @ Some(_))) => *stream = None,
            _ => break, // no writer of ours wrote that
        }
    }
    Ok(streams.into_iter().flatten().map(|(_, left)| left).collect())
}

struct Found {
    stream: u32,
    kind: Kind,
    payload: Vec<u8>,
}

/// The next record; none where the file ends, or goes on with something that is torn, or of another salt than the first.
fn read_record(from: &mut impl Read, salt: &mut Option<u64>) -> IoResult<Option<Found>> {
    let mut header = [0; HEADER_BYTES];
    if !fill(from, &mut header)? {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (len, stream) = (word(0) as usize, word(4));
    let its_salt = u64::from(word(9)) | u64::from(word(13)) << 32;
    let Some(kind) = Kind::of(header[8]) else { return Ok(None) };
    if len > payload_bytes_max(kind) || *salt.get_or_insert(its_salt) != its_salt {
        return Ok(None);
    }
    let mut payload = Vec::new();
    let mut expected = [0; CHECK_BYTES];
    from.take(len as u64).read_to_end(&mut payload)?;
    let intact = payload.len() == len && fill(from, &mut expected)? && check(&header, &payload) == expected;
    Ok(intact.then_some(Found { stream, kind, payload }))
}

fn payload_bytes_max(kind: Kind) -> usize {
    match kind {
        Kind::Begin => BASE_FIXED_BYTES + driftwood_snapshot::limits::NAME_BYTES_MAX,
        Kind::Record => RECORD_BYTES_MAX,
        Kind::End => 0,
    }
}

/// Refuses a payload that no reader would believe.
pub(crate) fn check_len(kind: Kind, payload: &[u8]) -> Result<(), Error> {
    let (bytes, bytes_max) = (payload.len(), payload_bytes_max(kind));
    if bytes <= bytes_max { Ok(()) } else { Err(Error::LongRecord { bytes, bytes_max }) }
}

/// False if the file ends before the buffer is full.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> IoResult<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Base {
        Base { name: "ada".into(), id: ActorId([1; 16]), head: Hash::of(b"head") }
    }

    fn bytes(records: &[(u64, u32, Kind, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(salt, stream, kind, payload) in records {
            Record { salt, stream, kind, payload }.seal().write_to(&mut bytes);
        }
        bytes
    }

    fn payloads(bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
        read_streams(bytes, |_| true).unwrap().into_iter().map(|left| left.records).collect()
    }

    #[test]
    fn reading_stops_at_what_no_writer_wrote() {
        use Kind::{Begin, End, Record};
        let base = base().to_bytes();
        let one = vec![vec![b"1".to_vec()]];
        let long = [&base[..], &[b'x'; 256]].concat();
        type Case<'a> = (&'a str, Vec<(u64, u32, Kind, &'a [u8])>, Vec<Vec<Vec<u8>>>);
        let table: [Case; 10] = [
            ("another salt", vec![(7, 0, Begin, &base), (7, 0, Record, b"1"), (8, 0, Record, b"2")], one.clone()),
            ("begun twice", vec![(7, 0, Begin, &base), (7, 0, Record, b"1"), (7, 0, Begin, &base), (7, 0, Record, b"2")], one.clone()),
            ("a number left out", vec![(7, 0, Begin, &base), (7, 0, Record, b"1"), (7, 2, Begin, &base)], one.clone()),
            ("an unknown stream", vec![(7, 0, Begin, &base), (7, 0, Record, b"1"), (7, 1, Record, b"2"), (7, 0, Record, b"3")], one),
            ("no beginning", vec![(7, 0, Record, b"1")], vec![]),
            ("ended", vec![(7, 0, Begin, &base), (7, 0, Record, b"1"), (7, 0, End, b"")], vec![]),
            ("after its end", vec![(7, 0, Begin, &base), (7, 0, End, b""), (7, 0, Record, b"1"), (7, 1, Begin, &base)], vec![]),
            ("an end that says something", vec![(7, 0, Begin, &base), (7, 0, End, b"x")], vec![vec![]]),
            ("a short base", vec![(7, 0, Begin, &base[..47]), (7, 0, Record, b"1")], vec![]),
            ("a long name", vec![(7, 0, Begin, &long)], vec![]),
        ];
        for (name, records, expected) in table {
            assert_eq!(payloads(&bytes(&records)), expected, "{name}");
        }
    }

    #[test]
    fn only_what_is_wanted_is_held() {
        let base = base();
        let bytes = bytes(&[(7, 0, Kind::Begin, &base.to_bytes()), (7, 0, Kind::Record, b"1")]);
        let left = read_streams(&bytes[..], |_| false).unwrap();
        assert_eq!(left, [Left { base, records: vec![] }]);
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_it_is_read() {
        let mut file = bytes(&[(7, 0, Kind::Begin, &base().to_bytes())]);
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&(RECORD_BYTES_MAX as u32 + 1).to_le_bytes());
        (header[8], header[9]) = (Kind::Record as u8, 7);
        file.extend(header);
        assert_eq!(payloads(&file), [Vec::<Vec<u8>>::new()]);
    }

    #[test]
    fn versions_are_told_apart() {
        let page = |line: &str| [line.as_bytes(), &vec![0; 4096 - line.len()]].concat();
        let table = [
            (first_page(), Version::Known),
            (page("driftwood-journal 2\n"), Version::Future(2)),
            (page("driftwood-journal 0\n"), Version::Damaged),
            (page("driftwood-journal 1"), Version::Damaged),
            (page("driftwood-head 1\n"), Version::Damaged),
            (vec![0; 4096], Version::None),
            (first_page()[..4095].to_vec(), Version::None),
            (Vec::new(), Version::None),
        ];
        for (bytes, expected) in table {
            assert_eq!(read_version(&mut &bytes[..]).unwrap(), expected, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(30)]));
        }
    }
}
