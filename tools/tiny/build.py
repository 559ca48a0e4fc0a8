"""Builds the tiny models of tests/fixtures/tiny, one of each family in each container, and what transformers answers for them.

    python3 -m venv V && V/bin/pip install -r tools/tiny/requirements.txt && V/bin/python tools/tiny/build.py --out DIR

`cargo xtask tiny-models` does this and compares the result with tests/fixtures/tiny (`--compare`). Everything follows from names and from
the pinned versions, but for the last bits of logits, which follow from the processor, too: weights are numpy's, seeded by the tensor's name. What lies in a model's folder:

- `expected.json`: prompts with their tokens; which positions of which prompts have logits; for each container the set of logits
  that it must give; greedy continuations.
- `expected.safetensors`: logits `SET.PROMPT`, (position, vocabulary), F32, of transformers on the CPU in F32 with eager attention.
  The set `long` of a model with two lists of RoPE factors is what a context longer than the original one gives.
- a folder or a `.gguf` for each container. F32, F16 and BF16 hold the same numbers and share the set `float`.

Beside the models lies `mlx_sweep.safetensors` (sweep.py).
"""

import argparse
import copy
import hashlib
import json
import os
import shutil
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import mlx.core as mx
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import containers
import families
import sweep
import text

GREEDY_TOKENS = 16
LOGITS = "/expected.safetensors"
LOGITS_WITHIN = 1e-5
FEATURES = (
    "rope_type", "rope_theta", "partial_rotary_factor", "sliding_window", "max_window_layers", "layer_types", "query_pre_attn_scalar",
    "attn_logit_softcapping", "final_logit_softcapping",
)
LOGITS_OF = (0, 6, 9)  # prompts
# Texts that GGUF's rules cut otherwise on purpose: no NFC there, a space before a word that follows a special token, and one more before
# a text that begins with a space.
NFC_PROMPT, SPECIAL_PROMPT, SPACE_PROMPT = 5, 6, 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compare", type=Path, help="a folder that must hold the same")
    parser.add_argument("models", nargs="*", help="all, if none is named")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for id in arguments.models or families.FAMILIES:
        build(id, families.FAMILIES[id], arguments.out / id)
    sweep.write(arguments.out / "mlx_sweep.safetensors")
    write_manifest(arguments.out)
    if arguments.compare:
        compare(arguments.out, arguments.compare)


