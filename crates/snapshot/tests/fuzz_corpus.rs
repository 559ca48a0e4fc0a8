//! Replays what the fuzzer started from and what it found: every file of `fuzz/seeds/snapshot` and `fuzz/corpus/snapshot`.

mod common;

use common::replay::{expand, replay};
use common::{Actor, info, noise, split};
use driftwood_snapshot::*;
use std::path::{Path, PathBuf};

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect()
}

#[test]
fn corpus_harms_nobody() {
    let seeds = files(&fuzz_folder().join("seeds/snapshot"));
    assert!(!seeds.is_empty(), "fuzz/seeds/snapshot is empty; run this test file with --ignored to write it");
    for path in seeds.iter().chain(&files(&fuzz_folder().join("corpus/snapshot"))) {
        replay(&std::fs::read(path).unwrap());
    }
}

#[test]
fn seeds_that_are_named_good_open() {
    for path in files(&fuzz_folder().join("seeds/snapshot")).iter().filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("good"))
    {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), expand(&std::fs::read(path).unwrap())).unwrap();
        Snapshot::open(file.path()).unwrap().verify_all(1).unwrap();
    }
}

/// Snapshots of which the data after the first KB is zero, as inputs of the kind that is sealed.
#[test]
#[ignore = "writes fuzz/seeds/snapshot"]
fn write_seeds() {
    let folder = fuzz_folder().join("seeds/snapshot");
    std::fs::create_dir_all(&folder).unwrap();
    let mut actor = Actor::sample();
    actor.memory.fill(0);
    (actor.memory[3], actor.memory[70_000], actor.module) = (1, 2, noise(1, 40));
    for (info, blocks) in &mut actor.pools {
        blocks.iter_mut().for_each(|block| *block = vec![0; info.block_bytes as usize]);
    }
    write_seed(&folder.join("good-whole"), &actor.contents());
    write_seed(&folder.join("good-guest"), &Contents { pools: vec![], sessions: vec![], ..actor.contents() });
    write_seed(&folder.join("good-sessions"), &Contents { guest: None, ..actor.contents() });
    let pools = vec![PoolContents { info: info(KvDType::F32, 1, 1, 8, 2), blocks: vec![] }];
    write_seed(&folder.join("good-empty-pool"), &Contents { pools, sessions: vec![], guest: None, ..actor.contents() });
    std::fs::write(folder.join("bad-text"), b"\0Once upon a time").unwrap();
    std::fs::write(folder.join("bad-start"), [&[0], &[248, 255, 0, 0, 0, 0, 0, 0][..], common::replay::BEGINNING.as_bytes()].concat())
        .unwrap();
}

fn write_seed(path: &Path, contents: &Contents<'_>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    write(contents, file.path(), Existing::Replace).unwrap();
    let (header, data) = split(&std::fs::read(file.path()).unwrap());
    let used = data.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    let seed = [&[1], &data.len().to_le_bytes()[..3], header.to_string().as_bytes(), &[0], &data[..used]].concat();
    std::fs::write(path, seed).unwrap();
}
