//! Which tensor plays which part. The one place where the tensors of a header and its manifest are held against each other;
//! behind it every index and every shape is trusted.

use crate::header::{Header, PADDING_PREFIX, Tensor};
use crate::manifest::{BLOCK_ALIGN_BYTES, KvPool, Manifest, STORED_PAGE_BYTES, Session, require, tokens_tensor};
use crate::{Error, KvDType, header};
use driftwood_region::{DType, Shape};
use std::collections::{BTreeMap, HashSet};

/// Data of every tensor starts at a multiple of this, so that token ids can be read where they lie.
pub(crate) const TENSOR_ALIGN_BYTES: u64 = 64;
pub(crate) const MODULE_TENSOR: &str = "guest.module";
pub(crate) const PAGES_TENSOR: &str = "memory.pages";
pub(crate) const INDEX_TENSOR: &str = "memory.index";
pub(crate) const JOURNAL_TENSOR: &str = "journal";

/// The parts of a snapshot, as indices into the header's tensors.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Layout {
    pub module: Option<usize>,
    pub pages: Option<usize>,
    pub index: Option<usize>,
    pub journal: Option<usize>,
    /// For each pool; none if it has no blocks.
    pub pools: Vec<Option<usize>>,
    /// For each session; none if it has no tokens.
    pub tokens: Vec<Option<usize>>,
    /// For each session; none if its last block is full.
    pub tails: Vec<Option<usize>>,
    /// Every tensor with a hash of its own.
    pub hashed: Vec<usize>,
    pub padding: Vec<usize>,
}

/// A tensor as the manifest wants it; no shape where the extents cannot be one of this machine.
struct Expected {
    name: String,
    dtype: DType,
    shape: Option<Shape>,
}

impl Expected {
    fn new(name: impl Into<String>, dtype: DType, extents: &[u64]) -> Expected {
        let extents: Vec<usize> = extents.iter().map(|&e| usize::try_from(e).unwrap_or(usize::MAX)).collect();
        Expected { name: name.into(), dtype, shape: Shape::new(&extents) }
    }
}

/// Finds the part of every tensor.
///
/// # Errors
/// If one is missing, has another dtype, shape or place than the manifest says, or is covered by no hash.
pub(crate) fn assign(header: &Header) -> Result<Layout, Error> {
    let manifest = &header.manifest;
    let by_name: BTreeMap<&str, usize> = header.tensors.iter().enumerate().map(|(t, tensor)| (tensor.name.as_str(), t)).collect();
    let find = |expected: Expected| find(&header.tensors, &by_name, &expected);
    let mut layout = Layout::default();
    if let Some(guest) = &manifest.guest {
        let module = by_name.get(MODULE_TENSOR).map_or(0, |&t| header.tensors[t].len_bytes);
        layout.module = Some(find(Expected::new(MODULE_TENSOR, DType::U8, &[module]))?);
        let agreed = manifest.hashes.get(MODULE_TENSOR) == Some(&guest.module_hash);
        require(agreed, || ("guest.module_hash".into(), "differs from the tensor's hash".into()))?;
        let pages = u64::from(guest.memory.stored_pages);
        if pages > 0 {
            layout.pages = Some(find(Expected::new(PAGES_TENSOR, DType::U8, &[pages, STORED_PAGE_BYTES as u64]))?);
            layout.index = Some(find(Expected::new(INDEX_TENSOR, DType::U32, &[pages]))?);
        }
    }
    if manifest.journal_bytes > 0 {
        layout.journal = Some(find(Expected::new(JOURNAL_TENSOR, DType::U8, &[manifest.journal_bytes]))?);
    }
    for pool in &manifest.pools {
        layout.pools.push((!pool.block_hashes.is_empty()).then(|| find(expected_blocks(pool))).transpose()?);
    }
    for session in &manifest.sessions {
        let tokens = Expected::new(tokens_tensor(session.state.handle), DType::U32, &[u64::from(session.tokens)]);
        layout.tokens.push((session.tokens > 0).then(|| find(tokens)).transpose()?);
        layout.tails.push(expected_tail(session, manifest)?.map(find).transpose()?);
    }
    cover(header, &mut layout)?;
    Ok(layout)
}

