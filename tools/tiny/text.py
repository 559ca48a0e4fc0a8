"""Tokenizers of each kind, trained on a little prose, and the prompts they are tried on.

A vocabulary has about 320 pieces: all bytes, a few merges, the family's special tokens. Pipelines (normaliser, pre-tokeniser,
post-processor, flags of added tokens) are those of the published models of each kind.
"""

from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PROSE = Path(__file__).parents[2] / "tests/golden/prose.txt"
MERGES = 48
ALPHABET = 48
BYTES = [f"<0x{b:02X}>" for b in range(256)]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    "llama3": rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}",
    "qwen2": rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}",
    "tekken": rf"{UPPER}*{LOWER}+|{UPPER}+{LOWER}*|\p{{N}}|{REST_WITH_SLASH}",
    "o200k": rf"{UPPER}*{LOWER}+{CONTRACTIONS}?|{UPPER}+{LOWER}*{CONTRACTIONS}?|\p{{N}}{{1,3}}|{REST_WITH_SLASH}",
}


@dataclass
class Kind:
    """How one kind of vocabulary cuts text, and its special tokens."""

    pattern: str = ""  # of the byte-level kinds
    spaces: str = ""  # of the others: prepend, metaspace, replace
    nfc: bool = False
    ignore_merges: bool = False
    specials: tuple = ()  # after <unk> and the like, in the order of their numbers
    bos: str | None = None
    adds_bos: bool = False
    eos: str = ""
    rstrip: tuple = ()
    first: tuple = ()  # before the bytes, where SentencePiece has them
    extra: tuple = ()  # after everything else
    template: str = ""
    gguf: dict = field(default_factory=dict)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PIPES = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PHI = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")

KINDS = {
    "llama3": Kind(
        pattern="llama3", ignore_merges=True, bos="<|begin_of_text|>", adds_bos=True, eos="<|eot_id|>", template=HEADERS,
        specials=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        gguf={"model": "gpt2", "pre": "llama-bpe"},
    ),
    "llama2": Kind(
        spaces="prepend", first=("<unk>", "<s>", "</s>"), bos="<s>", adds_bos=True, eos="</s>", template=INST,
        gguf={"model": "llama", "pre": "default"},
    ),
    "mistral": Kind(
        spaces="metaspace", first=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), bos="<s>", adds_bos=True, eos="</s>",
        template=INST, gguf={"model": "llama", "pre": "default"},
    ),
    "tekken": Kind(
        pattern="tekken", first=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), bos="<s>", adds_bos=True, eos="</s>",
        template=INST, gguf={"model": "gpt2", "pre": "tekken"},
    ),
    "qwen2": Kind(
        pattern="qwen2", nfc=True, specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>",
        template=CHATML, gguf={"model": "gpt2", "pre": "qwen2"},
    ),
    "gemma": Kind(
        spaces="replace", first=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"), bos="<bos>",
        adds_bos=True, eos="<eos>", template=TURNS, gguf={"model": "llama", "pre": "default"},
    ),
    "gemma3": Kind(
        spaces="replace", first=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"), bos="<bos>",
        adds_bos=True, eos="<eos>", template=TURNS, extra=("<image_soft_token>",), gguf={"model": "llama", "pre": "default"},
    ),
    "phi3": Kind(
        spaces="prepend", first=("<unk>", "<s>", "</s>"), specials=PHI, rstrip=("</s>", *PHI[1:]), bos="<s>", eos="<|end|>",
        template=PIPES, gguf={"model": "llama", "pre": "default"},
    ),
    "o200k": Kind(
        pattern="o200k", specials=PHI, bos="<|endoftext|>", eos="<|end|>", template=PIPES, gguf={"model": "gpt2", "pre": "gpt-4o"},
    ),
}


def trained(pre_tokenizer, alphabet):
    """Merges, most frequent first, and the letters that they are made of."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet or range(ALPHABET)) + MERGES, initial_alphabet=alphabet, limit_alphabet=len(alphabet) or ALPHABET,
        show_progress=False, max_token_length=6,
    )
    tokenizer.train_from_iterator([PROSE.read_text()], trainer)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [piece for piece, _ in vocab]


def all_splits(pieces):
    """Every way to make each piece of two others, which is how a SentencePiece vocabulary becomes merges."""
    known = {piece: number for number, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += sorted((s for s in splits if s[0] in known and s[1] in known), key=lambda s: (known[s[0]], known[s[1]]))
    return merges


def byte_level(kind):
    """GPT-2's way: bytes as printable letters, words by a regular expression."""
    cut = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERNS[kind.pattern]), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = trained(cut, letters)
    vocab = {piece: number for number, piece in enumerate([*kind.first, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab, all_splits(pieces), ignore_merges=kind.ignore_merges))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    if kind.nfc:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def by_letters(kind):
    """SentencePiece's way: letters, bytes for what is no piece, spaces as another letter."""
    pieces = trained(pre_tokenizers.Metaspace(), [])
    if "\u2581" not in pieces:
        raise ValueError("the mark of a space must be a piece")
    vocab = {piece: number for number, piece in enumerate([*kind.first, *BYTES, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab, all_splits(pieces), unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind.spaces == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="always", split=False)
    else:
        replace = normalizers.Replace(" ", "\u2581")
        prepend = kind.spaces == "prepend"
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if prepend else replace
    if kind.spaces == "replace":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps if kind.spaces == "replace" else [*steps, decoders.Strip(" ", 1, 0)])
    return tokenizer


def tokenizer(kind):
    """The tokenizer of a kind, complete."""
    made = byte_level(kind) if kind.pattern else by_letters(kind)
    tokens = [*kind.first, *kind.specials, *kind.extra]
    made.add_special_tokens([AddedToken(text, special=True, normalized=False, rstrip=text in kind.rstrip) for text in tokens])
    if kind.adds_bos:
        bos = made.token_to_id(kind.bos)
        template = processors.TemplateProcessing(
            single=f"{kind.bos} $A", pair=f"{kind.bos} $A {kind.bos}:1 $B:1", special_tokens=[(kind.bos, bos)]
        )
        made.post_processor = template
    return made


def prompts(kind):
    """Texts that differ in what a tokenizer may get wrong; the last one is longer than any window here."""
    special = [*kind.first, *kind.specials][-2:]
    return [
        "Hello world, this is a test.",
        "  two leading spaces, a\ttab  and   more ",
        "line one\n\nline two\r\n  indented\n",
        "日本語のテキスト and 中文 混ざる ŐŰ",
        "👩‍👩‍👧‍👦 family 🇯🇵 flags",
        "Cafe\u0301 nai\u0308ve \u212b A\u030a",
        f"{special[0]}user\n hi{special[1]} \n there{special[1]}x",
        "x1 = 12345 + 0xFF; don't WE'LL theyVE'Re /path//to\r\n",
        "",
        "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.",
    ]
