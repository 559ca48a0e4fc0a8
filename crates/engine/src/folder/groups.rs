//! MLX's affine quantisation: which module has how many bits in groups of how many, as `config.json` says, checked against the shapes.

use super::{Object, wrong_type};
use crate::error::Error;
use crate::gguf::printable;
use driftwood_compute::Matrix;
use driftwood_region::{DType, Shape, View};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// How the elements of a module are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Groups {
    bits: usize,
    len: usize, // elements that share a scale and a bias
}

/// What `config.json` says of all modules.
#[derive(Debug, Default)]
pub(super) struct Quantisation {
    all: Option<Groups>,
    modules: BTreeMap<String, Option<Groups>>,
}

impl Quantisation {
    /// Reads `quantization`, which newer folders repeat as `quantization_config`.
    ///
    /// # Errors
    /// If it is not MLX's, or not affine.
    pub(super) fn read(config: &Object) -> Result<Quantisation, Error> {
        let get = |key: &str| config.get(key).filter(|value| !value.is_null());
        if let Some(method) = get("quantization_config").and_then(|q| q.get("quant_method")) {
            return Err(unsupported("quantization_config.quant_method", method, "MLX's affine groups, or floats"));
        }
        let Some((key, value)) = ["quantization", "quantization_config"].into_iter().find_map(|key| Some((key, get(key)?))) else {
            return Ok(Quantisation::default());
        };
        let table = value.as_object().ok_or_else(|| wrong_type(key, "an object", value))?;
        let all = Groups::read(key, table, None)?;
        let mut modules = BTreeMap::new();
        for (module, value) in table {
            let groups = match value {
                Value::Object(own) => Some(Groups::read(&format!("{key}.{module}"), own, Some(all))?),
                Value::Bool(quantised) => quantised.then_some(all),
                _ => continue,
            };
            modules.insert(module.clone(), groups);
        }
        Ok(Quantisation { all: Some(all), modules })
    }

    /// Whether any module may have groups.
    pub(super) fn is_any(&self) -> bool {
        self.all.is_some()
    }

    /// The groups of a module, by any of its names; `None` if it has none.
    pub(super) fn of(&self, names: &[String]) -> Option<Groups> {
        names.iter().find_map(|name| self.modules.get(name)).copied().unwrap_or(self.all)
    }

    /// A module that has an entry of its own and that `exists` does not know.
    pub(super) fn stray(&self, exists: impl Fn(&str) -> bool) -> Option<&str> {
        self.modules.keys().map(String::as_str).find(|module| !exists(module))
    }
}

impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MLX {} bits, groups of {}", self.bits, self.len)
    }
}

impl Groups {
    fn read(key: &str, table: &Object, default: Option<Groups>) -> Result<Groups, Error> {
        let mode = table.get("mode").unwrap_or(&Value::Null);
        if !mode.is_null() && mode != "affine" {
            return Err(unsupported("quantization.mode", mode, "affine"));
        }
        let number = |name: &str, expected: &'static str, allowed: &[usize], default: Option<usize>| {
            let value = table.get(name).unwrap_or(&Value::Null);
            let number = if value.is_null() { default } else { value.as_u64().map(|n| n as usize) };
            number.filter(|n| allowed.contains(n)).ok_or_else(|| wrong_type(&format!("{key}.{name}"), expected, value))
        };
        Ok(Groups {
            bits: number("bits", "2, 3, 4, 5, 6 or 8", &[2, 3, 4, 5, 6, 8], default.map(|groups| groups.bits))?,
            len: number("group_size", "32, 64 or 128", &[32, 64, 128], default.map(|groups| groups.len))?,
        })
    }

    /// MLX's three tensors as one matrix.
    ///
    /// # Errors
    /// What the shapes should be, and what is found.
    pub(super) fn matrix(self, words: &View, scales: &View, biases: &View) -> Result<Matrix, (String, &'static str)> {
        let Groups { bits, len } = self;
        let wrong = |part: &'static str, expected: String| Err((expected, part));
        let &[rows, row_words] = words.shape().extents() else { return wrong("weight", "a matrix of words".to_owned()) };
        let row_len = row_words.checked_mul(32).filter(|row_bits| row_bits.is_multiple_of(bits)).map(|row_bits| row_bits / bits);
        let shape = row_len.and_then(|row_len| Shape::new(&[rows, row_len])).filter(|s| s.row_len().is_multiple_of(len));
        let Some(shape) = shape else { return wrong("weight", format!("words of whole groups of {len} elements of {bits} bits")) };
        let expected = [rows, shape.row_len() / len];
        for (part, view) in [("scales", scales), ("biases", biases)] {
            let floats = matches!(view.dtype(), DType::F32 | DType::F16 | DType::BF16) && view.dtype() == scales.dtype();
            if !floats || view.shape().extents() != expected {
                return wrong(part, format!("{expected:?} of floats, one for each {len} elements of {bits} bits"));
            }
        }
        let dtype = DType::unsigned(bits).expect("a width that was read");
        match View::new(words.region(), words.offset_bytes(), dtype, shape) {
            Ok(weight) => Ok(Matrix::grouped(weight, scales.clone(), biases.clone(), len)),
            Err(_) => wrong("weight", "inside its file".to_owned()),
        }
    }
}

fn unsupported(what: &'static str, got: &Value, supported: &str) -> Error {
    let got = got.as_str().map_or_else(|| got.to_string(), str::to_owned);
    Error::Unsupported { what, got: printable(&got), supported: supported.to_owned() }
}
