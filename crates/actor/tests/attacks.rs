//! Kernels that guests bring: what they compute, and hostile ones. They need a Vulkan driver: `apt install mesa-vulkan-drivers`.

mod common;

use common::{bare_host, guest, reply, send, spawn};
use driftwood_actor::{Hash, Host, Limits, Message};
use driftwood_compute::gpu::Gpu;
use std::sync::Arc;
use std::time::{Duration, Instant};

const OUT_OF_BOUNDS: i32 = -1;
const BAD_ARGUMENT: i32 = -2;
const LIMIT: i32 = -5;
const BAD_TEXT: i32 = -8;
const MODEL_ERROR: i32 = -11;
const NO_GPU: i32 = -12;
const BAD_KERNEL: i32 = -13;
const UNALIGNED: i32 = -14;

/// Where the guest `dispatch` has its message, and the words that it fills and replies.
const MESSAGE: u32 = 65_536;
const DATA: u32 = 131_072;
const END: u32 = 262_144;
/// Where the parts of the message lie in it.
const GRID: u32 = 32;
const BINDINGS: u32 = 48;
const TEXT: u32 = 256;

const OUT: &str = "@group(0) @binding(0) var<storage, read_write> out: array<u32>;\n";
const DOUBLE: &str = "if id.x < arrayLength(&out) { out[id.x] *= 2u; }";

/// A kernel with one output and this body.
fn kernel(body: &str) -> String {
    format!(
        "{OUT}@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {{ {body} }}"
    )
}

/// What a guest is told to call.
struct Call {
    text: Vec<u8>,
    /// Offsets and lengths in bytes.
    bindings: Vec<(u32, u32)>,
    workgroups: [u32; 3],
    loop_budget: u32,
    /// How often; 0 for ever.
    times: u32,
    grow_pages: u32,
    reply_bytes: u32,
}

impl Call {
    /// On 1024 words in the middle of the guest's data.
    fn new(text: impl Into<Vec<u8>>) -> Call {
        let (text, bindings) = (text.into(), vec![(DATA + 4096, 4096)]);
        Call { text, bindings, workgroups: [16, 1, 1], loop_budget: 0, times: 1, grow_pages: 0, reply_bytes: END - DATA }
    }

    fn on(self, bindings: &[(u32, u32)]) -> Call {
        Call { bindings: bindings.to_vec(), ..self }
    }

    fn bytes(&self) -> Vec<u8> {
        let (bindings, count) = (MESSAGE + BINDINGS, self.bindings.len() as u32);
        let mut words = vec![MESSAGE + TEXT, self.text.len() as u32, bindings, count, MESSAGE + GRID];
        words.extend([self.times, self.grow_pages, self.reply_bytes]);
        words.extend(self.workgroups);
        words.push(self.loop_budget);
        words.extend(self.bindings.iter().flat_map(|&(offset, bytes)| [offset, bytes]));
        words.resize(TEXT as usize / 4, 0);
        words.iter().flat_map(|word| word.to_le_bytes()).chain(self.text.iter().copied()).collect()
    }

    /// Sends it to a guest; gives back what the call answered and the guest's data.
    fn send(&self, host: &mut Host, actor: &str) -> (i32, Vec<u32>) {
        let said = host.send(Message::new(actor, self.bytes()), &mut |_| {}).unwrap().reply;
        let words: Vec<u32> = said.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        (words[0] as i32, words[1..].to_vec())
    }
}

fn gpu() -> Arc<Gpu> {
    Gpu::open(None).expect("these tests need a Vulkan driver: apt install mesa-vulkan-drivers")
}

fn limits() -> Limits {
    Limits { memory_bytes: 1 << 20, wall: Duration::from_secs(120), ..Limits::default() }
}

/// A host with the guest `dispatch` as `a`, which brings kernels, and as `b`, which minds its own business.
fn host() -> Host {
    let mut host = bare_host();
    host.set_gpu(gpu());
    for name in ["a", "b"] {
        spawn(&mut host, name, guest("dispatch"), limits(), &[]).unwrap();
        check_doubled(&mut host, name);
    }
    host
}

