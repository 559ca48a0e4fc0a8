//! The Hugging Face hub over HTTP: what a repository holds, and its files, streamed, hashed and gone on with where they stopped.
//!
//! `HF_ENDPOINT` names another hub. A token comes from `HF_TOKEN` or from the file that Hugging Face's own tools keep it in; it is shown to the hub and
//! never to the hosts that the hub redirects to. Layout: the client, one file's way to the disk, then what answers mean.

use crate::failure::mistake;
use crate::models::{hex, with_suffix};
use crate::output;
use anyhow::{Context, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::{Agent, AgentBuilder, RedirectAuthHeaders, Response};

/// Seconds between attempts that bring nothing new; after the last the error stands.
const WAITS_S: [u64; 5] = [1, 2, 4, 8, 16];
/// The longest wait that a hub may ask for.
const WAIT_S_MAX: u64 = 60;
/// The largest listing of a repository that is read.
const LISTING_BYTES_MAX: u64 = 32 << 20;

/// A hub, and who we are to it.
pub struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What a repository holds at one commit.
#[derive(Debug)]
pub struct Listing {
    /// The repository: `org/repo`.
    pub repository: String,
    /// The commit that all its files are asked for by.
    pub commit: String,
    /// Its files, but for those whose path is not safe to write.
    pub files: Vec<Remote>,
}

/// A file of a repository.
#[derive(Debug)]
pub struct Remote {
    /// Its path in the repository, with `/`.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its sha256 in hex, which the hub has for large files.
    pub sha256: Option<String>,
}

impl Listing {
    /// The file at that path.
    pub fn file(&self, path: &str) -> Option<&Remote> {
        self.files.iter().find(|file| file.path == path)
    }
}

impl Hub {
    /// The hub that the environment names, else huggingface.co.
    ///
    /// # Errors
    /// If its address or the token cannot be one.
    pub fn of_environment() -> Result<Hub> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(mistake(format!("HF_ENDPOINT is `{endpoint}`; it must begin with https:// or http://")));
        }
        let kept = || {
            let home = set("HF_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")))?;
            fs::read_to_string(home.join("token")).ok()
        };
        let token = set("HF_TOKEN").or_else(kept).map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(mistake("the token in HF_TOKEN (or in the file that Hugging Face's tools keep) has characters that no token has"));
        }
        let agent = AgentBuilder::new()
            .timeout_connect(Duration::from_secs(10))
            .timeout_read(Duration::from_secs(30))
            .redirects(5)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .https_only(endpoint.starts_with("https://"))
            .try_proxy_from_env(true)
            .user_agent(concat!("driftwood/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Hub { agent, endpoint: endpoint.trim_end_matches('/').to_owned(), token })
    }

    /// What a repository holds at a branch, a tag or a commit.
    ///
    /// # Errors
    /// If the hub is not reached or refuses, or if there is no such repository or revision.
    pub fn list(&self, repository: &str, revision: &str) -> Result<Listing> {
        let url = format!("{}/api/models/{repository}/revision/{}?blobs=true", self.endpoint, escaped(revision, b""));
        let asked = Asked { endpoint: &self.endpoint, repository, what: &format!("revision `{revision}`") };
        let text = patiently(&WAITS_S[..2], || {
            let mut text = String::new();
            let body = self.get(&url, 0, &asked)?.into_reader();
            body.take(LISTING_BYTES_MAX).read_to_string(&mut text).map_err(|e| Trouble::passing(format!("the hub broke off: {e}")))?;
            Ok(text)
        })?;
        listing(repository, &text).with_context(|| format!("cannot understand what {} says of `{repository}`", self.endpoint))
    }

    /// Brings a file to the path `to` and answers its sha256. What came of it before, in `to` with `.part` behind it, is gone on with. `tick` hears
    /// how many of its bytes are here.
    ///
    /// # Errors
    /// If the hub does not send it, or sends other bytes than it announced: those are thrown away.
    pub fn download(&self, from: &Listing, file: &Remote, to: &Path, mut tick: impl FnMut(u64)) -> Result<String> {
        let Listing { repository, commit, .. } = from;
        let url = format!("{}/{repository}/resolve/{commit}/{}", self.endpoint, escaped(&file.path, b"/"));
        let asked = Asked { endpoint: &self.endpoint, repository, what: &format!("file `{}`", file.path) };
        let mut part = Part::open(to, file.bytes)?;
        let mut most_bytes = part.bytes;
        patiently(&WAITS_S, || {
            let done = if part.bytes == file.bytes { Ok(()) } else { part.go_on(self, &url, &asked, &mut tick) };
            let progressed = part.bytes > most_bytes;
            most_bytes = most_bytes.max(part.bytes);
            done.map_err(|trouble| match trouble {
                Trouble::Passing { why, wait_s, .. } => Trouble::Passing { why, wait_s, progressed },
                Trouble::Spoilt(why) => {
                    let _ = fs::remove_file(&part.path);
                    Trouble::Lasting(why)
                }
                lasting => lasting,
            })
        })?;
        part.publish(file, to).with_context(|| format!("cannot fetch `{}` of `{repository}`", file.path))
    }

    /// Asks for the bytes of `url` from `from_bytes` on.
    fn get(&self, url: &str, from_bytes: u64, asked: &Asked<'_>) -> Result<Response, Trouble> {
        let mut request = self.agent.get(url).set("Accept-Encoding", "identity");
        if let Some(token) = &self.token {
            request = request.set("Authorization", &format!("Bearer {token}"));
        }
        if from_bytes > 0 {
            request = request.set("Range", &format!("bytes={from_bytes}-"));
        }
        tracing::debug!(url, from_bytes, "asking the hub");
        match request.call() {
            Ok(response) => Ok(response),
            Err(ureq::Error::Status(status, response)) => Err(asked.refusal(status, &response)),
            Err(ureq::Error::Transport(why)) => Err(Trouble::passing(format!("cannot reach the hub: {why}"))),
        }
    }
}

