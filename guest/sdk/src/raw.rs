//! The imports of `driftwood.h`, one to one; on other targets than Wasm, stand-ins that panic.

use crate::{
    ModelInfo,
    compute::{Grid, RawBinding},
    model::Token,
    sampler::Bias,
    session::RawGenerate,
};

/// Declares host functions: imports on Wasm, functions that panic elsewhere, so that everything type-checks on any target.
macro_rules! imports {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[cfg(target_family = "wasm")]
        #[link(wasm_import_module = "driftwood")]
        unsafe extern "C" {
            $($(#[$doc])* pub fn $name($($argument: $type),*) -> $answer;)*
        }
        $(#[cfg(not(target_family = "wasm"))]
        $(#[$doc])*
        pub unsafe fn $name($($argument: $type),*) -> $answer {
            $(let _ = $argument;)*
            panic!(concat!("driftwood's ", stringify!($name), " was called outside of a driftwood host"))
        })*
    };
}

imports! {
    fn receive(buffer: *mut u8, capacity: u32) -> i32;
    fn reply(bytes: *const u8, length: u32) -> i32;
    fn log(level: u32, text: *const u8, length: u32) -> i32;
    fn setting(name: *const u8, name_length: u32, buffer: *mut u8, capacity: u32) -> i32;
    fn time_ms() -> i64;
    fn random(buffer: *mut u8, length: u32) -> i32;

    fn model_info(model: *const u8, model_length: u32, out: *mut ModelInfo) -> i32;
    fn tokenize(
        model: *const u8, model_length: u32, text: *const u8, text_length: u32, flags: u32, tokens: *mut Token, capacity: u32
    ) -> i32;
    fn detokenize(model: *const u8, model_length: u32, tokens: *const Token, count: u32, buffer: *mut u8, capacity: u32) -> i32;
    fn is_end(model: *const u8, model_length: u32, token: u32) -> i32;
    fn chat_template(
        model: *const u8, model_length: u32, messages: *const u8, messages_length: u32, add_prompt: u32, buffer: *mut u8, capacity: u32
    ) -> i32;

    fn session_open(model: *const u8, model_length: u32, kv: u32, context_max: u32) -> i32;
    fn session_close(session: i32) -> i32;
    fn session_fork(session: i32) -> i32;
    fn session_truncate(session: i32, length: u32) -> i32;
    fn session_length(session: i32) -> i32;
    fn session_context(session: i32) -> i32;
    fn session_tokens(session: i32, first: u32, tokens: *mut Token, capacity: u32) -> i32;
    fn prefill(session: i32, tokens: *const Token, count: u32) -> i32;
    fn append(session: i32, tokens: *const Token, count: u32) -> i32;
    fn decode(session: i32, logits: *mut f32, count: u32) -> i32;
    fn set_sampler(session: i32, sampler: *const RawSampler, biases: *const Bias, bias_count: u32) -> i32;
    fn sample(session: i32, logits: *const f32, count: u32) -> i32;
    fn next(session: i32) -> i32;
    fn generate(session: i32, options: *mut RawGenerate) -> i32;

    fn matmul(a: *const f32, b: *const f32, c: *mut f32, m: u32, k: u32, n: u32) -> i32;
    fn dispatch(wgsl: *const u8, wgsl_length: u32, bindings: *const RawBinding, binding_count: u32, grid: *const Grid) -> i32;
}

/// `dw_sampler`.
#[repr(C)]
pub struct RawSampler {
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

#[cfg(test)]
mod tests {
    const HEADER: &str = include_str!("../../include/driftwood.h");

    /// Each function's name and how many parameters it has, from the texts that follow `mark`.
    fn functions(source: &str, mark: &str) -> Vec<(String, usize)> {
        let function = |text: &str| {
            let name = text.split(['(', ')']).next()?.to_string();
            let declaration = text.split_once(';')?.0.split_once("->").map_or_else(|| text.split(';').next(), |(front, _)| Some(front))?;
            let parameters = declaration.rsplit_once('(')?.1.split_once(')')?.0.trim();
            Some((name, if matches!(parameters, "" | "void") { 0 } else { parameters.split(',').count() }))
        };
        source.split(mark).skip(1).filter_map(function).collect()
    }

    #[test]
    fn the_imports_are_those_of_the_header() {
        let contract = HEADER.split_once("/* --- messages").unwrap().1;
        let own = include_str!("raw.rs").split_once("\nimports! {").unwrap().1.split_once("\n}").unwrap().0;
        let (contract, own) = (functions(contract, "DW_IMPORT("), functions(own, "    fn "));
        assert_eq!(contract.len(), 27);
        assert_eq!(own, contract);
        assert!(HEADER.contains(&format!("#define DRIFTWOOD_ABI {}\n", crate::macros::ABI)));
    }
}
