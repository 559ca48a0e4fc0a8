//! What a machine can share between processor and GPU, measured: the first two links of the zero-copy chain, what each path adds to the
//! process' resident memory, latencies and bandwidths. `driftwood doctor` prints it.

#![allow(unsafe_code)]

use super::{Binding, Dispatch, GemmRanges, GemmShape, Gpu, GpuError, KernelSource, record};
use driftwood_region::{Region, page_bytes};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs of which a latency is the median.
const RUNS: usize = 100;
/// How long a device works before it is timed.
const WARM_UP: Duration = Duration::from_millis(50);
/// Rows and columns of the matrices that are multiplied.
const SIDE: u32 = 128;
/// Passes over the memory in one measurement of a bandwidth, so that its submission does not count.
const PASSES: usize = 8;

/// A product of 128x128 matrices on both paths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmReport {
    /// Median time in memory that is shared, in milliseconds.
    pub zero_copy_ms: f64,
    /// Median time with both matrices copied there and the product copied back, in milliseconds.
    pub copy_ms: f64,
    /// Wrong elements of 16,384 in shared memory.
    pub zero_copy_errors: u32,
    /// Wrong elements of 16,384 that were copied back.
    pub copy_errors: u32,
}

/// The first link: the system gives memory that begins at a page, and whose base stays when it grows.
///
/// # Errors
/// If it does not; the text says what is wrong.
pub fn check_mmap() -> Result<(), String> {
    let region = Region::reserve(1 << 20).map_err(|e| e.to_string())?;
    region.commit(page_bytes()).map_err(|e| e.to_string())?;
    let base = region.base();
    region.commit(1 << 20).map_err(|e| e.to_string())?;
    if !(base.as_ptr() as usize).is_multiple_of(page_bytes()) || region.base() != base {
        return Err(format!("mmap gave {base:p}, which is not the start of a page of {} bytes that stays", page_bytes()));
    }
    Ok(())
}

/// The second link: the GPU reads what the processor wrote, and the processor what the GPU wrote, in the same bytes, twice. Answers the
/// address that both have.
///
/// # Errors
/// If the region cannot be imported, or if a byte is not what it should be.
pub fn check_import(gpu: &Gpu) -> Result<usize, GpuError> {
    let region = region(1 << 20)?;
    let shared = gpu.import(&region)?;
    let next = gpu.kernel("next word", KernelSource::Checked(NEXT_WORD))?;
    let next = gpu.dispatch(&next, &[Binding::whole(shared.buffer())], [16, 1, 1]);
    for first in [7u32, 1 << 30] {
        words(&region).iter_mut().enumerate().for_each(|(i, word)| *word = first + i as u32);
        gpu.run_shared(std::slice::from_ref(&next), &shared)?;
        let wrong = words(&region).iter().enumerate().position(|(i, &word)| word != (first + i as u32) * 3 + 1);
        if let Some(at) = wrong {
            return Err(GpuError::NotImportable { why: format!("word {at} that the GPU wrote is not what the processor reads") });
        }
    }
    Ok(shared.address())
}

/// KiB by which this process' resident memory grows when the GPU imports and touches a region that the processor has touched, and when
/// the region is copied to a buffer of the GPU's and back instead. `None` where the system does not say.
///
/// # Errors
/// If the driver refuses.
pub fn rss_growth_kib(gpu: &Gpu, bytes: usize) -> Result<[Option<i64>; 2], GpuError> {
    touch(gpu, &gpu.buffer("first", 4096)?)?; // what the kernel itself needs
    let region = region(bytes)?;
    words(&region).fill(1);
    let before = resident_kib();
    let shared = gpu.import(&region)?;
    touch(gpu, shared.buffer())?;
    let zero_copy = growth_kib(before);
    drop(shared);
    gpu.wait()?;
    let before = resident_kib();
    let buffer = gpu.buffer("a copy", bytes as u64)?;
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(words(&region)));
    touch(gpu, &buffer)?;
    let written = growth_kib(before);
    gpu.read(&buffer, 0, bytemuck::cast_slice_mut(words(&region)))?;
    Ok([zero_copy, written.max(growth_kib(before))])
}

