//! GGUF, the model file: typed metadata and tensors as views, over a mapping that is never copied.
//!
//! The format is specified in <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>; versions 2 and 3 are read, both little-endian.
//! A file is hostile until [`GgufFile::parse`] has returned: every count, length, offset and extent is checked against the file's own
//! size and against `limits.rs` before anything is allocated for it. Afterwards nothing is checked again.
//!
//! Top down: the file and its getters, values, string arrays, then the reader that does the checking.

use crate::error::Error;
use crate::limits::{
    GGUF_ALIGNMENT_BYTES_MAX, GGUF_ARRAY_DEPTH_MAX, GGUF_ELEMENTS_MAX, GGUF_KEY_BYTES_MAX, GGUF_KEYS_MAX, GGUF_RANK_MAX,
    GGUF_TENSOR_NAME_BYTES_MAX, GGUF_TENSORS_MAX,
};
use driftwood_region::{DType, Region, Shape, View};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A parsed GGUF file. Tensors and large arrays stay in the mapping, which lives as long as any view of it.
#[derive(Clone, Debug)]
pub struct GgufFile {
    file: View,
    version: u32,
    metadata: BTreeMap<Box<str>, Value>,
    tensors: BTreeMap<Box<str>, View>,
}

impl GgufFile {
    /// Maps and parses the file at `path`.
    ///
    /// # Errors
    /// If it cannot be mapped, or as [`GgufFile::parse`].
    pub fn open(path: &Path) -> Result<GgufFile, Error> {
        let region = Region::map_path(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Self::parse(Arc::new(region))
    }

    /// Parses a mapped file.
    ///
    /// # Errors
    /// If the file is truncated, contradicts the format, exceeds a limit, or has a tensor type that this crate does not read.
    pub fn parse(region: Arc<Region>) -> Result<GgufFile, Error> {
        let file = View::whole(&region)?;
        let mut reader = Reader::new(file.bytes());
        let header = reader.header()?;
        let metadata = reader.metadata(header.keys)?;
        let infos = reader.tensor_infos(header.tensors)?;
        let data_start = data_start(&metadata, reader.at)?;
        let tensors = place_tensors(&region, infos, data_start)?;
        Ok(GgufFile { version: header.version, metadata, tensors, file })
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The whole file as bytes.
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// The same as a view, which keeps the mapping.
    pub(crate) fn view(&self) -> &View {
        &self.file
    }

    /// Every key with its value, sorted by key.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (&**key, value))
    }

    /// Every tensor with its name, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &View)> {
        self.tensors.iter().map(|(name, view)| (&**name, view))
    }

    /// The tensor of this name. Extents are outermost first: a weight is (rows, row_len).
    ///
    /// # Errors
    /// [`Error::TensorMissing`].
    pub fn tensor(&self, name: &str) -> Result<&View, Error> {
        self.tensors.get(name).ok_or_else(|| Error::TensorMissing { tensor: name.to_owned() })
    }

    /// Whether there is a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A key's value as an unsigned integer, whatever integer type the file stores it in.
    ///
    /// # Errors
    /// [`Error::KeyMissing`], or [`Error::KeyType`] if the value is no integer or does not fit.
    pub fn u32(&self, key: &str) -> Result<u32, Error> {
        required(key, self.optional_u32(key)?)
    }

