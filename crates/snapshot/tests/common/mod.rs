//! A small actor for the tests: two pools, forked sessions that share blocks and a tail, a memory with holes.
#![allow(dead_code)] // each test file uses its own part

pub mod replay;

use driftwood_snapshot::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Owns what [`Contents`] borrows.
pub struct Actor {
    pub identity: Identity,
    pub module: Vec<u8>,
    pub memory: Vec<u8>,
    pub pools: Vec<(PoolInfo, Vec<Vec<u8>>)>,
    pub sessions: Vec<Timeline>,
}

/// Owns what [`SessionContents`] borrows.
pub struct Timeline {
    pub state: SessionState,
    pub tokens: Vec<u32>,
    pub evaluated: u32,
    pub blocks: Vec<u32>,
    pub tail: Option<std::sync::Arc<Vec<u8>>>,
}

/// Bytes that look random and are the same every time.
pub fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(next).collect()
}

pub fn info(dtype: KvDType, layers: u32, kv_heads: u32, head_dim: u32, block_tokens: u32) -> PoolInfo {
    let mut info = PoolInfo {
        model: "tiny".into(),
        fingerprint: Hash::of(b"tiny.gguf"),
        numerics: "cpu/1/fast/f16".into(),
        architecture: "llama".into(),
        layers,
        kv_heads,
        head_dim,
        dtype,
        block_tokens,
        block_bytes: 0,
    };
    info.block_bytes = info.payload_bytes().next_multiple_of(16 << 10);
    info
}

pub fn guest_state() -> GuestState {
    GuestState {
        abi: 1,
        globals: vec![
            Global { index: 0, kind: ValueKind::I32, bits: 1_048_576 },
            Global { index: 3, kind: ValueKind::V128, bits: u128::MAX - 5 },
        ],
        settings: [("model".to_owned(), "tiny".to_owned()), ("system".into(), "Be \"brief\".\nÄ\u{1F980}".into())].into(),
        random_state: "00ff".into(),
        messages_handled: 2,
    }
}

fn state(handle: u32, pool: u32) -> SessionState {
    SessionState { handle, pool, context_max: 8192, sampler: serde_json::json!({"seed": u64::MAX, "temperature": 0.7}) }
}

impl std::fmt::Debug for Actor {
    /// Its measures, not its megabytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "module {} memory {}", self.module.len(), self.memory.len())?;
        self.pools.iter().try_for_each(|(info, blocks)| write!(f, "; {} blocks of {info:?}", blocks.len()))?;
        self.sessions.iter().try_for_each(|s| write!(f, "; {} of {} tokens in {:?}", s.evaluated, s.tokens.len(), s.blocks))
    }
}

impl Actor {
    pub fn sample() -> Actor {
        let mut memory = vec![0; 4 << 16];
        memory[..5000].copy_from_slice(&noise(1, 5000));
        memory[65_536 + 4095] = 9;
        let typed = info(KvDType::F16, 1, 1, 64, 64);
        let padded = info(KvDType::Q8, 2, 1, 32, 4);
        let block = |seed, info: &PoolInfo| noise(seed, info.block_bytes as usize);
        let tail = std::sync::Arc::new(block(9, &typed));
        let timeline = |handle, tokens: u32, evaluated, blocks: &[u32], tail| Timeline {
            state: state(handle, 0),
            tokens: (0..tokens).map(|t| t * 7).collect(),
            evaluated,
            blocks: blocks.to_vec(),
            tail,
        };
        let mut sessions = vec![
            timeline(1, 135, 130, &[0, 1], Some(tail.clone())),
            timeline(4, 130, 130, &[0, 1], Some(tail)),
            timeline(5, 64, 64, &[2], None),
            timeline(6, 0, 0, &[], None),
        ];
        sessions.push(Timeline { state: state(7, 1), tail: Some(block(11, &padded).into()), ..timeline(7, 7, 7, &[0], None) });
        Actor {
            identity: Identity::mint("sample", Some(ActorId([7; 16]))).unwrap(),
            module: noise(2, 777),
            memory,
            pools: vec![(typed.clone(), (20..23).map(|seed| block(seed, &typed)).collect()), (padded.clone(), vec![block(30, &padded)])],
            sessions,
        }
    }

