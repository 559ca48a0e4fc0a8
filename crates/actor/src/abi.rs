//! The contract `guest/include/driftwood.h` as types: every function with its signature, error codes, and structures.

use bytemuck::{Pod, Zeroable};
use std::fmt;

/// The version that this host speaks: `DRIFTWOOD_ABI`.
pub(crate) const VERSION: i32 = 1;
/// The module that guests import from.
pub(crate) const MODULE: &str = "driftwood";
/// The export of a guest that wants to be told of another model.
pub(crate) const MODEL_CHANGED: &str = "driftwood_model_changed";

/// A function's parameters and result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    /// How many i32 it takes.
    pub parameters: usize,
    /// `i32` or `i64`.
    pub result: &'static str,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&type_text(vec!["i32"; self.parameters].iter(), [self.result].iter()))
    }
}

/// A function type as text, e.g. `(i32 i32) -> i32`.
pub(crate) fn type_text<T: fmt::Display>(parameters: impl Iterator<Item = T>, results: impl Iterator<Item = T>) -> String {
    let joined = |items: Vec<String>| items.join(" ");
    let results = joined(results.map(|t| t.to_string()).collect());
    let parameters = joined(parameters.map(|t| t.to_string()).collect());
    format!("({parameters}) -> {}", if results.is_empty() { "nothing" } else { &results })
}

/// Every function of the contract: name, number of i32 parameters, result.
pub(crate) const FUNCTIONS: [(&str, usize, &str); 27] = [
    ("receive", 2, "i32"),
    ("reply", 2, "i32"),
    ("log", 3, "i32"),
    ("setting", 4, "i32"),
    ("time_ms", 0, "i64"),
    ("random", 2, "i32"),
    ("model_info", 3, "i32"),
    ("tokenize", 7, "i32"),
    ("detokenize", 6, "i32"),
    ("is_end", 3, "i32"),
    ("chat_template", 7, "i32"),
    ("session_open", 4, "i32"),
    ("session_close", 1, "i32"),
    ("session_fork", 1, "i32"),
    ("session_truncate", 2, "i32"),
    ("session_length", 1, "i32"),
    ("session_context", 1, "i32"),
    ("session_tokens", 4, "i32"),
    ("prefill", 3, "i32"),
    ("append", 3, "i32"),
    ("decode", 3, "i32"),
    ("set_sampler", 4, "i32"),
    ("sample", 3, "i32"),
    ("next", 1, "i32"),
    ("generate", 2, "i32"),
    ("matmul", 6, "i32"),
    ("dispatch", 5, "i32"),
];

/// The signature of a function of the contract.
pub(crate) fn signature(name: &str) -> Option<Signature> {
    FUNCTIONS.iter().find(|f| f.0 == name).map(|&(_, parameters, result)| Signature { parameters, result })
}

/// `dw_error`: what a host function answers when it does not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Refused {
    OutOfBounds = -1,
    BadArgument = -2,
    NoSuchSession = -3,
    NoSuchModel = -4,
    Limit = -5,
    ContextFull = -6,
    TokenLimit = -7,
    BadText = -8,
    NotFound = -9,
    Interrupted = -10,
    ModelError = -11,
    NoGpu = -12,
    BadKernel = -13,
    Unaligned = -14,
}

/// `dw_finish`: why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Finish {
    End = 0,
    Length = 1,
    Stop = 2,
    Context = 3,
    Interrupted = 4,
    TokenLimit = 5,
}

/// `DW_ADD_SPECIAL`.
pub(crate) const ADD_SPECIAL: u32 = 1;
/// `DW_PARSE_SPECIAL`.
pub(crate) const PARSE_SPECIAL: u32 = 2;
/// `DW_STREAM`.
pub(crate) const STREAM: u32 = 1;
/// `DW_IGNORE_END`.
pub(crate) const IGNORE_END: u32 = 2;

/// `dw_model_info`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ModelInfo {
    pub vocabulary: u32,
    pub context_max: u32,
    pub bos: i32,
    pub eos: i32,
}

/// `dw_sampler`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct SamplerOptions {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub penalty_window: u32,
    pub seed_low: u32,
    pub seed_high: u32,
}

/// `dw_bias`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Bias {
    pub token: u32,
    pub bias: f32,
}

/// `dw_generate_options`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GenerateOptions {
    pub max_tokens: u32,
    pub flags: u32,
    pub stops: u32,
    pub stops_length: u32,
    pub out_text: u32,
    pub out_text_capacity: u32,
    pub out_text_length: u32,
    pub out_finish: u32,
}

/// `dw_binding`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Binding {
    pub offset: u32,
    pub length: u32,
}

/// `dw_grid`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Grid {
    pub workgroups: [u32; 3],
    pub loop_budget: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header is the only copy of the contract; this table must say the same.
    #[test]
    fn table_agrees_with_the_header() {
        let header = include_str!("../../../guest/include/driftwood.h");
        let flat = header.split_whitespace().collect::<Vec<_>>().join(" ");
        let declarations: Vec<&str> = flat.split("DW_IMPORT(").skip(1).filter(|d| !d.starts_with("name)")).collect();
        assert_eq!(declarations.len(), FUNCTIONS.len());
        for (declaration, (name, parameters, result)) in declarations.iter().zip(FUNCTIONS) {
            let (declared, rest) = declaration.split_once(')').unwrap();
            let (returned, rest) = rest.trim().split_once(' ').unwrap();
            let list = rest.split_once('(').unwrap().1.split_once(')').unwrap().0;
            let count = if list == "void" { 0 } else { list.split(',').count() };
            assert_eq!((declared, count, returned.replace("int", "i").replace("_t", "").as_str()), (name, parameters, result));
        }
        assert!(header.contains(&format!("#define DRIFTWOOD_ABI {VERSION}")));
    }

    /// Every error and finish of the header has its number here.
    #[test]
    fn numbers_agree_with_the_header() {
        let header = include_str!("../../../guest/include/driftwood.h");
        let has = |text: String| assert!(header.contains(&text), "{text}");
        use Refused::*;
        let errors = [
            ("OUT_OF_BOUNDS", OutOfBounds),
            ("BAD_ARGUMENT", BadArgument),
            ("NO_SUCH_SESSION", NoSuchSession),
            ("NO_SUCH_MODEL", NoSuchModel),
            ("LIMIT", Limit),
            ("CONTEXT_FULL", ContextFull),
            ("TOKEN_LIMIT", TokenLimit),
            ("BAD_TEXT", BadText),
            ("NOT_FOUND", NotFound),
            ("INTERRUPTED", Interrupted),
            ("MODEL_ERROR", ModelError),
            ("NO_GPU", NoGpu),
            ("BAD_KERNEL", BadKernel),
            ("UNALIGNED", Unaligned),
        ];
        for (name, error) in errors {
            has(format!("DW_{name} = {}", error as i32));
        }
        let finishes = [
            ("END", Finish::End),
            ("LENGTH", Finish::Length),
            ("STOP", Finish::Stop),
            ("CONTEXT", Finish::Context),
            ("INTERRUPTED", Finish::Interrupted),
            ("TOKEN_LIMIT", Finish::TokenLimit),
        ];
        for (name, finish) in finishes {
            has(format!("DW_FINISH_{name} = {}", finish as u32));
        }
    }
}
