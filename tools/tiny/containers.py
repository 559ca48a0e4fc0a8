"""Writes a tiny model into the containers that people have: folders of transformers and of MLX, and GGUF files.

Each writer answers what the container says: a transformers model in F32 whose weights are what the file holds, de-quantised.
"""

import copy
import json
import math
import shutil

import gguf
import mlx.core as mx
import mlx_lm.utils as mlx_utils
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import families

SHARD_BYTES_MAX = 96_000
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write_tokenizer(folder, kind, made):
    """`tokenizer.json` and `tokenizer_config.json`."""
    (folder / "tokenizer.json").write_text(made.to_str(pretty=False))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": kind.bos, "eos_token": kind.eos,
        "clean_up_tokenization_spaces": False, "model_max_length": families.CONTEXT, "chat_template": kind.template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=1))


def write_float(folder, dtype, model, kind, made):
    """A folder as `save_pretrained` leaves it: one file in F32 and F16, shards with an index in BF16."""
    shard_bytes = SHARD_BYTES_MAX if dtype == "bf16" else 10 * SHARD_BYTES_MAX
    copy.deepcopy(model).to(FLOATS[dtype]).save_pretrained(folder, max_shard_size=shard_bytes)
    write_tokenizer(folder, kind, made)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def older_config(config):
    """`config.json` as it was written before transformers 5, which is how most MLX folders have it."""
    rope = config["rope_parameters"]
    older = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "layer_types")}
    local, rope = rope.get("sliding_attention"), dict(rope.get("full_attention", rope))
    older["rope_theta"] = rope.pop("rope_theta")
    if local:
        older["rope_local_base_freq"] = local["rope_theta"]
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if key in rope and (key == "partial_rotary_factor" or older["model_type"] == "phi3"):
            older[key] = rope.pop(key)
    if rope["rope_type"] != "llama3":
        rope["type"] = rope.pop("rope_type")
    older["rope_scaling"] = None if rope.get("type") == "default" else rope
    return older


def mixed(path, module):
    """Widths that differ by module: one is left as it is, some have more bits, in smaller groups."""
    if path.endswith("layers.0.mlp.up_proj"):
        return False
    more = path.endswith(("v_proj", "down_proj"))
    return {"group_size": 32, "bits": 6} if more else {"group_size": 64, "bits": 2 if path.endswith("gate_proj") else 5}


def write_mlx(folder, width, source, model, dtype):
    """A folder as `mlx_lm.convert` leaves it, from the float folder `source`. `width` is (bits, group) or `mixed`."""
    config = older_config(json.loads((source / "config.json").read_text()))
    quantised, config = mlx_utils.load_model(source, model_config=config)
    config.pop("rope_parameters")
    quantised.set_dtype(getattr(mx, dtype))
    bits, group = (4, 64) if width == "mixed" else width
    predicate = mixed if width == "mixed" else None
    quantised, config = mlx_utils.quantize_model(quantised, config, group, bits, quant_predicate=predicate)
    folder.mkdir(parents=True)
    mlx_utils.save_model(folder, quantised, donate_model=False)
    mlx_utils.save_config(config, config_path=folder / "config.json")
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, folder / name)
    return dequantised(folder, model), quantised


