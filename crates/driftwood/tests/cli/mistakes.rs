//! What a user does wrong ends with 2 and a message that says what to do.

use crate::support::{Home, SMOLLM2, models, refuse, succeed};
use std::fs;
use std::process::Stdio;

#[test]
fn help_and_completions_are_there() {
    let home = Home::new();
    assert!(succeed(home.command(&[])).contains("driftwood chat"));
    assert!(succeed(home.command(&["--version"])).starts_with("driftwood "));
    let commands = "chat actor freeze thaw run inspect log diff store pull models generate perplexity bench doctor completions";
    let help = succeed(home.command(&["--help"]));
    for command in commands.split(' ') {
        assert!(help.contains(command), "--help lacks {command}");
        assert!(succeed(home.command(&[command, "--help"])).contains("Examples:"), "{command} --help has no examples");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(succeed(home.command(&["completions", shell])).contains("driftwood"), "{shell}");
    }
}

#[test]
fn listings_work_with_nothing_there() {
    let home = Home::new();
    let models: serde_json::Value = serde_json::from_str(&succeed(home.command(&["models", "--json"]))).unwrap();
    assert_eq!(models["models"][0]["name"], "smollm2-135m");
    assert!(models["folder"].as_str().unwrap().ends_with("no-models"));
    assert!(succeed(home.command(&["actor", "ls"])).contains("no actors yet"));
    assert_eq!(succeed(home.command(&["actor", "ls", "--json"])).trim(), r#"{"actors":[]}"#);
}

#[test]
fn bad_flags_are_refused() {
    let home = Home::new();
    let cases: [(&[&str], &[&str]); 12] = [
        (&["no-such-command"], &["unrecognized subcommand"]),
        (&["generate"], &["--prompt"]),
        (&["generate", "--prompt", "a", "--prompt-file", "b"], &["cannot be used with"]),
        (&["generate", "--prompt", "a", "--temperature", "-1"], &["temperature"]),
        (&["generate", "--prompt", "a", "--kv", "f64"], &["f16, f32, q8"]),
        (&["generate", "--prompt", "a", "--simd", "sse"], &["portable, avx2, avx512, neon"]),
        (&["generate", "--prompt", "a", "--threads", "0"], &["--threads"]),
        (&["generate", "--prompt", "a", "--device", "gpu", "--device-name", "none such"], &["no GPU was found", "driftwood doctor"]),
        (&["generate", "--prompt", "a"], &["driftwood pull smollm2-135m"]),
        (&["pull", "no-such-model"], &["smollm2-135m", "--model"]),
        (&["actor", "spawn", "Bad Name", "--set", "x"], &["KEY=VALUE"]),
        (&["completions", "cmd"], &["possible values"]),
    ];
    for (args, words) in cases {
        refuse(home.command(args), words);
    }
}

#[test]
fn bad_model_files_are_refused_by_name() {
    let home = Home::new();
    let whole = fs::read(models().join(SMOLLM2.1)).or_else(|_| fs::read(models().join("smollm2-135m.gguf"))).unwrap();
    let mut unknown = whole.clone();
    let at = unknown.windows(5).position(|w| w == b"llama").unwrap();
    unknown[at..at + 5].copy_from_slice(b"lalma");
    let files: [(&str, &[u8], &[&str]); 5] = [
        ("empty.gguf", b"", &["cannot use the model", "empty.gguf"]),
        ("foreign.gguf", b"PK\x03\x04 this is a zip file, not a model", &["not a GGUF file"]),
        ("header.gguf", &whole[..1000], &["truncated"]),
        ("half.gguf", &whole[..whole.len() / 2], &["fetch it again"]),
        ("unknown.gguf", &unknown, &["lalma"]),
    ];
    for (name, bytes, words) in files {
        fs::write(home.path(name), bytes).unwrap();
        refuse(home.command(&["generate", "--prompt", "a", "--model", name]), words);
    }
    refuse(home.command(&["generate", "--prompt", "a", "--model", "missing.gguf"]), &["missing.gguf", "driftwood models"]);
    refuse(home.command(&["generate", "--prompt", "a", "--model", "."]), &["neither a file nor a folder with a `config.json`"]);
}

#[test]
fn a_file_of_the_catalogue_with_other_bytes_is_refused() {
    let home = Home::new();
    fs::create_dir_all(home.path("no-models")).unwrap();
    fs::write(home.path("no-models/smollm2-135m.gguf"), "something else").unwrap();
    refuse(home.command(&["generate", "--prompt", "a"]), &["sha256", "driftwood pull smollm2-135m"]);
}

#[test]
fn bad_snapshots_are_refused_by_name() {
    let home = Home::new();
    home.run(&["actor", "spawn", "a"]);
    home.run(&["freeze", "a", "-o", "a.st"]);
    let whole = fs::read(home.path("a.st")).unwrap();
    let mut altered = whole.clone();
    let last = altered.len() - 1;
    altered[last / 2] ^= 1;
    let mut future = whole.clone();
    let version = b"driftwood.format\":\"1\"";
    if let Some(at) = future.windows(version.len()).position(|w| w == version) {
        future[at + version.len() - 2] = b'9';
        fs::write(home.path("future.st"), &future).unwrap();
        refuse(home.with_models(&["thaw", "future.st", "--as", "b"]), &["future.st", "update driftwood"]);
    }
    let files: [(&str, &[u8], &[&str]); 5] = [
        ("empty.st", b"", &["empty.st"]),
        ("foreign.st", &[b'x'; 4096], &["not a driftwood snapshot"]),
        ("short.st", &whole[..100], &["short.st"]),
        ("half.st", &whole[..whole.len() / 2], &["copy it again"]),
        ("altered.st", &altered, &["altered.st"]),
    ];
    for (name, bytes, words) in files {
        fs::write(home.path(name), bytes).unwrap();
        refuse(home.with_models(&["thaw", name, "--as", "b"]), words);
    }
    refuse(home.with_models(&["thaw", "missing.st", "--as", "b"]), &["missing.st"]);
    refuse(home.with_models(&["inspect", "missing.st"]), &["no actor, no model and no file"]);
    refuse(home.with_models(&["actor", "send", "b", "hello"]), &["`b`"]);
    refuse(home.command(&["log", "b"]), &["no actor `b`"]);
    refuse(home.command(&["diff", "a", "b"]), &["no actor `b`"]);
    refuse(home.command(&["actor", "rewind", "b", "--to", "0"]), &["no actor `b`"]);
    refuse(home.command(&["actor", "rewind", "a", "--to", "1"]), &["no moment after 1 messages", "those after 0"]);
}

#[test]
fn bad_guests_are_refused_by_name_and_leave_nothing() {
    let home = Home::new();
    fs::write(home.path("bad.wasm"), b"\0asm nonsense").unwrap();
    refuse(home.with_models(&["actor", "spawn", "a", "--guest", "bad.wasm"]), &["driftwood: "]);
    refuse(home.with_models(&["actor", "spawn", "a", "--guest", "missing.wasm"]), &["chat, echo, judge, matmul"]);
    refuse(home.with_models(&["run", "bad.wasm"]), &["driftwood: "]);
    assert_eq!(home.run(&["actor", "ls", "--json"]).trim(), r#"{"actors":[]}"#);
}

#[test]
fn closed_output_is_no_crash() {
    let home = Home::new();
    let mut command = home.with_models(&["generate", "--prompt", "Once upon a time", "--max-tokens", "64", "--ignore-eos"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}
