"""Text to token ids and back, over the files that a checkpoint ships.

The reference is transformers 5, which contradicts itself: `PreTrainedTokenizerFast` runs `tokenizer.json` as it is written, but
`LlamaTokenizer` takes vocabulary and merges alone from it and puts a pipeline of its own around them, in which a leading space
is lost (" a" gets the ids of "a"). We run the file: it agrees with sentencepiece, which the models were trained with.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE

from lit_llm.files import read_json_object
from lit_llm.text.tokenizer_backends import _Fast, _SentencePiece

# Byte-level pipelines differ between families, and vocab.json + merges.txt do not say which: these are GPT-2's.
GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")

# How byte-level pipelines spell bytes, after GPT-2: by their Latin-1 character, or if that is not printable by one from 256 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_SPELLED = {chr(b): b for b in _PRINTABLE} | {chr(256 + n): b for n, b in enumerate(sorted({*range(256)} - {*_PRINTABLE}))}

FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "generation_config.json",
)  # fmt: skip


class Tokenizer:
    """`tokenizer.json`, else `tokenizer.model` (sentencepiece), else GPT-2's `vocab.json` with `merges.txt`.

    Attributes:
        bos_id, eos_id: Ids of the special tokens, or None where the checkpoint names none.
        adds_bos: Whether `encode` puts BOS first by default: `add_bos_token` of `tokenizer_config.json`, else the
            post-processor of `tokenizer.json`. (transformers 5 ignores `add_bos_token` beside a `tokenizer.json`, and then
            leaves out the BOS that transformers 4 put before the same checkpoint's prompts.)
        vocab_size: Highest id plus one.
        special_tokens: Their texts by name: bos_token, eos_token and what else the config names.
        fingerprint: Checksum of the files that a tokenizer may consist of.
        chat_template: The checkpoint's Jinja template of a conversation, or None.

    Raises:
        FileNotFoundError: if the folder has no tokenizer.
        ValueError: if a file is broken, or two files contradict each other.
    """

    def __init__(self, checkpoint_dir: Path | str) -> None:
        folder = Path(checkpoint_dir)
        config = _read_json(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:  # older checkpoints keep in two more files what the new key holds
            config = config | _read_json(folder / "special_tokens_map.json")
        added = _added_tokens(folder, config)
        special = _special_tokens(config)
        self._backend: _Fast | _SentencePiece
        if (path := folder / "tokenizer.json").is_file():
            self._backend = _Fast(_read_tokenizer_json(path), added, special, path)
        elif (path := folder / "tokenizer.model").is_file():
            self._backend = _SentencePiece(path, config, added, special)
        elif (path := folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            config = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"} | config
            self._backend = _Fast(_read_gpt2(path, config), added, _special_tokens(config), path)
        else:
            raise FileNotFoundError(
                f"{folder} has no tokenizer.json, no tokenizer.model and no vocab.json with merges.txt. Copy the tokenizer "
                "files of the checkpoint there, or download them: "
                f"python scripts/download.py --repo_id {folder.parent.name}/{folder.name} --tokenizer_only"
            )
        self.vocab_size = self._backend.vocab_size
        self._anchor = self._backend.encode("a")  # behind it a space is kept
        self._n_skipped = len(self.decode(self._anchor))

        generation, model = (_read_json(folder / name) for name in ("generation_config.json", "config.json"))
        listed = {name: _id_list(generation, name) or _id_list(model, name) for name in ("bos_token_id", "eos_token_id")}
        self.bos_id = self._special_id("bos", config, listed["bos_token_id"])
        self.eos_id = self._special_id("eos", config, listed["eos_token_id"])
        self._eos_ids = frozenset(i for i in (self.eos_id, *listed["eos_token_id"]) if i is not None)
        adds_bos = config.get("add_bos_token")
        if adds_bos is None:
            adds_bos = self._backend.adds_bos(self.bos_id)
        self.adds_bos = bool(adds_bos) and self.bos_id is not None
        self.special_tokens = {
            name: _content(value)
            for name, value in config.items()
            if name.endswith("_token") and isinstance(value, str | Mapping) and name not in ("bos_token", "eos_token")
        }
        for name, i in (("bos_token", self.bos_id), ("eos_token", self.eos_id)):
            if i is not None:
                self.special_tokens[name] = self._backend.token(i)
        self.chat_template = _chat_template(folder, config)
        sums = [(name, hashlib.sha256((folder / name).read_bytes()).digest()) for name in FILES if (folder / name).is_file()]
        self.fingerprint = hashlib.sha256(repr(sums).encode()).hexdigest()

    @property
    def eos_ids(self) -> frozenset[int]:
        """All tokens that end a text (`generation_config.json` may list several)."""
        return self._eos_ids

    def encode(self, text: str, bos: bool | None = None, eos: bool = False) -> list[int]:
        """Token ids of `text`, in which the text of a special token stands for that token.

        BOS is added once, and not at all if the text already begins with it. `add_eos_token` of `tokenizer_config.json` is for
        training the base model: a prompt must not end in EOS, so only the argument adds it.

        Args:
            bos: Put BOS first; None: as the checkpoint does.
            eos: Put EOS last.

        Raises:
            ValueError: if the token asked for does not exist.
        """
        ids = self._backend.encode(text)
        if (self.adds_bos if bos is None else bos) and (not ids or ids[0] != self.bos_id):
            if self.bos_id is None:
                raise ValueError("this tokenizer has no BOS token")
            ids = [self.bos_id, *ids]
        if eos:
            if self.eos_id is None:
                raise ValueError("this tokenizer has no EOS token")
            ids = [*ids, self.eos_id]
        return ids

    def encode_more(self, text: str) -> list[int]:
        """Token ids of a text that continues another: neither BOS nor the space that some tokenizers put before a text."""
        return self._backend.encode(text, continued=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens and ids beyond the vocabulary (padding rows of the embedding) are left out."""
        return self._backend.decode(list(ids))

    def decode_more(self, ids: Sequence[int]) -> str:
        """Text of `ids` that continue another text: it keeps a leading space."""
        return self.decode([*self._anchor, *ids])[self._n_skipped :]

    def token_bytes(self, i: int, before: Sequence[int] = ()) -> bytes:
        """UTF-8 that a token adds, be it a part of a character, to the text of some tokens before it."""
        token, alone = self._backend.token(i), self.decode_more([i])
        if (byte := re.fullmatch("<0x([0-9A-F]{2})>", token)) and alone != token:
            return bytes.fromhex(byte[1])
        if "\ufffd" in alone and _SPELLED.keys() >= set(token):
            return bytes(_SPELLED[c] for c in token)
        return self.decode([*before, i])[len(self.decode(before)) :].encode()

    def decode_visibly(self, ids: Sequence[int]) -> str:
        """Text of `ids` in which special tokens stand as they are written, to show to a person."""
        text = ""
        plain: list[int] = []
        for i in ids:
            token = self._backend.token(i)
            if i in self.eos_ids or i == self.bos_id or (token and not self.decode([i])):
                text += self.decode(plain) + token
                plain = []
            else:
                plain.append(i)
        return text + self.decode(plain)

    def _special_id(self, name: str, config: dict[str, Any], listed: list[int]) -> int | None:
        """The token that `tokenizer_config.json` names, else the id of the model's configuration, else the tokenizer's own."""
        token = config.get(f"{name}_token")
        if token is not None:
            return self._backend.token_id(_content(token))
        # Qwen says `"bos_token": null`, and yet its config.json has a bos_token_id, which is not meant for prompts.
        if name == "bos" and "bos_token" in config:
            return None
        return listed[0] if listed else self._backend.default_id(name)


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """Tokens that the vocabulary file need not hold, by id: `added_tokens_decoder` of the config, else `added_tokens.json`."""
    if "added_tokens_decoder" in config:
        path, entries = folder / "tokenizer_config.json", config["added_tokens_decoder"]
    else:
        path = folder / "added_tokens.json"
        special = set(_special_tokens(config))
        entries = {i: {"content": token, "special": token in special} for token, i in _read_json(path).items()}
    names = ("content", "single_word", "lstrip", "rstrip", "special")
    try:
        # Special tokens are looked for in the text as it is. Old Llama 2 files say normalized, and then "</s>" is not found
        # behind the "▁" that the normalizer puts before it.
        return {
            int(i): AddedToken(
                **{name: entry[name] for name in names if name in entry},
                normalized=not entry.get("special", False) and entry.get("normalized", True),
            )
            for i, entry in entries.items()
        }
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: the added tokens cannot be read: {error}") from error


def _special_tokens(config: dict[str, Any]) -> list[str]:
    """Texts of the tokens that the config calls special: every `..._token`, and the lists of more."""
    named = [value for name, value in config.items() if name.endswith("_token") and isinstance(value, str | Mapping)]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(name) or []
        named += more.values() if isinstance(more, Mapping) else more
    return list(dict.fromkeys(map(_content, named)))


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _read_tokenizer_json(path: Path) -> HFTokenizer:
    try:
        tokenizer = HFTokenizer.from_file(str(path))
        if any(token.special and token.normalized for token in tokenizer.get_added_tokens_decoder().values()):
            # See `_added_tokens`. Such a token is neither found in the text nor left out by decode.
            data = json.loads(path.read_text(encoding="utf-8"))
            for token in data["added_tokens"]:
                token["normalized"] = token["normalized"] and not token["special"]
            tokenizer = HFTokenizer.from_str(json.dumps(data))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    return tokenizer


def _read_gpt2(path: Path, config: dict[str, Any]) -> HFTokenizer:
    if config.get("tokenizer_class") not in GPT2_CLASSES:
        raise ValueError(
            f"{path.parent} has vocab.json and merges.txt but no tokenizer.json, and a {config['tokenizer_class']} cannot be "
            "built from these two alone. Download its tokenizer.json"
        )
    merges = path.with_name("merges.txt")
    try:
        tokenizer = HFTokenizer(BPE.from_file(str(path), str(merges)))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{path} and {merges} are not a GPT-2 vocabulary: {error}") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """`chat_template.jinja`, else `chat_template` of the config: a text, or a list of them of which one is called default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _id_list(config: dict[str, Any], name: str) -> list[int]:
    ids = config.get(name)
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
