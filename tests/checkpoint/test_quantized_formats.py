"""Layouts of pre-quantized linears: encoded bit by bit as published, or by the library of the format."""

import pytest
import torch
from torch import Tensor

from lit_llm.checkpoint.quantized_formats import Awq, CompressedTensors, Format, Fp8, Gptq, Mxfp4, Parts
from lit_llm.errors import CheckpointError
from lit_llm.model.config_json import Keys

N_IN, N_OUT = 96, 64


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def weight(kind: type[Format], config: dict, tensors: dict[str, Tensor]) -> Tensor:
    return kind.read(Keys(config)).weight(Parts("folder: tensor ", "linear", tensors), torch.float32)


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes along dim 0 as one number with the first code in its lowest bits, in words of 32 bits."""
    columns = []
    for column in codes.t().tolist():
        number = sum(code << (i * bits) for i, code in enumerate(column))
        words = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(-(-len(column) * bits // 32))]
        columns.append([word - 2**32 if word >= 2**31 else word for word in words])
    return torch.tensor(columns, dtype=torch.int32).t()


def gptq(bits: int, group_size: int, *, symmetric=False, v2=False, desc_act=False) -> tuple[dict, dict[str, Tensor], Tensor]:
    """The config, the tensors and the weight of a linear."""
    n_groups = 1 if group_size == -1 else -(-N_IN // group_size)
    codes = torch.randint(2**bits, (N_IN, N_OUT))
    zeros = torch.full((n_groups, N_OUT), 2 ** (bits - 1)) if symmetric else torch.randint(2**bits, (n_groups, N_OUT))
    scales = torch.rand(n_groups, N_OUT).half()
    group = torch.arange(N_IN) // (N_IN if group_size == -1 else group_size)
    group = group[torch.randperm(N_IN)] if desc_act else group
    expected = ((codes - zeros[group]) * scales.float()[group]).t()
    stored = zeros if v2 else (zeros - 1) % 2**bits
    config = {"bits": bits, "group_size": group_size, "desc_act": desc_act, "sym": symmetric}
    config |= {"checkpoint_format": "gptq_v2"} if v2 else {}
    tensors = {".qweight": packed(codes, bits), ".qzeros": packed(stored.t(), bits).t(), ".scales": scales}
    return config, tensors | {".g_idx": group.int()}, expected


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


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output in each place of a word, as AutoAWQ packs them."""


def awq(group_size: int) -> tuple[dict, dict[str, Tensor], Tensor]:
    n_groups = 1 if group_size == -1 else N_IN // group_size
    codes, zeros = torch.randint(16, (N_IN, N_OUT)), torch.randint(16, (n_groups, N_OUT))
    scales, group = torch.rand(n_groups, N_OUT).half(), torch.arange(N_IN) // (N_IN // n_groups)
    expected = ((codes - zeros[group]) * scales.float()[group]).t()

    def interleaved(t: Tensor) -> Tensor:
        return packed(t.unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1).t(), 4).t()

    tensors = {".qweight": interleaved(codes), ".qzeros": interleaved(zeros), ".scales": scales}
    return {"bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True}, tensors, expected


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
