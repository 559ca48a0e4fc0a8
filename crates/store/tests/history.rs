//! Chains of heads: followed, shared by forks, swept, summed up, and refused where they are damaged or made with malice.

use driftwood_snapshot::{GuestState, Hash, Identity};
use driftwood_store::{Chunk, Chunks, Error, Head, HeadGuest, HeadMemory, HeadTurn, PAGE_BYTES, Text, write_turns};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

fn turn(number: u64) -> HeadTurn {
    let text = |what: &str| Text(format!("{what} {number}").into_bytes());
    HeadTurn { message: text("question"), reply: text("answer"), tokens: vec![number as u32; 3] }
}

/// What follows `former` after messages up to `until`; each moment has a page of memory of its own.
fn follow(chunks: &Chunks, former: Option<&Head>, until: u64) -> Head {
    let mut commit = chunks.commit().unwrap();
    let from = former.map_or(until, Head::turn);
    let turns: Vec<HeadTurn> = (from..until).map(|number| turn(number + 1)).collect();
    let mut memory = vec![0; 4 * PAGE_BYTES];
    memory[2 * PAGE_BYTES..3 * PAGE_BYTES].fill(until as u8 + 1);
    let head = Head {
        writer: "test".into(),
        identity: Identity::mint("ada", None).unwrap(),
        guest: Some(HeadGuest {
            state: GuestState { messages_handled: until, ..GuestState::default() },
            module: commit.put(b"\0asm").unwrap(),
            memory: HeadMemory::write(&commit, &memory).unwrap(),
        }),
        pools: Vec::new(),
        sessions: Vec::new(),
        former: former.map(|former| commit.put(former.text().unwrap().as_bytes()).unwrap()),
        turns: write_turns(&commit, &turns.iter().collect::<Vec<_>>()).unwrap(),
        given_up: 0,
        notes: BTreeMap::new(),
    };
    commit.seal().unwrap();
    head
}

/// Heads after 0, 1, 3 and 4 messages, oldest first.
fn chain(chunks: &Chunks) -> Vec<Head> {
    let mut heads = vec![follow(chunks, None, 0)];
    for until in [1, 3, 4] {
        heads.push(follow(chunks, heads.last(), until));
    }
    heads
}

fn published(root: &Path, name: &str, head: &Head) -> PathBuf {
    let path = root.join(name);
    head.publish(&path).unwrap();
    path
}

