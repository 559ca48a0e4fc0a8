//! Heads made with malice: reading one, and looking for what it names, must end in a value or an error.
//!
//! How an input becomes a file stands in `replay.rs`, which is a test of the store crate, too.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/store/tests/replay.rs"]
mod replay;

fuzz_target!(|input: &[u8]| replay::replay(input));
