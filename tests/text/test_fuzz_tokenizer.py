"""Damaged and hostile tokenizer files: a tokenizer that encodes and decodes, or an error that names the file."""

import json

import pytest
import sentencepiece
from fuzz import fuzz, mutated_bytes, mutated_json, result_or_clear_error
from tiny import WORDS
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lit_llm.errors import CheckpointError
from lit_llm.text import tokenizer as ours

TEXT = "a cat\n<s>é 🙂</s>"


def fast() -> dict:
    """A tokenizer.json with one of each part, and a small vocabulary."""
    vocab = {token: i for i, token in enumerate(["<unk>", "Ġ", "a", "c", "t", "Ċ", "at", "cat"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "t"), ("c", "at")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=True), "</s>"])
    template = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return json.loads(tokenizer.to_str())


CONFIG = {
    "add_bos_token": True,
    "add_prefix_space": False,
    "legacy": None,
    "tokenizer_class": "GPT2Tokenizer",
    "bos_token": {"content": "<s>", "lstrip": False, "normalized": False},
    "eos_token": "</s>",
    "image_token": "<img>",
    "additional_special_tokens": ["<x>", {"content": "</s>"}],
    "extra_special_tokens": {"video_token": "<x>"},
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    "model_max_length": 10**30,
}
ADDED = {"8": {"content": "<s>", "special": True}, "9": {"content": "</s>", "single_word": False, "rstrip": False}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each kind of vocabulary, with all the other files."""
    found = {}
    for kind in ("fast", "sentencepiece", "gpt2"):
        folder = found[kind] = tmp_path_factory.mktemp(kind)
        for name, content in {
            "tokenizer_config.json": {**CONFIG, **({"added_tokens_decoder": ADDED} if kind == "fast" else {})},
            "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}},
            "generation_config.json": {"eos_token_id": [9, 3], "bos_token_id": 8, "temperature": 0.6},
            "config.json": {"eos_token_id": 9},
        }.items():
            (folder / name).write_text(json.dumps(content))
    (found["fast"] / "tokenizer.json").write_text(json.dumps(fast()))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 5), model_prefix=str(found["sentencepiece"] / "tokenizer"),
        model_type="bpe", vocab_size=300, byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    (found["sentencepiece"] / "added_tokens.json").write_text(json.dumps({"<x>": 300}))
    (found["gpt2"] / "vocab.json").write_text(
        json.dumps({**fast()["model"]["vocab"], "<s>": 8, "</s>": 9, "<|endoftext|>": 10})
    )
    (found["gpt2"] / "merges.txt").write_text("#version: 0.2\na t\nc at\n")
    return found


def check(folder, name, content):
    """Use the tokenizer of a folder whose file `name` has another content."""
    original = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    try:
        with result_or_clear_error(str(folder), errors=(CheckpointError,)):
            tokenizer = ours.Tokenizer(folder)
            ids = tokenizer.encode(TEXT)
            tokenizer.decode(ids)
            tokenizer.decode_visibly([*ids, 10**6])
            tokenizer.token_bytes(ids[-1] if ids else 0)
            assert tokenizer.chat_template is None or tokenizer.chat_template.encode() is not None
    finally:
        (folder / name).write_bytes(original)


@pytest.mark.parametrize("kind", ["fast", "sentencepiece", "gpt2"])
@fuzz(content=mutated_json({**CONFIG, "added_tokens_decoder": ADDED}))
def test_mutated_tokenizer_config(folders, kind, content):
    check(folders[kind], "tokenizer_config.json", content)


@fuzz(mutated_json(fast()))
def test_mutated_tokenizer_json(folders, content):
    check(folders["fast"], "tokenizer.json", content)


@fuzz(mutated_json({"eos_token_id": [9, 3], "bos_token_id": 8, "temperature": 0.6}))
def test_mutated_generation_config(folders, content):
    check(folders["fast"], "generation_config.json", content)


@fuzz(mutated_json({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}))
def test_mutated_special_tokens_map(folders, content):
    check(folders["sentencepiece"], "special_tokens_map.json", content)


@fuzz(mutated_json({"<x>": 300, "<y>": 301}))
def test_mutated_added_tokens(folders, content):
    check(folders["sentencepiece"], "added_tokens.json", content)


@fuzz(mutated_json({**fast()["model"]["vocab"], "<s>": 8, "</s>": 9}))
def test_mutated_vocab_json(folders, content):
    check(folders["gpt2"], "vocab.json", content)


@fuzz(mutated_bytes(b"#version: 0.2\na t\nc at\n"))
def test_mutated_merges(folders, content):
    check(folders["gpt2"], "merges.txt", content)
