//! Hostile kernels and the error that each gets; what is let through, and what it is said to cost.

use super::*;
use GuestKernelError as E;

const OUT: &str = "@group(0) @binding(0) var<storage, read_write> out: array<u32>;\n";

/// A kernel with one output and this body.
fn body(text: &str) -> String {
    format!(
        "{OUT}@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {{ {text} }}"
    )
}

/// [`body`], with declarations before it.
fn with(declarations: &str, text: &str) -> String {
    format!("{declarations}\n{}", body(text))
}

fn check(source: &str) -> Result<GuestKernel, E> {
    GuestKernel::check(source, "main", &GuestKernelLimits::default())
}

/// Asserts of each kernel that it is refused in the way that `is` recognises.
fn refused(is: impl Fn(&E) -> bool, kernels: &[(&str, String)]) {
    for (name, source) in kernels {
        match check(source) {
            Err(error) => assert!(is(&error), "{name}: {error:?}"),
            Ok(_) => panic!("{name} is let through"),
        }
    }
}

#[test]
fn texts_that_would_hurt_the_compiler() {
    let long = format!("{}{}", " ".repeat(70_000), body(""));
    assert_eq!(check(&long).unwrap_err(), E::SourceTooLong { bytes: long.len(), max: 64 << 10 });
    assert_eq!(check("fn ö() {}").unwrap_err(), E::NotAscii { offset: 3 });
    let chain = |unit: &str| body(&format!("var y = 1; let x = {}y;", unit.repeat(30_000 / unit.len())));
    let else_ifs = body(&format!("var y = 1; if y == 0 {{}} {}", "else if y==0 {}".repeat(3000)));
    refused(
        |error| matches!(error, E::TooDeep { .. }),
        &[
            ("parentheses", body(&format!("let x = {}1{};", "(".repeat(30_000), ")".repeat(30_000)))),
            ("braces", body(&format!("{}{}", "{".repeat(30_000), "}".repeat(30_000)))),
            ("brackets that a comment seems to close", body(&"(/*)*/".repeat(5_000))),
            ("a long sum", chain("y+")),
            ("a long sum over lines with comments", chain("y+ // ;\n")),
            ("a long comparison", chain("y<")),
            ("negations", chain("- ")),
            ("addresses", chain("*&")),
            ("members", body(&format!("var y = vec2(1); let x = y{};", ".xy".repeat(10_000)))),
            ("indices", body(&format!("var y = vec2(1); let x = y{};", "[0]".repeat(10_000)))),
            ("else if", else_ifs),
        ],
    );
    for unit in ["!", "- ", "*&", "y+", "y<", "1.0.x+"] {
        let _ = check(&body(&format!("var y = 1; let x = {}y;", unit.repeat(2000 / unit.len())))); // deep, but not too deep
    }
}

#[test]
fn constants_that_would_eat_time_or_memory() {
    let nested: String = (1..30).map(|i| format!("alias t{i}=array<t{0},2>;const a{i}=t{i}(a{0},a{0});", i - 1)).collect();
    let inferred: String = (1..30).map(|i| format!("const a{i}=array(a{0},a{0});", i - 1)).collect();
    refused(
        |error| matches!(error, E::ConstTable { .. }),
        &[
            ("a tree of arrays", with(&format!("alias t0=array<u32,2>;const a0=t0(1,1);{nested}"), "var i = 0; out[0] = a29[i];")),
            ("a tree of inferred arrays", with(&format!("const a0=array(1,1);{inferred}"), "let x = a29[0];")),
            ("a table in a function", body("const t = array<u32, 2>(1, 2); out[0] = t[1];")),
            ("a structure", with("struct S { a: u32 } const s = S(1);", "")),
        ],
    );
    refused(
        |error| matches!(error, E::ZeroValue { .. }),
        &[
            ("the sum of long zeros", body("let x = array<i32,400000000>() + array<i32,400000000>();")),
            ("a negated long zero", body("let x = -array<i32,400000000 > ( );")),
            ("an alias", with("alias A = array<i32,400000000>;", "let x = -A();")),
            ("an alias with a known name", with("alias vec4f = array<i32,400000000>;", "let x = -vec4f();")),
            ("a structure", with("struct S { a: array<i32,400000000> }", "let x = -S();")),
            ("behind a comment", body("let x = -array<i32,400000000>/*)*/(/*(*/);")),
            ("a nested array", body("let x = array<vec2<f32>, 3>();")),
        ],
    );
    for small in ["vec4<f32>()", "vec3f()", "mat2x2f()", "mat3x4<f32>()", "f32()", "helper()"] {
        check(&with("fn helper() -> u32 { return 1u; }", &format!("let x = {small};"))).unwrap_or_else(|e| panic!("{small}: {e}"));
    }
}