    /// As [`GgufFile::u32`], `None` where the key is absent.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn optional_u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.typed(key, "an integer of 32 bits", |v| v.as_integer().and_then(|i| u32::try_from(i).ok()))
    }

    /// A key's value as a float, stored in either precision.
    ///
    /// # Errors
    /// [`Error::KeyMissing`] or [`Error::KeyType`].
    pub fn f32(&self, key: &str) -> Result<f32, Error> {
        required(key, self.optional_f32(key)?)
    }

    /// As [`GgufFile::f32`], `None` where the key is absent.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn optional_f32(&self, key: &str) -> Result<Option<f32>, Error> {
        self.typed(key, "a float", |v| match *v {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32),
            _ => None,
        })
    }

    /// A key's value as a truth value, `None` where the key is absent.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "a bool", |v| if let Value::Bool(b) = *v { Some(b) } else { None })
    }

    /// A key's value as text.
    ///
    /// # Errors
    /// [`Error::KeyMissing`] or [`Error::KeyType`].
    pub fn string(&self, key: &str) -> Result<&str, Error> {
        required(key, self.optional_string(key)?)
    }

    /// As [`GgufFile::string`], `None` where the key is absent.
    ///
    /// # Errors
    /// [`Error::KeyType`].
    pub fn optional_string(&self, key: &str) -> Result<Option<&str>, Error> {
        let span = self.typed(key, "a string", |v| if let Value::String(span) = *v { Some(span) } else { None })?;
        Ok(span.map(|span| text(self.bytes(), span)))
    }

    /// A key's value as an array of strings, read lazily from the mapping.
    ///
    /// # Errors
    /// [`Error::KeyMissing`] or [`Error::KeyType`].
    pub fn strings(&self, key: &str) -> Result<Strings<'_>, Error> {
        let array = self.typed(key, "an array of strings", |v| v.as_array(|t| t == ValueType::String))?;
        let Array { len, start_bytes, .. } = required(key, array)?;
        Ok(Strings { file: self.bytes(), at: start_bytes, left: len })
    }

    /// A key's value as an array of integers of whatever type, or one integer as an array of one.
    ///
    /// # Errors
    /// [`Error::KeyMissing`] or [`Error::KeyType`].
    pub fn integers(&self, key: &str) -> Result<impl ExactSizeIterator<Item = i128> + '_, Error> {
        let array = required(key, self.typed(key, "an array of integers", |v| v.as_array(ValueType::is_integer))?)?;
        Ok(self.scalars(array).map(|v| v.as_integer().expect("checked: an integer type")))
    }

    /// A key's value as an array of single-precision floats.
    ///
    /// # Errors
    /// [`Error::KeyMissing`] or [`Error::KeyType`].
    pub fn floats(&self, key: &str) -> Result<impl ExactSizeIterator<Item = f32> + '_, Error> {
        let array = required(key, self.typed(key, "an array of f32", |v| v.as_array(|t| t == ValueType::F32))?)?;
        let bytes = &self.bytes()[array.start_bytes..array.end_bytes];
        Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)))
    }

    /// A key's value as an array of truth values.
    ///
    /// # Errors
    /// [`Error::KeyMissing`] or [`Error::KeyType`].
    pub fn bools(&self, key: &str) -> Result<impl ExactSizeIterator<Item = bool> + '_, Error> {
        let array = required(key, self.typed(key, "an array of bools", |v| v.as_array(|t| t == ValueType::Bool))?)?;
        Ok(self.bytes()[array.start_bytes..array.end_bytes].iter().map(|byte| *byte != 0))
    }

    fn scalars(&self, array: Array) -> impl ExactSizeIterator<Item = Value> + '_ {
        let element_bytes = array.element.scalar_bytes().expect("a scalar type");
        let bytes = &self.bytes()[array.start_bytes..array.end_bytes];
        bytes.chunks_exact(element_bytes).map(move |b| scalar(array.element, b))
    }

    fn typed<T>(&self, key: &str, expected: &'static str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, Error> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let wrong = || Error::KeyType { key: key.to_owned(), expected, got: value.to_string() };
        read(value).map(Some).ok_or_else(wrong)
    }
}

fn required<T>(key: &str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| Error::KeyMissing { key: key.to_owned() })
}

/// The type of a metadata value, numbered as in the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // the names say it
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    fn is_integer(self) -> bool {
        use ValueType::*;
        matches!(self, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
    }

    fn scalar_bytes(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }

    fn name(self) -> &'static str {
        ["u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"][self as usize]
    }
}

/// Where a string lies in the file.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The first byte, from the start of the file.
    pub start_bytes: usize,
    /// How many there are.
    pub len_bytes: usize,
}

/// Where an array lies in the file, and of what it is.
#[derive(Clone, Copy, Debug)]
pub struct Array {
    element: ValueType,
    len: usize,
    start_bytes: usize,
    end_bytes: usize,
}

/// A metadata value. Strings and arrays are places in the mapping; [`GgufFile`]'s getters read them.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // the names say it
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(Span),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(x) => x.into(),
            Value::I8(x) => x.into(),
            Value::U16(x) => x.into(),
            Value::I16(x) => x.into(),
            Value::U32(x) => x.into(),
            Value::I32(x) => x.into(),
            Value::U64(x) => x.into(),
            Value::I64(x) => x.into(),
            _ => return None,
        })
    }

    fn as_array(&self, accepts: impl Fn(ValueType) -> bool) -> Option<Array> {
        if let Value::Array(array) = *self { accepts(array.element).then_some(array) } else { None }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::F32(x) => write!(f, "the f32 {x}"),
            Value::F64(x) => write!(f, "the f64 {x}"),
            Value::Bool(x) => write!(f, "the bool {x}"),
            Value::String(span) => write!(f, "a string of {} bytes", span.len_bytes),
            Value::Array(array) => write!(f, "an array of {} {}", array.len, array.element.name()),
            integer => write!(f, "the integer {}", integer.as_integer().unwrap_or_default()),
        }
    }
}

