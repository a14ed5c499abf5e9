"""Token ids and texts against transformers, from the same files.

Where transformers' own tokenizers differ, the reference is the one that runs the file as it is written:
`PreTrainedTokenizerFast` for `tokenizer.json`, `SentencePieceBackend` for `tokenizer.model` with `legacy: true`, and
`LlamaTokenizer` for `legacy: false` (on texts in which no stretch begins with a space, which it loses).
"""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2TokenizerFast, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from lit_llm.text.tokenizer import Tokenizer

DATA = Path(os.environ.get("LIT_LLM_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
ENGLISH = "The quick brown fox jumps over the lazy dog. It isn't 3.14159 or 1,000,000; it's what we'd call \"fine\", isn't it?"
CODE = "def f(x: int) -> str:\n    if x:\n\t\treturn f'{x!r}'  # comment\n\n\n    return \"\\n\"\r\n"
WORLD = "Grüße, naïve café; Привет мир! 你好，世界。こんにちは 안녕하세요 مرحبا بالعالم नमस्ते ไทย ﬁ Å Å ｆｕｌｌ"  # noqa: RUF001
EMOJI = "🤗👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b\ufeff\u00a0\u3000 \x00\x07 \U0010ffff"
PLAIN = ["", "a", "Hello", "Hello world", "a  ", "\n", "\n\n a", "\t", "a\n", "a\r\nb", ENGLISH, CODE, WORLD, EMOJI, "?!" * 40]
SPACED = [" ", "  ", "   ", " a", "  a  b   c ", " \n ", "▁", "▁a", "a ▁ b", " " * 100]
LONG = (ENGLISH + "\n" + CODE + WORLD + EMOJI) * 200  # 90,000 characters


def with_specials(*tokens: str) -> list[str]:
    """Texts around special tokens; no stretch of text between two of them begins with a space."""
    forms = "{0}|{0}{0}|a{0}b|a {0}b|{0}Hello world|a{0}\nb{0}|x{0}y{0}z|{0}{1}a|日{1}本 {0}語|{0|{0}}".split("|")
    return [form.replace("{0}", tokens[0]).replace("{1}", tokens[-1]) for form in forms] + [f"a{token}b" for token in tokens]


def random_texts(specials: list[str], n: int = 200) -> list[str]:
    rng = random.Random(0)
    parts = [*specials, " ", "  ", "\n", "▁", *"abcdeéß日本🤗\u200d\x00<>/|", "Hello", " world", "<s", "/s>"]
    return ["".join(rng.choices(parts, k=rng.randint(1, 12))) for _ in range(n)]


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def assert_same(ours: Tokenizer, reference: Any, texts: list[str], bos: bool | None = None) -> None:
    """Ids (without BOS, and with the default BOS unless the text begins with it) and decoded texts are equal."""
    for text in texts:
        ids = reference(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, bos=False) == ids, text
        if ids[:1] != [ours.bos_id]:
            assert ours.encode(text, bos=bos) == reference(text)["input_ids"], text
        expected = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == expected, text


# The checkpoints' own tokenizers


def real(tmp_path: Path, name: str, *files: str, **config: Any) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there")
    for file in files:
        target = "tokenizer.json" if file == "20B_tokenizer.json" else file
        shutil.copyfile(DATA / name / file, tmp_path / target)
    if config:
        old = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(old | config))
    return tmp_path


def test_neox_equals_transformers(tmp_path: Path) -> None:
    folder = real(tmp_path, "tokenizer_neox_pythia", "20B_tokenizer.json")
    specials = ["<|endoftext|>", "<|padding|>"]
    texts = PLAIN + SPACED + with_specials(*specials) + random_texts(specials) + [LONG]
    assert_same(Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder), texts)
    assert Tokenizer(folder).vocab_size == 50277


def test_mistral_json_equals_transformers(tmp_path: Path) -> None:
    folder = real(tmp_path, "tokenizer_mistral_hf", "tokenizer.json", "tokenizer_config.json")
    specials = ["<s>", "</s>", "<unk>"]
    texts = PLAIN + SPACED + with_specials(*specials) + random_texts(specials) + [LONG]
    ours = Tokenizer(folder)
    assert_same(ours, PreTrainedTokenizerFast.from_pretrained(folder), texts)
    assert (ours.bos_id, ours.eos_id, ours.eos_ids, ours.adds_bos, ours.vocab_size) == (1, 2, {2}, True, 32000)


