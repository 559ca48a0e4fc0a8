//! A living guest: a Wasmtime store with one instance, and the image that one can be built from again.

use crate::abi::{self, MODEL_CHANGED, Refused};
use crate::desk::{SharedDesk, lock};
use crate::limits::{Limits, TABLE_ELEMENTS_MAX, TICKS_BEFORE_YIELD};
use crate::linear::lay_original;
use crate::products::Share;
use crate::runtime::{Compiled, Runtime, block_on};
use crate::{Error, MessageKind, instrument::Life};
use driftwood_region::{Original, Region};
use driftwood_snapshot::ValueKind;
use std::sync::{Arc, OnceLock, Weak};
use wasmtime::{Global, Memory, ResourceLimiter, Store, TypedFunc, Val};

/// Pages of an image. Small, so that a sparse memory stays small.
pub(crate) const IMAGE_PAGE_BYTES: usize = 4096;

/// What a store carries: the way to the actor's desk and to its memory.
pub(crate) struct Guest {
    pub desk: SharedDesk,
    pub memory: Option<Memory>,
    region: Option<Arc<Region>>,
    /// The same region as the GPU has it.
    pub share: Option<Share>,
    growth: Growth,
}

impl Guest {
    /// The region of the linear memory.
    pub(crate) fn region(&self) -> Result<Arc<Region>, Refused> {
        self.region.clone().ok_or(Refused::ModelError)
    }
}

/// Lets memory grow by the actor's limit and by nothing else: a machine without memory ends the message, it does not answer -1.
struct Growth {
    limit_bytes: usize,
    refused_bytes: Option<usize>,
}

impl ResourceLimiter for Growth {
    fn memory_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|m| desired > m) {
            return Ok(false);
        }
        if desired > self.limit_bytes {
            self.refused_bytes = Some(desired);
            return Ok(false);
        }
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        if error.is::<driftwood_region::Error>() { Err(error) } else { Ok(()) }
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX as usize)
    }
}

/// A guest at rest: its pages that are not zero, and its mutable globals.
#[derive(Debug)]
pub(crate) struct Image {
    pub memory_bytes: usize,
    /// Indices of pages, and their bytes one after another.
    pub pages: Vec<u32>,
    pub bytes: Vec<u8>,
    /// Bits of each mutable global, in the order of [`crate::admit::Admitted::globals`].
    pub globals: Vec<u128>,
    /// The same memory once more, as forks share it: see [`Image::share`].
    original: OnceLock<Option<Original>>,
}

impl PartialEq for Image {
    fn eq(&self, other: &Image) -> bool {
        let same_pages = self.memory_bytes == other.memory_bytes && self.pages == other.pages && self.bytes == other.bytes;
        same_pages && self.globals == other.globals
    }
}

impl Image {
    pub(crate) fn new(memory_bytes: usize, globals: Vec<u128>) -> Image {
        Image { memory_bytes, pages: Vec::new(), bytes: Vec::new(), globals, original: OnceLock::new() }
    }

    /// From now on instances map this memory and copy only pages that they write. Where the system cannot do so they copy all.
    pub(crate) fn share(&self) {
        let parts = || self.pages().map(|(page, bytes)| (page * IMAGE_PAGE_BYTES, bytes));
        self.original.get_or_init(|| Original::new(self.memory_bytes, parts()).ok());
    }

    fn original(&self) -> Option<&Original> {
        self.original.get()?.as_ref()
    }

    /// The pages with their indices.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.pages.iter().map(|&p| p as usize).zip(self.bytes.chunks_exact(IMAGE_PAGE_BYTES))
    }

    /// The whole memory. Pages that are zero take none.
    pub(crate) fn inflate(&self) -> Vec<u8> {
        let mut memory = vec![0; self.memory_bytes];
        for (page, bytes) in self.pages() {
            memory[page * IMAGE_PAGE_BYTES..][..IMAGE_PAGE_BYTES].copy_from_slice(bytes);
        }
        memory
    }
}

/// A living guest.
pub(crate) struct Instance {
    pub store: Store<Guest>,
    memory: Memory,
    globals: Vec<(Global, ValueKind)>,
    handle: TypedFunc<(), i32>,
    model_changed: Option<TypedFunc<(), i32>>,
    /// What it continued from, if others still have that.
    laid: Weak<Image>,
}

