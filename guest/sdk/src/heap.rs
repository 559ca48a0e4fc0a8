//! The allocator: blocks of powers of two, one list of free blocks a size, from the end of the static data to the end of memory.
//!
//! Every block is aligned to its own size. What alignment skips goes to the free lists of smaller sizes. Memory is plain linear
//! memory without a header: its whole state is one static, so it freezes, thaws and forks with the actor.

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr::null_mut,
};

/// Sizes are 2 to the power of this (16 bytes), ...
const SIZE_LOG2_MIN: u32 = 4;
/// ... to this (1 GiB).
const SIZE_LOG2_MAX: u32 = 30;
const SIZES: usize = (SIZE_LOG2_MAX - SIZE_LOG2_MIN + 1) as usize;
const PAGE_BYTES: usize = 1 << 16;

/// The global allocator that `actor!` sets.
pub struct Heap {
    blocks: UnsafeCell<Blocks>,
}

struct Blocks {
    /// First free block of each size; its first word points to the next one.
    free: [*mut u8; SIZES],
    /// Where unused memory begins, and where it ends; 0 before the first use.
    unused: usize,
    end: usize,
}

// SAFETY: a module has one thread, since the contract knows no shared memory; elsewhere than on Wasm nobody uses it.
unsafe impl Sync for Heap {}

impl Heap {
    /// An allocator that has not touched memory yet.
    #[allow(clippy::new_without_default)] // a default that is not const is of no use in a static
    pub const fn new() -> Heap {
        Heap { blocks: UnsafeCell::new(Blocks { free: [null_mut(); SIZES], unused: 0, end: 0 }) }
    }
}

// SAFETY: a block is handed out once until it is freed, is aligned to its size, which is at least size and alignment of the layout,
// and lies within memory that `grow` has seen to exist.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(class) = class_of(layout.size().max(layout.align())) else { return null_mut() };
        // SAFETY: one thread, and nothing in `take` allocates, so this is the only reference.
        unsafe { (*self.blocks.get()).take(class) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(class) = class_of(layout.size().max(layout.align())) else { return };
        // SAFETY: as in `alloc`; the caller gives back a block of that layout, hence of that class.
        unsafe { (*self.blocks.get()).give(block, class) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        let class = class_of(layout.size().max(layout.align()));
        if class.is_some() && class == class_of(bytes.max(layout.align())) {
            return block;
        }
        // SAFETY: the caller vouches that `bytes` with this alignment is a layout.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(bytes, layout.align())) };
        if !new.is_null() {
            // SAFETY: both blocks hold as many bytes as are copied, and they are different blocks; the old one is given back once.
            unsafe {
                core::ptr::copy_nonoverlapping(block, new, layout.size().min(bytes));
                self.dealloc(block, layout);
            }
        }
        new
    }
}

impl Blocks {
    /// A free block of that class, or null when memory can't grow.
    fn take(&mut self, class: usize) -> *mut u8 {
        let first = self.free[class];
        if first.is_null() {
            return self.cut(class);
        }
        // SAFETY: a block in a free list begins with the pointer that `give` wrote.
        self.free[class] = unsafe { first.cast::<*mut u8>().read() };
        first
    }

    /// Puts a block at the head of its free list.
    fn give(&mut self, block: *mut u8, class: usize) {
        // SAFETY: the block is free, at least 16 bytes long and aligned to 16.
        unsafe { block.cast::<*mut u8>().write(self.free[class]) };
        self.free[class] = block;
    }

    /// Cuts a block of that class off the unused memory, and gives what alignment skips to the smaller classes.
    fn cut(&mut self, class: usize) -> *mut u8 {
        let size_bytes = 1usize << (class as u32 + SIZE_LOG2_MIN);
        if self.unused == 0 {
            (self.unused, self.end) = (heap_base().next_multiple_of(1 << SIZE_LOG2_MIN), memory_bytes());
        }
        let Some(start) = self.unused.checked_next_multiple_of(size_bytes) else { return null_mut() };
        let Some(end) = start.checked_add(size_bytes) else { return null_mut() };
        if end > self.end && !self.grow(end) {
            return null_mut();
        }
        while self.unused < start {
            let gap_class = self.unused.trailing_zeros() - SIZE_LOG2_MIN;
            let gap = core::ptr::with_exposed_provenance_mut(self.unused);
            self.unused += 1 << (gap_class + SIZE_LOG2_MIN);
            self.give(gap, gap_class as usize);
        }
        self.unused = end;
        core::ptr::with_exposed_provenance_mut(start)
    }

