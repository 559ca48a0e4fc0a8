//! Journals on a real disk: what processes leave behind, found, left alone or removed; and one that is killed.

use driftwood_snapshot::{ActorId, Hash};
use driftwood_store::{Base, Durability, Error, JOURNAL_VERSION, Journal, JournalFiles, Left, journal_files, left_behind, sweep_journals};
use proptest::prelude::*;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
/// What a record takes beside its payload.
const FRAME_BYTES: usize = 25;

fn base(name: &str) -> Base {
    Base { name: name.into(), id: ActorId([7; 16]), head: Hash::of(name.as_bytes()) }
}

fn records(name: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("{name} {n}").into_bytes()).collect()
}

fn found(folder: &Path, name: &str) -> Option<Vec<Vec<u8>>> {
    left_behind(folder, &[], &base(name)).unwrap().map(|left| left.records)
}

fn only_file(folder: &Path) -> PathBuf {
    let mut files = std::fs::read_dir(folder).unwrap();
    let path = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    path
}

/// A dead process's journal with these streams, their records interleaved; its bytes.
fn leave(folder: &Path, streams: &[(&str, usize)]) -> Vec<u8> {
    let journal = Journal::create(folder, Durability::Process).unwrap();
    let streams: Vec<_> = streams.iter().map(|(name, count)| (journal.begin(&base(name)).unwrap(), records(name, *count))).collect();
    let longest = streams.iter().map(|(_, records)| records.len()).max().unwrap_or(0);
    for n in 0..longest {
        streams.iter().filter_map(|(stream, records)| Some((stream, records.get(n)?))).for_each(|(stream, record)| {
            stream.append(record).unwrap();
        });
    }
    let path = journal.path().to_owned();
    drop((journal, streams));
    std::fs::read(path).unwrap()
}

fn write_journal(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join(format!("{}.journal", ActorId::mint().unwrap()));
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn what_a_process_left_is_found_by_its_base_alone() {
    let folder = tempfile::tempdir().unwrap();
    leave(folder.path(), &[("ada", 5), ("bob", 3)]);
    assert_eq!(left_behind(folder.path(), &[], &base("ada")).unwrap(), Some(Left { base: base("ada"), records: records("ada", 5) }));
    assert_eq!(found(folder.path(), "bob"), Some(records("bob", 3)));
    assert_eq!(found(folder.path(), "eve"), None);
    for other in [
        Base { id: ActorId([8; 16]), ..base("ada") },
        Base { head: Hash::of(b"a later head"), ..base("ada") },
        Base { name: "adb".into(), ..base("ada") },
    ] {
        assert_eq!(left_behind(folder.path(), &[], &other).unwrap(), None);
    }
    leave(folder.path(), &[("ada", 7)]);
    leave(folder.path(), &[("ada", 6)]);
    assert_eq!(found(folder.path(), "ada"), Some(records("ada", 7)), "the longest");
}

#[test]
fn a_folder_that_is_not_there_has_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("journals");
    assert_eq!(found(&absent, "ada"), None);
    assert_eq!(sweep_journals(&absent, |_| None).unwrap(), 0);
    drop(Journal::create(&absent, Durability::Disk).unwrap());
    assert_eq!(std::fs::metadata(&absent).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_journal_is_private_and_goes_when_all_its_streams_have_ended() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::create(folder.path(), Durability::Disk).unwrap();
    assert_eq!(std::fs::metadata(journal.path()).unwrap().permissions().mode() & 0o777, 0o600);
    let (ada, bob) = (journal.begin(&base("ada")).unwrap(), journal.begin(&base("bob")).unwrap());
    ada.append(b"1").unwrap();
    ada.end().unwrap();
    bob.end().unwrap();
    drop(journal);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_ended_stream_is_not_found_beside_one_that_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::create(folder.path(), Durability::Disk).unwrap();
    let (ada, bob) = (journal.begin(&base("ada")).unwrap(), journal.begin(&base("bob")).unwrap());
    bob.append(b"bob 0").unwrap();
    ada.end().unwrap();
    drop((journal, bob));
    assert_eq!((found(folder.path(), "ada"), found(folder.path(), "bob")), (None, Some(records("bob", 1))));
}

#[test]
fn a_pass_begins_at_the_beginning_and_nothing_of_an_earlier_one_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::create(folder.path(), Durability::Process).unwrap();
    let write = |name: &str, count| {
        let stream = journal.begin(&base(name)).unwrap();
        let last = records(name, count).iter().map(|record| stream.append(record).unwrap()).max().unwrap();
        journal.wait(last).unwrap();
        stream
    };
    write("ada", 100).end().unwrap();
    let used_bytes = journal.len_bytes();
    // The same lengths again: its records end exactly where old ones begin.
    let bob = write("ada", 50);
    assert!(used_bytes < PAGE_BYTES as u64 + 1 && journal.len_bytes() < PAGE_BYTES as u64 + 50 * 40);
    drop((journal, bob));
    assert_eq!(found(folder.path(), "ada"), Some(records("ada", 50)));
    assert_eq!(std::fs::metadata(only_file(folder.path())).unwrap().len(), PAGE_BYTES as u64 + (1 << 20));
}

