//! A model of a few kilobytes with made-up weights, and scripts of host calls for the guest `call_any`. The fuzz target shares both.
#![allow(dead_code)] // each user takes a part

#[path = "../../../engine/tests/common/mod.rs"]
mod gguf;

use driftwood_actor::{Error, Host, HostOptions, Limits, Message, SpawnSpec};
use driftwood_compute::gpu::Gpu;
use driftwood_compute::{Arithmetic, Cpu, Simd};
use driftwood_engine::Device;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Tokens of the tiny model.
pub const VOCABULARY: u32 = 265;
/// Tokens of its context.
pub const CONTEXT: u32 = 160;

/// The file of a tiny Llama whose weights follow from `seed`.
pub fn model_file(seed: u32) -> tempfile::NamedTempFile {
    let (width, heads, hidden) = (64u64, 2u64, 64u64);
    let builder = gguf::tiny_bpe()
        .u32("llama.embedding_length", width as u32)
        .u32("llama.attention.head_count", heads as u32)
        .u32("llama.attention.head_count_kv", 1)
        .u32("llama.context_length", CONTEXT)
        .u32("llama.feed_forward_length", hidden as u32)
        .u32("llama.block_count", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let mut state = seed;
    let mut random = move |len: u64| -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes()
        };
        (0..len).flat_map(|_| next()).collect()
    };
    let mut tensors =
        vec![("token_embd.weight".to_owned(), vec![width, VOCABULARY.into()]), ("output_norm.weight".to_owned(), vec![width])];
    for layer in 0..2 {
        let parts: [(&str, Vec<u64>); 9] = [
            ("attn_norm", vec![width]),
            ("attn_q", vec![width, heads * 32]),
            ("attn_k", vec![width, 32]),
            ("attn_v", vec![width, 32]),
            ("attn_output", vec![heads * 32, width]),
            ("ffn_norm", vec![width]),
            ("ffn_gate", vec![width, hidden]),
            ("ffn_up", vec![width, hidden]),
            ("ffn_down", vec![hidden, width]),
        ];
        tensors.extend(parts.map(|(part, ne)| (format!("blk.{layer}.{part}.weight"), ne)));
    }
    let builder = tensors.into_iter().fold(builder, |b, (name, ne)| b.tensor(&name, &ne, 0, &random(ne.iter().product())));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&builder.build()).unwrap();
    file
}

/// A host whose model `tiny` is made from `seed`.
pub fn host(seed: u32) -> Host {
    host_on(&[("tiny", seed)], None)
}

