//! Checked kernels run: those that behave compute what they did before, those that do not end, and change nothing that is not theirs.

use super::*;
use crate::gpu::Gpu;
use crate::gpu::tests::gpu;
use std::fmt::Write;
use std::num::NonZeroU64;

const HEAD: &str = "@group(0) @binding(0) var<storage, read_write> out: array<u32>;\n";
const MAIN: &str =
    "@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) ";

fn check(source: &str, loop_budget: u32) -> GuestKernel {
    let limits = GuestKernelLimits { loop_budget, ..GuestKernelLimits::default() };
    GuestKernel::check(source, "main", &limits).unwrap_or_else(|e| panic!("{e}\n{source}"))
}

/// A pipeline as a host makes it: checked accesses, zeroed workgroup memory, one writable buffer.
fn pipeline(gpu: &Gpu, module: &naga::Module) -> wgpu::ComputePipeline {
    let entry = wgpu::BindGroupLayoutEntry {
        binding: 0,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: false },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let device = gpu.device();
    let group = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &[entry] });
    let layout = wgpu::PipelineLayoutDescriptor { bind_group_layouts: &[Some(&group)], ..Default::default() };
    let source = wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(module.clone()));
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: Some(&device.create_pipeline_layout(&layout)),
        module: &device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source }),
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions { constants: &[], zero_initialize_workgroup_memory: true },
        cache: None,
    })
}

/// Runs a module on words `bound` of a buffer that holds `words`, and returns the whole buffer.
fn run(gpu: &Gpu, module: &naga::Module, words: &[u32], bound: std::ops::Range<u64>, workgroups: u32) -> Vec<u32> {
    let pipeline = pipeline(gpu, module);
    let buffer = gpu.buffer("guest", 4 * words.len() as u64).unwrap();
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(words));
    let range = wgpu::BufferBinding { buffer: &buffer, offset: 4 * bound.start, size: NonZeroU64::new(4 * (bound.end - bound.start)) };
    let entry = wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(range) };
    let layout = pipeline.get_bind_group_layout(0);
    let group = gpu.device().create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &[entry] });
    let mut encoder = gpu.encoder();
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(workgroups, 1, 1);
    drop(pass);
    gpu.submit(encoder).unwrap();
    let mut result = vec![0; words.len()];
    gpu.read(&buffer, 0, bytemuck::cast_slice_mut(&mut result)).unwrap();
    result
}

/// Runs a checked kernel of one workgroup on 64 zeros.
fn run_64(gpu: &Gpu, source: &str, loop_budget: u32) -> Vec<u32> {
    run(gpu, check(source, loop_budget).module(), &[0; 64], 0..64, 1)
}

/// Runs a kernel as it came and as it was checked, and asserts that nothing differs.
fn assert_same(gpu: &Gpu, source: &str) {
    let plain = run(gpu, &naga::front::wgsl::parse_str(source).unwrap(), &[0; 128], 0..128, 2);
    let checked = run(gpu, check(source, 1 << 16).module(), &[0; 128], 0..128, 2);
    assert_eq!(plain, checked, "{source}");
    assert!(plain.iter().any(|word| *word != plain[0]), "the kernel computes something\n{source}");
}

#[test]
fn kernels_that_behave_compute_the_same() {
    let gpu = gpu();
    let shared = "var<workgroup> tile: array<u32, 64>;";
    let collatz = "fn steps(start: u32) -> u32 { var n = start; var c = 0u; loop { if n <= 1u { return c; } if n % 2u == 0u { n = n / 2u; continue; } n = 3u * n + 1u; continuing { c += 1u; } } return c; }";
    for (declarations, body) in [
        (collatz, "out[id.x] = steps(id.x + 1u);"),
        (
            "",
            "var s = id.x; for (var i = 0u; i < 10u; i++) { for (var k = i; k < 10u; k++) { if k == 7u { break; } s = s * 31u + k; } } out[id.x] = s;",
        ),
        (
            "",
            "var s = id.x; loop { s += 3u; if s % 7u == 0u { continue; } switch s % 4u { case 0u { break; } case 1u, 2u { continue; } default { s += 1u; } } continuing { s += 2u; break if s > 300u; } } out[id.x] = s;",
        ),
        ("", "var i = id.x; while i < 100u { i += i / 3u + 1u; } out[id.x] = i;"),
        (
            shared,
            "tile[local] = id.x; workgroupBarrier(); for (var s = 32u; s > 0u; s >>= 1u) { if local < s { tile[local] += tile[local + s]; } workgroupBarrier(); } out[id.x] = tile[0] + id.x;",
        ),
        (
            shared,
            "for (var t = 0; t < 3; t++) { tile[local] = out[id.x] + u32(t); workgroupBarrier(); var s = 0u; for (var k = 0u; k <= local; k++) { s += tile[k]; } workgroupBarrier(); out[id.x] = s + 1u; }",
        ),
        ("fn inc(p: ptr<function, u32>) { *p += 1u; }", "var n = 0u; while n < id.x { inc(&n); } out[id.x] = n;"),
    ] {
        assert_same(&gpu, &format!("{HEAD}{declarations}\n{MAIN}{{ {body} }}"));
    }
}

