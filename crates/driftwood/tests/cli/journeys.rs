//! Actors across processes and state folders.

use crate::support::{GEMMA3, Home, SMOLLM2, mode, refuse, said, succeed};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

const TURNS: [&str; 3] = ["Hello! What is the sea?", "Is it deep?", "Write a short poem about it."];

/// Talks three turns, each in its own process; freezes after the second and thaws the file with another state folder: the third turn there
/// is the same.
fn frozen_conversations_go_on(model: &str) {
    let (here, there) = (Home::new(), Home::new());
    here.run(&["actor", "spawn", "alice", "--model", model, "--system", "Be brief."]);
    here.turn("alice", TURNS[0]);
    here.turn("alice", TURNS[1]);
    let file = here.path("alice.safetensors");
    let file = file.to_str().unwrap();
    here.run(&["freeze", "alice", "-o", file]);
    assert_eq!(mode(file.as_ref()), 0o600);

    let thawed = there.json(&["thaw", file, "--as", "bob", "--json"]);
    assert_eq!(thawed["recomputed_tokens"], 0);
    let frozen = here.json(&["inspect", file, "--json"])["manifest"]["identity"].clone();
    assert_eq!(thawed["identity"]["parent"], frozen["id"]);
    assert_ne!(thawed["identity"]["id"], frozen["id"]);

    let (expected, found) = (here.turn("alice", TURNS[2]), there.turn("bob", TURNS[2]));
    for key in ["reply", "tokens", "restored_tokens", "prefilled_tokens"] {
        assert_eq!(expected[key], found[key], "{key}");
    }
    assert!(found["restored_tokens"].as_u64().unwrap() > 30);
    // Bits, not only tokens: the KV blocks of both have the same hashes.
    let kv = |home: &Home, name: &str| {
        home.run(&["freeze", name, "-o", "after.safetensors"]);
        home.json(&["inspect", "after.safetensors", "--json"])["manifest"]["pools"].clone()
    };
    assert_eq!(kv(&here, "alice"), kv(&there, "bob"));
}

#[test]
fn a_frozen_smollm2_goes_on() {
    frozen_conversations_go_on(SMOLLM2.0);
}

#[test]
fn a_frozen_gemma3_goes_on() {
    frozen_conversations_go_on(GEMMA3.0);
}

#[test]
fn forks_part_and_names_are_taken_once() {
    let home = Home::new();
    home.run(&["actor", "spawn", "alice"]);
    home.turn("alice", TURNS[0]);
    home.run(&["actor", "fork", "alice", "bob"]);
    assert_eq!(home.turn("alice", TURNS[1])["tokens"], home.turn("bob", TURNS[1])["tokens"]);
    home.run(&["freeze", "alice", "-o", "a.st"]);
    refuse(home.with_models(&["freeze", "alice", "-o", "a.st"]), &["exists already"]);
    refuse(home.with_models(&["thaw", "a.st", "--as", "bob"]), &["`bob` exists already"]);
    refuse(home.with_models(&["thaw", "a.st"]), &["`alice` exists already"]);
    refuse(home.with_models(&["actor", "fork", "alice", "bob"]), &["exists already"]);
    refuse(home.with_models(&["actor", "spawn", "bob"]), &["exists already"]);
    refuse(home.with_models(&["actor", "fork", "alice", "bob", "-n", "0"]), &["-n", "0"]);
    home.run(&["actor", "rm", "bob"]);
    let listed = home.json(&["actor", "ls", "--json"]);
    assert_eq!(listed["actors"].as_array().unwrap().len(), 1);
    assert_eq!(listed["actors"][0]["name"], "alice");
    assert_eq!(listed["actors"][0]["model"], "smollm2-135m");
}

/// Without models: a fork of an actor at rest needs none.
#[test]
fn forks_by_the_dozen_are_all_or_none() {
    let home = Home::new();
    home.run(&["actor", "spawn", "alice"]);
    let expected = home.turn("alice", TURNS[0])["tokens"].clone();
    let forked = succeed(home.command(&["actor", "fork", "alice", "reader", "-n", "12", "--json"]));
    let forked: Value = serde_json::from_str(&forked).unwrap();
    assert_eq!(forked["forks"].as_array().unwrap().len(), 12);
    assert_eq!(forked["forks"][0]["name"], "reader-01");
    home.run(&["actor", "rm", "reader-05"]);
    refuse(home.command(&["actor", "fork", "alice", "reader", "-n", "12"]), &["`reader-01` exists already"]);
    let listed = home.json(&["actor", "ls", "--json"])["actors"].clone();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 12, "eleven and their parent");
    let tokens = &listed[0]["tokens"];
    assert!(tokens.as_u64().unwrap() >= expected.as_array().unwrap().len() as u64);
    assert!(listed.iter().all(|actor| actor["tokens"] == *tokens && actor["model"] == SMOLLM2.0));
    assert_eq!(home.turn("reader-12", TURNS[1])["tokens"], home.turn("alice", TURNS[1])["tokens"]);
}