def dequantised(folder, model):
    """The transformers model that an MLX folder holds."""
    config = json.loads((folder / "config.json").read_text())["quantization"]
    stored = mx.load(str(folder / "model.safetensors"))
    state = {}
    for name, tensor in stored.items():
        base, part = name.rsplit(".", 1)
        if part in ("scales", "biases"):
            continue
        if part == "weight" and f"{base}.scales" in stored:
            own = config.get(base, config)
            scales, biases = (stored[f"{base}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            tensor = mx.dequantize(tensor, scales, biases, group_size=own["group_size"], bits=own["bits"])
        state[name] = torch.from_numpy(np.array(tensor.astype(mx.float32)))
    made = copy.deepcopy(model)
    families.load(made, state)
    return made


def write_multimodal(folder, source, model):
    """Gemma 3 as the larger models have it: the text model below a prefix, a few keys of its configuration, and a vision tower."""
    folder.mkdir()
    config = older_config(json.loads((source / "config.json").read_text()))
    config["model_type"] = "gemma3_text"
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": config,
        "eos_token_id": config["eos_token_id"], "vision_config": {"hidden_size": 8, "model_type": "siglip_vision_model"},
    }
    (folder / "config.json").write_text(json.dumps(outer, indent=1))
    tensors = {f"language_model.{name}": tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    del tensors["language_model.lm_head.weight"]
    tensors["vision_tower.vision_model.embeddings.patch_embedding.bias"] = torch.zeros(8, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, folder / name)
    return model


# GGUF's names of tensors within a layer; Gemma's norms have others.
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up",
}
GEMMA_LAYER = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TYPES = {
    "f32": gguf.GGMLQuantizationType.F32, "q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_1": gguf.GGMLQuantizationType.Q4_1,
}


def gguf_name(name, architecture):
    base, part = name.rsplit(".", 1)
    if base in ENDS:
        return f"{ENDS[base]}.{part}"
    _, _, layer, rest = base.split(".", 3)
    names = {**LAYER, **GEMMA_LAYER} if architecture.startswith("gemma") else LAYER
    return f"blk.{layer}.{names[rest]}.{part}"


def permuted(name, tensor, config):
    """Rows of Llama's Q and K as GGUF has them: the two halves that RoPE turns together are neighbours."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def unpermuted(name, tensor, config):
    """The other way round."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)


def write_gguf(path, type_name, family, model, kind, made):
    """A GGUF file with matrices of one type and everything else in F32."""
    writer = gguf.GGUFWriter(path, family.gguf)
    write_keys(writer, family, model.config)
    write_vocabulary(writer, kind, made, model.config.vocab_size)
    state, config = {}, model.config
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.numpy()
        if family.gguf == "llama":
            data = permuted(name, data, config)
        shift = 1.0 if "norm" in name and family.gguf.startswith("gemma") else 0.0
        own_type = TYPES[type_name] if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        stored = gguf.quants.quantize(data + np.float32(shift), own_type)
        writer.add_tensor(gguf_name(name, family.gguf), stored, raw_dtype=own_type)
        back = gguf.quants.dequantize(stored, own_type) - np.float32(shift)
        state[name] = torch.from_numpy(np.ascontiguousarray(unpermuted(name, back, config) if family.gguf == "llama" else back))
    write_rope_factors(writer, family, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    described = families.config(families.as_gguf_has_it(family), kind, made)
    held = AutoModelForCausalLM.from_config(described, attn_implementation="eager", dtype=torch.float32)
    families.load(held.eval(), state)
    return held


def write_keys(writer, family, config):
    """The extents and what else the family's converter writes."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name("tiny " + family.kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    writer.add_rope_freq_base(full["rope_theta"])
    if family.gguf in ("llama", "phi3"):
        writer.add_rope_dimension_count(int(head_dim * full.get("partial_rotary_factor", 1.0)))
    if full.get("rope_type") == "longrope":
        original = config.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(config.max_position_embeddings / original) / math.log(original)))
    if full.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    if family.gguf == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family.gguf in ("gemma2", "gemma3", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if "sliding_attention" in rope and family.gguf == "gemma3":
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 2)
        writer.add_float32("gemma3.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])


def write_rope_factors(writer, family, config):
    """The tensors by which RoPE's frequencies are divided."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, config.head_dim))
    if rope.get("rope_type") == "longrope":
        for length in ("long", "short"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32))


def llama3_factors(rope, head_dim):
    """What Llama 3's scaling divides each frequency by."""
    frequencies = rope["rope_theta"] ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    waves = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def write_vocabulary(writer, kind, made, rows):
    """The tokenizer as GGUF has it: as many pieces as the embedding has rows."""
    model = json.loads(made.to_str())["model"]
    pieces = sorted(made.get_vocab().items(), key=lambda item: item[1])[:rows]
    unused = [(f"[PAD{number}]", number) for number in range(len(pieces), rows)]
    special = {*kind.first, *kind.specials, *kind.extra}
    types = [gguf.TokenType.NORMAL] * len(pieces) + [gguf.TokenType.UNUSED] * len(unused)
    for piece, number in pieces:
        if piece in special:
            types[number] = gguf.TokenType.UNKNOWN if piece == "<unk>" else gguf.TokenType.CONTROL
        elif kind.spaces and len(piece) == 6 and piece.startswith("<0x"):
            types[number] = gguf.TokenType.BYTE
    writer.add_tokenizer_model(kind.gguf["model"])
    writer.add_tokenizer_pre(kind.gguf["pre"])
    writer.add_token_list([piece for piece, _ in pieces + unused])
    writer.add_token_types(types)
    if kind.spaces:
        writer.add_token_scores([float(-number) for number in range(rows)])
        writer.add_add_space_prefix(kind.spaces != "replace")
    else:
        writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    for text, add in ((kind.bos, writer.add_bos_token_id), (kind.eos, writer.add_eos_token_id)):
        if text is not None:
            add(made.token_to_id(text))
    if "<unk>" in kind.first:
        writer.add_unk_token_id(made.token_to_id("<unk>"))
    writer.add_add_bos_token(kind.adds_bos)
    writer.add_chat_template(kind.template)
