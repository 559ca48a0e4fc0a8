//! The safetensors header: written with a fixed beginning, read with suspicion.
//!
//! The file begins with 8 bytes (the header's length, little-endian) and then, byte for byte, [`BEGINNING`], the format version,
//! [`HASH_KEY`], 64 hex digits and the rest of the JSON. So the version can be read before anything else is understood, and the
//! digits of the header's own hash have a place that needs no search.

use crate::limits::*;
use crate::manifest::require;
use crate::{Error, FORMAT_VERSION, FORMAT_VERSION_AT_REST, Hash, Manifest};
use driftwood_region::{DType, Shape};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// Data starts at a multiple of this: the page size of every system, with room.
pub(crate) const DATA_ALIGN_BYTES: u64 = 64 << 10;
/// Enough of a file to find the version, the header's hash and its length.
pub(crate) const START_BYTES: usize = 256;
/// Padding tensors are named so, with a number.
pub(crate) const PADDING_PREFIX: &str = "padding.";

const BEGINNING: &str = r#"{"__metadata__":{"driftwood.format":""#;
const HASH_KEY: &str = r#"","driftwood.header_blake3":""#;
const MANIFEST_KEY: &str = "driftwood.manifest";
const LENGTH_BYTES: usize = 8;
const HASH_DIGITS: usize = 64;

/// One tensor, its place counted from the start of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub name: String,
    pub dtype: DType,
    pub shape: Shape,
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

/// A header whose hash agrees and whose tensors follow one another without holes.
#[derive(Debug)]
pub(crate) struct Header {
    pub manifest: Manifest,
    /// In the order of the file.
    pub tensors: Vec<Tensor>,
}