def test_llama2_json_equals_transformers_on_text(tmp_path: Path) -> None:
    folder = real(tmp_path, "tokenizer_llama2_hf", "tokenizer.json", "tokenizer_config.json")
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in PLAIN + SPACED + [LONG]:
        assert Tokenizer(folder).encode(text) == reference(text)["input_ids"], text


def sentencepiece_reference(folder: Path) -> SentencePieceBackend:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return SentencePieceBackend(vocab_file=str(folder / "tokenizer.model"), legacy=True, **names)


def encode_slow(reference: SentencePieceBackend, text: str) -> list[int]:
    return reference(text, add_special_tokens=False)["input_ids"]


def test_llama2_json_finds_special_tokens_marked_normalized(tmp_path: Path) -> None:
    # `PreTrainedTokenizerFast` misses them ("</s>" in the text becomes "</", "s", ">"), `LlamaTokenizer` finds them.
    folder = real(tmp_path, "tokenizer_llama2_hf", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ours, slow, auto = Tokenizer(folder), sentencepiece_reference(folder), LlamaTokenizer.from_pretrained(folder)
    specials = ["<s>", "</s>", "<unk>"]
    for text in with_specials(*specials) + random_texts(specials):
        assert ours.encode(text, bos=False) == encode_slow(slow, text), text
    for text in PLAIN:
        ids = auto(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == auto.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", ["tokenizer_mistral_hf", "tokenizer_llama2_hf", "stories260K"])
def test_real_sentencepiece_equals_transformers(tmp_path: Path, name: str) -> None:
    folder = real(tmp_path, name, "tokenizer.model", "tokenizer_config.json", legacy=True)
    ours, slow = Tokenizer(folder), sentencepiece_reference(folder)
    assert (ours.bos_id, ours.eos_id, ours.adds_bos) == (1, 2, True)
    specials = ["<s>", "</s>", "<unk>"]
    for text in PLAIN + SPACED + with_specials(*specials) + random_texts(specials) + [LONG]:
        ids = encode_slow(slow, text)
        assert ours.encode(text, bos=False) == ids, text
        assert ours.encode(text) == (ids if ids[:1] == [1] else [1, *ids]), text


@pytest.mark.parametrize("name", ["tokenizer_mistral_hf", "tokenizer_llama2_hf"])
def test_both_files_of_a_checkpoint_agree(tmp_path: Path, name: str) -> None:
    fast = Tokenizer(real(write(tmp_path / "fast"), name, "tokenizer.json", "tokenizer_config.json"))
    slow = Tokenizer(real(write(tmp_path / "slow"), name, "tokenizer.model", "tokenizer_config.json", legacy=True))
    specials = ["<s>", "</s>", "<unk>"]
    for text in PLAIN + SPACED + with_specials(*specials) + random_texts(specials) + [LONG]:
        ids = fast.encode(text)
        assert slow.encode(text) == ids, text
        assert slow.decode(ids) == fast.decode(ids), text
    rng = random.Random(1)  # bytes that are no UTF-8, special tokens, ids beyond the vocabulary
    for _ in range(300):
        ids = [rng.choice([rng.randrange(300), rng.randrange(33000)]) for _ in range(rng.randint(1, 8))]
        assert slow.decode(ids) == fast.decode(ids), ids


def test_without_legacy_only_the_start_gets_a_space(tmp_path: Path) -> None:
    folder = real(tmp_path, "tokenizer_llama2_hf", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    reference = LlamaTokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    assert_same(Tokenizer(folder), reference, PLAIN + with_specials("<s>", "</s>", "<unk>"))
    slow = sentencepiece_reference(folder)
    assert all(Tokenizer(folder).encode(text, bos=False) == encode_slow(slow, text) for text in SPACED)


# Small tokenizers made here


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokenizer.model` with Llama's settings."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ENGLISH + CODE).splitlines() * 5),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def copy_model(small_model: Path, folder: Path, **files: Any) -> Path:
    shutil.copyfile(small_model, write(folder, **files) / "tokenizer.model")
    return folder


def llama_reference(small_model: Path, **options: Any) -> LlamaTokenizer:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(small_model))
    vocab = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    return LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab), add_bos_token=True, **options)


@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_equals_transformers(small_model: Path, tmp_path: Path, legacy: bool) -> None:
    folder = copy_model(small_model, tmp_path, tokenizer_config={"legacy": legacy})
    ours, slow = Tokenizer(folder), sentencepiece_reference(folder)
    texts = PLAIN + with_specials("<s>", "</s>", "<unk>") + [LONG]
    assert_same(ours, llama_reference(small_model, legacy=legacy), texts)
    assert all(ours.encode(text, bos=False) == encode_slow(slow, text) for text in SPACED)


def test_add_prefix_space_false(small_model: Path, tmp_path: Path) -> None:
    folder = copy_model(small_model, tmp_path, tokenizer_config={"add_prefix_space": False, "legacy": True})
    reference = llama_reference(small_model, add_prefix_space=False)
    assert_same(Tokenizer(folder), reference, PLAIN + SPACED + with_specials("<s>", "</s>"))


@pytest.mark.parametrize("where", ["added_tokens", "tokenizer_config"])
@pytest.mark.parametrize("legacy", [True, False])
def test_added_tokens_with_sentencepiece(small_model: Path, tmp_path: Path, legacy: bool, where: str) -> None:
    config: dict[str, Any] = {"legacy": legacy, "additional_special_tokens": ["<|end|>"], "pad_token": "[PAD]"}
    ids = {"<tool>": 360, "<tool>x": 361, "<|end|>": 362, "[PAD]": 363}
    special = {"<|end|>", "[PAD]"}
    if where == "added_tokens":
        folder = copy_model(small_model, tmp_path, tokenizer_config=config, added_tokens=ids)
        tokens = [AddedToken(token, special=token in special, normalized=token not in special) for token in ids]
    else:
        flags = {token: {"lstrip": token == "<tool>", "rstrip": token == "<|end|>"} for token in ids}
        config["added_tokens_decoder"] = {
            i: {"content": token, "special": token in special, **flags[token]} for token, i in ids.items()
        }
        folder = copy_model(small_model, tmp_path, tokenizer_config=config)
        tokens = [AddedToken(token, special=token in special, **flags[token]) for token in ids]
    reference = llama_reference(small_model, legacy=legacy)
    reference.add_tokens(tokens)
    ours = Tokenizer(folder)
    texts = [*with_specials("<tool>", "<|end|>", "<tool>x", "[PAD]"), "a  <tool>b", "<|end|>  \nb", "<tool>xy"]
    if where == "added_tokens":  # without strip these stretches would begin with a space: see the top of the file
        texts = [text for text in texts if "  " not in text]
    assert_same(ours, reference, texts)
    assert ours.vocab_size == 364
    assert ours.decode([360, 362, 363, 400]) == "<tool>"


def test_special_tokens_without_ids_follow_the_vocabulary(small_model: Path, tmp_path: Path) -> None:
    folder = copy_model(small_model, tmp_path, tokenizer_config={"eos_token": "<|done|>"})
    ours, reference = Tokenizer(folder), llama_reference(small_model, eos_token="<|done|>")
    assert ours.eos_id == reference.eos_token_id == 360
    assert ours.vocab_size == 361
    assert_same(ours, reference, ["a<|done|>b"])


def small_json(folder: Path, bos: str | None = None, specials: tuple[str, ...] = ("<|bos|>", "<|end|>", "<|turn|>")) -> Path:
    """A byte-level `tokenizer.json` like that of Llama 3, with BOS in the post-processor's template if `bos`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([ENGLISH, CODE], trainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    byte_level = processors.ByteLevel(trim_offsets=False)
    if bos:
        template = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([byte_level, template])
    else:
        tokenizer.post_processor = byte_level
    tokenizer.save(str(write(folder) / "tokenizer.json"))
    return folder


def test_llama3_style(tmp_path: Path) -> None:
    """BOS comes from the post-processor: the config does not speak of it; several tokens end a generation."""
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>")
    folder = small_json(tmp_path, names[0], names)
    ids = {name: 320 + i for i, name in enumerate(names)}
    decoder = {i: {"content": name, "special": True, "normalized": False} for name, i in ids.items()}
    write(
        folder,
        tokenizer_config={"bos_token": names[0], "eos_token": "<|eot_id|>", "added_tokens_decoder": decoder},
        generation_config={"bos_token_id": 320, "eos_token_id": [321, 322]},
    )
    ours = Tokenizer(folder)
    assert (ours.adds_bos, ours.bos_id, ours.eos_id, ours.eos_ids) == (True, 320, 322, {321, 322})
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    assert_same(ours, reference, PLAIN + SPACED + with_specials(*names) + random_texts(list(names)) + [LONG])


def test_the_token_names_of_llama3(tmp_path: Path) -> None:
    path = DATA / "config_facts" / "llama3_tokenizer_config.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    config = json.loads(path.read_text(encoding="utf-8"))
    entries = [config["added_tokens_decoder"][i] for i in sorted(config["added_tokens_decoder"], key=int)]
    config["added_tokens_decoder"] = {str(320 + i): entry for i, entry in enumerate(entries)}
    folder = write(small_json(tmp_path, config["bos_token"], (config["bos_token"],)), tokenizer_config=config)
    ours = Tokenizer(folder)
    turn = "<|start_header_id|>user<|end_header_id|>\n\nHello 🤗<|eot_id|>"
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    assert_same(ours, reference, [turn, *with_specials("<|eot_id|>", "<|begin_of_text|>")])
    assert ours.adds_bos
    assert ours.decode([ours.bos_id or 0]) == ""


def test_qwen_style_has_no_bos(tmp_path: Path) -> None:
    folder = write(
        small_json(tmp_path),
        tokenizer_config={"bos_token": None, "eos_token": "<|end|>", "add_bos_token": False},
        config={"bos_token_id": 320, "eos_token_id": 321},
    )
    ours = Tokenizer(folder)
    assert (ours.bos_id, ours.adds_bos, ours.eos_ids) == (None, False, {321})
    assert_same(ours, PreTrainedTokenizerFast.from_pretrained(folder), PLAIN + SPACED + with_specials("<|end|>"))
    with pytest.raises(ValueError, match="no BOS"):
        ours.encode("a", bos=True)


@pytest.mark.parametrize(
    ("template", "config", "expected"),
    [
        ("<|bos|>", {}, True),
        ("<|bos|>", {"bos_token": "<|bos|>"}, True),
        ("<|bos|>", {"bos_token": "<|bos|>", "add_bos_token": False}, False),
        ("<|turn|>", {"bos_token": "<|bos|>"}, False),
        (None, {"bos_token": "<|bos|>"}, False),
        (None, {"bos_token": "<|bos|>", "add_bos_token": True}, True),
        (None, {"add_bos_token": True}, False),
    ],
)
def test_who_adds_bos(tmp_path: Path, template: str | None, config: dict[str, Any], expected: bool) -> None:
    ours = Tokenizer(write(small_json(tmp_path, template), tokenizer_config=config))
    assert ours.adds_bos is expected
    assert ours.encode("a", bos=None)[:-1] == ([320] if expected else [])


def test_model_config_ids_serve_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    folder = write(small_json(tmp_path), config={"bos_token_id": 320, "eos_token_id": [321, 322]})
    ours = Tokenizer(folder)
    assert (ours.bos_id, ours.eos_id, ours.eos_ids) == (320, 321, {321, 322})
    write(folder, generation_config={"eos_token_id": 322})
    ours = Tokenizer(folder)
    assert (ours.bos_id, ours.eos_id, ours.eos_ids) == (320, 322, {322})


def test_bos_and_eos_stand_once(tmp_path: Path) -> None:
    config = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "add_eos_token": True}
    ours = Tokenizer(write(small_json(tmp_path, "<|bos|>"), tokenizer_config=config))
    assert ours.encode("<|bos|>a").count(320) == 1
    assert ours.encode("<|bos|>a", bos=True) == ours.encode("a", bos=True) == ours.encode("a")
    assert ours.encode("") == [320]
    assert ours.encode("a", eos=True) == [*ours.encode("a"), 321]  # add_eos_token alone adds none
    assert ours.encode("a", bos=False, eos=True) == [*ours.encode("a", bos=False), 321]


@pytest.mark.parametrize("where", ["added_tokens", "tokenizer_config"])
def test_added_tokens_with_tokenizer_json(tmp_path: Path, where: str) -> None:
    folder = small_json(tmp_path)
    tokens = {"<tool>": 323, "<|pad|>": 324}
    if where == "added_tokens":
        write(folder, added_tokens=tokens, special_tokens_map={"pad_token": {"content": "<|pad|>"}, "eos_token": "<|end|>"})
    else:
        decoder = {i: {"content": token, "special": token == "<|pad|>", "lstrip": True} for token, i in tokens.items()}
        write(folder, tokenizer_config={"added_tokens_decoder": decoder, "pad_token": "<|pad|>", "eos_token": "<|end|>"})
    ours = Tokenizer(folder)
    assert_same(ours, PreTrainedTokenizerFast.from_pretrained(folder), [*with_specials("<tool>", "<|pad|>"), "a  <tool> b"])
    assert (ours.vocab_size, ours.eos_id) == (325, 321)
    assert ours.decode([323, 324]) == "<tool>"


def test_a_named_token_becomes_special(tmp_path: Path) -> None:
    folder = write(
        small_json(tmp_path, specials=()),
        tokenizer_config={
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {"320": {"content": "<|im_end|>", "special": False, "normalized": False}},
        },
    )
    assert_same(Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder), ["a<|im_end|>b"])
    assert Tokenizer(folder).decode([320]) == ""


def test_a_special_token_that_the_file_calls_normalized_is_found(tmp_path: Path) -> None:
    """As in Llama 2's old `tokenizer.json`. The reference reads the same file with the mistake corrected."""
    data = json.loads((small_json(tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    data["normalizer"] = {"type": "Prepend", "prepend": " "}
    corrected = PreTrainedTokenizerFast.from_pretrained(write(tmp_path / "corrected", tokenizer=data))
    data["added_tokens"] = [token | {"normalized": True} for token in data["added_tokens"]]
    assert_same(Tokenizer(write(tmp_path, tokenizer=data)), corrected, with_specials("<|end|>", "<|turn|>"))


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    model = tokenizers.Tokenizer.from_file(str(small_json(tmp_path / "json") / "tokenizer.json")).model
    model.save(str(write(tmp_path / "gpt2")))
    return tmp_path / "gpt2"


@pytest.mark.parametrize(
    "config", [None, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, {"add_bos_token": True}]
)
def test_gpt2_vocabulary_and_merges(gpt2_folder: Path, config: dict[str, Any] | None) -> None:
    if config is not None:
        write(gpt2_folder, tokenizer_config=config)
    ours, reference = Tokenizer(gpt2_folder), GPT2TokenizerFast.from_pretrained(gpt2_folder)
    assert (ours.bos_id, ours.eos_id) == (reference.bos_token_id, reference.eos_token_id)
    assert_same(ours, reference, PLAIN + SPACED + with_specials("<|endoftext|>") + [LONG])


def test_other_byte_level_families_need_their_tokenizer_json(gpt2_folder: Path) -> None:
    write(gpt2_folder, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"})
    with pytest.raises(ValueError, match=r"Qwen2Tokenizer.*tokenizer\.json"):
        Tokenizer(gpt2_folder)


@pytest.mark.parametrize("text", [*PLAIN, *SPACED, LONG])
def test_decode_gives_the_text_back(small_model: Path, tmp_path: Path, text: str) -> None:
    ours = Tokenizer(copy_model(small_model, tmp_path / "sentencepiece"))
    assert ours.decode(ours.encode(text)) == text.replace("▁", " ")  # "▁" is how the pieces spell a space
    ours = Tokenizer(small_json(tmp_path / "json", "<|bos|>"))
    assert ours.decode(ours.encode(text)) == normalizers.NFC().normalize_str(text)


# Broken folders


def test_no_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"scripts/download\.py --repo_id org/name --tokenizer_only"):
        Tokenizer(write(tmp_path / "org" / "name", vocab={}))


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named(small_model: Path, tmp_path: Path, gpt2_folder: Path, cut: float) -> None:
    folders = [
        (copy_model(small_model, tmp_path / "a"), "tokenizer.model"),
        (small_json(tmp_path / "b"), "tokenizer.json"),
        (gpt2_folder, "vocab.json"),
        (write(small_json(tmp_path / "c"), tokenizer_config={"bos_token": "<|bos|>"}), "tokenizer_config.json"),
        (write(small_json(tmp_path / "d"), added_tokens={"<x>": 323}), "added_tokens.json"),
        (write(small_json(tmp_path / "e"), generation_config={"eos_token_id": 321}), "generation_config.json"),
    ]
    for folder, name in folders:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * cut)])
        with pytest.raises(ValueError, match=name):
            Tokenizer(folder)


def test_broken_merges_are_named(gpt2_folder: Path) -> None:
    (gpt2_folder / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(ValueError, match=r"merges\.txt"):
        Tokenizer(gpt2_folder)


@pytest.mark.parametrize("entries", [[], {"320": "<x>"}, {"a": {"content": "<x>"}}, {"320": {"content": 1}}])
def test_unreadable_added_tokens_are_named(tmp_path: Path, entries: Any) -> None:
    folder = write(small_json(tmp_path), tokenizer_config={"added_tokens_decoder": entries})
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: (added_tokens_decoder|the id 'a' of an added token)"):
        Tokenizer(folder)


def test_an_added_token_with_a_foreign_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'<x>' the id 500.*would be 323"):
        Tokenizer(write(small_json(tmp_path), added_tokens={"<x>": 500}))


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer_config\.json must be an object"):
        Tokenizer(write(small_json(tmp_path), tokenizer_config=[1]))
