//! Wasmtime as this host sets it up: deterministic, fuelled, with memories of ours; compiled modules; and the clock that lets a guest
//! that computes for long give way to others.

use crate::Error;
use crate::admit::{Admitted, features, survey};
use crate::calls;
use crate::instance::Guest;
use crate::instrument::{Life, instrument};
use crate::limits::{FIBER_STACK_BYTES, IDLE_MODULES_MAX, IDLE_TICK, TICK, WASM_STACK_BYTES};
use crate::linear::RegionMemories;
use driftwood_snapshot::Hash;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wasmtime::{Config, InstancePre, Linker, Module};

/// Wasmtime and what of it all actors share.
pub(crate) struct Runtime {
    pub engine: wasmtime::Engine,
    pub memories: Arc<RegionMemories>,
    linker: Linker<Guest>,
    modules: Mutex<BTreeMap<Hash, Arc<Compiled>>>,
    clock: Clock,
}

/// A guest's module, as it came and as it runs.
pub(crate) struct Compiled {
    pub module: Arc<[u8]>,
    pub hash: Hash,
    pub admitted: Admitted,
    first: OnceLock<InstancePre<Guest>>,
    again: OnceLock<InstancePre<Guest>>,
}

impl Runtime {
    pub(crate) fn new() -> Result<Runtime, Error> {
        let memories = Arc::new(RegionMemories::default());
        let engine = wasmtime::Engine::new(&config(memories.clone())).map_err(Error::host("start Wasmtime"))?;
        let linker = calls::linker(&engine).map_err(Error::host("link the contract"))?;
        let clock = Clock::new(engine.clone())?;
        Ok(Runtime { engine, memories, linker, modules: Mutex::default(), clock })
    }

    /// Admits a module, once for each hash.
    pub(crate) fn compile(&self, module: &Arc<[u8]>) -> Result<Arc<Compiled>, Error> {
        let hash = Hash::of(module);
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = modules.get(&hash) {
            return Ok(known.clone());
        }
        let admitted = survey(module)?;
        let idle = modules.values().filter(|m| Arc::strong_count(m) == 1).count();
        if idle >= IDLE_MODULES_MAX {
            modules.retain(|_, m| Arc::strong_count(m) > 1);
        }
        let compiled = Arc::new(Compiled { module: module.clone(), hash, admitted, first: OnceLock::new(), again: OnceLock::new() });
        modules.insert(hash, compiled.clone());
        Ok(compiled)
    }

    /// Says that guests run on this thread, or no longer: the clock ticks fast only if it finds one running.
    pub(crate) fn guests_run(&self, now: bool) {
        self.clock.shared.guests_run.store(now, Ordering::Relaxed);
    }

    /// Lets the clock tick until the guard is dropped.
    pub(crate) fn ticking(&self) -> Ticking<'_> {
        self.clock.shared.users.fetch_add(1, Ordering::AcqRel);
        self.clock.wake();
        Ticking(&self.clock)
    }
}

impl Compiled {
    /// The compiled variant for a life, made when first asked for.
    pub(crate) fn ready(&self, runtime: &Runtime, life: Life) -> wasmtime::Result<&InstancePre<Guest>> {
        let cell = match life {
            Life::First => &self.first,
            Life::Again => &self.again,
        };
        if let Some(ready) = cell.get() {
            return Ok(ready);
        }
        let bytes = instrument(&self.module, &self.admitted, life)?;
        let started = Instant::now();
        let module = Module::from_binary(&runtime.engine, &bytes)?;
        tracing::debug!(target: "driftwood", ms = started.elapsed().as_millis() as u64, "compiled a guest of {} bytes", bytes.len());
        Ok(cell.get_or_init(|| runtime.linker.instantiate_pre(&module).expect("admission checked every import")))
    }
}

fn config(memories: Arc<RegionMemories>) -> Config {
    let mut config = Config::new();
    config.with_host_memory(memories);
    config.memory_init_cow(false); // Wasmtime would remap pages of our regions
    config.consume_fuel(true);
    config.epoch_interruption(true);
    config.cranelift_nan_canonicalization(true);
    config.relaxed_simd_deterministic(true);
    config.max_wasm_stack(WASM_STACK_BYTES);
    config.async_stack_size(FIBER_STACK_BYTES);
    let admitted = features();
    debug_assert!(!admitted.memory64() && !admitted.multi_memory() && !admitted.threads());
    config.wasm_memory64(false);
    config.wasm_multi_memory(false);
    config.wasm_tail_call(true);
    config.wasm_extended_const(true);
    config.wasm_relaxed_simd(true);
    config
}

/// Runs a future that never waits for inference, for at most so long.
pub(crate) fn block_on<F: Future>(runtime: &Runtime, future: F, wall: Duration) -> Option<F::Output> {
    let _ticking = runtime.ticking();
    let started = Instant::now();
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return Some(output),
            Poll::Pending if started.elapsed() >= wall => return None,
            Poll::Pending => {}
        }
    }
}

/// A thread that advances Wasmtime's epoch while guests run, so that each yields after a while.
struct Clock {
    shared: Arc<ClockState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct ClockState {
    /// How many guards let it run.
    users: AtomicUsize,
    /// Whether a guest is running, and not the engine.
    guests_run: AtomicBool,
    ended: AtomicBool,
}

impl Clock {
    fn new(engine: wasmtime::Engine) -> Result<Clock, Error> {
        let shared = Arc::new(ClockState::default());
        let state = shared.clone();
        let tick = move || {
            while !state.ended.load(Ordering::Acquire) {
                if state.users.load(Ordering::Acquire) > 0 {
                    // A tick interrupts a core that computes: there are few while guests only call the host.
                    std::thread::sleep(if state.guests_run.load(Ordering::Relaxed) { TICK } else { IDLE_TICK });
                    engine.increment_epoch();
                } else {
                    std::thread::park();
                }
            }
        };
        let spawned = std::thread::Builder::new().name("driftwood-clock".into()).spawn(tick);
        let thread = spawned.map_err(|e| Error::Host { operation: "start a thread", why: e.to_string() })?;
        Ok(Clock { shared, thread: Some(thread) })
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a clock that panicked has nothing left to end
        }
    }
}

/// The clock ticks while this lives.
pub(crate) struct Ticking<'a>(&'a Clock);

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.shared.users.fetch_sub(1, Ordering::AcqRel);
    }
}