/// What the guest's data is before a call.
fn untouched() -> Vec<u32> {
    (0..(END - DATA) / 4).collect()
}

/// An ordinary message works: 1024 words are doubled where they lie, and nothing else changes.
fn check_doubled(host: &mut Host, name: &str) {
    let (answer, words) = Call::new(kernel(DOUBLE)).send(host, name);
    let mut expected = untouched();
    expected[1024..2048].iter_mut().for_each(|word| *word *= 2);
    assert!(answer == 0 && words == expected, "{answer}");
}

#[test]
fn a_guests_kernel_computes_in_the_guests_own_memory() {
    let mut host = host();
    assert_eq!(host.compute_report("a").unwrap().dispatched, 1);
    let sum = "
        @group(0) @binding(0) var<storage> a: array<u32>;
        @group(0) @binding(1) var<storage> b: array<u32>;
        @group(0) @binding(2) var<storage, read_write> c: array<u32>;
        @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) { c[id.x] = a[id.x] + b[id.x]; }";
    let ranges = [(DATA, 256), (DATA, 256), (DATA + 1024, 256)];
    let (answer, words) = Call { workgroups: [1, 1, 1], ..Call::new(sum).on(&ranges) }.send(&mut host, "a");
    let mut expected = untouched();
    expected[256..320].iter_mut().zip(0..).for_each(|(word, index)| *word = 2 * index);
    assert!(answer == 0 && words == expected, "{answer}");
    // More kernels than stay compiled, and the first one again.
    for add in (0..10).chain(0..2) {
        let (answer, words) = Call::new(kernel(&format!("out[id.x] += {add}u;"))).send(&mut host, "a");
        assert_eq!((answer, words[1023], words[1024], words[2047]), (0, 1023, 1024 + add, 2047 + add));
    }
}

/// Through the SDK: slices of its heap are aligned as they must be.
#[test]
fn an_actor_of_the_sdk_runs_a_kernel() {
    let mut host = bare_host();
    spawn(&mut host, "a", guest("matmul.wasm"), limits(), &[]).unwrap();
    assert_eq!(send(&mut host, "a", "double 1000").unwrap_err().kind(), "no_gpu");
    host.set_gpu(gpu());
    for count in [64, 1000, 65_537] {
        assert_eq!(reply(&mut host, "a", &format!("double {count}")).trim(), format!("{{\"doubled\":{count},\"errors\":0}}"));
    }
}

