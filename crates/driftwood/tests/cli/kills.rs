//! kill -9 at random moments of conversations: nothing that was shown is lost or changed, and the history ends as if nobody had been killed.
//!
//! Ten conversations for every change; a thousand kills and more with `DRIFTWOOD_SOAK=1`, as `cargo xtask soak` says. `DRIFTWOOD_KILL_SEED` repeats one.

use crate::support::{Home, models};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

const TURNS: [&str; 3] = ["Hello! What is the sea?", "Is it deep?", "Write a short poem about it."];
/// A message takes about so long from its process's start to its end.
const MESSAGE_MS: u64 = 400;

/// SplitMix64 (Steele, Lea, Flood, 2014): where the kills fall.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.unwrap().success());
}

/// Lets a process run for so long, kills it if it has not ended, and answers what it wrote to stdout and whether it ended well.
fn killed_after(mut child: Child, ms: u64) -> (String, bool) {
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes)
    });
    std::thread::sleep(Duration::from_millis(ms));
    child.kill().unwrap(); // SIGKILL
    let done = child.wait().unwrap().success();
    (String::from_utf8_lossy(&reader.join().unwrap().unwrap()).into_owned(), done)
}

fn start(home: &Home, args: &[&str]) -> Child {
    home.with_models(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

fn turns(home: &Home) -> Vec<Value> {
    home.json(&["log", "alice", "--json"])["turns"].as_array().unwrap().clone()
}

/// A conversation in which processes are killed again and again; how often, and all that was shown of each reply.
fn disturbed(home: &Home, dice: &mut Dice, kills: usize) -> (usize, BTreeMap<usize, Vec<String>>) {
    let mut shown: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut killed = 0;
    for (at, text) in TURNS.iter().enumerate() {
        let send = ["actor", "send", "alice", text];
        let mut args = &send[..];
        while turns(home).len() < 2 * (at + 1) {
            let patience = if killed < kills { dice.below(MESSAGE_MS) } else { 60_000 };
            let (said, done) = if killed < kills { killed_after(start(home, args), patience) } else { (home.run(args), true) };
            shown.entry(at).or_default().push(said);
            killed += usize::from(!done);
            // Whether the message had come so far that it is recorded, only the folder knows.
            let cut_off = home.json(&["actor", "inspect", "alice", "--json"])["cut_off"].as_bool().unwrap();
            args = if cut_off { &["actor", "resume", "alice"] } else { &send };
        }
    }
    (killed, shown)
}

/// As [`disturbed`], compared with the conversation that nobody disturbed.
fn survives(spawned: &Path, undisturbed: &[Value], seed: u64, kills: usize) -> usize {
    let home = Home::new();
    copy(spawned, &home.path("state"));
    let (killed, shown) = disturbed(&home, &mut Dice(seed), kills);
    assert_eq!(turns(&home), undisturbed, "seed {seed}");
    for (at, texts) in shown {
        let reply = format!("{}\n", undisturbed[2 * at + 1]["text"].as_str().unwrap());
        assert!(texts.iter().all(|text| reply.starts_with(text.as_str())), "seed {seed}: {texts:?} is not of {reply:?}");
    }
    let left = std::fs::read_dir(home.path("state/journals")).map(Iterator::count).unwrap_or(0);
    home.run(&["store", "gc"]);
    assert!(left <= 2 * killed + 2, "seed {seed}: {left} journals");
    assert_eq!(home.json(&["store", "fsck", "--json"])["flawed"].as_array().map(Vec::len), Some(0), "seed {seed}");
    killed
}

#[test]
fn conversations_survive_kill_9() {
    models();
    let home = Home::new();
    let spawn = ["actor", "spawn", "alice", "--system", "Be brief.", "--set", "max_tokens=16", "--set", "temperature=0.8"];
    home.run(&spawn);
    let spawned = home.path("spawned");
    copy(&home.path("state"), &spawned);
    for text in TURNS {
        home.run(&["actor", "send", "alice", text]);
    }
    let undisturbed = turns(&home);
    assert_eq!(undisturbed.len(), 2 * TURNS.len());
    let wanted = if std::env::var_os("DRIFTWOOD_SOAK").is_some() { 1000 } else { 10 };
    let first = std::env::var("DRIFTWOOD_KILL_SEED").map(|seed| seed.parse().unwrap());
    let mut killed = 0;
    for seed in first.clone().unwrap_or(0).. {
        killed += survives(&spawned, &undisturbed, seed, 6);
        if killed >= wanted || first.is_ok() {
            break;
        }
    }
    assert!(killed > 0, "nobody was killed");
}