/// Time and errors of a product on both paths.
///
/// # Errors
/// If the driver refuses.
pub fn gemm(gpu: &Gpu) -> Result<GemmReport, GpuError> {
    let bytes = u64::from(SIDE * SIDE) * 4;
    let ranges = GemmRanges { a: 0..bytes, b: bytes..2 * bytes, c: 2 * bytes..3 * bytes };
    let shape = GemmShape { m: SIDE, k: SIDE, n: SIDE };
    let region = region(3 * bytes as usize)?;
    fill(words(&region));
    let shared = gpu.import(&region)?;
    let in_place = gpu.gemm_f32(&shared, &ranges, shape)?;
    let buffer = gpu.buffer("copied matrices", 3 * bytes)?;
    let copied = gpu.gemm_in_place(&buffer, &ranges, shape)?;
    let staging = gpu.readback("copied product", bytes)?;
    let sources: Vec<u8> = bytemuck::cast_slice(&words(&region)[..2 * (SIDE * SIDE) as usize]).to_vec();
    let mut product = vec![0f32; (SIDE * SIDE) as usize]; // (m, n)
    let zero_copy_ms = median_ms(|| gpu.run_gemm(&in_place, &shared))?;
    let copy_ms = median_ms(|| {
        gpu.queue().write_buffer(&buffer, 0, &sources);
        let mut encoder = gpu.encoder();
        record(&mut encoder, std::slice::from_ref(&copied));
        encoder.copy_buffer_to_buffer(&buffer, 2 * bytes, &staging, 0, bytes);
        gpu.submit(encoder)?;
        gpu.read_mapped(&staging, bytemuck::cast_slice_mut(&mut product))
    })?;
    let all: &[f32] = bytemuck::cast_slice(words(&region));
    let (sources, in_place) = all.split_at(2 * product.len());
    let wrong = |product: &[f32]| wrong_elements(sources, product);
    Ok(GemmReport { zero_copy_ms, copy_ms, zero_copy_errors: wrong(in_place), copy_errors: wrong(&product) })
}

/// Microseconds from the submission of a dispatch that does next to nothing until its end is known.
///
/// # Errors
/// If the driver refuses.
pub fn round_trip_us(gpu: &Gpu) -> Result<f64, GpuError> {
    let buffer = gpu.buffer("a word", 4)?;
    let dispatch = touching(gpu, Binding::whole(&buffer))?;
    Ok(median_ms(|| gpu.run(std::slice::from_ref(&dispatch)))? * 1e3)
}

/// GB/s at which a kernel reads the device's own memory and a shared region.
///
/// # Errors
/// If the driver refuses.
pub fn bandwidth_gbps(gpu: &Gpu) -> Result<[f64; 2], GpuError> {
    let (device_bytes, shared_bytes) = if gpu.info().software { (64 << 20, 64 << 20) } else { (1 << 30, 256 << 20) };
    let device_bytes = gpu.info().binding_bytes_max.min(gpu.info().buffer_bytes_max).min(device_bytes) / 4096 * 4096;
    let buffer = gpu.buffer("read by a kernel", device_bytes)?;
    let own = reading_gbps(gpu, &buffer)?;
    drop(buffer);
    let region = region(shared_bytes)?;
    words(&region).fill(1);
    Ok([own, reading_gbps(gpu, gpu.import(&region)?.buffer())?])
}

