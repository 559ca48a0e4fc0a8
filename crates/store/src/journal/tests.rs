//! The journal on disks that fail: short writes, full ones, failed syncs, and power cuts that leave any sectors of what was not synced.

use super::record::{RECORDS_AT_BYTES, read_streams};
use super::*;
use driftwood_snapshot::Hash;
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::sync::{Mutex, MutexGuard};

const SECTOR_BYTES: usize = 512;
const NO_SPACE: i32 = 28;
const IO: i32 = 5;

/// A disk that remembers what was synced, and does what the test says.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// What a power cut leaves in any case.
    synced: Vec<u8>,
    /// What it may leave, sector by sector.
    pending: Vec<(usize, Vec<u8>)>,
    /// Bytes that one write takes.
    write_bytes_max: Option<usize>,
    /// Bytes that still fit.
    room_bytes: Option<usize>,
    /// How many syncs fail.
    failing_syncs: u32,
    /// Every second write is interrupted.
    interrupts: bool,
    writes: u32,
    /// Data is not kept.
    forgets: bool,
}

impl Script {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn journal(&self) -> Arc<Journal> {
        Journal::on(Box::new(self.clone()), PathBuf::from("journal"), Durability::Disk).unwrap()
    }
}

impl Disk for Script {
    fn write_at(&mut self, bytes: &[u8], at_bytes: u64) -> IoResult<usize> {
        let mut inner = self.inner();
        inner.writes += 1;
        if inner.interrupts && inner.writes % 2 == 1 {
            return Err(ErrorKind::Interrupted.into());
        }
        let fits = inner.room_bytes.unwrap_or(usize::MAX).min(inner.write_bytes_max.unwrap_or(usize::MAX)).min(bytes.len());
        if inner.room_bytes == Some(0) {
            return Err(IoError::from_raw_os_error(NO_SPACE));
        }
        inner.room_bytes = inner.room_bytes.map(|room| room - fits);
        if !inner.forgets {
            inner.pending.push((at_bytes as usize, bytes[..fits].to_vec()));
        }
        Ok(fits)
    }

    fn sync(&mut self) -> IoResult<()> {
        let mut inner = self.inner();
        if inner.failing_syncs > 0 {
            inner.failing_syncs -= 1;
            inner.pending.clear(); // as a system does that marks the pages clean
            return Err(IoError::from_raw_os_error(IO));
        }
        let pending = std::mem::take(&mut inner.pending);
        pending.iter().for_each(|(at, bytes)| put(&mut inner.synced, *at, bytes));
        Ok(())
    }
}

fn put(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    image.resize(image.len().max(at + bytes.len()), 0);
    image[at..][..bytes.len()].copy_from_slice(bytes);
}

impl Inner {
    /// What a power cut leaves: all that was synced, and of the rest the sectors that `keeps` says.
    fn cut(&self, mut keeps: impl FnMut() -> bool) -> Vec<u8> {
        let mut image = self.synced.clone();
        for (at, bytes) in &self.pending {
            let mut from = 0;
            while from < bytes.len() {
                let to = bytes.len().min((at + from + 1).next_multiple_of(SECTOR_BYTES) - at);
                if keeps() {
                    put(&mut image, at + from, &bytes[from..to]);
                }
                from = to;
            }
        }
        image
    }
}

fn base(name: &str) -> Base {
    Base { name: name.into(), id: ActorId([1; 16]), head: Hash::of(name.as_bytes()) }
}

fn left(image: &[u8]) -> Vec<Left> {
    read_streams(image.get(RECORDS_AT_BYTES as usize..).unwrap_or_default(), |_| true).unwrap()
}

