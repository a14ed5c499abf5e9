"""Tiny pre-quantized checkpoints: made by the libraries, or encoded here as the layouts are published."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import hf_model, make_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
BNB: dict[str, dict[str, Any]] = {
    "bnb.nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bnb.nf4-dq": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "bnb.fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "bnb.fp4-dq": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "bnb.int8": {"load_in_8bit": True},
}


def plain(folder: Path, model_type: str = "llama", **changes: Any) -> Path:
    """A tiny checkpoint in float32."""
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads" or model_type in ("llama", "phi3", "gpt_oss")}
    hf_model(model_type, **{**sizes, **changes}).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    make_tokenizer(folder)
    return folder


def bitsandbytes(folder: Path, source: Path, skip: Iterable[str] | None = None, **options: Any) -> Path:
    """As transformers saves it."""
    config = BitsAndBytesConfig(**options, llm_int8_skip_modules=None if skip is None else list(skip))
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(folder)
    copy_tokenizer(source, folder)
    return folder


def copy_tokenizer(source: Path, folder: Path) -> None:
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def rewrite(
    folder: Path, source: Path, quantization_config: dict[str, Any], encode: Callable[[str, Tensor], dict[str, Tensor] | None]
) -> Path:
    """Copy a checkpoint, with the tensors that `encode` returns for a linear in place of its weight, unless it returns None."""
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        stem = name.removesuffix("weight")
        if (encoded := encode(stem, tensors[name])) is not None:
            del tensors[name]
            tensors |= {f"{stem}{part}": tensor.contiguous() for part, tensor in encoded.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, quantization_config=quantization_config)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


COMPRESSED: dict[str, dict[str, Any]] = {
    "pack-quantized, groups": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    "pack-quantized, channels": {"num_bits": 8, "strategy": "channel"},
    "pack-quantized, tensor": {"num_bits": 3, "strategy": "tensor"},
    "naive-quantized, channels": {"num_bits": 8, "strategy": "channel", "symmetric": False},
    "int-quantized, groups": {"num_bits": 8, "strategy": "group", "group_size": 16},
    "float-quantized, tensor": {"num_bits": 8, "type": "float", "strategy": "tensor"},
    "float-quantized, channels": {"num_bits": 8, "type": "float", "strategy": "channel"},
    "naive-quantized, blocks": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 16]},
}
"""Format and the library's arguments of the weights."""