/// The strings of an array, in order, borrowed from the mapping.
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    file: &'a [u8],
    at: usize,
    left: usize,
}

impl Strings<'_> {
    /// Where the next string lies in the file.
    pub(crate) fn next_span(&mut self) -> Option<Span> {
        self.left = self.left.checked_sub(1)?;
        let span = Span { start_bytes: self.at + 8, len_bytes: string_len(self.file, self.at) };
        self.at = span.start_bytes + span.len_bytes;
        Some(span)
    }
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.next_span().map(|span| text(self.file, span))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// The length that stands before a string. The parse has checked that it fits.
fn string_len(file: &[u8], at: usize) -> usize {
    u64::from_le_bytes(*file[at..].first_chunk().expect("checked when parsed")) as usize
}

fn text(file: &[u8], span: Span) -> &str {
    std::str::from_utf8(&file[span.start_bytes..][..span.len_bytes]).expect("checked when parsed")
}

/// A name from a file as an error may print it: escaped, and not endless.
pub(crate) fn printable(name: &str) -> String {
    let mut shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().nth(80).is_some() {
        shown.push_str("..");
    }
    shown
}

fn scalar(kind: ValueType, bytes: &[u8]) -> Value {
    macro_rules! number {
        ($t:ty) => {
            <$t>::from_le_bytes(bytes.try_into().expect("as long as the type"))
        };
    }
    match kind {
        ValueType::U8 => Value::U8(bytes[0]),
        ValueType::I8 => Value::I8(bytes[0] as i8),
        ValueType::U16 => Value::U16(number!(u16)),
        ValueType::I16 => Value::I16(number!(i16)),
        ValueType::U32 => Value::U32(number!(u32)),
        ValueType::I32 => Value::I32(number!(i32)),
        ValueType::F32 => Value::F32(number!(f32)),
        ValueType::Bool => Value::Bool(bytes[0] != 0),
        ValueType::U64 => Value::U64(number!(u64)),
        ValueType::I64 => Value::I64(number!(i64)),
        ValueType::F64 => Value::F64(number!(f64)),
        ValueType::String | ValueType::Array => unreachable!("not a scalar"),
    }
}

struct Header {
    version: u32,
    tensors: u64,
    keys: u64,
}

struct TensorInfo<'a> {
    name: &'a str,
    shape: Shape,
    dtype: DType,
    offset_bytes: u64, // from the start of the data section
}

/// Walks the file's head. Nothing is read that has not been checked to lie in the file.
struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    elements_left: u64,
}

impl<'a> Reader<'a> {
    fn new(file: &'a [u8]) -> Self {
        Reader { file, at: 0, elements_left: GGUF_ELEMENTS_MAX }
    }

    fn header(&mut self) -> Result<Header, Error> {
        let magic = self.take(4, "the magic number")?;
        if magic != b"GGUF" {
            return Err(Error::NotGguf { why: format!("it begins with {}", magic.escape_ascii()) });
        }
        let version = self.u32("the version")?;
        if version.swap_bytes() <= 3 {
            return Err(Error::NotGguf { why: "it is big-endian".to_owned() });
        }
        if !(2..=3).contains(&version) {
            return Err(Error::NotGguf { why: format!("its version is {version}") });
        }
        let tensors = bounded(self.u64("the tensor count")?, GGUF_TENSORS_MAX, "tensors")?;
        let keys = bounded(self.u64("the key count")?, GGUF_KEYS_MAX, "keys")?;
        Ok(Header { version, tensors, keys })
    }

