//! Equal slots of one region, each with exactly one owner.

use crate::region::Region;
use crate::{Error, round_up_to_page};
use std::fmt;
use std::sync::{Arc, Mutex};

/// A region cut into slots of one size. Memory is opened slot by slot and reused after a slot is dropped.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    region: Arc<Region>,
    slot_bytes: usize,
    slots_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<usize>,
    opened: usize,
}

impl Pool {
    /// Reserves room for `slots_max` slots of `slot_bytes` (rounded up to pages).
    ///
    /// # Errors
    /// If the system has no such range.
    pub fn new(slot_bytes: usize, slots_max: usize) -> Result<Pool, Error> {
        let slot_bytes = round_up_to_page(slot_bytes);
        let bytes_max = slot_bytes.checked_mul(slots_max).ok_or(Error::BeyondReservation { asked_bytes: usize::MAX, reserved_bytes: 0 })?;
        let region = Arc::new(Region::reserve(bytes_max)?);
        Ok(Pool { inner: Arc::new(Inner { region, slot_bytes, slots_max, state: Mutex::default() }) })
    }

    /// A slot of one's own. Its bytes are zero or what a former owner left.
    ///
    /// # Errors
    /// If all slots are taken or the system has no memory left.
    pub fn take(&self) -> Result<Slot, Error> {
        let mut state = self.inner.state.lock().expect("no holder panics");
        if let Some(index) = state.free.pop() {
            return Ok(Slot { pool: self.inner.clone(), index });
        }
        if state.opened == self.inner.slots_max {
            return Err(Error::PoolExhausted { slots_max: self.inner.slots_max });
        }
        self.inner.open_for(state.opened + 1)?;
        state.opened += 1;
        Ok(Slot { pool: self.inner.clone(), index: state.opened - 1 })
    }

    /// The region that the slots are cut from, to be shared with a device. Slot `i` begins at `i * slot_bytes`.
    pub fn region(&self) -> &Arc<Region> {
        &self.inner.region
    }

    /// Bytes of one slot.
    pub fn slot_bytes(&self) -> usize {
        self.inner.slot_bytes
    }

    /// Slots that have an owner.
    pub fn slots_in_use(&self) -> usize {
        let state = self.inner.state.lock().expect("no holder panics");
        state.opened - state.free.len()
    }

    /// The bound on slots.
    pub fn slots_max(&self) -> usize {
        self.inner.slots_max
    }
}

/// Pages are opened for so many bytes of slots at least: untouched ones cost nothing, and a device that shares the region has to import
/// it anew each time it grows.
const OPEN_BYTES_MIN: usize = 32 << 20;

impl Inner {
    /// Opens pages for the first `slots` slots: twice as many as are open, where that is not too much at once.
    fn open_for(&self, slots: usize) -> Result<(), Error> {
        let (open_bytes, needed_bytes) = (self.region.open_bytes(), slots * self.slot_bytes);
        if needed_bytes <= open_bytes {
            return Ok(());
        }
        let ahead_bytes = (open_bytes + open_bytes.clamp(OPEN_BYTES_MIN, 8 * OPEN_BYTES_MIN)).max(needed_bytes);
        self.region.commit(ahead_bytes.min(self.slots_max * self.slot_bytes))
    }
}

/// Exclusive ownership of one slot; dropping it gives the slot back.
pub struct Slot {
    pool: Arc<Inner>,
    index: usize,
}

impl Slot {
    /// The slot's bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `take` opened the slot and gave its index to this `Slot` alone, so no other reference exists; `&self` shares it.
        unsafe { std::slice::from_raw_parts(self.first(), self.pool.slot_bytes) }
    }

    /// Which slot of its pool it is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The slot's bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.first(), self.pool.slot_bytes) }
    }

    fn first(&self) -> *mut u8 {
        // SAFETY: `index < opened`, so the offset lies within the open prefix of the region.
        unsafe { self.pool.region.base().as_ptr().add(self.index * self.pool.slot_bytes) }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({} of {})", self.index, self.pool.slots_max)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.state.lock().expect("no holder panics").free.push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_disjoint_bounded_and_reused() {
        let pool = Pool::new(100, 3).unwrap();
        let mut slots: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        for (i, slot) in slots.iter_mut().enumerate() {
            slot.bytes_mut().fill(i as u8 + 1);
        }
        assert!(slots.iter().enumerate().all(|(i, s)| s.bytes().iter().all(|&b| b == i as u8 + 1)));
        assert!(matches!(pool.take(), Err(Error::PoolExhausted { slots_max: 3 })));
        let address = slots[1].bytes().as_ptr();
        drop(slots.remove(1));
        assert_eq!(pool.slots_in_use(), 2);
        assert_eq!(pool.take().unwrap().bytes().as_ptr(), address);
    }

    #[test]
    fn slots_outlive_their_pool() {
        let slot = { Pool::new(16, 1).unwrap().take().unwrap() };
        assert_eq!(slot.bytes()[0], 0);
    }
}
