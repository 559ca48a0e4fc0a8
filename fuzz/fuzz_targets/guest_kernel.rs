//! Compute kernels made with malice: checking them must end in a kernel or an error, and what is let through must have sound figures.
//!
//! What is done with an input stands in `guest_kernels.rs`, which the compute crate's tests share.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/compute/tests/common/guest_kernels.rs"]
mod guest_kernels;

fuzz_target!(|input: &[u8]| guest_kernels::guest_kernel(input));
