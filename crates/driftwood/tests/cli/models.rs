//! What is said of models: what is here, what it is, and how soon it is ready.

use crate::support::{Home, SMOLLM2, refuse, succeed, tiny};
use std::fs;
use std::path::Path;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_model_is_described() {
    let home = Home::new();
    let described = home.json(&["inspect", SMOLLM2.0, "--json"]);
    assert_eq!((&described["name"], &described["bytes"]), (&SMOLLM2.0.into(), &98_362_432.into()));
    let model = &described["model"];
    assert_eq!(
        (&model["config"]["layers"], &model["config"]["kv_heads"], &model["tokenizer"]["tokens"]),
        (&30.into(), &3.into(), &49152.into())
    );
    assert_eq!(model["formats"][0]["name"], "Q4_1");
    let shown = home.run(&["inspect", SMOLLM2.0]);
    for words in ["llama", "98.4 MB", "Q4_1", "config: context max", "8192"] {
        assert!(shown.contains(words), "no `{words}` in {shown}");
    }
    refuse(home.with_models(&["inspect", "no-such-model"]), &["no actor, no model and no file", "driftwood models"]);
    refuse(home.command(&["inspect", SMOLLM2.0]), &["driftwood pull smollm2-135m"]);
    fs::write(home.path("a.gguf"), "GGUF and nothing more").unwrap();
    refuse(home.command(&["inspect", "a.gguf"]), &["cannot use the model", "a.gguf"]);
}

#[test]
fn folders_go_by_name_and_by_repository() {
    let home = Home::new();
    copy(&tiny("llama/bf16"), &home.path("no-models/org--tiny-llama"));
    copy(&tiny("llama/mlx-4-64"), &home.path("no-models/mine"));
    let listed = succeed(home.command(&["models"]));
    for name in ["org/tiny-llama ", "mine "] {
        assert!(listed.lines().any(|line| line.starts_with(name) && line.contains("here")), "no {name} in {listed}");
    }
    let by_path = home.tokens(tiny("llama/bf16").to_str().unwrap());
    assert_eq!([home.tokens("org/tiny-llama"), home.tokens("org--tiny-llama")], [by_path.clone(), by_path]);
    assert!(succeed(home.command(&["inspect", "mine"])).contains("MLX 4 bits, groups of 64"));
    for name in ["", ".", "..", "org/", "org/../mine", ".partial"] {
        refuse(home.command(&["inspect", name]), &["driftwood: "]);
    }
}

#[test]
fn loading_is_measured_in_processes_of_their_own() {
    let home = Home::new();
    let measured = home.json(&["bench", "load", SMOLLM2.0, "--runs", "2", "--json"]);
    let load = &measured["load"];
    assert_eq!((&load["file_bytes"], &load["runs"]), (&98_362_432.into(), &2.into()));
    let ms = |what: &str, which: &str| load[what][which].as_f64().unwrap();
    assert!(
        ms("open", "min_ms") > 0.0 && ms("open", "min_ms") <= ms("open", "median_ms") && ms("ready", "min_ms") >= ms("open", "min_ms"),
        "{load}"
    );
    if cfg!(target_os = "linux") {
        let bytes = |what: &str| measured["memory"][what].as_u64().unwrap();
        assert!(bytes("decoded_rss_bytes") > 90_000_000 && bytes("decoded_rss_bytes") >= bytes("ready_rss_bytes"), "{measured}");
    }
    refuse(home.with_models(&["bench", "load", "no-such-model"]), &["no-such-model", "driftwood models"]);
    let shown = home.run(&["bench", "load", "--runs", "1"]);
    assert!(shown.contains("resident when ready") && shown.contains("98.4 MB"), "{shown}");
}
