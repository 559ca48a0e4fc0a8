//! Weight files made with malice: parsing them must end in tensors or an error.
//!
//! What is done with an input stands in `exercise.rs`, which the engine crate's tests share.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/engine/tests/common/exercise.rs"]
mod exercise;

fuzz_target!(|input: &[u8]| exercise::safetensors(input));
