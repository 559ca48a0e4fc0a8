//! What is written is what is read: by us, by the safetensors crate, after a fork, after an import.

mod common;

use common::{Actor, Timeline, assert_holds, info, names, noise};
use driftwood_snapshot::*;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

#[test]
fn an_actor_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let actor = Actor::sample();
    let path = actor.write(folder.path());
    let snapshot = Snapshot::open(&path).unwrap();
    assert_holds(&snapshot, &actor);
    assert_eq!(snapshot.manifest().guest.as_ref().unwrap().state, common::guest_state());
    assert_eq!(snapshot.manifest().notes["why"], "test");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(folder.path()), ["sample.safetensors"]);
}

#[test]
fn forks_share_blocks_and_the_tail() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = Snapshot::open(&Actor::sample().write(folder.path())).unwrap();
    let sessions = &snapshot.manifest().sessions;
    assert_eq!(sessions[0].blocks, sessions[1].blocks);
    assert_eq!(sessions[1].tail.as_deref(), Some("session.1.tail"));
    assert_eq!(snapshot.tail(0).unwrap().bytes().as_ptr(), snapshot.tail(1).unwrap().bytes().as_ptr());
}

#[test]
fn places_suit_16_kib_pages_and_other_readers() {
    let folder = tempfile::tempdir().unwrap();
    let path = Actor::sample().write(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    let (header_bytes, _) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((header_bytes + 8) % (64 << 10), 0);
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let blocks = tensors.tensor("kv.0.blocks").unwrap();
    assert_eq!((blocks.dtype(), blocks.shape()), (safetensors::Dtype::F16, &[3, 1, 2, 1, 64, 64][..]));
    assert_eq!(tensors.tensor("kv.1.blocks").unwrap().shape(), [1, 16 << 10]);
    assert_eq!(tensors.tensor("session.1.tail").unwrap().shape(), [1, 2, 1, 2, 64]);
    let snapshot = Snapshot::open(&path).unwrap();
    assert!((0..2).all(|pool| snapshot.blocks(pool).unwrap().offset_bytes().is_multiple_of(64 << 10)));
}

#[test]
fn small_actors_stay_small() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small");
    let mut actor = Actor::sample();
    let smollm2 = info(KvDType::F16, 30, 3, 64, 64);
    let session = Timeline {
        tokens: vec![5; 24],
        evaluated: 24,
        blocks: vec![],
        tail: Some(Arc::new(noise(1, smollm2.block_bytes as usize))),
        state: actor.sessions[0].state.clone(),
    };
    (actor.pools, actor.sessions) = (vec![(smollm2, vec![])], vec![session]);
    let report = write(&Contents { guest: None, ..actor.contents() }, &path, Existing::Refuse).unwrap();
    assert_eq!(report.kv_bytes, 24 * 23_040);
    assert!(report.bytes <= report.kv_bytes + (64 << 10) + 512, "{} bytes", report.bytes);
}

#[test]
fn known_hashes_are_not_taken_again() {
    let folder = tempfile::tempdir().unwrap();
    let actor = Actor::sample();
    let path = folder.path().join("twice");
    let first = write(&actor.contents(), &path, Existing::Refuse).unwrap();
    assert_eq!(first.blocks_hashed, 4);
    let mut contents = actor.contents();
    contents.pools[0].blocks.iter_mut().zip(&first.manifest.pools[0].block_hashes).for_each(|(block, hash)| block.hash = Some(*hash));
    let second = write(&contents, &path, Existing::Replace).unwrap();
    assert_eq!((second.blocks_hashed, &second.manifest), (1, &first.manifest));
    assert_holds(&Snapshot::open(&path).unwrap(), &actor);
}

#[test]
fn an_import_is_verified_private_and_exclusive() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let actor = Actor::sample();
    let source = actor.write(theirs.path());
    std::fs::set_permissions(&source, PermissionsExt::from_mode(0o644)).unwrap();
    let target = ours.path().join("imported");
    assert_holds(&import(&source, &target, Existing::Refuse).unwrap(), &actor);
    assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(import(&source, &target, Existing::Refuse), Err(Error::Exists { .. })));
    let inspection = inspect(&source).unwrap();
    assert_eq!(inspection.manifest, *Snapshot::open(&target).unwrap().manifest());
    assert_eq!(inspection.header_bytes + inspection.tensors.iter().map(|t| t.bytes).sum::<u64>(), inspection.file_bytes);
    let mut bytes = std::fs::read(&source).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&source, bytes).unwrap();
    assert!(matches!(import(&source, &ours.path().join("bad"), Existing::Refuse), Err(Error::Altered { .. })));
    assert!(matches!(import(theirs.path(), &ours.path().join("bad"), Existing::Refuse), Err(Error::NotASnapshot { .. })));
    assert_eq!(names(ours.path()), ["imported"]);
}