/// What is here of a file: its first bytes, and their hash.
struct Part {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    bytes: u64,
    announced_bytes: u64,
}

impl Part {
    fn open(to: &Path, announced_bytes: u64) -> Result<Part> {
        let path = with_suffix(to, ".part");
        let writing = || format!("cannot write {}", path.display());
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).with_context(writing)?;
        if file.metadata()?.len() > announced_bytes {
            file.set_len(0).with_context(writing)?;
        }
        let mut hasher = Sha256::new();
        let bytes = std::io::copy(&mut file, &mut HashOnly(&mut hasher)).with_context(writing)?;
        Ok(Part { path, file, hasher, bytes, announced_bytes })
    }

    /// Asks for what is missing, and takes it.
    fn go_on(&mut self, hub: &Hub, url: &str, asked: &Asked<'_>, tick: &mut impl FnMut(u64)) -> Result<(), Trouble> {
        let response = hub.get(url, self.bytes, asked)?;
        if self.bytes > 0 {
            match response.status() {
                206 => self.check_range(response.header("Content-Range"), asked)?,
                _ => self.start_over()?, // the whole file comes
            }
        }
        let mut body = response.into_reader();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match body.read(&mut buffer) {
                Ok(0) if self.bytes == self.announced_bytes => return Ok(()),
                Ok(0) => return Err(Trouble::passing(format!("the hub broke off after {} of {} bytes", self.bytes, self.announced_bytes))),
                Ok(n) => self.take(&buffer[..n], asked)?,
                Err(e) => return Err(Trouble::passing(format!("the connection broke off: {e}"))),
            }
            tick(self.bytes);
        }
    }

    fn check_range(&self, range: Option<&str>, asked: &Asked<'_>) -> Result<(), Trouble> {
        let expected = format!("bytes {}-{}/{}", self.bytes, self.announced_bytes - 1, self.announced_bytes);
        if range == Some(&expected) {
            return Ok(());
        }
        Err(Trouble::Spoilt(mistake(format!("{asked}: the hub sends `{}`, not `{expected}`", range.unwrap_or("no range")))))
    }

    fn take(&mut self, bytes: &[u8], asked: &Asked<'_>) -> Result<(), Trouble> {
        if bytes.len() as u64 > self.announced_bytes - self.bytes {
            return Err(Trouble::Spoilt(mistake(format!(
                "{asked}: the hub sends more than the {} bytes that it announced",
                self.announced_bytes
            ))));
        }
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.path.display())).map_err(Trouble::Lasting)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn start_over(&mut self) -> Result<(), Trouble> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
        emptied.with_context(|| format!("cannot write {}", self.path.display())).map_err(Trouble::Lasting)?;
        (self.hasher, self.bytes) = (Sha256::new(), 0);
        Ok(())
    }

    /// Checks the whole, and gives it its name; on the disk before that.
    fn publish(self, announced: &Remote, to: &Path) -> Result<String> {
        let sha256 = hex(&self.hasher.finalize());
        if announced.sha256.as_ref().is_some_and(|announced| *announced != sha256) {
            let _ = fs::remove_file(&self.path);
            let announced = announced.sha256.as_deref().unwrap_or_default();
            return Err(mistake(format!("it hashes to {sha256}, and the hub announced {announced}; it was thrown away, try again")));
        }
        self.file.sync_all().with_context(|| format!("cannot write {} to disk", self.path.display()))?;
        fs::rename(&self.path, to).with_context(|| format!("cannot write {}", to.display()))?;
        Ok(sha256)
    }
}