def compressed_tensors(folder: Path, source: Path, name: str, ignore: Iterable[str] = ()) -> Any:
    """As compressed-tensors writes it, except lm_head. Returns the model with the weights that the library decompresses."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**COMPRESSED[name]))
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head", *ignore], format=name.split(",")[0], quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            _calibrate(module)
    compressor = ModelCompressor(config, force_compression_format=name.split(",")[0])
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    copy_tokenizer(source, folder)
    compressor.decompress_model(model)
    return model.eval()


def _calibrate(module: Any) -> None:
    """Set scales and zero points of a linear from its weight."""
    from compressed_tensors.quantization.utils import calculate_qparams

    arguments, weight = module.quantization_scheme.weights, module.weight.data
    blocks = weight.view(1, 1, -1)
    if arguments.strategy != "tensor":
        height, width = arguments.block_structure or (1, arguments.group_size or weight.size(1))
        blocks = weight.unflatten(1, (-1, width)).unflatten(0, (-1, height)).transpose(1, 2).flatten(2)
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), arguments)
    module.weight_scale.data.copy_(scale.view(module.weight_scale.shape))
    module.weight_zero_point.data.copy_(zero.view(module.weight_zero_point.shape))


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes along dim 0 as one number with the first code in its lowest bits, in words of 32 bits."""
    columns = []
    for column in codes.t().tolist():
        number = sum(code << (i * bits) for i, code in enumerate(column))
        words = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(-(-len(column) * bits // 32))]
        columns.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(columns, dtype=torch.int32).t()


def encode_gptq(bits: int, codes: Tensor, zeros: Tensor, scales: Tensor, group: Tensor, v2: bool = False) -> dict[str, Tensor]:
    """Tensors for codes (in, out), zero points and scales (groups, out), and the group (in,) of each input."""
    stored = zeros if v2 else (zeros - 1) % 2**bits
    tensors = {".qweight": packed(codes, bits), ".qzeros": packed(stored.t(), bits).t(), ".scales": scales}
    return tensors | {".g_idx": group.int()}


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output in each place of a word, as AutoAWQ packs them."""


def encode_awq(codes: Tensor, zeros: Tensor, scales: Tensor) -> dict[str, Tensor]:
    """Tensors for codes (in, out), zero points and scales (groups, out)."""

    def interleaved(t: Tensor) -> Tensor:
        return packed(t.unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1).t(), 4).t()

    return {".qweight": interleaved(codes), ".qzeros": interleaved(zeros), ".scales": scales}


def in_groups(folder: Path, source: Path, method: str) -> tuple[Path, dict[str, Tensor]]:
    """A folder in GPTQ's or AWQ's layout, each linear rounded to 4 bits in groups of 16, and the rounded weights by name."""
    rounded = {}

    def encode(stem: str, weight: Tensor) -> dict[str, Tensor]:
        groups = weight.t().unflatten(0, (-1, 16))  # (groups, 16, out)
        low, high = groups.amin(1), groups.amax(1)
        scales = ((high - low) / 15).half()
        zeros = (-low / scales).round().clamp(0, 15).int()
        codes = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15).int()
        rounded[f"{stem}weight"] = ((codes - zeros[:, None]) * scales[:, None].float()).flatten(0, 1).t()
        codes, group = codes.flatten(0, 1), torch.arange(weight.size(1)) // 16
        encoded = encode_awq(codes, zeros, scales) if method == "awq" else encode_gptq(4, codes, zeros, scales, group)
        return {name.removeprefix("."): tensor for name, tensor in encoded.items()}

    config = {"quant_method": method, "bits": 4, "group_size": 16}
    return rewrite(folder, source, config, encode), rounded


MXFP4_CODES = torch.tensor([sign * value for sign in (1, -1) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)])
"""Values of E2M1, as the specification lists them."""


def encode_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks and scales of a weight (..., out, in), and the weight that they hold."""
    groups = weight.unflatten(-1, (-1, 32))
    exponent = groups.abs().amax(-1, keepdim=True).log2().floor() - 2  # the largest code is 6
    codes = (groups / 2**exponent)[..., None].sub(MXFP4_CODES).abs().argmin(-1)
    blocks = codes[..., 0::2] + 16 * codes[..., 1::2]
    rounded = (MXFP4_CODES[codes] * 2**exponent).flatten(-2)
    return blocks.to(torch.uint8), (exponent[..., 0] + 127).to(torch.uint8), rounded


GPT_OSS: dict[str, Any] = {
    "head_dim": 16, "intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def mxfp4(folder: Path, **changes: Any) -> tuple[Path, dict[str, Tensor]]:
    """A gpt-oss as published, with experts in 4 bits, and the weights of its experts that they hold, by name."""
    source, rounded = plain(folder.with_name(f"{folder.name}-plain"), "gpt_oss", **GPT_OSS, **changes), {}
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        blocks, scales, weight = encode_mxfp4(tensors.pop(name).mT)  # files have (experts, out, in)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        rounded[name] = weight.mT.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    skipped = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    edit_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": skipped})
    return folder, rounded


def fp8(folder: Path, source: Path, block: list[int] | None, scale_name: str = "weight_scale_inv") -> Path:
    """A scale for each block, or for each tensor; one linear is not quantized."""

    def encode(stem: str, weight: Tensor) -> dict[str, Tensor] | None:
        if stem.endswith("layers.0.mlp.down_proj."):
            return None
        height, width = block or weight.shape
        blocks = weight.unflatten(1, (-1, width)).unflatten(0, (-1, height))
        scale = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn)
        return {"weight": codes, scale_name: scale if block else scale.view(())}

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    return rewrite(folder, source, config | {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.down_proj"]}, encode)


def make_quantized(kind: str, folder: Path, source: Path) -> Path:
    """A folder of this kind with the weights of `source`, except MXFP4, which is gpt-oss."""
    if kind in BNB:
        return bitsandbytes(folder, source, **BNB[kind])
    if kind in ("compressed-tensors", "int8 in groups"):
        pytest.importorskip("compressed_tensors")
        compressed_tensors(folder, source, "int-quantized, groups" if kind == "int8 in groups" else "pack-quantized, groups")
        return folder
    others = {
        "fp8": lambda: fp8(folder, source, None, "weight_scale"),
        "fp8 in blocks": lambda: fp8(folder, source, [32, 16]),
        "mxfp4": lambda: mxfp4(folder)[0],
    }
    return others[kind]() if kind in others else in_groups(folder, source, kind)[0]
