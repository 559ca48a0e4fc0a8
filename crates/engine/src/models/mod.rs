//! Model families: one file each, read top to bottom; this table is the only place that lists them.

mod gemma3;
mod llama;

use crate::Error;
use crate::config::Config;
use crate::pass::Pass;
use crate::source::Source;
use driftwood_compute::Matrix;
use driftwood_region::DType;

/// A loaded decoder.
///
/// - `forward` runs every layer over the rows of one pass and ends with `Step::logits`.
/// - It names no session and no position: rows carry them.
/// - It allocates nothing.
pub(crate) trait Decoder: Send + Sync + std::fmt::Debug {
    /// Runs one pass.
    fn forward(&self, step: &mut dyn Pass);
}

/// What a family makes of a file.
pub(crate) type Loaded = (Config, Box<dyn Decoder>);

/// How a family reads a file.
type Load = fn(&dyn Source) -> Result<Loaded, Error>;

/// An architecture and the family that reads it.
const FAMILIES: &[(&str, Load)] = &[("gemma3", gemma3::load), ("llama", llama::load)];

/// Reads a model of any known family.
///
/// # Errors
/// If the architecture is unknown or the file is not what its family expects.
pub(crate) fn load(file: &dyn Source) -> Result<Loaded, Error> {
    let architecture = file.architecture()?;
    match FAMILIES.iter().find(|(name, _)| *name == architecture) {
        Some((_, load)) => load(file),
        None => {
            let known: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
            Err(Error::Unsupported { what: "architecture", got: architecture.to_owned(), supported: known.join(", ") })
        }
    }
}

/// A weight of exactly `rows` by `row_len` elements.
fn matrix(file: &dyn Source, name: &str, rows: usize, row_len: usize) -> Result<Matrix, Error> {
    let matrix = file.matrix(name)?;
    let shape = matrix.weight().shape();
    if shape.extents() == [rows, row_len] {
        return Ok(matrix);
    }
    Err(Error::TensorShape { name: name.to_owned(), expected: format!("[{rows}, {row_len}]"), found: format!("{shape:?}") })
}

/// A small vector of exactly `len` elements, de-quantised: norms are read by every row and take no room.
pub(crate) fn vector(file: &dyn Source, name: &str, len: usize) -> Result<Vec<f32>, Error> {
    let view = file.tensor(name)?;
    if view.shape().extents() != [len] || !matches!(view.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        let found = format!("{:?} of {}", view.shape(), view.dtype());
        return Err(Error::TensorShape { name: name.to_owned(), expected: format!("[{len}] of F32, F16 or BF16"), found });
    }
    let mut values = vec![0.0; len];
    driftwood_compute::dequantise_row(view.dtype(), view.bytes(), &mut values);
    Ok(values)
}

/// Refuses a file that asks for a way of rope scaling that its family does not have.
fn refuse_rope_scaling(file: &dyn Source, architecture: &str) -> Result<(), Error> {
    let key = format!("{architecture}.rope.scaling.type");
    match file.optional_string(&key)? {
        None | Some("none") => {}
        Some(other) => return Err(unsupported("rope scaling", other.to_owned())),
    }
    for name in ["rope_factors_long.weight", "rope_factors_short.weight"] {
        if file.has_tensor(name) {
            return Err(unsupported("rope scaling by tensor", name.to_owned()));
        }
    }
    Ok(())
}

/// A feature of a file that its family does not have here.
fn unsupported(what: &'static str, got: impl Into<String>) -> Error {
    Error::Unsupported { what, got: got.into(), supported: "files without it".to_owned() }
}