    pub fn contents(&self) -> Contents<'_> {
        Contents {
            writer: "test 1",
            identity: &self.identity,
            guest: Some(GuestContents { state: guest_state(), module: &self.module, memory: &self.memory }),
            pools: self.pools.iter().map(pool_contents).collect(),
            sessions: self.sessions.iter().map(Timeline::contents).collect(),
            journal: &[],
            notes: BTreeMap::from([("why".to_owned(), serde_json::json!("test"))]),
        }
    }

    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("sample.safetensors");
        write(&self.contents(), &path, Existing::Replace).unwrap();
        path
    }
}

fn pool_contents((info, blocks): &(PoolInfo, Vec<Vec<u8>>)) -> PoolContents<'_> {
    PoolContents { info: info.clone(), blocks: blocks.iter().map(|bytes| Block { bytes, hash: None }).collect() }
}

impl Timeline {
    fn contents(&self) -> SessionContents<'_> {
        SessionContents {
            state: self.state.clone(),
            tokens: &self.tokens,
            evaluated: self.evaluated,
            blocks: self.blocks.clone(),
            tail: self.tail.as_ref().map(|t| t.as_slice()),
        }
    }
}

/// Whether a snapshot gives back, bit for bit, what an actor was.
pub fn assert_holds(snapshot: &Snapshot, actor: &Actor) {
    snapshot.verify_all(2).unwrap();
    let manifest = snapshot.manifest();
    assert_eq!(manifest.identity, actor.identity);
    let mut memory = vec![0; actor.memory.len()];
    snapshot.pages().for_each(|(page, bytes)| memory[page as usize * 4096..][..4096].copy_from_slice(bytes));
    assert!(memory == actor.memory, "linear memory");
    assert_eq!(snapshot.module().map(|m| m.bytes()), Some(&actor.module[..]));
    for (p, (info, blocks)) in actor.pools.iter().enumerate() {
        assert_eq!(manifest.pools[p].info, *info);
        assert_eq!(manifest.pools[p].block_hashes.len(), blocks.len());
        blocks.iter().enumerate().for_each(|(b, bytes)| assert!(snapshot.block(p, b) == bytes, "block {b} of pool {p}"));
    }
    for (s, session) in actor.sessions.iter().enumerate() {
        assert_eq!(manifest.sessions[s].state, session.state);
        assert_eq!(manifest.sessions[s].blocks, session.blocks);
        assert_eq!(manifest.sessions[s].evaluated, session.evaluated);
        assert_eq!(snapshot.tokens(s), session.tokens);
        assert_tail(snapshot, s, session);
    }
}

fn assert_tail(snapshot: &Snapshot, s: usize, session: &Timeline) {
    let info = &snapshot.manifest().pools[session.state.pool as usize].info;
    let (row_bytes, rows) = (info.row_bytes() as usize, (session.evaluated % info.block_tokens) as usize);
    let Some(block) = session.tail.as_ref().filter(|_| rows > 0) else {
        return assert!(snapshot.tail(s).is_none());
    };
    let mut unpacked = vec![0xAA; info.block_bytes as usize];
    snapshot.unpack_tail(s, &mut unpacked);
    for (at, byte) in unpacked.iter().enumerate() {
        let kept = at < info.payload_bytes() as usize && at / row_bytes % (info.block_tokens as usize) < rows;
        assert_eq!(*byte, if kept { block[at] } else { 0xAA }, "byte {at} of the tail of session {s}");
    }
}

/// The header's JSON of a file and its data.
pub fn split(file: &[u8]) -> (serde_json::Value, Vec<u8>) {
    let header_bytes = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&file[8..header_bytes]).unwrap(), file[header_bytes..].to_vec())
}

/// Names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}
