"""Text to token ids and back, over the files that a checkpoint ships."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Tokenizer:
    """`tokenizer.json` (tokenizers) where there is one, else `tokenizer.model` (sentencepiece).

    Attributes:
        bos_id, eos_id: Ids of the special tokens, or None where the checkpoint names none.
        eos_ids: All ids that end a generation (`generation_config.json` may list several).
        adds_bos: Whether `encode` puts BOS first by default, as the checkpoint's configuration or post-processor says.
        vocab_size: Highest id plus one.

    Raises:
        FileNotFoundError: if the folder has neither file.
        ValueError: if a file is broken.
    """

    def __init__(self, checkpoint_dir: Path | str) -> None:
        folder = Path(checkpoint_dir)
        if (path := folder / "tokenizer.json").is_file():
            self._backend: _Fast | _SentencePiece = _Fast(path)
        elif (path := folder / "tokenizer.model").is_file():
            self._backend = _SentencePiece(path)
        else:
            raise FileNotFoundError(
                f"{folder} has no tokenizer.json or tokenizer.model. Copy the tokenizer files of the checkpoint there, or "
                f"download them: python scripts/download.py --repo_id {folder.parent.name}/{folder.name} --tokenizer_only"
            )
        self.vocab_size = self._backend.vocab_size
        settings = {name: _read_json(folder / f"{name}.json") for name in ("tokenizer_config", "generation_config", "config")}
        self.bos_id = self._special_id("bos", settings)
        self.eos_id = self._special_id("eos", settings)
        listed = settings["generation_config"].get("eos_token_id")
        listed = listed if isinstance(listed, list) else [listed]
        self.eos_ids = frozenset(i for i in (self.eos_id, *listed) if i is not None)
        adds_bos = settings["tokenizer_config"].get("add_bos_token")
        if adds_bos is None:
            adds_bos = self._backend.adds_bos(self.bos_id)
        self.adds_bos = bool(adds_bos) and self.bos_id is not None

    def encode(self, text: str, bos: bool | None = None, eos: bool = False) -> list[int]:
        """Token ids of `text`. BOS is added once, and not at all if the text already begins with it.

        Args:
            bos: Put BOS first; None: as the checkpoint does.
        """
        ids = self._backend.encode(text)
        if (self.adds_bos if bos is None else bos) and ids[:1] != [self.bos_id]:
            if self.bos_id is None:
                raise ValueError("this tokenizer has no BOS token")
            ids = [self.bos_id, *ids]
        if eos:
            if self.eos_id is None:
                raise ValueError("this tokenizer has no EOS token")
            ids = [*ids, self.eos_id]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return self._backend.decode(list(ids))

    def _special_id(self, name: str, settings: dict[str, dict[str, Any]]) -> int | None:
        """By the token's text in `tokenizer_config.json`, else by id in `generation_config.json` or `config.json`."""
        token = settings["tokenizer_config"].get(f"{name}_token")
        if isinstance(token, dict):
            token = token["content"]
        if token is not None:
            return self._backend.token_id(token)
        for source in ("generation_config", "config"):
            found = settings[source].get(f"{name}_token_id")
            if found is not None:
                return found[0] if isinstance(found, list) else found
        return self._backend.default_id(name)


class _Fast:
    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as HFTokenizer

        try:
            self._tokenizer = HFTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{path} is not a tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def default_id(self, name: str) -> int | None:
        return None

    def adds_bos(self, bos_id: int | None) -> bool:
        return self._tokenizer.encode("", add_special_tokens=True).ids[:1] == [bos_id]


class _SentencePiece:
    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._processor = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
        self.vocab_size = self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode([i for i in ids if not self._processor.is_control(i)])

    def token_id(self, token: str) -> int | None:
        found = self._processor.piece_to_id(token)
        return None if found == self._processor.unk_id() and token != "<unk>" else found

    def default_id(self, name: str) -> int | None:
        found = self._processor.bos_id() if name == "bos" else self._processor.eos_id()
        return None if found < 0 else found

    def adds_bos(self, bos_id: int | None) -> bool:
        return bos_id is not None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
