//! Matrix products and attention for devices with cooperative matrices: [`super::GpuInfo::cooperative`].
//!
//! - `pack.rs`: weights as tiles. `upload.rs`: packed and sent to the device.
//! - `one_row.rs`, `many_rows.rs`: the text of the kernels. `text.rs`: what they share.
//! - `product.rs`: which kernels a product takes, bound to buffers. `embed.rs`: rows of a matrix.
//! - `attend.rs`: attention, bound to buffers. `attend_text.rs`, `attend_fused.rs`: the text of its kernels.
//!
//! **Bits.** An output is `((c0 + c1) + c2) + ...` in f32; `ci` is the chain of 16x16x16 multiply-adds of f16 operands, with f32 sums that
//! start at zero, over elements `256 i` to `256 i + 255` of K. Every product keeps to that, so a row's values do not depend on how many
//! rows it is among. Activations come as f16 rows, padded with zeros to a multiple of 256.

mod attend;
mod attend_fused;
#[cfg(test)]
mod attend_speed;
#[cfg(test)]
mod attend_tests;
mod attend_text;
mod embed;
mod many_rows;
mod one_row;
mod pack;
mod product;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;
mod text;
mod upload;

pub use attend::{Attended, Fused, HeadNorms, RUN_ROWS_MAX, Rotation, TileAttention};
pub use pack::{Arrange, Packing, TileFormat};
pub use product::{Input, Many, Norm, Normed, Output, Rows, norm_rows};
pub use upload::{Staging, TileMatrix};

/// The function of the gate in a gated product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// GELU, with the tanh approximation.
    GeluTanh,
}

/// Elements of an f16 row of `k` elements, padding included.
pub const fn padded_len(k: usize) -> usize {
    k.next_multiple_of(pack::CHUNK)
}
