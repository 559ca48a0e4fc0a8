//! A plain product of f32 matrices that lie anywhere in one buffer: what a guest's `matmul` runs, and what `doctor` times.
//!
//! Ranges begin where the guest says, at any multiple of 4 bytes, and bindings at multiples of the device's alignment: a binding is the
//! window from the aligned offset before the range, and the kernel is told where in it the range begins. All windows are bound for
//! writing, because one buffer has one use in a dispatch.
//!
//! A discrete device would read an operand many times, each time over the bus: there the operands pass through its own memory, once, on its
//! own queue; the product is written where it belongs. The host copies nothing either way.

use super::{Binding, Dispatch, Gpu, GpuError, Imported, Plain, Product, record, show_host};
use std::ops::Range;

/// The sizes of a product: `a` is (m, k), `b` is (k, n), `c` is (m, n), all row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmShape {
    /// Rows of `a` and `c`.
    pub m: u32,
    /// Columns of `a`, rows of `b`.
    pub k: u32,
    /// Columns of `b` and `c`.
    pub n: u32,
}

/// Where the matrices lie in a buffer, in bytes. `c` overlaps neither `a` nor `b`: the caller checked it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GemmRanges {
    /// The left matrix.
    pub a: Range<u64>,
    /// The right matrix.
    pub b: Range<u64>,
    /// The product.
    pub c: Range<u64>,
}

impl GemmShape {
    fn bytes(self) -> [u64; 3] {
        let bytes = |rows: u32, columns: u32| (u64::from(rows) * u64::from(columns)).saturating_mul(4);
        [bytes(self.m, self.k), bytes(self.k, self.n), bytes(self.m, self.n)]
    }
}

/// A product that is ready to run.
#[derive(Clone, Debug)]
pub struct Gemm {
    product: Dispatch,
    passing: Option<Passing>,
}

/// Memory of the device's own that operands pass through.
#[derive(Clone, Debug)]
struct Passing {
    buffer: wgpu::Buffer,
    /// Where each is in the shared memory, and where it begins here.
    operands: [(Range<u64>, u64); 2],
}

impl Gemm {
    /// Records it, within memory that is shared with the device.
    fn record(&self, encoder: &mut wgpu::CommandEncoder, memory: &Imported) {
        let product = std::slice::from_ref(&self.product);
        if let Some(Passing { buffer, operands }) = &self.passing {
            for (from, to) in operands.iter().filter(|(from, _)| !from.is_empty()) {
                encoder.copy_buffer_to_buffer(memory.buffer(), from.start, buffer, *to, from.end - from.start);
            }
        }
        record(encoder, product);
    }
}

impl Gpu {
    /// Prepares `c = a * b` within memory that is shared with the device, to be run as often as one likes.
    ///
    /// # Errors
    /// [`GpuError::BeyondLimit`] if a matrix is longer than one binding or the product has too many rows or columns.
    ///
    /// # Panics
    /// If the ranges do not fit the shape or leave the memory, or the product is empty: the caller checked them.
    pub fn gemm_f32(&self, memory: &Imported, ranges: &GemmRanges, shape: GemmShape) -> Result<Gemm, GpuError> {
        if self.info().unified {
            return Ok(Gemm { product: self.gemm_in_place(memory.buffer(), ranges, shape)?, passing: None });
        }
        self.gemm_passing(memory, ranges, shape)
    }

    /// The way of a discrete device.
    fn gemm_passing(&self, memory: &Imported, ranges: &GemmRanges, shape: GemmShape) -> Result<Gemm, GpuError> {
        let there = self.side_by_side(shape);
        let passing = self.buffer("operands on their way", there.c.start)?;
        let operand =
            |range: &Range<u64>| if range.is_empty() { Ok((Binding::whole(&passing), 0)) } else { self.window_of(&passing, range) };
        let [a, b, c] = [operand(&there.a)?, operand(&there.b)?, self.window_of(memory.buffer(), &ranges.c)?];
        let GemmShape { m, k, n } = shape;
        let windows = [a.0, b.0, c.0];
        let product = Plain::product(self, &Product { half: false, staged: true, shape: (m, k, n), windows, firsts: [a.1, b.1, c.1] })?;
        let operands = [(ranges.a.clone(), there.a.start), (ranges.b.clone(), there.b.start)];
        Ok(Gemm { product, passing: Some(Passing { buffer: passing, operands }) })
    }

