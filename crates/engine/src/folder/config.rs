//! `config.json`: which family, and the numbers that families ask for, in the dialects that folders have put them in.
//!
//! Numbers may be absent, or `null`, which says the same, except of windows and caps, where it says that there is none. RoPE's have stood at
//! the top (`rope_theta`, `rope_scaling`), in one object (`rope_parameters`), and in one for each kind of layer.

use super::{Object, wrong_type};
use crate::config::Config;
use crate::error::Error;
use crate::gguf::printable;
use crate::limits::CONTEXT_TOKENS_MAX;
use crate::models::{FAMILIES, Family, Windows};
use crate::rope::{Llama3Scaling, LongRope, RopeLayers, RopeNumbers, llama3_factors};
use crate::source::{longrope_magnitude, windows};
use serde_json::Value;

/// What errors call the file.
pub(super) const FILE: &str = "config.json";

/// Where folders with a vision part describe the text part.
const TEXT: &str = "text_config";

/// A read `config.json`.
#[derive(Debug)]
pub(super) struct FolderConfig {
    whole: Object,
    text: Object, // the same, or the part that describes the text model
    section: &'static str,
    family: &'static Family,
}

impl FolderConfig {
    /// Finds the family and refuses what it does not compute.
    ///
    /// # Errors
    /// If the family is none of those here, or if it should be computed in another way.
    pub(super) fn new(whole: Object) -> Result<FolderConfig, Error> {
        let family = family(whole.get("model_type").unwrap_or(&Value::Null))?;
        let (text, section) = match whole.get(TEXT) {
            Some(Value::Object(text)) => (text.clone(), "text_config."),
            None | Some(Value::Null) => (whole.clone(), ""),
            Some(other) => return Err(wrong_type(TEXT, "an object", other)),
        };
        let config = FolderConfig { whole, text, section, family };
        config.refuse_unknown()?;
        Ok(config)
    }

