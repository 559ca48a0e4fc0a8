//! Compute: a matrix product in the guest's own memory.

use super::{MODULE, answer, charge, granted, with_desk};
use crate::abi::Refused;
use crate::desk::Desk;
use crate::instance::Guest;
use crate::limits::{MATMUL_PRODUCTS_MAX, PRODUCTS_PER_FUEL};
use crate::memory::GuestMemory;
use std::ops::Range;
use wasmtime::{Caller, Linker};

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "matmul", |mut caller: Caller<'_, Guest>, a: u32, b: u32, c: u32, m: u32, k: u32, n: u32| {
        let product = with_desk(&mut caller, 0, |memory, _| Product::new(memory, [a, b, c], [m, k, n]));
        let product = granted!(product?);
        charge(&mut caller, product.products() / PRODUCTS_PER_FUEL)?;
        answer(&mut caller, 0, |memory, desk| product.compute(memory, desk))
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

    fn compute(&self, memory: &mut GuestMemory<'_>, desk: &Desk) -> Result<i32, Refused> {
        let [a, b, c] = self.ranges.clone();
        if c.is_empty() {
            return Ok(0);
        }
        let [m, k, n] = self.extents.map(|extent| extent as usize);
        let (a, b, c) = memory.matrices(a, b, c)?;
        desk.models.device().gemm_f32(a, b, c, m, k, n);
        Ok(0)
    }
}