/// Calls that are refused, and what each answers: the error is the message's, should it fail because of it.
fn refused() -> Vec<(&'static str, Call, i32)> {
    let double = || Call::new(kernel(DOUBLE));
    let three = || {
        Call::new(format!(
            "{OUT}@group(0) @binding(1) var<storage> a: array<u32>; @compute @workgroup_size(1) fn main() {{ out[0] = a[0]; }}"
        ))
    };
    let wide = |workgroups| Call { workgroups, ..Call::new(kernel("loop { out[id.x] += 1u; }")) };
    let barrier = "for (var i = 0u; i < out[local]; i++) { workgroupBarrier(); }";
    let buffers: String = (0..9).map(|i| format!("@group(0) @binding({i}) var<storage, read_write> b{i}: array<u32>;\n")).collect();
    let nine = format!("{buffers}@compute @workgroup_size(1) fn main() {{ b8[0] = b0[0]; }}");
    vec![
        ("a range beyond the end", double().on(&[(END - 256, 512)]), OUT_OF_BOUNDS),
        ("a range outside", double().on(&[(END, 256)]), OUT_OF_BOUNDS),
        ("a range in another actor's memory, perhaps", double().on(&[(0x8000_0000, 4096)]), OUT_OF_BOUNDS),
        ("a range that wraps around", double().on(&[(0xffff_ff00, 0x200)]), OUT_OF_BOUNDS),
        ("a length that is all there is", double().on(&[(DATA, 0xffff_fffc)]), OUT_OF_BOUNDS),
        ("a range that begins anywhere", double().on(&[(DATA + 4, 256)]), UNALIGNED),
        ("a range that is aligned to less", double().on(&[(DATA + 128, 256)]), UNALIGNED),
        ("a range that ends anywhere", double().on(&[(DATA, 255)]), UNALIGNED),
        ("an empty range", double().on(&[(DATA, 0)]), BAD_ARGUMENT),
        ("no range", double().on(&[]), BAD_ARGUMENT),
        ("two ranges for one binding", double().on(&[(DATA, 256), (DATA + 256, 256)]), BAD_ARGUMENT),
        ("a written range within another", three().on(&[(DATA + 256, 256), (DATA, 1024)]), BAD_ARGUMENT),
        ("the same range to read and write", three().on(&[(DATA, 256), (DATA, 256)]), BAD_ARGUMENT),
        ("too many ranges", double().on(&[(DATA, 256); 9]), LIMIT),
        ("too many bindings", Call::new(nine).on(&[(DATA, 256); 8]), LIMIT),
        ("workgroups without end", wide([65_535; 3]), LIMIT),
        ("too many workgroups in a row", wide([65_536, 1, 1]), LIMIT),
        ("more than the host waits for", wide([65_535, 1, 1]), LIMIT),
        ("text that is no WGSL", Call::new("attack!"), BAD_KERNEL),
        ("no text", Call::new(""), BAD_KERNEL),
        ("bytes that are no text", Call::new(b"\xff\xfe".to_vec()), BAD_TEXT),
        ("another entry point", Call::new("@compute @workgroup_size(1) fn other() { }").on(&[]), BAD_KERNEL),
        ("a barrier in a loop that depends on data", Call::new(kernel(barrier)), BAD_KERNEL),
        ("a barrier that some miss", Call::new(kernel("if local > 3u { workgroupBarrier(); }")), BAD_KERNEL),
        ("recursion", Call::new(format!("{} fn f() {{ f(); }}", kernel("f();"))), BAD_KERNEL),
        ("another group", Call::new(kernel(DOUBLE).replace("group(0)", "group(1)")), BAD_KERNEL),
    ]
}

/// Whatever a guest asks for, its memory and that of others stay as they are, and the next message works.
#[test]
fn hostile_calls_are_refused() {
    let mut host = host();
    let other = host.state_hash("b").unwrap();
    for (name, call, expected) in refused() {
        let (answer, words) = call.send(&mut host, "a");
        assert_eq!(answer, expected, "{name}");
        assert!(words == untouched(), "{name} changed memory");
        check_after(&mut host, name, &other);
    }
}

fn check_after(host: &mut Host, name: &str, other: &Hash) {
    assert!(host.state_hash("b").unwrap() == *other, "{name} changed another actor");
    check_doubled(host, "a");
}

/// Kernels that run, but reach for what is not theirs or do not want to end.
#[test]
fn hostile_kernels_reach_nothing_and_end() {
    let mut host = host();
    let other = host.state_hash("b").unwrap();
    for body in [
        "out[id.x * 4099u] = 9u;",
        "out[0xffffffffu - id.x] = 9u;",
        "out[i32(id.x) - 4096] = 9u;",
        "for (var i = 0u; i < 20000u; i++) { out[i * 64u + id.x] = 9u; }",
        "out[id.x] = out[id.x + 1024u]; out[id.x] = max(out[id.x], out[0u - id.x - 1u]);",
        "for (var i = 1u; i < 20000u; i++) { out[id.x] = max(out[id.x], out[i * 1024u + id.x]); }",
        "loop { out[id.x] = 9u; }",
        "loop { loop { } } out[id.x] = 9u;",
        "out[id.x] = 9u; while (out[0] == out[1]) { }",
        "if local == 3u { loop { } } workgroupBarrier(); out[id.x] = 9u;",
    ] {
        let started = Instant::now();
        let (answer, words) = Call { loop_budget: 20_000, ..Call::new(kernel(body)) }.send(&mut host, "a");
        assert_eq!(answer, 0, "{body}");
        let (own, expected) = (1024..2048, untouched());
        assert!(words[..own.start] == expected[..own.start] && words[own.end..] == expected[own.end..], "{body} wrote outside");
        let read = words[own.clone()].iter().find(|word| !own.contains(&(**word as usize)) && !matches!(word, 0 | 9));
        assert_eq!(read, None, "{body} read from outside");
        assert!(started.elapsed() < Duration::from_secs(20), "{body} took {:?}", started.elapsed());
        check_after(&mut host, body, &other);
    }
}

