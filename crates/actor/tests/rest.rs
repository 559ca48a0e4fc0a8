//! Freeze, thaw and fork of guests without a model, and the state folder.

mod common;

use common::{bare_host, guest, reply, spawn, tight};
use driftwood_actor::{Error, Existing, IdentityRule, Limits, StateFolder, ThawOptions};

/// Guests with what each replies to its first four messages.
const TALKS: [(&str, [&str; 4]); 4] = [
    ("counter", ["1 1 m", "2 2 m", "3 3 m", "4 4 m"]),
    ("start_section", ["1 A", "1 B", "1 C", "1 D"]),
    ("indirect_calls", ["y11111 ", "y22222 ", "y33333 ", "y44444 "]),
    ("misbehave", ["1 1 1 ", "2 2 1 ", "3 3 1 ", "4 4 1 "]),
];

#[test]
fn a_thawed_or_forked_actor_goes_on_where_it_stood() {
    let folder = tempfile::tempdir().unwrap();
    for (name, replies) in TALKS {
        for talked in 0..3 {
            let mut host = bare_host();
            spawn(&mut host, "a", guest(name), tight(), &[("k", "v")]).unwrap();
            for expected in &replies[..talked] {
                assert_eq!(reply(&mut host, "a", "m"), *expected, "{name}");
            }
            let file = folder.path().join(format!("{name}-{talked}"));
            let frozen = host.freeze("a", &file, Existing::Refuse).unwrap();
            assert!(matches!(host.freeze("a", &file, Existing::Refuse), Err(Error::Snapshot(_))));
            host.fork("a", "forked").unwrap();

            let mut other = bare_host();
            let report = other.thaw(&file, "b", ThawOptions { limits: tight(), ..ThawOptions::default() }).unwrap();
            assert_eq!(report.identity.parent, Some(frozen.identity.id));
            assert_eq!(other.info("b").unwrap().settings["k"], "v");
            assert_eq!(other.info("b").unwrap().messages_handled, talked as u64);
            assert_eq!(other.state_hash("b").unwrap(), host.state_hash("a").unwrap(), "{name} {talked}");
            for expected in &replies[talked..] {
                assert_eq!(reply(&mut host, "a", "m"), *expected, "{name}");
                assert_eq!(reply(&mut host, "forked", "m"), *expected, "{name} forked");
                assert_eq!(reply(&mut other, "b", "m"), *expected, "{name} thawed");
            }
            assert_eq!(other.state_hash("b").unwrap(), host.state_hash("a").unwrap());
            let again = folder.path().join(format!("{name}-{talked}-again"));
            other.freeze("b", &again, Existing::Refuse).unwrap();
        }
    }
}

#[test]
fn limits_come_from_the_host_that_thaws() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    let mut host = bare_host();
    spawn(&mut host, "a", guest("counter"), tight(), &[]).unwrap();
    host.freeze("a", &file, Existing::Refuse).unwrap();
    let small = ThawOptions { limits: Limits { memory_bytes: 1 << 16, ..tight() }, ..ThawOptions::default() };
    assert!(matches!(host.thaw(&file, "b", small), Err(Error::LimitMemory { asked_bytes: 131_072, limit_bytes: 65_536 })));
    assert!(matches!(host.thaw(&file, "a", ThawOptions::default()), Err(Error::NameTaken { .. })));
    let kept = host.thaw(&file, "c", ThawOptions { identity: IdentityRule::Keep, ..ThawOptions::default() }).unwrap();
    assert_eq!(kept.identity.id, host.info("a").unwrap().identity.id);
}

#[test]
fn altered_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f");
    let mut host = bare_host();
    spawn(&mut host, "a", guest("counter"), tight(), &[]).unwrap();
    host.freeze("a", &file, Existing::Refuse).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    for at in [9, bytes.len() / 2, bytes.len() - 3] {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        let path = folder.path().join(format!("bad-{at}"));
        std::fs::write(&path, &bad).unwrap();
        assert!(host.thaw(&path, "b", ThawOptions::default()).is_err(), "byte {at}");
        assert!(StateFolder::open(folder.path()).unwrap().import(&path, "b").is_err(), "byte {at}");
    }
    assert!(StateFolder::open(folder.path()).unwrap().list().unwrap().is_empty(), "a failed import leaves nothing");
}

