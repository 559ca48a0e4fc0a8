//! The device itself: sharing memory, checked kernels, errors. Kernels of the decoder are tested beside them.

use super::{Binding, Gpu, GpuError, KernelSource};
use driftwood_region::Region;
use std::sync::Arc;

/// The device that the tests run on.
pub(crate) fn gpu() -> Arc<Gpu> {
    Gpu::open(None).expect("tests of the GPU need a Vulkan driver: apt install mesa-vulkan-drivers")
}

fn region(bytes: usize) -> Arc<Region> {
    let region = Region::reserve(bytes * 2).unwrap();
    region.commit(bytes).unwrap();
    Arc::new(region)
}

fn words(region: &Region) -> &[u32] {
    // SAFETY: the open bytes are readable, aligned, and no GPU work is in flight.
    #[allow(unsafe_code)]
    unsafe {
        std::slice::from_raw_parts(region.base().as_ptr().cast(), region.open_bytes() / 4)
    }
}

const COUNT_UP: &str = "
@group(0) @binding(0) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) { out[id.x] = id.x + 1u; }";

#[test]
fn the_gpu_writes_into_host_memory() {
    let gpu = gpu();
    let region = region(64 << 10);
    let shared = gpu.import(&region).unwrap();
    assert_eq!(shared.address(), region.base().as_ptr() as usize);
    let kernel = gpu.kernel("count up", KernelSource::Checked(COUNT_UP)).unwrap();
    // Half of the region: what lies behind must keep its zeros.
    let half = Binding { bytes: 32 << 10, ..Binding::whole(shared.buffer()) };
    gpu.run(&[gpu.dispatch(&kernel, &[half], [256, 1, 1])]).unwrap();
    let words = words(&region);
    assert!(words[..8192].iter().enumerate().all(|(i, w)| *w == i as u32 + 1));
    assert!(words[8192..].iter().all(|w| *w == 0), "a checked kernel stays within its binding");
}

#[test]
fn a_grown_region_is_imported_again() {
    let gpu = gpu();
    let region = region(16 << 10);
    let before = gpu.import(&region).unwrap();
    region.commit(32 << 10).unwrap();
    let after = gpu.import(&region).unwrap();
    assert_eq!((before.bytes(), after.bytes()), (16 << 10, 32 << 10));
    let kernel = gpu.kernel("count up", KernelSource::Checked(COUNT_UP)).unwrap();
    drop(before);
    gpu.run(&[gpu.dispatch(&kernel, &[Binding::whole(after.buffer())], [128, 1, 1])]).unwrap();
    assert_eq!(words(&region)[8191], 8192);
}

#[test]
fn the_region_outlives_its_owner_while_the_gpu_has_it() {
    let gpu = gpu();
    let region = region(16 << 10);
    let shared = gpu.import(&region).unwrap();
    let weak = Arc::downgrade(&region);
    drop(region);
    assert!(weak.upgrade().is_some());
    drop(shared);
    gpu.wait().unwrap();
    assert!(weak.upgrade().is_none(), "nothing else keeps it");
}

#[test]
fn what_cannot_be_shared_is_refused_before_the_driver_is_asked() {
    let gpu = gpu();
    let closed = Arc::new(Region::reserve(1 << 20).unwrap());
    assert!(matches!(gpu.import(&closed), Err(GpuError::NotImportable { .. })));
    let missing = Gpu::open(Some("no such device")).unwrap_err();
    assert!(missing.to_string().contains("no such device"), "{missing}");
    let too_long = gpu.buffer("too long", u64::MAX - 7).unwrap_err();
    assert!(matches!(too_long, GpuError::BeyondLimit { .. }), "{too_long}");
}

#[test]
fn a_kernel_that_does_not_compile_is_an_error_and_no_loss() {
    let gpu = gpu();
    let broken = gpu.kernel("broken", KernelSource::Checked("fn main() {"));
    assert!(matches!(broken, Err(GpuError::Driver { .. })), "{broken:?}");
    the_gpu_writes_into_host_memory();
    assert!(gpu.kernel("count up", KernelSource::Checked(COUNT_UP)).is_ok());
}
