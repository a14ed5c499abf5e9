"""LoRA adapters as PEFT saves them, read with our names."""

import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_llm.checkpoint.read import WEIGHT_DTYPES, check_finite, read_tensors
from lit_llm.checkpoint.tensor_names import hf_names
from lit_llm.checkpoint.upstream_linears import RENAMED, LowRank, UpstreamLinear, names_in_all_layers, upstream_linears
from lit_llm.errors import CheckpointError
from lit_llm.files import parse_json, read_json_object
from lit_llm.model.config import LIT_CONFIG
from lit_llm.model.families import TEXT_PARTS
from lit_llm.model.gpt import GPT
from lit_llm.schema import conform, shown

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
STYLE_KEY = "prompt_style"
"""Key of the prompt style in the metadata of a file of weights that we wrote: PEFT's format has no place for it."""
TEMPLATE_KEY = "template_kwargs"
"""Key of the variables of the chat template in it, as JSON."""
_AGAIN = "Download or export the adapter again"
_PREFIX = "base_model.model."

# Options of PEFT that add something else than scale * B A to the product of a linear, and what.
_REFUSED = {
    "target_parameters": "updates of parameters that are not linears",
    "trainable_token_indices": "updates of single rows of the embedding",
    "lora_bias": "a bias of B",
    "layer_replication": "layers that occur several times",
    "alora_invocation_tokens": "updates that begin at a token (aLoRA)",
    "use_qalora": "updates of pooled inputs (QA-LoRA)",
    "megatron_config": "parallel linears of Megatron",
    "kasa_config": "truncated base weights (KaSA)",
    "use_bdlora": "block-diagonal updates",
    "arrow_config": "routing between adapters (Arrow)",
    "monteclora_config": "sampled updates (MonteCLoRA)",
}
# Initializations that also change the weights of the base: the update is relative to those.
_CHANGED_BASE = re.compile("(pissa|olora|corda|loftq|lora_ga)")


