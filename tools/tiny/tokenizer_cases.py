#!/usr/bin/env python3
"""Small tokenizers of every kind that Driftwood reads from `tokenizer.json`, and what Hugging Face's `tokenizers` makes of awkward texts.

    pip install tokenizers==0.23.3
    python3 tools/tiny/tokenizer_cases.py --out tests/golden/tokenizers       # what is committed
    python3 tools/tiny/tokenizer_cases.py --out /tmp/many --cases 2000        # a longer run of the same test:
    DRIFTWOOD_TOKENIZERS=/tmp/many cargo test -p driftwood-engine --test tokenizer

Each kind is one file `KIND.json`: {"tokenizer": the tokenizer.json, "cases": [[text, ids], ..]}. Texts are random, from a fixed seed: words of
the training text, runs of spaces, CJK, emoji with joiners, decomposed accents, contractions in all cases, special tokens within text.
"""

import argparse
import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD, REST = r"[^\r\n\p{L}\p{N}]?", r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = f"{LEAD}{UPPER}*{LOWER}+|{LEAD}{UPPER}+{LOWER}*|" + r"\p{N}" + REST
TAIL = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = f"{LEAD}{UPPER}*{LOWER}+{TAIL}|{LEAD}{UPPER}+{LOWER}*{TAIL}|" + r"\p{N}{1,3}" + REST

AWKWARD = (
    "Don't you'll we'VE it's I'D they're camelCase HTTPServer iPhone XMLHttpRequest snake_case 3.14159 1,234,567 0x1F "
    "naïve café e\u0301le\u0300ve Ångström A\u030a ﬁn ½ Ⅷ ²³ 中文字符 日本語テスト 한국어 \u1112\u1161\u11ab русский ЁЛКА עברית العربية हिन्दी ไทย "
    "👩\u200d👩\u200d👧 👍🏽 🇩🇪 ❤\ufe0f ǅ ǆ ʰ ª ß ẞ ſ K it'ſ ʕ•ᴥ•ʔ \u00a0\u3000\u2028 x=a//b\n/c <html> {\"k\": [1]} --- ... ??? \t\ttab\r\n  \n\n   end"
)
SPECIALS = ["<s>", "</s>", "<|end|>", "<|user|>", "<tool>"]


def training_text(root):
    prose = (root / "tests/golden/prose.txt").read_text()
    return prose[:20000].split("\n") + [AWKWARD] * 20


def added(strips=False, normalized=False):
    """The special tokens; `strips` as Phi-3 has them."""
    flags = lambda text: {"rstrip": True} if strips and text in ("<|end|>", "<|user|>") else {}
    tokens = [AddedToken(text, special=text != "<tool>", normalized=normalized and text != "<tool>", **flags(text)) for text in SPECIALS]
    if strips:
        tokens.append(AddedToken("<|both|>", lstrip=True, rstrip=True, special=True, normalized=False))
    return tokens


def byte_level(text, pre, normalizer=None, whole_words=False, strips=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_tokens(added(strips))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos(tokenizer)])
    return tokenizer


def split(pattern, behavior="isolated", invert=False):
    whole = pre_tokenizers.Split(Regex(pattern), behavior, invert)
    return pre_tokenizers.Sequence([whole, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def char_level(text, normalizer=None, pre=None, strips=False, normalized=False, whole_words=False):
    """As converted from SentencePiece: control tokens, 256 bytes, pieces; bytes where no piece fits."""
    alphabet = models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>", ignore_merges=whole_words)
    tokenizer = Tokenizer(alphabet)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre:
        tokenizer.pre_tokenizer = pre
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=560, limit_alphabet=90, special_tokens=specials, show_progress=False)
    # Words of at most three, as SentencePiece's own trainer cuts them: a whole line would be learned by heart.
    lines = [line.split(" ") for line in text]
    tokenizer.train_from_iterator((" ".join(line[i : i + 3]) for line in lines for i in range(0, len(line), 3)), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    for token in state["added_tokens"]:
        token["normalized"] = normalized
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens([token for token in added(strips, normalized) if token.content not in ("<s>", "</s>")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = bos(tokenizer)
    return tokenizer


def bos(tokenizer):
    return processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])


def kinds(text):
    legacy = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    metaspace = lambda scheme, cuts=False: pre_tokenizers.Metaspace(prepend_scheme=scheme, split=cuts)
    gemma_split = pre_tokenizers.Split(" ", "merged_with_previous")
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return {
        "gpt2": lambda: byte_level(text, pre_tokenizers.ByteLevel(add_prefix_space=False)),
        "smollm": lambda: byte_level(text, digits),
        "llama3": lambda: byte_level(text, split(LLAMA3), whole_words=True),
        "qwen2": lambda: byte_level(text, split(QWEN2), normalizer=normalizers.NFC()),
        "tekken": lambda: byte_level(text, split(TEKKEN), whole_words=True),
        "gpt4o": lambda: byte_level(text, split(GPT4O, "removed", True), strips=True),
        "legacy": lambda: char_level(text, normalizer=legacy),
        "legacy_normalized": lambda: char_level(text, normalizer=legacy, normalized=True),
        "phi3": lambda: char_level(text, normalizer=legacy, strips=True),
        "metaspace_always": lambda: char_level(text, pre=metaspace("always")),
        "metaspace_first": lambda: char_level(text, pre=metaspace("first")),
        "metaspace_cut": lambda: char_level(text, pre=metaspace("always", True), whole_words=True),
        "gemma": lambda: char_level(text, normalizer=normalizers.Replace(" ", "▁"), pre=gemma_split),
    }


def random_text(rng, words):
    """One awkward text of up to thirty parts."""
    characters = AWKWARD + "abcXYZ 019 '’.,;!?-_/\\\n\t" + "▁"
    parts = []
    for _ in range(rng.randrange(1, 30)):
        way = rng.randrange(8)
        if way < 3:
            parts.append(rng.choice(["", " "]) + rng.choice(words))
        elif way == 3:
            parts.append(rng.choice([" ", "\n", "\t", "\r\n", " \n", "\u00a0"]) * rng.randrange(1, 5))
        elif way == 4:
            parts.append(rng.choice(SPECIALS + ["<|both|>", "<0x41>", "<unk>"]) + rng.choice(["", "", " ", "\n", " \n "]))
        elif way == 5:
            parts.append(str(rng.randrange(10 ** rng.randrange(1, 9))))
        elif way == 6:
            start = rng.randrange(len(AWKWARD))
            parts.append(AWKWARD[start : start + rng.randrange(1, 12)])
        else:
            parts.append("".join(rng.choice(characters) for _ in range(rng.randrange(1, 8))))
    return "".join(parts)


FIXED = ["", " ", "  ", "a", " a", "  a", "a ", "\n", "a\n b", "<s>", "<s>a", "<s> a", "a<s>", "a <s> b", "<|end|>\n a", "▁a", " ▁", "<tool> x", "e\u0301", "\u0301"]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", required=True, type=pathlib.Path)
    arguments.add_argument("--cases", type=int, default=60, help="random texts a kind")
    options = arguments.parse_args()
    text = training_text(pathlib.Path(__file__).resolve().parents[2])
    words = " ".join(text).split()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, make in kinds(text).items():
        rng = random.Random(name)
        tokenizer = make()
        cases = FIXED + [random_text(rng, words) for _ in range(options.cases)]
        record = {"tokenizer": json.loads(tokenizer.to_str()), "cases": [[case, tokenizer.encode(case).ids] for case in cases]}
        (options.out / f"{name}.json").write_text(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
