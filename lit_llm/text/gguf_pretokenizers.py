"""How byte-level BPE tokenizers split a text into words, by the name that GGUF files have for it (`tokenizer.ggml.pre`).

The names and their regular expressions are those of llama.cpp, src/llama-vocab.cpp; the order of alternatives matters.
"""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import normalizers

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Splitting:
    """A rule and its names in GGUF files; the first one is written."""

    names: tuple[str, ...]
    splits: tuple[str, ...]
    """Regular expressions, applied one after another: what one matches, and what is between, is a piece for the next."""
    ignore_merges: bool = False
    """A word that is a token is not merged from its bytes."""
    adds_bos: bool = False
    """BOS comes first unless the file says otherwise."""
    nfc: bool = False
    """Upstream normalizes the text; llama.cpp does not."""


SPLITTINGS = [
    Splitting(
        ("gpt-2", "phi-2", "mpt", "gigachat", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "mellum"),
        (_GPT2,),
    ),
    Splitting(("olmo",), (_GPT2,), nfc=True),
    Splitting(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        (_WORDS % r"\p{N}{1,3}",), ignore_merges=True, adds_bos=True,
    ),
    Splitting(("dbrx", "smaug-bpe", "chatglm-bpe"), (_WORDS % r"\p{N}{1,3}",)),
    Splitting(("qwen2", "deepseek-r1-qwen", "kormo", "megrez"), (_WORDS % r"\p{N}",), nfc=True),
    Splitting(("stablelm2", "hunyuan"), (_WORDS % r"\p{N}",)),
    Splitting(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", _GPT2)),
    Splitting(("gpt-4o", "llama4"), (_CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?", r"\p{N}{1,3}"),)),
    Splitting(("tekken",), (_CASED % ("", "", r"\p{N}"),), ignore_merges=True),
    Splitting(("deepseek-v3", "hunyuan-dense"), (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK)),
    Splitting(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    Splitting(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
]  # fmt: skip

# Text on which the rules above differ from one another: contractions, cases, digits, punctuation, spaces, scripts, symbols.
_SAMPLE = (
    "It's IT'S we'LL  don't\n\n\n  x = 1234567 + 3.14;\t\t// HelloWorld camelCase ABCdef\r\nnaïve Ünïcödé Привет мир "
    "\u6771\u4eac\u30bf\u30ef\u30fc \u3072\u3089\u304c\u306a \u0645\u0631\u062d\u0628\u0627 "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0661\u0662\u0663 \u00bd \u00b2\u00b3 \U0001f680\U0001f680 "
    "#tag @user $5.99 100% a/b/c [x](y) {z} `code` ~~no~~ "
    "<|x|> ...end\n/path\n\n - \\n\x0b  \u00a0 e\u0301 K^2"
)  # fmt: skip


def splitting_named(name: str) -> Splitting | None:
    return next((row for row in SPLITTINGS if name in row.names), None)


def pre_tokenizer(row: Splitting) -> dict[str, Any]:
    """Return the rule as `pre_tokenizer` of a `tokenizer.json`."""
    splits = [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} for regex in row.splits]
    spelled = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, spelled]}


def splitting_of(tokenizer: HFTokenizer) -> Splitting | None:
    """Return the rule that splits a sample of text as this tokenizer does, or None.

    A rule also has to agree on `ignore_merges`, which no text without its vocabulary shows.
    """
    if tokenizer.pre_tokenizer is None:
        return None
    normal = _SAMPLE if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(_SAMPLE)
    words = tokenizer.pre_tokenizer.pre_tokenize_str(normal)
    ignores = json.loads(tokenizer.to_str())["model"].get("ignore_merges", False)
    for row in SPLITTINGS:
        made = HFTokenizer.from_str(_EMPTY % json.dumps(pre_tokenizer(row))).pre_tokenizer
        text = normalizers.NFC().normalize_str(_SAMPLE) if row.nfc else _SAMPLE
        if row.ignore_merges == ignores and made is not None and made.pre_tokenize_str(text) == words:
            return row
    return None


_EMPTY = '{"version": "1.0", "pre_tokenizer": %s, "model": {"type": "BPE", "vocab": {}, "merges": []}}'