    fn metadata(&mut self, keys: u64) -> Result<BTreeMap<Box<str>, Value>, Error> {
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = self.string(GGUF_KEY_BYTES_MAX, "bytes in a key")?;
            let kind = self.value_type(key)?;
            let value = self.value(kind, key, 0)?;
            match metadata.entry(key.into()) {
                Entry::Vacant(entry) => entry.insert(value),
                Entry::Occupied(_) => return Err(Error::Duplicate { what: "key", name: printable(key) }),
            };
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: ValueType, key: &str, depth: usize) -> Result<Value, Error> {
        match kind {
            ValueType::String => {
                let text = self.string(u64::MAX, "bytes in a string")?;
                Ok(Value::String(Span { start_bytes: self.at - text.len(), len_bytes: text.len() }))
            }
            ValueType::Array if depth == GGUF_ARRAY_DEPTH_MAX => {
                Err(Error::Malformed { why: format!("the key `{}` nests arrays too deeply", printable(key)) })
            }
            ValueType::Array => self.array(key, depth + 1).map(Value::Array),
            _ => {
                let len_bytes = kind.scalar_bytes().expect("neither string nor array");
                Ok(scalar(kind, self.take(len_bytes as u64, "a value")?))
            }
        }
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Array, Error> {
        let element = self.value_type(key)?;
        let len = self.u64("an array's length")?;
        if len > self.elements_left {
            return Err(Error::TooMany { what: "array elements", got: len, max: GGUF_ELEMENTS_MAX });
        }
        self.elements_left -= len;
        let start_bytes = self.at;
        if let Some(element_bytes) = element.scalar_bytes() {
            self.take(len * element_bytes as u64, "an array")?;
        } else {
            self.available(len * 8, "an array")?; // a length at least
            for _ in 0..len {
                self.value(element, key, depth)?;
            }
        }
        Ok(Array { element, len: len as usize, start_bytes, end_bytes: self.at })
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType, Error> {
        let number = self.u32("a value's type")?;
        let unknown = || Error::Malformed { why: format!("the key `{}` has the unknown type {number}", printable(key)) };
        ValueType::ALL.get(number as usize).copied().ok_or_else(unknown)
    }

    fn tensor_infos(&mut self, tensors: u64) -> Result<Vec<TensorInfo<'a>>, Error> {
        self.available(tensors * 32, "the tensor table")?; // 8 name, 4 rank, 8 extent, 4 type, 8 offset at least
        (0..tensors).map(|_| self.tensor_info()).collect()
    }

    fn tensor_info(&mut self) -> Result<TensorInfo<'a>, Error> {
        let name = self.string(GGUF_TENSOR_NAME_BYTES_MAX, "bytes in a tensor's name")?;
        let malformed = |why: &str| Error::Malformed { why: format!("tensor `{}` {why}", printable(name)) };
        let rank = self.u32("a tensor's rank")?;
        if rank == 0 || u64::from(rank) > GGUF_RANK_MAX {
            return Err(malformed(&format!("has {rank} extents; 1 to {GGUF_RANK_MAX} are possible")));
        }
        let mut extents = [0; GGUF_RANK_MAX as usize];
        let extents = &mut extents[..rank as usize];
        for extent in extents.iter_mut().rev() {
            let value = self.u64("a tensor's extent")?;
            *extent = usize::try_from(value).ok().filter(|&e| e > 0).ok_or_else(|| malformed(&format!("has an extent of {value}")))?;
        }
        let dtype = dtype(name, self.u32("a tensor's type")?)?;
        let offset_bytes = self.u64("a tensor's offset")?;
        let shape = Shape::new(extents).ok_or_else(|| malformed("has more elements than the address space"))?;
        Ok(TensorInfo { name, shape, dtype, offset_bytes })
    }

    fn string(&mut self, max_bytes: u64, what: &'static str) -> Result<&'a str, Error> {
        let len_bytes = bounded(self.u64("a string's length")?, max_bytes, what)?;
        let at = self.at;
        let bytes = self.take(len_bytes, "a string")?;
        std::str::from_utf8(bytes).map_err(|_| Error::Malformed { why: format!("the string at byte {at} is not UTF-8") })
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("4 bytes")))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("8 bytes")))
    }

    fn take(&mut self, len_bytes: u64, what: &'static str) -> Result<&'a [u8], Error> {
        self.available(len_bytes, what)?;
        let bytes = &self.file[self.at..][..len_bytes as usize];
        self.at += bytes.len();
        Ok(bytes)
    }

    fn available(&self, need_bytes: u64, what: &'static str) -> Result<(), Error> {
        let file_bytes = self.file.len() as u64;
        if need_bytes > file_bytes - self.at as u64 {
            return Err(Error::Truncated { what, offset_bytes: self.at as u64, need_bytes, file_bytes });
        }
        Ok(())
    }
}

fn bounded(got: u64, max: u64, what: &'static str) -> Result<u64, Error> {
    if got <= max { Ok(got) } else { Err(Error::TooMany { what, got, max }) }
}

