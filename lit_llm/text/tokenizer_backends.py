"""The two libraries behind a tokenizer: tokenizers and SentencePiece."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE, WordLevel

from lit_llm.errors import CheckpointError, brief
from lit_llm.schema import shown

# Byte-level pipelines differ between families, and vocab.json + merges.txt do not say which: these are GPT-2's.
GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """Turn failures of the libraries into CheckpointError, which names the file. tokenizers raises nothing narrower than
    Exception, and a panic of its Rust code is not even that."""
    try:
        yield
    except (CheckpointError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise CheckpointError(f"{path} is not a tokenizer: {brief(error)}. Download the tokenizer again") from error


def read_tokenizer_json(path: Path) -> HFTokenizer:
    tokenizer = HFTokenizer.from_file(str(path))
    if any(token.special and token.normalized for token in tokenizer.get_added_tokens_decoder().values()):
        # A special token that is normalized is neither found in the text nor skipped by decode.
        data = json.loads(path.read_text(encoding="utf-8"))
        for token in data["added_tokens"]:
            token["normalized"] = token["normalized"] and not token["special"]
        tokenizer = HFTokenizer.from_str(json.dumps(data))
    return tokenizer


def read_gpt2(path: Path, config: Mapping[str, Any]) -> HFTokenizer:
    """Build GPT-2's pipeline around the vocabulary at `path` and the `merges.txt` next to it."""
    if (kind := config.get("tokenizer_class")) not in GPT2_CLASSES:
        raise CheckpointError(
            f"{path.parent} has vocab.json and merges.txt but no tokenizer.json, and a {shown(kind)} cannot be "
            "built from these two alone. Download its tokenizer.json"
        )
    tokenizer = HFTokenizer(BPE.from_file(str(path), str(path.with_name("merges.txt"))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class FastBackend:
    """A pipeline of the tokenizers library, with the added tokens of the other files."""

    def __init__(self, tokenizer: HFTokenizer, added: dict[int, AddedToken], special: list[str], path: Path) -> None:
        self._path = path
        tokenizer.no_truncation()
        tokenizer.no_padding()
        new = [(i, token.content) for i, token in added.items() if tokenizer.token_to_id(token.content) is None]
        _register(tokenizer, added, special)
        for i, token in new:
            if (got := tokenizer.token_to_id(token)) != i:  # new tokens are numbered from the end of the vocabulary
                raise CheckpointError(
                    f"{path.parent} gives the added token {shown(token)} the id {i}, but after {path.name} its id would be "
                    f"{got}. Copy all tokenizer files of one checkpoint there"
                )
        self._tokenizer = tokenizer
        self._first = _leading_token(json.loads(tokenizer.post_processor.__getstate__())) if tokenizer.post_processor else None
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        # If "a" alone gets another token than after a line break, the pipeline puts a space before a text.
        self._break = self.encode("\n") if self.encode("\na")[-1:] != self.encode("a") else []

    @property
    def pipeline(self) -> HFTokenizer:
        return self._tokenizer

    def encode(self, text: str, continued: bool = False) -> list[int]:
        with naming(self._path):
            if not (continued and self._break):
                return self._ids(text)
            ids = self._ids(f"\n{text}")
            if ids[: len(self._break)] != self._break:
                raise ValueError("a line break is not a token of its own")
            return ids[len(self._break) :]

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a continuation, and the number of characters of the text up to the end of each."""
        ids, first = self.encode(text, continued=True), "\n" if self._break else ""
        with naming(self._path):
            found = self._tokenizer.encode(first + text, add_special_tokens=False)
        ends = [end - len(first) for _, end in found.offsets[len(self._break) :]]
        assert found.ids[len(self._break) :] == ids
        return ids, ends

    def _ids(self, text: str) -> list[int]:
        # Unlike `encode`, this computes no offsets, and lets other threads run.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, ids: list[int]) -> str:
        with naming(self._path):
            return self._tokenizer.decode(ids, skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def token(self, i: int) -> str:
        return self._tokenizer.id_to_token(i) or ""

    def default_id(self, name: str) -> int | None:
        return self._tokenizer.token_to_id(self._first) if name == "bos" and self._first is not None else None

    def adds_bos(self, bos_id: int | None) -> bool:
        return self._first is not None and self._tokenizer.token_to_id(self._first) == bos_id


class SentencePieceBackend:
    """sentencepiece for the text, the tokenizers library for the added tokens in it and for decoding.

    Llama's models put a space before the text (dummy prefix). With `"legacy": true` in `tokenizer_config.json` transformers 5
    puts one before each stretch of text between added tokens, otherwise only before the whole text; so do we.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], added: dict[int, AddedToken], special: list[str]) -> None:
        from sentencepiece import SentencePieceProcessor

        model = path.read_bytes()
        self._processor = SentencePieceProcessor(model_proto=model)
        # Serialized protocol buffers merge when concatenated: this one says normalizer_spec.add_dummy_prefix = false.
        self._unprefixed = SentencePieceProcessor(model_proto=model + b"\x1a\x02\x18\x00")
        prefixed = self._processor.normalize("a") != self._unprefixed.normalize("a")
        if config.get("add_prefix_space") is False:
            self._processor, prefixed = self._unprefixed, False
        self._legacy = bool(config.get("legacy", False))

        n_pieces = self._processor.vocab_size()
        control = [i for i in range(n_pieces) if self._processor.is_control(i) or self._processor.is_unknown(i)]
        special = [*map(self._processor.id_to_piece, control), *special]
        self._ids = {token.content: i for i, token in added.items()}
        for token in special:
            if token not in self._ids:  # a new one that no file numbers comes last, as in transformers
                found = self._piece_id(token)
                self._ids[token] = max(n_pieces, *(i + 1 for i in self._ids.values())) if found is None else found
        self._tokens = {i: token for token, i in self._ids.items()}
        self.vocab_size = max(n_pieces, *(i + 1 for i in self._tokens))

        # The splitter knows only the added tokens: everything between two of them is one unknown word, "", with id 0.
        self._splitter = HFTokenizer(WordLevel({"": 0}, unk_token=""))
        _register(self._splitter, added, special)
        self._split_ids = {i: self._ids[token.content] for i, token in self._splitter.get_added_tokens_decoder().items()}
        self._skipped = {self._ids[token] for token in special} | {i for i, token in added.items() if token.special}
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        self._decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)

    def encode(self, text: str, continued: bool = False) -> list[int]:
        ids: list[int] = []
        split = self._splitter.encode(text)
        for token, (start, end) in zip(split.ids, split.offsets, strict=True):
            if token != 0:
                ids.append(self._split_ids[token])
            else:
                prefixed = not continued if start == 0 else self._legacy
                processor = self._processor if prefixed else self._unprefixed
                ids += processor.encode(text[start:end])
        return ids

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a continuation, and the number of characters of the text up to the end of each."""
        ends: list[int] = []
        split = self._splitter.encode(text)
        for token, (start, end) in zip(split.ids, split.offsets, strict=True):
            if token != 0:
                ends.append(end)
                continue
            processor, part = self._processor if self._legacy and start else self._unprefixed, text[start:end]
            _, offsets = processor.normalize(part, with_offsets=True)  # of characters, as pieces have them
            n, unfinished = 0, b""  # characters, and bytes of the next one
            for i, piece in zip(processor.encode(part), processor.encode(part, out_type=str), strict=True):
                unfinished += bytes.fromhex(piece[3:5]) if processor.is_byte(i) else piece.encode()
                whole = unfinished.decode(errors="ignore")
                ends.append(start + offsets[n + (len(whole) or 1)])
                n, unfinished = n + len(whole), b"" if whole else unfinished
        return self.encode(text, continued=True), ends

    def decode(self, ids: list[int]) -> str:
        # Not sentencepiece's own decoder: its replacement characters for invalid UTF-8 differ from those of transformers.
        return self._decoder.decode([token for i in ids if i not in self._skipped and (token := self._token(i)) is not None])

    def token_id(self, token: str) -> int | None:
        return self._ids.get(token, self._piece_id(token))

    def default_id(self, name: str) -> int | None:
        found = self._processor.bos_id() if name == "bos" else self._processor.eos_id()
        return None if found < 0 else found

    def adds_bos(self, bos_id: int | None) -> bool:
        return True  # as in transformers 4; transformers 5 drops the BOS of Llama if the config does not mention it

    def token(self, i: int) -> str:
        return self._token(i) or ""

    def pieces(self) -> tuple[list[str], list[float], list[int]]:
        """Return the string, the score and the kind, as sentencepiece numbers kinds, of each id."""
        processor, ids = self._processor, range(self.vocab_size)
        own = processor.vocab_size()
        checks = ((processor.is_unknown, 2), (processor.is_control, 3), (processor.is_unused, 5), (processor.is_byte, 6))
        kinds = [next((kind for check, kind in checks if check(i)), 1) if i < own else 5 for i in ids]
        kinds = [(3 if i in self._skipped else 4) if i in self._tokens and kinds[i] in (1, 5) else kinds[i] for i in ids]
        scores = [processor.get_score(i) if i < own else 0.0 for i in ids]
        return [self.token(i) or f"[PAD{i}]" for i in ids], scores, kinds

    def _token(self, i: int) -> str | None:
        """Return the string of id `i`, or None beyond the vocabulary or in a gap before the added tokens."""
        return self._tokens.get(i) or (self._processor.id_to_piece(i) if i < self._processor.vocab_size() else None)

    def _piece_id(self, piece: str) -> int | None:
        found = self._processor.piece_to_id(piece)  # the unknown piece's id for every piece that is missing
        return found if self._processor.id_to_piece(found) == piece else None


def _register(tokenizer: HFTokenizer, added: dict[int, AddedToken], special: list[str]) -> None:
    """Add tokens in the order of their ids, then mark the special ones, as transformers does."""
    tokenizer.add_tokens([added[i] for i in sorted(added)])
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens([known.get(token) or AddedToken(token, special=True, normalized=False) for token in special])


def _leading_token(processor: dict[str, Any] | None) -> str | None:
    """Return the special token that a post-processor, in the form of `tokenizer.json`, puts before the text."""
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        return next(filter(None, map(_leading_token, processor["processors"])), None)
    template = processor.get("single") or [{}]
    return template[0].get("SpecialToken", {}).get("id")
