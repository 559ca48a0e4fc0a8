//! What a figure was measured on, and how much memory this process takes.

use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;

/// The machine, as far as figures depend on it.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    cpu: String,
    /// Threads that it runs at once.
    threads: usize,
    /// Bytes of its memory.
    memory_bytes: u64,
    /// The operating system.
    system: &'static str,
}

impl Machine {
    /// This one; what the system does not tell is empty.
    pub fn here() -> Machine {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            text.lines().find(|line| line.starts_with(name)).and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        Machine {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            threads: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: field("/proc/meminfo", "MemTotal").map_or(0, |text| kilobytes(&text)),
            system: std::env::consts::OS,
        }
    }

    /// The same for people.
    pub fn line(&self) -> String {
        let memory = crate::output::human_bytes(self.memory_bytes);
        format!("measured on: {}, {} threads, {memory}, {}", self.cpu, self.threads, self.system)
    }
}

/// Bytes that this process takes now: its share of resident pages (Pss), its page tables, and its memory files, mapped or not (what of them is
/// mapped counts twice).
///
/// # Errors
/// If the system does not tell: only Linux does.
pub fn memory_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("only Linux tells how much memory this takes")?;
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").context("the system does not tell how much memory this takes")?;
    let field = |text: &str, name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)).map(kilobytes);
        found.with_context(|| format!("the system does not tell {name}"))
    };
    Ok(field(&rollup, "Pss:")? + field(&status, "VmPTE:")? + memory_file_bytes()?)
}

/// A figure such as `184 kB` in bytes.
fn kilobytes(text: &str) -> u64 {
    text.trim().trim_end_matches("kB").trim().parse().map_or(0, |kilobytes: u64| kilobytes << 10)
}

fn memory_file_bytes() -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let in_memory = fs::read_link(&path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"));
        bytes += if in_memory { fs::metadata(&path).map_or(0, |metadata| metadata.blocks() * 512) } else { 0 };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_memory_is_counted() {
        if cfg!(target_os = "linux") {
            let before = memory_bytes().unwrap();
            let touched = std::hint::black_box(vec![1u8; 64 << 20]);
            let grown = memory_bytes().unwrap() - before;
            assert!((60 << 20..80 << 20).contains(&grown), "{grown}");
            drop(touched);
        }
    }
}