/// The header of these tensors, whose offsets count from the start of the data, padded and sealed with its hash.
///
/// Its length depends on the manifest only through what is not a hash.
pub(crate) fn emit(manifest: &Manifest, tensors: &[Tensor]) -> Vec<u8> {
    let zeros = "0".repeat(HASH_DIGITS);
    let version = if manifest.journal_bytes > 0 { FORMAT_VERSION } else { FORMAT_VERSION_AT_REST };
    let manifest = serde_json::to_string(manifest).expect("a manifest has string keys only");
    let manifest = serde_json::to_string(&manifest).expect("a string");
    let mut json = format!(r#"{BEGINNING}{version}{HASH_KEY}{zeros}","{MANIFEST_KEY}":{manifest}}}"#);
    for Tensor { name, dtype, shape, offset_bytes, len_bytes } in tensors {
        let (shape, end_bytes) = (shape.extents(), offset_bytes + len_bytes);
        json += &format!(r#","{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{offset_bytes},{end_bytes}]}}"#);
    }
    json.push('}');
    let bytes = (LENGTH_BYTES + json.len()).next_multiple_of(DATA_ALIGN_BYTES as usize);
    let mut header = Vec::with_capacity(bytes);
    header.extend_from_slice(&((bytes - LENGTH_BYTES) as u64).to_le_bytes());
    header.extend_from_slice(json.as_bytes());
    header.resize(bytes, b' ');
    let hash = Hash::of(&header).to_string();
    header[hash_place(version)..][..HASH_DIGITS].copy_from_slice(hash.as_bytes());
    header
}

/// Where the digits of the header's own hash stand.
fn hash_place(version: u32) -> usize {
    LENGTH_BYTES + BEGINNING.len() + version.to_string().len() + HASH_KEY.len()
}

/// Bytes of the header, length field included, of a file that begins with `start` ([`START_BYTES`] of it, or all if it has less).
///
/// # Errors
/// If it is no snapshot, of a later format, or cut short within its header.
pub(crate) fn size(start: &[u8], file_bytes: u64) -> Result<u64, Error> {
    at_most_file(file_bytes)?;
    let text = start.get(LENGTH_BYTES..).unwrap_or_default();
    let known = text.len().min(BEGINNING.len());
    if text[..known] != BEGINNING.as_bytes()[..known] {
        let why = if text[0] == b'{' { "it is a safetensors file of another program" } else { "it is no safetensors file" };
        return Err(Error::NotASnapshot { why });
    }
    if start.len() < START_BYTES {
        return Err(Error::Truncated { expected_bytes: DATA_ALIGN_BYTES, found_bytes: file_bytes });
    }
    check_version(&text[BEGINNING.len()..])?;
    let length = u64::from_le_bytes(start[..LENGTH_BYTES].try_into().expect("eight bytes"));
    let bytes = length.checked_add(LENGTH_BYTES as u64).filter(|&b| b <= HEADER_BYTES_MAX);
    let bytes = bytes.ok_or_else(|| Error::malformed("header length", format!("{length} exceeds the limit of {HEADER_BYTES_MAX}")))?;
    require(bytes.is_multiple_of(DATA_ALIGN_BYTES) && bytes > 0, || {
        ("header length".into(), "data must start at a multiple of 64 KiB".into())
    })?;
    if bytes > file_bytes {
        return Err(Error::Truncated { expected_bytes: bytes, found_bytes: file_bytes });
    }
    Ok(bytes)
}

/// Offsets below this bound can be added without overflow.
fn at_most_file(file_bytes: u64) -> Result<(), Error> {
    crate::manifest::at_most("file", file_bytes, FILE_BYTES_MAX)
}

/// Reads the digits that follow [`BEGINNING`].
fn check_version(text: &[u8]) -> Result<(), Error> {
    let digits = text.split(|c| !c.is_ascii_digit()).next().unwrap_or_default();
    let found = std::str::from_utf8(digits).ok().and_then(|d| d.parse::<u32>().ok()).filter(|&v| v > 0);
    let found = found.ok_or_else(|| Error::malformed("driftwood.format", "is no version number"))?;
    if found > FORMAT_VERSION {
        return Err(Error::FutureVersion { found, supported: FORMAT_VERSION });
    }
    require(found.to_string().len() == digits.len(), || ("driftwood.format".into(), "has leading zeros".into()))
}

/// Understands a whole header of a file of `file_bytes`.
///
/// # Errors
/// If its hash disagrees, or it is not what [`emit`] writes.
pub(crate) fn parse(header: &[u8], file_bytes: u64) -> Result<Header, Error> {
    check_hash(header)?;
    let Json { manifest, entries } = parse_json(&header[LENGTH_BYTES..])?;
    let bytes = header.len() as u64;
    let mut tensors = entries.into_iter().map(|(name, entry)| entry.into_tensor(name, bytes)).collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by_key(|t| t.offset_bytes);
    check_contiguous(&tensors, bytes, file_bytes)?;
    Ok(Header { manifest, tensors })
}

/// Holds the header against its own hash. Nothing of it was believed before but its length and its version.
fn check_hash(header: &[u8]) -> Result<(), Error> {
    let place = hash_place(FORMAT_VERSION);
    let key = &header[place - HASH_KEY.len()..place];
    require(key == HASH_KEY.as_bytes(), || ("driftwood.header_blake3".into(), "does not follow the version".into()))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..place]).update(&[b'0'; HASH_DIGITS]).update(&header[place + HASH_DIGITS..]);
    let found = std::str::from_utf8(&header[place..][..HASH_DIGITS]).ok().and_then(|digits| digits.parse::<Hash>().ok());
    if found != Some(Hash(*hasher.finalize().as_bytes())) {
        return Err(Error::Altered { what: "the header".into() });
    }
    Ok(())
}

/// A header as JSON, names known to be unique.
struct Json {
    manifest: Manifest,
    entries: BTreeMap<String, Entry>,
}

