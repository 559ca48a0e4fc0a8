//! A guest's checked kernel, compiled for a device and run on ranges of the guest's own memory, without a copy.

use super::guest_kernel::on_deep_stack;
use super::{Binding, Gpu, GpuError, GuestKernel, GuestKernelError, Imported, Kernel};
use std::ops::Range;
use std::sync::Arc;

/// A guest's kernel that can be dispatched on the device that compiled it.
#[derive(Debug)]
pub struct GuestDispatch {
    checked: GuestKernel,
    kernel: Arc<Kernel>,
}

/// Why a guest's kernel did not run, or not to its end.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GuestDispatchError {
    /// The kernel, its ranges or its workgroups are refused: nothing was submitted.
    #[error(transparent)]
    Kernel(#[from] GuestKernelError),
    /// The device cannot do it, or failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

impl GuestDispatch {
    /// Compiles a kernel. Accesses are checked against their bindings, and workgroup memory starts as zeros.
    ///
    /// # Errors
    /// If the driver or the compiler before it fails on it.
    pub fn compile(gpu: &Gpu, checked: GuestKernel) -> Result<GuestDispatch, GuestDispatchError> {
        let kernel = on_deep_stack(|| Ok(Arc::new(Kernel::compile_guest(gpu.device(), &checked))))?;
        gpu.check()?;
        Ok(GuestDispatch { checked, kernel })
    }

    /// What was checked: [`GuestKernel::admit`] says what a dispatch costs.
    pub fn checked(&self) -> &GuestKernel {
        &self.checked
    }

    /// Runs it on ranges of a shared memory, one a binding, and waits. The ranges belong to the device until this returns.
    ///
    /// # Errors
    /// [`GuestDispatchError::Kernel`] if workgroups or ranges are refused, [`GpuError::BeyondLimit`] if a range is too long to be bound, or
    /// if the device fails.
    ///
    /// # Panics
    /// If a range leaves the memory, or `gpu` is another device than the memory's and the kernel's: the caller checked it.
    pub fn run(&self, gpu: &Gpu, memory: &Imported, ranges: &[Range<u64>], workgroups: [u32; 3]) -> Result<(), GuestDispatchError> {
        self.checked.admit(workgroups)?;
        self.checked.fit(ranges)?;
        let bindings: Result<Vec<_>, _> = ranges.iter().map(|range| bind(gpu, memory, range)).collect();
        gpu.run_shared(&[gpu.dispatch(&self.kernel, &bindings?, workgroups)], memory)?;
        Ok(())
    }
}

fn bind<'a>(gpu: &Gpu, memory: &'a Imported, range: &Range<u64>) -> Result<Binding<'a>, GpuError> {
    assert!(range.end <= memory.bytes() && range.start.is_multiple_of(gpu.info().binding_align_bytes), "{range:?}");
    let (bytes, limit) = (range.end - range.start, gpu.info().binding_bytes_max);
    if bytes > limit {
        return Err(GpuError::BeyondLimit { what: "the bytes of a binding", asked: bytes, limit });
    }
    Ok(Binding { buffer: memory.buffer(), offset_bytes: range.start, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GuestKernelLimits;
    use crate::gpu::tests::gpu;
    use driftwood_region::Region;

    const SUM: &str = "
        @group(0) @binding(0) var<storage> a: array<u32>;
        @group(0) @binding(1) var<storage> b: array<u32>;
        @group(0) @binding(2) var<storage, read_write> c: array<u32>;
        @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) { c[id.x] = a[id.x] + b[id.x] + 1u; }";

    fn words(region: &Region) -> Vec<u32> {
        // SAFETY: the open bytes are readable, aligned, and no GPU work is in flight.
        #[allow(unsafe_code)]
        let words = unsafe { std::slice::from_raw_parts(region.base().as_ptr().cast::<u32>(), region.open_bytes() / 4) };
        words.to_vec()
    }

    fn shared(gpu: &Gpu) -> (Arc<Region>, Imported) {
        let region = Region::reserve(1 << 20).unwrap();
        region.commit(16 << 10).unwrap();
        let region = Arc::new(region);
        let imported = gpu.import(&region).unwrap();
        (region, imported)
    }

    fn compile(gpu: &Gpu, source: &str) -> GuestDispatch {
        GuestDispatch::compile(gpu, GuestKernel::check(source, "main", &GuestKernelLimits::default()).unwrap()).unwrap()
    }

    /// Ranges that are read and one that is written lie in one buffer; what lies around them keeps its bytes.
    #[test]
    fn a_kernel_computes_in_ranges_of_one_memory() {
        let gpu = gpu();
        let (region, memory) = shared(&gpu);
        let kernel = compile(&gpu, SUM);
        kernel.run(&gpu, &memory, &[0..256, 256..512, 1024..1280], [2, 1, 1]).unwrap();
        kernel.run(&gpu, &memory, &[1024..1280, 1024..1280, 512..1020], [9, 1, 1]).unwrap();
        let words = words(&region);
        for (index, word) in words.iter().enumerate() {
            let expected = match index {
                256..320 => 1..=1,
                128..192 => 3..=3,
                192..=254 => 1..=3, // beyond what is bound to `a` and `b` are zeros, or bytes of theirs
                _ => 0..=0,
            };
            assert!(expected.contains(word), "word {index}: {word}");
        }
        let refused = kernel.run(&gpu, &memory, &[0..256, 256..512, 256..512], [1, 1, 1]).unwrap_err();
        assert_eq!(refused, GuestKernelError::Overlap { written: 2, other: 1 }.into());
        let refused = kernel.run(&gpu, &memory, &[0..256, 256..512, 512..768], [1, 1, 65_536]).unwrap_err();
        assert!(matches!(refused, GuestDispatchError::Kernel(GuestKernelError::Grid { .. })), "{refused}");
    }

    /// A device that is gone is an error of the call that finds it gone, stays one, and can be opened again.
    #[test]
    fn a_lost_device_is_opened_again() {
        let gpu = gpu();
        let (_region, memory) = shared(&gpu);
        let kernel = compile(&gpu, SUM);
        gpu.device().destroy();
        let ranges = [0..256, 256..512, 512..768];
        for _ in 0..2 {
            let lost = kernel.run(&gpu, &memory, &ranges, [1, 1, 1]).unwrap_err();
            assert!(matches!(lost, GuestDispatchError::Gpu(GpuError::Lost { .. })), "{lost}");
        }
        assert!(gpu.is_lost());
        let again = gpu.reopen().unwrap();
        let (region, memory) = shared(&again);
        compile(&again, SUM).run(&again, &memory, &ranges, [1, 1, 1]).unwrap();
        assert_eq!(words(&region)[128..192], [1; 64]);
    }
}