#[test]
fn no_wgsl_or_more_than_is_offered() {
    refused(
        |error| matches!(error, E::Parse { .. }),
        &[
            ("another language", "int main(void) { return 0; }".into()),
            ("a NUL", "\0".into()),
            ("recursion", with("fn f() { g(); } fn g() { f(); }", "f();")),
            ("an unknown name", body("out[0] = nothing;")),
            ("a type too large", with("var<private> x: array<array<u32, 65536>, 65536>;", "out[0] = x[0][0];")),
            ("an atomic as a value", body("let a: atomic<u32> = 1u;")),
            ("a nest of templates", with(&format!("var<private> x: {}u32{};", "array<".repeat(300), ",1>".repeat(300)), "")),
        ],
    );
    refused(
        |error| matches!(error, E::Invalid { .. }),
        &[
            ("f16", format!("enable f16; {}", body("var x: f16 = 1.0h;"))),
            ("i64", body("var x: i64 = 1;")),
            ("subgroups", body("out[0] = subgroupAdd(1u);")),
            ("a subgroup's size", format!("{OUT}@compute @workgroup_size(1) fn main(@builtin(subgroup_size) n: u32) {{}}")),
            ("immediates", with("var<immediate> p: u32;", "out[0] = p;")),
            ("discard", body("discard;")),
            ("a pointer out of its function", with("fn f() -> ptr<function, u32> { var x: u32; return &x; }", "let p = f();")),
            ("a function without an end", with("fn f() -> u32 { loop { } }", "let x = f();")),
            ("a workgroup of zero", format!("{OUT}@compute @workgroup_size(0) fn main() {{}}")),
            ("a workgroup of 2^32", format!("{OUT}@compute @workgroup_size(65536, 65536) fn main() {{}}")),
        ],
    );
}

#[test]
fn interfaces_that_guests_cannot_have() {
    let entry = |count| format!("{OUT}@compute @workgroup_size({count}) fn main() {{}}");
    refused(
        |error| matches!(error, E::EntryPoint { .. }),
        &[
            ("none", OUT.into()),
            ("another name", format!("{OUT}@compute @workgroup_size(1) fn other() {{}}")),
            ("two", format!("{}@compute @workgroup_size(1) fn other() {{}}", body(""))),
            ("a fragment shader", "@fragment fn main() {}".into()),
        ],
    );
    refused(|error| matches!(error, E::WorkgroupSize { .. }), &[("257", entry("257")), ("too deep", entry("1, 1, 65"))]);
    let bound = |text: &str| with(text, "");
    refused(
        |error| matches!(error, E::Binding { .. }),
        &[
            ("another group", bound("@group(1) @binding(1) var<storage> a: array<u32>;")),
            ("a gap", bound("@group(0) @binding(2) var<storage> a: array<u32>;")),
            ("the same twice", bound("@group(0) @binding(0) var<storage> a: array<u32>;")),
            ("the largest number", bound("@group(0) @binding(4294967295) var<storage> a: array<u32>;")),
        ],
    );
    let many: String = (1..9).map(|i| format!("@group(0) @binding({i}) var<storage> b{i}: array<u32>;")).collect();
    let functions: String = (0..65).map(|i| format!("fn f{i}() {{}}")).collect();
    let structs: String = (0..300).map(|i| format!("struct s{i} {{ a: u32 }}")).collect();
    refused(
        |error| matches!(error, E::TooMany { .. }),
        &[
            ("nine bindings", bound(&many)),
            ("many functions", bound(&functions)),
            ("many types", bound(&structs)),
            ("much workgroup memory", with("var<workgroup> w: array<u32, 5000>;", "w[0] = 1u;")),
            ("giant workgroup memory", with("var<workgroup> w: array<u32, 500000000>;", "w[0] = 1u;")),
            ("much private memory", with("var<private> w: array<u32, 5000>;", "w[0] = 1u;")),
            ("much local memory", body("var w: array<u32, 5000>; w[0] = 1u;")),
            ("local memory by calls", with("fn f() { var w: array<u32, 1000>; w[0] = 1u; }", "f(); f(); f();")),
            ("a large value", with("@group(0) @binding(1) var<storage> a: array<u32, 1000000>;", "let b = a;")),
        ],
    );
    refused(
        |error| matches!(error, E::Unsupported { .. }),
        &[
            ("a uniform buffer", bound("@group(0) @binding(1) var<uniform> a: vec4<f32>;")),
            ("a texture", bound("@group(0) @binding(1) var a: texture_2d<f32>;")),
            ("a sampler", bound("@group(0) @binding(1) var a: sampler;")),
            ("an override", with("override n: u32 = 4;", "out[0] = n;")),
            ("an overridden workgroup", format!("override n: u32; {}", entry("n"))),
            ("an overridden array", with("override n: u32; var<workgroup> w: array<u32, n>;", "w[0] = 1u;")),
        ],
    );
}

