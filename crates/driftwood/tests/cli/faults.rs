//! A disk that fails, and files that are damaged: a clear error, the former state intact, and the conversation ends as if nothing had happened once the fault
//! is gone. `faults.c` makes single calls of the real binary fail; limits, permissions and damaged bytes are real.
//!
//! Every third call fails for every change; with `DRIFTWOOD_SOAK=1`, as `cargo xtask soak` says, every one.

use crate::support::{Home, SMOLLM2, models, refuse, said};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MESSAGE: &str = "Is it deep?";
const SEND: [&str; 4] = ["actor", "send", "alice", MESSAGE];
/// Whom root's tests run as: nobody's permissions bind root.
const NOBODY: u32 = 65534;
/// The signal that ends a process which writes beyond its limit of file size.
const SIGXFSZ: i32 = 25;

/// An actor after one message, and what its history is after a second that nothing disturbs.
struct Scene {
    home: Home,
    before: Vec<Value>,
    whole: Vec<Value>,
}

impl Scene {
    fn new() -> Scene {
        models();
        let home = Home::new();
        let sampling = ["--set", "max_tokens=6", "--set", "temperature=0.8"];
        home.run(&[&["actor", "spawn", "alice", "--system", "Be brief."][..], &sampling].concat());
        home.run(&["actor", "send", "alice", "Hello! What is the sea?"]);
        let before = turns(&home);
        copy(&home.path("state"), &home.path("kept"));
        home.run(&SEND);
        let whole = turns(&home);
        assert_eq!((before.len(), whole.len()), (2, 4));
        Scene { home, before, whole }
    }

    /// The state before the second message.
    fn set_back(&self) {
        let state = self.home.path("state");
        if state.exists() {
            fs::remove_dir_all(&state).unwrap();
        }
        copy(&self.home.path("kept"), &state);
    }

    /// Once the fault is gone: nothing is damaged, and the second message is handled, by itself or by going on with it.
    fn recovers(&self, what: &str) {
        assert!(self.flawed().is_empty(), "{what}: {:?}", self.flawed());
        let found = turns(&self.home);
        assert!(found == self.before || found == self.whole, "{what}: {found:?}");
        let cut_off = self.is_cut_off();
        if cut_off {
            self.home.run(&["actor", "resume", "alice"]);
        } else if found == self.before {
            self.home.run(&SEND);
        }
        assert_eq!(turns(&self.home), self.whole, "{what}: cut off: {cut_off}");
    }

    fn is_cut_off(&self) -> bool {
        self.home.json(&["actor", "inspect", "alice", "--json"])["cut_off"].as_bool().unwrap()
    }

    /// Whose files fsck calls flawed (none for a journal's), and why.
    fn flawed(&self) -> Vec<(Option<String>, String)> {
        let output = self.home.command(&["store", "fsck", "--json"]).output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let flawed = found["flawed"].as_array().unwrap();
        assert_eq!(output.status.code(), Some(if flawed.is_empty() { 0 } else { 2 }), "{}", said(&output));
        let text = |value: &Value| value.as_str().map(str::to_owned);
        flawed.iter().map(|flaw| (text(&flaw["actor"]), text(&flaw["error"]).unwrap())).collect()
    }

    /// What stdout shows of a reply must be a part of the real one.
    fn shows_only_the_reply(&self, output: &Output, what: &str) {
        let reply = format!("{}\n", self.whole[3]["text"].as_str().unwrap());
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(reply.starts_with(&*shown), "{what}: {shown:?} is not of {reply:?}");
    }
}

fn turns(home: &Home) -> Vec<Value> {
    home.json(&["log", "alice", "--json"])["turns"].as_array().unwrap().clone()
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.unwrap().success());
}

/// Must have failed inside or in the system, in words.
fn fails(output: &Output, what: &str, words: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(1), "{what}: {text}");
    assert!(!text.contains("panicked"), "{what}: {text}");
    for word in words {
        assert!(text.contains(word), "{what} does not say `{word}`: {text}");
    }
}

/// Builds `faults.c` beside the home.
fn preload(home: &Home) -> PathBuf {
    let library = home.path("faults.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/faults.c");
    let mut compiler = Command::new("cc");
    let status = compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(status.expect("a C compiler, which Rust links with").success());
    library
}