    pub(super) fn family(&self) -> &'static Family {
        self.family
    }

    /// The file's outermost object.
    pub(super) fn whole(&self) -> &Object {
        &self.whole
    }

    /// What errors call a key.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{FILE}: {}{key}", self.section)
    }

    fn refuse_unknown(&self) -> Result<(), Error> {
        let unsupported = |what, got: &str, supported: &str| {
            Err(Error::Unsupported { what, got: self.name(&printable(got)), supported: supported.to_owned() })
        };
        self.is_tied()?;
        let (key, activation) = self.family.folder.activation;
        if let Some(other) = self.get(key).filter(|value| *value != activation) {
            let other = other.as_str().map_or_else(|| other.to_string(), str::to_owned);
            return unsupported("activation", &format!("{key}: {other}"), activation);
        }
        for key in ["attention_bias", "mlp_bias", "rope_interleaved", "use_bidirectional_attention"] {
            if self.get(key) == Some(&Value::Bool(true)) {
                return unsupported("kind of layer", key, "models where it is false");
            }
        }
        Ok(())
    }

    /// A key's value that is not `null`.
    fn get(&self, key: &str) -> Option<&Value> {
        self.text.get(key).filter(|value| !value.is_null())
    }

    fn wrong_type(&self, key: &str, expected: &'static str, got: &Value) -> Error {
        Error::KeyType { key: self.name(key), expected, got: printable(&got.to_string()) }
    }

    /// A key's number, as the family leaves it unsaid where the file does.
    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        const NULL_IS_NONE: [&str; 3] = ["sliding_window", "attn_logit_softcapping", "final_logit_softcapping"];
        match self.text.get(key) {
            Some(Value::Null) if NULL_IS_NONE.contains(&key) => Ok(Some(0.0)),
            None | Some(Value::Null) => Ok(self.family.folder.defaults.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.wrong_type(key, "a number", value)),
        }
    }

    /// The same for an integer, which `1000.0` is not.
    pub(super) fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        match self.get(key) {
            Some(value) => {
                let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
                number.map(Some).ok_or_else(|| self.wrong_type(key, "an integer of 32 bits", value))
            }
            None => Ok(self.number(key)?.map(|default| default as u32)),
        }
    }

    /// The same for a float. RoPE's base may stand in an object of its own.
    pub(super) fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        Ok(self.number(key)?.map(|x| x as f32))
    }

    /// A truth value.
    ///
    /// # Errors
    /// If it is something else.
    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        let read = |value: &Value| value.as_bool().ok_or_else(|| self.wrong_type(key, "true or false", value));
        self.get(key).map(read).transpose()
    }

    /// Whether the embedding is the output, too.
    pub(super) fn is_tied(&self) -> Result<bool, Error> {
        const KEY: &str = "tie_word_embeddings";
        let whole = self.whole.get(KEY).and_then(Value::as_bool);
        Ok(whole.or(self.bool(KEY)?).unwrap_or(self.family.folder.tied))
    }

    /// See [`crate::source::Source::windows`].
    pub(super) fn windows(&self, rule: Windows, layers: usize) -> Result<Vec<Option<usize>>, Error> {
        if rule == Windows::Never || rule == Windows::Switched && self.bool("use_sliding_window")? != Some(true) {
            return Ok(vec![None; layers]);
        }
        let window = self.u32("sliding_window")?.filter(|window| *window > 0).map(|window| window as usize);
        if rule == Windows::All {
            return Ok(vec![window; layers]);
        }
        if let Some(slides) = self.layer_types(layers)? {
            return Ok(windows(layers, window, |layer| slides[layer]));
        }
        match rule {
            Windows::Switched => {
                let first = self.u32("max_window_layers")?.unwrap_or_default() as usize;
                Ok(windows(layers, window, |layer| layer >= first))
            }
            _ => {
                let each = self.pattern(rule)?;
                Ok(windows(layers, window, |layer| !(layer + 1).is_multiple_of(each)))
            }
        }
    }

    /// Which layers slide, where the file lists them.
    fn layer_types(&self, layers: usize) -> Result<Option<Vec<bool>>, Error> {
        const KEY: &str = "layer_types";
        const EXPECTED: &str = "a list of `full_attention` or `sliding_attention`, one a layer";
        let Some(value) = self.get(KEY) else { return Ok(None) };
        let slides = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(self.wrong_type(KEY, EXPECTED, kind)),
        };
        let list = value.as_array().filter(|list| list.len() == layers).ok_or_else(|| self.wrong_type(KEY, EXPECTED, value))?;
        list.iter().map(slides).collect::<Result<_, _>>().map(Some)
    }

    /// Each so-many-th layer attends to everything.
    fn pattern(&self, rule: Windows) -> Result<usize, Error> {
        const KEY: &str = "sliding_window_pattern";
        let given = match self.u32(KEY)? {
            None => self.u32("_sliding_window_pattern")?,
            given => given,
        };
        match (given, rule) {
            (None, Windows::AllButEach(each)) => Ok(each),
            (Some(each @ 1..=1024), _) => Ok(each as usize),
            (given, _) => Err(Error::ConfigOutOfRange { key: self.name(KEY), value: given.unwrap_or_default().into(), max: 1024.0 }),
        }
    }

    /// See [`crate::source::Source::rope`].
    pub(super) fn rope(&self, config: &Config, layers: RopeLayers, base: f32) -> Result<RopeNumbers, Error> {
        let object = self.rope_object(layers)?;
        let number = |key: &'static str| object.as_ref().map_or(Ok(None), |object| object.number(self, key));
        let (top, base_key) = match layers {
            RopeLayers::Global => (self.number("rope_theta")?, "rope_theta"),
            RopeLayers::Windows => (self.number("rope_local_base_freq")?, "rope_theta"),
        };
        let base = top.or(number(base_key)?).map_or(base, |base| base as f32);
        let partial = self.number("partial_rotary_factor")?.or(number("partial_rotary_factor")?).unwrap_or(1.0);
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(Error::ConfigOutOfRange { key: self.name("partial_rotary_factor"), value: partial, max: 1.0 });
        }
        let plain = RopeNumbers::plain(base, (config.head_dim as f64 * partial) as usize);
        match object {
            Some(object) => object.scaled(self, config, plain),
            None => Ok(plain),
        }
    }

    /// The object that holds RoPE's numbers for some layers, if one does.
    fn rope_object(&self, layers: RopeLayers) -> Result<Option<RopeObject<'_>>, Error> {
        let Some((key, value)) = ["rope_scaling", "rope_parameters"].into_iter().find_map(|key| Some((key, self.get(key)?))) else {
            return Ok(None);
        };
        let object = value.as_object().ok_or_else(|| self.wrong_type(key, "an object", value))?;
        let (full, sliding) = ("full_attention", "sliding_attention");
        if !object.contains_key(full) && !object.contains_key(sliding) {
            // One object for all is of the layers that attend to everything; the others are not stretched.
            return Ok((layers == RopeLayers::Global).then(|| RopeObject { key: key.to_owned(), object }));
        }
        let kind = if layers == RopeLayers::Global { full } else { sliding };
        match object.get(kind) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(RopeObject { key: format!("{key}.{kind}"), object })),
            Some(other) => Err(self.wrong_type(&format!("{key}.{kind}"), "an object", other)),
        }
    }
}