def build(id, family, folder):
    """One family's model in all its containers."""
    print(f"{id}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kind = text.KINDS[family.kind]
    made = text.tokenizer(kind)
    config = families.config(family, kind, made)
    model = families.model(id, config)
    prompts = tokenised(kind, made)
    sets, logits = {}, {}
    for name, held in write_all(folder, family, model, kind, made, prompts):
        set_name = "float" if name in (*containers.FLOATS, "f32.gguf", "multimodal") else name
        sets[name] = set_name
        found = {f"{set_name}.{index}": logits_of(held, prompts[index]["ids"], positions(prompts, index, family)) for index in LOGITS_OF}
        for key, value in found.items():
            if (value - logits.setdefault(key, value)).abs().max() > 1e-5:
                raise ValueError(f"{name} does not hold what the others hold")
    if "long_factor" in family.rope:
        ids = prompts[LOGITS_OF[-1]]["ids"]
        logits[f"long.{LOGITS_OF[-1]}"] = logits_of(model, ids * 2, positions(prompts, LOGITS_OF[-1], family))
    check_features(family, kind, made, model, prompts[LOGITS_OF[-1]]["ids"])
    save_file(logits, folder / LOGITS[1:])
    expected = {
        "family": config.model_type, "vocabulary": model.lm_head.weight.shape[0], "containers": sets,
        "positions": {index: positions(prompts, index, family) for index in LOGITS_OF}, "prompts": prompts,
        "greedy": [greedy(model, index, prompts[index]["ids"]) for index in LOGITS_OF],
    }
    write_json(folder / "expected.json", expected)


def write_all(folder, family, model, kind, made, prompts):
    """Writes every container; yields its name and the model that it holds."""
    source = folder / "source"
    containers.write_float(source, "f32", model, kind, made)
    check_tokenizer(source, prompts)
    for dtype in family.floats:
        yield dtype, containers.write_float(folder / dtype, dtype, model, kind, made)
    for width in family.mlx:
        name = "mlx-mixed" if width == "mixed" else "mlx-{}-{}".format(*width)
        held, quantised = containers.write_mlx(folder / name, width, source, model, "float32")
        check_mlx(held, quantised, prompts[LOGITS_OF[-1]]["ids"], family)
        yield name, held
    for dtype in family.mlx_halves:
        name = f"mlx-4-64-{dtype}"
        yield name, containers.write_mlx(folder / name, (4, 64), source, model, dtype)[0]
    if family.gguf == "gemma3":
        yield "multimodal", containers.write_multimodal(folder / "multimodal", source, model)
    for type_name in family.types:
        yield f"{type_name}.gguf", containers.write_gguf(folder / f"{type_name}.gguf", type_name, family, model, kind, made)
    shutil.rmtree(source)


def tokenised(kind, made):
    """The prompts with their tokens, with and without what the tokenizer puts around a text."""
    cut_otherwise = {NFC_PROMPT} if kind.nfc else {SPECIAL_PROMPT} if kind.spaces else set()
    if kind.spaces == "metaspace":
        cut_otherwise.add(SPACE_PROMPT)
    return [
        {
            "text": prompt, "ids": made.encode(prompt).ids, "ids_plain": made.encode(prompt, add_special_tokens=False).ids,
            "gguf": index not in cut_otherwise,
        }
        for index, prompt in enumerate(text.prompts(kind))
    ]


def positions(prompts, index, family):
    """The positions whose logits are kept: around the window's edge in the last prompt, else the last one."""
    last = len(prompts[index]["ids"]) - 1
    window = family.others.get("sliding_window") or 8
    return sorted({0, 1, window - 1, window, window + 1, last}) if index == LOGITS_OF[-1] else [last]


@torch.no_grad()
def logits_of(model, ids, positions):
    return model(torch.tensor([ids]), use_cache=False).logits[0, positions].contiguous()


def greedy(model, index, ids):
    """A greedy continuation, with the lead of each token over the next best."""
    tokens, margins = [], []
    for _ in range(GREEDY_TOKENS):
        best = logits_of(model, ids + tokens, [-1])[0].topk(2)
        tokens.append(best.indices[0].item())
        margins.append(round((best.values[0] - best.values[1]).item(), 4))
    return {"prompt": index, "tokens": tokens, "margins": margins}


def check_features(family, kind, made, model, ids):
    """What sets the family apart moves logits by far more than the tests forgive: no test could miss that it is left out."""
    expected = logits_of(model, ids, list(range(len(ids))))
    differences = {}
    for feature in FEATURES:
        if (config := families.without(family, kind, made, feature)) is not None:
            other = copy.deepcopy(model).__class__._from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
            families.load(other, {name: value for name, value in model.state_dict().items()})
            differences[feature] = (logits_of(other, ids, list(range(len(ids)))) - expected).abs().max().item()
    for name in ("bias", "q_norm", "input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm"):
        state = {key: torch.zeros_like(value) if name in key else value for key, value in model.state_dict().items()}
        if any(name in key for key in state):
            other = copy.deepcopy(model)
            families.load(other, state)
            differences[name] = (logits_of(other, ids, list(range(len(ids)))) - expected).abs().max().item()
    print("  left out:", ", ".join(f"{feature} {difference:.2f}" for feature, difference in differences.items()))
    if min(differences.values()) < 0.05:
        raise ValueError("a feature does too little")


def check_mlx(held, quantised, ids, family):
    """What mlx_lm computes is what transformers computes on the same numbers."""
    ids = ids if family.mlx_window else ids[: family.others["sliding_window"]]
    if "long_factor" in family.rope:
        ids = ids * 2  # mlx_lm has the long factors for every text, transformers for one that is longer than the original context
    ours = logits_of(held, ids, list(range(len(ids)))).numpy()
    theirs = np.array(quantised(mx.array([ids]))[0].astype(mx.float32))
    difference = np.abs(ours - theirs).max()
    print(f"  mlx_lm and transformers differ by {difference:.1e}, logits up to {np.abs(ours).max():.1f}")
    if not difference < 1e-3:
        raise ValueError("mlx_lm computes something else")


def check_tokenizer(folder, prompts):
    """transformers reads the folder's tokenizer as `tokenizers` reads its file."""
    whole, bare = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for prompt in prompts:
        if not whole.encode(prompt["text"]) == bare.encode(prompt["text"]).ids == prompt["ids"]:
            raise ValueError(f"{folder}: {prompt['text']!r}: {whole.encode(prompt['text'])} {prompt['ids']}")


def write_json(path, value):
    """One line for each key, and for each item of its list."""
    def lines(item):
        if not isinstance(item, list):
            return json.dumps(item, ensure_ascii=False)
        return "[\n  " + ",\n  ".join(json.dumps(part, ensure_ascii=False) for part in item) + "\n]"

    path.write_text("{\n" + ",\n".join(f" {json.dumps(key)}: {lines(item)}" for key, item in value.items()) + "\n}\n")


def write_manifest(out):
    """The sha256 of each file."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "MANIFEST")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(out)}\n" for path in files]
    (out / "MANIFEST").write_text("".join(lines))


def compare(built, committed):
    """Fails if other files were built: with other bytes, or logits that differ by more than what another processor rounds otherwise."""
    new, old = (manifest(folder) for folder in (built, committed))
    differing = [name for name in sorted(new.keys() | old.keys()) if new.get(name) != old.get(name)]
    for name in differing:
        apart = logits_apart(built / name, committed / name) if name.endswith(LOGITS) and name in new and name in old else np.inf
        if not apart <= LOGITS_WITHIN:
            raise SystemExit(f"{name}: what was built is not what is committed")
        print(f"{name}: this processor rounds otherwise, by up to {apart:.1e}")
    print(f"{len(new) - len(differing)} of {len(new)} files are those of {committed}, to the byte")


def manifest(folder):
    """The sha256 of each file, by its name."""
    lines = (folder / "MANIFEST").read_text().splitlines()
    return {name: hash for hash, name in (line.split("  ") for line in lines)}


def logits_apart(one, other):
    """How far the most different of two files' logits are apart; infinitely, if they are not logits of the same texts."""
    one, other = load_file(one), load_file(other)
    if {name: rows.shape for name, rows in one.items()} != {name: rows.shape for name, rows in other.items()}:
        return np.inf
    return np.max([(one[name] - other[name]).abs().max() for name in one])  # NaN, if there is one


if __name__ == "__main__":
    main()
