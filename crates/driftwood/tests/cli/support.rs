//! Runs the binary with a state folder of its own.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The two models of the tests, by name and by file.
pub const SMOLLM2: (&str, &str) = ("smollm2-135m", "smollm2-135m.gguf");
pub const GEMMA3: (&str, &str) = ("gemma3-270m", "gemma3-270m.gguf");

/// The folder with both models.
pub fn models() -> PathBuf {
    let folder = std::env::var_os("DRIFTWOOD_MODELS").map(PathBuf::from);
    let folder = folder.expect("set DRIFTWOOD_MODELS to a folder with the two small models, or run `cargo xtask test`, which fetches them");
    for (name, file) in [SMOLLM2, GEMMA3] {
        assert!(folder.join(file).is_file(), "{} lacks {name}; run `cargo xtask test`, which fetches it", folder.display());
    }
    folder
}

/// A tiny random model among the fixtures.
pub fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny").join(name)
}

/// A home of its own for the binary: state and caches in a temporary folder.
pub struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Home {
        Home { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The binary, in this home and without models.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_driftwood"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("DRIFTWOOD_STATE", self.path("state")).env("DRIFTWOOD_MODELS", self.path("no-models")).env("HOME", self.folder.path());
        command.env("DRIFTWOOD_PIPELINES", self.path("pipelines"));
        command
    }

    /// The binary, with the models.
    pub fn with_models(&self, args: &[&str]) -> Command {
        let mut command = self.command(args);
        command.env("DRIFTWOOD_MODELS", models());
        command
    }

    /// Runs it with the models; its stdout.
    pub fn run(&self, args: &[&str]) -> String {
        succeed(self.with_models(args))
    }

    /// Runs it with the models; its stdout as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(args)).unwrap()
    }

    /// The tokens that a model goes on with, greedily; without the models of the tests.
    pub fn tokens(&self, model: &str) -> Value {
        let args = [
            "generate",
            "--prompt",
            "Once upon a time",
            "--max-tokens",
            "8",
            "--temperature",
            "0",
            "--ignore-eos",
            "--json",
            "--model",
            model,
        ];
        let generated: Value = serde_json::from_str(&succeed(self.command(&args))).unwrap();
        assert_eq!(generated["tokens"].as_array().map(Vec::len), Some(8), "{generated}");
        generated["tokens"].clone()
    }

    /// Takes a greedy turn of an actor.
    pub fn turn(&self, actor: &str, text: &str) -> Value {
        self.json(&["actor", "send", actor, text, "--max-tokens", "12", "--temperature", "0", "--json"])
    }
}

/// Runs a command that must end with 0; its stdout.
pub fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must end with 2 and say all of `words`.
pub fn refuse(mut command: Command, words: &[&str]) {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{command:?}: {}", said(&output));
    for word in words {
        assert!(said(&output).contains(word), "{command:?} does not say `{word}`: {}", said(&output));
    }
    assert!(!said(&output).contains("panicked"), "{command:?}: {}", said(&output));
}

/// What it wrote to stderr.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Permission bits.
pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().unwrap().permissions().mode() & 0o777
}