fn refusal(result: Result<impl fmt::Debug, Error>) -> (&'static str, Option<i32>) {
    match result {
        Err(Error::System { operation, source, .. }) => (operation, source.raw_os_error()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn short_and_interrupted_writes_are_gone_on_with() {
    let disk = Script::default();
    (disk.inner().write_bytes_max, disk.inner().interrupts) = (Some(1000), true);
    let stream = disk.journal().begin(&base("ada")).unwrap();
    let records: Vec<Vec<u8>> = (0..50u8).map(|n| vec![n; 100 * n as usize]).collect();
    let last = records.iter().map(|record| stream.append(record).unwrap()).max().unwrap();
    stream.journal().wait(last).unwrap();
    assert_eq!(stream.journal().durable(), last);
    assert_eq!(left(&disk.inner().synced), [Left { base: base("ada"), records }]);
}

#[test]
fn a_disk_that_takes_nothing_is_an_error() {
    let disk = Script::default();
    disk.inner().write_bytes_max = Some(0);
    let stream = disk.journal().begin(&base("ada")).unwrap();
    let error = stream.journal().wait(1).unwrap_err();
    assert!(matches!(&error, Error::System { source, .. } if source.kind() == ErrorKind::WriteZero), "{error}");
}

#[test]
fn a_full_disk_is_said_to_everybody_from_then_on() {
    let disk = Script::default();
    let journal = disk.journal();
    let (ada, bob) = (journal.begin(&base("ada")).unwrap(), journal.begin(&base("bob")).unwrap());
    let kept = ada.append(b"kept").unwrap();
    journal.wait(kept).unwrap();
    disk.inner().room_bytes = Some(10);
    let lost = bob.append(b"lost").unwrap();
    let full = ("write the journal", Some(NO_SPACE));
    assert_eq!(refusal(journal.wait(lost)), full);
    disk.inner().room_bytes = None;
    assert_eq!(refusal(ada.append(b"more")), full);
    assert_eq!(refusal(journal.begin(&base("eve"))), full);
    assert_eq!(refusal(journal.wait(lost)), full);
    assert_eq!(refusal(bob.end()), full);
    journal.wait(kept).unwrap();
    let image = disk.inner().cut(|| true);
    assert_eq!(left(&image)[0], Left { base: base("ada"), records: vec![b"kept".to_vec()] });
}

#[test]
fn after_a_failed_sync_nothing_is_called_durable() {
    let disk = Script::default();
    let stream = disk.journal().begin(&base("ada")).unwrap();
    stream.journal().wait(1).unwrap();
    disk.inner().failing_syncs = 1;
    let lost = stream.append(b"lost").unwrap();
    let failed = ("make durable the journal", Some(IO));
    assert_eq!(refusal(stream.journal().wait(lost)), failed);
    let writes = disk.inner().writes;
    assert_eq!(refusal(stream.append(b"more")), failed);
    assert_eq!((refusal(stream.journal().wait(lost)), stream.journal().durable()), (failed, lost - 1));
    drop(stream);
    assert_eq!(disk.inner().writes, writes, "a disk that failed is left alone");
}

#[test]
fn the_text_of_a_refusal_names_file_and_reason() {
    let disk = Script::default();
    disk.inner().room_bytes = Some(0);
    let stream = disk.journal().begin(&base("ada")).unwrap();
    assert!(stream.journal().wait(1).unwrap_err().to_string().starts_with("cannot write the journal journal: No space left on device"));
}

#[test]
fn a_journal_and_its_records_are_bounded() {
    let disk = Script::default();
    disk.inner().forgets = true;
    let stream = disk.journal().begin(&base("ada")).unwrap();
    let long = vec![0; RECORD_BYTES_MAX + 1];
    assert!(matches!(stream.append(&long), Err(Error::LongRecord { bytes_max: RECORD_BYTES_MAX, .. })));
    let name = "x".repeat(256);
    assert!(matches!(stream.journal().begin(&base(&name)), Err(Error::LongRecord { bytes_max: 303, .. })));
    let appended = (0..).find_map(|n| stream.append(&long[1..]).err().map(|error| (n, error))).unwrap();
    assert!(matches!(appended, (31, Error::JournalFull { .. })), "{appended:?}");
    assert!(stream.journal().len_bytes() <= JOURNAL_BYTES_MAX);
    let journal = stream.journal().clone();
    stream.end().unwrap();
    let again = journal.begin(&base("ada")).unwrap();
    again.append(b"there is room in the next pass").unwrap();
    assert!(journal.len_bytes() < 1 << 20);
}

/// Seeded numbers, so that what failed can be run again.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Streams begin, go on and end at random, and at random moments the power is cut: what was waited for is there, in its order and with
/// nothing else in between, and what ended durably does not come back.
#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_waited_for() {
    for seed in 0..60 {
        let (disk, mut random) = (Script::default(), Seeded(seed));
        let journal = disk.journal();
        let mut open: Vec<(Base, Stream, Vec<Vec<u8>>)> = Vec::new();
        let mut ended: Vec<Base> = Vec::new();
        for step in 0..200u64 {
            match random.below(8) {
                0 if open.len() < 4 => {
                    let base = base(&format!("{seed} {step}"));
                    open.push((base.clone(), journal.begin(&base).unwrap(), Vec::new()));
                }
                1 | 2 if !open.is_empty() => {
                    let (base, stream, _) = open.swap_remove(random.below(open.len() as u64) as usize);
                    let sequence = stream.end().unwrap();
                    if random.below(2) == 0 {
                        journal.wait(sequence).unwrap();
                        ended.push(base);
                    }
                }
                _ if !open.is_empty() => {
                    let at = random.below(open.len() as u64) as usize;
                    let record = vec![step as u8; random.below(900) as usize];
                    open[at].1.append(&record).unwrap();
                    open[at].2.push(record);
                }
                _ => {}
            }
            if random.below(4) == 0 {
                // What is open now was begun, and all of it waited for; the cut itself may fall into whatever the thread does meanwhile.
                let last = open.iter().map(|(_, stream, _)| stream.append(b"last").unwrap()).max();
                open.iter_mut().for_each(|(_, _, records)| records.push(b"last".to_vec()));
                last.into_iter().for_each(|last| journal.wait(last).unwrap());
            }
            let image = disk.inner().cut(|| random.below(2) == 0);
            let found = left(&image);
            assert!(found.iter().all(|left| !ended.contains(&left.base)), "seed {seed}, step {step}: a stream came back");
            for left in &found {
                let Some((_, _, records)) = open.iter().find(|(base, ..)| *base == left.base) else { continue };
                assert!(records.starts_with(&left.records), "seed {seed}, step {step}: other records");
            }
            for (base, _, records) in &open {
                let waited = records.iter().rposition(|record| record == b"last").map_or(0, |at| at + 1);
                let there = found.iter().find(|left| left.base == *base).map_or(0, |left| left.records.len());
                assert!(there >= waited, "seed {seed}, step {step}: {there} of {waited} records");
            }
        }
    }
}