/// The tensor of that name, if it is what was expected.
fn find(tensors: &[Tensor], by_name: &BTreeMap<&str, usize>, expected: &Expected) -> Result<usize, Error> {
    let missing = || Error::malformed(expected.name.clone(), "the manifest names it, but there is no such tensor");
    let index = *by_name.get(expected.name.as_str()).ok_or_else(missing)?;
    let Tensor { name, dtype, shape, .. } = &tensors[index];
    let agrees = *dtype == expected.dtype && Some(*shape) == expected.shape;
    require(agrees, || (name.clone(), format!("{dtype} {shape:?} where the manifest says {} {:?}", expected.dtype, expected.shape)))?;
    Ok(index)
}

/// (block, layer, k or v, kv_head, token, head_dim), or (block, byte).
pub(crate) fn blocks_shape(pool: &KvPool) -> (DType, Vec<u64>) {
    let info = &pool.info;
    let blocks = pool.block_hashes.len() as u64;
    let extents = [info.layers, 2, info.kv_heads, info.block_tokens, info.head_dim].map(u64::from);
    match info.dtype {
        KvDType::F16 if info.is_typed() => (DType::F16, [&[blocks], &extents[..]].concat()),
        KvDType::F32 if info.is_typed() => (DType::F32, [&[blocks], &extents[..]].concat()),
        _ => (DType::U8, vec![blocks, info.block_bytes]),
    }
}

/// (layer, k or v, kv_head, tail token, head_dim), or the row's bytes last.
pub(crate) fn tail_shape(pool: &KvPool, tail_tokens: u32) -> (DType, [u64; 5]) {
    let info = &pool.info;
    let (dtype, row) = match info.dtype {
        KvDType::F16 => (DType::F16, u64::from(info.head_dim)),
        KvDType::F32 => (DType::F32, u64::from(info.head_dim)),
        KvDType::Q8 => (DType::U8, info.row_bytes()),
    };
    (dtype, [u64::from(info.layers), 2, u64::from(info.kv_heads), u64::from(tail_tokens), row])
}

/// The tensor of a pool that has blocks.
fn expected_blocks(pool: &KvPool) -> Expected {
    let (dtype, extents) = blocks_shape(pool);
    Expected::new(pool.tensor.clone(), dtype, &extents)
}

/// The tensor of a session's last rows, if there are any. It may be that of a fork, but its shape must fit this session. The manifest was
/// checked: the pool is there.
fn expected_tail(session: &Session, manifest: &Manifest) -> Result<Option<Expected>, Error> {
    let Some(name) = &session.tail else { return Ok(None) };
    let is_tail = name.strip_prefix("session.").is_some_and(|rest| rest.ends_with(".tail"));
    require(is_tail, || (format!("session.{}.tail", session.state.handle), "names a tensor that is no tail".into()))?;
    let (dtype, extents) = tail_shape(&manifest.pools[session.state.pool as usize], session.tail_tokens);
    Ok(Some(Expected::new(name.clone(), dtype, &extents)))
}

/// Every tensor must be padding, blocks with their own hashes, or have a hash; and each in its place.
fn cover(header: &Header, layout: &mut Layout) -> Result<(), Error> {
    let pools: HashSet<usize> = layout.pools.iter().flatten().copied().collect();
    for (t, tensor) in header.tensors.iter().enumerate() {
        let hashed = header.manifest.hashes.contains_key(&tensor.name);
        let is_padding = tensor.name.starts_with(PADDING_PREFIX);
        let bad = |why: &str| (tensor.name.clone(), why.to_owned());
        require(hashed != (is_padding || pools.contains(&t)), || bad("not covered by exactly one hash"))?;
        let align_bytes = if pools.contains(&t) { BLOCK_ALIGN_BYTES } else { TENSOR_ALIGN_BYTES };
        let aligned = is_padding || tensor.offset_bytes.is_multiple_of(align_bytes);
        require(aligned, || bad(&format!("does not start at a multiple of {align_bytes} bytes")))?;
        let small = tensor.dtype == DType::U8 && tensor.len_bytes < header::DATA_ALIGN_BYTES;
        require(!is_padding || small, || bad("padding must be U8 and less than 64 KiB"))?;
        if is_padding {
            layout.padding.push(t);
        } else if hashed {
            layout.hashed.push(t);
        }
    }
    let absent = header.manifest.hashes.len() - layout.hashed.len();
    require(absent == 0, || ("hashes".into(), format!("{absent} of them belong to no tensor")))
}
