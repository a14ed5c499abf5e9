"""Download checkpoints from the Hugging Face hub, and single files from anywhere."""

import difflib
import hashlib
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote, urlsplit

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session, get_token, hf_raise_for_status, validate_repo_id

from lit_llm.download.gguf_choice import choose_gguf
from lit_llm.download.resumable import TIMEOUT, explained, fetch, part_path, size_text
from lit_llm.errors import CheckpointError, DataError
from lit_llm.files import claimed, digest_of, parse_json, read_weight_map
from lit_llm.schema import conform, shown

# Files to fetch of a repository: all companions, and the weights in the first of these forms that it has.
_COMPANIONS = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|adapter_config\.json|merges\.txt|tokenizer\.model|chat_template\.jinja|LICEN[CS]E(\.\w+)?"
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_ANY_WEIGHTS = re.compile(r"(lit_model|model|pytorch_model|adapter_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")

# Family -> its repositories: a prefix, then the endings of their names.
_FAMILIES = {
    "Pythia": ["EleutherAI/pythia- 14m 31m 70m 160m 410m 1b 1.4b 2.8b 6.9b 12b 70m-deduped 410m-deduped 1.4b-deduped"],
    "GPT-2": ["openai-community/ gpt2 gpt2-medium gpt2-large gpt2-xl"],
    "SmolLM2": ["HuggingFaceTB/SmolLM2- 135M 135M-Instruct 360M 360M-Instruct 1.7B 1.7B-Instruct"],
    "TinyLlama": ["TinyLlama/TinyLlama-1.1B- intermediate-step-1431k-3T Chat-v1.0"],
    "Llama": ["huggyllama/llama- 7b 13b 30b 65b"],
    "Llama 2": ["meta-llama/Llama-2- 7b-hf 7b-chat-hf 13b-hf 13b-chat-hf 70b-hf 70b-chat-hf"],
    "Llama 3": ["meta-llama/Meta-Llama-3- 8B 8B-Instruct 70B 70B-Instruct"],
    "Llama 3.1": ["meta-llama/Llama-3.1- 8B 8B-Instruct 70B 70B-Instruct"],
    "Llama 3.2": ["meta-llama/Llama-3.2- 1B 1B-Instruct 3B 3B-Instruct"],
    "Code Llama": ["codellama/CodeLlama- 7b-hf 7b-Instruct-hf 7b-Python-hf 13b-hf 13b-Instruct-hf 34b-hf 34b-Instruct-hf"],
    "OpenLLaMA": ["openlm-research/open_llama_ 3b 7b 13b 3b_v2 7b_v2"],
    "Vicuna": ["lmsys/vicuna- 7b-v1.3 13b-v1.3 33b-v1.3 7b-v1.5 7b-v1.5-16k 13b-v1.5 13b-v1.5-16k"],
    "LongChat": ["lmsys/longchat- 7b-16k 13b-16k"],
    "Nous-Hermes": ["NousResearch/Nous-Hermes- 13b llama-2-7b Llama2-13b"],
    "Platypus": ["garage-bAInd/ Platypus2-7B Platypus2-13B Platypus2-70B Camel-Platypus2-13B Stable-Platypus2-13B"],
    "Mistral": ["mistralai/Mistral-7B- v0.1 v0.3 Instruct-v0.1 Instruct-v0.2 Instruct-v0.3"],
    "Mixtral": ["mistralai/Mixtral-8x7B- v0.1 Instruct-v0.1"],
    "Qwen2": ["Qwen/Qwen2- 0.5B 0.5B-Instruct 1.5B 1.5B-Instruct 7B 7B-Instruct"],
    "Qwen2.5": ["Qwen/Qwen2.5- 0.5B 0.5B-Instruct 1.5B 1.5B-Instruct 3B 3B-Instruct 7B 7B-Instruct 14B 14B-Instruct 32B 72B"],
    "Qwen3": ["Qwen/Qwen3- 0.6B-Base 0.6B 1.7B-Base 1.7B 4B-Base 4B 8B-Base 8B 14B-Base 14B 32B"],
    "Gemma": ["google/gemma- 2b 2b-it 7b 7b-it"],
    "Gemma 2": ["google/gemma-2- 2b 2b-it 9b 9b-it 27b 27b-it"],
    "Gemma 3": ["google/gemma-3- 270m 270m-it 1b-pt 1b-it"],
    "Phi": ["microsoft/phi- 1_5 2"],
    "Phi-3": ["microsoft/Phi-3- mini-4k-instruct mini-128k-instruct medium-4k-instruct", "microsoft/Phi-3.5- mini-instruct"],
    "Falcon": ["tiiuae/falcon- 7b 7b-instruct 40b 40b-instruct"],
    "OLMo": ["allenai/OLMo- 1B-hf 7B-hf 7B-Instruct-hf"],
    "OLMo 2": ["allenai/OLMo-2- 0425-1B 0425-1B-Instruct 1124-7B 1124-7B-Instruct 1124-13B 1124-13B-Instruct"],
    "RedPajama-INCITE": ["togethercomputer/RedPajama-INCITE- Base-3B-v1 Chat-3B-v1 Instruct-3B-v1 7B-Base 7B-Chat 7B-Instruct"],
    "Dolly v2": ["databricks/dolly-v2- 3b 7b 12b"],
    "StableLM": ["stabilityai/stablelm- base-alpha-3b base-alpha-7b tuned-alpha-3b tuned-alpha-7b 3b-4e1t zephyr-3b 2-1_6b"],
    "StableCode": ["stabilityai/ stable-code-3b stablecode-completion-alpha-3b stablecode-instruct-alpha-3b"],
    "StarCoder": ["bigcode/starcoder base-1b base-3b base-7b", "bigcode/starcoder2- 3b 7b 15b"],
}


