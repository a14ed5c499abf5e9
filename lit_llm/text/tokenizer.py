"""Strings to token ids and back, from the files that a checkpoint ships.

The reference is transformers 5, which contradicts itself: `PreTrainedTokenizerFast` runs `tokenizer.json` as it is written, but
`LlamaTokenizer` takes only vocabulary and merges from it and builds its own pipeline around them, which loses a leading space
(" a" gets the ids of "a"). We run the file: it agrees with sentencepiece, which the models were trained with.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

from tokenizers import AddedToken

from lit_llm.errors import CheckpointError, OptionError
from lit_llm.files import read_json_object, read_text
from lit_llm.schema import shown
from lit_llm.text.gguf_tokenizer import renamed, tokenizer_folder
from lit_llm.text.tokenizer_backends import FastBackend, SentencePieceBackend, naming, read_gpt2, read_tokenizer_json

T = TypeVar("T")

# How byte-level pipelines spell bytes, after GPT-2: by their Latin-1 character, or if that is not printable by one from 256 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_SPELLED = {chr(b): b for b in _PRINTABLE} | {chr(256 + n): b for n, b in enumerate(sorted({*range(256)} - {*_PRINTABLE}))}

FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json",
)  # fmt: skip


class _Content(TypedDict):
    content: str


class _Token(_Content, total=False):
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class _Template(TypedDict):
    name: str
    template: str


_AnyToken = str | _Token


class _Config(TypedDict, total=False):
    """Contents of `tokenizer_config.json` and `special_tokens_map.json` that are read; further tokens by their names."""

    bos_token: _AnyToken | None  # null: there is none
    eos_token: _AnyToken
    unk_token: _AnyToken
    pad_token: _AnyToken
    additional_special_tokens: list[_AnyToken]
    extra_special_tokens: list[_AnyToken] | dict[str, _AnyToken]
    added_tokens_decoder: dict[str, _Token]
    add_bos_token: bool
    add_prefix_space: bool
    legacy: bool
    tokenizer_class: str
    chat_template: str | list[_Template] | dict[str, str]


class _Ids(TypedDict, total=False):
    """Contents of `generation_config.json` and `config.json` that are read."""

    bos_token_id: int | list[int]
    eos_token_id: int | list[int]


class Tokenizer:
    """The tokenizer of a checkpoint: `tokenizer.json`, else `tokenizer.model` (sentencepiece), else GPT-2's `vocab.json`.

    That of a GGUF file is in its metadata.

    Attributes:
        bos_id, eos_id: Ids of the special tokens, or None if the checkpoint names none.
        adds_bos: True if `encode` puts BOS first by default: `add_bos_token` of `tokenizer_config.json`, else the
            post-processor of `tokenizer.json`. (transformers 5 ignores `add_bos_token` if there is a `tokenizer.json`, and then
            omits the BOS that transformers 4 puts before the same checkpoint's prompts.)
        vocab_size: Highest id plus one.
        special_tokens: Their strings by name: bos_token, eos_token and the others that the config names.
        fingerprint: Checksum of the files that a tokenizer may consist of.
        chat_template: The checkpoint's Jinja template of a conversation, or None.
        template_kwargs: Variables that the template is rendered with, unless a record or a request has others.
        other_templates: Names of the checkpoint's templates if it has several, none of them the default.

    Raises:
        FileNotFoundError: if the folder has no tokenizer.
        CheckpointError: if a file is broken, or two files contradict each other.
    """

    def __init__(self, checkpoint_dir: Path | str) -> None:
        folder = tokenizer_folder(Path(checkpoint_dir))
        config = _read_config(folder)
        with renamed(folder, checkpoint_dir):
            self._backend = _open_backend(folder, config)
        self.vocab_size = self._backend.vocab_size
        self._anchor = self._backend.encode("a")  # a space after it is kept
        self._n_skipped = len(self.decode(self._anchor))

        bos_ids, eos_ids = _special_ids(folder)
        self.bos_id = self._special_id("bos", config, bos_ids)
        self.eos_id = self._special_id("eos", config, eos_ids)
        self._eos_ids = frozenset(i for i in (self.eos_id, *eos_ids) if i is not None)
        adds_bos = config.get("add_bos_token")
        if adds_bos is None:
            adds_bos = self._backend.adds_bos(self.bos_id)
        self.adds_bos = bool(adds_bos) and self.bos_id is not None
        ends = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        self.special_tokens = {name: token for name, token in _named_tokens(config).items() if name not in ends}
        self.special_tokens |= {name: self._backend.token(i) for name, i in ends.items() if i is not None}
        templates = _chat_templates(folder, config)
        self.chat_template = templates.get("default")
        self.template_kwargs: dict[str, Any] = {}
        self.other_templates = () if self.chat_template is not None else tuple(templates)
        sums = [(name, hashlib.sha256((folder / name).read_bytes()).digest()) for name in FILES if (folder / name).is_file()]
        self.fingerprint = hashlib.sha256(repr(sums).encode()).hexdigest()

    @property
    def backend(self) -> FastBackend | SentencePieceBackend:
        """The library behind it."""
        return self._backend

    @property
    def eos_ids(self) -> frozenset[int]:
        """All tokens that end a text (`generation_config.json` may list several)."""
        return self._eos_ids

    def encode(self, text: str, bos: bool | None = None, eos: bool = False) -> list[int]:
        """Return the token ids of `text`. The string of a special token becomes that token.

        BOS is not added to a text that begins with it. `add_eos_token` of `tokenizer_config.json` is for training the base
        model: a prompt must not end in EOS, so only the argument adds it.

        Args:
            bos: Put BOS first; None: as the checkpoint does.
            eos: Put EOS last.

        Raises:
            OptionError: if the requested token does not exist.
        """
        ids = self._backend.encode(text)
        if (self.adds_bos if bos is None else bos) and (not ids or ids[0] != self.bos_id):
            if self.bos_id is None:
                raise OptionError("this tokenizer has no BOS token")
            ids = [self.bos_id, *ids]
        if eos:
            if self.eos_id is None:
                raise OptionError("this tokenizer has no EOS token")
            ids = [*ids, self.eos_id]
        return ids

    def encode_more(self, text: str) -> list[int]:
        """Return the token ids of a continuation: without BOS and without the space that some tokenizers put before a text."""
        return self._backend.encode(text, continued=True)

    def encode_more_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a continuation, and for each the number of characters of the text up to its end."""
        return self._backend.encode_with_ends(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, without special tokens and ids beyond the vocabulary (padding rows of the embedding)."""
        return self._backend.decode(list(ids))

    def decode_more(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` as a continuation, with its leading space."""
        return self.decode([*self._anchor, *ids])[self._n_skipped :]

    def token_bytes(self, i: int, before: Sequence[int] = ()) -> bytes:
        """Return the UTF-8 bytes, possibly a part of a character, that a token adds to the text of the tokens before it."""
        token, alone = self._backend.token(i), self.decode_more([i])
        if (byte := re.fullmatch("<0x([0-9A-F]{2})>", token)) and alone != token:
            return bytes.fromhex(byte[1])
        if "\ufffd" in alone and _SPELLED.keys() >= set(token):
            return bytes(_SPELLED[c] for c in token)
        return self.decode([*before, i])[len(self.decode(before)) :].encode()

    def token_string(self, i: int) -> str:
        """Return the string of a token in the vocabulary; it is empty beyond the vocabulary."""
        return self._backend.token(i)

    def decode_visibly(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` with its special tokens, as it is encoded from, to show to a person."""
        text = ""
        plain: list[int] = []
        decode = self.decode  # a space before a text is not part of it
        for n, i in enumerate(ids):
            token = self._backend.token(i)
            if i in self.eos_ids or i == self.bos_id or (token and not self.decode_more([i])):
                text += decode(plain) + token
                plain = []
                begins = n == 0 and i == self.bos_id
                decode = self.decode if begins or self._backend.encode(f"{token}a")[1:] == self._anchor else self.decode_more
            else:
                plain.append(i)
        return text + decode(plain)

    def _special_id(self, name: str, config: _Config, listed: list[int]) -> int | None:
        """Return the token that `tokenizer_config.json` names, else the model configuration's, else the tokenizer's own."""
        token = config.get(f"{name}_token")
        if token is not None:
            return self._backend.token_id(_content(token))
        # Qwen has `"bos_token": null`, and yet a bos_token_id in its config.json, which is not meant for prompts.
        if name == "bos" and "bos_token" in config:
            return None
        return listed[0] if listed else self._backend.default_id(name)


def _read_config(folder: Path) -> _Config:
    """Read `tokenizer_config.json`, with the content that older checkpoints keep in another file and defaults of GPT-2."""
    config = _read_json(folder / "tokenizer_config.json", _Config)
    if "added_tokens_decoder" not in config:
        config |= _read_json(folder / "special_tokens_map.json", _Config)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        config = _Config(bos_token="<|endoftext|>", eos_token="<|endoftext|>") | config
    return config


def _open_backend(folder: Path, config: _Config) -> FastBackend | SentencePieceBackend:
    added, special = _added_tokens(folder, config), _special_tokens(config)
    if (path := folder / "tokenizer.json").is_file():
        with naming(path):
            return FastBackend(read_tokenizer_json(path), added, special, path)
    if (path := folder / "tokenizer.model").is_file():
        with naming(path):
            return SentencePieceBackend(path, config, added, special)
    if (path := folder / "vocab.json").is_file() and (merges := folder / "merges.txt").is_file():
        with naming(f"{path} with {merges}"):
            return FastBackend(read_gpt2(path, config), added, special, path)
    raise FileNotFoundError(
        f"{folder} has no tokenizer.json, no tokenizer.model and no vocab.json with merges.txt. Copy the tokenizer files of "
        "the checkpoint there, or download them: "
        f"python scripts/download.py --repo_id {folder.parent.name}/{folder.name} --tokenizer_only"
    )


def _added_tokens(folder: Path, config: _Config) -> dict[int, AddedToken]:
    """Return tokens that the vocabulary file may lack, by id: `added_tokens_decoder`, else `added_tokens.json`."""
    path, entries = folder / "tokenizer_config.json", config.get("added_tokens_decoder")
    if entries is None:
        path, special = folder / "added_tokens.json", set(_special_tokens(config))
        ids = _read_json(path, dict[str, int])
        entries = {str(i): _Token(content=token, special=token in special) for token, i in ids.items()}
    if wrong := next((i for i in entries if not re.fullmatch("[0-9]{1,9}", i)), None):
        raise CheckpointError(f"{path}: the id {shown(wrong)} of an added token is not an id. Download the tokenizer again")
    # Special tokens are looked for in the text before normalization. Old Llama 2 files have them normalized, and then
    # "</s>" is not found after the "▁" that the normalizer puts before it.
    return {
        int(i): AddedToken(
            entry["content"],
            single_word=entry.get("single_word", False),
            lstrip=entry.get("lstrip", False),
            rstrip=entry.get("rstrip", False),
            normalized=not entry.get("special", False) and entry.get("normalized", True),
            special=entry.get("special", False),
        )
        for i, entry in entries.items()
    }


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the strings of the special tokens with a name: every `..._token` of the config."""
    found = {name: _content(value) for name, value in config.items() if name.endswith("_token")}
    return {name: token for name, token in found.items() if isinstance(token, str)}


def _special_tokens(config: _Config) -> list[str]:
    """Return the strings of all special tokens of the config: those with a name, and those in lists."""
    found = [*_named_tokens(config).values()]
    for more in (config.get("additional_special_tokens", []), config.get("extra_special_tokens", [])):
        found += map(_content, more.values() if isinstance(more, dict) else more)
    return list(dict.fromkeys(found))


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _chat_templates(folder: Path, config: _Config) -> dict[str, str]:
    """Return the chat templates by name: `chat_template.jinja`, else `chat_template` of the config, is the default one.

    The config may have a list of templates with names; one may be called default.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return {"default": read_text(path)}
    template = config.get("chat_template") or {}
    if isinstance(template, str):
        return {"default": template}
    return template if isinstance(template, dict) else {entry["name"]: entry["template"] for entry in template}


def _special_ids(folder: Path) -> tuple[list[int], list[int]]:
    """Return the ids of BOS and of EOS in `generation_config.json`, else those in `config.json`."""
    found: dict[str, list[int]] = {}
    for path in (folder / "config.json", folder / "generation_config.json"):
        config = _read_json(path, _Ids)
        for name, value in (("bos", config.get("bos_token_id")), ("eos", config.get("eos_token_id"))):
            ids = [i for i in (value if isinstance(value, list) else [-1 if value is None else value]) if i >= 0]  # -1: none
            if any(i >= 2**31 for i in ids):
                raise CheckpointError(f"{path}: {name}_token_id {max(ids)} is not the id of a token. Download it again")
            found[name] = ids or found.get(name, [])
    return found["bos"], found["eos"]


def _read_json(path: Path, schema: type[T]) -> T:
    return read_json_object(path, schema) if path.is_file() else cast(T, {})