/// A host with models of these names and seeds, on a GPU if one is given.
pub fn host_on(models: &[(&'static str, u32)], gpu: Option<Arc<Gpu>>) -> Host {
    let files: Vec<_> = models.iter().map(|(name, seed)| (*name, model_file(*seed))).collect();
    host_from(gpu, move |name| files.iter().find(|(n, _)| *n == name).map(|(_, file)| file.path().to_owned()))
}

/// A host whose models lie where `path` says.
pub fn host_from(gpu: Option<Arc<Gpu>>, path: impl Fn(&str) -> Option<PathBuf> + Send + 'static) -> Host {
    let device = Device { cpu: Arc::new(Cpu::new(1, Simd::Portable, Arithmetic::Fast)), gpu };
    Host::new(HostOptions { device, models: Box::new(move |name| path(name).ok_or_else(|| "it is not here".to_owned())) }).unwrap()
}

/// Limits under which nothing a guest asks for takes long.
pub fn limits() -> Limits {
    let wall = Duration::from_secs(60);
    Limits { fuel: 50_000_000, memory_bytes: 1 << 20, sessions: 6, tokens: 2000, kv_bytes: 1 << 20, wall, ..Limits::default() }
}

/// Spawns `call_any` on the model `tiny`.
pub fn spawn_caller(host: &mut Host, name: &str) {
    spawn_caller_on(host, name, &[]);
}

/// Spawns `call_any` on the model `tiny`, with these to choose from; none leaves it with that one.
pub fn spawn_caller_on(host: &mut Host, name: &str, models: &[&str]) {
    let module = wat::parse_str(include_str!("../guests/call_any.wat")).unwrap().into();
    let settings = [("model".to_owned(), "tiny".to_owned())].into();
    let models = models.iter().map(|model| (*model).to_owned()).collect();
    host.spawn(SpawnSpec { name: name.into(), module, settings, limits: limits(), models }).unwrap();
}

/// Names of host functions in the order of `call_any`.
pub const NAMES: [&str; 27] = [
    "receive",
    "reply",
    "log",
    "setting",
    "time_ms",
    "random",
    "model_info",
    "tokenize",
    "detokenize",
    "is_end",
    "chat_template",
    "session_open",
    "session_close",
    "session_fork",
    "session_truncate",
    "session_length",
    "session_context",
    "session_tokens",
    "prefill",
    "append",
    "decode",
    "set_sampler",
    "sample",
    "next",
    "generate",
    "matmul",
    "dispatch",
];

/// A message for `call_any`: records of a function's number and its arguments.
#[derive(Clone, Default)]
pub struct Script {
    records: Vec<[u32; 10]>,
}

/// Where `call_any` has the message.
const MESSAGE_AT: u32 = 65_536;

impl Script {
    /// Adds a call.
    pub fn call(&mut self, name: &str, arguments: &[u32]) -> &mut Script {
        let mut record = [0; 10];
        record[0] = NAMES.iter().position(|n| *n == name).expect("a host function") as u32;
        record[1..=arguments.len()].copy_from_slice(arguments);
        self.records.push(record);
        self
    }

    /// Hides up to 36 bytes in the arguments of a call that takes none; answers where they lie.
    pub fn data(&mut self, bytes: &[u8]) -> u32 {
        let mut padded = [0; 36];
        padded[..bytes.len()].copy_from_slice(bytes);
        let words: Vec<u32> = padded.chunks(4).map(|w| u32::from_le_bytes(w.try_into().unwrap())).collect();
        self.call("time_ms", &words);
        MESSAGE_AT + 40 * (self.records.len() as u32 - 1) + 4
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// The message's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.records.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Delivers the script; gives back the answer of each record.
    pub fn run(&self, host: &mut Host, name: &str) -> Result<Vec<i32>, Error> {
        Ok(self.answers(&host.send(Message::new(name, self.message()), &mut |_| {})?.reply))
    }

    /// The message that asks for the answers at its end.
    pub fn message(&self) -> Vec<u8> {
        let mut script = self.clone();
        script.call("reply", &[0, 4 * self.records.len() as u32]);
        script.bytes()
    }

    /// The answer of each record, from the reply to [`Script::message`].
    pub fn answers(&self, reply: &[u8]) -> Vec<i32> {
        let answers = &reply[reply.len() - 4 * self.records.len()..];
        answers.chunks(4).map(|a| i32::from_le_bytes(a.try_into().unwrap())).collect()
    }
}

thread_local! {
    static HOSTS: std::cell::RefCell<[Host; 2]> = std::cell::RefCell::new([bare(), host(1)].map(|mut host| {
        spawn_caller(&mut host, "base");
        host
    }));
}

fn bare() -> Host {
    let device = Arc::new(Cpu::new(1, Simd::Portable, Arithmetic::Fast)).into();
    Host::new(HostOptions { device, models: Box::new(|_| Err("no models".into())) }).unwrap()
}

/// What the fuzz target does with its input: the first byte's lowest bit says whether there is a model, the rest is a message for
/// `call_any`. Any answer and any error but a bug is fine; an error leaves the actor as it was, and the base it was forked from never changes.
pub fn host_calls(input: &[u8]) {
    let Some((&choice, message)) = input.split_first() else { return };
    HOSTS.with_borrow_mut(|hosts| {
        let host = &mut hosts[usize::from(choice & 1)];
        let base = host.state_hash("base").unwrap();
        host.fork("base", "forked").unwrap();
        let result = host.send(Message::new("forked", message), &mut |_| {});
        if let Err(error) = result {
            assert_ne!(error.kind(), "bug", "{error}");
            assert!(host.state_hash("forked").unwrap() == base, "{error}");
        }
        host.remove("forked").unwrap();
        assert!(host.state_hash("base").unwrap() == base);
    });
}
