//! Ranges of one memory, and whether a kernel may be bound to them.

use super::{GuestKernel, GuestKernelError as Error};
use std::ops::Range;

/// Ranges begin at multiples of this, on every device alike, so that a guest's message does not depend on where it is handled. No
/// device asks for more: it is the most that Vulkan and WebGPU allow.
const ALIGN_BYTES: u64 = 256;

impl GuestKernel {
    /// Whether range `i` of a memory can be bound to buffer `i`.
    ///
    /// # Errors
    /// [`Error::RangeCount`], [`Error::Unaligned`], [`Error::TooShort`] or [`Error::Overlap`].
    pub fn fit(&self, ranges: &[Range<u64>]) -> Result<(), Error> {
        if ranges.len() != self.bindings.len() {
            return Err(Error::RangeCount { count: ranges.len(), expected: self.bindings.len() });
        }
        for (binding, (range, wanted)) in ranges.iter().zip(&self.bindings).enumerate() {
            let (offset, bytes, bytes_min) = (range.start, range.end.saturating_sub(range.start), wanted.bytes_min.max(4));
            if !offset.is_multiple_of(ALIGN_BYTES) || !bytes.is_multiple_of(4) {
                return Err(Error::Unaligned { binding, offset, bytes, align: ALIGN_BYTES });
            }
            if bytes < bytes_min {
                return Err(Error::TooShort { binding, bytes, bytes_min });
            }
        }
        self.overlap(ranges).map_or(Ok(()), |(written, other)| Err(Error::Overlap { written, other }))
    }

    /// A range that may be written, and another that shares bytes with it. None is empty.
    fn overlap(&self, ranges: &[Range<u64>]) -> Option<(usize, usize)> {
        let written = (0..ranges.len()).filter(|&at| self.bindings[at].writable);
        let pairs = written.flat_map(|written| (0..ranges.len()).map(move |other| (written, other)));
        pairs.into_iter().find(|&(one, two)| one != two && ranges[one].start < ranges[two].end && ranges[two].start < ranges[one].end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GuestKernelLimits;

    #[test]
    fn ranges_are_aligned_long_enough_and_apart_where_they_are_written() {
        let source = "
            struct Pair { x: vec4<f32>, y: u32 }
            @group(0) @binding(0) var<storage> a: array<u32>;
            @group(0) @binding(1) var<storage> b: Pair;
            @group(0) @binding(2) var<storage, read_write> c: array<vec2<u32>>;
            @compute @workgroup_size(1) fn main() { c[0].x = a[0] + b.y; }";
        let kernel = GuestKernel::check(source, "main", &GuestKernelLimits::default()).unwrap();
        let unaligned = |binding, offset, bytes| Err(Error::Unaligned { binding, offset, bytes, align: 256 });
        let overlap = |written, other| Err(Error::Overlap { written, other });
        let cases = [
            (vec![0..4, 256..288, 512..520], Ok(())),
            (vec![0..512, 256..512, 512..1024], Ok(())), // both are only read
            (vec![0..4, 256..288], Err(Error::RangeCount { count: 2, expected: 3 })),
            (vec![0..4, 256..288, 512..520, 768..772], Err(Error::RangeCount { count: 4, expected: 3 })),
            (vec![4..8, 256..288, 512..520], unaligned(0, 4, 4)),
            (vec![0..4, 256..288, 640..648], unaligned(2, 640, 8)),
            (vec![0..6, 256..288, 512..520], unaligned(0, 0, 6)),
            (vec![0..0, 256..288, 512..520], Err(Error::TooShort { binding: 0, bytes: 0, bytes_min: 4 })),
            (vec![0..4, 256..284, 512..520], Err(Error::TooShort { binding: 1, bytes: 28, bytes_min: 32 })),
            (vec![0..4, 256..288, 256..264], overlap(2, 1)),
            (vec![0..4096, 256..288, 512..520], overlap(2, 0)),
            (vec![768..772, 768..800, 512..772], overlap(2, 0)),
        ];
        for (ranges, expected) in cases {
            assert_eq!(kernel.fit(&ranges), expected, "{ranges:?}");
        }
    }
}
