//! Which modules may be actors, decided once, before anything is compiled.
//!
//! A snapshot holds linear memory and mutable globals and nothing else, so a module must keep its state there: whatever could change
//! a table, or keep a segment for later, is refused by name. What is left over passes Wasm validation with the features named in
//! [`features`].

use crate::abi;
use crate::limits::{GLOBALS_MAX, MODULE_BYTES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX};
use driftwood_snapshot::ValueKind;
use std::collections::BTreeMap;
use wasmparser::{
    CompositeInnerType, DataKind, ElementKind, ExternalKind, FuncType, FunctionBody, GlobalType, Operator, Parser, Payload, TypeRef,
    ValType, Validator, WasmFeatures,
};

/// Why a module is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is too long.
    #[error("it has {bytes} bytes; at most {max} are admitted")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// It is not valid Wasm, or uses features that are not admitted.
    #[error("it is not valid: {why}")]
    Invalid {
        /// The validator's message.
        why: String,
    },
    /// An instruction that changes a table, whose contents a snapshot does not hold.
    #[error("function {function} uses `{instruction}`; tables must stay as they are instantiated")]
    Instruction {
        /// The instruction.
        instruction: &'static str,
        /// The function's index.
        function: u32,
    },
    /// A segment that is kept for later.
    #[error("it has a passive {what} segment; only active ones are admitted (link without bulk-memory initialisation)")]
    PassiveSegment {
        /// Data or element.
        what: &'static str,
    },
    /// An import that the contract does not have.
    #[error("it imports `{module}.{name}`: {why}")]
    Import {
        /// The module imported from.
        module: String,
        /// The name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Its memories are not one plain memory.
    #[error("its memory cannot be kept: {why}")]
    Memory {
        /// What is wrong.
        why: &'static str,
    },
    /// A table that is too large, or too many of them.
    #[error("its tables cannot be kept: {why}")]
    Table {
        /// What is wrong.
        why: &'static str,
    },
    /// A global that cannot be kept in a snapshot.
    #[error("global {index} cannot be kept: {why}")]
    Global {
        /// Its index.
        index: u32,
        /// What is wrong.
        why: &'static str,
    },
    /// An export of the contract is missing or of another type, or a reserved name is used.
    #[error("export `{name}`: {why}")]
    Export {
        /// The name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// Checks a module as spawning it would.
///
/// # Errors
/// The first reason to refuse it.
pub fn admit(module: &[u8]) -> Result<(), Refusal> {
    survey(module).map(|_| ())
}

/// Prefix of the names under which mutable globals are exported to the host.
pub(crate) const GLOBAL_PREFIX: &str = "__dw_g_";

/// A mutable global.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GlobalSlot {
    pub index: u32,
    pub kind: ValueKind,
}

/// What the host needs to know of an admitted module.
#[derive(Debug, Default)]
pub(crate) struct Admitted {
    /// Its mutable globals, by index.
    pub globals: Vec<GlobalSlot>,
    /// Whether instantiation runs code, by a start section or `_initialize`.
    pub has_start: bool,
    pub has_initialize: bool,
    /// Whether it wants to be told of another model.
    pub has_model_changed: bool,
    /// Bytes that its memory begins with.
    pub memory_bytes: usize,
    /// Data segments, all active.
    pub data_segments: u32,
}

/// The features of Wasm that guests may use: 2.0 and what compilers emit by default. No threads, no second memory, no 64-bit memory,
/// no exceptions, no garbage-collected types.
pub(crate) fn features() -> WasmFeatures {
    WasmFeatures::WASM2 | WasmFeatures::RELAXED_SIMD | WasmFeatures::TAIL_CALL | WasmFeatures::EXTENDED_CONST
}

/// Checks a module and says what the host needs to know of it.
pub(crate) fn survey(module: &[u8]) -> Result<Admitted, Refusal> {
    if module.len() > MODULE_BYTES_MAX {
        return Err(Refusal::TooLarge { bytes: module.len(), max: MODULE_BYTES_MAX });
    }
    let mut survey = Survey::default();
    for payload in Parser::new(0).parse_all(module) {
        survey.payload(payload.map_err(invalid)?)?;
    }
    survey.finish()?;
    Validator::new_with_features(features()).validate_all(module).map_err(invalid)?;
    Ok(survey.admitted)
}

fn invalid(e: wasmparser::BinaryReaderError) -> Refusal {
    Refusal::Invalid { why: e.to_string() }
}

/// What one reading of the sections gathers.
#[derive(Default)]
struct Survey {
    types: Vec<Option<FuncType>>,
    functions: Vec<u32>, // type of each, imported ones first
    imported_functions: u32,
    bodies: u32,
    globals: u32,
    memories: u32,
    tables: u32,
    exports: BTreeMap<String, (ExternalKind, u32)>,
    admitted: Admitted,
}

impl Survey {
    fn payload(&mut self, payload: Payload<'_>) -> Result<(), Refusal> {
        match payload {
            Payload::TypeSection(s) => s.into_iter().try_for_each(|group| self.type_group(group.map_err(invalid)?)),
            Payload::ImportSection(s) => s.into_imports().try_for_each(|i| self.import(&i.map_err(invalid)?)),
            Payload::FunctionSection(s) => s.into_iter().try_for_each(|f| {
                self.functions.push(f.map_err(invalid)?);
                Ok(())
            }),
            Payload::TableSection(s) => s.into_iter().try_for_each(|t| self.table(&t.map_err(invalid)?.ty)),
            Payload::MemorySection(s) => s.into_iter().try_for_each(|m| self.memory(&m.map_err(invalid)?)),
            Payload::GlobalSection(s) => s.into_iter().try_for_each(|g| self.global(&g.map_err(invalid)?.ty)),
            Payload::ExportSection(s) => s.into_iter().try_for_each(|e| {
                let e = e.map_err(invalid)?;
                self.export(e.name, e.kind, e.index)
            }),
            Payload::StartSection { .. } => {
                self.admitted.has_start = true;
                Ok(())
            }
            Payload::ElementSection(s) => s.into_iter().try_for_each(|e| match e.map_err(invalid)?.kind {
                ElementKind::Passive => Err(Refusal::PassiveSegment { what: "element" }),
                ElementKind::Active { .. } | ElementKind::Declared => Ok(()),
            }),
            Payload::DataSection(s) => s.into_iter().try_for_each(|d| self.data(&d.map_err(invalid)?.kind)),
            Payload::CodeSectionEntry(body) => self.body(&body),
            Payload::Version { encoding: wasmparser::Encoding::Component, .. } => {
                Err(Refusal::Invalid { why: "it is a component; actors are core modules".into() })
            }
            _ => Ok(()),
        }
    }

    fn type_group(&mut self, group: wasmparser::RecGroup) -> Result<(), Refusal> {
        self.types.extend(group.into_types().map(|t| match t.composite_type.inner {
            CompositeInnerType::Func(f) => Some(f),
            _ => None,
        }));
        Ok(())
    }

    fn import(&mut self, import: &wasmparser::Import<'_>) -> Result<(), Refusal> {
        let refuse = |why: String| Refusal::Import { module: import.module.into(), name: import.name.into(), why };
        let what = match import.ty {
            TypeRef::Func(index) => {
                self.functions.push(index);
                self.imported_functions += 1;
                if import.module != abi::MODULE {
                    return Err(refuse(format!("only functions of `{}` can be imported", abi::MODULE)));
                }
                let Some(signature) = abi::signature(import.name) else {
                    return Err(refuse(format!("contract version {} has no such function", abi::VERSION)));
                };
                let found = self.type_text(index);
                let same = found == signature.to_string();
                return if same { Ok(()) } else { Err(refuse(format!("its type should be {signature}, but is {found}"))) };
            }
            TypeRef::Memory(_) => "a memory cannot be imported; the actor defines its own",
            TypeRef::Table(_) => "a table cannot be imported",
            TypeRef::Global(_) => "a global cannot be imported",
            _ => "only functions can be imported",
        };
        Err(refuse(what.into()))
    }

    fn type_text(&self, index: u32) -> String {
        match self.types.get(index as usize) {
            Some(Some(f)) => abi::type_text(f.params().iter(), f.results().iter()),
            _ => "no function type".into(),
        }
    }

    fn table(&mut self, ty: &wasmparser::TableType) -> Result<(), Refusal> {
        self.tables += 1;
        let why = if self.tables > TABLES_MAX {
            "there are more than 4"
        } else if ty.initial > u64::from(TABLE_ELEMENTS_MAX) {
            "one has more than 1,048,576 elements"
        } else if ty.element_type != wasmparser::RefType::FUNCREF {
            "one holds something else than functions"
        } else if ty.table64 || ty.shared {
            "one is shared or has 64-bit indices"
        } else {
            return Ok(());
        };
        Err(Refusal::Table { why })
    }

    fn memory(&mut self, ty: &wasmparser::MemoryType) -> Result<(), Refusal> {
        self.memories += 1;
        let why = if self.memories > 1 {
            "there are several"
        } else if ty.memory64 {
            "it has 64-bit addresses"
        } else if ty.shared {
            "it is shared between threads"
        } else if ty.page_size_log2.is_some_and(|log2| log2 != 16) {
            "its pages have another size than 64 KiB"
        } else {
            self.admitted.memory_bytes = usize::try_from(ty.initial).unwrap_or(usize::MAX).saturating_mul(1 << 16);
            return Ok(());
        };
        Err(Refusal::Memory { why })
    }

    fn global(&mut self, ty: &GlobalType) -> Result<(), Refusal> {
        let index = self.globals;
        self.globals += 1;
        let refuse = |why| Err(Refusal::Global { index, why });
        let kind = match ty.content_type {
            ValType::I32 => ValueKind::I32,
            ValType::I64 => ValueKind::I64,
            ValType::F32 => ValueKind::F32,
            ValType::F64 => ValueKind::F64,
            ValType::V128 => ValueKind::V128,
            ValType::Ref(r) if r.is_extern_ref() => return refuse("it refers to something of the host"),
            ValType::Ref(_) if ty.mutable => return refuse("it is a mutable reference"),
            ValType::Ref(_) => return Ok(()),
        };
        if ty.shared {
            return refuse("it is shared between threads");
        }
        if ty.mutable {
            self.admitted.globals.push(GlobalSlot { index, kind });
        }
        if self.admitted.globals.len() > GLOBALS_MAX { refuse("there are more than 4,096 mutable globals") } else { Ok(()) }
    }

    fn export(&mut self, name: &str, kind: ExternalKind, index: u32) -> Result<(), Refusal> {
        if name.starts_with(GLOBAL_PREFIX) {
            return Err(Refusal::Export { name: name.into(), why: "names that begin with `__dw_g_` belong to the host" });
        }
        self.exports.insert(name.to_owned(), (kind, index));
        Ok(())
    }

    fn data(&mut self, kind: &DataKind<'_>) -> Result<(), Refusal> {
        self.admitted.data_segments += 1;
        match kind {
            DataKind::Passive => Err(Refusal::PassiveSegment { what: "data" }),
            DataKind::Active { .. } => Ok(()),
        }
    }

    fn body(&mut self, body: &FunctionBody<'_>) -> Result<(), Refusal> {
        let function = self.imported_functions + self.bodies;
        self.bodies += 1;
        for operator in body.get_operators_reader().map_err(invalid)? {
            let instruction = match operator.map_err(invalid)? {
                Operator::TableSet { .. } => "table.set",
                Operator::TableGrow { .. } => "table.grow",
                Operator::TableFill { .. } => "table.fill",
                Operator::TableCopy { .. } => "table.copy",
                Operator::TableInit { .. } => "table.init",
                _ => continue,
            };
            return Err(Refusal::Instruction { instruction, function });
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Refusal> {
        let missing = |name: &str, why| Refusal::Export { name: name.into(), why };
        match self.exports.get("memory") {
            Some((ExternalKind::Memory, _)) => {}
            _ => return Err(missing("memory", "an actor exports its linear memory under this name")),
        }
        for name in ["driftwood_abi", "handle"] {
            if !self.is_function(name, "() -> i32") {
                return Err(missing(name, "an actor exports a function () -> i32 under this name"));
            }
        }
        self.admitted.has_model_changed = self.exports.contains_key(abi::MODEL_CHANGED);
        if self.admitted.has_model_changed && !self.is_function(abi::MODEL_CHANGED, "() -> i32") {
            return Err(missing(abi::MODEL_CHANGED, "it should be a function () -> i32"));
        }
        self.admitted.has_initialize = self.exports.contains_key("_initialize");
        if self.admitted.has_initialize && !self.is_function("_initialize", "() -> nothing") {
            return Err(missing("_initialize", "it should be a function without parameters and results"));
        }
        Ok(())
    }

    fn is_function(&self, name: &str, expected: &str) -> bool {
        let Some(&(ExternalKind::Func, index)) = self.exports.get(name) else { return false };
        self.functions.get(index as usize).is_some_and(|&ty| self.type_text(ty) == expected)
    }
}