    /// Grows memory so that it reaches `end`.
    fn grow(&mut self, end: usize) -> bool {
        let pages = (end - self.end).div_ceil(PAGE_BYTES);
        let grown = memory_grow(pages);
        if grown {
            self.end = memory_bytes();
        }
        grown
    }
}

/// The class of the smallest size that holds so many bytes.
fn class_of(bytes: usize) -> Option<usize> {
    let log2 = bytes.checked_next_power_of_two()?.trailing_zeros().max(SIZE_LOG2_MIN);
    (log2 <= SIZE_LOG2_MAX).then_some((log2 - SIZE_LOG2_MIN) as usize)
}

#[cfg(target_family = "wasm")]
fn heap_base() -> usize {
    unsafe extern "C" {
        /// The linker's: where static data and stack end.
        static __heap_base: u8;
    }
    (&raw const __heap_base).expose_provenance()
}

#[cfg(target_family = "wasm")]
fn memory_bytes() -> usize {
    core::arch::wasm32::memory_size(0) * PAGE_BYTES
}

#[cfg(target_family = "wasm")]
fn memory_grow(pages: usize) -> bool {
    core::arch::wasm32::memory_grow(0, pages) != usize::MAX
}

#[cfg(not(target_family = "wasm"))]
fn heap_base() -> usize {
    PAGE_BYTES
}

#[cfg(not(target_family = "wasm"))]
fn memory_bytes() -> usize {
    PAGE_BYTES
}

/// There is no linear memory to grow, so the allocator is always out of memory.
#[cfg(not(target_family = "wasm"))]
fn memory_grow(_pages: usize) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks over memory of our own, aligned to its size.
    fn blocks(arena: &mut [u128]) -> Blocks {
        let start = arena.as_mut_ptr().expose_provenance();
        Blocks { free: [null_mut(); SIZES], unused: start, end: start + size_of_val(arena) }
    }

    #[test]
    fn classes_hold_what_was_asked() {
        for (bytes, class) in [(1, 0), (16, 0), (17, 1), (32, 1), (4096, 8), (4097, 9), (1 << 30, 26)] {
            assert_eq!(class_of(bytes), Some(class), "{bytes}");
        }
        assert_eq!(class_of((1 << 30) + 1), None);
        assert_eq!(class_of(usize::MAX), None);
    }

    #[test]
    fn blocks_are_aligned_apart_and_used_again() {
        let mut arena = vec![0u128; 1 << 14];
        let mut blocks = blocks(&mut arena);
        let mut taken: Vec<(usize, usize)> = Vec::new();
        let mut seed = 1u32;
        for round in 0..4000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let class = (seed >> 28) as usize % 7;
            if round % 3 == 2 {
                let (block, class) = taken.swap_remove(seed as usize % taken.len());
                blocks.give(core::ptr::with_exposed_provenance_mut(block), class);
                continue;
            }
            let block = blocks.take(class).expose_provenance();
            if block == 0 {
                continue;
            }
            let bytes = 16usize << class;
            assert_eq!(block % bytes, 0);
            assert!(taken.iter().all(|(other, size)| block + bytes <= *other || *other + (16 << size) <= block));
            taken.push((block, class));
        }
    }

    #[test]
    fn memory_that_cannot_grow_is_no_panic() {
        let mut arena = vec![0u128; 16];
        let mut blocks = blocks(&mut arena);
        assert!(blocks.take(20).is_null());
        assert!(!blocks.take(0).is_null());
    }
}
