//! A decode step allocates nothing.

#[path = "common/models.rs"]
mod models;

use driftwood_compute::{Arithmetic, Cpu, Simd};
use driftwood_engine::{Batch, Logits, Model, Session, SessionOptions, Work, argmax};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The one test of this process: another would be counted, too.
#[test]
fn a_decode_step_allocates_nothing() {
    // One for all, the slow model first: threads allocate when they begin, which is later than a tiny model's first steps.
    let cpu = Arc::new(Cpu::new(2, Simd::detect(), Arithmetic::Fast));
    for file in [models::SMOLLM2].into_iter().chain(models::FAMILIES) {
        decode(file, &cpu);
    }
}

fn decode(file: &str, cpu: &Arc<Cpu>) {
    let model = Model::open(file, &models::path(file), cpu.clone()).unwrap();
    let mut session = Session::open(&model, SessionOptions::default()).unwrap();
    let (mut batch, mut logits) = (Batch::new(&model), vec![0.0; model.config().vocabulary]);
    session.append(&[1, 2, 3]).unwrap();
    batch.step(&mut [Work::new(&mut session, Logits::Last(&mut logits))]).unwrap();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..50 {
        session.append(&[argmax(&logits).unwrap()]).unwrap();
        batch.step(&mut [Work::new(&mut session, Logits::Last(&mut logits))]).unwrap();
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{file}");
    // Beyond the block's end: one reference count for each new block of 64 tokens is all.
    for _ in 0..64 {
        session.append(&[argmax(&logits).unwrap()]).unwrap();
        batch.step(&mut [Work::new(&mut session, Logits::Last(&mut logits))]).unwrap();
    }
    assert!(ALLOCATIONS.load(Ordering::Relaxed) - before <= 2, "{file}");
}