    /// Runs a product and waits: the host finds it in the memory that it was prepared for.
    ///
    /// # Errors
    /// If the driver refuses or the device is lost.
    pub fn run_gemm(&self, gemm: &Gemm, memory: &Imported) -> Result<(), GpuError> {
        let mut encoder = self.encoder();
        gemm.record(&mut encoder, memory);
        show_host(&mut encoder, [memory.buffer()]);
        self.submit(encoder)?;
        self.wait()
    }

    /// Ranges for the matrices of a shape in a buffer of their own.
    fn side_by_side(&self, shape: GemmShape) -> GemmRanges {
        let [a, b, c] = shape.bytes();
        let align = self.info().binding_align_bytes;
        let b_at = a.next_multiple_of(align);
        let c_at = (b_at + b).next_multiple_of(align);
        GemmRanges { a: 0..a, b: b_at..b_at + b, c: c_at..c_at + c }
    }

    /// Prepares `c = a * b` within one buffer, read and written where the ranges are.
    pub(super) fn gemm_in_place(&self, buffer: &wgpu::Buffer, ranges: &GemmRanges, shape: GemmShape) -> Result<Dispatch, GpuError> {
        let lengths = [&ranges.a, &ranges.b, &ranges.c].map(|range| range.end - range.start);
        assert_eq!(lengths, shape.bytes(), "{shape:?}");
        assert!(lengths[2] > 0, "an empty product needs no GPU");
        // Without products (k = 0) nothing is read; a binding is never empty.
        let or_product = |range: &Range<u64>| if range.is_empty() { ranges.c.clone() } else { range.clone() };
        let (a, a_at) = self.window_of(buffer, &or_product(&ranges.a))?;
        let (b, b_at) = self.window_of(buffer, &or_product(&ranges.b))?;
        let (c, c_at) = self.window_of(buffer, &ranges.c)?;
        let GemmShape { m, k, n } = shape;
        Plain::product(
            self,
            &Product { half: false, staged: !self.info().software, shape: (m, k, n), windows: [a, b, c], firsts: [a_at, b_at, c_at] },
        )
    }

    /// As [`Gpu::gemm_f32`], for matrices that are copied to the device's memory and a product that is copied back. For devices that
    /// cannot share the memory they lie in; whoever calls this says so in its report.
    ///
    /// # Errors
    /// As [`Gpu::gemm_f32`], or if the driver refuses.
    ///
    /// # Panics
    /// As [`Gpu::gemm_f32`].
    pub fn gemm_f32_copied(&self, a: &[f32], b: &[f32], c: &mut [f32], shape: GemmShape) -> Result<(), GpuError> {
        let ranges = self.side_by_side(shape);
        let buffer = self.buffer("copied matrices", ranges.c.end)?;
        let product = self.gemm_in_place(&buffer, &ranges, shape)?;
        self.queue().write_buffer(&buffer, ranges.a.start, bytemuck::cast_slice(a));
        self.queue().write_buffer(&buffer, ranges.b.start, bytemuck::cast_slice(b));
        self.run(&[product])?;
        self.read(&buffer, ranges.c.start, bytemuck::cast_slice_mut(c))
    }