#[test]
fn a_failed_write_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let actor = Actor::sample();
    drop(serialise(&actor.contents(), &folder.path().join("dropped")).unwrap());
    assert_eq!(names(folder.path()), [""; 0]);
    let directory = folder.path().join("taken");
    std::fs::create_dir_all(directory.join("x")).unwrap();
    assert!(matches!(write(&actor.contents(), &directory, Existing::Replace), Err(Error::System { .. })));
    assert!(matches!(write(&actor.contents(), &directory, Existing::Refuse), Err(Error::Exists { .. })));
    assert!(matches!(write(&actor.contents(), &folder.path().join("no/folder"), Existing::Refuse), Err(Error::System { .. })));
    assert_eq!(names(folder.path()), ["taken"]);
}

#[test]
fn contents_that_contradict_themselves_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let actor = Actor::sample();
    type Edit = fn(&mut Contents<'_>);
    let table: [(&str, Edit); 15] = [
        ("writer", |c| c.writer = "a\u{1b}[2J"),
        ("guest.module", |c| c.guest.as_mut().unwrap().module = &[]),
        ("guest.memory", |c| c.guest.as_mut().unwrap().memory = &[0; 100]),
        ("pools[0].blocks[0]", |c| c.pools[0].blocks[0].bytes = &[0; 100]),
        ("pools[0].layers", |c| c.pools[0].info.layers = u32::MAX),
        ("pools[0].block_tokens", |c| c.pools[0].info.block_tokens = 0),
        ("pools[1].head_dim", |c| c.pools[1].info.head_dim = 33),
        ("pools[0].block_bytes", |c| c.pools[0].info.kv_heads = 2),
        ("sessions[0].pool", |c| c.sessions[0].state.pool = 2),
        ("sessions[0].tail", |c| c.sessions[0].tail = None),
        ("sessions[0].tail", |c| c.sessions[0].tail = Some(&[0; 100])),
        ("sessions[0].blocks", |c| c.sessions[0].blocks = vec![0, 3]),
        ("sessions[0].tokens", |c| c.sessions[0].state.context_max = 134),
        ("sessions[1].handle", |c| c.sessions[1].state.handle = 1),
        ("driftwood.manifest", |c| c.notes = [("deep".to_owned(), deep())].into()),
    ];
    for (expected, edit) in table {
        let mut contents = actor.contents();
        edit(&mut contents);
        match write(&contents, &folder.path().join("bad"), Existing::Refuse) {
            Err(Error::Contents { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert_eq!(names(folder.path()), [""; 0]);
}

fn deep() -> serde_json::Value {
    (0..200).fold(serde_json::Value::Null, |inner, _| serde_json::Value::Array(vec![inner]))
}

prop_compose! {
    fn pool()(dtype in prop_oneof![Just(KvDType::F16), Just(KvDType::F32), Just(KvDType::Q8)], layers in 1u32..4, kv_heads in 1u32..4,
              head_dim in 1u32..3, block_tokens in prop_oneof![Just(1u32), Just(16), Just(64)], blocks in 0u32..5, seed: u32)
              -> (PoolInfo, Vec<Vec<u8>>) {
        let info = info(dtype, layers, kv_heads, 32 * head_dim, block_tokens);
        let blocks = (0..blocks).map(|b| noise(seed ^ b, info.block_bytes as usize)).collect();
        (info, blocks)
    }
}

prop_compose! {
    fn actor()(pools in prop::collection::vec(pool(), 1..4), pages in prop::collection::vec(any::<bool>(), 0..20), module in 1usize..5000,
               plans in prop::collection::vec((0usize..8, 0u32..300, 0u32..9, any::<u32>()), 0..6)) -> Actor {
        let timeline = |(handle, (pool, tokens, ahead, seed)): (usize, (usize, u32, u32, u32))| {
            let (pool, plain) = (pool % pools.len(), Actor::sample().sessions.remove(0));
            let (info, blocks) = &pools[pool];
            let evaluated = if blocks.is_empty() { tokens % info.block_tokens } else { tokens };
            let block = |b: u32| (b ^ seed) % blocks.len() as u32;
            Timeline {
                state: SessionState { handle: handle as u32, pool: pool as u32, ..plain.state },
                tokens: (0..evaluated + ahead).map(|t| t ^ seed).collect(),
                evaluated,
                blocks: (0..evaluated / info.block_tokens).map(block).collect(),
                tail: (evaluated % info.block_tokens > 0).then(|| Arc::new(noise(seed, info.block_bytes as usize))),
            }
        };
        let sessions = plans.into_iter().enumerate().map(timeline).collect();
        let page = |(p, used): (usize, &bool)| if *used { noise(p as u32, 4096) } else { vec![0; 4096] };
        let memory = pages.iter().enumerate().flat_map(page).collect();
        Actor { memory, module: noise(3, module), pools, sessions, ..Actor::sample() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_can_be_written_comes_back(actor in actor()) {
        let folder = tempfile::tempdir().unwrap();
        let path = actor.write(folder.path());
        assert_holds(&Snapshot::open(&path).unwrap(), &actor);
        safetensors::SafeTensors::deserialize(&std::fs::read(&path).unwrap()).unwrap();
    }
}
