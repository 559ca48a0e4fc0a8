//! A small pool of threads for kernels: a job of many tasks, taken one by one, with the caller taking part.
//!
//! Workers spin for some tens of microseconds between jobs and then park. The caller never waits for a worker that has not begun: a
//! worker *joins* a job by a compare-and-set on one word, and a job that is closed can no longer be joined. So a pool stays correct and
//! prompt when other work holds the cores. Nothing is allocated for a job.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it parks.
const SPIN: Duration = Duration::from_micros(200);
/// How long a caller spins for the last workers before it lets other threads run.
const SPINS_BEFORE_YIELD: u32 = 200;

/// The state word: the low bits count joined workers, one bit says that the job is open, the rest is the job's number.
const JOINED_MASK: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const ONE_JOB: u64 = 1 << 17;

type Job<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Threads that run tasks.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(JoinHandle<()>, Thread)>,
    one_caller: Mutex<()>,
}

struct Shared {
    state: OwnLine<AtomicU64>,
    next_task: OwnLine<AtomicUsize>,
    /// The job and its number of tasks. Written by the caller while nobody has joined, read only by those who have.
    job: UnsafeCell<Option<(*const Job<'static>, usize)>>,
    parked: Vec<AtomicBool>,
    stop: AtomicBool,
    panicked: AtomicBool,
}

/// A word that threads fight over, on cache lines of its own (two, since processors fetch them in pairs).
#[repr(align(128))]
struct OwnLine<T>(T);

impl<T> std::ops::Deref for OwnLine<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

// SAFETY: `job` is written only by the one caller while the state word shows a closed job with no joined worker, and read only by
// workers that joined, which the caller waits for. What it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is dropped before the call that made it returns.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` including the caller, at least one.
    pub fn new(threads: usize) -> Pool {
        let workers = threads.clamp(1, JOINED_MASK as usize) - 1;
        let shared = Arc::new(Shared {
            state: OwnLine(AtomicU64::new(0)),
            next_task: OwnLine(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            parked: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let spawn = |index: usize| {
            let shared = shared.clone();
            let worker = move || shared.work(index);
            let handle = thread::Builder::new().name(format!("compute-{}", index + 1)).spawn(worker).expect("a thread can be started");
            let thread = handle.thread().clone();
            (handle, thread)
        };
        Pool { workers: (0..workers).map(spawn).collect(), shared, one_caller: Mutex::new(()) }
    }

    /// Threads that take part, the caller among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(thread, task)` for every task below `tasks`, each once; `thread` is below [`Pool::threads`] and is one thread at a time.
    ///
    /// # Panics
    /// If a task panics. A job must not start another one on the same pool: it would wait for itself.
    pub fn run(&self, tasks: usize, job: &Job<'_>) {
        // A panic in a task unwinds through this guard; the mutex protects no data.
        let _one_caller: MutexGuard<'_, ()> = self.one_caller.lock().unwrap_or_else(PoisonError::into_inner);
        if self.workers.is_empty() || tasks <= 1 {
            return (0..tasks).for_each(|task| job(0, task));
        }
        self.open(tasks, job);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.shared.take_tasks(0, job, tasks)));
        self.close();
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!self.shared.panicked.swap(false, SeqCst), "a task panicked on another thread");
    }

    fn open(&self, tasks: usize, job: &Job<'_>) {
        // SAFETY: only the lifetime changes. `run` does not return before `close` has seen every joined worker leave, and nobody
        // joins a closed job, so no use outlives the borrow.
        let job = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: the last job is closed and nobody has joined (or there was none), so nobody reads; `one_caller` is held.
        unsafe { *self.shared.job.get() = Some((job, tasks)) };
        self.shared.next_task.store(0, SeqCst);
        let state = self.shared.state.load(SeqCst);
        self.shared.state.store((state & !(JOINED_MASK | OPEN)) + ONE_JOB + OPEN, SeqCst);
        for (parked, (_, thread)) in self.shared.parked.iter().zip(&self.workers).take(tasks - 1) {
            if parked.load(SeqCst) {
                thread.unpark();
            }
        }
    }