/// An object with RoPE's numbers, and where it stands.
struct RopeObject<'a> {
    key: String,
    object: &'a Object,
}

impl RopeObject<'_> {
    fn number(&self, config: &FolderConfig, name: &str) -> Result<Option<f64>, Error> {
        let positive = |value: &Value| {
            let number = value.as_f64().filter(|x| x.is_normal() && *x > 0.0);
            number.ok_or_else(|| config.wrong_type(&format!("{}.{name}", self.key), "a positive number", value))
        };
        self.object.get(name).filter(|value| !value.is_null()).map(positive).transpose()
    }

    fn needed(&self, config: &FolderConfig, name: &str) -> Result<f64, Error> {
        self.number(config, name)?.ok_or_else(|| Error::KeyMissing { key: config.name(&format!("{}.{name}", self.key)) })
    }

    /// RoPE's numbers, stretched as this object says.
    fn scaled(&self, config: &FolderConfig, c: &Config, plain: RopeNumbers) -> Result<RopeNumbers, Error> {
        let kind = ["rope_type", "type"].into_iter().find_map(|key| self.object.get(key)).unwrap_or(&Value::Null);
        let kind = match kind {
            Value::Null => "default",
            Value::String(kind) => kind,
            other => return Err(config.wrong_type(&format!("{}.rope_type", self.key), "a string", other)),
        };
        // What Phi's folders once called yarn was never that.
        let is_phi = config.family.architecture == "phi3";
        match kind {
            "default" => Ok(plain),
            "linear" => {
                let (factor, pairs) = (self.needed(config, "factor")?, plain.divisors.len());
                Ok(plain.divided("linear", vec![factor as f32; pairs]))
            }
            "llama3" => self.llama3(config, plain),
            "longrope" | "su" => self.longrope(config, c, plain),
            "yarn" if is_phi => self.longrope(config, c, plain),
            other => {
                let (got, supported) = (config.name(&format!("{}: {}", self.key, printable(other))), "default, linear, llama3, longrope");
                Err(Error::Unsupported { what: "rope scaling", got, supported: supported.to_owned() })
            }
        }
    }

    fn llama3(&self, config: &FolderConfig, plain: RopeNumbers) -> Result<RopeNumbers, Error> {
        let scaling = Llama3Scaling {
            factor: self.needed(config, "factor")?,
            low_freq_factor: self.needed(config, "low_freq_factor")?,
            high_freq_factor: self.needed(config, "high_freq_factor")?,
            original_context: self.needed(config, "original_max_position_embeddings")?,
        };
        if scaling.low_freq_factor >= scaling.high_freq_factor {
            let key = config.name(&format!("{}.low_freq_factor (must be below high_freq_factor)", self.key));
            return Err(Error::ConfigOutOfRange { key, value: scaling.low_freq_factor, max: scaling.high_freq_factor });
        }
        let factors = llama3_factors(plain.rotated, plain.base, &scaling);
        Ok(plain.divided("llama3", factors))
    }

    fn longrope(&self, config: &FolderConfig, c: &Config, plain: RopeNumbers) -> Result<RopeNumbers, Error> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        // The file's own word, else the object's, else the family's.
        let top = config.get(ORIGINAL).is_some().then(|| config.number(ORIGINAL)).transpose()?.flatten();
        let original = match top.or(self.number(config, ORIGINAL)?) {
            Some(original) => original,
            None => config.number(ORIGINAL)?.unwrap_or(c.context_max as f64),
        };
        if !(2.0..=CONTEXT_TOKENS_MAX as f64).contains(&original) {
            return Err(Error::ConfigOutOfRange { key: config.name(ORIGINAL), value: original, max: CONTEXT_TOKENS_MAX as f64 });
        }
        let factor = self.number(config, "factor")?.unwrap_or(c.context_max as f64 / original);
        let magnitude = self.number(config, "attention_factor")?.map_or_else(|| longrope_magnitude(factor, original), |given| given as f32);
        let pairs = plain.rotated / 2;
        let long = LongRope { beyond: original as usize, divisors: self.list(config, "long_factor", pairs)? };
        let divisors = self.list(config, "short_factor", pairs)?;
        Ok(RopeNumbers { magnitude, long: Some(long), ..plain.divided("longrope", divisors) })
    }

    /// A list of so many positive numbers.
    fn list(&self, config: &FolderConfig, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let wrong = |value: &Value| {
            config.wrong_type(&format!("{}.{name}", self.key), "a positive number for each pair of a head that is turned", value)
        };
        let value = self.object.get(name).unwrap_or(&Value::Null);
        let list = value.as_array().filter(|list| list.len() == len).ok_or_else(|| wrong(value))?;
        let number = |value: &Value| value.as_f64().map(|x| x as f32).filter(|x| x.is_normal() && *x > 0.0).ok_or_else(|| wrong(value));
        list.iter().map(number).collect()
    }
}

