//! Matrix products, and kernels of this module's own, computed by the host on this module's own memory.
#![forbid(unsafe_code)]

use core::marker::PhantomData;

use crate::{Result, host};

/// The three sizes of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatmulShape {
    /// Rows of a and c.
    pub m: u32,
    /// Columns of a, rows of b.
    pub k: u32,
    /// Columns of b and c.
    pub n: u32,
}

/// `c` (m, n) = `a` (m, k) times `b` (k, n), row-major; the bytes stay where they are.
///
/// # Errors
/// If a slice is not of its shape, or the host can't compute.
pub fn matmul(a: &[f32], b: &[f32], c: &mut [f32], shape: MatmulShape) -> Result<()> {
    host::matmul(a, b, c, [shape.m, shape.k, shape.n])
}

/// A kernel's buffer: a slice of this module's memory that the host's GPU works on in place. It begins at a multiple of
/// [`BINDING_ALIGN`], as every `Vec` of 256 bytes or more does on the heap of `actor!`.
#[repr(transparent)]
pub struct Binding<'a> {
    range: RawBinding,
    slice: PhantomData<&'a mut [u32]>,
}

/// Where a [`Binding`] begins: `DW_BINDING_ALIGN`.
pub const BINDING_ALIGN: usize = 256;

/// `dw_binding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RawBinding {
    pub offset: u32,
    pub bytes: u32,
}

/// How many invocations of a kernel run, and how long each may: `dw_grid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Grid {
    /// Workgroups in x, y and z.
    pub workgroups: [u32; 3],
    /// Iterations of loops that each invocation may run before its loops end; 0 for the host's 65536. A smaller budget allows for more
    /// workgroups and costs less fuel.
    pub loop_budget: u32,
}

/// Types of four bytes, any bits of which are a value.
macro_rules! bindable {
    ($($word:ty),*) => {
        $(impl<'a> From<&'a mut [$word]> for Binding<'a> {
            fn from(slice: &'a mut [$word]) -> Binding<'a> {
                let range = RawBinding { offset: slice.as_mut_ptr() as usize as u32, bytes: size_of_val(slice) as u32 };
                Binding { range, slice: PhantomData }
            }
        })*
    };
}

bindable!(u32, i32, f32);

/// Runs a kernel, a text of WGSL with one entry point `@compute fn main`, on the host's GPU; binding `i` is its buffer `i` of group 0.
/// `driftwood.h` says what a kernel may have.
///
/// ```no_run
/// # fn example(numbers: &mut [f32]) -> driftwood_guest::Result<()> {
/// use driftwood_guest::{Grid, dispatch};
///
/// let double = "
///     @group(0) @binding(0) var<storage, read_write> numbers: array<f32>;
///     @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {
///         if id.x < arrayLength(&numbers) { numbers[id.x] *= 2.0; }
///     }";
/// let workgroups = [numbers.len().div_ceil(64) as u32, 1, 1];
/// dispatch(double, &mut [numbers.into()], Grid { workgroups, loop_budget: 0 })
/// # }
/// ```
///
/// # Errors
/// If the host has no GPU that can share this memory ([`crate::Code::NoGpu`]), refuses the kernel ([`crate::Code::BadKernel`]), a slice
/// ([`crate::Code::Unaligned`], [`crate::Code::BadArgument`]) or the size of it all ([`crate::Code::Limit`]), or can't compute.
pub fn dispatch(wgsl: &str, bindings: &mut [Binding<'_>], grid: Grid) -> Result<()> {
    host::dispatch(wgsl, bindings, &grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_the_ranges_of_their_slices() {
        let mut words = [0.0f32; 96];
        let at = words.as_ptr() as usize as u32;
        assert_eq!(Binding::from(&mut words[..]).range, RawBinding { offset: at, bytes: 384 });
        assert_eq!(Binding::from(&mut words[64..64]).range, RawBinding { offset: at + 256, bytes: 0 });
        assert_eq!((size_of::<Binding<'_>>(), size_of::<Grid>()), (8, 16));
        assert!(include_str!("../../include/driftwood.h").contains(&format!("#define DW_BINDING_ALIGN {BINDING_ALIGN} ")));
    }
}