#[test]
fn calls_that_double_at_every_level() {
    let level = |i: usize| format!("fn f{i}() {{ f{0}(); f{0}(); }}", i - 1);
    let doubling: String = (1..40).map(level).collect();
    let source = with(&format!("fn f0() {{ out[0] = 1u; }} {doubling}"), "f39();");
    assert!(matches!(check(&source).unwrap_err(), E::TooMany { count, .. } if count > 1 << 39));
    let loops = with(&format!("fn f0() {{ loop {{ out[0] += 1u; }} }} {}", (1..6).map(level).collect::<String>()), "f5();");
    assert_eq!(check(&loops).unwrap_err(), E::TooMany { what: "loops with all calls inlined", count: 32, max: 16 });
    let some: String = (1..8).map(level).collect();
    assert!(check(&with(&format!("fn f0() {{ out[0] = 1u; }} {some}"), "f7();")).is_ok());
}

#[test]
fn barriers_that_some_invocations_may_miss() {
    let shared = "var<workgroup> tile: array<u32, 64>; var<workgroup> one: u32; fn sync() { workgroupBarrier(); } fn write(p: ptr<function, u32>) { *p = 0u; }";
    let cases = [
        "loop { workgroupBarrier(); if id.x > 3u { break; } }",
        "loop { workgroupBarrier(); }",
        "for (var i = 0u; i < id.x; i++) { workgroupBarrier(); }",
        "for (var i = id.x; i < 4u; i++) { storageBarrier(); }",
        "for (var i = 0u; i < 4u; i += id.x) { sync(); }",
        "for (var i = 0u; i < 4u; i++) { workgroupBarrier(); i = id.x; }",
        "for (var i = 0u; i < 4u; i++) { workgroupBarrier(); write(&i); }",
        "for (var i = 0u; i < 4u; i++) { workgroupBarrier(); let p = &i; *p = 0u; }",
        "for (var i = 0u; i < 4u; i++) { if id.x == 1u { break; } workgroupBarrier(); }",
        "for (var i = 0u; i < 4u; i++) { if id.x == 1u { continue; } workgroupBarrier(); }",
        "for (var i = 0u; i < 4u; i++) { workgroupBarrier(); if id.x == 1u { return; } }",
        "for (var i = 0u; i < 4u; i++) { workgroupBarrier(); switch id.x { case 1u { continue; } default { break; } } }",
        "for (var i = 0u; i < 4u; i += 0u) { workgroupBarrier(); }",
        "for (var i = 0u; i != 3u; i += 2u) { workgroupBarrier(); }",
        "for (var i = 0u; i < 1000000u; i++) { workgroupBarrier(); }",
        "var i = 0u; let v = i; for (; v < 4u; i++) { workgroupBarrier(); }",
        "var i = 0u; let v = i; for (; i < 4u; i = v + 1u) { workgroupBarrier(); }",
        "var i = 0u; i = id.x; for (; i < 4u; i++) { workgroupBarrier(); }",
        "var i = 0u; loop { i = 0u; if i > 3u { break; } workgroupBarrier(); continuing { i += 1u; } }",
        "loop { workgroupBarrier(); continuing { break if id.x > 3u; } }",
        "loop { continuing { workgroupBarrier(); break if id.x > 3u; } }",
        "for (var i = 0u; i < 4u; i++) { loop { workgroupBarrier(); break; } }",
        "while out[0] == 0u { out[1] = workgroupUniformLoad(&one); }",
        "if local == 0u { workgroupBarrier(); }",
        "if local == 0u { sync(); }",
        "switch local { case 1u { workgroupBarrier(); } default { } }",
        "if local == 0u { out[1] = workgroupUniformLoad(&one); }",
        "if local == 0u { return; } workgroupBarrier();",
        "if local == 0u { return; } sync();",
        "{ if local == 0u { return; } } for (var i = 0u; i < 4u; i++) { workgroupBarrier(); }",
    ];
    for case in cases {
        let error = check(&with(shared, case)).map(|_| ()).unwrap_err();
        assert!(matches!(error, E::Barrier { .. }), "{case}: {error:?}");
    }
}

