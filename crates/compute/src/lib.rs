//! Kernels and the devices they run on. This crate knows no model: it multiplies, normalises and attends.
//!
//! The CPU device is [`Cpu`]. Its promise is that results are *bit-identical* on every SIMD path, for any number of threads, and for a
//! row alone or among many; `cpu/mod.rs` says how. Weights come as a [`Matrix`] (views in GGML's row layouts or MLX's groups), activations as
//! [`Activations`], and keys and values as blocks in a [`KvLayout`] that a [`KvSource`] finds.
//!
//! ```
//! use driftwood_compute::{Arithmetic, Cpu, Simd};
//! let cpu = Cpu::new(2, Simd::detect(), Arithmetic::Fast);
//! let mut gate = [1.0, -1.0];
//! cpu.silu_mul(&mut gate, &[2.0, 2.0]);
//! assert!((gate[0] - 1.4621172).abs() < 1e-6);
//! ```
//!
//! `unsafe` stands only in the files that `cpu/mod.rs` lists.

#![deny(unsafe_code)]

pub mod cpu;
mod error;
pub mod gpu;
mod matrix;

pub use cpu::activations::Activations;
pub use cpu::attend::{AttendScratch, AttendShape, KvSource, Row};
pub use cpu::dequant::dequantise_row;
pub use cpu::kv::{KV_BLOCK_TOKENS, KvDType, KvLayout, load_kv_row, store_kv_row};
pub use cpu::math;
pub use cpu::rope::{rope_half, rope_interleaved};
pub use cpu::simd::Simd;
pub use cpu::{Arithmetic, Cpu, GROUPS_KERNEL_VERSION, KERNEL_VERSION};
pub use error::Error;
pub use matrix::Matrix;