#[test]
fn a_long_pass_grows_in_steps_and_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::create(folder.path(), Durability::Disk).unwrap();
    let stream = journal.begin(&base("ada")).unwrap();
    let long: Vec<Vec<u8>> = (0..50u8).map(|n| vec![n; 100_000]).collect();
    long.iter().for_each(|record| assert!(stream.append(record).unwrap() > 1));
    drop((journal, stream));
    assert_eq!(found(folder.path(), "ada"), Some(long));
    assert_eq!(std::fs::metadata(only_file(folder.path())).unwrap().len() % (1 << 20), 0);
}

#[test]
fn a_record_torn_at_any_byte_is_not_there_and_all_before_are() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = leave(folder.path(), &[("ada", 3)]);
    let path = only_file(folder.path());
    let end = PAGE_BYTES + (FRAME_BYTES + 48 + 3) + 3 * (FRAME_BYTES + 5);
    assert!(bytes[end - 1] != 0 || bytes[end - 2] != 0, "the last record ends here");
    assert!(bytes[end..].iter().all(|&byte| byte == 0));
    for at in end - FRAME_BYTES - 5..end {
        std::fs::write(&path, &bytes[..at]).unwrap();
        assert_eq!(found(folder.path(), "ada"), Some(records("ada", 2)), "cut at {at}");
        let mut altered = bytes.clone();
        altered[at] ^= 0x40;
        std::fs::write(&path, &altered).unwrap();
        assert_eq!(found(folder.path(), "ada"), Some(records("ada", 2)), "altered at {at}");
    }
    std::fs::write(&path, &bytes[..end]).unwrap();
    assert_eq!(found(folder.path(), "ada"), Some(records("ada", 3)));
}

#[test]
fn the_journal_of_a_living_process_is_neither_read_nor_removed() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::create(folder.path(), Durability::Disk).unwrap();
    let stream = journal.begin(&base("ada")).unwrap();
    journal.wait(stream.append(b"ada 0").unwrap()).unwrap();
    assert_eq!(found(folder.path(), "ada"), None);
    assert_eq!(sweep_journals(folder.path(), |_| None).unwrap(), 0);
    drop((journal, stream));
    assert_eq!(found(folder.path(), "ada"), Some(records("ada", 1)));
}

#[test]
fn a_process_that_is_dying_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    leave(folder.path(), &[("ada", 1)]);
    let file = OpenOptions::new().read(true).open(only_file(folder.path())).unwrap();
    file.lock().unwrap();
    let dying = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        drop(file);
    });
    assert_eq!(found(folder.path(), "ada"), Some(records("ada", 1)));
    dying.join().unwrap();
}

