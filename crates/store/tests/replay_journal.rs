//! One fuzz input, run: a journal made with malice must end in a value or an error. The fuzz target includes this file; as a test it replays
//! `fuzz/seeds/journal` and `fuzz/corpus/journal`.
//!
//! No fuzzer guesses a check: unless an input begins with a zero byte and is the file itself, it is a list of records, each of four bytes
//! (kind, stream, salt, length of the payload) and the payload; the first page, and for a beginning identity and head, are put before.

use driftwood_snapshot::{ActorId, Hash};
use driftwood_store::{Base, left_behind, sweep_journals};
use std::path::Path;

/// Whose records are looked for.
fn base() -> Base {
    Base { name: "ada".into(), id: ActorId([7; 16]), head: Hash([9; 32]) }
}

/// The file that an input stands for.
pub fn expand(input: &[u8]) -> Vec<u8> {
    if let [0, file @ ..] = input {
        return file.to_vec();
    }
    let mut file = b"driftwood-journal 1\n".to_vec();
    file.resize(4096, 0);
    let mut rest = input;
    while let [kind, stream, salt, len, after @ ..] = rest {
        let (payload, after) = after.split_at(after.len().min(usize::from(*len)));
        let base = if *kind == 1 { [&base().id.0[..], &base().head.0].concat() } else { Vec::new() };
        let payload = [&base, payload].concat();
        let header = [&(payload.len() as u32).to_le_bytes()[..], &[*stream, 0, 0, 0, *kind], &u64::from(*salt).to_le_bytes()].concat();
        let record = [header, payload].concat();
        file.extend_from_slice(&record);
        file.extend_from_slice(&Hash::of(&record).0[..8]);
        rest = after;
    }
    file
}

/// How many records of ours were found, if any of our streams were.
fn found(folder: &Path) -> Option<usize> {
    left_behind(folder, &[], &base()).ok().flatten().map(|left| left.records.len())
}

/// Looks for what was left behind, and sweeps.
pub fn replay(input: &[u8]) -> Option<usize> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = expand(input);
    std::fs::write(folder.path().join(format!("{}.journal", ActorId([1; 16]))), &file).expect("room for it");
    let left = found(folder.path());
    assert!(left.is_none_or(|records| records <= file.len() / 25), "each record takes 25 bytes at least");
    let swept = sweep_journals(folder.path(), |name| (name == base().name).then(|| base().head)).expect("it can be removed");
    assert!(left.is_none() || swept == 0, "what is gone on with must stay");
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// The seeds: file name, input, and how many records are found.
    fn seeds() -> Vec<(&'static str, Vec<u8>, Option<usize>)> {
        let begin = |stream: u8, name: &str| [&[1, stream, 5, name.len() as u8], name.as_bytes()].concat();
        let record = |stream: u8, salt: u8, text: &str| [&[2, stream, salt, text.len() as u8], text.as_bytes()].concat();
        let two = [begin(0, "ada"), begin(1, "bob"), record(0, 5, "one"), record(1, 5, "uno"), record(0, 5, "two")].concat();
        let mut later = b"\0driftwood-journal 2\n".to_vec();
        later.resize(1 + 4096, 0);
        vec![
            ("good-two-streams", two.clone(), Some(2)),
            ("good-ended", [two.clone(), vec![3, 0, 5, 0]].concat(), None),
            ("bad-salt", [two.clone(), record(0, 6, "three")].concat(), Some(2)),
            ("bad-begun-twice", [begin(0, "ada"), begin(0, "ada"), record(0, 5, "one")].concat(), Some(0)),
            ("bad-unknown-stream", [begin(0, "ada"), record(3, 5, "one"), record(0, 5, "two")].concat(), Some(0)),
            ("bad-torn", [&[0][..], &expand(&two)[..4096 + 2 * 25 + 2 * 51 + 25 + 2]].concat(), Some(0)),
            ("bad-version", later, None),
            ("bad-empty", vec![0], None),
        ]
    }

    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(name)
    }

    #[test]
    fn seeds_give_what_they_should() {
        for (name, input, expected) in seeds() {
            let file = std::fs::read(folder("seeds/journal").join(name)).unwrap_or_default();
            assert!(file == input, "{name} differs: cargo test -p driftwood-store --test replay_journal -- --ignored writes it");
            assert_eq!(replay(&input), expected, "{name}");
        }
    }

    #[test]
    fn corpus_harms_nobody() {
        let files = std::fs::read_dir(folder("corpus/journal")).into_iter().flatten().map(|entry| entry.unwrap().path());
        for path in files.filter(|path| path.is_file()) {
            replay(&std::fs::read(path).unwrap());
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn no_bytes_harm(input in proptest::collection::vec(0u8..8, 0..200)) {
            replay(&input);
        }

        #[test]
        fn no_bytes_at_all_harm(input in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..6000)) {
            replay(&[&[0], &input[..]].concat());
        }
    }

    #[test]
    #[ignore = "writes the seeds"]
    fn write_seeds() {
        std::fs::create_dir_all(folder("seeds/journal")).unwrap();
        seeds().into_iter().for_each(|(name, input, _)| std::fs::write(folder("seeds/journal").join(name), input).unwrap());
    }
}
