//! What folders call tensors and keys, beside GGUF's names. Families put their layers' table together from the parts here.

/// GGUF's names and a folder's, less `.weight` and `.bias`.
pub(crate) type Names = &'static [(&'static str, &'static str)];

/// Norms before attention and before the feed-forward. The latter's own name says where it stands in Llama.
pub(crate) const NORMS: Names = &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];

/// Norms before and after both: here the same name is the norm after attention.
pub(crate) const SANDWICH_NORMS: Names = &[
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Projections of attention.
pub(crate) const QKV: Names =
    &[("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"), ("attn_v", "self_attn.v_proj"), ("attn_output", "self_attn.o_proj")];

/// The same with Q, K and V in one.
pub(crate) const FUSED_QKV: Names = &[("attn_qkv", "self_attn.qkv_proj"), ("attn_output", "self_attn.o_proj")];

/// Norms over each head.
pub(crate) const HEAD_NORMS: Names = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];

/// A gated feed-forward.
pub(crate) const GATED: Names = &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];

/// The same with gate and up in one.
pub(crate) const FUSED_GATED: Names = &[("ffn_up", "mlp.gate_up_proj"), ("ffn_down", "mlp.down_proj")];

/// Keys, after the architecture's name, and those of `config.json`.
const KEYS: Names = &[
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.query_scalar", "query_pre_attn_scalar"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("rope.freq_base", "rope_theta"),
    ("rope.dimension_count", "partial_rotary_factor"),
    ("rope.scaling.factor", "rope_scaling"),
    ("rope.scaling.attn_factor", "rope_scaling.attention_factor"),
];

/// What `config.json` calls a key.
pub(crate) fn key(gguf: &str) -> Option<&'static str> {
    own(KEYS, gguf)
}

/// Where a folder's tensors are: folders with a vision part hold the text part deeper, in one of two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stem {
    /// Before `layers`, `embed_tokens` and `norm`.
    body: &'static str,
    /// Before `lm_head`.
    head: &'static str,
}

impl Stem {
    /// Every way, the usual one first.
    const ALL: [Stem; 3] = [
        Stem { body: "model.", head: "" },
        Stem { body: "language_model.model.", head: "language_model." },
        Stem { body: "model.language_model.", head: "" },
    ];

    /// The way in which a folder has an embedding; the usual one if it has none.
    pub(crate) fn of(has: impl Fn(&str) -> bool) -> Stem {
        Self::ALL.into_iter().find(|stem| has(&format!("{}embed_tokens.weight", stem.body))).unwrap_or(Self::ALL[0])
    }

    /// The folder's name for a tensor of GGUF's name.
    pub(crate) fn own(self, layer_names: &[Names], gguf: &str) -> Option<String> {
        let (stem, suffix) = gguf.rsplit_once('.')?;
        let Stem { body, head } = self;
        if let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            let part = layer_names.iter().find_map(|names| own(names, part))?;
            return Some(format!("{body}layers.{layer}.{part}.{suffix}"));
        }
        match stem {
            "token_embd" => Some(format!("{body}embed_tokens.{suffix}")),
            "output_norm" => Some(format!("{body}norm.{suffix}")),
            "output" => Some(format!("{head}lm_head.{suffix}")),
            _ => None,
        }
    }

    /// Whether a folder's tensor is one that such a model has.
    pub(crate) fn knows(self, layer_names: &[Names], name: &str) -> bool {
        let Some((stem, _)) = name.rsplit_once('.') else { return false };
        let layer = stem.strip_prefix(self.body).and_then(|rest| rest.strip_prefix("layers.")?.split_once('.'));
        match layer {
            Some((_, part)) => layer_names.iter().any(|names| names.iter().any(|(_, own)| *own == part)),
            None => {
                ["token_embd.", "output_norm.", "output."].iter().any(|gguf| self.own(&[], gguf).as_deref() == Some(&format!("{stem}.")))
            }
        }
    }

    /// Where a module is that would have this name without a vision part.
    pub(crate) fn module(self, plain: &str) -> String {
        match plain.strip_prefix("model.") {
            Some(rest) => format!("{}{rest}", self.body),
            None => format!("{}{plain}", self.head),
        }
    }

    /// What a quantisation's table may call a module: its name here, or the one that it has without a vision part.
    pub(crate) fn modules(self, name: &str) -> [String; 2] {
        let plain = match (name.strip_prefix(self.body), name.strip_prefix(self.head)) {
            (Some(rest), _) => format!("model.{rest}"),
            (None, Some(rest)) => rest.to_owned(),
            (None, None) => name.to_owned(),
        };
        [name.to_owned(), plain]
    }
}

fn own(names: Names, gguf: &str) -> Option<&'static str> {
    names.iter().find(|(name, _)| *name == gguf).map(|(_, own)| *own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_found_in_every_stem() {
        let layer = &[SANDWICH_NORMS, QKV];
        for stem in Stem::ALL {
            let embedding = stem.own(layer, "token_embd.weight").unwrap();
            assert_eq!(Stem::of(|name| name == embedding), stem);
            for gguf in ["token_embd.weight", "output_norm.weight", "output.weight", "blk.3.ffn_norm.weight", "blk.3.attn_q.bias"] {
                let own = stem.own(layer, gguf).unwrap();
                assert!(stem.knows(layer, &own) && !stem.knows(layer, &format!("vision_tower.{own}")), "{own}");
            }
            assert_eq!(stem.own(layer, "blk.3.ffn_gate.weight"), None);
            let q = stem.own(layer, "blk.3.attn_q.weight").unwrap();
            assert_eq!(stem.modules(&q), [q, "model.layers.3.self_attn.q_proj.weight".to_owned()]);
            let head = stem.own(layer, "output.weight").unwrap();
            assert_eq!(stem.modules(&head)[1], "lm_head.weight");
            assert_eq!(stem.module("model.norm.weight"), stem.own(layer, "output_norm.weight").unwrap());
            assert_eq!(stem.module("lm_head.weight"), head);
        }
    }
}
