"""Layouts of pre-quantized linears: encoded bit by bit as published, or by the library of the format."""

import pytest
import torch
from prequantized import encode_awq, encode_gptq, packed
from torch import Tensor

from lit_llm.checkpoint.bnb_format import Bitsandbytes
from lit_llm.checkpoint.quantized_formats import Awq, CompressedTensors, Format, Fp8, Gptq, Mxfp4, Parts
from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Keys

N_IN, N_OUT = 96, 64


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def weight(kind: type[Format], config: dict, tensors: dict[str, Tensor]) -> Tensor:
    return kind.read(Keys(config)).weight(Parts("folder: tensor ", "linear", tensors), torch.float32)


def gptq(bits: int, group_size: int, *, symmetric=False, v2=False, desc_act=False) -> tuple[dict, dict[str, Tensor], Tensor]:
    """The config, the tensors and the weight of a linear."""
    n_groups = 1 if group_size == -1 else -(-N_IN // group_size)
    codes = torch.randint(2**bits, (N_IN, N_OUT))
    zeros = torch.full((n_groups, N_OUT), 2 ** (bits - 1)) if symmetric else torch.randint(2**bits, (n_groups, N_OUT))
    scales = torch.rand(n_groups, N_OUT).half()
    group = torch.arange(N_IN) // (N_IN if group_size == -1 else group_size)
    group = group[torch.randperm(N_IN)] if desc_act else group
    expected = ((codes - zeros[group]) * scales.float()[group]).t()
    config = {"bits": bits, "group_size": group_size, "desc_act": desc_act, "sym": symmetric}
    config |= {"checkpoint_format": "gptq_v2"} if v2 else {}
    return config, encode_gptq(bits, codes, zeros, scales, group, v2), expected


@pytest.mark.parametrize("variant", [{}, {"symmetric": True}, {"v2": True}, {"desc_act": True}], ids=str)
@pytest.mark.parametrize("group_size", [-1, 32, 40])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_layout_gives_the_weights_that_it_encodes(bits, group_size, variant):
    config, tensors, expected = gptq(bits, group_size, **variant)
    assert torch.equal(weight(Gptq, config, tensors), expected)
    if "desc_act" not in variant:
        del tensors[".g_idx"]
        assert torch.equal(weight(Gptq, config, tensors), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_packing_equals_that_of_compressed_tensors(bits):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = torch.randint(2**bits, (N_IN, N_OUT))
    signed = (codes - 2 ** (bits - 1)).char()
    assert torch.equal(helpers.pack_to_int32(signed, bits, packed_dim=0), packed(codes, bits))


def awq(group_size: int) -> tuple[dict, dict[str, Tensor], Tensor]:
    n_groups = 1 if group_size == -1 else N_IN // group_size
    codes, zeros = torch.randint(16, (N_IN, N_OUT)), torch.randint(16, (n_groups, N_OUT))
    scales, group = torch.rand(n_groups, N_OUT).half(), torch.arange(N_IN) // (N_IN // n_groups)
    expected = ((codes - zeros[group]) * scales.float()[group]).t()
    return (
        {"bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True},
        encode_awq(codes, zeros, scales),
        expected,
    )


@pytest.mark.parametrize("group_size", [-1, 32])
def test_awq_layout_gives_the_weights_that_it_encodes(group_size):
    config, tensors, expected = awq(group_size)
    assert torch.equal(weight(Awq, config, tensors), expected)


def test_awq_weights_equal_those_that_compressed_tensors_converts():
    converters = pytest.importorskip("compressed_tensors.entrypoints.convert.converters")
    config, tensors, expected = awq(32)
    theirs = converters.AutoAWQConverter(group_size=32).process({f"a.b{name}": t for name, t in tensors.items()})
    theirs = {name.removeprefix("a.b"): t for name, t in theirs.items()}
    config = {"format": "pack-quantized", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    assert torch.equal(weight(CompressedTensors, config, theirs), expected)


@pytest.mark.parametrize("block", [None, [32, 16], [40, 36]])
def test_fp8_weights_equal_those_of_transformers(block):
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    codes = torch.randn(N_OUT, N_IN).to(torch.float8_e4m3fn)
    shape = (1,) if block is None else (-(-N_OUT // block[0]), -(-N_IN // block[1]))
    scale = torch.rand(shape)
    expected = _dequantize_fp8_weight(codes, scale, block, torch.float32)
    names = [".weight_scale_inv"] if block else [".weight_scale_inv", ".weight_scale"]
    for name in names:
        assert torch.equal(weight(Fp8, {"weight_block_size": block}, {".weight": codes, name: scale}), expected)


def test_mxfp4_weights_equal_those_of_transformers():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(256, (3, N_OUT, N_IN // 32, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, N_OUT, N_IN // 32), dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales)
    ours = Mxfp4.read(Keys({})).weight(Parts("", "", {"_blocks": blocks, "_scales": scales}), torch.bfloat16)
    assert ours.shape == (3, N_IN, N_OUT)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({".g_idx": None}, r"linear\.g_idx is missing, next to linear\.qweight"),
        ({".scales": None}, r"linear\.scales is missing"),
        ({".qzeros": None}, r"linear\.qzeros is missing"),
        ({".qweight": None}, r"linear\.qweight is missing"),
        ({".scales": torch.ones(6, N_OUT)}, r"linear\.scales has shape \[6, 64\], expected \[3, 64\]"),
        ({".qzeros": torch.zeros(3, 4).int()}, r"linear\.qzeros has shape \[3, 4\], expected \[3, 8\]"),
        ({".g_idx": torch.arange(N_IN)}, r"linear\.g_idx names group 95, but there are 3 groups of 32 inputs"),
        ({".g_idx": torch.zeros(7).int()}, r"linear\.g_idx has shape \[7\], expected \[96\]"),
    ],
)
def test_tensors_of_gptq_that_do_not_fit_are_named(changes, message):
    config, tensors, _ = gptq(4, 32, desc_act=True)
    tensors = {name: t for name, t in (tensors | changes).items() if t is not None}
    with pytest.raises(CheckpointError, match=f"^folder: tensor {message}.*Download the checkpoint again"):
        weight(Gptq, config, tensors)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (Gptq, {"bits": 5}, "bits = 5 is not supported; supported: 4, 2, 3, 8"),
        (Gptq, {"bits": 4, "group_size": 0}, "group_size must be a positive integer"),
        (Gptq, {"bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format = 'marlin' is not supported"),
        (Awq, {"bits": 4, "version": "gemv"}, "version = 'gemv' is not supported; supported: 'gemm'"),
        (Fp8, {"weight_block_size": [128]}, "weight_block_size must be two positive integers"),
        (CompressedTensors, {"format": "marlin-24"}, "format = 'marlin-24' is not supported"),
        (CompressedTensors, {"format": "dense", "transform_config": {"a": 1}}, "transform_config is not supported"),
        (CompressedTensors, {"format": "dense", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is"),
        (Bitsandbytes, {"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type = 'int4' is not supported"),
    ],
)
def test_layouts_that_are_not_supported_are_named(kind, config, message):
    with pytest.raises(CheckpointError, match=message):
        kind.read(Keys(config))


@pytest.mark.parametrize(
    ("kind", "config", "tensors", "message"),
    [
        (Fp8, {}, {".weight": torch.zeros(4, 4).to(torch.float8_e4m3fn)}, r"weight_scale_inv is missing"),
        (
            Fp8,
            {},
            {".weight": torch.zeros(4, 4), ".weight_scale": torch.ones(1)},
            r"weight has dtype float32, expected float8_e4m3fn or",
        ),
        (
            Fp8,
            {"weight_block_size": [2, 2]},
            {".weight": torch.zeros(4, 5).to(torch.float8_e4m3fn), ".weight_scale_inv": torch.ones(2, 2)},
            r"weight_scale_inv has shape \[2, 2\], which does not divide 4 x 5 into blocks of 2 x 2",
        ),
        (
            CompressedTensors,
            {"format": "pack-quantized", "config_groups": {"a": {"weights": {"num_bits": 4}}}},
            {".weight_packed": torch.zeros(4, 3).int(), ".weight_shape": torch.tensor([4, 4]), ".weight_scale": torch.ones(1)},
            r"weight_packed has shape \[4, 3\], which does not hold 4 x 4 weights of 4 bits",
        ),
        (Mxfp4, {}, {"_blocks": torch.zeros(2, 4, 1, 8).byte()}, r"expected \[any, any, any, 16\]"),
        (
            Mxfp4,
            {},
            {"_blocks": torch.zeros(2, 4, 1, 16).byte(), "_scales": torch.zeros(2, 4).byte()},
            "linear_scales has shape",
        ),
        (
            Awq,
            {"group_size": 32},
            {".qweight": torch.zeros(96, 8).int(), ".scales": torch.ones(2, 64)},
            "linear.scales has shape",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(kind, config, tensors, message):
    with pytest.raises(CheckpointError, match=message):
        weight(kind, config, tensors)