/// A writer that hashes, for `io::copy`.
struct HashOnly<'a>(&'a mut Sha256);

impl Write for HashOnly<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Why a request brought nothing, or not all.
enum Trouble {
    /// Worth another attempt, at the earliest after so many seconds.
    Passing { why: String, wait_s: u64, progressed: bool },
    /// Not worth another attempt: what is here and what the hub has do not fit together.
    Spoilt(anyhow::Error),
    /// Not worth another attempt.
    Lasting(anyhow::Error),
}

impl Trouble {
    fn passing(why: String) -> Trouble {
        Trouble::Passing { why, wait_s: 0, progressed: false }
    }
}

/// Attempts it again and again, as long as trouble passes: once for each of `waits_s` without progress.
fn patiently<T>(waits_s: &[u64], mut attempt: impl FnMut() -> Result<T, Trouble>) -> Result<T> {
    let mut failures = 0;
    loop {
        let (why, asked_s) = match attempt() {
            Ok(done) => return Ok(done),
            Err(Trouble::Lasting(why) | Trouble::Spoilt(why)) => return Err(why),
            Err(Trouble::Passing { why, wait_s, progressed }) => {
                failures = if progressed { 0 } else { failures };
                (why, wait_s)
            }
        };
        let Some(&wait_s) = waits_s.get(failures) else { return Err(mistake(format!("{why}; try again later: what has come is kept"))) };
        let wait_s = wait_s.max(asked_s);
        output::note(&format!("{why}; trying again in {wait_s} s"));
        std::thread::sleep(Duration::from_secs(wait_s));
        failures += 1;
    }
}

/// What was asked for, for messages.
struct Asked<'a> {
    endpoint: &'a str,
    repository: &'a str,
    what: &'a str,
}

impl std::fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of `{}`", self.what, self.repository)
    }
}

impl Asked<'_> {
    /// What an error's status means, and what the user can do.
    fn refusal(&self, status: u16, response: &Response) -> Trouble {
        let Asked { endpoint, repository, what } = self;
        let wait_s = response.header("Retry-After").and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let why = match (status, response.header("X-Error-Code")) {
            (408 | 429 | 500.., _) if wait_s <= WAIT_S_MAX => {
                return Trouble::Passing { why: format!("the hub answers {status}"), wait_s, progressed: false };
            }
            (408 | 429 | 500.., _) => format!("the hub answers {status} and wants to be left alone for {wait_s} s; try again then"),
            (_, Some("GatedRepo")) => {
                format!(
                    "`{repository}` is gated: accept its terms at {endpoint}/{repository}, then set HF_TOKEN to a token of that account"
                )
            }
            (_, Some("RepoNotFound")) => {
                format!("the hub has no repository `{repository}`, or it is private: check the name, or set HF_TOKEN")
            }
            (401 | 403, _) => format!("the hub refuses access to {self}; set HF_TOKEN to a token that may read it"),
            (404, Some("RevisionNotFound" | "EntryNotFound") | None) => format!("`{repository}` has no {what}"),
            (416, _) => return Trouble::Spoilt(mistake(format!("{self}: the hub has fewer bytes than it announced; try again"))),
            _ => format!("{self}: the hub answers {status} ({})", response.header("X-Error-Message").unwrap_or(response.status_text())),
        };
        Trouble::Lasting(mistake(why))
    }
}

