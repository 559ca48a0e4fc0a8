#!/usr/bin/env python3
"""Check a snapshot with nothing but Python's `safetensors` and numpy (CI runs this).

    pip install safetensors numpy
    check_snapshot.py SNAPSHOT

Every tensor opens; the manifest's sessions have the tokens and the KV that it says; keys and values are finite and not all zero.
"""
import json
import sys

import numpy as np
from safetensors import safe_open


def check_session(snapshot, manifest, session):
    pool = manifest["pools"][session["pool"]]
    extents = [pool["layers"], 2, pool["kv_heads"]]
    tokens = snapshot.get_tensor(f"session.{session['handle']}.tokens")
    assert tokens.dtype == np.uint32 and len(tokens) == session["tokens"], "tokens"
    kv = []
    if session["blocks"]:
        blocks = snapshot.get_tensor(pool["tensor"])[session["blocks"]]
        assert list(blocks.shape[1:]) == extents + [pool["block_tokens"], pool["head_dim"]], blocks.shape
        kv.append(blocks)
    if session["tail"]:
        tail = snapshot.get_tensor(session["tail"])
        assert list(tail.shape) == extents + [session["tail_tokens"], pool["head_dim"]], tail.shape
        kv.append(tail)
    count = session["evaluated"]
    assert sum(a.shape[-2] * (a.shape[0] if a.ndim == 6 else 1) for a in kv) == count, "KV and evaluated tokens"
    assert all(np.isfinite(a).all() and np.abs(a.astype(np.float32)).max() > 0 for a in kv), "KV values"
    return count


def main():
    with safe_open(sys.argv[1], framework="numpy") as snapshot:
        names = list(snapshot.keys())
        for name in names:
            snapshot.get_tensor(name)
        manifest = json.loads(snapshot.metadata()["driftwood.manifest"])
        counts = [check_session(snapshot, manifest, s) for s in manifest["sessions"]]
    print(f"ok: {len(names)} tensors, sessions of {counts} tokens")


if __name__ == "__main__":
    main()
