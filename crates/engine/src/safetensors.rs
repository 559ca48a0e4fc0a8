//! Safetensors, Hugging Face's weight file: tensors as views over a mapping that is never copied.
//!
//! The format is specified in <https://github.com/huggingface/safetensors>: eight bytes of length, a JSON header, data. A file is hostile
//! until [`parse`] has returned: every length, shape and extent is checked against the file's own size. Data may begin at any byte.

use crate::error::Error;
use crate::gguf::{printable, refuse_overlaps};
use crate::limits::{SAFETENSORS_HEADER_BYTES_MAX, SAFETENSORS_TENSORS_MAX};
use driftwood_region::{DType, Region, Shape, View};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

/// Tensors by name.
pub type Tensors = BTreeMap<Box<str>, Tensor>;

/// A tensor of a mapped file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its elements. Extents are outermost first: a weight is (rows, row_len).
    pub view: View,
    /// Its element type, where that is none that this crate reads: the view is of plain bytes then, and nothing is known of its shape.
    pub opaque: Option<Box<str>>,
}

/// What a Git checkout without Git LFS has in place of a large file.
const POINTER: &[u8] = b"version https://git-lfs";

/// Bytes of the length that a file begins with.
const LENGTH_BYTES: usize = 8;

/// The tensors of a mapped file.
///
/// # Errors
/// If the file is truncated, contradicts the format or exceeds a limit.
pub fn parse(region: &Arc<Region>) -> Result<Tensors, Error> {
    let file = View::whole(region)?;
    let (json, data_start) = header(file.bytes())?;
    let Header(entries) = serde_json::from_slice(json).map_err(|e| malformed(format!("its header is not understood: {e}")))?;
    if entries.len() > SAFETENSORS_TENSORS_MAX {
        return Err(Error::TooMany { what: "tensors", got: entries.len() as u64, max: SAFETENSORS_TENSORS_MAX as u64 });
    }
    let mut tensors = Tensors::new();
    for (name, stored) in entries {
        let tensor = place(region, &name, &stored, data_start)?;
        match tensors.entry(name.into()) {
            Entry::Vacant(entry) => entry.insert(tensor),
            Entry::Occupied(entry) => return Err(Error::Duplicate { what: "tensor", name: printable(entry.key()) }),
        };
    }
    refuse_overlaps(tensors.iter().map(|(name, tensor)| (&**name, &tensor.view)))?;
    Ok(tensors)
}

/// The header's JSON, and where data begins.
fn header(file: &[u8]) -> Result<(&[u8], usize), Error> {
    let file_bytes = file.len() as u64;
    if file.starts_with(POINTER) {
        return Err(malformed("it is a Git LFS pointer, not the weights; fetch them with `git lfs pull`".to_owned()));
    }
    let truncated = |what, offset_bytes, need_bytes| Error::Truncated { what, offset_bytes, need_bytes, file_bytes };
    let length = *file.first_chunk::<LENGTH_BYTES>().ok_or_else(|| truncated("the header's length", 0, LENGTH_BYTES as u64))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > SAFETENSORS_HEADER_BYTES_MAX {
        return Err(Error::TooMany { what: "bytes in its header", got: header_bytes, max: SAFETENSORS_HEADER_BYTES_MAX });
    }
    let end = LENGTH_BYTES + header_bytes as usize;
    let json = file.get(LENGTH_BYTES..end).ok_or_else(|| truncated("the header", LENGTH_BYTES as u64, header_bytes))?;
    Ok((json, end))
}

fn place(region: &Arc<Region>, name: &str, stored: &Stored, data_start: usize) -> Result<Tensor, Error> {
    let tensor = || printable(name);
    let [start, end] = stored.data_offsets;
    let out_of_order = || malformed(format!("tensor `{}` lies from byte {start} to {end}", tensor()));
    let stored_bytes = end.checked_sub(start).ok_or_else(out_of_order)?;
    let known = TYPES.into_iter().find(|t| t.name() == &*stored.dtype);
    let (dtype, extents) = match known {
        Some(dtype) => (dtype, &stored.shape[..]),
        None => (DType::U8, &[stored_bytes][..]),
    };
    let shape = extents.iter().map(|&e| usize::try_from(e).ok()).collect::<Option<Vec<_>>>().and_then(|e| Shape::new(&e));
    let shape = shape.ok_or_else(|| {
        malformed(format!("tensor `{}` has more than {} extents, or more elements than the address space", tensor(), Shape::RANK_MAX))
    })?;
    let need_bytes = dtype.bytes_of(shape.row_len()).and_then(|b| b.checked_mul(shape.rows())).map(|b| b as u64);
    if need_bytes != Some(stored_bytes) {
        return Err(malformed(format!("tensor `{}` of shape {shape:?} and type {dtype} lies from byte {start} to {end}", tensor())));
    }
    let (offset_bytes, file_bytes) = ((data_start as u64).saturating_add(start), region.open_bytes() as u64);
    if (data_start as u64).checked_add(end).is_none_or(|end| end > file_bytes) {
        return Err(Error::TensorOutside { tensor: tensor(), offset_bytes, need_bytes: stored_bytes, file_bytes });
    }
    let view = View::new(region, offset_bytes as usize, dtype, shape)?;
    Ok(Tensor { view, opaque: known.is_none().then(|| stored.dtype.as_str().into()) })
}

/// The element types that are read.
const TYPES: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::U32, DType::U8, DType::I8];

fn malformed(why: String) -> Error {
    Error::Malformed { why }
}

/// The header's tensors in its own order: a map would hide that a name occurs twice.
struct Header(Vec<(String, Stored)>);

#[derive(Deserialize)]
struct Stored {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names to tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
