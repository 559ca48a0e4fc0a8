//! Synthetic models: the exact shape of a real one with random weights, so that speed and memory can be measured where no weights are at hand.
//!
//! `shape.rs` lists shapes and their tensors, `weights.rs` makes numbers and stores them in a format, `tokenizer.rs` makes up a vocabulary
//! with as many merges as a real one has, `gguf.rs` and `folder.rs` write a container's head, `write.rs` fills files on all cores. One seed
//! gives the same weights in every format, but for their rounding.

mod folder;
mod gguf;
mod shape;
#[cfg(test)]
mod tests;
mod tokenizer;
mod weights;
mod write;

pub use shape::SHAPES;

use anyhow::{Context, Result, bail, ensure};
use shape::{Kind, Shape};
use std::path::{Path, PathBuf};
use std::time::Instant;
use weights::Weights;

/// How weights are stored, and thereby in what container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// A Hugging Face folder.
    Bf16,
    /// GGUF files.
    Q8_0,
    Q4_0,
    Q4_1,
    /// A folder of MLX's: numbers of so many bits, with a scale and a bias for each group of so many.
    Mlx {
        bits: usize,
        group: usize,
    },
}

impl std::str::FromStr for Format {
    type Err = anyhow::Error;

    /// `mlx4` has groups of 64, `mlx4-32` of 32.
    fn from_str(text: &str) -> Result<Format> {
        if let Some(widths) = text.strip_prefix("mlx") {
            let (bits, group) = widths.split_once('-').unwrap_or((widths, "64"));
            let format = Format::Mlx { bits: bits.parse()?, group: group.parse()? };
            let Format::Mlx { bits: 2..=6 | 8, group: 32 | 64 | 128 } = format else {
                bail!("MLX has 2 to 6 or 8 bits, groups of 32, 64, 128")
            };
            return Ok(format);
        }
        Ok(match text {
            "bf16" => Format::Bf16,
            "q8_0" => Format::Q8_0,
            "q4_0" => Format::Q4_0,
            "q4_1" => Format::Q4_1,
            _ => bail!("there are bf16, q8_0, q4_0, q4_1, and MLX's like mlx4 or mlx6-32"),
        })
    }
}

/// Writes a synthetic model to `path`, which must not exist: through a temporary name beside it and a rename.
pub fn synth(shape: &str, format: Format, seed: u64, path: &Path) -> Result<()> {
    let shape = Shape::named(shape)?;
    ensure!(!path.exists(), "{} exists; remove it or give another path", path.display());
    let began = Instant::now();
    let weights = Weights::new(format, seed);
    for tensor in shape.tensors() {
        let whole = !matches!(tensor.kind, Kind::Matrix { row_len, .. } if row_len % weights.elements.block_len != 0);
        ensure!(whole, "rows of {} are no whole groups; take smaller ones", tensor.folder);
    }
    let temporary = temporary(path)?;
    let written = match format {
        Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => gguf::write(shape, &weights, &temporary),
        Format::Bf16 | Format::Mlx { .. } => folder::write(shape, &weights, folder::SHARD_BYTES_MAX, &temporary),
    };
    let bytes = written.inspect_err(|_| remove(&temporary))?;
    std::fs::rename(&temporary, path).with_context(|| format!("cannot rename {} to {}", temporary.display(), path.display()))?;
    println!("{}: {:.2} GB in {:.1} s", path.display(), bytes as f64 / 1e9, began.elapsed().as_secs_f64());
    Ok(())
}

/// A name beside `path` that nothing else has.
fn temporary(path: &Path) -> Result<PathBuf> {
    let mut name = path.file_name().context("the path has no file name")?.to_owned();
    name.push(format!(".{}.part", std::process::id()));
    Ok(path.with_file_name(name))
}

fn remove(path: &Path) {
    // Whatever is left could not be written; there is nobody to tell about a second failure.
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}
