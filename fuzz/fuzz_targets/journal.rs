//! Journals made with malice: looking for what a process left behind, and sweeping, must end in a value or an error.
//!
//! How an input becomes a file stands in `replay_journal.rs`, which is a test of the store crate, too.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/store/tests/replay_journal.rs"]
mod replay_journal;

fuzz_target!(|input: &[u8]| {
    replay_journal::replay(input);
});
