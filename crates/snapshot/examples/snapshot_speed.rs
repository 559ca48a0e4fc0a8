//! How fast a snapshot is written and read: 4,096 tokens of SmolLM2 by default (64 blocks of f16, 94 MB).
//!
//! `cargo run --release -p driftwood-snapshot --example snapshot_speed [FOLDER] [ROUNDS] [TOKENS]` prints medians in milliseconds.
#![allow(clippy::print_stdout)]

use driftwood_snapshot::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

const BLOCK_TOKENS: usize = 64;

fn info() -> PoolInfo {
    PoolInfo {
        model: "smollm2-135m".into(),
        fingerprint: Hash::of(b"model"),
        numerics: "cpu/1/fast/f16".into(),
        architecture: "llama".into(),
        layers: 30,
        kv_heads: 3,
        head_dim: 64,
        dtype: KvDType::F16,
        block_tokens: 64,
        block_bytes: 1_474_560,
    }
}

fn contents<'a>(kv: &'a [Vec<u8>], memory: &'a [u8], module: &'a [u8], tokens: &'a [u32], identity: &'a Identity) -> Contents<'a> {
    let state = SessionState { handle: 1, pool: 0, context_max: 8192, sampler: serde_json::Value::Null };
    let (blocks, tail) = kv.split_at(tokens.len() / BLOCK_TOKENS);
    let pool = PoolContents { info: info(), blocks: blocks.iter().map(|bytes| Block { bytes, hash: None }).collect() };
    let session = SessionContents {
        state,
        tokens,
        evaluated: tokens.len() as u32,
        blocks: (0..blocks.len() as u32).collect(),
        tail: tail.first().map(Vec::as_slice),
    };
    Contents {
        writer: "speed",
        identity,
        guest: Some(GuestContents { state: GuestState::default(), module, memory }),
        pools: vec![pool],
        sessions: vec![session],
        journal: &[],
        notes: BTreeMap::new(),
    }
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

fn main() -> Result<(), Error> {
    let folder = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let rounds: usize = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(7);
    let token_count: usize = std::env::args().nth(3).and_then(|n| n.parse().ok()).unwrap_or(4096);
    let path = folder.join(format!("speed-{}.safetensors", std::process::id()));
    let noise = |seed: usize, len: usize| (0..len).map(|i| (i * 2_654_435_761 + seed * 40_503) as u8).collect::<Vec<u8>>();
    let kv: Vec<Vec<u8>> = (0..token_count.div_ceil(BLOCK_TOKENS)).map(|b| noise(b, 1_474_560)).collect();
    let mut memory = vec![0; 1 << 20];
    memory[..300_000].copy_from_slice(&noise(1, 300_000));
    let (module, tokens) = (noise(2, 30_000), vec![7; token_count]);
    let identity = Identity::mint("speed", None)?;
    let contents = contents(&kv, &memory, &module, &tokens, &identity);
    let mut columns: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        let report = write(&contents, &path, Existing::Replace)?;
        columns.entry("serialise_ms").or_default().push(report.serialise_ms);
        columns.entry("sync_ms").or_default().push(report.sync_ms);
        columns.entry("bytes").or_default().push(report.bytes as f64);
        let begun = Instant::now();
        let snapshot = Snapshot::open(&path)?;
        columns.entry("open_ms").or_default().push(ms(begun));
        for (column, threads) in [("verify_2_threads_ms", 2), ("verify_1_thread_ms", 1)] {
            let snapshot = Snapshot::open(&path)?;
            let begun = Instant::now();
            snapshot.verify_all(threads)?;
            columns.entry(column).or_default().push(ms(begun));
        }
        drop(snapshot);
    }
    std::fs::remove_file(&path).map_err(|source| Error::System { operation: "remove", path, source })?;
    for (column, values) in &mut columns {
        values.sort_by(f64::total_cmp);
        println!("{column:20} {:14.3}   (best {:.3})", values[values.len() / 2], values[0]);
    }
    Ok(())
}