#[test]
fn state_is_for_its_owner_only() {
    let home = Home::new();
    home.run(&["actor", "spawn", "alice"]);
    let mut folders = vec![home.path("state")];
    while let Some(folder) = folders.pop() {
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.is_symlink() => {} // a hint: it has no permissions of its own and leads nowhere
                false => assert_eq!(mode(&path), 0o600, "{}", path.display()),
            }
        }
    }
}

#[test]
fn a_second_process_is_told_who_holds_the_actor() {
    let home = Home::new();
    let mut command = home.with_models(&["chat", "alice", "--temperature", "0", "--max-tokens", "8"]);
    let mut chat = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = chat.stdin.take().unwrap();
    stdin.write_all(b"Hello!\n").unwrap();
    let mut line = String::new();
    BufReader::new(chat.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = chat.id().to_string();
    refuse(home.with_models(&["actor", "send", "alice", "hello"]), &["alice", &pid]);
    refuse(home.with_models(&["freeze", "alice", "-o", "a.st"]), &["alice", &pid]);
    drop(stdin);
    assert!(chat.wait().unwrap().success());
    home.turn("alice", "hello");
}

#[test]
fn a_chat_is_kept_and_resumed() {
    let home = Home::new();
    let chat = |lines: &str| {
        let mut command = home.with_models(&["chat", "--temperature", "0", "--max-tokens", "8"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let first = chat("Hello!\n/fork copy\n/stats\n/freeze c.st\n/quit\nnever said\n");
    assert!(first.status.success(), "{}", said(&first));
    assert_eq!(String::from_utf8_lossy(&first.stdout).lines().filter(|line| !line.is_empty()).count(), 1);
    let second = chat("And you?\n");
    assert!(said(&second).contains("tokens restored, 0 recomputed"), "{}", said(&second));
    let copy = home.turn("copy", "And you?");
    assert_eq!(copy["tokens"].as_array().unwrap().len(), 12);
    assert!(String::from_utf8_lossy(&second.stdout).trim_end().len() <= copy["reply"].as_str().unwrap().len());
    assert!(home.path("c.st").is_file());
    let unknown = chat("/nothing\n");
    assert!(!unknown.status.success() && said(&unknown).contains("/help"));
}

/// There and back, by three commands and in a chat; what cannot be leaves the actor as it was.
#[test]
fn an_actor_changes_its_model_and_comes_back() {
    let home = Home::new();
    home.run(&["actor", "spawn", "alice"]);
    home.turn("alice", "My name is Ada. Where does driftwood come from?");
    let before = home.json(&["inspect", "alice", "--json"])["manifest"].clone();
    assert_eq!(home.run(&["actor", "model", "alice"]).trim(), SMOLLM2.0);
    refuse(home.with_models(&["actor", "model", "alice", "no-such-model"]), &["no-such-model"]);
    refuse(home.with_models(&["actor", "model", "alice", GEMMA3.0, "--keep-kv"]), &["vocabulary", "--keep-kv"]);
    assert_eq!(home.json(&["inspect", "alice", "--json"])["manifest"]["sessions"], before["sessions"]);

    let there = home.json(&["actor", "model", "alice", GEMMA3.0, "--json"]);
    assert_eq!((&there["from"], &there["to"], &there["restored_tokens"]), (&SMOLLM2.0.into(), &GEMMA3.0.into(), &0.into()));
    assert!(there["recomputed_tokens"].as_u64().unwrap() > 20, "{there}");
    home.turn("alice", "What is my name?");
    assert!(home.run(&["inspect", "alice"]).contains("kept"), "the former's KV is kept");
    let back = home.json(&["actor", "model", "alice", SMOLLM2.0, "--json"]);
    assert_eq!(back["restored_tokens"], before["sessions"][0]["evaluated"], "{back}");
    let after = home.json(&["inspect", "alice", "--json"])["manifest"].clone();
    assert_eq!(after["identity"], before["identity"]);

    let mut chat = home.with_models(&["chat", "alice", "--model", GEMMA3.0, "--temperature", "0", "--max-tokens", "8"]);
    let mut child = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = format!("And you?\n/model {}\n/model\nGoodbye!\n", SMOLLM2.0);
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let chat = child.wait_with_output().unwrap();
    assert!(chat.status.success(), "{}", said(&chat));
    assert!(said(&chat).contains("went from smollm2-135m to gemma3-270m") && said(&chat).contains("to smollm2-135m"), "{}", said(&chat));
}

#[test]
fn an_interrupt_ends_the_reply_and_keeps_the_turn() {
    let home = Home::new();
    home.run(&["actor", "spawn", "alice"]);
    let mut command = home.with_models(&["actor", "send", "alice", "Count to a million.", "--max-tokens", "4000", "--temperature", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut reply = [0; 8];
    stdout.read_exact(&mut reply).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    let kept = home.json(&["inspect", "alice", "--json"])["manifest"]["sessions"][0]["tokens"].as_u64().unwrap();
    assert!((20..3000).contains(&kept), "{kept} tokens were kept");
}

#[test]
fn embedded_guests_run() {
    let home = Home::new();
    let verdict: Value = serde_json::from_str(&home.run(&["run", "judge", "Is the sea salty?"])).unwrap();
    assert!(["yes", "no"].contains(&verdict["answer"].as_str().unwrap()));
    let product: Value = serde_json::from_str(&home.run(&["run", "matmul", "17 33 5"])).unwrap();
    assert_eq!(product["errors"], 0);
    assert!(home.run(&["actor", "ls"]).contains("no actors yet"), "what runs once is not kept");
}

#[test]
fn benches_agree_with_themselves() {
    let home = Home::new();
    for model in [SMOLLM2.0, GEMMA3.0] {
        let rows = home.json(&["bench", "kv", "--model", model, "--tokens", "24,130", "--json"])["rows"].clone();
        for row in rows.as_array().unwrap() {
            assert!(row["tokens_agree"] == true && row["bits_agree"] == true, "{row}");
        }
    }
    let decode: Value =
        serde_json::from_str(&succeed(home.with_models(&["bench", "decode", "--tokens", "24", "--sessions", "3", "--json"]))).unwrap();
    assert_eq!(decode["rows"][0]["sessions"], 3);
    let swap = home.json(&["bench", "swap", "--model", SMOLLM2.0, "--other", GEMMA3.0, "--tokens", "200", "--new", "20", "--json"]);
    assert!(swap["bits_agree"] == true && swap["restored_tokens"].as_u64().unwrap() > 200, "{swap}");
}

/// Forks share what they have in common, garbage goes, and damage is found and named.
#[test]
fn the_store_is_shared_checked_and_cleaned() {
    let home = Home::new();
    home.run(&["actor", "spawn", "alice", "--system", "Be brief."]);
    home.turn("alice", TURNS[0]);
    let first = home.json(&["store", "stats", "--json"]);
    home.run(&["actor", "fork", "alice", "bob"]);
    let forked = home.json(&["store", "stats", "--json"]);
    assert_eq!((&forked["unique_bytes"], forked["actors"].as_u64()), (&first["unique_bytes"], Some(2)));
    home.turn("bob", TURNS[1]);
    home.run(&["actor", "rm", "bob"]);
    assert!(home.json(&["store", "gc", "--json"])["bytes"].as_u64().unwrap() > 0);
    assert_eq!(home.json(&["store", "stats", "--json"])["unique_bytes"], first["unique_bytes"]);
    assert!(home.run(&["store", "fsck"]).contains("1 actors are intact"));

    let packs: Vec<_> = fs::read_dir(home.path("state/store/packs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let largest = packs.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(largest, &bytes).unwrap();
    refuse(home.with_models(&["store", "fsck"]), &["missing or altered"]);
    refuse(home.with_models(&["actor", "send", "alice", TURNS[1]]), &["altered"]);
    bytes[middle] ^= 1;
    fs::write(largest, &bytes).unwrap();
    home.turn("alice", TURNS[1]);
}

/// What was said stands in the log; an actor that is taken back and told the same comes to the same state.
#[test]
fn a_log_is_kept_and_a_rewound_actor_takes_the_same_way() {
    let home = Home::new();
    home.run(&["actor", "spawn", "alice", "--system", "Be brief."]);
    let replies = TURNS.map(|text| home.turn("alice", text));
    let log = home.json(&["log", "alice", "--json"]);
    let turns = log["turns"].as_array().unwrap();
    assert_eq!((turns.len(), &log["messages"], &log["unknown_messages"]), (6, &3.into(), &0.into()));
    for (index, (text, reply)) in TURNS.iter().zip(&replies).enumerate() {
        let (user, assistant) = (&turns[2 * index], &turns[2 * index + 1]);
        assert_eq!((&user["role"], &user["text"], &user["state"]), (&"user".into(), &(*text).into(), &Value::Null));
        assert_eq!((&assistant["text"], &assistant["tokens"]), (&reply["reply"], &reply["tokens"]));
        assert_eq!(assistant["state"].as_str().unwrap().len(), 64);
    }
    assert_eq!(succeed(home.command(&["log", "alice"])).lines().count(), 7, "no model is needed");

    let rewound = home.json(&["actor", "rewind", "alice", "--to", "1", "--json"]);
    assert_eq!((&rewound["turn"], &rewound["dropped_turns"]), (&1.into(), &2.into()));
    assert!(rewound["tokens"].as_u64() < rewound["tokens_before"].as_u64());
    assert_eq!(home.json(&["log", "alice", "--json"])["turns"].as_array().unwrap()[..], turns[..2]);
    refuse(home.command(&["actor", "rewind", "alice", "--to", "2"]), &["those after 0 to 1"]);
    home.run(&["actor", "fork", "alice", "bob"]);
    assert_eq!(
        [home.turn("alice", TURNS[1])["tokens"].clone(), home.turn("alice", TURNS[2])["tokens"].clone()],
        [1, 2].map(|i| replies[i]["tokens"].clone())
    );
    assert_eq!(home.json(&["log", "alice", "--json"])["turns"], log["turns"]);
    assert_eq!(home.json(&["log", "bob", "--json"])["turns"].as_array().unwrap()[..], turns[..2]);
    assert!(home.json(&["store", "stats", "--json"])["history_bytes"].as_u64().unwrap() > 0);
    home.run(&["store", "gc"]);
    assert!(home.run(&["store", "fsck"]).contains("2 actors are intact"));
}

#[test]
fn a_diff_says_where_two_actors_part() {
    let home = Home::new();
    home.run(&["actor", "spawn", "alice", "--system", "Be brief."]);
    home.turn("alice", TURNS[0]);
    home.run(&["actor", "fork", "alice", "bob"]);
    assert!(succeed(home.command(&["diff", "alice", "bob"])).contains("are the same"), "no model is needed where nothing differs");
    let same = home.json(&["diff", "alice", "bob", "--json"]);
    assert_eq!((&same["same_state"], &same["memory"]["changed_pages"]), (&true.into(), &0.into()));
    home.turn("alice", TURNS[1]);
    home.turn("bob", TURNS[2]);
    let all = home.json(&["diff", "alice", "bob", "--json"]);
    assert_eq!((&all["same_state"], &all["messages"], &all["messages_in_common"]), (&false.into(), &serde_json::json!([2, 2]), &1.into()));
    let session = &all["sessions"][0];
    let first = &session["first_difference"];
    assert!(first["index"].as_u64().unwrap() > 30 && first["ids"][0] != first["ids"][1], "{first}");
    assert_eq!((first["texts"][0].as_str().unwrap(), first["texts"][1].as_str().unwrap()), ("Is", "Write"));
    let (max, rms) = (first["logits"]["max_abs"].as_f64().unwrap(), first["logits"]["rms"].as_f64().unwrap());
    assert!(0.0 < rms && rms < max, "{max} {rms}");
    let back = home.json(&["diff", "bob", "alice", "--json"]);
    assert_eq!(back["sessions"][0]["first_difference"]["logits"], first["logits"]);
    let alone: Value = serde_json::from_str(&succeed(home.command(&["diff", "alice", "bob", "--no-logits", "--json"]))).unwrap();
    assert_eq!((&alone["sessions"][0]["first_difference"]["logits"], &alone["memory"]), (&Value::Null, &all["memory"]));
    assert_eq!(alone["sessions"][0]["first_difference"]["ids"], first["ids"]);
    assert!(home.run(&["diff", "alice", "bob"]).contains("logits"));
    home.run(&["actor", "rewind", "alice", "--to", "1"]);
    let behind = home.json(&["diff", "alice", "bob", "--json"]);
    assert_eq!(behind["sessions"][0]["first_difference"]["ids"][0], Value::Null, "{behind}");
}
