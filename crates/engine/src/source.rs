//! What stands between a container and a family: keys and tensors under GGUF's names, whatever the file calls them.
//!
//! A GGUF file answers as it is (`gguf.rs`), a Hugging Face folder through one table of names (`folder.rs`).

use crate::Error;
use crate::folder::Folder;
use crate::gguf::GgufFile;
use crate::rope::RopePairs;
use crate::tokenizer::Tokenizer;
use driftwood_compute::Matrix;
use driftwood_region::View;
use std::path::Path;

/// A model's container, as families read it.
///
/// - Keys and tensor names are GGUF's; errors name what the container itself calls them.
/// - A tensor's extents are outermost first, and its bytes stay in the mapping.
/// - Everything has been checked against the container's bounds; whether shapes suit the model is the family's to check.
pub(crate) trait Source {
    /// The family's name.
    fn architecture(&self) -> Result<&str, Error>;

    /// A key's value as an unsigned integer, `None` where it is absent.
    fn optional_u32(&self, key: &str) -> Result<Option<u32>, Error>;

    /// A key's value as a float, `None` where it is absent.
    fn optional_f32(&self, key: &str) -> Result<Option<f32>, Error>;

    /// A key's value as text, `None` where it is absent.
    fn optional_string(&self, key: &str) -> Result<Option<&str>, Error>;

    /// The error for a key that is needed and absent.
    fn missing(&self, key: &str) -> Error;

    /// Whether there is a tensor of this name.
    fn has_tensor(&self, name: &str) -> bool;

    /// The floats of this name, which are no matrix: a norm.
    fn tensor(&self, name: &str) -> Result<&View, Error>;

    /// The weight of this name, (rows, row_len).
    fn matrix(&self, name: &str) -> Result<Matrix, Error>;

    /// How the rows of a Llama's Q and K are paired for RoPE.
    fn llama_pairs(&self) -> RopePairs;

    /// What divides RoPE's frequencies, (head_dim / 2), where the model's context was stretched so.
    fn rope_factors(&self, base: f32, head_dim: usize) -> Result<Option<Vec<f32>>, Error>;

    /// The tokenizer.
    fn tokenizer(&self) -> Result<Tokenizer, Error>;

    /// The chat template's source, if there is one.
    fn chat_template(&self) -> Result<Option<&str>, Error>;

    /// Every file, whole, in an order that depends on their names alone: the weights among them.
    fn files(&self) -> Vec<View>;

    /// As [`Source::optional_u32`], where absence is an error.
    fn u32(&self, key: &str) -> Result<u32, Error> {
        self.optional_u32(key)?.ok_or_else(|| self.missing(key))
    }

    /// As [`Source::optional_f32`], where absence is an error.
    fn f32(&self, key: &str) -> Result<f32, Error> {
        self.optional_f32(key)?.ok_or_else(|| self.missing(key))
    }
}

/// Maps what lies at `path`: a folder as Hugging Face has it, or a GGUF file.
///
/// # Errors
/// If it cannot be mapped or is neither.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Source>, Error> {
    if path.is_dir() { Ok(Box::new(Folder::open(path)?)) } else { Ok(Box::new(GgufFile::open(path)?)) }
}

impl Source for GgufFile {
    fn architecture(&self) -> Result<&str, Error> {
        self.string("general.architecture")
    }

    fn optional_u32(&self, key: &str) -> Result<Option<u32>, Error> {
        GgufFile::optional_u32(self, key)
    }

    fn optional_f32(&self, key: &str) -> Result<Option<f32>, Error> {
        GgufFile::optional_f32(self, key)
    }

    fn optional_string(&self, key: &str) -> Result<Option<&str>, Error> {
        GgufFile::optional_string(self, key)
    }

    fn missing(&self, key: &str) -> Error {
        Error::KeyMissing { key: key.to_owned() }
    }

    fn has_tensor(&self, name: &str) -> bool {
        GgufFile::has_tensor(self, name)
    }

    fn tensor(&self, name: &str) -> Result<&View, Error> {
        GgufFile::tensor(self, name)
    }

    fn matrix(&self, name: &str) -> Result<Matrix, Error> {
        GgufFile::tensor(self, name).map(|view| view.clone().into())
    }

    fn llama_pairs(&self) -> RopePairs {
        RopePairs::Interleaved
    }

    fn rope_factors(&self, _base: f32, head_dim: usize) -> Result<Option<Vec<f32>>, Error> {
        const NAME: &str = "rope_freqs.weight";
        if !GgufFile::has_tensor(self, NAME) {
            return Ok(None);
        }
        let factors = crate::models::vector(self, NAME, head_dim / 2)?;
        match factors.iter().find(|f| !f.is_normal() || **f < 0.0) {
            None => Ok(Some(factors)),
            Some(bad) => Err(Error::Malformed { why: format!("tensor `{NAME}` holds {bad}, which divides no frequency") }),
        }
    }

    fn tokenizer(&self) -> Result<Tokenizer, Error> {
        Tokenizer::from_gguf(self)
    }

    fn chat_template(&self) -> Result<Option<&str>, Error> {
        GgufFile::optional_string(self, "tokenizer.chat_template")
    }

    fn files(&self) -> Vec<View> {
        vec![self.view().clone()]
    }
}
