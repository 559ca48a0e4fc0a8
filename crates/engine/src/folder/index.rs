//! The weights of a folder: safetensors in one file, or in shards that an index lists.
//!
//! An index is believed only where it is right: every tensor must lie in the shard that it names.

use super::{InFile, Object, json, map};
use crate::error::Error;
use crate::gguf::printable;
use crate::limits::SHARDS_MAX;
use crate::safetensors::{self, Tensor};
use driftwood_region::View;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

const INDEX: &str = "model.safetensors.index.json";
const WHOLE: &str = "model.safetensors";

/// Tensors of all files, and the files.
#[derive(Debug)]
pub(super) struct Weights {
    /// Under their own names, each with the number of its file.
    pub(super) tensors: BTreeMap<Box<str>, (Tensor, usize)>,
    /// Names and bytes, sorted.
    pub(super) files: Vec<(String, View)>,
    /// The file that says which tensors there are.
    pub(super) listed_in: &'static str,
}

impl Weights {
    /// Maps the files that hold weights and reads their headers.
    ///
    /// # Errors
    /// If one is missing, cannot be understood, or is not what the index says.
    pub(super) fn open(folder: &Path) -> Result<Weights, Error> {
        let map_of = match (folder.join(WHOLE).is_file(), folder.join(INDEX).is_file()) {
            (true, _) => None,
            (false, true) => Some(weight_map(&json(INDEX, &map(folder, INDEX)?)?).in_file(INDEX)?),
            (false, false) => return Err(no_weights(folder)),
        };
        let names: BTreeSet<&str> = match &map_of {
            None => [WHOLE].into(),
            Some(places) => places.values().map(String::as_str).collect(),
        };
        if names.len() > SHARDS_MAX {
            return Err(Error::TooMany { what: "shards", got: names.len() as u64, max: SHARDS_MAX as u64 }).in_file(INDEX);
        }
        let listed_in = if map_of.is_some() { INDEX } else { WHOLE };
        let mut weights = Weights { tensors: BTreeMap::new(), files: Vec::new(), listed_in };
        for name in names {
            weights.add(name, map(folder, name)?)?;
        }
        if let Some(places) = &map_of {
            weights.check(places).in_file(INDEX)?;
        }
        Ok(weights)
    }

    fn add(&mut self, name: &str, file: View) -> Result<(), Error> {
        for (tensor, stored) in safetensors::parse(file.region()).in_file(name)? {
            if let Some((_, other)) = self.tensors.insert(tensor.clone(), (stored, self.files.len())) {
                let why = format!("the tensor `{}` is in {}, too", printable(&tensor), self.files[other].0);
                return Err(Error::Malformed { why }).in_file(name);
            }
        }
        self.files.push((name.to_owned(), file));
        Ok(())
    }

    /// That the index tells the truth; tensors that it does not list are left out.
    fn check(&mut self, places: &BTreeMap<String, String>) -> Result<(), Error> {
        for (tensor, shard) in places {
            let found = self.tensors.get(tensor.as_str()).map(|(_, file)| self.files[*file].0.as_str());
            if found != Some(shard) {
                let place = found.map_or("in no shard".to_owned(), |file| format!("in {file}"));
                return Err(malformed(format!("puts the tensor `{}` into {shard}, but it is {place}", printable(tensor))));
            }
        }
        self.tensors.retain(|tensor, _| places.contains_key(&**tensor));
        Ok(())
    }
}

/// The error for a folder without weights: it names those of another kind, if there are some.
fn no_weights(folder: &Path) -> Error {
    let is_other = |name: &String| [".bin", ".pth", ".gguf", ".npz"].iter().any(|end| name.ends_with(end));
    let names = folder.read_dir().into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    match names.filter(is_other).min() {
        Some(other) => {
            let supported = format!("{WHOLE}, {INDEX} with its shards, or a GGUF file named by itself");
            Error::Unsupported { what: "kind of weights in a folder", got: printable(&other), supported }
        }
        None => Error::Malformed { why: format!("the folder has neither {WHOLE} nor {INDEX}; fetch it again") },
    }
}

/// An index's tensors, each with the shard that holds it.
fn weight_map(index: &Object) -> Result<BTreeMap<String, String>, Error> {
    let places = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| malformed("has no `weight_map`".to_owned()))?;
    if places.is_empty() {
        return Err(malformed("names no file".to_owned()));
    }
    let place = |(tensor, shard): (&String, &Value)| match shard.as_str().filter(|name| is_plain(name)) {
        Some(shard) => Ok((tensor.clone(), shard.to_owned())),
        None => Err(malformed(format!("names a file outside the folder for `{}`: {}", printable(tensor), printable(&shard.to_string())))),
    };
    places.iter().map(place).collect()
}

/// Whether a name is a file's in the folder itself.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}

fn malformed(why: String) -> Error {
    Error::Malformed { why }
}