#[derive(Deserialize)]
struct RawListing {
    sha: String,
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<RawLarge>,
}

#[derive(Deserialize)]
struct RawLarge {
    sha256: String,
    size: u64,
}

/// The listing in the hub's words, checked.
fn listing(repository: &str, text: &str) -> Result<Listing> {
    let raw: RawListing = serde_json::from_str(text).map_err(|e| mistake(e.to_string()))?;
    if !is_hex(&raw.sha) {
        return Err(mistake(format!("it names the commit `{}`", raw.sha.escape_debug())));
    }
    let file = |raw: RawFile| {
        let bytes = raw.lfs.as_ref().map(|large| large.size).or(raw.size);
        let bytes = bytes.ok_or_else(|| mistake(format!("it does not say how large `{}` is", raw.rfilename.escape_debug())))?;
        Ok(Remote { path: raw.rfilename, bytes, sha256: raw.lfs.map(|large| large.sha256.to_ascii_lowercase()) })
    };
    let safe = raw.siblings.into_iter().filter(|raw| is_safe_path(&raw.rfilename));
    Ok(Listing { repository: repository.to_owned(), commit: raw.sha, files: safe.map(file).collect::<Result<_>>()? })
}

fn is_hex(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a path with `/` stays below the folder that it is put into, on every system.
pub fn is_safe_path(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.len() <= 200 && part != "." && part != "..";
    path.split('/').all(plain) && !path.contains(['\\', ':']) && !path.chars().any(char::is_control)
}

/// Text for a URL: letters, digits, `-._~` and what is in `kept` stay.
fn escaped(text: &str, kept: &[u8]) -> String {
    let byte = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() || kept.contains(&byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_folder_are_not_safe() {
        for path in ["config.json", "a/b/c.gguf", "..a", "model-00001-of-00002.safetensors"] {
            assert!(is_safe_path(path), "{path}");
        }
        for path in ["", "..", "../x", "a/../x", "/etc/x", "a//b", "a/", "./a", "a\\b", "c:x", "a\0b", "a\nb", &"x".repeat(201)] {
            assert!(!is_safe_path(path), "{path:?}");
        }
    }

    #[test]
    fn listings_are_checked() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let of = |files: &str| listing("a/b", &format!(r#"{{"sha":"{commit}","siblings":[{files}]}}"#));
        let good =
            of(r#"{"rfilename":"x","size":1},{"rfilename":"../y","size":2},{"rfilename":"z","size":1,"lfs":{"sha256":"AB","size":3}}"#);
        let good = good.unwrap();
        assert_eq!(good.files.iter().map(|f| (&*f.path, f.bytes)).collect::<Vec<_>>(), [("x", 1), ("z", 3)]);
        assert_eq!(good.file("z").unwrap().sha256.as_deref(), Some("ab"));
        for (text, why) in [
            ("", "EOF"),
            ("{}", "missing field `sha`"),
            (r#"{"sha":"0123456","siblings":[{"rfilename":"x"}]}"#, "how large `x` is"),
            (r#"{"sha":"../../x","siblings":[]}"#, "commit `../../x`"),
            (r#"{"sha":"0123456","siblings":[{"rfilename":"x","size":-1}]}"#, "invalid value"),
        ] {
            let said = listing("a/b", text).unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn urls_hold_any_name() {
        assert_eq!(escaped("a b/c#?%é.gguf", b"/"), "a%20b/c%23%3F%25%C3%A9.gguf");
        assert_eq!(escaped("refs/pr/1", b""), "refs%2Fpr%2F1");
    }
}
