//! A guest's linear memory is a region of ours: the base never moves, growth opens pages in place, the rest faults.
//!
//! A fork's memory begins as a private copy of what all of them share: pages that it does not write cost nothing.
//!
//! Wasmtime asks [`RegionMemories`] for each memory. It keeps a weak note of every region, so that the host finds the region of an
//! instance again by its base address.

use crate::instance::Guest;
use driftwood_region::{Original, Region};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use wasmtime::{LinearMemory, Memory, MemoryCreator, MemoryType, Store};

/// Makes linear memories out of regions.
#[derive(Default)]
pub(crate) struct RegionMemories {
    made: Mutex<Vec<Weak<Region>>>,
}

impl RegionMemories {
    /// The region that begins at `base`, if a living memory does.
    pub(crate) fn region_at(&self, base: *const u8) -> Option<Arc<Region>> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.iter().filter_map(Weak::upgrade).find(|region| region.base().as_ptr().cast_const() == base)
    }

    fn note(&self, region: &Arc<Region>) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|known| known.strong_count() > 0);
        made.push(Arc::downgrade(region));
    }
}

/// Has a linear memory begin as a private copy of an original that it is at least as long as. What lies beyond stays as it is.
///
/// # Errors
/// As [`Region::map_copy`]: the instance is then of no more use.
pub(crate) fn lay_original(store: &mut Store<Guest>, memory: &Memory, original: &Original) -> wasmtime::Result<()> {
    let guest = store.data();
    let region = guest.region().map_err(|_| wasmtime::format_err!("the memory has no region"))?;
    let own = region.base().as_ptr() == memory.data_ptr(&*store);
    if !own || guest.share.is_some() {
        return Err(wasmtime::format_err!("the memory is not the guest's own"));
    }
    // SAFETY: whoever holds the store alone holds the linear memory alone, no code of the guest runs, and no device has imported it.
    unsafe { region.map_copy(original) }.map_err(wasmtime::Error::new)
}

// SAFETY: a memory from here is page-aligned and zero, its base is stable for its whole life, and the address space that Wasmtime's
// code relies on (the larger of reservation and minimum, and the guard after it) is mapped and inaccessible beyond the size.
unsafe impl MemoryCreator for RegionMemories {
    fn new_memory(
        &self,
        _ty: MemoryType,
        minimum_bytes: usize,
        _maximum_bytes: Option<usize>,
        reserved_bytes: Option<usize>,
        guard_bytes: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let capacity_bytes = reserved_bytes.unwrap_or(0).max(minimum_bytes);
        let region = Region::reserve_with_guard(capacity_bytes, guard_bytes).map_err(|e| e.to_string())?;
        region.commit(minimum_bytes).map_err(|e| e.to_string())?;
        let region = Arc::new(region);
        self.note(&region);
        Ok(Box::new(RegionMemory { region, size_bytes: minimum_bytes }))
    }
}

/// One linear memory. The region stays mapped as long as this or a parked window on it lives.
struct RegionMemory {
    region: Arc<Region>,
    size_bytes: usize,
}

// SAFETY: `as_ptr` is the region's base, which never moves; `size_bytes` of it are open for reading and writing; growth opens more
// in place up to the capacity, and nobody but Wasmtime (and a window on a parked guest's memory) touches the bytes.
unsafe impl LinearMemory for RegionMemory {
    fn byte_size(&self) -> usize {
        self.size_bytes
    }

    fn byte_capacity(&self) -> usize {
        self.region.reserved_bytes()
    }

    fn grow_to(&mut self, size_bytes: usize) -> wasmtime::Result<()> {
        self.region.commit(size_bytes).map_err(wasmtime::Error::new)?;
        self.size_bytes = size_bytes;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.region.base().as_ptr()
    }
}
