//! One fuzz input, run: shared by the fuzz target and by the test that replays its corpus.
//!
//! A header has at least 64 KiB and a hash over itself, which no fuzzer guesses. So the first byte of an input says how it becomes a file:
//! 0: it is the file. Otherwise: three bytes (a length, little-endian), the header's JSON up to a NUL, the beginning of the data, which
//! zeros prolong to that length. The header is then padded and sealed as the format wants it.

use driftwood_snapshot::{Hash, Snapshot, inspect};
use std::io::Write;

/// How a header begins, up to the digits of its own hash.
pub const BEGINNING: &str = r#"{"__metadata__":{"driftwood.format":"1","driftwood.header_blake3":""#;

/// A file of this header and this data, its length field and hash as they should be.
pub fn seal(json: &[u8], data: &[u8]) -> Vec<u8> {
    let header_bytes = (8 + json.len()).next_multiple_of(64 << 10);
    let mut file = ((header_bytes - 8) as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json);
    file.resize(header_bytes, b' ');
    let digits = 8 + BEGINNING.len()..8 + BEGINNING.len() + 64;
    if file[8..].starts_with(BEGINNING.as_bytes()) {
        file[digits.clone()].fill(b'0');
        let hash = Hash::of(&file).to_string();
        file[digits].copy_from_slice(hash.as_bytes());
    }
    file.extend_from_slice(data);
    file
}

/// The file that a fuzz input stands for.
pub fn expand(input: &[u8]) -> Vec<u8> {
    let [kind, a, b, c, rest @ ..] = input else { return input.to_vec() };
    if *kind == 0 {
        return input[1..].to_vec();
    }
    let data_bytes = u32::from_le_bytes([*a, *b, *c, 0]) as usize;
    let json_bytes = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    let mut data = rest.get(json_bytes + 1..).unwrap_or_default().to_vec();
    data.resize(data_bytes.max(data.len()), 0);
    seal(&rest[..json_bytes], &data)
}

/// Opens, inspects and verifies the file, and touches every byte that it hands out.
pub fn replay(input: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&expand(input)).expect("room for it");
    let inspected = inspect(file.path());
    let Ok(snapshot) = Snapshot::open(file.path()) else { return };
    assert_eq!(inspected.expect("what opens can be inspected").manifest, *snapshot.manifest());
    let manifest = snapshot.manifest();
    let mut sum: u64 = snapshot.pages().map(|(page, bytes)| u64::from(page) + bytes.len() as u64).sum();
    sum += snapshot.module().map_or(0, |module| module.bytes().len() as u64);
    for (p, pool) in manifest.pools.iter().enumerate() {
        sum += (0..pool.block_hashes.len()).map(|b| u64::from(snapshot.block(p, b)[0])).sum::<u64>();
    }
    for (s, session) in manifest.sessions.iter().enumerate() {
        let info = &manifest.pools[session.state.pool as usize].info;
        sum += snapshot.tokens(s).iter().map(|&t| u64::from(t)).sum::<u64>();
        if info.block_bytes <= 1 << 24 {
            snapshot.unpack_tail(s, &mut vec![0; info.block_bytes as usize]);
        }
        session.blocks.iter().for_each(|&b| sum += snapshot.block(session.state.pool as usize, b as usize).len() as u64);
    }
    let _ = (sum, snapshot.verify_all(1), snapshot.kv_bytes());
}