#[test]
fn a_sweep_removes_what_continues_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let head_of = |name: &str| match name {
        "ada" => Some(base("ada").head),
        "bob" => Some(Hash::of(b"bob's next head")),
        _ => None,
    };
    leave(folder.path(), &[("eve", 1), ("ada", 2)]);
    let kept = only_file(folder.path());
    leave(folder.path(), &[("bob", 1), ("eve", 1)]);
    let mut later = format!("driftwood-journal {}\n", JOURNAL_VERSION + 1).into_bytes();
    later.resize(PAGE_BYTES, 0);
    let later = write_journal(folder.path(), &later);
    write_journal(folder.path(), b""); // killed before it was a journal
    std::fs::write(folder.path().join("notes.journal"), "mine").unwrap();
    assert_eq!(sweep_journals(folder.path(), head_of).unwrap(), 2);
    assert!(kept.exists() && later.exists() && folder.path().join("notes.journal").exists());
    assert_eq!(sweep_journals(folder.path(), head_of).unwrap(), 0);
    let refused = left_behind(folder.path(), &[], &base("ada"));
    assert!(matches!(refused, Err(Error::FutureVersion { found, .. }) if found == JOURNAL_VERSION + 1));
    assert_eq!(sweep_journals(folder.path(), |_| None).unwrap(), 1);
}

#[test]
fn journals_are_counted_and_a_damaged_first_page_is_told() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(journal_files(&folder.path().join("none")).unwrap(), JournalFiles::default());
    let bytes = leave(folder.path(), &[("ada", 2)]);
    assert_eq!(journal_files(folder.path()).unwrap(), JournalFiles { files: 1, bytes: bytes.len() as u64, damaged: vec![] });
    let path = only_file(folder.path());
    for at in [0, 18, 4095] {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        std::fs::write(&path, &altered).unwrap();
        assert_eq!(journal_files(folder.path()).unwrap().damaged, std::slice::from_ref(&path), "byte {at}");
        assert_eq!(found(folder.path(), "ada").map(|records| records.len()), Some(2), "records are there all the same");
    }
    for unfinished in [&[][..], &bytes[..4000], &[0; 8192]] {
        std::fs::write(&path, unfinished).unwrap();
        assert!(journal_files(folder.path()).unwrap().damaged.is_empty(), "its writer was killed before it was one");
    }
}

#[test]
fn what_is_no_file_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let name = || folder.path().join(format!("{}.journal", ActorId::mint().unwrap()));
    std::os::unix::fs::symlink("/dev/zero", name()).unwrap();
    std::fs::create_dir(name()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(name()).unwrap());
    assert!(Command::new("mkfifo").arg(name()).status().unwrap().success());
    assert_eq!(found(folder.path(), "ada"), None);
    assert_eq!(sweep_journals(folder.path(), |_| None).unwrap(), 0);
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = Journal::create(&file.join("journals"), Durability::Disk);
    assert!(matches!(refused, Err(Error::System { operation: "make the folder", .. })), "{refused:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes, also behind a good first page and in a good journal, end in an intact prefix of what was written.
    #[test]
    fn damaged_journals_give_prefixes(places in prop::collection::vec((0usize..700, any::<u8>()), 1..4), cut in prop::option::of(0usize..700)) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = leave(folder.path(), &[("ada", 5), ("bob", 5)]);
        for (at, xor) in places {
            bytes[PAGE_BYTES + at] ^= xor;
        }
        if let Some(cut) = cut {
            bytes.truncate(PAGE_BYTES + cut);
        }
        std::fs::write(only_file(folder.path()), &bytes).unwrap();
        for name in ["ada", "bob"] {
            prop_assert!(found(folder.path(), name).is_none_or(|found| records(name, 5).starts_with(&found)));
        }
    }
}

/// In the child: two streams, each record waited for and then told to the parent, until it is killed.
fn be_killed(folder: &str) {
    let journal = Journal::create(Path::new(folder), Durability::Disk).unwrap();
    std::thread::scope(|scope| {
        for name in ["ada", "bob"] {
            let journal = &journal;
            scope.spawn(move || {
                let stream = journal.begin(&base(name)).unwrap();
                for n in 0.. {
                    journal.wait(stream.append(format!("{name} {n}").as_bytes()).unwrap()).unwrap();
                    let mut parent = std::io::stdout();
                    writeln!(parent, "told {name} {n}").unwrap();
                }
            });
        }
    });
}