    fn close(&self) {
        self.shared.state.fetch_and(!OPEN, SeqCst);
        let mut spins = 0;
        while self.shared.state.load(SeqCst) & JOINED_MASK != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for (handle, thread) in self.workers.drain(..) {
            thread.unpark();
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// The life of worker `index`.
    fn work(&self, index: usize) {
        let mut seen_job = 0;
        while let Some(state) = self.wait(index, seen_job) {
            let joined = self.state.compare_exchange(state, state + 1, SeqCst, SeqCst).is_ok();
            if !joined {
                continue;
            }
            seen_job = state / ONE_JOB;
            // SAFETY: this worker has joined an open job: the cell is set, and neither it nor the job goes before it leaves.
            let (job, tasks) = unsafe { (*self.job.get()).map(|(job, tasks)| (&*job, tasks)).expect("an open job") };
            if catch_unwind(AssertUnwindSafe(|| self.take_tasks(index + 1, job, tasks))).is_err() {
                self.panicked.store(true, SeqCst);
            }
            self.state.fetch_sub(1, SeqCst);
        }
    }

    /// Waits for an open job other than `seen_job` and returns the state word, or `None` when the pool ends.
    fn wait(&self, index: usize, seen_job: u64) -> Option<u64> {
        let fresh = || {
            let state = self.state.load(SeqCst);
            (state & OPEN != 0 && state / ONE_JOB != seen_job).then_some(state)
        };
        loop {
            let began = Instant::now();
            while began.elapsed() < SPIN {
                if let Some(state) = fresh() {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            self.parked[index].store(true, SeqCst);
            if fresh().is_none() && !self.stop.load(SeqCst) {
                thread::park();
            }
            self.parked[index].store(false, SeqCst);
            if self.stop.load(SeqCst) {
                return None;
            }
        }
    }

    fn take_tasks(&self, thread: usize, job: &Job<'_>, tasks: usize) {
        loop {
            let task = self.next_task.fetch_add(1, SeqCst);
            if task >= tasks {
                return;
            }
            job(thread, task);
        }
    }
}

/// An output that the tasks of one job write in parts that do not overlap.
pub(crate) struct Parts<'a, T> {
    base: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]` that is handed out in disjoint parts, as `Parts::slice` demands.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub fn new(all: &'a mut [T]) -> Self {
        Parts { base: all.as_mut_ptr(), len: all.len(), borrow: PhantomData }
    }

    /// The part of `len` elements at `start`.
    ///
    /// # Safety
    /// No two parts that are alive at once may overlap.
    #[allow(clippy::mut_from_ref)] // that is its purpose
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "part {start}+{len} of {}", self.len);
        // SAFETY: in bounds of the borrowed slice, and the caller keeps parts apart.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_with_more_threads_than_cores() {
        for threads in [1, 2, 3, 9] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 100] {
                for _ in 0..200 {
                    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(tasks, &|thread, task| {
                        assert!(thread < threads);
                        counts[task].fetch_add(1, SeqCst);
                    });
                    assert!(counts.iter().all(|c| c.load(SeqCst) == 1));
                }
            }
        }
    }

    #[test]
    fn jobs_after_a_pause_wake_parked_workers() {
        let pool = Pool::new(3);
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(1));
            let sum = AtomicUsize::new(0);
            pool.run(50, &|_, task| {
                sum.fetch_add(task, SeqCst);
            });
            assert_eq!(sum.load(SeqCst), 49 * 50 / 2);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let panicking = || pool.run(64, &|_, task| assert!(task != 33, "task 33"));
        assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
        let ran = AtomicUsize::new(0);
        pool.run(10, &|_, _| {
            ran.fetch_add(1, SeqCst);
        });
        assert_eq!(ran.load(SeqCst), 10);
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(2);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let ran = AtomicUsize::new(0);
                        pool.run(5, &|_, _| {
                            ran.fetch_add(1, SeqCst);
                        });
                        assert_eq!(ran.load(SeqCst), 5);
                    }
                });
            }
        });
    }
}
