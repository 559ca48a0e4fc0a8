//! From a buffer to the disk: what streams append is gathered under a lock, and a thread of its own makes it durable, all that is there at a time.
//!
//! When the last open stream ends, its pass over the file is over: the buffer is dropped, the pass's first record is wiped on disk, and the
//! next stream begins a pass with a salt of its own at the file's beginning. Only after the wipe is durable is a new pass written, so that no
//! torn write can bring back a pass that is over.

use super::record::{Base, JOURNAL_BYTES_MAX, Kind, RECORDS_AT_BYTES, Record, STREAMS_MAX, Sealed, check_len};
use crate::Error;
use driftwood_snapshot::ActorId;
use std::fs::File;
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The file grows by this much: within it, syncing data need not sync the file's size and place, too.
pub(super) const STEP_BYTES: u64 = 1 << 20;
/// Whoever appends waits while more than this is not on its way to the disk.
const BUFFER_BYTES_MAX: usize = 16 << 20;
/// From the beginning of a sync to that of the next, where nobody waits for it: a sync takes some hundred microseconds from whoever computes on the
/// same cores, and nobody reads faster.
const SYNC_DISTANCE: Duration = Duration::from_millis(10);
/// What is wiped of a pass that is over: a part of its first record is enough, and one sector is never torn.
const WIPE_BYTES: usize = 512;

/// Where a journal stands. Tests put broken ones here.
pub(super) trait Disk: Send {
    /// Writes some of the bytes; answers how many.
    fn write_at(&mut self, bytes: &[u8], at_bytes: u64) -> IoResult<usize>;
    /// Makes durable what was written.
    fn sync(&mut self) -> IoResult<()>;
}

impl Disk for File {
    fn write_at(&mut self, bytes: &[u8], at_bytes: u64) -> IoResult<usize> {
        FileExt::write_at(self, bytes, at_bytes)
    }

    fn sync(&mut self) -> IoResult<()> {
        self.sync_data()
    }
}

/// What those who append, those who wait and the thread that writes have in common.
pub(super) struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// There is something to write.
    work: Condvar,
    /// Something was written, or will never be.
    done: Condvar,
    durable: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Records that the thread has not taken yet.
    buffer: Vec<u8>,
    /// Where the buffer belongs.
    at_bytes: u64,
    /// The pass before is to be wiped first.
    wipe: bool,
    /// Of this pass.
    salt: u64,
    /// Streams that this pass has seen, and how many of them are open.
    streams: u32,
    open: u32,
    /// How many records were ever appended.
    sequence: u64,
    /// The thread waits for work.
    asleep: bool,
    /// Somebody waits for what is in the buffer.
    urgent: bool,
    /// Nobody appends any more.
    closed: bool,
    failure: Option<Failure>,
}

/// A disk's refusal, which everybody gets from then on: what a failed sync has lost, a later one does not bring back.
struct Failure {
    operation: &'static str,
    source: IoError,
}

/// What the thread takes at a time.
#[derive(Default)]
struct Group {
    bytes: Vec<u8>,
    at_bytes: u64,
    wipe: bool,
    /// The last record in it.
    sequence: u64,
}

impl Shared {
    pub fn new(path: PathBuf) -> Shared {
        let state = State { at_bytes: RECORDS_AT_BYTES, ..State::default() };
        Shared { path, state: Mutex::new(state), work: Condvar::new(), done: Condvar::new(), durable: AtomicU64::new(0) }
    }

    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub fn wait(&self, sequence: u64) -> Result<(), Error> {
        if self.durable() >= sequence {
            return Ok(());
        }
        let mut state = held(&self.state);
        let sequence = sequence.min(state.sequence);
        while self.durable() < sequence {
            state.check(self)?;
            state = self.hurried(state);
        }
        Ok(())
    }

    pub fn has_failed(&self) -> bool {
        held(&self.state).failure.is_some()
    }

    /// Bytes of the pass that is under way.
    pub fn len_bytes(&self) -> u64 {
        held(&self.state).len_bytes()
    }

    /// Whether no stream is open.
    pub fn is_over(&self) -> bool {
        held(&self.state).open == 0
    }

    /// Salt and number of a new stream.
    pub fn begin(&self, base: &Base) -> Result<(u64, u32), Error> {
        let payload = base.to_bytes();
        check_len(Kind::Begin, &payload)?;
        let mut state = self.with_room()?;
        if state.open == 0 {
            let [a, b, c, d, e, f, g, h, ..] = ActorId::mint()?.0;
            (state.salt, state.streams) = (u64::from_le_bytes([a, b, c, d, e, f, g, h]), 0);
        }
        let (salt, stream) = (state.salt, state.streams);
        let sealed = Record { salt, stream, kind: Kind::Begin, payload: &payload }.seal();
        if stream == STREAMS_MAX || state.len_bytes() + sealed.len_bytes() > JOURNAL_BYTES_MAX {
            return Err(self.full());
        }
        state.push(&sealed);
        (state.streams, state.open) = (stream + 1, state.open + 1);
        self.wake(state);
        Ok((salt, stream))
    }

    pub fn append(&self, sealed: &Sealed<'_>) -> Result<u64, Error> {
        let mut state = self.with_room()?;
        if state.len_bytes() + sealed.len_bytes() > JOURNAL_BYTES_MAX {
            return Err(self.full());
        }
        state.push(sealed);
        Ok(self.wake(state))
    }

