//! Chunks and heads on a real disk: shared, durable, verified, collected; and what damaged and hostile files give.

use driftwood_snapshot::{Existing, GuestState, Hash, Identity, KvDType, PoolInfo, SessionState, Snapshot};
use driftwood_store::{Chunk, Chunks, Error, Head, HeadGuest, HeadMemory, HeadPiece, HeadSession, PAGE_BYTES, write_ids};
use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[2] ^ seed).collect()
}

fn pack_of(root: &Path, chunk: &Chunk) -> PathBuf {
    root.join("packs").join(format!("{}.pack", chunk.pack))
}

fn pool() -> PoolInfo {
    PoolInfo {
        model: "tiny".into(),
        fingerprint: Hash::of(b"model"),
        numerics: "cpu".into(),
        architecture: "llama".into(),
        layers: 1,
        kv_heads: 1,
        head_dim: 32,
        dtype: KvDType::F16,
        block_tokens: 64,
        block_bytes: 16 << 10,
    }
}

/// An actor of 80 tokens, 79 of them evaluated: one whole block and two pieces.
fn head(chunks: &Chunks, memory: &[u8], seed: u8) -> Head {
    let mut commit = chunks.commit().unwrap();
    let ids: Vec<u32> = (0..80).collect();
    let piece = |tokens: u32, len| HeadPiece { tokens, rows: commit.put(&bytes(seed, len)).unwrap() };
    let blocks = vec![vec![piece(64, 16 << 10)], vec![piece(13, 13 * 128), piece(2, 2 * 128)]];
    let state = SessionState { handle: 1, pool: 0, context_max: 100, sampler: serde_json::json!({}) };
    let sessions = vec![HeadSession { state, tokens: 80, evaluated: 79, ids: write_ids(&commit, &ids).unwrap(), blocks }];
    let module = commit.put(b"\0asm").unwrap();
    let memory = HeadMemory::write(&commit, memory).unwrap();
    commit.seal().unwrap();
    let identity = Identity::mint("ada", None).unwrap();
    let guest = Some(HeadGuest { state: GuestState::default(), module, memory });
    Head {
        writer: "test".into(),
        identity,
        guest,
        pools: vec![pool()],
        sessions,
        former: None,
        turns: None,
        given_up: 0,
        notes: BTreeMap::new(),
    }
}

fn memory(pages: usize) -> Vec<u8> {
    let mut memory = vec![0; pages * PAGE_BYTES];
    memory[3 * PAGE_BYTES + 7] = 1;
    memory[(pages - 1) * PAGE_BYTES] = 2;
    memory
}

