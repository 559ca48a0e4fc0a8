//! Journeys on the GPU, or on the software one that stands in for it.

use crate::support::{Home, SMOLLM2, mode, succeed};
use serde_json::Value;

#[test]
fn doctor_proves_the_chain_on_the_gpu() {
    let home = Home::new();
    let report: Value = serde_json::from_str(&succeed(home.command(&["doctor", "--json"]))).unwrap();
    assert!(report["ok"] == true && report["pointers_equal"] == true, "{report}");
    for link in report["links"].as_array().unwrap() {
        assert_eq!(link["ok"], true, "{link}");
    }
    assert_eq!(report["gemm_errors"], 0);
    // Where the device has its own memory, copying shows on its side; the path without a copy shows nowhere.
    for region in ["zero_copy_16", "zero_copy_256"] {
        assert!(report["rss_growth_kib"][region].as_i64().unwrap() < 100, "{report}");
    }
    let tables = succeed(home.command(&["doctor"]));
    assert!(tables.contains("zero-copy path") && tables.contains("pointer identity"), "{tables}");
}

#[test]
fn a_guest_multiplies_on_the_gpu() {
    let home = Home::new();
    let product: Value = serde_json::from_str(&home.run(&["run", "matmul", "17 33 5", "--device", "gpu"])).unwrap();
    assert_eq!(product["errors"], 0);
}

#[test]
fn compiled_kernels_are_kept_where_the_environment_says() {
    let home = Home::new();
    let files = |folder: &str| std::fs::read_dir(home.path(folder)).map_or(Vec::new(), |files| files.map(|f| f.unwrap().path()).collect());
    let multiply = |folder: Option<&str>| {
        let mut command = home.command(&["run", "matmul", "17 33 5", "--device", "gpu"]);
        command.env_remove("DRIFTWOOD_PIPELINES").env("XDG_CACHE_HOME", home.path("cache"));
        folder.map(|folder| command.env("DRIFTWOOD_PIPELINES", folder));
        command.env("DRIFTWOOD_MODELS", crate::support::models());
        succeed(command);
    };
    multiply(Some(""));
    assert!(!home.path("cache/driftwood").exists(), "an empty name switches it off");
    for (folder, variable) in [("cache/driftwood/pipelines", None), ("elsewhere", Some("elsewhere"))] {
        multiply(variable);
        let written = files(folder);
        assert!(written.len() == 1 && mode(&written[0]) == 0o600 && mode(&home.path(folder)) == 0o700, "{written:?}");
        let before = std::fs::read(&written[0]).unwrap();
        multiply(variable);
        assert_eq!((files(folder), std::fs::read(&written[0]).unwrap()), (written, before), "a second start has nothing to add");
    }
}

#[test]
fn the_gpu_and_the_cpu_choose_the_same_tokens() {
    let home = Home::new();
    let generate = |device: &str| {
        let prompt = ["generate", "--model", SMOLLM2.0, "--prompt", "The sea", "--max-tokens", "8", "--temperature", "0"];
        home.json(&[&prompt[..], &["--exact", "--top-logits", "3", "--json", "--device", device]].concat())
    };
    let (cpu, gpu) = (generate("cpu"), generate("gpu"));
    assert_eq!(cpu["residence"]["weights"], "the mapped file");
    assert!(gpu["residence"]["kv"].as_str().unwrap().contains("device"), "{}", gpu["residence"]);
    assert_eq!(cpu["tokens"], gpu["tokens"]);
    assert!(gpu["device"] == "gpu" && gpu["numerics"].as_str().unwrap().starts_with("gpu-"), "{gpu}");
    let logit = |report: &Value| report["top_logits"][0][1].as_f64().unwrap();
    assert!((logit(&cpu) - logit(&gpu)).abs() < 0.05);
}

#[test]
fn a_conversation_moves_from_the_gpu_to_the_cpu_and_back() {
    let home = Home::new();
    let turn = |actor: &str, text: &str, device: &str| {
        let send = ["actor", "send", actor, text, "--max-tokens", "4", "--temperature", "0", "--json", "--device", device];
        home.json(&send)
    };
    home.run(&["actor", "spawn", "alice"]);
    turn("alice", "Hi.", "gpu");
    for (to, name) in [("cpu", "bob"), ("gpu", "carol")] {
        let from = if name == "bob" { "alice" } else { "bob" };
        home.run(&["freeze", from, "-o", "moved.safetensors"]);
        home.run(&["thaw", "moved.safetensors", "--as", name]);
        std::fs::remove_file(home.path("moved.safetensors")).unwrap();
        let reply = turn(name, "And?", to);
        assert!(reply["restored_tokens"].as_u64().unwrap() > 20, "nothing is prefilled again: {reply}");
    }
    let pools = home.json(&["inspect", "carol", "--json"])["manifest"]["pools"].clone();
    let numerics = pools[0]["numerics"].as_str().unwrap();
    let kinds: Vec<&str> = numerics.split('+').map(|id| id.split(['-', '/']).next().unwrap()).collect();
    assert_eq!(kinds, ["gpu", "cpu", "gpu"], "the id keeps where the KV came from: {numerics}");
}
