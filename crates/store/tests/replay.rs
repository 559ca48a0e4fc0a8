//! One fuzz input, run: a head made with malice must end in a value or an error. The fuzz target includes this file; as a test it replays
//! `fuzz/seeds/head` and `fuzz/corpus/head`.
//!
//! No fuzzer guesses a hash: unless an input begins with a zero byte, it is the JSON of a head, and its first line is made here.

use driftwood_snapshot::{Existing, Hash};
use driftwood_store::{Chunks, Head};

/// The file that an input stands for.
pub fn expand(input: &[u8]) -> Vec<u8> {
    match input {
        [0, file @ ..] => file.to_vec(),
        json => [format!("driftwood-head 1 {}\n", Hash::of(json)).as_bytes(), json].concat(),
    }
}

/// Reads it, and everything that it names, which is not there.
pub fn replay(input: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("head");
    std::fs::write(&path, expand(input)).expect("room for it");
    let Ok(head) = Head::read(&path) else { return };
    let chunks = Chunks::open(folder.path()).expect("an empty folder");
    let named = head.chunks().map(|chunk| chunk.len_bytes / 2).fold(0u64, u64::saturating_add);
    let pages = head.guest.as_ref().map(|guest| guest.memory.pages(&chunks).is_ok());
    let ids = head.sessions.iter().filter(|session| session.token_ids(&chunks).is_ok()).count();
    let _ = (head.state_hash(&chunks).is_ok(), head.turns(&chunks).is_ok(), head.history(&chunks).count());
    let _ = (head.manifest(), head.kv_bytes(), named, pages, ids, chunks.check(std::slice::from_ref(&path)).len());
    let _ = head.export(&chunks, &folder.path().join("file"), Existing::Refuse, &[]);
    head.publish(&path).expect("room for it");
    assert_eq!(Head::read(&path).expect("what was read can be written"), head);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn files(folder: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(folder);
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
    }

    #[test]
    fn corpus_harms_nobody() {
        let seeds = files("seeds/head");
        assert!(seeds.len() > 3, "fuzz/seeds/head has few files");
        seeds.iter().chain(&files("corpus/head")).for_each(|path| replay(&std::fs::read(path).unwrap()));
    }

    #[test]
    fn seeds_that_are_named_good_are_read() {
        for path in files("seeds/head").iter().filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("good")) {
            let folder = tempfile::tempdir().unwrap();
            let head = folder.path().join("head");
            std::fs::write(&head, expand(&std::fs::read(path).unwrap())).unwrap();
            Head::read(&head).unwrap();
        }
    }
}