#[test]
fn what_was_put_is_found_shared_and_intact() {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let (small, large) = (bytes(1, 100), bytes(2, 1 << 20));
    let mut commit = chunks.commit().unwrap();
    let first = commit.put_all(&[vec![&small], vec![&large[..1 << 19], &large[1 << 19..]], vec![&small]]).unwrap();
    assert_eq!((first[0], commit.written_bytes()), (first[2], 100 + (1 << 20)));
    assert!(chunks.find(first[0].hash).is_none() && commit.find(first[0].hash).is_some(), "nobody else sees it before it is durable");
    commit.seal().unwrap();
    drop(commit);
    assert!(first[1].at_bytes.is_multiple_of(16 << 10) && first[1].hash == Hash::of(&large));
    let again = Chunks::open(root.path()).unwrap();
    assert_eq!(again.find(first[1].hash), Some(first[1]));
    assert_eq!(again.read(&first[1]).unwrap().bytes(), large);
    let commit = again.commit().unwrap();
    assert_eq!((commit.put(&large).unwrap(), commit.written_bytes()), (first[1], 0), "it is not written twice");
    let mode = std::fs::metadata(pack_of(root.path(), &first[0])).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_large_commit_uses_several_files() {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let blocks: Vec<Vec<u8>> = (0..32).map(|seed| bytes(seed, 1 << 20)).collect();
    let mut commit = chunks.commit().unwrap();
    let put = commit.put_all(&blocks.iter().map(|block| vec![&block[..]]).collect::<Vec<_>>()).unwrap();
    commit.seal().unwrap();
    for (chunk, block) in put.iter().zip(&blocks) {
        assert_eq!(chunks.read(chunk).unwrap().bytes(), block);
    }
    let mut files: Vec<_> = put.iter().map(|chunk| chunk.pack).collect();
    files.sort();
    files.dedup();
    assert_eq!(files.len() > 1, std::thread::available_parallelism().unwrap().get() > 1);
}

#[test]
fn a_head_is_read_as_it_was_written_and_a_turn_writes_what_is_new() {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let mut linear = memory(600);
    let first = head(&chunks, &linear, 1);
    let path = root.path().join("head");
    let published = first.publish(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let json = text.split_once('\n').unwrap().1;
    assert_eq!((published.bytes, published.hash), (text.len() as u64, Hash::of(json.as_bytes())));
    assert_eq!(Head::hash_of(&path).unwrap(), published.hash);
    let read = Head::read(&path).unwrap();
    assert_eq!(read, first);
    let pages = read.guest.as_ref().unwrap().memory.pages(&chunks).unwrap();
    assert_eq!(pages.iter().map(|(page, _)| *page).collect::<Vec<_>>(), [3, 599]);
    assert_eq!(chunks.read(&pages[0].1).unwrap().bytes()[7], 1);
    assert_eq!(read.sessions[0].token_ids(&chunks).unwrap(), (0..80).collect::<Vec<u32>>());
    let manifest = read.manifest();
    assert_eq!((manifest.sessions[0].tail_tokens, manifest.sessions[0].blocks.len(), read.kv_bytes()), (15, 1, (16 << 10) + 15 * 128));

    linear[0] = 9;
    let commit = chunks.commit().unwrap();
    HeadMemory::write(&commit, &linear).unwrap();
    assert_eq!(commit.written_bytes(), (PAGE_BYTES + 512 * 48) as u64, "one page and its leaf");
}

/// The portable file has the same bytes that the chunks have, each row in its place.
#[test]
fn a_head_becomes_a_portable_file() {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let linear = memory(5);
    let mut head = head(&chunks, &linear, 1);
    let fork = HeadSession { state: SessionState { handle: 2, ..head.sessions[0].state.clone() }, ..head.sessions[0].clone() };
    head.sessions.push(fork);
    let path = root.path().join("ada.safetensors");
    head.export(&chunks, &path, Existing::Refuse, &[]).unwrap();
    let file = Snapshot::open(&path).unwrap();
    file.verify_all(2).unwrap();
    assert_eq!((file.tokens(1), file.module().unwrap().bytes()), (&(0..80).collect::<Vec<u32>>()[..], &b"\0asm"[..]));
    assert_eq!(
        file.pages().map(|(page, bytes)| (page, bytes.to_vec())).collect::<Vec<_>>(),
        [(3, linear[3 * PAGE_BYTES..4 * PAGE_BYTES].to_vec()), (4, linear[4 * PAGE_BYTES..].to_vec())]
    );
    let manifest = file.manifest();
    assert_eq!((manifest.pools[0].block_hashes.len(), &manifest.sessions[0].blocks, &manifest.sessions[1].blocks), (1, &vec![0], &vec![0]));
    assert_eq!(file.block(0, 0), bytes(1, 16 << 10));
    // One layer and head: the tail is (k or v, token, row), of a piece of 13 tokens and one of 2.
    let (first, second) = (bytes(1, 13 * 128), bytes(1, 2 * 128));
    let half = |part: usize| [&first[part * 13 * 64..][..13 * 64], &second[part * 2 * 64..][..2 * 64]].concat();
    assert_eq!(file.tail(1).unwrap().bytes(), [half(0), half(1)].concat());
}

#[test]
fn a_sweep_removes_what_no_head_names_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let (kept, dropped) = (root.path().join("kept"), root.path().join("dropped"));
    head(&chunks, &memory(10), 1).publish(&kept).unwrap();
    head(&chunks, &memory(10), 2).publish(&dropped).unwrap();
    let before = chunks.stats(&[kept.clone(), dropped.clone()]).unwrap();
    assert!(before.named_bytes > before.unique_bytes && before.files == 2, "{before:?}");
    assert_eq!(chunks.sweep(|| Ok::<_, Error>(vec![kept.clone(), dropped.clone()])).unwrap(), Default::default());
    std::fs::write(root.path().join("packs/.driftwood-0123456789abcdef0123456789abcdef.tmp"), b"a dead writer's").unwrap();
    let swept = chunks.sweep(|| Ok::<_, Error>(vec![kept.clone()])).unwrap();
    assert_eq!((swept.files, swept.hints > 0), (2, true), "{swept:?}");
    assert!(chunks.check(std::slice::from_ref(&kept)).is_empty());
    assert!(chunks.find(Head::read(&dropped).unwrap().sessions[0].blocks[0][0].rows.hash).is_none());
    assert_eq!(chunks.check(&[dropped]).len(), 3, "a block and two pieces were its own; all else is shared");
}

#[test]
fn a_sweep_waits_for_a_commit() {
    let root = tempfile::tempdir().unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    let mut commit = chunks.commit().unwrap();
    let chunk = commit.put(&bytes(1, 5000)).unwrap();
    commit.seal().unwrap();
    std::thread::scope(|scope| {
        let sweep = scope.spawn(|| Chunks::open(root.path()).unwrap().sweep(|| Ok::<_, Error>(vec![root.path().join("head")])).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!sweep.is_finished() && pack_of(root.path(), &chunk).exists());
        let mut head = head(&chunks, &memory(4), 3);
        head.guest.as_mut().unwrap().module = chunk;
        head.publish(&root.path().join("head")).unwrap();
        drop(commit);
        sweep.join().unwrap();
    });
    chunks.read(&chunk).unwrap();
}

#[test]
fn damage_is_found_and_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("head");
    let chunks = Chunks::open(root.path()).unwrap();
    let head = head(&chunks, &memory(4), 1);
    head.publish(&path).unwrap();
    let block = head.sessions[0].blocks[0][0].rows;
    let file = std::fs::OpenOptions::new().write(true).open(pack_of(root.path(), &block)).unwrap();
    file.write_all_at(&[!bytes(1, 6)[5]], block.at_bytes + 5).unwrap();
    assert!(matches!(chunks.read(&block), Err(Error::Altered { .. })));
    let flawed = chunks.check(std::slice::from_ref(&path));
    assert!(matches!(&flawed[..], [one] if matches!(one.error, Error::Altered { .. })), "{flawed:?}");
    file.set_len(block.at_bytes + 5).unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    assert!(matches!(chunks.read(&block), Err(Error::Missing { .. })) && chunks.find(block.hash).is_none());
    std::fs::remove_file(pack_of(root.path(), &block)).unwrap();
    let chunks = Chunks::open(root.path()).unwrap();
    assert!(matches!(chunks.read(&block), Err(Error::Missing { .. })));
}

