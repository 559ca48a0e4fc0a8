//! Pulling from a hub on this machine, which keeps its promises or does not.

use crate::hub::{Answer, COMMIT, FakeHub, Request, Served, large, listing, sha256, small};
use crate::support::{Home, SMOLLM2, models, refuse, said, succeed, tiny};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Bytes that do not repeat soon.
fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A folder in two shards, with files that nobody wants.
fn folder() -> Vec<Served> {
    let index = json!({ "weight_map": { "a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors" } });
    vec![
        small(".gitattributes", "x"),
        small("README.md", "x"),
        small("config.json", r#"{"model_type":"none"}"#),
        large("model-1.safetensors", noise(300_000)),
        large("model-2.safetensors", noise(200_000)),
        small("model.safetensors.index.json", index.to_string()),
        large("original/consolidated.00.pth", noise(10)),
        large("tokenizer.json", noise(50_000)),
        small("tokenizer_config.json", "{}"),
        small("generation_config.json", ""),
    ]
}

fn pull(home: &Home, hub: &FakeHub, what: &str) -> Command {
    let mut command = home.command(&["pull", what, "--json"]);
    command.env("HF_ENDPOINT", &hub.endpoint).env_remove("HF_TOKEN").env_remove("HF_HOME");
    for proxy in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"] {
        command.env_remove(proxy).env_remove(proxy.to_lowercase());
    }
    command
}

