"""The tiny model of each family: its configuration, and weights that follow from its name.

Two layers each, small extents, and every feature that sets the family apart switched on and strong enough that leaving it out moves
logits by far more than the tests' tolerance. Weights are multiples of a power of two with eight significant bits, so that F32, F16 and BF16
files hold the same numbers.
"""

import zlib
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, LlamaConfig, MistralConfig, Phi3Config
from transformers import Qwen2Config, Qwen3Config

CONTEXT = 512
SLIDING_THEN_FULL = ["sliding_attention", "full_attention"]


@dataclass
class Family:
    """One tiny model."""

    config: type
    kind: str  # of the tokenizer
    gguf: str  # general.architecture
    extents: dict
    rope: dict = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    others: dict = field(default_factory=dict)
    rows_more: int = 0  # rows of the embedding beyond the tokens, or fewer
    floats: tuple = ("bf16",)
    mlx: tuple = ((4, 64),)
    mlx_halves: tuple = ()  # dtypes of scales, at 4 bits in groups of 64
    types: tuple = ("q8_0",)
    mlx_window: bool = True  # whether mlx_lm masks as transformers does
    gguf_window: bool = True  # whether GGUF has the window


def extents(width, hidden, heads, kv_heads, head_dim=None):
    """The keys of config.json for these extents."""
    given = {} if head_dim is None else {"head_dim": head_dim}
    return {
        "hidden_size": width, "intermediate_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads, **given,
    }


def draw(name, shape, low, high):
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return [round(x, 2) for x in generator.uniform(low, high, shape)]


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 128,
    "short_factor": draw("short", 24, 1.0, 2.0), "long_factor": draw("long", 24, 2.0, 4.0),
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "sliding_window": 8, "tie_word_embeddings": True}