def known_repositories() -> dict[str, list[str]]:
    """Return names of published repositories by family; some of them ask to accept a licence first."""
    words = {family: [row.split() for row in rows] for family, rows in _FAMILIES.items()}
    return {family: [prefix + end for prefix, *ends in rows for end in ends] for family, rows in words.items()}


class _Large(TypedDict):
    sha256: str


class _Entry(TypedDict):
    rfilename: str


class _Sibling(_Entry, total=False):
    size: int
    blobId: str
    lfs: _Large


class _Listing(TypedDict):
    """The hub's answer to `/api/models/ORG/NAME?blobs=true`, as far as it is read."""

    sha: str
    siblings: list[_Sibling]


@dataclass(frozen=True)
class _File:
    """A file as the hub lists it. `digest` is the sha256 of a large file, the git blob id (40 digits) of a small one."""

    name: str
    url: str
    size: int
    digest: str
    headers: dict[str, str] = field(repr=False)

    def fetch(self, folder: Path) -> None:
        fetch(self.url, folder / self.name, self.digest, self.size, self.headers)

    def left(self, folder: Path) -> int:
        """Return the number of bytes that an interrupted download still lacks."""
        part = part_path(folder / self.name)
        return self.size - (part.stat().st_size if part.is_file() else 0)

    def is_in(self, folder: Path) -> bool:
        path = folder / self.name
        return path.is_file() and path.stat().st_size == self.size and digest_of(path, self.digest) == self.digest


def download_checkpoint(
    repo_id: str,
    checkpoint_dir: Path | str,
    revision: str | None = None,
    access_token: str | None = None,
    tokenizer_only: bool = False,
    gguf: str | None = None,
) -> Path:
    """Fetch config, tokenizer and, unless `tokenizer_only`, the weights into `checkpoint_dir/repo_id`; return that folder.

    With `gguf`, or if the repository has no other weights, one GGUF file is fetched, and its path is returned. It holds config
    and tokenizer. Files that are there already are kept if they match the hub's checksums; others are fetched again.

    Args:
        gguf: As `choose_gguf` takes it.

    Raises:
        OSError: if the hub cannot be reached or refuses, a file arrives damaged, or the disk is too small.
        CheckpointError: if the repository is not a checkpoint, or the folder has other weights.
    """
    headers = build_hf_headers(token=access_token)
    folder = Path(checkpoint_dir) / repo_id

    def refusal(status: int, code: str) -> str:
        return _explain(status, code, repo_id, revision, "authorization" in headers)

    with explained(constants.ENDPOINT, refusal):
        files = _list_files(repo_id, revision, headers)
        if gguf is not None or (_is_of_gguf(files) and not tokenizer_only):
            return _download_gguf(repo_id, files, folder, gguf)
        if "config.json" not in files and "adapter_config.json" not in files:
            raise CheckpointError(
                f"{repo_id} is not a checkpoint: it has no config.json, but {_some(files)}. Choose another `repo_id`"
            )
        with claimed(folder, "checkpoint_dir", in_place=True):
            wanted = [file for name, file in files.items() if _COMPANIONS.fullmatch(name)]
            weights = [] if tokenizer_only else _weight_files(repo_id, files, folder)
            missing = [file for file in wanted + weights if not file.is_in(folder)]
            _refuse_other_weights(folder, weights, replaced=any(file in weights for file in missing))
            _fetch_missing(missing, folder)
    return folder


