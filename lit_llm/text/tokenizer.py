"""Strings to token ids and back, from the files that a checkpoint ships.

The reference is transformers 5, which contradicts itself: `PreTrainedTokenizerFast` runs `tokenizer.json` as it is written, but
`LlamaTokenizer` takes only vocabulary and merges from it and builds its own pipeline around them, which loses a leading space
(" a" gets the ids of "a"). We run the file: it agrees with sentencepiece, which the models were trained with.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from lit_llm.errors import CheckpointError, OptionError
from lit_llm.files import read_json_object
from lit_llm.text.tokenizer_backends import FastBackend, SentencePieceBackend, read_gpt2, read_tokenizer_json

# How byte-level pipelines spell bytes, after GPT-2: by their Latin-1 character, or if that is not printable by one from 256 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_SPELLED = {chr(b): b for b in _PRINTABLE} | {chr(256 + n): b for n, b in enumerate(sorted({*range(256)} - {*_PRINTABLE}))}

FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json",
)  # fmt: skip


class Tokenizer:
    """The tokenizer of a checkpoint: `tokenizer.json`, else `tokenizer.model` (sentencepiece), else GPT-2's `vocab.json`.

    Attributes:
        bos_id, eos_id: Ids of the special tokens, or None if the checkpoint names none.
        adds_bos: True if `encode` puts BOS first by default: `add_bos_token` of `tokenizer_config.json`, else the
            post-processor of `tokenizer.json`. (transformers 5 ignores `add_bos_token` if there is a `tokenizer.json`, and then
            omits the BOS that transformers 4 puts before the same checkpoint's prompts.)
        vocab_size: Highest id plus one.
        special_tokens: Their strings by name: bos_token, eos_token and the others that the config names.
        fingerprint: Checksum of the files that a tokenizer may consist of.
        chat_template: The checkpoint's Jinja template of a conversation, or None.
        other_templates: Names of the checkpoint's templates if it has several, none of them the default.

    Raises:
        FileNotFoundError: if the folder has no tokenizer.
        CheckpointError: if a file is broken, or two files contradict each other.
    """

    def __init__(self, checkpoint_dir: Path | str) -> None:
        folder = Path(checkpoint_dir)
        config = _read_config(folder)
        self._backend = _open_backend(folder, config)
        self.vocab_size = self._backend.vocab_size
        self._anchor = self._backend.encode("a")  # a space after it is kept
        self._n_skipped = len(self.decode(self._anchor))

        generation, model = (_read_json(folder / name) for name in ("generation_config.json", "config.json"))
        bos_ids, eos_ids = (_id_list(generation, name) or _id_list(model, name) for name in ("bos_token_id", "eos_token_id"))
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
        self.other_templates = () if self.chat_template is not None else tuple(templates)
        sums = [(name, hashlib.sha256((folder / name).read_bytes()).digest()) for name in FILES if (folder / name).is_file()]
        self.fingerprint = hashlib.sha256(repr(sums).encode()).hexdigest()

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

    def _special_id(self, name: str, config: dict[str, Any], listed: list[int]) -> int | None:
        """Return the token that `tokenizer_config.json` names, else the model configuration's, else the tokenizer's own."""
        token = config.get(f"{name}_token")
        if token is not None:
            return self._backend.token_id(_content(token))
        # Qwen has `"bos_token": null`, and yet a bos_token_id in its config.json, which is not meant for prompts.
        if name == "bos" and "bos_token" in config:
            return None
        return listed[0] if listed else self._backend.default_id(name)


def _read_config(folder: Path) -> dict[str, Any]:
    """Read `tokenizer_config.json`, with the content that older checkpoints keep in another file and defaults of GPT-2."""
    config = _read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= _read_json(folder / "special_tokens_map.json")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"} | config
    return config


def _open_backend(folder: Path, config: dict[str, Any]) -> FastBackend | SentencePieceBackend:
    added, special = _added_tokens(folder, config), _special_tokens(config)
    if (path := folder / "tokenizer.json").is_file():
        return FastBackend(read_tokenizer_json(path), added, special, path)
    if (path := folder / "tokenizer.model").is_file():
        return SentencePieceBackend(path, config, added, special)
    if (path := folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return FastBackend(read_gpt2(path, config), added, special, path)
    raise FileNotFoundError(
        f"{folder} has no tokenizer.json, no tokenizer.model and no vocab.json with merges.txt. Copy the tokenizer files of "
        "the checkpoint there, or download them: "
        f"python scripts/download.py --repo_id {folder.parent.name}/{folder.name} --tokenizer_only"
    )


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """Return tokens that the vocabulary file may lack, by id: `added_tokens_decoder`, else `added_tokens.json`."""
    if "added_tokens_decoder" in config:
        path, entries = folder / "tokenizer_config.json", config["added_tokens_decoder"]
    else:
        path = folder / "added_tokens.json"
        special = set(_special_tokens(config))
        entries = {i: {"content": token, "special": token in special} for token, i in _read_json(path).items()}
    names = ("content", "single_word", "lstrip", "rstrip", "special")
    try:
        # Special tokens are looked for in the text before normalization. Old Llama 2 files have them normalized, and then
        # "</s>" is not found after the "▁" that the normalizer puts before it.
        return {
            int(i): AddedToken(
                **{name: entry[name] for name in names if name in entry},
                normalized=not entry.get("special", False) and entry.get("normalized", True),
            )
            for i, entry in entries.items()
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: the added tokens cannot be read: {error}") from error


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return the strings of the special tokens with a name: every `..._token` of the config."""
    named = {name: value for name, value in config.items() if name.endswith("_token") and isinstance(value, str | Mapping)}
    return {name: _content(value) for name, value in named.items()}


def _special_tokens(config: dict[str, Any]) -> list[str]:
    """Return the strings of all special tokens of the config: those with a name, and those in lists."""
    found = [*_named_tokens(config).values()]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(name) or []
        found += map(_content, more.values() if isinstance(more, Mapping) else more)
    return list(dict.fromkeys(found))


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return the chat templates by name: `chat_template.jinja`, else `chat_template` of the config, is the default one.

    The config may have a list of templates with names, of which one may be called default.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return {"default": path.read_text(encoding="utf-8")}
    template = config.get("chat_template") or {}
    if isinstance(template, str):
        return {"default": template}
    try:
        entries = template.items() if isinstance(template, dict) else [(entry["name"], entry["template"]) for entry in template]
        return {str(name): str(source) for name, source in entries}
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: 'chat_template' must be a string, or a list of objects with 'name' and 'template'"
        ) from error


def _id_list(config: dict[str, Any], name: str) -> list[int]:
    ids = config.get(name)
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