/// The message fails with the reason that the guest was told, and leaves no trace.
#[test]
fn a_message_that_fails_says_why() {
    let handle = "(if (i32.lt_s (call $dispatch (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)) (i32.const 0)) (then unreachable))";
    let text = format!(
        r#"(module (import "driftwood" "dispatch" (func $dispatch (param i32 i32 i32 i32 i32) (result i32))) (memory (export "memory") 1)
             (func (export "driftwood_abi") (result i32) (i32.const 1)) (func (export "handle") (result i32) {handle} (i32.const 0)))"#
    );
    let module: Arc<[u8]> = wat::parse_str(text).unwrap().into();
    let mut host = bare_host();
    spawn(&mut host, "a", module, limits(), &[]).unwrap();
    assert_eq!(send(&mut host, "a", "").unwrap_err().kind(), "no_gpu");
    host.set_gpu(gpu());
    let error = send(&mut host, "a", "").unwrap_err();
    assert!(error.kind() == "kernel" && error.to_string().contains("entry point"), "{error}");
}

#[test]
fn without_a_gpu_there_is_a_refusal() {
    let mut host = bare_host();
    spawn(&mut host, "a", guest("dispatch"), limits(), &[]).unwrap();
    let (answer, words) = Call::new(kernel(DOUBLE)).send(&mut host, "a");
    assert_eq!(answer, NO_GPU);
    assert!(words == untouched());
}

/// Memory that is not there yet cannot be bound; memory that grew can, beside what was imported before.
#[test]
fn memory_that_grew_is_bound_when_it_is_there() {
    let mut host = host();
    let grown = || Call { reply_bytes: END - DATA + 65_536, ..Call::new(kernel("out[id.x] += 7u;")).on(&[(END - 256, 512)]) };
    assert_eq!(Call { reply_bytes: 4, ..grown() }.send(&mut host, "a").0, OUT_OF_BOUNDS);
    let (answer, words) = Call { grow_pages: 1, workgroups: [2, 1, 1], ..grown() }.send(&mut host, "a");
    let last = ((END - DATA) / 4) as usize;
    assert_eq!((answer, words[last - 1], words[last], words[last + 63], words[last + 64]), (0, last as u32 + 6, 7, 7, 0));
    check_doubled(&mut host, "a");
}