/// Writes random programs with loops, branches, jumps and calls. Each loop has a counter of its own, so that all of them end.
struct Programs {
    state: u64,
    names: u32,
    text: String,
}

impl Programs {
    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 33) % bound
    }

    fn program(seed: u64) -> String {
        let mut programs = Programs { state: seed, names: 0, text: HEAD.to_owned() };
        for (name, callee) in [("g", "x * 2u +"), ("f", "g(x) +")] {
            writeln!(programs.text, "fn {name}(x: u32) -> u32 {{ var a = {callee} x; var b = 1u;").unwrap();
            programs.block(3, false, name == "f");
            programs.text.push_str("return a ^ b; }\n");
        }
        write!(programs.text, "{MAIN}{{ out[id.x] = f(id.x * 77u) ^ f(id.x); }}").unwrap();
        programs.text
    }

    fn block(&mut self, depth: u32, in_loop: bool, calls: bool) {
        for _ in 0..2 + self.below(3) {
            self.statement(depth, in_loop, calls);
        }
    }

    fn statement(&mut self, depth: u32, in_loop: bool, calls: bool) {
        let (k, m) = (self.below(6), self.below(5));
        self.names += 1;
        let n = self.names;
        let choice = self.below(if depth == 0 { 5 } else { 10 });
        let (open, close) = match choice {
            0 => (format!("a = a * 1664525u + {k}u;"), String::new()),
            1 => (format!("b ^= (a >> {k}u) + b * 3u;"), String::new()),
            2 if calls => (format!("b += g(a & 15u) + {k}u;"), String::new()),
            3 if in_loop => (format!("if (a >> 3u) % 5u == {m}u {{ {} }}", ["break;", "continue;"][k as usize % 2]), String::new()),
            4 => (format!("if a % 61u == {k}u {{ return b + {m}u; }}"), String::new()),
            5 => (format!("for (var i{n} = 0u; i{n} < {k}u + (a & 3u); i{n}++) {{ b += i{n};\n"), "}".to_owned()),
            6 => (format!("var w{n} = {k}u; while w{n} > 0u {{ w{n} -= 1u;\n"), "}".to_owned()),
            7 => (format!("var c{n} = 0u; loop {{ c{n} += 1u;\n"), format!("continuing {{ b += c{n}; break if c{n} > {k}u; }} }}")),
            8 => (format!("if a % 5u > {m}u {{\n"), "} else { a += b; }".to_owned()),
            9 => (format!("switch (a >> 2u) % 3u {{ case {}u {{ b *= 5u; }} default {{\n", k % 3), "} }".to_owned()),
            _ => (format!("a += {m}u;"), String::new()),
        };
        self.text.push_str(&open);
        if !close.is_empty() {
            self.block(depth - 1, in_loop || matches!(choice, 5..=7), calls);
        }
        self.text.push_str(&close);
        self.text.push('\n');
    }
}

#[test]
fn random_programs_compute_the_same() {
    let gpu = gpu();
    let count = std::env::var("DRIFTWOOD_SOAK").map_or(8, |_| 200);
    let within_limits = |source: &String| GuestKernel::check(source, "main", &GuestKernelLimits::default()).is_ok();
    let sources: Vec<_> = (0..8 * count as u64).map(Programs::program).filter(within_limits).take(count).collect();
    assert_eq!(sources.len(), count);
    for source in &sources {
        assert_same(&gpu, source);
    }
}

