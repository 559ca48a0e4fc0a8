//! Matrix products of guests on a GPU, in the guests' own memory. They need a Vulkan driver: `apt install mesa-vulkan-drivers`.

mod common;
#[path = "common/tiny.rs"]
mod tiny;

use common::{bare_host, guest, reply, send, spawn};
use driftwood_actor::{ComputeReport, GpuPath, Host, Limits, Message};
use driftwood_compute::gpu::Gpu;
use std::sync::Arc;
use tiny::{Script, spawn_caller};

fn with_gpu(mut host: Host) -> Host {
    host.set_gpu(Gpu::open(None).expect("these tests need a Vulkan driver: apt install mesa-vulkan-drivers"));
    host
}

fn module(memory_pages: u32, handle: &str) -> Arc<[u8]> {
    let text = format!(
        r#"(module
          (import "driftwood" "matmul" (func $matmul (param i32 i32 i32 i32 i32 i32) (result i32)))
          (import "driftwood" "reply" (func $reply (param i32 i32) (result i32)))
          (memory (export "memory") {memory_pages})
          (func $fill (param $at i32) (param $first f32) (result i32)
            (f32.store (local.get $at) (local.get $first))
            (f32.store offset=4 (local.get $at) (f32.add (local.get $first) (f32.const 1)))
            (f32.store offset=8 (local.get $at) (f32.add (local.get $first) (f32.const 2)))
            (f32.store offset=12 (local.get $at) (f32.add (local.get $first) (f32.const 3)))
            (local.get $at))
          (func (export "driftwood_abi") (result i32) (i32.const 1))
          (func (export "handle") (result i32) {handle}))"#
    );
    wat::parse_str(text).unwrap().into()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn the_guest_finds_the_gpus_product_in_its_own_memory() {
    let mut host = with_gpu(bare_host());
    spawn(&mut host, "a", guest("matmul.wasm"), Limits::default(), &[]).unwrap();
    for (shape, products) in [("128 128 128", 1), ("1 1 1", 2), ("77 3 129", 3)] {
        let said = reply(&mut host, "a", shape);
        assert!(said.contains("\"errors\":0,"), "{said}");
        let report = host.compute_report("a").unwrap();
        assert_eq!((report.shared, report.last, &report.why), (products, Some(GpuPath::Shared), &None));
        let addresses = report.addresses.unwrap();
        assert!(addresses.region == addresses.imported && addresses.imported == addresses.linear_memory, "{addresses:x?}");
    }
}

#[test]
fn without_a_gpu_the_report_says_so() {
    let mut host = bare_host();
    spawn(&mut host, "a", guest("matmul.wasm"), Limits::default(), &[]).unwrap();
    reply(&mut host, "a", "8 8 8");
    let expected = ComputeReport { processor: 1, last: Some(GpuPath::Processor), ..ComputeReport::default() };
    assert_eq!(host.compute_report("a").unwrap(), expected);
    assert!(host.compute_report("b").is_err());
}

/// The second product reads the first, which the GPU wrote before the memory grew, and lies in what it grew by.
#[test]
fn memory_that_grew_is_shared_with_the_gpu_again() {
    let handle = "
        (drop (call $matmul (call $fill (i32.const 4) (f32.const 1)) (call $fill (i32.const 20) (f32.const 5)) (i32.const 36)
            (i32.const 2) (i32.const 2) (i32.const 2)))
        (drop (memory.grow (i32.const 2)))
        (drop (call $matmul (i32.const 4) (i32.const 36) (i32.const 131076) (i32.const 2) (i32.const 2) (i32.const 2)))
        (drop (call $reply (i32.const 36) (i32.const 16)))
        (call $reply (i32.const 131076) (i32.const 16))";
    let mut host = with_gpu(bare_host());
    spawn(&mut host, "a", module(1, handle), Limits::default(), &[]).unwrap();
    let said = send(&mut host, "a", "").unwrap().reply;
    assert_eq!(floats(&said), [19.0, 22.0, 43.0, 50.0, 105.0, 122.0, 229.0, 266.0]);
    assert_eq!(host.compute_report("a").unwrap().shared, 2);
}

