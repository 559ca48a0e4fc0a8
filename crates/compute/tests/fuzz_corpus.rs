//! Replays the fuzz target of guests' kernels on stable: the seeds in the repository, and a corpus where fuzzing has left one.

mod common {
    pub mod guest_kernels;
}

use std::path::PathBuf;

fn folder(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "..", "fuzz", name, "guest_kernel"].iter().collect()
}

#[test]
fn seeds_and_corpus_are_answered() {
    let mut count = 0;
    for folder in [folder("seeds"), folder("corpus")] {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            common::guest_kernels::guest_kernel(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
    }
    assert!(count >= 5, "the seeds are in the repository");
}

/// Cuts and doublings of the seeds: no fuzzer, but a quick look that no text makes the check panic.
#[test]
fn broken_seeds_are_answered() {
    for entry in std::fs::read_dir(folder("seeds")).unwrap() {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        for at in (0..seed.len()).step_by(3) {
            common::guest_kernels::guest_kernel(&seed[..at]);
            common::guest_kernels::guest_kernel(&[&seed[..at], &seed[at / 2..]].concat());
            common::guest_kernels::guest_kernel(&[&seed[..at], &seed[(at + 1).min(seed.len())..]].concat());
        }
    }
}