/// The family that a `model_type` names.
fn family(model_type: &Value) -> Result<&'static Family, Error> {
    let known = |family: &&'static Family| model_type.as_str().is_some_and(|name| family.model_types.contains(&name));
    FAMILIES.into_iter().find(known).ok_or_else(|| {
        let got = model_type.as_str().map_or_else(|| model_type.to_string(), str::to_owned);
        let supported = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect::<Vec<_>>().join(", ");
        Error::Unsupported { what: "model_type of config.json", got: printable(&got), supported }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(extra: Value) -> FolderConfig {
        let mut all = json!({ "model_type": "gemma3_text" });
        all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        FolderConfig::new(all.as_object().unwrap().clone()).unwrap()
    }

    fn extents() -> Config {
        Config {
            architecture: "gemma3",
            vocabulary: 1,
            context_max: 64,
            context_long_max: None,
            width: 64,
            hidden: 64,
            layers: 4,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            norm_eps: 0.0,
            attention_scale: 1.0,
            scores_cap: None,
        }
    }

    #[test]
    fn windows_of_every_dialect() {
        let each = Windows::AllButEach(2);
        let (some, none) = (Some(8), None);
        let types = json!(["full_attention", "sliding_attention", "sliding_attention", "full_attention"]);
        for (extra, rule, expected) in [
            (json!({}), each, [Some(4096), none, Some(4096), none]),
            (json!({ "sliding_window": 8 }), each, [some, none, some, none]),
            (json!({ "sliding_window": null }), each, [none; 4]),
            (json!({ "sliding_window": 8, "sliding_window_pattern": 3 }), each, [some, some, none, some]),
            (json!({ "sliding_window": 8, "_sliding_window_pattern": 4 }), each, [some, some, some, none]),
            (json!({ "sliding_window": 8, "sliding_window_pattern": 3, "layer_types": types }), each, [none, some, some, none]),
            (json!({ "sliding_window": 8, "layer_types": types }), Windows::All, [some; 4]),
            (json!({ "sliding_window": 8, "layer_types": types }), Windows::Never, [none; 4]),
            (json!({ "sliding_window": 8, "layer_types": types }), Windows::Switched, [none; 4]),
            (json!({ "sliding_window": 8, "use_sliding_window": false, "max_window_layers": 1 }), Windows::Switched, [none; 4]),
            (
                json!({ "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2 }),
                Windows::Switched,
                [none, none, some, some],
            ),
            (json!({ "sliding_window": 8, "use_sliding_window": true, "layer_types": types }), Windows::Switched, [none, some, some, none]),
        ] {
            assert_eq!(config(extra.clone()).windows(rule, 4).unwrap(), expected, "{extra} {rule:?}");
        }
    }

    #[test]
    fn bad_windows_get_clear_errors() {
        for (extra, expected) in [
            (json!({ "sliding_window": -1 }), "`config.json: sliding_window` should be an integer of 32 bits, but is -1"),
            (json!({ "sliding_window": 8.5 }), "`config.json: sliding_window` should be an integer of 32 bits, but is 8.5"),
            (json!({ "sliding_window_pattern": 0 }), "`config.json: sliding_window_pattern` is 0"),
            (json!({ "sliding_window_pattern": 4000 }), "`config.json: sliding_window_pattern` is 4000"),
            (json!({ "layer_types": ["full_attention"] }), "`config.json: layer_types` should be a list"),
            (json!({ "layer_types": "full_attention" }), "`config.json: layer_types` should be a list"),
            (json!({ "layer_types": ["a", "b", "c", "d"] }), "one a layer, but is"),
            (json!({ "text_config": { "sliding_window": true } }), "`config.json: text_config.sliding_window` should be"),
        ] {
            let error = config(extra).windows(Windows::AllButEach(2), 4).unwrap_err().to_string();
            assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
        }
    }

    #[test]
    fn rope_of_every_dialect() {
        let linear = json!({ "type": "linear", "factor": 8.0 });
        let both = json!({
            "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 500.0 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 20.0 },
        });
        let (global, windows) = (RopeLayers::Global, RopeLayers::Windows);
        for (extra, layers, base, divisor) in [
            (json!({}), global, 7.0, 1.0),
            (json!({ "rope_theta": 100.0 }), global, 100.0, 1.0),
            (json!({ "rope_theta": 100.0 }), windows, 7.0, 1.0),
            (json!({ "rope_theta": 100.0, "rope_local_base_freq": 10.0, "rope_scaling": linear }), global, 100.0, 8.0),
            (json!({ "rope_theta": 100.0, "rope_local_base_freq": 10.0, "rope_scaling": linear }), windows, 10.0, 1.0),
            (json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 30.0 } }), global, 30.0, 1.0),
            (json!({ "rope_parameters": both }), global, 500.0, 8.0),
            (json!({ "rope_parameters": both }), windows, 20.0, 1.0),
            (json!({ "rope_scaling": null, "rope_parameters": both }), windows, 20.0, 1.0),
            (json!({ "text_config": { "rope_theta": 100.0 } }), global, 100.0, 1.0),
        ] {
            let rope = config(extra.clone()).rope(&extents(), layers, 7.0).unwrap();
            assert_eq!((rope.base, rope.rotated, &rope.divisors[..], rope.magnitude), (base, 8, &[divisor; 4][..], 1.0), "{extra}");
        }
    }

    #[test]
    fn longrope_has_two_lists_and_a_magnitude() {
        let lists = json!({ "type": "longrope", "short_factor": [1.0, 2.0, 3.0], "long_factor": [4.0, 5.0, 6.0] });
        let phi = |key: &str, value: Value| {
            let mut all = json!({ "model_type": "phi3", "partial_rotary_factor": 0.75, "rope_scaling": lists });
            all[key] = value;
            FolderConfig::new(all.as_object().unwrap().clone()).unwrap().rope(&extents(), RopeLayers::Global, 7.0)
        };
        let rope = phi("original_max_position_embeddings", json!(16)).unwrap();
        let magnitude = (1.0 + 4f64.ln() / 16f64.ln()).sqrt() as f32;
        assert_eq!((rope.rotated, &rope.divisors[..], rope.magnitude), (6, &[1.0, 2.0, 3.0][..], magnitude));
        assert_eq!(rope.long, Some(LongRope { beyond: 16, divisors: vec![4.0, 5.0, 6.0] }));
        // The family's own bound is longer than this context: nothing is stretched.
        assert_eq!(phi("a", json!(0)).unwrap().magnitude, 1.0);
        for (key, value, expected) in [
            ("partial_rotary_factor", json!(1.0), "long_factor` should be a positive number for each pair"),
            ("partial_rotary_factor", json!(0.0), "`config.json: partial_rotary_factor` is 0"),
            ("partial_rotary_factor", json!(1.5), "`config.json: partial_rotary_factor` is 1.5"),
            ("original_max_position_embeddings", json!(1), "`config.json: original_max_position_embeddings` is 1"),
            ("original_max_position_embeddings", json!("1"), "should be a number"),
        ] {
            let error = phi(key, value)
                .and_then(|n| crate::rope::Rope::new(8, &n, crate::rope::RopePairs::Halves).map_err(|_| wrong_type("", "", &Value::Null)));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(expected), "expected {expected:?}, got {error:?}");
        }
    }
}
