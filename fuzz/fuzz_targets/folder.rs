//! Folders of models made with malice: describing them must end in a description or an error.
//!
//! What is done with an input stands in `exercise.rs`, which the engine crate's tests share.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/engine/tests/common/exercise.rs"]
mod exercise;

fuzz_target!(|input: &[u8]| exercise::folder(input));