fn reading_gbps(gpu: &Gpu, buffer: &wgpu::Buffer) -> Result<f64, GpuError> {
    let groups: u32 = if gpu.info().software { 64 } else { 4096 };
    let sums = gpu.buffer("sums", u64::from(groups) * 256 * 4)?;
    let kernel = gpu.kernel("sum", KernelSource::Checked(SUM))?;
    let pass = gpu.dispatch(&kernel, &[Binding::whole(buffer), Binding::whole(&sums)], [groups, 1, 1]);
    let passes = vec![pass; PASSES];
    gpu.run(&passes)?;
    let mut times_ms = Vec::with_capacity(5);
    for _ in 0..5 {
        let started = Instant::now();
        gpu.run(&passes)?;
        times_ms.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(buffer.size() as f64 * PASSES as f64 / median(times_ms) / 1e6)
}

/// Reads and writes each word of a buffer on the GPU, a binding at a time.
fn touch(gpu: &Gpu, buffer: &wgpu::Buffer) -> Result<(), GpuError> {
    let most = gpu.info().binding_bytes_max.min(64 << 20) / 4096 * 4096;
    for offset_bytes in (0..buffer.size()).step_by(most as usize) {
        let bytes = most.min(buffer.size() - offset_bytes);
        gpu.run(&[touching(gpu, Binding { buffer, offset_bytes, bytes })?])?;
    }
    Ok(())
}

fn touching(gpu: &Gpu, binding: Binding<'_>) -> Result<Dispatch, GpuError> {
    let kernel = gpu.kernel("next word", KernelSource::Checked(NEXT_WORD))?;
    let groups = binding.bytes.div_ceil(256 * 4).clamp(1, 256) as u32;
    Ok(gpu.dispatch(&kernel, &[binding], [groups, 1, 1]))
}

/// A region that is open for so many bytes.
pub(super) fn region(bytes: usize) -> Result<Arc<Region>, GpuError> {
    let made = Region::reserve(bytes).and_then(|region| region.commit(bytes).map(|()| region));
    made.map(Arc::new).map_err(|e| GpuError::NotImportable { why: e.to_string() })
}

/// The words of a region of this file's. No two of these slices are used at a time, and none while the GPU works.
#[allow(clippy::mut_from_ref)] // a region is an address range, not an owner of its bytes
pub(super) fn words(region: &Region) -> &mut [u32] {
    // SAFETY: the open bytes are readable, writable and aligned to pages; the regions here are private to one function each, which runs
    // on one thread and waits for the GPU before it looks.
    unsafe { std::slice::from_raw_parts_mut(region.base().as_ptr().cast(), region.open_bytes() / 4) }
}

/// Values i / 512 - 1, as f32.
fn fill(words: &mut [u32]) {
    let mut state = 1u32;
    for word in words {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *word = ((state >> 22) as f32 / 512.0 - 1.0).to_bits();
    }
}

/// Elements that are further from the exact product than any order of f32 summation explains.
fn wrong_elements(sources: &[f32], product: &[f32]) -> u32 {
    let side = SIDE as usize;
    let (a, b) = sources.split_at(side * side);
    let is_wrong = |(at, &got): (usize, &f32)| {
        let products = (0..side).map(|i| f64::from(a[at / side * side + i]) * f64::from(b[i * side + at % side]));
        let (exact, magnitude) = products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()));
        let within = (f64::from(got) - exact).abs() <= side as f64 * f64::from(f32::EPSILON) * magnitude;
        !within // what is no number is wrong
    };
    product.iter().enumerate().filter(|&element| is_wrong(element)).count() as u32
}

/// The median of many runs, after some that do not count: an idle GPU's clock is slow, and takes a while to rise.
fn median_ms(mut run: impl FnMut() -> Result<(), GpuError>) -> Result<f64, GpuError> {
    let begun = Instant::now();
    while begun.elapsed() < WARM_UP {
        run()?;
    }
    let mut times_ms = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let started = Instant::now();
        run()?;
        times_ms.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(times_ms))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn growth_kib(before: Option<i64>) -> Option<i64> {
    resident_kib().zip(before).map(|(now, before)| now - before)
}

/// KiB of this process that are in memory, where Linux says so.
fn resident_kib() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

const NEXT_WORD: &str = "
@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let apart = groups.x * 256u;
    for (var i = id.x; i < arrayLength(&words); i += apart) {
        words[i] = words[i] * 3u + 1u;
    }
}";

const SUM: &str = "
@group(0) @binding(0) var<storage, read_write> words: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> sums: array<u32>;
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let apart = groups.x * 256u;
    var sum = vec4<u32>();
    for (var i = id.x; i < arrayLength(&words); i += apart) {
        sum += words[i];
    }
    sums[id.x] = sum.x + sum.y + sum.z + sum.w;
}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tests::gpu;

    #[test]
    fn the_links_hold_here() {
        assert_eq!(check_mmap(), Ok(()));
        assert!(check_import(&gpu()).unwrap() > 0);
    }

    #[test]
    fn a_product_has_no_errors_and_a_wrong_one_is_found() {
        let report = gemm(&gpu()).unwrap();
        assert_eq!((report.zero_copy_errors, report.copy_errors), (0, 0));
        let mut sources = vec![0u32; 2 * (SIDE * SIDE) as usize];
        fill(&mut sources);
        let nothing = vec![f32::NAN; (SIDE * SIDE) as usize];
        assert_eq!(wrong_elements(bytemuck::cast_slice(&sources), &nothing), SIDE * SIDE);
    }
}