/// What a head may not say, and what each gives.
#[test]
fn hostile_heads_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("head");
    let good = head(&Chunks::open(root.path()).unwrap(), &memory(4), 1);
    let refused = |head: &Head| {
        head.publish(&path).unwrap();
        match Head::read(&path) {
            Err(Error::BadHead { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    };
    type Change = fn(&mut Head);
    let changes: [(Change, &str); 13] = [
        (|h| h.sessions[0].tokens = 81, "token ids have another length"),
        (|h| h.sessions[0].evaluated = 81, "another number of blocks"),
        (|h| h.sessions[0].evaluated = 63, "another number of blocks"),
        (|h| h.sessions[0].blocks[1][0].tokens = 14, "the pieces of block 1"),
        (|h| h.sessions[0].blocks[0].clear(), "the pieces of block 0"),
        (|h| h.sessions[0].blocks[0][0].rows.len_bytes = 1, "the pieces of block 0"),
        (|h| h.sessions[0].state.pool = 7, "names no pool"),
        (|h| h.pools[0].layers = u32::MAX, "layers"),
        (|h| h.pools[0].block_tokens = 0, "block_tokens"),
        (|h| h.guest.as_mut().unwrap().module.len_bytes = 0, "module"),
        (|h| h.guest.as_mut().unwrap().memory.bytes = 1 << 40, "memory has an impossible size"),
        (|h| h.guest.as_mut().unwrap().memory.leaves.clear(), "number of leaves"),
        (|h| h.identity.name = "\u{1b}[2J".into(), "control characters"),
    ];
    for (change, why) in changes {
        let mut head = good.clone();
        change(&mut head);
        let said = refused(&head);
        assert!(said.contains(why), "{said} where {why} was expected");
    }
    good.publish(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    for (text, why) in [
        (String::new(), "no head"),
        ("x\n{}".into(), "no head"),
        (text.replacen("test", "tEst", 1), "does not match its hash"),
        (text[..text.len() - 1].to_owned(), "does not match its hash"),
        (text.replacen("-head 2", "-head x", 1), "version is no number"),
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(Head::read(&path), Err(Error::BadHead { why: said, .. }) if said.contains(why)), "{why}");
    }
    let line = text.split('\n').next().unwrap();
    for (text, why) in [
        ("", "no head"),
        (line, "no head"),
        ("x\n", "no head"),
        ("driftwood-head 1 00\n", "hash is none"),
        (&format!("{line} \n"), "no head"),
        (&format!("{}\n", line.to_uppercase()), "no head"),
        (&format!("{}{line}\n", " ".repeat(128)), "no head"),
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(Head::hash_of(&path), Err(Error::BadHead { why: said, .. }) if said.contains(why)), "{text:?}");
    }
    std::fs::write(&path, text.replacen("-head 2", "-head 3", 1)).unwrap();
    assert!(matches!(Head::read(&path), Err(Error::FutureVersion { found: 3, .. })));
    assert!(matches!(Head::hash_of(&path), Err(Error::FutureVersion { found: 3, .. })));
}

#[test]
fn texts_that_name_no_chunk() {
    let hash = Hash::of(b"x");
    for bad in [
        "",
        "x",
        "ff 0 0",
        "00000000000000ff 0",
        "00000000000000ff 0 0 0",
        "00000000000000FF 0 0",
        "00000000000000ff -1 0",
        "00000000000000ff 01 0",
    ] {
        assert!(format!("{hash} {bad}").parse::<Chunk>().is_err(), "{bad:?}");
    }
    assert!(format!("{hash} 00000000000000ff {} {}", u64::MAX, 1).parse::<Chunk>().is_err(), "it would end beyond all files");
}
