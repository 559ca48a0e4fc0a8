//! Compute: a matrix product in the guest's own memory.
//!
//! With a GPU the product is computed where it lies. The guest stands in this call until the GPU is done, and nobody holds a reference to
//! its memory meanwhile: its bytes belong to the GPU between submission and completion.

use super::{MODULE, charge, check_doom, granted, note_computed, number, on_desk, with_desk};
use crate::abi::Refused;
use crate::desk::{Desk, lock};
use crate::instance::Guest;
use crate::limits::{MATMUL_PRODUCTS_MAX, PRODUCTS_PER_FUEL};
use crate::memory::GuestMemory;
use crate::products::{GpuPath, SharedAddresses};
use crate::tape::fuel_used;
use crate::{Error, LogLevel};
use driftwood_compute::gpu::{GemmRanges, GemmShape, Gpu, GpuError};
use std::ops::Range;
use std::sync::Arc;
use wasmtime::{Caller, Linker};

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "matmul", |mut caller: Caller<'_, Guest>, a: u32, b: u32, c: u32, m: u32, k: u32, n: u32| {
        let product = with_desk(&mut caller, 0, |memory, _| Product::new(memory, [a, b, c], [m, k, n]));
        let product = granted!(product?);
        charge(&mut caller, product.products() / PRODUCTS_PER_FUEL)?;
        let gpu = with_desk(&mut caller, 0, |memory, desk| product.check(memory, desk))?;
        let fuel = fuel_used(&caller)?;
        let computed = gpu.and_then(|gpu| product.compute(&mut caller, gpu.as_ref()));
        let noted = computed.and_then(|done| note_computed(&mut caller, fuel, &product.ranges[2..]).map(|()| done));
        check_doom(&caller)?;
        Ok(number(noted))
    })?;
    Ok(())
}

/// A product whose matrices lie in linear memory.
struct Product {
    ranges: [Range<usize>; 3], // bytes of a, b and c
    extents: [u32; 3],         // m, k, n
}

impl Product {
    fn new(memory: &GuestMemory<'_>, [a, b, c]: [u32; 3], extents: [u32; 3]) -> Result<Product, Refused> {
        let [m, k, n] = extents;
        let elements = |rows: u32, columns: u32| rows.checked_mul(columns).ok_or(Refused::OutOfBounds);
        let a = memory.range_of::<f32>(a, elements(m, k)?)?;
        let b = memory.range_of::<f32>(b, elements(k, n)?)?;
        let c = memory.range_of::<f32>(c, elements(m, n)?)?;
        let product = Product { ranges: [a, b, c], extents };
        if product.products() > MATMUL_PRODUCTS_MAX { Err(Refused::BadArgument) } else { Ok(product) }
    }

    fn products(&self) -> u64 {
        self.extents.iter().fold(1, |product, &extent| product.saturating_mul(extent.into()))
    }

    fn is_empty(&self) -> bool {
        self.ranges[2].is_empty()
    }

    /// Whether the product overlaps what it is made of; and the GPU to compute on.
    fn check(&self, memory: &mut GuestMemory<'_>, desk: &Desk) -> Result<Option<Arc<Gpu>>, Refused> {
        let [a, b, c] = self.ranges.clone();
        if !self.is_empty() {
            memory.matrices(a, b, c)?;
        }
        Ok(desk.models.gpu())
    }

    /// Computes on the GPU if there is one and it can, and reports where it was.
    fn compute(&self, caller: &mut Caller<'_, Guest>, gpu: Option<&Arc<Gpu>>) -> Result<i32, Refused> {
        if self.is_empty() {
            return Ok(0);
        }
        let (path, why) = match gpu {
            Some(gpu) => match self.on_gpu(caller, gpu) {
                Ok(done) => done,
                Err(why @ GpuError::BeyondLimit { .. }) => (self.on_processor(caller)?, Some(why.to_string())),
                Err(why) => return Err(failed(caller, &why)),
            },
            None => (self.on_processor(caller)?, None),
        };
        lock(&caller.data().desk).products.count(path, why);
        Ok(0)
    }

    fn on_processor(&self, caller: &mut Caller<'_, Guest>) -> Result<GpuPath, Refused> {
        let [a, b, c] = self.ranges.clone();
        let [m, k, n] = self.extents.map(|extent| extent as usize);
        on_desk(caller, |memory, desk| {
            let (a, b, c) = memory.matrices(a, b, c)?;
            desk.models.device().gemm_f32(a, b, c, m, k, n);
            Ok(GpuPath::Processor)
        })
    }

    /// In the guest's memory where the GPU can share it, else from copies, with the reason.
    fn on_gpu(&self, caller: &mut Caller<'_, Guest>, gpu: &Arc<Gpu>) -> Result<(GpuPath, Option<String>), GpuError> {
        let guest = caller.data_mut();
        let why = match guest.imported(gpu) {
            Ok(Ok(imported)) => {
                gpu.run_gemm(&gpu.gemm_f32(imported, &self.gpu_ranges(), self.shape())?, imported)?;
                let imported = imported.address();
                self.note_addresses(caller, imported);
                return Ok((GpuPath::Shared, None));
            }
            Ok(Err(lost @ GpuError::Lost { .. })) => return Err(lost.clone()),
            Ok(Err(why)) => why.to_string(),
            Err(_) => "the guest has no region".to_owned(),
        };
        let copied = self.copied(caller, gpu);
        copied.map(|()| (GpuPath::Copied, Some(why)))
    }

    fn copied(&self, caller: &mut Caller<'_, Guest>, gpu: &Gpu) -> Result<(), GpuError> {
        let [a, b, c] = self.ranges.clone();
        let computed = on_desk(caller, |memory, _| {
            let (a, b, c) = memory.matrices(a, b, c)?;
            Ok(gpu.gemm_f32_copied(a, b, c, self.shape()))
        });
        computed.unwrap_or_else(|_| unreachable!("`check` let the same ranges through"))
    }

    fn note_addresses(&self, caller: &mut Caller<'_, Guest>, imported: usize) {
        let Some(memory) = caller.data().memory else { return };
        let linear_memory = memory.data_ptr(&*caller) as usize;
        let Ok(region) = caller.data().region() else { return };
        let region = region.base().as_ptr() as usize;
        lock(&caller.data().desk).products.addresses = Some(SharedAddresses { region, imported, linear_memory });
    }

    fn shape(&self) -> GemmShape {
        let [m, k, n] = self.extents;
        GemmShape { m, k, n }
    }

    fn gpu_ranges(&self) -> GemmRanges {
        let [a, b, c] = self.ranges.clone().map(|range| range.start as u64..range.end as u64);
        GemmRanges { a, b, c }
    }
}

/// Tells the log and the message's error why the GPU failed; the guest gets a number.
fn failed(caller: &Caller<'_, Guest>, why: &GpuError) -> Refused {
    let mut desk = lock(&caller.data().desk);
    desk.log(LogLevel::Error, &why.to_string());
    desk.note(Error::Compute { why: why.to_string() });
    Refused::ModelError
}