/// Where tensors begin: after the tensor table, rounded up to the file's alignment.
fn data_start(metadata: &BTreeMap<Box<str>, Value>, table_end_bytes: usize) -> Result<u64, Error> {
    let alignment_bytes = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => value
            .as_integer()
            .and_then(|a| u64::try_from(a).ok())
            .filter(|&a| a.is_power_of_two() && a <= GGUF_ALIGNMENT_BYTES_MAX)
            .ok_or_else(|| Error::KeyType {
                key: "general.alignment".to_owned(),
                expected: "a power of two up to 1 MiB",
                got: value.to_string(),
            })?,
    };
    Ok((table_end_bytes as u64).next_multiple_of(alignment_bytes))
}

/// GGML's numbers and names of tensor types, with ours where the kernels read them.
const TENSOR_TYPES: [(u32, &str, Option<DType>); 32] = [
    (0, "F32", Some(DType::F32)),
    (1, "F16", Some(DType::F16)),
    (2, "Q4_0", Some(DType::Q4_0)),
    (3, "Q4_1", Some(DType::Q4_1)),
    (6, "Q5_0", Some(DType::Q5_0)),
    (7, "Q5_1", Some(DType::Q5_1)),
    (8, "Q8_0", Some(DType::Q8_0)),
    (9, "Q8_1", None),
    (10, "Q2_K", None),
    (11, "Q3_K", None),
    (12, "Q4_K", Some(DType::Q4_K)),
    (13, "Q5_K", Some(DType::Q5_K)),
    (14, "Q6_K", Some(DType::Q6_K)),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", None),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", None),
    (24, "I8", None),
    (25, "I16", None),
    (26, "I32", None),
    (27, "I64", None),
    (28, "F64", None),
    (29, "IQ1_M", None),
    (30, "BF16", Some(DType::BF16)),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (39, "MXFP4", None),
];

fn dtype(tensor: &str, number: u32) -> Result<DType, Error> {
    let known = TENSOR_TYPES.iter().find(|(n, _, _)| *n == number);
    if let Some((_, _, Some(dtype))) = known {
        return Ok(*dtype);
    }
    let got = known.map_or_else(|| format!("number {number}"), |(_, name, _)| (*name).to_owned());
    let supported: Vec<_> = TENSOR_TYPES.iter().filter(|t| t.2.is_some()).map(|t| t.1).collect();
    Err(Error::TensorType { tensor: printable(tensor), got, supported: supported.join(", ") })
}

fn place_tensors(region: &Arc<Region>, infos: Vec<TensorInfo<'_>>, data_start: u64) -> Result<BTreeMap<Box<str>, View>, Error> {
    let mut tensors: BTreeMap<Box<str>, View> = BTreeMap::new();
    for info in infos {
        let view = place_tensor(region, &info, data_start)?;
        match tensors.entry(info.name.into()) {
            Entry::Vacant(entry) => entry.insert(view),
            Entry::Occupied(_) => return Err(Error::Duplicate { what: "tensor", name: printable(info.name) }),
        };
    }
    refuse_overlaps(tensors.iter().map(|(name, view)| (&**name, view)))?;
    Ok(tensors)
}

fn place_tensor(region: &Arc<Region>, info: &TensorInfo<'_>, data_start: u64) -> Result<View, Error> {
    let tensor = || printable(info.name);
    let row_bytes = info.dtype.bytes_of(info.shape.row_len());
    let need_bytes = row_bytes.and_then(|b| b.checked_mul(info.shape.rows())).ok_or_else(|| Error::Malformed {
        why: format!("tensor `{}` of shape {:?} cannot be stored as {}", tensor(), info.shape, info.dtype),
    })? as u64;
    let offset_bytes = data_start.saturating_add(info.offset_bytes);
    let file_bytes = region.open_bytes() as u64;
    if offset_bytes.checked_add(need_bytes).is_none_or(|end| end > file_bytes) {
        return Err(Error::TensorOutside { tensor: tensor(), offset_bytes, need_bytes, file_bytes });
    }
    Ok(View::new(region, offset_bytes as usize, info.dtype, info.shape)?)
}

/// Refuses tensors that share bytes.
pub(crate) fn refuse_overlaps<'a>(tensors: impl Iterator<Item = (&'a str, &'a View)>) -> Result<(), Error> {
    let mut placed: Vec<_> = tensors.map(|(name, view)| (view.offset_bytes(), view.bytes().len(), name)).collect();
    placed.sort_unstable();
    for pair in placed.windows(2) {
        let ((offset, len, first), (next, _, second)) = (pair[0], pair[1]);
        if offset + len > next {
            return Err(Error::TensorOverlap { first: printable(first), second: printable(second) });
        }
    }
    Ok(())
}