#[test]
fn barriers_that_all_invocations_meet() {
    let shared = "const N = 3; var<workgroup> tile: array<u32, 64>; var<workgroup> one: u32; fn sync() { workgroupBarrier(); }";
    let cases = [
        ("workgroupBarrier(); storageBarrier(); sync();", 0),
        ("if local == 0u { one = 7u; } out[local] = workgroupUniformLoad(&one); if local == 1u { return; } out[0] = 1u;", 0),
        ("for (var i = 0u; i < 4u; i++) { sync(); }", 4),
        ("for (var i = 8; i >= N; i -= 1) { workgroupBarrier(); if local == 2u { out[i] = 1u; } }", 6),
        ("for (var s = 32u; s > 0u; s >>= 1u) { if local < s { tile[local] += tile[local + s]; } workgroupBarrier(); }", 6),
        ("for (var s = 1; s < 64; s *= 2) { for (var k = 0u; k < 3u; k++) { sync(); } }", 6),
        ("for (var i = 0u; i < 2u; i++) { for (var k = 0u; k < id.x; k++) { if k == 3u { break; } } workgroupBarrier(); }", 2),
        ("loop { out[0] += 1u; if out[0] > 3u { break; } } workgroupBarrier();", 0),
        ("var i: u32; for (; i < 4u; i += 1u) { workgroupBarrier(); }", 4),
        ("for (var i = 0u; i < 0u; i += 1u) { workgroupBarrier(); }", 0),
    ];
    for (case, trips) in cases {
        let kernel = check(&with(shared, case)).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert!(kernel.cost_per_invocation() > trips * 33, "{case}: {}", kernel.cost_per_invocation());
    }
}

#[test]
fn costs_and_dispatches() {
    let cost = |source: &str| check(source).unwrap().cost_per_invocation();
    let straight = cost(&body("out[id.x] = id.x * 2u;"));
    assert!((10..40).contains(&straight), "{straight}");
    let looped = cost(&body("loop { out[id.x] += 1u; }"));
    assert!(looped > 10 << 16 && looped < 100 << 16, "{looped}");
    let nested = cost(&body("loop { loop { out[id.x] += 1u; } }"));
    assert!(nested < 2 * looped, "both loops share one budget: {nested}");
    let counted = |trips| cost(&body(&format!("for (var i = 0u; i < {trips}u; i++) {{ workgroupBarrier(); }}")));
    assert!(counted(1000) > 9 * counted(100) && counted(1000) < 11 * counted(100));

    let kernel = check(&body("loop { out[id.x] += 1u; }")).unwrap();
    let max = GuestKernelLimits::default().dispatch_cost_max;
    let most = u32::try_from(max / (64 * kernel.cost_per_invocation())).unwrap();
    assert!(kernel.admit([most, 1, 1]).is_ok_and(|cost| cost > 0 && cost <= max));
    assert!(matches!(kernel.admit([1, most + 1, 1]), Err(E::DispatchCost { .. })));
    assert_eq!(kernel.admit([65_535; 3]), Err(E::DispatchCost { cost: u64::MAX, max }));
    assert!(matches!(kernel.admit([0, 65_536, 0]), Err(E::Grid { .. })));
    assert_eq!(kernel.admit([0, 1, 1]), Ok(0));
}

#[test]
fn what_is_bound_is_told() {
    let source = with(
        "struct S { n: u32, a: atomic<u32>, rest: array<vec2<f32>> } @group(0) @binding(2) var<storage, read_write> s: S; @group(0) @binding(1) var<storage> m: array<mat4x4<f32>, 3>;",
        "out[0] = s.n;",
    );
    let kernel = check(&source).unwrap();
    let binding = |writable, bytes_min| GuestBinding { writable, bytes_min };
    assert_eq!(kernel.bindings(), [binding(true, 4), binding(false, 192), binding(true, 16)]);
    assert_eq!((kernel.entry(), kernel.workgroup_size()), ("main", [64, 1, 1]));
    let f16 = format!("enable f16; {}", body("var x: f16 = 1.0h;"));
    assert!(GuestKernel::check(&f16, "main", &GuestKernelLimits { float16: true, ..GuestKernelLimits::default() }).is_ok());
}

/// Every loop of a checked kernel but the counted ones begins with the budget's check, wherever it stands.
#[test]
fn every_loop_has_the_budget() {
    let declarations = "fn f(n: u32) -> u32 { var i = 0u; while i < n { i += 1u; for (;;) { break; } } return i; }";
    let source = with(
        declarations,
        "switch id.x { case 1u { loop { if id.x == 2u { loop { break; } } continuing { for (var k = 0; k < 3; k++) { } } } } default { } }
         for (var i = 0u; i < 4u; i++) { workgroupBarrier(); loop { { break; } } }",
    );
    let kernel = check(&source).unwrap();
    let text = naga::back::wgsl::write_string(
        kernel.module(),
        &validate(kernel.module(), &GuestKernelLimits::default()).unwrap(),
        naga::back::wgsl::WriterFlags::empty(),
    )
    .unwrap();
    let checks = text.split("loop {").skip(1).filter(|rest| rest.lines().nth(1).is_some_and(|line| line.contains("loop_budget"))).count();
    assert_eq!((checks, text.matches("loop {").count()), (6, 7), "{text}");
}