def _is_of_gguf(files: dict[str, _File]) -> bool:
    """Return whether a repository has GGUF files and no weights in another form."""
    return any(name.endswith(".gguf") for name in files) and not any(name in files for name in (*_WEIGHTS, *_ADAPTERS))


def _download_gguf(repo_id: str, files: dict[str, _File], folder: Path, gguf: str | None) -> Path:
    names = choose_gguf(repo_id, {name: file.size for name, file in files.items()}, gguf)
    with claimed(folder, "checkpoint_dir", in_place=True):
        _fetch_missing([files[name] for name in names if not files[name].is_in(folder)], folder)
    return folder / names[0]


def _fetch_missing(missing: list[_File], folder: Path) -> None:
    _check_space(folder, sum(file.left(folder) for file in missing))
    for file in missing:
        file.fetch(folder)


def _list_files(repo_id: str, revision: str | None, headers: dict[str, str]) -> dict[str, _File]:
    """Return the files in the top folder of the repository at one commit, by name."""
    validate_repo_id(repo_id)
    address = f"{constants.ENDPOINT}/api/models/{repo_id}{'/revision/' if revision else ''}{quote(revision or '', '')}"
    response = get_session().get(address, headers=headers, params={"blobs": True}, timeout=TIMEOUT)
    hf_raise_for_status(response)
    source, advice = (
        f"{constants.ENDPOINT} does not answer like the Hugging Face hub: the list of files",
        "Is there a login page?",
    )
    info: _Listing = conform(parse_json(response.content, source, advice), _Listing, source, advice)
    files = {}
    for entry in info["siblings"]:
        name = entry["rfilename"]
        if "\\" in name or name.startswith("/") or ".." in name.split("/"):
            raise CheckpointError(
                f"{repo_id} lists a file named {shown(name)}, which is outside of its folder. Do not trust it"
            )
        size, digest = entry.get("size", -1), entry["lfs"]["sha256"] if "lfs" in entry else entry.get("blobId", "")
        if re.fullmatch(r"[\w.-]+", name) and size >= 0 and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest):
            files[name] = _File(name, hf_hub_url(repo_id, name, revision=info["sha"]), size, digest, headers)
    return files


def _weight_files(repo_id: str, files: dict[str, _File], folder: Path) -> list[_File]:
    """Return the weights in the preferred form. An index is fetched at once, as it names the shards."""
    forms = (*_WEIGHTS, *(_ADAPTERS if "adapter_config.json" in files else ()))
    form = next((name for name in forms if name in files), None)
    if form is None:
        raise CheckpointError(
            f"{repo_id} has no model.safetensors or pytorch_model.bin, but only {_some(files)}. Choose another `repo_id`"
        )
    if not form.endswith(".index.json"):
        return [files[form]]
    if not files[form].is_in(folder):
        files[form].fetch(folder)
    shards = sorted(set(read_weight_map(folder / form).values()))
    if lost := [name for name in shards if name not in files]:
        raise CheckpointError(
            f"{form} of {repo_id} names {shown(lost[0])}, which the repository does not have in its top folder. "
            "Choose another `repo_id` or `revision`"
        )
    return [files[name] for name in (form, *shards)]


def _some(files: dict[str, _File]) -> str:
    return ", ".join(sorted(files)[:8]) or "no files"


def _refuse_other_weights(folder: Path, weights: list[_File], replaced: bool) -> None:
    """Raise CheckpointError for weights of another download or conversion, which would be loaded in place of these."""
    names = {file.name for file in weights}
    if not names or not folder.is_dir():
        return
    present = [path.name for path in folder.iterdir() if _ANY_WEIGHTS.fullmatch(path.name) and path.name not in names]
    others = sorted(name for name in present if replaced or not name.startswith("lit_model"))
    if others:
        raise CheckpointError(
            f"{folder} has other weights: {', '.join(others[:3])}. Remove them, or choose another `checkpoint_dir`"
        )