impl Instance {
    /// A guest's first life: data segments, start section, `_initialize`, and the check of its contract version.
    pub(crate) fn first(runtime: &Runtime, compiled: &Compiled, desk: &SharedDesk, limits: &Limits) -> Result<Instance, Error> {
        check_memory(compiled.admitted.memory_bytes, limits)?;
        let store = new_store(runtime, desk, limits)?;
        let born = async {
            let (mut instance, plain) = Self::instantiate(runtime, compiled, store, Life::First).await?;
            if compiled.admitted.has_initialize {
                let initialize = plain.get_typed_func::<(), ()>(&mut instance.store, "_initialize")?;
                initialize.call_async(&mut instance.store, ()).await?;
            }
            let version = plain.get_typed_func::<(), i32>(&mut instance.store, "driftwood_abi")?;
            let found = version.call_async(&mut instance.store, ()).await?;
            Ok::<_, wasmtime::Error>((instance, found))
        };
        match block_on(runtime, born, limits.wall) {
            None => Err(Error::LimitWall { limit_ms: limits.wall.as_millis() as u64 }),
            Some(Err(e)) => Err(trap(&e, limits.fuel)),
            Some(Ok((_, found))) if found != abi::VERSION => Err(Error::ContractVersion { found, supported: abi::VERSION }),
            Some(Ok((instance, _))) => Ok(instance),
        }
    }

    /// A life that continues from an image: no code of the guest runs.
    pub(crate) fn again(
        runtime: &Runtime,
        compiled: &Compiled,
        desk: &SharedDesk,
        limits: &Limits,
        image: &Arc<Image>,
    ) -> Result<Instance, Error> {
        check_memory(image.memory_bytes, limits)?;
        let store = new_store(runtime, desk, limits)?;
        let born = Self::instantiate(runtime, compiled, store, Life::Again);
        let born = block_on(runtime, born, limits.wall).ok_or(Error::LimitWall { limit_ms: limits.wall.as_millis() as u64 })?;
        let (mut instance, _) = born.map_err(Error::host("build a guest's instance"))?;
        let shares = image.original().filter(|_| !lock(desk).has_gpu());
        instance.lay(image, shares).map_err(Error::host("restore a guest's memory"))?;
        instance.laid = Arc::downgrade(image);
        Ok(instance)
    }

    async fn instantiate(
        runtime: &Runtime,
        compiled: &Compiled,
        mut store: Store<Guest>,
        life: Life,
    ) -> wasmtime::Result<(Instance, wasmtime::Instance)> {
        let plain = compiled.ready(runtime, life)?.instantiate_async(&mut store).await?;
        let missing = |what: &str| wasmtime::format_err!("export {what} vanished");
        let memory = plain.get_memory(&mut store, "memory").ok_or_else(|| missing("memory"))?;
        let mut globals = Vec::with_capacity(compiled.admitted.globals.len());
        for slot in &compiled.admitted.globals {
            let name = format!("{}{}", crate::admit::GLOBAL_PREFIX, slot.index);
            globals.push((plain.get_global(&mut store, &name).ok_or_else(|| missing(&name))?, slot.kind));
        }
        let handle = plain.get_typed_func::<(), i32>(&mut store, "handle")?;
        let model_changed = match compiled.admitted.has_model_changed {
            true => Some(plain.get_typed_func::<(), i32>(&mut store, MODEL_CHANGED)?),
            false => None,
        };
        let region = runtime.memories.region_at(memory.data_ptr(&store)).ok_or_else(|| missing("region"))?;
        store.data_mut().memory = Some(memory);
        store.data_mut().region = Some(region);
        Ok((Instance { store, memory, globals, handle, model_changed, laid: Weak::new() }, plain))
    }