#[test]
fn the_state_folder_keeps_an_actor_and_its_identity() {
    let root = tempfile::tempdir().unwrap();
    let state = StateFolder::open(root.path()).unwrap();
    let mut host = bare_host();
    spawn(&mut host, "a", guest("counter"), tight(), &[]).unwrap();
    let held = state.create("a").unwrap();
    assert_eq!(reply(&mut host, "a", "m"), "1 1 m");
    held.save(&mut host).unwrap();
    drop((held, host));

    let mut host = bare_host();
    let held = state.hold("a").unwrap();
    let first = held.thaw_into(&mut host, ThawOptions::default()).unwrap().identity;
    assert_eq!(reply(&mut host, "a", "m"), "2 2 m");
    held.save(&mut host).unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let other = StateFolder::open(elsewhere.path()).unwrap();
    let file = elsewhere.path().join("a.safetensors");
    held.export(&file, Existing::Refuse).unwrap();
    let imported = other.import(&file, "a").unwrap();
    assert!(matches!(other.create("a"), Err(Error::Held { .. })));
    let mut far = bare_host();
    let minted = imported.thaw_into(&mut far, ThawOptions::default()).unwrap().identity;
    assert_eq!((minted.parent, minted.id == first.id), (Some(first.id), false));
    assert_eq!(reply(&mut far, "a", "m"), "3 3 m");
    imported.save(&mut far).unwrap();
    drop((imported, far));
    let mut far = bare_host();
    let kept = other.hold("a").unwrap().thaw_into(&mut far, ThawOptions::default()).unwrap().identity;
    assert_eq!(kept, minted);
    assert_eq!(other.list().unwrap().len(), 1);
}

/// The first version kept one file for each actor.
#[test]
fn a_state_folder_of_the_first_version_is_read_and_becomes_heads() {
    let root = tempfile::tempdir().unwrap();
    let mut host = bare_host();
    spawn(&mut host, "a", guest("counter"), tight(), &[]).unwrap();
    assert_eq!(reply(&mut host, "a", "m"), "1 1 m");
    let folder = root.path().join("actors/a");
    std::fs::create_dir_all(&folder).unwrap();
    let identity = host.freeze("a", &folder.join("actor.safetensors"), Existing::Refuse).unwrap().identity;

    let state = StateFolder::open(root.path()).unwrap();
    assert_eq!(state.inspect("a").unwrap().manifest.identity, identity);
    let mut host = bare_host();
    let held = state.hold("a").unwrap();
    assert_eq!(held.thaw_into(&mut host, ThawOptions::default()).unwrap().identity, identity, "it is the same actor");
    assert_eq!(reply(&mut host, "a", "m"), "2 2 m");
    held.save(&mut host).unwrap();
    assert!(held.head().is_file() && !folder.join("actor.safetensors").exists());
    let mut host = bare_host();
    held.thaw_into(&mut host, ThawOptions::default()).unwrap();
    assert_eq!(reply(&mut host, "a", "m"), "3 3 m");
}

/// A turn writes what is new: a page or two of memory, their leaf, the head, and the former head as a chunk.
#[test]
fn a_save_writes_what_is_new_and_forks_share() {
    let root = tempfile::tempdir().unwrap();
    let state = StateFolder::open(root.path()).unwrap();
    let mut host = bare_host();
    spawn(&mut host, "a", guest("counter"), tight(), &[]).unwrap();
    let held = state.create("a").unwrap();
    reply(&mut host, "a", "m");
    let first = held.save(&mut host).unwrap();
    reply(&mut host, "a", "m");
    let second = held.save(&mut host).unwrap();
    assert!(second.bytes <= first.bytes + 2048, "{second:?} after {first:?}");
    host.fork("a", "b").unwrap();
    let forked = state.create("b").unwrap().save(&mut host).unwrap();
    assert!(forked.bytes < 4096, "a head alone: {forked:?}");
    let stats = state.chunks().stats(&state.heads().unwrap()).unwrap();
    assert_eq!((stats.heads, stats.named_bytes), (2, 2 * stats.unique_bytes));
    drop(held);
    state.remove("a").unwrap();
    state.sweep().unwrap();
    let mut host = bare_host();
    state.hold("b").unwrap().thaw_into(&mut host, ThawOptions::default()).unwrap();
    assert_eq!(reply(&mut host, "b", "m"), "3 3 m");
}

#[test]
fn an_actor_whose_lock_was_removed_is_not_written_over() {
    let root = tempfile::tempdir().unwrap();
    let state = StateFolder::open(root.path()).unwrap();
    let mut host = bare_host();
    spawn(&mut host, "a", guest("counter"), tight(), &[]).unwrap();
    let held = state.create("a").unwrap();
    held.save(&mut host).unwrap();
    std::fs::remove_dir_all(root.path().join("actors/a")).unwrap();
    let other = state.create("a").unwrap();
    let error = held.save(&mut host).unwrap_err();
    assert!(matches!(error, Error::Store(driftwood_store::Error::LeaseLost { .. })), "{error}");
    assert!(!other.head().exists());
    other.save(&mut host).unwrap();
}