def _check_space(folder: Path, n_bytes: int) -> None:
    disk = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if n_bytes > free:
        raise OSError(
            f"the download needs {size_text(n_bytes)}, but the disk of {disk} has only {size_text(free)} free. "
            "Free some space, or choose a `checkpoint_dir` on another disk"
        )


def _explain(status: int, code: str, repo_id: str, revision: str | None, has_token: bool) -> str:
    """Return what a refusal of the hub means and what to do. `code` is its X-Error-Code header."""
    hub = constants.ENDPOINT
    if code == "GatedRepo" or status == 403:
        if has_token:
            return (
                f"{repo_id} is gated, and your access token does not open it ({status}). Accept the licence at "
                f"{hub}/{repo_id} with the account of the token; some authors take days to grant it. A fine-grained token also "
                f"needs the permission to read gated repositories: {hub}/settings/tokens"
            )
        return (
            f"{repo_id} is gated ({status}): accept its licence at {hub}/{repo_id}, make an access token at "
            f"{hub}/settings/tokens, and run the command again with --access_token TOKEN, or HF_TOKEN=TOKEN before it"
        )
    if code == "RevisionNotFound":
        return f"{repo_id} has no revision {revision!r} (404). Its branches and tags are listed at {hub}/{repo_id}/tree/main"
    if status == 401 and has_token and code != "RepoNotFound":
        return (
            f"the hub refuses your access token (401): it is mistyped or expired. Make a new one at "
            f"{hub}/settings/tokens. It comes from `access_token`, HF_TOKEN or an earlier `hf auth login`"
        )
    if status in (401, 404):
        known = [name for names in known_repositories().values() for name in names]
        near = difflib.get_close_matches(repo_id, known, n=2, cutoff=0.8)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`python scripts/download.py` lists repositories by family."
        return (
            f"there is no model {repo_id} on the hub, or it is private ({status}). {hint} Check the spelling of ORG/NAME; "
            "a private one needs `access_token` or HF_TOKEN"
        )
    return f"the hub answers {status} for {repo_id}. Try again later: fetched bytes are kept"


def download_url(
    url: str, target: Path | str, sha256: str | None = None, max_bytes: int = 2**32, headers: dict[str, str] | None = None
) -> Path:
    """Fetch one file to `target`, replacing an older one only when it is complete; return `target`.

    Args:
        sha256: Required checksum. A `target` that has it already is kept.
        max_bytes: Largest accepted size.

    Raises:
        OSError: if the server cannot be reached or refuses, or the checksum differs.
        DataError: if `url` is not a web address, or the file is too large.
    """
    target = Path(target)
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise DataError(f"{url} is not a web address. Use one that begins with https://, as in https://example.com/data.json")
    if sha256 is not None and target.is_file() and digest_of(target, sha256) == sha256:
        return target

    def refusal(status: int, code: str) -> str:
        closed = "access is refused. For a gated dataset, accept its terms on the hub and set HF_TOKEN"
        reasons = {401: closed, 403: closed, 404: "there is no such file. Check the address"}
        return f"{url} answers {status}: {reasons.get(status, 'try again later')}"

    with explained(url, refusal):
        fetch(url, target, sha256, max_bytes, headers)
    return target


def local_file(source: str, folder: Path = Path("data/downloads")) -> Path:
    """Return `source` itself if it is a path; if it is a web address, the file in `folder`, fetched unless it is there.

    `hf://datasets/ORG/NAME/FILE`, or `hf://datasets/ORG/NAME@REVISION/FILE`, is a file of a dataset on the hub, fetched with
    the user's token, if any.
    """
    if "://" not in source:
        return Path(source)
    headers = None
    if source.startswith("hf://"):
        kind, org, name, *parts = [*source.removeprefix("hf://").split("/"), "", "", ""]
        file = "/".join(filter(None, parts))
        if kind != "datasets" or not (org and name and file):
            raise DataError(f"{source} does not name a file of a dataset on the hub. Use hf://datasets/ORG/NAME/FILE")
        name, _, revision = name.partition("@")
        source = f"{constants.ENDPOINT}/datasets/{org}/{name}/resolve/{revision or 'main'}/{file}"
        headers = {"Authorization": f"Bearer {token}"} if (token := get_token()) else None
    name = Path(urlsplit(source).path).name or "file"
    target = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:8]}-{name}"  # other addresses end in the same name
    with claimed(target, "data_file", wait=True):
        if target.is_file():
            print(f"{target} is there already; remove it to fetch {source} again", file=sys.stderr)
            return target
        return download_url(source, target, headers=headers)
