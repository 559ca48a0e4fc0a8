//! Snapshot files made with malice: opening, inspecting, verifying and reading them must end in a value or an error.
//!
//! How an input becomes a file stands in `replay.rs`, which the snapshot crate's tests share.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/snapshot/tests/common/replay.rs"]
mod replay;

fuzz_target!(|input: &[u8]| replay::replay(input));
