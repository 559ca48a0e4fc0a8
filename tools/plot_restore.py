#!/usr/bin/env python3
"""Draw what `driftwood bench kv --json` measured: restoring against prefilling again, over the length of the context.

    pip install matplotlib
    plot_restore.py SmolLM2=kv-smollm2.json "Gemma 3=kv-gemma3.json" -o docs/restore.svg
"""
import argparse
import json

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)

COLOURS = {"restore_ms": "#2a9d8f", "first_token_ms": "#264653", "reprefill_ms": "#e76f51"}
LABELS = {"restore_ms": "restore", "first_token_ms": "restore to first logits, all bytes verified", "reprefill_ms": "prefill again"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FILE")
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    plt.rcParams["svg.hashsalt"] = "driftwood"
    figure, axes = plt.subplots(1, len(args.models), figsize=(5 * len(args.models), 3.6), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], args.models):
        name, file = model.split("=", 1)
        rows = json.load(open(file))["rows"]
        tokens = [row["tokens"] for row in rows]
        for key, label in LABELS.items():
            axis.loglog(tokens, [row[key] for row in rows], marker="o", color=COLOURS[key], label=label)
        axis.set_title(name)
        axis.set_xticks(tokens, [str(t) for t in tokens])
        axis.minorticks_off()
        axis.set_xlabel("tokens of context")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("milliseconds")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(args.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