    /// Lays an image over fresh, zero memory: by mapping its original, if that is given, else by copying.
    fn lay(&mut self, image: &Image, original: Option<&Original>) -> wasmtime::Result<()> {
        let grow_bytes = image.memory_bytes.checked_sub(self.memory.data_size(&self.store));
        let grow_bytes = grow_bytes.ok_or_else(|| wasmtime::format_err!("the memory is smaller than the module's minimum"))?;
        let page_bytes = self.memory.page_size(&self.store);
        if !(grow_bytes as u64).is_multiple_of(page_bytes) {
            return Err(wasmtime::format_err!("the memory is no whole number of pages"));
        }
        self.memory.grow(&mut self.store, grow_bytes as u64 / page_bytes)?;
        if let Some(original) = original {
            lay_original(&mut self.store, &self.memory, original)?;
        } else {
            let memory = self.memory.data_mut(&mut self.store);
            for (page, bytes) in image.pages() {
                memory[page * IMAGE_PAGE_BYTES..][..IMAGE_PAGE_BYTES].copy_from_slice(bytes);
            }
        }
        for (&(global, kind), &bits) in self.globals.iter().zip(&image.globals) {
            global.set(&mut self.store, value(kind, bits))?;
        }
        Ok(())
    }

    /// A copy of everything that the guest can change.
    pub(crate) fn image(&mut self) -> Image {
        let globals = self.global_bits();
        let memory = self.memory.data(&self.store);
        let mut image = Image::new(memory.len(), globals);
        for (index, page) in memory.chunks_exact(IMAGE_PAGE_BYTES).enumerate() {
            if !is_zero(page) {
                image.pages.push(index as u32);
                image.bytes.extend_from_slice(page);
            }
        }
        image
    }

    /// Bytes of pages that differ from the image that it continued from and that others still have; of one without, those not all zero.
    pub(crate) fn own_bytes(&self) -> usize {
        let laid = self.laid.upgrade();
        let mut former = laid.iter().flat_map(|image| image.pages()).peekable();
        let differs = |(index, page): &(usize, &[u8])| match former.next_if(|(known, _)| known == index) {
            Some((_, known)) => known != *page,
            None => !is_zero(page),
        };
        let pages = self.memory().chunks_exact(IMAGE_PAGE_BYTES).enumerate();
        pages.filter(differs).count() * IMAGE_PAGE_BYTES
    }

    /// Bits of each mutable global.
    pub(crate) fn global_bits(&mut self) -> Vec<u128> {
        self.globals.iter().map(|(global, _)| bits(&global.get(&mut self.store))).collect()
    }

    /// The linear memory.
    pub(crate) fn memory(&self) -> &[u8] {
        self.memory.data(&self.store)
    }

    /// Handles one message; gives itself back with what its function returned and the fuel that is left.
    pub(crate) async fn handle(mut self: Box<Self>, kind: MessageKind, fuel: u64) -> (Box<Self>, wasmtime::Result<i32>) {
        self.store.set_epoch_deadline(TICKS_BEFORE_YIELD);
        if let Err(e) = self.store.set_fuel(fuel) {
            return (self, Err(e));
        }
        let function = match kind {
            MessageKind::Said => Some(self.handle.clone()),
            MessageKind::ModelChanged => self.model_changed.clone(),
        };
        let Some(function) = function else {
            return (self, Err(wasmtime::format_err!("the guest has no export {MODEL_CHANGED}")));
        };
        let returned = function.call_async(&mut self.store, ()).await;
        (self, returned)
    }

    pub(crate) fn set_memory_limit(&mut self, limit_bytes: usize) {
        self.store.data_mut().growth = Growth { limit_bytes, refused_bytes: None };
    }

    /// What the guest last asked for and did not get in this message.
    pub(crate) fn refused_memory_bytes(&self) -> Option<usize> {
        self.store.data().growth.refused_bytes
    }
}

fn check_memory(asked_bytes: usize, limits: &Limits) -> Result<(), Error> {
    let limit_bytes = limits.memory_bytes;
    if asked_bytes <= limit_bytes { Ok(()) } else { Err(Error::LimitMemory { asked_bytes, limit_bytes }) }
}

fn new_store(runtime: &Runtime, desk: &SharedDesk, limits: &Limits) -> Result<Store<Guest>, Error> {
    let growth = Growth { limit_bytes: limits.memory_bytes, refused_bytes: None };
    let mut store = Store::new(&runtime.engine, Guest { desk: desk.clone(), memory: None, region: None, share: None, growth });
    store.limiter(|guest| &mut guest.growth);
    store.epoch_deadline_async_yield_and_update(TICKS_BEFORE_YIELD);
    store.set_fuel(limits.fuel).map_err(Error::host("fuel a guest"))?;
    Ok(store)
}