FAMILIES = {
    "llama": Family(
        LlamaConfig, "llama3", "llama", extents(64, 64, 4, 1, 32), LLAMA3, {"rms_norm_eps": 1e-5},
        floats=("f32", "bf16", "f16"), mlx=((4, 64), (3, 32), (8, 32)), mlx_halves=("bfloat16", "float16"),
        types=("f32", "q8_0", "q4_1"),
    ),
    "qwen2": Family(
        Qwen2Config, "qwen2", "qwen2", extents(64, 64, 2, 1), {"rope_type": "default", "rope_theta": 1e6},
        {"tie_word_embeddings": True, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
        rows_more=13, mlx_window=False, gguf_window=False,
    ),
    "gemma2": Family(
        Gemma2Config, "gemma", "gemma2", extents(64, 64, 4, 2, 32),
        others={**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0}, mlx_window=False,
    ),
    "llama2": Family(LlamaConfig, "llama2", "llama", extents(64, 64, 2, 2), others={"rms_norm_eps": 1e-5}, mlx=()),
    "llama128": Family(
        LlamaConfig, "llama3", "llama", extents(128, 64, 2, 1), LINEAR, {"tie_word_embeddings": True},
        floats=(), mlx=("mixed", (6, 128)), types=(),
    ),
    "mistral": Family(
        MistralConfig, "mistral", "llama", extents(64, 64, 4, 1, 32), others={"sliding_window": 8},
        mlx_window=False, gguf_window=False,
    ),
    "nemo": Family(MistralConfig, "tekken", "llama", extents(64, 64, 4, 1, 32), {"rope_type": "default", "rope_theta": 1e6},
        {"sliding_window": None}, mlx=(),
    ),
    "qwen3": Family(
        Qwen3Config, "qwen2", "qwen3", extents(64, 64, 4, 2, 32), {"rope_type": "default", "rope_theta": 1e6},
        {"tie_word_embeddings": True},
    ),
    "gemma3": Family(
        Gemma3TextConfig, "gemma3", "gemma3", extents(64, 64, 4, 1, 32),
        {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
         "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}},
        {**GEMMA, "layer_types": SLIDING_THEN_FULL, "sliding_window_pattern": 2}, rows_more=-1,
    ),
    "phi3": Family(Phi3Config, "phi3", "phi3", extents(64, 128, 2, 2), others={"sliding_window": 11}, mlx_window=False),
    "phi3-96": Family(Phi3Config, "phi3", "phi3", extents(96, 96, 1, 1), floats=(), mlx=((4, 32),)),
    "phi4-mini": Family(
        Phi3Config, "o200k", "phi3", extents(128, 64, 2, 1), LONG,
        {"tie_word_embeddings": True, "original_max_position_embeddings": 128},
    ),
}


def as_gguf_has_it(family):
    """The family as its GGUF file describes it: without what the container loses, which is windows of some, and Gemma's own scale."""
    others = dict(family.others)
    if not family.gguf_window:
        others |= {"sliding_window": None, "use_sliding_window": False}
    if "query_pre_attn_scalar" in others:
        others["query_pre_attn_scalar"] = family.extents["head_dim"]
    return replace(family, others=others)


def config(family, kind, made):
    """The configuration as transformers has it; `made` is the tokenizer of `kind`."""
    kind_ids = {"eos_token_id": made.token_to_id(kind.eos), "bos_token_id": made.token_to_id(kind.bos) if kind.bos else None}
    return family.config(
        num_hidden_layers=2, vocab_size=made.get_vocab_size() + family.rows_more, max_position_embeddings=CONTEXT,
        rope_parameters=dict(family.rope), pad_token_id=None, **kind_ids, **family.extents, **family.others,
    )


def weight(name, shape, norms_are_offsets):
    """The made-up tensor of this name."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    drawn = generator.standard_normal(shape)
    part = name.rsplit("/", 1)[1]
    if "norm" in part:
        scaled, steps = drawn * 0.3 + (0.0 if norms_are_offsets else 1.0), 64
    elif part.endswith(".bias") or "embed_tokens" in part:
        spread = 1.0 if part.endswith(".bias") else 0.15 if norms_are_offsets else 0.25  # Gemma multiplies embeddings by sqrt(width)
        scaled, steps = drawn * spread, 128
    else:
        scaled, steps = drawn * 1.3 / np.sqrt(shape[-1]), 256
    return (np.clip(np.round(scaled * steps), -255, 255) / steps).astype(np.float32)


def model(id, made_config):
    """A transformers model with the made-up weights, in F32."""
    made = AutoModelForCausalLM.from_config(made_config, attn_implementation="eager", dtype=torch.float32).eval()
    offsets = made_config.model_type.startswith("gemma")
    tied = made_config.tie_word_embeddings
    state = {
        name: torch.from_numpy(weight(f"{id}/{name}", tuple(tensor.shape), offsets))
        for name, tensor in made.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    load(made, state)
    return made


def load(made, state):
    """Replaces all weights by `state`."""
    missing, unexpected = made.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    made.tie_weights()


def without(family, kind, made, feature):
    """The configuration without a feature, or `None` if the family does not have it."""
    others, rope = dict(family.others), dict(family.rope)
    full = rope.get("full_attention", rope)
    if feature in others and others[feature]:
        others[feature] = {"sliding_window": CONTEXT, "query_pre_attn_scalar": 32, "layer_types": SLIDING_THEN_FULL[::-1], "max_window_layers": 0}.get(feature)
    elif feature == "rope_theta" and "sliding_attention" in rope:
        rope = {"sliding_attention": full, "full_attention": full}
    elif feature == "rope_type" and full["rope_type"] != "default":
        plain = {key: full[key] for key in ("rope_theta", "partial_rotary_factor") if key in full} | {"rope_type": "default"}
        rope = {**rope, "full_attention": plain} if "full_attention" in rope else plain
    elif feature == "partial_rotary_factor" and feature in full:
        rope = {**full, feature: 1.0, "short_factor": [1.0] * 32, "long_factor": [1.0] * 32}
    else:
        return None
    return config(replace(family, others=others, rope=rope), kind, made)