class _Config(TypedDict, total=False):
    """Contents of adapter_config.json that are read."""

    peft_type: str
    base_model_name_or_path: str
    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: str | list[str]
    exclude_modules: str | list[str]
    layers_to_transform: int | list[int]
    layers_pattern: str | list[str]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    modules_to_save: list[str]
    use_rslora: bool
    use_dora: bool
    bias: str
    init_lora_weights: bool | str


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter with our names: the arguments of LoRA, and all parameters in float32."""

    arguments: dict[str, Any]
    tensors: dict[str, Tensor]
    copies: dict[str, Tensor]
    """Frozen weights of the base, which PEFT saves next to an update of the head."""


def is_peft(folder: Path) -> bool:
    return (folder / PEFT_CONFIG).is_file()


def peft_weights(folder: Path) -> Path:
    """Return the file of weights of an adapter."""
    found = next((path for name in PEFT_WEIGHTS if (path := folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder} has {PEFT_CONFIG}, but neither {' nor '.join(PEFT_WEIGHTS)}. {_AGAIN}")
    return found


def about_peft(folder: Path) -> dict[str, Any]:
    """Return what `adapter.json` says about our adapters, except the fingerprint, which PEFT does not have.

    Arguments are those that do not depend on the base.

    Raises:
        CheckpointError: if the config is malformed, or asks for what LoRA does not compute.
    """
    config = _read_config(folder)
    return {
        "method": "lora",
        "arguments": {
            "r": config.get("r", 8),
            "alpha": config.get("lora_alpha", 8.0),
            "dropout": config.get("lora_dropout", 0.0),
            "use_rslora": config.get("use_rslora", False),
            "use_dora": config.get("use_dora", False),
        },
        "base_checkpoint_dir": str(_local_base(config.get("base_model_name_or_path", ""))),
        "base_fingerprint": "",
        **_asked_with(peft_weights(folder)),
    }


def _local_base(name: str) -> Path:
    """Return the folder of the base, which PEFT names by its repository or its folder: a hint, which may not exist."""
    places = [Path(name), Path("checkpoints") / name]
    files = ("config.json", LIT_CONFIG)  # os.path.isfile: False for a name that no file can have, too
    found = (place for place in places if any(os.path.isfile(place / file) for file in files))
    return next(found, Path(name) if name.count("/") != 1 else places[1])


def _asked_with(path: Path) -> dict[str, Any]:
    """Return the prompt style in the metadata of a file that we exported, and variables of the chat template."""
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        with suppress(SafetensorError), safe_open(path, "pt") as file:  # reported when the tensors are read
            metadata = file.metadata() or {}
    kwargs = metadata.get(TEMPLATE_KEY)
    more = {} if kwargs is None else {"template_kwargs": parse_json(kwargs.encode(), path, _AGAIN)}
    return {"prompt_style": metadata.get(STYLE_KEY), **more}


def _read_config(folder: Path) -> _Config:
    path = folder / PEFT_CONFIG
    raw = read_json_object(path, advice=_AGAIN)
    config: _Config = conform(raw, _Config, path, _AGAIN)
    merge = (
        f"Merge it with PEFT, PeftModel.from_pretrained(BASE, '{folder}').merge_and_unload().save_pretrained(OUT), and use OUT "
        "as `checkpoint_dir`"
    )
    if (kind := config.get("peft_type")) != "LORA":
        raise CheckpointError(f"{path}: peft_type is {shown(kind)}. Only LORA can be used. {merge}")
    for key, what in _REFUSED.items():
        if raw.get(key):
            raise CheckpointError(f"{path}: {key} is {shown(raw[key])}: {what}, which LoRA does not compute here. {merge}")
    if (bias := config.get("bias", "none")) != "none":
        raise CheckpointError(f"{path}: bias is {shown(bias)}: trained biases of linears are not supported. {merge}")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and _CHANGED_BASE.match(init):
        raise CheckpointError(
            f"{path}: init_lora_weights is {shown(init)}, which changed the weights of the base before the training. Save it "
            f"as plain LoRA with PEFT, save_pretrained(OUT, path_initial_model_for_weight_conversion=...). Or merge it with "
            f"PEFT, PeftModel.from_pretrained(BASE, '{folder}').merge_and_unload()"
        )
    return config


@dataclass(frozen=True)
class _Targets:
    """Modules that a config adapts, with their ranks and alphas, by the rules of PEFT (tuners_utils.py, utils/other.py)."""

    path: Path
    config: _Config
    ranks: list[tuple[re.Pattern[str], int]] = field(init=False)
    alphas: list[tuple[re.Pattern[str], float]] = field(init=False)

    def __post_init__(self) -> None:
        for name, key in (("ranks", "rank_pattern"), ("alphas", "alpha_pattern")):
            pairs = [(self._regex(rf"(.*\.)?({pattern})$"), value) for pattern, value in self.config.get(key, {}).items()]
            object.__setattr__(self, name, pairs)

    def _regex(self, pattern: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(f"{self.path}: {shown(pattern)} is not a regular expression ({error}). {_AGAIN}") from error

    def rank(self, module: str) -> int:
        rank = next((value for pattern, value in self.ranks if pattern.match(module)), self.config.get("r", 8))
        if rank < 1:
            raise CheckpointError(f"{self.path}: the rank of {module} is {rank}, expected above 0. {_AGAIN}")
        return rank

    def alpha(self, module: str) -> float:
        return next((value for pattern, value in self.alphas if pattern.match(module)), self.config.get("lora_alpha", 8.0))

    def among(self, modules: Iterable[str], heads: set[str]) -> set[str]:
        """Return the modules that are adapted; `all-linear` excludes `heads`."""
        targets, excluded = self.config.get("target_modules"), self.config.get("exclude_modules", [])
        if targets is None:
            raise CheckpointError(f"{self.path}: target_modules is missing, a string or a list. {_AGAIN}")
        if isinstance(targets, str) and targets.lower() == "all-linear":
            found = {*modules} - heads
        else:
            found = {module for module in modules if self._names(targets, module)}
            if isinstance(targets, list):
                found = {module for module in found if module in targets or self._is_in_layers(module)}
        saved = self.config.get("modules_to_save", [])
        in_full = {module for module in found if any(f".{name}." in f".{module}." for name in saved)}
        return {module for module in found - in_full if not self._names(excluded, module)}

    def _names(self, targets: str | list[str], module: str) -> bool:
        """A string is a regular expression of the whole name, a list has ends of names."""
        if isinstance(targets, str):
            return self._regex(targets).fullmatch(module) is not None
        return module in targets or any(module.endswith(f".{target}") for target in targets)

    def _is_in_layers(self, module: str) -> bool:
        layers, patterns = self.config.get("layers_to_transform", []), self.config.get("layers_pattern", [])
        if layers == []:
            return True
        patterns = [patterns] if isinstance(patterns, str) else patterns
        regexes = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns if pattern] or [r".*?\.[^.]*\.(\d+)\."]
        match = next((m for regex in regexes if (m := self._regex(regex).match(module))), None)
        return match is not None and int(match[1]) in ([layers] if isinstance(layers, int) else layers)


_LORA = re.compile(r"(.+)\.lora_(A|B|magnitude_vector)(?:\.(?!weight$)\w+)?(?:\.weight)?")


def _in_text_model(name: str) -> str | None:
    """Return the name that a module of a multimodal model has in its text model; None if it is of another part."""
    found = [part.name(name) for part in TEXT_PARTS.values()]
    return None if None in found else next((text for text in found if text != name), name)


def read_peft(folder: Path, model: GPT) -> PeftAdapter:
    """Read an adapter for a model, which may be on the meta device.

    Raises:
        FileNotFoundError: if the file of weights is missing.
        CheckpointError: if config, tensors and model do not fit together, or a value is not finite.
    """
    return _Reading(folder, model).read()


class _Reading:
    """One reading: the file, and the linears of the base by their names in transformers."""

    def __init__(self, folder: Path, model: GPT) -> None:
        self.path, self.model, self.peft = peft_weights(folder), model, _read_config(folder)
        self.targets = _Targets(folder / PEFT_CONFIG, self.peft)
        self.linears = upstream_linears(model)
        self.names = hf_names(model.config)
        self.stored: dict[str, str] = {}  # names of linears in the file, where it has another prefix
        base = str(self.peft.get("base_model_name_or_path") or "")[:300]
        self.other_base = (
            f"The adapter was trained on another base{f', {base}' if base else ''}. Use that one as `checkpoint_dir`"
        )

    def read(self) -> PeftAdapter:
        factors: dict[str, dict[str, Tensor]] = {}
        others: dict[str, Tensor] = {}
        omitted = 0
        for name, read in read_tensors([self.path]):
            if _in_text_model(name.removeprefix(_PREFIX)) is None:
                omitted += 1
                continue
            tensor = self._checked(name, read())
            if match := _LORA.fullmatch(name):
                factors.setdefault(self._linear(match[1], name).name, {})[match[2]] = tensor
            else:
                others[name] = tensor
        if omitted:
            warnings.warn(f"{self.path}: {omitted} tensors are omitted: they are not of the text model", stacklevel=2)
        updates = self._updates(factors)
        in_full = self.peft.get("modules_to_save", [])
        trained = {name: tensor for name, tensor in others.items() if any(f"{module}." in name for module in in_full)}
        copies = {name: tensor for name, tensor in others.items() if name not in trained}
        return self._adapter(updates, self._weights(trained), self._weights(copies))

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(f"{self.path}: tensor {shown(name)} has dtype {tensor.dtype}, expected a float. {_AGAIN}")
        check_finite(tensor, f"{self.path}: tensor {shown(name)}")
        return tensor.float()

    def _linear(self, module: str, tensor: str) -> UpstreamLinear:
        """Find a linear by its name, which in older or multimodal classes of transformers has other prefixes."""
        bare = module.removeprefix(_PREFIX)
        candidates = (bare, _in_text_model(bare), RENAMED.get(bare, bare), self.names.prefix + bare)
        found = next((self.linears[name] for name in candidates if name in self.linears), None)
        if found is None:
            raise CheckpointError(
                f"{self.path}: unexpected tensor {shown(tensor)}: the base has no linear {shown(bare)}. {self.other_base}"
            )
        self.stored[found.name] = bare
        return found

    def _updates(self, factors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, LowRank]:
        """Return an update for each linear that the config adapts, by the name in transformers."""
        heads = {name for name, linear in self.linears.items() if linear.parts == ("lm_head",)}
        stored = {self.stored.get(name, name): name for name in self.linears}
        expected = {stored[name] for name in self.targets.among(stored, {self.stored.get(name, name) for name in heads})}
        if unexpected := next((name for name in factors if name not in expected), None):
            raise CheckpointError(
                f"{self.path} has an update of {unexpected}, which {PEFT_CONFIG} does not adapt: see target_modules, "
                f"exclude_modules and layers_to_transform there. {_AGAIN}"
            )
        updates = {}
        for name in (name for name in self.linears if name in expected):
            if name not in factors and re.search(r"\.experts\.|\.router$", self.linears[name].parts[0]):
                continue  # PEFT adapts them only where transformers holds them as linears
            updates[name] = self._update(name, factors.get(name, {}))
        if not updates:
            raise CheckpointError(f"{self.path} has no update of a linear of the base. {self.other_base}")
        return updates

    def _update(self, name: str, found: Mapping[str, Tensor]) -> LowRank:
        linear, r = self.linears[name], self.targets.rank(self.stored.get(name, name))
        shapes = {"A": [r, linear.in_features], "B": [sum(linear.out_features), r]}
        if self.peft.get("use_dora", False):
            shapes["magnitude_vector"] = [sum(linear.out_features)]
        for kind in sorted({*shapes, *found}):
            tensor = f"{self.path}: tensor {_PREFIX}{name}.lora_{kind}"
            if kind not in found:
                raise CheckpointError(f"{tensor} is missing. {_AGAIN}")
            if kind not in shapes:
                raise CheckpointError(f"{tensor} is of DoRA, but {PEFT_CONFIG} lacks use_dora. {_AGAIN}")
            shape = list(found[kind].shape)
            if len(shape) == 2 and shape[kind == "B"] != r:
                raise CheckpointError(f"{tensor} has rank {shape[kind == 'B']}, {PEFT_CONFIG} says {r}. {_AGAIN}")
            if shape != shapes[kind]:
                raise CheckpointError(f"{tensor} has shape {shape}, the base needs {shapes[kind]}. {self.other_base}")
        return LowRank(found["A"], found["B"], found.get("magnitude_vector"))

    def _weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of the base with our names, whose shapes are those of the base."""
        found, shapes = {}, {name: list(tensor.shape) for name, tensor in self.model.state_dict().items()}
        for key, tensor in tensors.items():
            bare = re.sub(r"\.base_layer|\.modules_to_save(\.\w+(?=\.\w+$))?", "", key.removeprefix(_PREFIX))
            bare = _in_text_model(bare) or bare
            module, _, leaf = bare.rpartition(".")
            linear = self.linears.get(RENAMED.get(module, module))
            if linear is not None and linear.parts == ("lm_head",):  # for `ours`, a tied head is one with the embedding
                found[f"lm_head.{leaf}"] = tensor
                continue
            for name, _, read in self.names.ours([(bare, lambda tensor=tensor: tensor)]):
                if name is None or name not in shapes:
                    raise CheckpointError(f"{self.path}: unexpected tensor {shown(key)}: not one of LoRA. {self.other_base}")
                found[name] = read()
        for name, tensor in found.items():
            if shapes.get(name) != list(tensor.shape):
                raise CheckpointError(
                    f"{self.path}: the weight of {name} has shape {list(tensor.shape)}, the base has {shapes.get(name)}. If "
                    f"tokens were added to the vocabulary, merge the adapter with PEFT first. {self.other_base}"
                )
        return found

    def _adapter(self, updates: Mapping[str, LowRank], saved: Mapping[str, Tensor], copies: dict[str, Tensor]) -> PeftAdapter:
        use_rslora, use_dora = self.peft.get("use_rslora", False), self.peft.get("use_dora", False)
        tensors, ranks, alphas = dict(saved), {}, {}
        for name, update in updates.items():
            whole = len(update.A)
            for part, own in self.linears[name].split_updates(self.model.config, update).items():
                ranks[part] = len(own.A)
                share = len(own.A) / whole  # of the scale, alpha / r
                alphas[part] = self.targets.alpha(self.stored.get(name, name)) * (math.sqrt(share) if use_rslora else share)
                tensors |= {f"{part}.lora.A": own.A, f"{part}.lora.B": own.B}
                if own.magnitude is not None:
                    tensors[f"{part}.lora.magnitude"] = own.magnitude
        r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
        targets = names_in_all_layers(self.model, list(ranks))
        more: dict[str, Any] = {
            "ranks": {name: value for name, value in ranks.items() if value != r},
            "alphas": {name: value for name, value in alphas.items() if value != alpha},
            "modules_to_save": list(dict.fromkeys(name.rpartition(".")[0] for name in saved)),
        }
        arguments = {
            "r": r, "alpha": alpha, "dropout": self.peft.get("lora_dropout", 0.0), "use_rslora": use_rslora,
            "use_dora": use_dora, "targets": ",".join(targets) if len(targets) < 9 else targets,
        }  # fmt: skip
        return PeftAdapter(arguments | {key: value for key, value in more.items() if value}, tensors, copies)