    /// The binding that holds a range, and the index of the range's first element in it.
    fn window_of<'a>(&self, buffer: &'a wgpu::Buffer, range: &Range<u64>) -> Result<(Binding<'a>, u32), GpuError> {
        assert!(range.end <= buffer.size() && range.start.is_multiple_of(4) && range.end.is_multiple_of(4), "{range:?}");
        let offset_bytes = range.start - range.start % self.info().binding_align_bytes;
        let (bytes, limit) = (range.end - offset_bytes, self.info().binding_bytes_max);
        if bytes > limit {
            return Err(GpuError::BeyondLimit { what: "the bytes of a matrix", asked: bytes, limit });
        }
        Ok((Binding { buffer, offset_bytes, bytes }, ((range.start - offset_bytes) / 4) as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::super::doctor::{region, words};
    use super::*;
    use crate::gpu::tests::gpu;
    use crate::{Arithmetic, Cpu, Simd};

    fn matrix(len: u32, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(|_| next()).collect()
    }

    fn on_cpu(a: &[f32], b: &[f32], shape: GemmShape) -> Vec<f32> {
        let [m, k, n] = [shape.m, shape.k, shape.n].map(|size| size as usize);
        let mut c = vec![f32::NAN; m * n];
        Cpu::new(1, Simd::Portable, Arithmetic::Fast).gemm_f32(a, b, &mut c, m, k, n);
        c
    }

    /// Shapes that are multiples of nothing, at offsets that are aligned to nothing but 4, with guards around the product.
    #[test]
    fn products_agree_with_the_cpu_wherever_they_lie() {
        let gpu = gpu();
        let shapes = [(1, 1, 1), (3, 5, 7), (8, 4, 4), (65, 33, 31), (64, 1, 32), (9, 300, 100), (2, 0, 3), (128, 128, 128)];
        for (index, (m, k, n)) in shapes.into_iter().enumerate() {
            let shape = GemmShape { m, k, n };
            let (a, b) = (matrix(m * k, 1), matrix(k * n, 2));
            let at = 4 * index as u64; // one more element each
            let b_at = at + 4 * a.len() as u64 + 4;
            let c_at = b_at + 4 * b.len() as u64 + 8;
            let c_end = c_at + 4 * u64::from(m * n);
            let ranges = GemmRanges { a: at..at + 4 * a.len() as u64, b: b_at..b_at + 4 * b.len() as u64, c: c_at..c_end };
            let mut all = vec![f32::NAN; (c_end / 4) as usize + 2];
            all[(at / 4) as usize..][..a.len()].copy_from_slice(&a);
            all[(b_at / 4) as usize..][..b.len()].copy_from_slice(&b);
            let mut want = all.clone();
            want[(c_at / 4) as usize..][..(m * n) as usize].copy_from_slice(&on_cpu(&a, &b, shape));
            let same = |(x, y): (&f32, &f32)| (x - y).abs() <= 1e-5 || (x.is_nan() && y.is_nan());
            let region = region(4 * all.len()).unwrap();
            let memory = gpu.import(&region).unwrap();
            for passing in [false, true] {
                words(&region)[..all.len()].copy_from_slice(bytemuck::cast_slice(&all));
                let product = if passing { None } else { Some(gpu.gemm_in_place(memory.buffer(), &ranges, shape).unwrap()) };
                let gemm = product.map_or_else(|| gpu.gemm_passing(&memory, &ranges, shape), |product| Ok(Gemm { product, passing: None }));
                gpu.run_gemm(&gemm.unwrap(), &memory).unwrap();
                let got: &[f32] = bytemuck::cast_slice(&words(&region)[..all.len()]);
                assert!(got.iter().zip(&want).all(same), "{shape:?}, passing: {passing}");
            }
        }
    }

    #[test]
    fn the_copying_path_agrees_and_limits_are_errors() {
        let gpu = gpu();
        let shape = GemmShape { m: 5, k: 7, n: 3 };
        let (a, b) = (matrix(35, 1), matrix(21, 2));
        let mut c = vec![f32::NAN; 15];
        gpu.gemm_f32_copied(&a, &b, &mut c, shape).unwrap();
        assert!(c.iter().zip(on_cpu(&a, &b, shape)).all(|(x, y)| (x - y).abs() <= 1e-5));
        let rows = gpu.info().workgroups_max * 64 + 1;
        let mut tall = vec![0.0; rows as usize];
        let shape = GemmShape { m: rows, k: 0, n: 1 };
        let refused = gpu.gemm_f32_copied(&[], &[], &mut tall, shape).unwrap_err();
        assert!(matches!(refused, GpuError::BeyondLimit { .. }), "{refused}");
    }
}