/// Every alignment of the three ranges, beside guards, against the processor.
#[test]
fn ranges_on_the_gpu_may_begin_at_any_element() {
    let scripts: Vec<Script> = (0..9u32).map(|shift| products_shifted_by(4 * shift)).collect();
    let run = |mut host: Host| -> Vec<Vec<f32>> {
        spawn_caller(&mut host, "a");
        scripts.iter().map(|script| floats(&host.send(Message::new("a", script.bytes()), &mut |_| {}).unwrap().reply)).collect()
    };
    let (on_cpu, on_gpu) = (run(tiny::host(1)), run(with_gpu(tiny::host(1))));
    for (shift, (expected, got)) in on_cpu.iter().zip(&on_gpu).enumerate() {
        assert!(expected[1..7].iter().all(|value| *value != 0.0), "{expected:?}");
        assert!(expected.iter().zip(got).all(|(x, y)| (x - y).abs() <= 1e-5), "shift {shift}: {expected:?} {got:?}");
    }
}

/// A script that multiplies (2, 3) by (3, 3) and replies with the product and the words around it.
fn products_shifted_by(shift: u32) -> Script {
    const PLACE: u32 = 131_072;
    let mut script = Script::default();
    let words = |first: f32| (0..9).flat_map(|i| (first + i as f32 * 0.37).to_le_bytes()).collect::<Vec<u8>>();
    let (a, b) = (script.data(&words(0.5)), script.data(&words(-3.3)));
    let c = PLACE + shift + 4;
    script.call("matmul", &[a, b, c, 2, 3, 3]).call("reply", &[c - 4, 32]);
    script
}

/// What the GPU cannot take is computed on the processor, and the report says why.
#[test]
fn products_beyond_the_gpus_limits_are_reported() {
    let handle = "
        (drop (call $fill (i32.const 0) (f32.const 2)))
        (call $matmul (i32.const 0) (i32.const 8) (i32.const 33554432) (i32.const 4194241) (i32.const 1) (i32.const 1))
        (drop (call $reply (i32.const 33554432) (i32.const 8)))";
    let mut host = with_gpu(bare_host());
    spawn(&mut host, "a", module(1024, handle), Limits::default(), &[]).unwrap();
    assert_eq!(floats(&send(&mut host, "a", "").unwrap().reply), [8.0, 12.0]);
    let report = host.compute_report("a").unwrap();
    assert_eq!((report.processor, report.last), (1, Some(GpuPath::Processor)));
    assert!(report.why.unwrap().contains("workgroups"));
}

/// A message that fails after the GPU wrote leaves its own memory and that of others as they were; the next one works.
#[test]
fn a_failed_message_leaves_no_trace_of_the_gpu() {
    let handle = "
        (drop (call $matmul (call $fill (i32.const 4) (f32.const 1)) (call $fill (i32.const 20) (f32.const 5)) (i32.const 36)
            (i32.const 2) (i32.const 2) (i32.const 2)))
        unreachable";
    let mut host = with_gpu(bare_host());
    spawn(&mut host, "bad", module(1, handle), Limits::default(), &[]).unwrap();
    spawn(&mut host, "good", guest("matmul.wasm"), Limits::default(), &[]).unwrap();
    reply(&mut host, "good", "16 16 16");
    let before = [host.state_hash("bad").unwrap(), host.state_hash("good").unwrap()];
    assert_eq!(send(&mut host, "bad", "").unwrap_err().kind(), "trap");
    assert_eq!([host.state_hash("bad").unwrap(), host.state_hash("good").unwrap()], before);
    assert!(reply(&mut host, "good", "16 16 16").contains("\"errors\":0,"));
}
