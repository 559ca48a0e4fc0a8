//! Guests made with malice: any sequence of host calls with any arguments must end in an answer or an error, and harm nobody else.
//!
//! What an input means stands in `tiny.rs`, which the actor crate's tests share.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/actor/tests/common/tiny.rs"]
mod tiny;

fuzz_target!(|input: &[u8]| tiny::host_calls(input));
