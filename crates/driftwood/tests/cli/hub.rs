//! A hub of models on this machine, which can be made to misbehave: an API, files, and a second host that large files are redirected to.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The commit that every branch of it stands at.
pub const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
    /// Whether the second host was asked.
    pub is_second: bool,
    /// How many requests for this path came before.
    pub earlier: usize,
}

/// What is answered.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// After how many bytes of the body the connection breaks.
    pub cut_bytes: Option<usize>,
}

impl Answer {
    pub fn of(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, headers: Vec::new(), body: body.into(), cut_bytes: None }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Answer {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn cut(mut self, bytes: usize) -> Answer {
        self.cut_bytes = Some(bytes);
        self
    }
}

/// A file of the one repository, `org/repo`.
pub struct Served {
    pub path: String,
    pub bytes: Vec<u8>,
    /// Large files have a sha256 and lie on the second host.
    pub is_large: bool,
}

pub fn small(path: &str, bytes: impl Into<Vec<u8>>) -> Served {
    Served { path: path.to_owned(), bytes: bytes.into(), is_large: false }
}

pub fn large(path: &str, bytes: impl Into<Vec<u8>>) -> Served {
    Served { path: path.to_owned(), bytes: bytes.into(), is_large: true }
}

/// Answers in place of the ordinary ones.
type Mischief = dyn Fn(&Request, &[Served]) -> Option<Answer> + Send + Sync;

struct State {
    files: Vec<Served>,
    second: String,
    mischief: Box<Mischief>,
    requests: Mutex<Vec<Request>>,
}

/// The hub; its threads end with the process.
pub struct FakeHub {
    pub endpoint: String,
    state: Arc<State>,
}

impl FakeHub {
    pub fn new(files: Vec<Served>) -> FakeHub {
        FakeHub::that(files, |_, _| None)
    }

    /// A hub that answers what `mischief` says, where it says something.
    pub fn that(files: Vec<Served>, mischief: impl Fn(&Request, &[Served]) -> Option<Answer> + Send + Sync + 'static) -> FakeHub {
        let [first, second] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let endpoint = format!("http://127.0.0.1:{}", port(&first));
        let state = State {
            files,
            second: format!("http://localhost:{}", port(&second)),
            mischief: Box::new(mischief),
            requests: Mutex::default(),
        };
        let state = Arc::new(state);
        listen(first, false, &state);
        listen(second, true, &state);
        FakeHub { endpoint, state }
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Requests for a file's bytes, on the host that has them.
    pub fn requests_for(&self, file: &str) -> Vec<Request> {
        let is_large = self.state.files.iter().any(|served| served.path == file && served.is_large);
        let of_file = |request: &Request| request.path.ends_with(&format!("/{file}")) && request.is_second == is_large;
        self.requests().into_iter().filter(of_file).collect()
    }
}

fn listen(listener: TcpListener, is_second: bool, state: &Arc<State>) {
    let state = state.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, state) = (stream.unwrap(), state.clone());
            std::thread::spawn(move || serve(stream, is_second, &state));
        }
    });
}

fn serve(mut stream: TcpStream, is_second: bool, state: &State) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.replace("%20", " ");
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let found = headers.iter().filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_owned())
    };
    let request = {
        let mut requests = state.requests.lock().unwrap();
        let earlier = requests.iter().filter(|r| r.path == path && r.is_second == is_second).count();
        requests.push(Request { path, range: header("Range"), token: header("Authorization"), is_second, earlier });
        requests.last().unwrap().clone()
    };
    let answer = (state.mischief)(&request, &state.files).unwrap_or_else(|| ordinary(&request, state));
    let mut head = format!("HTTP/1.1 {} Said\r\nConnection: close\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    answer.headers.iter().for_each(|(name, value)| write!(head, "{name}: {value}\r\n").unwrap());
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    stream.write_all(&answer.body[..answer.cut_bytes.unwrap_or(answer.body.len())]).ok()
}

fn ordinary(request: &Request, state: &State) -> Answer {
    if request.path.starts_with("/api/models/org/repo/revision/") {
        return Answer::of(200, listing(&state.files).to_string());
    }
    let prefix = if request.is_second { "/blobs/".to_owned() } else { format!("/org/repo/resolve/{COMMIT}/") };
    let file = request.path.strip_prefix(&prefix).and_then(|path| state.files.iter().find(|file| file.path == path));
    match file {
        None => Answer::of(404, "").with("X-Error-Code", "EntryNotFound"),
        Some(file) if file.is_large && !request.is_second => {
            Answer::of(302, "").with("Location", &format!("{}/blobs/{}", state.second, file.path.replace(' ', "%20")))
        }
        Some(file) => ranged(&file.bytes, request.range.as_deref()),
    }
}

/// The bytes from where the range begins.
fn ranged(bytes: &[u8], range: Option<&str>) -> Answer {
    let Some(range) = range else { return Answer::of(200, bytes) };
    let from: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
    if from >= bytes.len() {
        return Answer::of(416, "");
    }
    Answer::of(206, &bytes[from..]).with("Content-Range", &format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()))
}

/// What the API says of the repository.
pub fn listing(files: &[Served]) -> Value {
    let sibling = |file: &Served| {
        let mut sibling = json!({ "rfilename": file.path, "blobId": "0123", "size": file.bytes.len() });
        if file.is_large {
            sibling["lfs"] = json!({ "sha256": sha256(&file.bytes), "size": file.bytes.len(), "pointerSize": 134 });
        }
        sibling
    };
    json!({ "id": "org/repo", "sha": COMMIT, "gated": false, "siblings": files.iter().map(sibling).collect::<Vec<_>>() })
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