fn pulled(home: &Home, hub: &FakeHub, what: &str) -> Value {
    serde_json::from_str(&succeed(pull(home, hub, what))).unwrap()
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_folder_comes_whole_and_once() {
    let (home, hub) = (Home::new(), FakeHub::new(folder()));
    let mut command = pull(&home, &hub, "org/repo");
    command.env("HF_TOKEN", "hf_secret");
    let pulled: Value = serde_json::from_str(&succeed(command)).unwrap();
    let path = home.path("no-models/org--repo");
    assert_eq!(pulled["model"], "org/repo");
    assert_eq!(pulled["file"], path.to_str().unwrap());
    assert_eq!(pulled["origin"]["commit"], COMMIT);
    let wanted = [
        "config.json",
        "generation_config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    for name in wanted {
        let served = folder().into_iter().find(|file| file.path == name).unwrap();
        assert!(fs::read(path.join(name)).unwrap() == served.bytes, "{name}");
        assert_eq!(hub.requests_for(name).len(), usize::from(!served.bytes.is_empty()), "{name}");
    }
    let others: Vec<String> = names(&path).into_iter().filter(|name| !wanted.contains(&&**name) && !name.ends_with(".sha256-ok")).collect();
    assert_eq!(others, ["origin.json"]);
    assert!(!home.path("no-models/.partial").exists());
    for request in hub.requests() {
        let token = (!request.is_second).then_some("Bearer hf_secret");
        assert_eq!(request.token.as_deref(), token, "{request:?}");
    }
    let asked = hub.requests().len();
    for again in ["org/repo", "org/repo@main", &format!("org/repo@{COMMIT}")] {
        assert_eq!(succeed(pull(&home, &hub, again)).matches(r#""fetched":false"#).count(), 1, "{again}");
    }
    assert_eq!(hub.requests().len(), asked);
    refuse(pull(&home, &hub, "org/repo@v2"), &["org--repo is there already", COMMIT, "remove it"]);
}

#[test]
fn one_file_comes_alone() {
    let files = || vec![small("README.md", "x"), large("q4/a b.gguf", noise(70_000)), large("other.gguf", noise(5))];
    let (home, hub) = (Home::new(), FakeHub::new(files()));
    let model = pulled(&home, &hub, "org/repo@v1:q4/a b.gguf");
    assert_eq!((&model["model"], &model["origin"]["revision"]), (&json!("a b"), &json!("v1")));
    assert!(fs::read(home.path("no-models/a b.gguf")).unwrap() == files()[1].bytes);
    assert_eq!(names(&home.path("no-models")), ["a b.gguf", "a b.gguf.origin.json", "a b.gguf.sha256-ok"]);
    assert!(hub.requests()[0].path.contains("/revision/v1?"));
    refuse(pull(&home, &hub, "other/repo:a b.gguf"), &["a b.gguf is there already, from `org/repo`"]);
    fs::write(home.path("no-models/other.gguf"), "mine").unwrap();
    refuse(pull(&home, &hub, "org/repo:other.gguf"), &["other.gguf is there already, and no pull brought it"]);
}

#[test]
fn a_connection_that_breaks_is_taken_up_again() {
    let cut_once = |request: &Request, files: &[Served]| {
        let first = request.is_second && request.path.ends_with("model-1.safetensors") && request.earlier == 0;
        first.then(|| Answer::of(200, &*files[3].bytes).cut(100_000))
    };
    let (home, hub) = (Home::new(), FakeHub::that(folder(), cut_once));
    let mut command = pull(&home, &hub, "org/repo");
    let output = command.output().unwrap();
    assert!(output.status.success() && said(&output).contains("trying again in 1 s"), "{}", said(&output));
    let ranges: Vec<Option<String>> = hub.requests_for("model-1.safetensors").into_iter().map(|request| request.range).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".to_owned())]);
    assert!(fs::read(home.path("no-models/org--repo/model-1.safetensors")).unwrap() == folder()[3].bytes);
}

#[test]
fn a_pull_that_ended_is_gone_on_with_by_the_next() {
    let home = Home::new();
    let until_second = FakeHub::that(folder(), |request, files| match &*request.path {
        path if path.ends_with("model-2.safetensors") && !request.is_second => Some(Answer::of(403, "")),
        path if path.ends_with("model-1.safetensors") && request.is_second => Some(Answer::of(200, &*files[3].bytes)),
        _ => None,
    });
    refuse(pull(&home, &until_second, "org/repo"), &["model-2.safetensors", "org/repo", "HF_TOKEN"]);
    assert!(!home.path("no-models/org--repo").exists());
    let listed: Value = serde_json::from_str(&succeed(home.command(&["models", "--json"]))).unwrap();
    let partial = listed["models"].as_array().unwrap().iter().find(|model| model["name"] == "org/repo").unwrap();
    assert!(partial["state"] == "partial" && partial["bytes_here"].as_u64() > Some(350_000), "{partial}");
    assert!(partial["bytes"].as_u64() > Some(550_000) && partial["file"].is_null(), "{partial}");
    refuse(home.command(&["generate", "--prompt", "a", "--model", "org/repo"]), &["driftwood pull org/repo"]);

    // Half of the second file came from another process that was killed.
    fs::write(home.path("no-models/.partial/org--repo/files/model-2.safetensors.part"), &noise(200_000)[..120_000]).unwrap();
    let hub = FakeHub::new(folder());
    pulled(&home, &hub, "org/repo");
    assert!(hub.requests()[0].path.contains(&format!("/revision/{COMMIT}?")), "goes on at the commit of the first");
    assert_eq!(hub.requests_for("model-1.safetensors").len(), 0);
    assert_eq!(hub.requests_for("model-2.safetensors")[0].range.as_deref(), Some("bytes=120000-"));
    assert!(fs::read(home.path("no-models/org--repo/model-2.safetensors")).unwrap() == noise(200_000));
    assert!(!home.path("no-models/.partial").exists());
}

#[test]
fn a_host_without_ranges_sends_all_again() {
    let whole = |request: &Request, files: &[Served]| {
        let answer = || Answer::of(200, &*files[0].bytes);
        let cut = || if request.earlier == 0 { answer().cut(30_000) } else { answer() };
        request.is_second.then(cut)
    };
    let (home, hub) = (Home::new(), FakeHub::that(vec![large("a.gguf", noise(90_000))], whole));
    pulled(&home, &hub, "org/repo:a.gguf");
    assert_eq!(hub.requests_for("a.gguf").len(), 2);
    assert!(fs::read(home.path("no-models/a.gguf")).unwrap() == noise(90_000));
}

#[test]
fn bytes_other_than_announced_are_thrown_away() {
    let other = |bytes: Vec<u8>| {
        move |request: &Request, _: &[Served]| (request.is_second && request.range.is_none()).then(|| Answer::of(200, bytes.clone()))
    };
    let mut flipped = noise(90_000);
    flipped[80_000] ^= 1;
    let hash = sha256(&noise(90_000));
    let longer = [noise(90_000), vec![0]].concat();
    let cases: [(Vec<u8>, &[&str]); 3] = [
        (flipped, &["hashes to", &hash, "thrown away", "a.gguf"]),
        (longer, &["sends more than the 90000 bytes", "a.gguf"]),
        (noise(89_000), &["sends `bytes 89000-88999/89000`"]),
    ];
    for (bytes, words) in cases {
        let shorter = bytes.len() == 89_000;
        let mischief = other(bytes);
        let hub = FakeHub::that(vec![large("a.gguf", noise(90_000))], move |request, files| {
            let past = || Answer::of(206, "").with("Content-Range", "bytes 89000-88999/89000");
            mischief(request, files).or_else(|| (shorter && request.is_second).then(past))
        });
        let home = Home::new();
        refuse(pull(&home, &hub, "org/repo:a.gguf"), words);
        assert_eq!(names(&home.path("no-models")), [".partial"]);
        assert!(names(&home.path("no-models/.partial/a.gguf/files")).is_empty());
    }
    // The same from a host that says plainly that there is no more.
    let hub = FakeHub::that(vec![large("a.gguf", noise(90_000))], |request, _| {
        let answer = || if request.range.is_some() { Answer::of(416, "") } else { Answer::of(200, noise(89_000)) };
        request.is_second.then(answer)
    });
    let home = Home::new();
    refuse(pull(&home, &hub, "org/repo:a.gguf"), &["fewer bytes than it announced"]);
}

#[test]
fn a_busy_hub_is_asked_again() {
    let busy = |request: &Request, _: &[Served]| (request.earlier == 0).then(|| Answer::of(429, "").with("Retry-After", "1"));
    let hub = FakeHub::that(vec![small("a.gguf", noise(10))], busy);
    let home = Home::new();
    pulled(&home, &hub, "org/repo:a.gguf");
    assert_eq!(hub.requests().len(), 4);
}

/// What is asked, the listing's part of the API or a file's; and what the user is told.
#[test]
fn refusals_say_what_to_do() {
    let api = |status: u16, code: &'static str, more: (&'static str, &'static str)| {
        move |request: &Request, _: &[Served]| {
            let answer = || Answer::of(status, "").with("X-Error-Code", code).with(more.0, more.1);
            request.path.starts_with("/api").then(answer)
        }
    };
    let none = ("X-None", "");
    let cases: [(FakeHub, &str, &[&str]); 8] = [
        (
            FakeHub::that(folder(), api(401, "GatedRepo", none)),
            "org/repo",
            &["`org/repo` is gated", "accept its terms", "/org/repo", "HF_TOKEN"],
        ),
        (FakeHub::that(folder(), api(401, "RepoNotFound", none)), "org/repo", &["no repository `org/repo`", "private", "HF_TOKEN"]),
        (FakeHub::that(folder(), api(404, "RevisionNotFound", none)), "org/repo@v9", &["`org/repo` has no revision `v9`"]),
        (FakeHub::that(folder(), api(429, "", ("Retry-After", "900"))), "org/repo", &["429", "900 s"]),
        (FakeHub::that(folder(), api(418, "Odd", ("X-Error-Message", "no coffee"))), "org/repo", &["418", "no coffee"]),
        (FakeHub::new(folder()), "org/other", &["`org/other`"]),
        (FakeHub::new(vec![large("a.gguf", "")]), "org/repo:b.gguf", &["no file `b.gguf`", "it has a.gguf"]),
        (FakeHub::that(folder(), |_, _| Some(Answer::of(200, "<html>"))), "org/repo", &["cannot understand", "`org/repo`"]),
    ];
    for (hub, what, words) in cases {
        let home = Home::new();
        refuse(pull(&home, &hub, what), words);
    }
    let (home, hub) = (Home::new(), FakeHub::new(folder()));
    let mut command = pull(&home, &hub, "org/repo");
    command.env("HF_ENDPOINT", "ftp://example.org");
    refuse(command, &["HF_ENDPOINT", "https://"]);
    let mut command = pull(&home, &hub, "org/repo");
    command.env("HF_TOKEN", "two\nlines");
    refuse(command, &["HF_TOKEN"]);
    let mut command = pull(&home, &hub, "org/repo");
    command.env("HF_ENDPOINT", "http://127.0.0.1:1");
    refuse(command, &["cannot reach the hub: http://127.0.0.1:1", "try again later"]);
}

#[test]
fn repositories_that_are_no_model_are_refused_before_anything_comes() {
    let without = |names: &[&str]| folder().into_iter().filter(|file| !names.contains(&&*file.path)).collect::<Vec<_>>();
    let with = |path: &str, bytes: &str| without(&[path]).into_iter().chain([small(path, bytes)]).collect::<Vec<_>>();
    let index = "model.safetensors.index.json";
    let cases: [(Vec<Served>, &[&str]); 8] = [
        (
            vec![large("a-Q4_0.gguf", ""), large("b.gguf", "")],
            &["no `config.json`", "driftwood pull org/repo:FILE.gguf", "a-Q4_0.gguf, b.gguf"],
        ),
        (without(&["tokenizer.json"]), &["no `tokenizer.json`"]),
        (without(&[index]), &["no `model.safetensors`"]),
        (without(&["model-2.safetensors"]), &["names the file `model-2.safetensors`, which is not there"]),
        (with(index, "{}"), &[index, "weight_map"]),
        (with(index, r#"{"weight_map":{"a":"../../evil"}}"#), &["names the file `../../evil`"]),
        (with(index, r#"{"weight_map":{"a":"/etc/passwd"}}"#), &["names the file `/etc/passwd`"]),
        (with(index, r#"{"weight_map":{"a":"original/consolidated.00.pth"}}"#), &["names the file `original/consolidated.00.pth`"]),
    ];
    for (files, words) in cases {
        let (home, hub) = (Home::new(), FakeHub::new(files));
        refuse(pull(&home, &hub, "org/repo"), words);
        assert!(hub.requests_for("model-1.safetensors").is_empty() && !home.path("no-models/org--repo").exists(), "{words:?}");
    }
}

#[test]
fn names_that_leave_the_folder_write_nothing_outside() {
    let evil = ["../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", "evil\\..\\evil.gguf", "evil\0.gguf"];
    let mut files = folder();
    files.extend(evil.map(|path| large(path, noise(10))));
    let (home, hub) = (Home::new(), FakeHub::new(files));
    pulled(&home, &hub, "org/repo");
    assert!(hub.requests().iter().all(|request| !request.path.contains("evil")));
    assert_eq!(names(&home.path("no-models")), ["org--repo"]);
    for path in &evil[..4] {
        refuse(pull(&home, &hub, &format!("org/repo:{path}")), &["names no GGUF file"]);
    }
    refuse(pull(&home, &hub, "../repo"), &["names no repository"]);
    refuse(pull(&home, &hub, "org/repo:a-00001-of-00002.gguf"), &["split file"]);
}

#[test]
fn what_does_not_fit_the_disk_is_not_begun() {
    for bytes in [1u64 << 55, u64::MAX] {
        let huge = move |request: &Request, files: &[Served]| {
            let mut listed = listing(files);
            listed["siblings"][4]["lfs"]["size"] = json!(bytes);
            request.path.starts_with("/api").then(|| Answer::of(200, listed.to_string()))
        };
        let (home, hub) = (Home::new(), FakeHub::that(folder(), huge));
        refuse(pull(&home, &hub, "org/repo"), &["are to come", "has room for", "DRIFTWOOD_MODELS"]);
        assert!(hub.requests_for("model-1.safetensors").is_empty());
    }
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let slow = |request: &Request, _: &[Served]| {
        if request.path.ends_with("tokenizer.json") {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        None
    };
    let (home, hub) = (Home::new(), FakeHub::that(folder(), slow));
    let children = [(); 3].map(|()| pull(&home, &hub, "org/repo").stdout(std::process::Stdio::piped()).spawn().unwrap());
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    assert!(outputs.iter().all(|output| output.status.success()));
    let fetched = |output: &&std::process::Output| String::from_utf8_lossy(&output.stdout).contains(r#""fetched":true"#);
    assert_eq!(outputs.iter().filter(fetched).count(), 1);
    assert_eq!(hub.requests_for("model-1.safetensors").len(), 1);
}

#[test]
fn a_model_that_was_pulled_is_listed_and_runs() {
    let model = fs::read(models().join(SMOLLM2.1)).unwrap();
    let home = Home::new();
    let hub = FakeHub::new(vec![large("SmolLM2-Q4.gguf", model)]);
    pulled(&home, &hub, "org/repo:SmolLM2-Q4.gguf");
    let listed = succeed(home.command(&["models"]));
    assert!(listed.lines().any(|line| line.starts_with("SmolLM2-Q4 ") && line.contains("98.4 MB") && line.contains("here")), "{listed}");
    let expected = home.tokens(models().join(SMOLLM2.1).to_str().unwrap());
    for name in ["SmolLM2-Q4", "org/repo:SmolLM2-Q4.gguf", "org/repo@main:SmolLM2-Q4.gguf"] {
        assert_eq!(home.tokens(name), expected, "{name}");
    }
    refuse(home.command(&["inspect", "org/other:SmolLM2-Q4.gguf"]), &["no actor, no model and no file"]);
    refuse(
        home.command(&["generate", "--prompt", "a", "--model", "org/other:SmolLM2-Q4.gguf"]),
        &["driftwood pull org/other:SmolLM2-Q4.gguf"],
    );
}

#[test]
fn a_folder_that_was_pulled_is_described_and_runs() {
    let folder = tiny("llama/bf16");
    let served = |name: String| {
        let bytes = fs::read(folder.join(&name)).unwrap();
        if name.ends_with(".safetensors") || name == "tokenizer.json" { large(&name, bytes) } else { small(&name, bytes) }
    };
    let (home, hub) = (Home::new(), FakeHub::new(names(&folder).into_iter().map(served).collect()));
    pulled(&home, &hub, "org/repo@v1");
    let described: Value = serde_json::from_str(&succeed(home.command(&["inspect", "org/repo", "--json"]))).unwrap();
    assert_eq!((&described["origin"]["revision"], &described["name"]), (&json!("v1"), &json!("org/repo")));
    assert!(succeed(home.command(&["inspect", "org/repo"])).contains(&format!("org/repo@v1 at {}", &COMMIT[..10])));
    assert_eq!(home.tokens("org/repo"), home.tokens(folder.to_str().unwrap()));
}
