//! The two variants of a module that the host compiles.
//!
//! *First*: as the guest's author built it, plus an export of every mutable global. *Again*: for an instance that continues from an
//! image, without a start section and with empty data segments, so that its memory is zero when the image is laid over it. No index
//! shifts in either. A snapshot holds the original bytes.

use crate::admit::{Admitted, GLOBAL_PREFIX, Refusal};
use wasm_encoder::reencode::{Reencode, RoundtripReencoder};
use wasm_encoder::{ConstExpr, DataSection, ExportKind, ExportSection, Module, RawSection, SectionId};
use wasmparser::{Parser, Payload};

/// Which life of an instance a module is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    First,
    Again,
}

/// Rewrites an admitted module.
pub(crate) fn instrument(module: &[u8], admitted: &Admitted, life: Life) -> Result<Vec<u8>, Refusal> {
    let invalid = |why: String| Refusal::Invalid { why };
    let mut exports = ExportSection::new();
    let mut sections = Vec::new();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.map_err(|e| invalid(e.to_string()))?;
        if let Payload::ExportSection(section) = &payload {
            RoundtripReencoder.parse_export_section(&mut exports, section.clone()).map_err(|e| invalid(e.to_string()))?;
        }
        sections.extend(payload.as_section());
    }
    for global in &admitted.globals {
        exports.export(&format!("{GLOBAL_PREFIX}{}", global.index), ExportKind::Global, global.index);
    }
    let mut out = Module::new();
    for (id, range) in sections {
        match SectionId::from_id(id) {
            Some(SectionId::Export) => drop(out.section(&exports)),
            Some(SectionId::Start) if life == Life::Again => {}
            Some(SectionId::Data) if life == Life::Again => drop(out.section(&empty_data(admitted.data_segments))),
            _ => drop(out.section(&RawSection { id, data: &module[range] })),
        }
    }
    Ok(out.finish())
}

/// As many active segments, each empty at offset 0.
fn empty_data(segments: u32) -> DataSection {
    let mut data = DataSection::new();
    for _ in 0..segments {
        data.active(0, &ConstExpr::i32_const(0), []);
    }
    data
}

trait FromId: Sized {
    fn from_id(id: u8) -> Option<Self>;
}

impl FromId for SectionId {
    fn from_id(id: u8) -> Option<SectionId> {
        [SectionId::Export, SectionId::Start, SectionId::Data].into_iter().find(|s| *s as u8 == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::survey;

    #[test]
    fn globals_are_exported_and_second_lives_start_empty() {
        let module = wat::parse_str(
            r#"(module (memory (export "memory") 1) (global (mut i32) (i32.const 7)) (global i32 (i32.const 8)) (global (mut f64) (f64.const 1))
                 (func (export "handle") (result i32) (i32.const 0)) (func (export "driftwood_abi") (result i32) (i32.const 1))
                 (func $start) (start $start) (data (i32.const 8) "bytes"))"#,
        )
        .unwrap();
        let admitted = survey(&module).unwrap();
        assert!(admitted.has_start);
        for life in [Life::First, Life::Again] {
            let out = instrument(&module, &admitted, life).unwrap();
            wasmparser::Validator::new_with_features(crate::admit::features()).validate_all(&out).unwrap();
            let text = String::from_utf8_lossy(&out).into_owned();
            assert!(text.contains("__dw_g_0") && text.contains("__dw_g_2") && !text.contains("__dw_g_1"));
            assert_eq!(text.contains("bytes"), life == Life::First);
            let starts = Parser::new(0).parse_all(&out).any(|p| matches!(p, Ok(Payload::StartSection { .. })));
            assert_eq!(starts, life == Life::First);
        }
    }
}