/// Runs a command again and again, each time with a later call of a kind failing, until it needs no such call any more; `check` is shown
/// what came of each run in which one failed. Answers how many there were.
fn under_faults(scene: &Scene, args: &[&str], kind: &str, check: impl Fn(&Output, &str)) -> usize {
    let library = preload(&scene.home);
    let step = if std::env::var_os("DRIFTWOOD_SOAK").is_some() { 1 } else { 3 };
    let mut runs = 0;
    for call in (1..).step_by(step) {
        scene.set_back();
        let fault = format!("{kind}:{call}");
        let output = scene.home.with_models(args).env("LD_PRELOAD", &library).env("DRIFTWOOD_FAULT", &fault).output().unwrap();
        if !said(&output).contains("[a fault was met]") {
            assert!(output.status.success(), "{fault}: {}", said(&output));
            break;
        }
        check(&output, &fault);
        runs += 1;
    }
    runs
}

/// A message during which the disk fails in one place after the other.
fn a_message_survives(kind: &str, runs_min: usize, words: &[&str]) {
    let scene = Scene::new();
    let runs = under_faults(&scene, &SEND, kind, |output, fault| {
        if output.status.success() {
            assert_eq!(turns(&scene.home), scene.whole, "{fault}: what was not needed failed");
        } else {
            fails(output, fault, words);
            if !said(output).contains("the message is recorded") {
                let left = (turns(&scene.home) == scene.before, scene.is_cut_off());
                assert_eq!(left, (true, false), "{fault}: it may be sent again: {}", said(output));
            }
        }
        scene.shows_only_the_reply(output, fault);
        scene.recovers(fault);
    });
    assert!(runs >= runs_min, "{kind} failed in {runs} places only");
}

#[test]
fn a_message_survives_failed_syncs() {
    a_message_survives("sync", 4, &["cannot make durable", "check the disk"]);
}

#[test]
fn a_message_survives_a_disk_that_fills_up() {
    a_message_survives("full", 5, &["cannot ", "make room"]);
}

#[test]
fn a_message_survives_failed_renames() {
    a_message_survives("rename", 1, &["cannot publish", "actor resume alice", "check the disk"]);
}

#[test]
fn short_writes_are_no_fault() {
    let scene = Scene::new();
    scene.set_back();
    let library = preload(&scene.home);
    let output = scene.home.with_models(&SEND).env("LD_PRELOAD", library).env("DRIFTWOOD_FAULT", "short:1").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(turns(&scene.home), scene.whole);
    scene.recovers("short writes");
}

/// Spawn, fork and rewind, too, happen or do not, and can be asked for again.
#[test]
fn spawns_forks_and_rewinds_happen_or_do_not() {
    let scene = Scene::new();
    let cases: [(&[&str], &[&str]); 3] = [
        (&["actor", "spawn", "dora"], &["sync", "full", "rename"]),
        (&["actor", "fork", "alice", "bob"], &["full", "rename"]), // its sync is one of the whole file system, which cannot be preloaded
        (&["actor", "rewind", "alice", "--to", "0"], &["sync", "full", "rename"]),
    ];
    for (args, kinds) in cases {
        for kind in kinds {
            let runs = under_faults(&scene, args, kind, |output, fault| {
                if !output.status.success() {
                    fails(output, fault, &["cannot "]);
                }
                assert!(scene.flawed().is_empty(), "{fault}: {:?}", scene.flawed());
                let left = turns(&scene.home);
                assert!(left == scene.before || args[1] == "rewind" && left.is_empty(), "{args:?} {fault}: {left:?}");
                if !output.status.success() {
                    scene.home.run(args);
                }
            });
            assert!(runs > 0, "{args:?} {kind}");
        }
    }
}

/// A limit of file size (in blocks of 512 bytes) is met by an error where its signal is ignored, and else by that signal, which is as good as kill -9.
#[test]
fn a_limit_of_file_size_loses_nothing() {
    let scene = Scene::new();
    for blocks in [0, 1000] {
        for (ignores, signal) in [("trap '' XFSZ", None), ("true", Some(SIGXFSZ))] {
            scene.set_back();
            let binary = scene.home.with_models(&SEND);
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("{ignores}; ulimit -f {blocks}; exec \"$0\" \"$@\"")]).arg(binary.get_program());
            shell.args(binary.get_args()).current_dir(scene.home.path(""));
            shell.envs(binary.get_envs().filter_map(|(key, value)| Some((key, value?))));
            let output = shell.output().unwrap();
            let what = format!("{ignores}; ulimit -f {blocks}");
            assert_eq!(output.status.signal(), signal, "{what}: {}", said(&output));
            if signal.is_none() {
                fails(&output, &what, &["cannot write", "File too large", "make room"]);
            }
            scene.shows_only_the_reply(&output, &what);
            scene.recovers(&what);
        }
    }
}