/// Splits the header into manifest and tensors.
fn parse_json(json: &[u8]) -> Result<Json, Error> {
    let Pairs(pairs) = serde_json::from_slice::<Pairs<Value>>(json).map_err(|e| Error::malformed("header", e.to_string()))?;
    let (mut metadata, mut entries) = (None, BTreeMap::new());
    crate::manifest::at_most("header", pairs.len(), TENSORS_MAX)?;
    for (name, value) in pairs {
        let twice = match value {
            Value::Metadata(Pairs(keys)) if name == "__metadata__" => metadata.replace(keys).is_some(),
            Value::Entry(entry) if name != "__metadata__" => entries.insert(name.clone(), entry).is_some(),
            _ => return Err(Error::malformed(name, "is no tensor")),
        };
        require(!twice, || (name, "two tensors have this name".into()))?;
    }
    let manifest = parse_manifest(metadata.unwrap_or_default())?;
    Ok(Json { manifest, entries })
}

/// Metadata keys that this version does not know are ignored.
fn parse_manifest(metadata: Vec<(String, String)>) -> Result<Manifest, Error> {
    crate::manifest::at_most("__metadata__", metadata.len(), METADATA_KEYS_MAX)?;
    let mut found = metadata.iter().filter(|(key, _)| key == MANIFEST_KEY);
    let (Some((_, text)), None) = (found.next(), found.next()) else {
        return Err(Error::malformed(MANIFEST_KEY, "must be there once"));
    };
    let manifest: Manifest = serde_json::from_str(text).map_err(|e| Error::malformed(MANIFEST_KEY, e.to_string()))?;
    manifest.check()?;
    Ok(manifest)
}

/// What stands behind a name of the header.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Entry(Entry),
    Metadata(Pairs<String>),
}

/// A tensor as the header describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Entry {
    /// Checks dtype, shape and bytes against one another.
    fn into_tensor(self, name: String, data_start_bytes: u64) -> Result<Tensor, Error> {
        let bad = |why: &str| Error::malformed(name.clone(), why);
        let dtypes = [DType::U8, DType::I8, DType::U32, DType::F16, DType::BF16, DType::F32];
        let dtype = dtypes.into_iter().find(|d| d.name() == self.dtype).ok_or_else(|| bad("its dtype is not one of this format"))?;
        let extents: Vec<usize> = self.shape.iter().map(|&e| usize::try_from(e).unwrap_or(usize::MAX)).collect();
        let shape = Shape::new(&extents).ok_or_else(|| bad("its shape has too many or too large extents"))?;
        let [begin, end] = self.data_offsets;
        let len_bytes = end.checked_sub(begin).ok_or_else(|| bad("it ends before it begins"))?;
        let offset_bytes = begin.checked_add(data_start_bytes).ok_or_else(|| bad("its offset overflows"))?;
        let expected = shape.len().checked_mul(dtype.block_bytes());
        if expected.map(|b| b as u64) != Some(len_bytes) || len_bytes == 0 {
            return Err(bad("its shape and dtype do not make its bytes"));
        }
        Ok(Tensor { name, dtype, shape, offset_bytes, len_bytes })
    }
}

/// Tensors must follow one another from the start of the data to the end of the file.
fn check_contiguous(tensors: &[Tensor], data_start_bytes: u64, file_bytes: u64) -> Result<(), Error> {
    let mut end_bytes = data_start_bytes;
    for tensor in tensors {
        require(tensor.offset_bytes == end_bytes, || (tensor.name.clone(), "a hole or another tensor stands before it".into()))?;
        end_bytes = end_bytes.checked_add(tensor.len_bytes).ok_or_else(|| Error::malformed(tensor.name.clone(), "its end overflows"))?;
    }
    match end_bytes.cmp(&file_bytes) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(Error::Truncated { expected_bytes: end_bytes, found_bytes: file_bytes }),
        std::cmp::Ordering::Less => {
            Err(Error::Altered { what: format!("the file's length ({file_bytes} bytes where {end_bytes} were written)") })
        }
    }
}

/// A JSON object as it stands: serde's maps would let the last of two equal keys win.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

/// Collects the pairs of an object.
struct PairsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
    type Value = Pairs<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}
