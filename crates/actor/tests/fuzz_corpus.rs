//! Replays the fuzz target of the host functions on stable: the seeds in the repository, and a corpus where fuzzing has left one.

#[path = "common/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};
use tiny::{NAMES, Script, VOCABULARY};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz").join(name).join("host_calls")
}

#[test]
fn scripts_of_host_calls_do_no_harm() {
    for folder in [folder("seeds"), folder("corpus")] {
        let Ok(entries) = folder.read_dir() else { continue };
        for entry in entries {
            tiny::host_calls(&std::fs::read(entry.unwrap().path()).unwrap());
        }
    }
}

/// Random records over small and wild numbers: what the fuzzer does, for a moment and always the same.
#[test]
fn random_scripts_do_no_harm() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let interesting = [0, 1, 2, 3, 4, 8, 64, 65_536, 65_540, 131_072, 262_143, 262_144, 0x7fff_ffff, 0xffff_fff0, u32::MAX, VOCABULARY];
    for round in 0..300 {
        let mut input = vec![(round % 4 != 0).into()];
        for _ in 0..random(40) {
            let mut record = [0u32; 10];
            record[0] = if random(4) == 0 { 11 } else { random(NAMES.len() as u64) as u32 };
            for argument in &mut record[1..] {
                *argument = if random(3) == 0 { random(300) as u32 } else { interesting[random(interesting.len() as u64) as usize] };
            }
            if record[0] == 11 {
                record[1..5].copy_from_slice(&[0, 0, random(4) as u32, random(200) as u32]);
            }
            input.extend(record.iter().flat_map(|w| w.to_le_bytes()));
        }
        tiny::host_calls(&input);
    }
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let free = 131_072;
    let with = |model: u8, script: &Script| [vec![model], script.bytes()].concat();
    let mut sessions = Script::default();
    sessions.call("session_open", &[0, 0, 0, 0]).call("prefill", &[1, free, 70]).call("session_fork", &[1]).call("next", &[2]);
    sessions.call("decode", &[1, free + 1024, VOCABULARY]).call("sample", &[1, free + 1024, VOCABULARY]).call("session_truncate", &[2, 60]);
    sessions.call("session_tokens", &[2, 0, free, 16]).call("session_close", &[1]);
    let mut generate = Script::default();
    let sampler =
        generate.data(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0, 0, 0, 0x80, 0x3f, 0, 0, 0, 0, 0, 0, 0x80, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0, 64]);
    let options = generate.data(&[9, 0, 0, 0, 3]);
    generate.call("session_open", &[0, 0, 1, 64]).call("append", &[1, free, 4]).call("set_sampler", &[1, sampler, 0, 0]);
    generate.call("generate", &[1, options]);
    let mut text = Script::default();
    let json = text.data(b"[{\"role\":\"user\",\"content\":\"hello\"}]");
    text.call("chat_template", &[0, 0, json, 35, 1, free, 256]).call("tokenize", &[0, 0, free, 40, 2, free + 1024, 99]);
    text.call("detokenize", &[0, 0, free + 1024, 9, free, 64]).call("is_end", &[0, 0, 263]).call("model_info", &[0, 0, free]);
    let mut plain = Script::default();
    plain.call("receive", &[free, 99]).call("reply", &[free, 9]).call("log", &[2, free, 9]).call("setting", &[free, 4, free, 9]);
    plain.call("time_ms", &[]).call("random", &[free, 9]).call("matmul", &[free, free, free + 64, 2, 2, 2]);
    vec![("sessions", with(1, &sessions)), ("generate", with(1, &generate)), ("text", with(1, &text)), ("plain", with(0, &plain))]
}

/// The seeds are what is written here; `DRIFTWOOD_WRITE_SEEDS=1` writes them anew.
#[test]
fn seeds_are_up_to_date() {
    for (name, bytes) in seeds() {
        let path = folder("seeds").join(name);
        if std::env::var_os("DRIFTWOOD_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(folder("seeds")).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(std::fs::read(&path).ok() == Some(bytes), "{} is stale: run with DRIFTWOOD_WRITE_SEEDS=1", path.display());
    }
}