#[test]
fn what_was_waited_for_survives_kill_9() {
    const FOLDER: &str = "DRIFTWOOD_TEST_JOURNALS";
    if let Ok(folder) = std::env::var(FOLDER) {
        return be_killed(&folder);
    }
    for told_min in [1, 40, 200] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "what_was_waited_for_survives_kill_9", "--nocapture"]).env(FOLDER, folder.path());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut told = [("ada", 0), ("bob", 0)];
        let mut lines = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            let Some(line) = line.find("told ").map(|at| &line[at + 5..]) else { continue };
            let (name, n) = line.split_once(' ').unwrap();
            // The last line may be torn.
            let Ok(n) = n.parse::<usize>() else { continue };
            told.iter_mut().filter(|(told, _)| *told == name).for_each(|(_, count)| *count = n.max(*count));
            lines += 1;
            if lines == told_min {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        for (name, n) in told {
            let there = found(folder.path(), name).unwrap_or_default();
            assert!(there.len() > n || (n == 0 && lines < 2), "{name}: {} records of which {} were waited for", there.len(), n + 1);
            assert_eq!(there, records(name, there.len()));
        }
    }
}

/// `cargo test --release -p driftwood-store --test journal -- --ignored --nocapture`; `DRIFTWOOD_BENCH_DIR` says where.
#[test]
#[ignore = "measures"]
fn measure() {
    let folder = std::env::var_os("DRIFTWOOD_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder).unwrap();
    for durability in [Durability::Disk, Durability::Process] {
        for streams in [1usize, 32] {
            let journal = Journal::create(folder.path(), durability).unwrap();
            let bases: Vec<_> = (0..streams).map(|n| journal.begin(&base(&n.to_string())).unwrap()).collect();
            let begun = Instant::now();
            let count = 200_000 / streams;
            for _ in 0..count {
                bases.iter().for_each(|stream| assert!(stream.append(&[1; 40]).unwrap() > 0));
            }
            let append_ns = begun.elapsed().as_nanos() / (count * streams) as u128;
            let (mut waits, mut appends): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
            for _ in 0..300 {
                let begun = Instant::now();
                let last = bases.iter().map(|stream| stream.append(&[1; 40]).unwrap()).max().unwrap();
                appends.push(begun.elapsed().as_secs_f64() * 1e6);
                journal.wait(last).unwrap();
                waits.push(begun.elapsed().as_secs_f64() * 1e6);
                std::thread::sleep(Duration::from_millis(1));
            }
            waits.sort_by(f64::total_cmp);
            appends.sort_by(f64::total_cmp);
            let of = |all: &[f64], part: usize| all[all.len() * part / 100];
            let mut terminal = std::io::stderr();
            writeln!(
                terminal,
                "{durability:?}, {streams} streams: append {append_ns} ns; a step's appends {:.1} us, durable after {:.0} us (median), {:.0} us (p99)",
                of(&appends, 50), of(&waits, 50), of(&waits, 99)
            )
            .unwrap();
            bases.into_iter().for_each(|stream| assert!(stream.end().unwrap() > 0));
        }
    }
}

#[test]
fn a_file_is_written_in_place() {
    // What the format says, byte by byte, so that a change of it cannot go unnoticed.
    let folder = tempfile::tempdir().unwrap();
    leave(folder.path(), &[("ada", 1)]);
    let file = OpenOptions::new().read(true).open(only_file(folder.path())).unwrap();
    let mut bytes = vec![0; 2 * FRAME_BYTES + 48 + 3 + 5];
    file.read_exact_at(&mut bytes, PAGE_BYTES as u64).unwrap();
    let (begin, record) = bytes.split_at(FRAME_BYTES + 51);
    let salt = &begin[9..17];
    let framed = |kind: u8, payload: &[u8]| {
        let header = [&(payload.len() as u32).to_le_bytes()[..], &0u32.to_le_bytes(), &[kind], salt].concat();
        let bytes = [&header[..], payload].concat();
        let check = Hash::of(&bytes).0;
        [&bytes[..], &check[..8]].concat()
    };
    let payload = [&[7; 16][..], &Hash::of(b"ada").0, b"ada"].concat();
    assert_eq!((begin, record), (&framed(1, &payload)[..], &framed(2, b"ada 0")[..]));
}