/// Takes the right to write away from a folder and all below it, or gives it back; all belongs to `owner`.
fn set_writable(path: &Path, writable: bool, owner: Option<u32>) {
    for entry in fs::read_dir(path).unwrap().map(|entry| entry.unwrap()) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            set_writable(&entry.path(), writable, owner);
        } else if kind.is_file() {
            own(&entry.path(), owner, if writable { 0o600 } else { 0o400 });
        }
    }
    own(path, owner, if writable { 0o700 } else { 0o500 });
}

fn own(path: &Path, owner: Option<u32>, mode: u32) {
    if let Some(owner) = owner {
        std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn folders_that_cannot_be_written_are_said_and_can_be_read() {
    let scene = Scene::new();
    let owner = (scene.home.path("").metadata().unwrap().uid() == 0).then_some(NOBODY);
    // The folder of the models may be for root alone.
    let model = scene.home.path("models").join(SMOLLM2.1);
    fs::create_dir(scene.home.path("models")).unwrap();
    fs::copy(models().join(SMOLLM2.1), &model).unwrap();
    own(&scene.home.path("models"), owner, 0o700);
    own(&model, owner, 0o600);
    let run = |args: &[&str]| {
        let mut command = scene.home.command(args);
        command.env("DRIFTWOOD_MODELS", scene.home.path("models"));
        if let Some(owner) = owner {
            command.uid(owner).gid(owner);
        }
        command.output().unwrap()
    };
    own(&scene.home.path(""), owner, 0o700);
    for folder in ["state", "state/actors/alice", "state/store/packs", "state/journals"] {
        scene.set_back();
        fs::create_dir_all(scene.home.path("state/journals")).unwrap();
        set_writable(&scene.home.path("state"), true, owner);
        set_writable(&scene.home.path(folder), false, owner);
        for args in [&["log", "alice"][..], &["actor", "ls"], &["actor", "inspect", "alice"], &["store", "stats"], &["store", "fsck"]] {
            let output = run(args);
            assert!(output.status.success(), "{folder}: {args:?}: {}", said(&output));
        }
        let output = run(&SEND);
        fails(&output, folder, &["cannot ", "Permission denied", "make it writable"]);
        scene.shows_only_the_reply(&output, folder);
        set_writable(&scene.home.path("state"), true, owner);
        scene.recovers(folder);
    }
}

/// The files of chunks that the second message brought.
fn new_packs(scene: &Scene) -> Vec<PathBuf> {
    let names = |folder: &str| fs::read_dir(scene.home.path(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let old = names("kept/store/packs");
    let new = names("state/store/packs").into_iter().filter(|name| !old.contains(name));
    new.map(|name| scene.home.path("state/store/packs").join(name)).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn cut_short(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// An actor beside alice, to whom nothing is done.
fn with_carl(scene: &Scene) {
    scene.home.run(&["actor", "spawn", "carl", "--system", "You are a sailor.", "--set", "max_tokens=2"]);
}

/// What is done to a file, and the word by which it is told.
type Damage = (&'static str, fn(&Path), &'static str);

/// Damages files of one actor of two: it alone is named, nothing is removed, and it is whole again when the files are.
fn damaged(scene: &Scene, files: &[PathBuf], damages: &[Damage]) {
    for (what, damage, word) in damages {
        let kept: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        files.iter().for_each(|file| damage(file));
        let flawed = scene.flawed();
        assert!(
            !flawed.is_empty() && flawed.iter().all(|(actor, why)| actor.as_deref() == Some("alice") && why.contains(word)),
            "{what}: {flawed:?}"
        );
        let text = scene.home.command(&["store", "fsck"]).output().unwrap();
        assert!(String::from_utf8_lossy(&text.stdout).contains("alice"), "{what}");
        refuse(scene.home.with_models(&["actor", "send", "alice", "And now?"]), &[word]);
        assert!(scene.home.run(&["actor", "ls"]).contains("alice"), "{what}");
        scene.home.run(&["actor", "send", "carl", "Hello!"]);
        let swept = scene.home.command(&["store", "gc"]).output().unwrap();
        assert!(swept.status.success() || said(&swept).contains(word), "{what}: {}", said(&swept));
        files.iter().zip(kept).for_each(|(file, bytes)| fs::write(file, bytes).unwrap());
        assert!(scene.flawed().is_empty(), "{what}: {:?}", scene.flawed());
        assert_eq!(turns(&scene.home), scene.whole, "{what}");
    }
}

#[test]
fn damaged_chunks_are_named_with_their_actor() {
    let scene = Scene::new();
    let packs = new_packs(&scene);
    let largest = packs.iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap().clone();
    with_carl(&scene);
    damaged(&scene, &[largest], &[("a byte of a chunk", |path| flip(path, fs::metadata(path).unwrap().len() as usize / 2), "altered")]);
    let table: [Damage; 2] = [("cut short", cut_short, "missing"), ("gone", |path| fs::remove_file(path).unwrap(), "missing")];
    damaged(&scene, &packs, &table);
    scene.home.run(&["actor", "send", "alice", "And now?"]);
    assert_eq!(turns(&scene.home).len(), 6);
}

#[test]
fn damaged_heads_are_named_and_nothing_is_collected() {
    let scene = Scene::new();
    with_carl(&scene);
    let head = scene.home.path("state/actors/alice/head");
    let table: [Damage; 4] = [
        ("a byte of the text", |path| flip(path, 200), "damaged"),
        ("a byte of the first line", |path| flip(path, 20), "damaged"),
        ("cut short", cut_short, "damaged"),
        ("empty", |path| fs::write(path, "").unwrap(), "damaged"),
    ];
    damaged(&scene, &[head], &table);
}

#[test]
fn hints_can_be_lost() {
    let scene = Scene::new();
    scene.set_back();
    let hints = scene.home.path("state/store/hints");
    fs::remove_dir_all(&hints).unwrap();
    scene.recovers("no hints");
    for entry in fs::read_dir(&hints).unwrap() {
        for hint in fs::read_dir(entry.unwrap().path()).unwrap().map(|hint| hint.unwrap().path()) {
            fs::remove_file(&hint).unwrap();
            std::os::unix::fs::symlink("0123456789abcdef 0 64", hint).unwrap();
        }
    }
    scene.home.run(&["actor", "send", "alice", "And now?"]);
    assert!(scene.flawed().is_empty());
}

/// A journal that has a message whose reply could not be kept, damaged.
#[test]
fn damaged_journals_lose_no_more_than_is_damaged() {
    let scene = Scene::new();
    let library = preload(&scene.home);
    let table: [Damage; 3] = [
        ("its first page", |path| flip(path, 3), "first page"),
        ("a late record", |path| flip(path, 4096 + 500), ""),
        ("all that follows its first records", |path| fs::write(path, &fs::read(path).unwrap()[..4096 + 400]).unwrap(), ""),
    ];
    for (what, damage, word) in table {
        scene.set_back();
        let mut command = scene.home.with_models(&SEND);
        let output = command.env("LD_PRELOAD", &library).env("DRIFTWOOD_FAULT", "rename:1").output().unwrap();
        fails(&output, what, &["actor resume alice"]);
        let journals: Vec<PathBuf> = fs::read_dir(scene.home.path("state/journals")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [journal] = &journals[..] else { panic!("{what}: {journals:?}") };
        assert_eq!(scene.home.json(&["store", "stats", "--json"])["journals"], 1);
        damage(journal);
        let flawed = scene.flawed();
        assert_eq!(flawed.len(), usize::from(!word.is_empty()), "{what}: {flawed:?}");
        assert!(flawed.iter().all(|(actor, why)| actor.is_none() && why.contains(word)), "{what}: {flawed:?}");
        scene.home.run(&["store", "gc"]);
        assert!(journal.exists(), "{what}: somebody goes on from it");
        assert!(!scene.home.run(&["actor", "resume", "alice"]).contains("nothing to do"), "{what}");
        assert_eq!(turns(&scene.home), scene.whole, "{what}");
        scene.home.run(&["store", "gc"]);
        assert!(!journal.exists() && scene.flawed().is_empty(), "{what}");
    }
}
