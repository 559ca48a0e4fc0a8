// c = a * b, row-major: an invocation has eight rows and four columns, and each element is one chain along k.

struct Params {
    m: u32,
    k: u32,
    n: u32,
    // Where the matrices begin in their bindings, in elements.
    a: u32,
    b: u32,
    c: u32,
}

@group(0) @binding(0) var<storage, read> params: Params;
