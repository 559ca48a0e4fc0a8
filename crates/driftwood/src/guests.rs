//! The guests inside the binary, and those in files.

use crate::failure::mistake;
use anyhow::Result;
use std::path::Path;
use std::sync::Arc;

/// The guest of actors for which none is named.
pub const DEFAULT: &str = "chat";

/// Names and modules: what `cargo xtask guests` builds.
const EMBEDDED: [(&str, &[u8]); 4] = [
    ("chat", include_bytes!("../../../guest/wasm/chat.wasm")),
    ("echo", include_bytes!("../../../guest/wasm/echo.wasm")),
    ("judge", include_bytes!("../../../guest/wasm/judge.wasm")),
    ("matmul", include_bytes!("../../../guest/wasm/matmul.wasm")),
];

/// The guest of `bench boundary`, built from `guest/bench/bench.wat`.
pub const BENCH: &[u8] = include_bytes!("../../../guest/wasm/bench.wasm");

/// A guest by its name in the binary, or by the path of a module.
///
/// # Errors
/// If there is neither.
pub fn find(name_or_path: &str) -> Result<Arc<[u8]>> {
    if let Some((_, module)) = EMBEDDED.iter().find(|(name, _)| *name == name_or_path) {
        return Ok(Arc::from(*module));
    }
    let why = |e: std::io::Error| {
        let names: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
        mistake(format!("cannot read the guest `{name_or_path}`: {e}; give the path of a Wasm module, or one of {}", names.join(", ")))
    };
    let module = std::fs::read(Path::new(name_or_path)).map_err(why)?;
    Ok(module.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The committed module is what its source gives. After a change: `DRIFTWOOD_WRITE_BENCH_GUEST=1 cargo test -p driftwood bench_guest`.
    #[test]
    fn bench_guest_is_built_from_its_source() {
        let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest");
        let built = wat::parse_file(guest.join("bench/bench.wat")).unwrap();
        if std::env::var_os("DRIFTWOOD_WRITE_BENCH_GUEST").is_some() {
            std::fs::write(guest.join("wasm/bench.wasm"), &built).unwrap();
        }
        assert_eq!(std::fs::read(guest.join("wasm/bench.wasm")).unwrap(), built);
    }

    #[test]
    fn names_come_before_paths() {
        assert!(find("chat").unwrap().starts_with(b"\0asm"));
        assert!(find("no/such.wasm").unwrap_err().to_string().contains("chat, echo, judge, matmul"));
    }
}