/// A guest that does nothing but dispatch is ended by its limits, and another one gets its turn.
#[test]
fn limits_end_a_guest_that_dispatches_for_ever() {
    let mut host = host();
    let other = host.state_hash("b").unwrap();
    let call = Call { times: 0, ..Call::new(kernel(DOUBLE)) };
    let message = |limits| Message { limits: Some(limits), ..Message::new("a", call.bytes()) };
    let started = Instant::now();
    let forever = message(Limits { wall: Duration::from_millis(300), ..limits() });
    let results = host.deliver(vec![forever, Message::new("b", Call::new(kernel(DOUBLE)).bytes())], &mut |_, _| {});
    assert_eq!(results[0].as_ref().unwrap_err().kind(), "limit_wall");
    assert!(results[1].is_ok() && started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    check_after(&mut host, "the wall", &other);
    let error = host.send(message(Limits { fuel: 20_000_000, ..limits() }), &mut |_| {}).unwrap_err();
    assert_eq!(error.kind(), "limit_fuel");
    check_after(&mut host, "the fuel", &other);
}

/// Without a loop or a call of its own a guest never meets the clock between two dispatches: each must look at it.
#[test]
fn the_wall_ends_a_long_line_of_dispatches() {
    let line = "(drop (call $dispatch (i32.const 1024) (i32.const LENGTH) (i32.const 16) (i32.const 1) (i32.const 0)))".repeat(1000);
    let text = kernel("loop { out[id.x] += 1u; }");
    let line = line.replace("LENGTH", &text.len().to_string());
    let module = format!(
        r#"(module (import "driftwood" "dispatch" (func $dispatch (param i32 i32 i32 i32 i32) (result i32))) (memory (export "memory") 1)
             (data (i32.const 0) "\20\00\00\00\01\00\00\00\01\00\00\00\00\00\00\00\00\40\00\00\00\40\00\00") (data (i32.const 1024) "{}")
             (func (export "driftwood_abi") (result i32) (i32.const 1)) (func (export "handle") (result i32) {line} (i32.const 0)))"#,
        text.replace('\n', " ")
    );
    let mut host = host();
    let limits = Limits { wall: Duration::from_millis(200), ..limits() };
    spawn(&mut host, "line", wat::parse_str(module).unwrap().into(), limits, &[]).unwrap();
    let started = Instant::now();
    assert_eq!(send(&mut host, "line", "").unwrap_err().kind(), "limit_wall");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    check_doubled(&mut host, "a");
}

/// Fuel follows from the call, not from whether the kernel was compiled before: a snapshot does not hold that.
#[test]
fn fuel_does_not_depend_on_the_past() {
    let mut host = host();
    let mut fuel = |text: &str| host.send(Message::new("a", Call::new(kernel(text)).bytes()), &mut |_| {}).unwrap().fuel_used;
    let (first, second) = (fuel("out[id.x] = 1u;"), fuel("out[id.x] = 1u;"));
    assert_eq!(first, second);
    assert!(fuel("loop { out[id.x] += 1u; }") > first + 1_000_000, "what may run long costs more");
}

/// The message that finds the device gone hears of it; the next one works on the device opened again. Whoever finds it: a guest whose
/// memory and kernel are there already, one that brings them anew, or one that multiplies matrices.
#[test]
fn after_a_lost_device_the_next_message_works() {
    for finder in ["a", "fresh", "matmul"] {
        let lost = gpu();
        let mut host = bare_host();
        host.set_gpu(lost.clone());
        for (name, module) in [("a", "dispatch"), ("fresh", "dispatch"), ("matmul", "matmul.wasm")] {
            spawn(&mut host, name, guest(module), limits(), &[]).unwrap();
        }
        check_doubled(&mut host, "a");
        reply(&mut host, "matmul", "16 16 16");
        let others: Vec<_> = ["a", "fresh", "matmul"].into_iter().filter(|name| *name != finder).collect();
        let before: Vec<_> = others.iter().map(|name| host.state_hash(name).unwrap()).collect();
        lost.device().destroy();
        match finder {
            "matmul" => assert_eq!(send(&mut host, finder, "16 16 16").unwrap_err().kind(), "compute"),
            _ => assert_eq!(Call::new(kernel(DOUBLE)).send(&mut host, finder).0, MODEL_ERROR),
        }
        assert!(lost.is_lost(), "{finder}");
        assert!(others.iter().zip(before).all(|(name, before)| host.state_hash(name).unwrap() == before), "{finder}");
        check_doubled(&mut host, "fresh");
        check_doubled(&mut host, "a");
        assert!(reply(&mut host, "matmul", "16 16 16").contains("\"errors\":0,"));
        assert!(host.compute_report("matmul").unwrap().shared == 2 && host.compute_report("a").unwrap().dispatched == 2);
    }
}
