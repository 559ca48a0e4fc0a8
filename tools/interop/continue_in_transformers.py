#!/usr/bin/env python3
"""Continue a frozen conversation in Hugging Face transformers, from the snapshot's own KV.

    pip install torch transformers accelerate gguf safetensors numpy
    continue_in_transformers.py SNAPSHOT MODEL.gguf [--tokens 32]

Opens the snapshot with `safetensors`, hands keys and values to a `DynamicCache`, feeds the tokens that were not evaluated yet (at least
the last one), and prints greedy tokens as a JSON list, with the margin between the two best logits of each.
"""
import argparse
import json
import os

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DynamicCache


def read_kv(snapshot, manifest, session):
    """Keys and values of a session as two arrays of shape (layer, kv_head, token, head_dim), f32."""
    pool = manifest["pools"][session["pool"]]
    layers, heads, dim = pool["layers"], pool["kv_heads"], pool["head_dim"]
    parts = []  # each (layer, k_or_v, kv_head, token, head_dim)
    if session["blocks"]:
        blocks = snapshot.get_tensor(pool["tensor"])[session["blocks"]]
        blocks = np.moveaxis(blocks, 0, 3)  # (layer, k_or_v, kv_head, block, token, head_dim)
        parts.append(blocks.reshape(layers, 2, heads, -1, dim))
    if session["tail"]:
        parts.append(snapshot.get_tensor(session["tail"]))
    kv = np.concatenate(parts, axis=3).astype(np.float32)
    return kv[:, 0], kv[:, 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("snapshot")
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()

    with safe_open(args.snapshot, framework="numpy") as snapshot:
        manifest = json.loads(snapshot.metadata()["driftwood.manifest"])
        session = manifest["sessions"][0]
        keys, values = read_kv(snapshot, manifest, session)
        tokens = snapshot.get_tensor(f"session.{session['handle']}.tokens").astype(np.int64)

    evaluated = min(session["evaluated"], len(tokens) - 1)  # logits are not stored: the last token is fed again
    folder, name = os.path.split(os.path.abspath(args.model))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    cache = DynamicCache(config=model.config)
    for layer in range(keys.shape[0]):
        k, v = (torch.from_numpy(np.ascontiguousarray(a[layer][None, :, :evaluated])) for a in (keys, values))
        cache.update(k, v, layer)

    feed = torch.from_numpy(tokens[evaluated:])[None]
    answer = {"restored_tokens": evaluated, "tokens": [], "margins": []}
    with torch.no_grad():
        for _ in range(args.tokens):
            logits = model(feed, past_key_values=cache, use_cache=True).logits[0, -1]
            best = torch.topk(logits, 2)
            answer["tokens"].append(best.indices[0].item())
            answer["margins"].append(round((best.values[0] - best.values[1]).item(), 4))
            feed = best.indices[:1][None]
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