#[test]
fn loops_end_when_the_budget_is_spent() {
    let gpu = gpu();
    let run = |declarations: &str, body: &str, budget| run_64(&gpu, &format!("{HEAD}{declarations}\n{MAIN}{{ {body} }}"), budget);
    assert_eq!(run("", "loop { out[id.x] += 1u; }", 1000), [1000; 64]);
    assert_eq!(run("", "out[id.x] = 7u; loop { }", 100_000), [7; 64]);
    assert_eq!(run("", "loop { loop { out[id.x] += 1u; } }", 1000), [999; 64]);
    assert_eq!(run("", "loop { out[id.x] += 1u; } out[id.x] += 5u; loop { out[id.x] += 1u; }", 10), [15; 64]);
    assert_eq!(run("", "loop { if true { continue; } continuing { out[id.x] += 1u; } }", 10), [10; 64]);
    let counts = "fn count(i: u32) { loop { out[i] += 1u; } }";
    assert_eq!(run(counts, "count(id.x); for (;;) { count(id.x); } count(id.x);", 50), [50; 64]);
    assert_eq!(run("", "loop { out[id.x] += 1u; }", 0), [0; 64]);

    // Each invocation has a budget of its own: those that end leave the others be.
    let uneven = run("", "if local % 2u == 0u { loop { } } for (var i = 0u; i < local; i++) { out[id.x] += 1u; }", 64);
    assert!(uneven.iter().enumerate().all(|(i, n)| *n as usize == if i % 2 == 0 { 0 } else { i }), "{uneven:?}");
    // Who leaves a loop for want of budget still meets the barriers behind it, and those in counted loops.
    let shared = "var<workgroup> tile: array<u32, 64>;";
    let meets = "if local == 5u { loop { } } tile[local] = local; for (var i = 0u; i < 3u; i++) { workgroupBarrier(); } out[id.x] = tile[63u - local];";
    assert!(run(shared, meets, 1000).iter().enumerate().all(|(i, n)| *n as usize == 63 - i));
}

/// Two workgroups that wait for each other need not run at once: without a budget such a wait may never end.
#[test]
fn waiting_for_another_workgroup_ends() {
    let head = "@group(0) @binding(0) var<storage, read_write> flags: array<atomic<u32>>;";
    let body = "{ loop { if atomicLoad(&flags[1]) == 12345u { break; } } atomicAdd(&flags[0], 1u); }";
    let kernel = check(&format!("{head}\n{MAIN}{body}"), 5000);
    assert_eq!(run(&gpu(), kernel.module(), &[0; 64], 0..64, 3)[0], 192);
}

#[test]
fn nothing_outside_of_a_binding_is_read_or_written() {
    let gpu = gpu();
    let mut words = vec![0xabad_cafe_u32; 1024];
    words[256..512].fill(1);
    for body in [
        "out[id.x * 4099u] = 9u;",
        "out[0xffffffffu - id.x] = 9u;",
        "out[i32(id.x) - 64] = 9u;",
        "for (var i = 0u; i < 4096u; i++) { out[i + id.x] = 9u; }",
        "let p = &out[id.x + 256u]; *p = 9u;",
        "out[id.x] = out[id.x + 256u] + out[0u - id.x - 1u] + 9u;",
        "out[id.x] = u32(out[arrayLength(&out) + id.x] == 0xabadcafeu);",
        "var t = array<u32, 4>(1u, 2u, 3u, 4u); t[id.x * 1000u] = 9u; out[id.x] = t[id.x] & 15u;",
        "tile[id.x * 1000u] = 9u; workgroupBarrier(); out[id.x] = tile[id.x * 977u] & 15u;",
        "table[id.x].y[id.x * 3u] = 9u; out[id.x] = table[id.x].y[id.x] & 15u;",
    ] {
        let declarations = "struct S { x: u32, y: array<u32, 3> } var<workgroup> tile: array<u32, 8>; var<private> table: array<S, 2>;";
        let kernel = check(&format!("{HEAD}{declarations}\n{MAIN}{{ {body} }}"), 1 << 16);
        let after = run(&gpu, kernel.module(), &words, 256..512, 2);
        let inside = &after[256..512];
        assert!(after[..256].iter().chain(&after[512..]).all(|word| *word == 0xabad_cafe), "{body} wrote outside");
        assert!(inside.iter().all(|word| *word < 64), "{body} read from outside");
    }
}

#[test]
fn workgroup_memory_holds_nothing_of_others() {
    let gpu = gpu();
    let shared = "var<workgroup> tile: array<u32, 4096>;";
    let fill = "for (var i = local; i < 4096u; i += 64u) { tile[i] = 0xabadcafeu; } workgroupBarrier(); out[local] = tile[4095u - local];";
    let look = "var s = 0u; for (var i = local; i < 4096u; i += 64u) { s |= tile[i]; } out[id.x] = s;";
    assert_eq!(run_64(&gpu, &format!("{HEAD}{shared}\n{MAIN}{{ {fill} }}"), 1 << 16), [0xabad_cafe; 64]);
    let looked = check(&format!("{HEAD}{shared}\n{MAIN}{{ {look} }}"), 1 << 16);
    assert_eq!(run(&gpu, looked.module(), &[7; 1024], 0..1024, 16), [0; 1024]);
}