/// What a failed call of a guest's function says of it.
pub(crate) fn trap(e: &wasmtime::Error, fuel: u64) -> Error {
    match e.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::OutOfFuel) => Error::LimitFuel { limit: fuel },
        _ => Error::Trap { why: format!("{:#}", e.root_cause()) },
    }
}

fn is_zero(page: &[u8]) -> bool {
    bytemuck::try_cast_slice::<u8, u64>(page).map_or_else(|_| page.iter().all(|&b| b == 0), |words| words.iter().all(|&w| w == 0))
}

fn bits(value: &Val) -> u128 {
    match value {
        Val::I32(v) => u128::from(*v as u32),
        Val::I64(v) => u128::from(*v as u64),
        Val::F32(v) => u128::from(*v),
        Val::F64(v) => u128::from(*v),
        Val::V128(v) => v.as_u128(),
        _ => unreachable!("admission refuses mutable references"),
    }
}

fn value(kind: ValueKind, bits: u128) -> Val {
    match kind {
        ValueKind::I32 => Val::I32(bits as u32 as i32),
        ValueKind::I64 => Val::I64(bits as u64 as i64),
        ValueKind::F32 => Val::F32(bits as u32),
        ValueKind::F64 => Val::F64(bits as u64),
        ValueKind::V128 => Val::V128(bits.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Host, HostOptions};
    use driftwood_compute::{Arithmetic, Cpu, Simd};

    fn host() -> Host {
        let device = Arc::new(Cpu::new(1, Simd::Portable, Arithmetic::Fast)).into();
        Host::new(HostOptions { device, models: Box::new(|_| Err("no models here".into())) }).unwrap()
    }

    /// The first link of the chain: what a guest stores, and what its data segments hold, lies in a region of ours.
    #[test]
    fn stores_and_data_segments_appear_in_our_region() {
        let module = wat::parse_str(
            r#"(module (memory (export "memory") 1) (data (i32.const 100) "segment") (global (mut i64) (i64.const -5))
                 (func (export "driftwood_abi") (result i32) (i32.const 1))
                 (func (export "handle") (result i32) (i64.store (i32.const 8) (i64.const 42)) (drop (memory.grow (i32.const 2))) (i32.const 0)))"#,
        )
        .unwrap();
        let mut host = host();
        let spec = crate::SpawnSpec {
            name: "a".into(),
            module: module.into(),
            settings: Default::default(),
            limits: Limits::default(),
            models: Vec::new(),
        };
        host.spawn(spec).unwrap();
        host.send(crate::Message::new("a", "go"), &mut |_| {}).unwrap();
        let runtime = host.shared_runtime();
        let crate::actor::Body::Awake(instance) = &mut host.actors.get_mut("a").unwrap().body else { panic!("it is awake") };
        let memory = instance.memory();
        let region = runtime.memories.region_at(memory.as_ptr()).expect("the memory begins where a region does");
        assert_eq!((memory.len(), region.open_bytes()), (3 << 16, 3 << 16), "the region opened what the memory grew to, and no more");
        assert!(region.reserved_bytes() >= 4 << 30);
        assert_eq!((&memory[100..107], memory[8]), (&b"segment"[..], 42));

        let image = instance.image();
        assert_eq!((image.pages.as_slice(), image.globals.as_slice()), (&[0][..], &[-5i64 as u64 as u128][..]));
        assert!(image.inflate() == instance.memory());
        let compiled = host.actors["a"].compiled.clone();
        let desk = host.actors["a"].desk.clone();
        let image = Arc::new(image);
        for _ in 0..2 {
            let mut again = Instance::again(&runtime, &compiled, &desk, &Limits::default(), &image).unwrap();
            assert_eq!((&again.image(), again.own_bytes()), (&*image, 0));
            again.memory.data_mut(&mut again.store)[2 << 16] = 1;
            assert_eq!((again.own_bytes(), again.memory().len()), (IMAGE_PAGE_BYTES, 3 << 16));
            image.share(); // copied first, mapped then
            assert_eq!(image.original().is_some(), cfg!(target_os = "linux"));
        }
    }
}