#[test]
fn a_chain_is_followed_from_its_end_and_heads_do_not_grow() {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let heads = chain(&chunks);
    let newest = Head::read(&published(root.path(), "head", &heads[3])).unwrap();
    let found: Vec<Head> = newest.history(&chunks).map(Result::unwrap).collect();
    assert_eq!(found, heads.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(newest.former(&chunks).unwrap().as_ref(), Some(&heads[2]));
    assert_eq!(heads[2].turns(&chunks).unwrap(), [turn(2), turn(3)]);
    assert_eq!(heads[0].turns(&chunks).unwrap(), []);
    assert_eq!(heads[0].former(&chunks).unwrap(), None);
    assert!(heads[3].text().unwrap().len().abs_diff(heads[1].text().unwrap().len()) < 32);
}

#[test]
fn a_state_is_known_by_its_meaning() {
    let (root, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (chunks, others) = (Chunks::open(root.path()).unwrap(), Chunks::open(elsewhere.path()).unwrap());
    let (heads, same) = (chain(&chunks), chain(&others));
    let states: Vec<Hash> = heads.iter().map(|head| head.state_hash(&chunks).unwrap()).collect();
    for (head, state) in same.iter().zip(&states) {
        assert_eq!(head.state_hash(&others).unwrap(), *state, "places, identities and chains do not matter");
    }
    type Change = fn(&mut Head);
    let changes: [(Change, bool); 6] = [
        (|h| h.writer = "another".into(), true),
        (|h| (h.former, h.turns) = (None, None), true),
        (|h| drop(h.guest.as_mut().unwrap().state.settings.insert("a".into(), "b".into())), false),
        (|h| h.guest.as_mut().unwrap().state.random_state = "x".into(), false),
        (|h| h.guest.as_mut().unwrap().memory.bytes += PAGE_BYTES as u64, false),
        (|h| h.guest.as_mut().unwrap().state.messages_handled += 1, false),
    ];
    for (index, (change, stays)) in changes.into_iter().enumerate() {
        let mut head = heads[3].clone();
        change(&mut head);
        assert_eq!(head.state_hash(&chunks).unwrap() == states[3], stays, "change {index}");
    }
}

#[test]
fn what_only_the_past_names_is_kept_and_counted() {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let heads = chain(&chunks);
    let present = published(root.path(), "head", &heads[3]);
    let fork = published(root.path(), "fork", &follow(&chunks, Some(&heads[3]), 5));
    let all = [present.clone(), fork.clone()];
    let stats = chunks.stats(&all).unwrap();
    assert_eq!((stats.heads, stats.former_heads), (2, 4), "the chain counts once, and the first head is a former one of the second");
    let alone = chunks.stats(std::slice::from_ref(&present)).unwrap();
    assert_eq!(alone.former_heads, 3);
    let text = |head: &Head| head.text().unwrap().len() as u64;
    let of_chain = |at: usize| (PAGE_BYTES + 4 * 48) as u64 + heads[at].turns.map_or(0, |turns| turns.len_bytes);
    assert_eq!(alone.history_bytes, of_chain(0) + of_chain(1) + of_chain(2) + text(&heads[0]) + text(&heads[1]));

    assert_eq!(chunks.sweep(|| Ok::<_, Error>(all.to_vec())).unwrap().files, 0);
    assert!(chunks.check(&all).is_empty());
    let first = published(root.path(), "first", &heads[0]);
    assert!(chunks.sweep(|| Ok::<_, Error>(vec![first.clone()])).unwrap().files >= 4);
    assert!(chunks.check(&[first]).is_empty());
}

#[test]
fn a_damaged_past_is_told_and_stops_a_sweep() {
    type Part = fn(&Head) -> Chunk;
    let damage: [(&str, Part); 3] = [
        ("the former head", |head| head.former.unwrap()),
        ("turns", |head| head.turns.unwrap()),
        ("memory", |head| head.guest.as_ref().unwrap().memory.leaves[0].unwrap()),
    ];
    for (what, chunk_of) in damage {
        let root = tempfile::tempdir().unwrap();
        let chunks = Chunks::open(root.path()).unwrap();
        let heads = chain(&chunks);
        let path = published(root.path(), "head", &heads[3]);
        let chunk = chunk_of(&heads[1]);
        let pack = root.path().join("packs").join(format!("{}.pack", chunk.pack));
        let file = std::fs::OpenOptions::new().write(true).open(pack).unwrap();
        file.write_all_at(b"!", chunk.at_bytes + 30).unwrap();
        let flawed = chunks.check(std::slice::from_ref(&path));
        assert!(matches!(&flawed[..], [one] if matches!(one.error, Error::Altered { .. })), "{what}: {flawed:?}");
        let swept = chunks.sweep(|| Ok::<_, Error>(vec![path.clone()]));
        assert_eq!(swept.is_err(), what != "turns", "{what}: nothing that is read to find what is named may be damaged");
        assert!(heads[1].turns(&chunks).is_err() == (what == "turns") && Head::read(&path).is_ok());
    }
}

/// Each head whose past is damaged is named, also where another has the same past.
#[test]
fn a_damaged_past_is_told_of_all_who_share_it() {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let heads = chain(&chunks);
    let names = ["one", "two", "three"];
    let paths: Vec<_> = names.iter().map(|name| published(root.path(), name, &heads[3])).collect();
    assert!(chunks.check(&paths).is_empty());
    let chunk = heads[1].turns.unwrap();
    let pack = root.path().join("packs").join(format!("{}.pack", chunk.pack));
    std::fs::OpenOptions::new().write(true).open(pack).unwrap().write_all_at(b"!", chunk.at_bytes + 30).unwrap();
    let flawed = chunks.check(&paths);
    assert_eq!(flawed.iter().map(|flaw| &flaw.head).collect::<Vec<_>>(), paths.iter().collect::<Vec<_>>());
}

/// What a chain may not say, and what each gives.
#[test]
fn hostile_chains_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let heads = chain(&chunks);
    let chunk = |bytes: &[u8]| {
        let mut commit = chunks.commit().unwrap();
        let chunk = commit.put(bytes).unwrap();
        commit.seal().unwrap();
        Some(chunk)
    };
    let text = heads[2].text().unwrap();
    let formers: [(Vec<u8>, &str); 5] = [
        (b"nonsense".to_vec(), "no head"),
        (text.replacen("test", "tEst", 1).into_bytes(), "does not match its hash"),
        (text.replacen("-head 2", "-head 3", 1).into_bytes(), "update driftwood"),
        (heads[3].text().unwrap().into_bytes(), "no fewer messages"),
        (vec![0xff; 10], "no text"),
    ];
    for (bytes, why) in formers {
        let head = Head { former: chunk(&bytes), ..heads[3].clone() };
        let error = head.history(&chunks).nth(1).unwrap().unwrap_err();
        assert!(matches!(&error, Error::BadHistory { why: said, .. } if said.contains(why)), "{error} where {why} was expected");
        let path = published(root.path(), "bad", &head);
        assert!(chunks.sweep(|| Ok::<_, Error>(vec![path.clone()])).is_err() && chunks.stats(std::slice::from_ref(&path)).is_err());
        assert_eq!(chunks.check(&[path]).len(), 1, "{why}");
        assert_eq!(head.history(&chunks).count(), 2, "it ends with the error");
    }
    for (json, why) in [("[]", "0 messages"), ("{}", "expected a sequence"), (r#"[{"message":1}]"#, "did not match"), ("[", "EOF")] {
        let head = Head { turns: chunk(json.as_bytes()), ..heads[3].clone() };
        let error = head.turns(&chunks).unwrap_err();
        assert!(matches!(&error, Error::BadHistory { why: said, .. } if said.contains(why)), "{error} where {why} was expected");
    }
    let many = json_of(&vec![turn(1); 5]);
    assert!(Head { turns: chunk(&many), ..heads[3].clone() }.turns(&chunks).unwrap_err().to_string().contains("5 messages where 4"));
    type Change = fn(&mut Head);
    let changes: [(Change, &str); 3] = [
        (|h| h.turns = None, "without a message in between"),
        (|h| (h.former, h.guest) = (None, None), "handled no message"),
        (|h| h.turns.as_mut().unwrap().len_bytes = 1 << 31, "turns have more than"),
    ];
    for (change, why) in changes {
        let mut head = heads[3].clone();
        change(&mut head);
        let error = Head::read(&published(root.path(), "bad", &head)).unwrap_err();
        assert!(error.to_string().contains(why), "{error} where {why} was expected");
    }
}

fn json_of(turns: &[HeadTurn]) -> Vec<u8> {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let mut commit = chunks.commit().unwrap();
    let chunk = write_turns(&commit, &turns.iter().collect::<Vec<_>>()).unwrap().unwrap();
    commit.seal().unwrap();
    chunks.read(&chunk).unwrap().bytes().to_vec()
}