    pub fn end(&self, sealed: &Sealed<'_>) -> Result<u64, Error> {
        let mut state = held(&self.state);
        state.open -= 1;
        state.check(self)?;
        state.push(sealed);
        if state.open == 0 {
            state.buffer.clear();
            (state.at_bytes, state.wipe) = (RECORDS_AT_BYTES, true);
        }
        Ok(self.wake(state))
    }

    pub fn close(&self) {
        let mut state = held(&self.state);
        state.closed = true;
        self.wake(state);
    }

    /// The state, once its buffer has room again.
    fn with_room(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = held(&self.state);
        while state.buffer.len() > BUFFER_BYTES_MAX && state.failure.is_none() {
            state = self.hurried(state);
        }
        state.check(self)?;
        Ok(state)
    }

    /// Waits for the thread, which waits for nothing else then.
    fn hurried<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.urgent = true;
        self.work.notify_one();
        waited(&self.done, state)
    }

    /// Wakes the thread if it sleeps: it need not be told twice. Answers the sequence number of the last record.
    fn wake(&self, mut state: MutexGuard<'_, State>) -> u64 {
        let (sequence, asleep) = (state.sequence, std::mem::take(&mut state.asleep));
        drop(state);
        if asleep {
            self.work.notify_one();
        }
        sequence
    }

    fn full(&self) -> Error {
        Error::JournalFull { path: self.path.clone(), bytes_max: JOURNAL_BYTES_MAX }
    }

    /// The thread: until the journal is closed and everything written, or the disk fails.
    pub fn run(&self, mut disk: Box<dyn Disk>, syncs: bool) {
        let mut group = Group::default();
        let mut len_bytes = RECORDS_AT_BYTES + STEP_BYTES;
        let mut next = Instant::now();
        while self.take(&mut group, next) {
            if syncs {
                next = Instant::now() + SYNC_DISTANCE;
            }
            let written = group.write(disk.as_mut(), syncs, &mut len_bytes);
            let mut state = held(&self.state);
            match written {
                Ok(()) => self.durable.store(group.sequence, Ordering::Release),
                Err(failure) => state.failure = Some(failure),
            }
            let failed = state.failure.is_some();
            drop(state);
            self.done.notify_all();
            if failed {
                return;
            }
        }
    }

    /// Waits for something to write, and until then where nobody is in a hurry, and takes all of it; false once there will be nothing any more.
    fn take(&self, group: &mut Group, then: Instant) -> bool {
        let mut state = held(&self.state);
        while state.buffer.is_empty() && !state.wipe {
            if state.closed {
                return false;
            }
            state.asleep = true;
            state = waited(&self.work, state);
        }
        while !state.urgent && !state.closed {
            let Some(early) = then.checked_duration_since(Instant::now()).filter(|early| !early.is_zero()) else { break };
            state = self.work.wait_timeout(state, early).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.urgent = false;
        group.bytes.clear();
        std::mem::swap(&mut group.bytes, &mut state.buffer);
        (group.at_bytes, group.wipe, group.sequence) = (state.at_bytes, std::mem::take(&mut state.wipe), state.sequence);
        state.at_bytes += group.bytes.len() as u64;
        true
    }
}

impl State {
    fn check(&self, shared: &Shared) -> Result<(), Error> {
        let Some(Failure { operation, source }) = &self.failure else { return Ok(()) };
        let source = source.raw_os_error().map_or_else(|| IoError::new(source.kind(), source.to_string()), IoError::from_raw_os_error);
        Err(Error::system(operation, &shared.path, source))
    }

    fn push(&mut self, sealed: &Sealed<'_>) {
        sealed.write_to(&mut self.buffer);
        self.sequence += 1;
    }

    fn len_bytes(&self) -> u64 {
        self.at_bytes + self.buffer.len() as u64
    }
}

impl Group {
    /// Writes what was taken, and zeros behind it where the file has to grow; durable in the end if `syncs`.
    fn write(&self, disk: &mut dyn Disk, syncs: bool, len_bytes: &mut u64) -> Result<(), Failure> {
        if self.wipe {
            write_all(disk, &[0; WIPE_BYTES], RECORDS_AT_BYTES)?;
            sync(disk, syncs)?;
        }
        if self.bytes.is_empty() {
            return Ok(());
        }
        write_all(disk, &self.bytes, self.at_bytes)?;
        let end_bytes = self.at_bytes + self.bytes.len() as u64;
        if end_bytes > *len_bytes {
            let zeros = end_bytes.next_multiple_of(STEP_BYTES) - end_bytes;
            write_all(disk, &vec![0; zeros as usize], end_bytes)?;
            *len_bytes = end_bytes + zeros;
        }
        sync(disk, syncs)
    }
}

fn sync(disk: &mut dyn Disk, syncs: bool) -> Result<(), Failure> {
    let synced = if syncs { disk.sync() } else { Ok(()) };
    synced.map_err(|source| Failure { operation: "make durable the journal", source })
}

fn write_all(disk: &mut dyn Disk, mut bytes: &[u8], mut at_bytes: u64) -> Result<(), Failure> {
    while !bytes.is_empty() {
        match disk.write_at(bytes, at_bytes) {
            Ok(written) if written > 0 => (bytes, at_bytes) = (&bytes[written..], at_bytes + written as u64),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            refused => {
                let source = refused.err().unwrap_or_else(|| ErrorKind::WriteZero.into());
                return Err(Failure { operation: "write the journal", source });
            }
        }
    }
    Ok(())
}

/// No holder panics while it changes what the lock guards.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn waited<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
}
