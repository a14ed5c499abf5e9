import logging
import sys

import bitsandbytes as bnb
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_llm.model import quantized_linear
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT
from lit_llm.model.quantized_linear import QUANTIZATIONS, Linear4bit, LinearInt8, QuantizedLinear, quantize_linears

FOUR_BIT = [q for q in QUANTIZATIONS if q != "bnb.int8"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# The first two have more elements than a chunk; from the second on, rows are no whole number of blocks, or of bytes.
SHAPES = [(300, 4096), (9000, 130), (7, 96), (13, 33), (1, 1)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


every_quantization = pytest.mark.parametrize("quantization", QUANTIZATIONS)


def empty_linear(quantization: str, shape: tuple[int, ...], bias: nn.Parameter | None = None) -> QuantizedLinear:
    out_features, in_features = shape
    if quantization == "bnb.int8":
        return LinearInt8(in_features, out_features, bias)
    quant_type, _, nested = quantization.removeprefix("bnb.").partition("-")
    return Linear4bit(in_features, out_features, bias, quant_type, nested=nested == "dq")


def quantized(quantization: str, weight: Tensor, bias: Tensor | None = None, device: str = "cpu") -> QuantizedLinear:
    linear = empty_linear(quantization, tuple(weight.shape), None if bias is None else nn.Parameter(bias.to(device)))
    linear.load_weight(weight, device)
    return linear


def random_weight(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(0.05).to(dtype)


def their_linear(quantization: str, weight: Tensor) -> nn.Module:
    out_features, in_features = weight.shape
    if quantization == "bnb.int8":
        theirs = bnb.nn.Linear8bitLt(in_features, out_features, bias=False, has_fp16_weights=False)
        theirs.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        quant_type, _, nested = quantization.removeprefix("bnb.").partition("-")
        theirs = bnb.nn.Linear4bit(in_features, out_features, False, None, nested == "dq", quant_type)
        theirs.weight = bnb.nn.Params4bit(weight, False, compress_statistics=nested == "dq", quant_type=quant_type)
    return theirs.to("cpu")


def algebraic_weight(linear: QuantizedLinear) -> Tensor:
    """The weight (out_features, in_features) by the definition of the format, without a kernel."""
    if isinstance(linear, LinearInt8):
        return linear.weight * linear.absmax[:, None] / 127
    assert isinstance(linear, Linear4bit)
    absmax: Tensor = linear.absmax
    if linear.nested:
        groups = torch.arange(absmax.numel()).view(absmax.shape) // 256
        code = bnb.functional.create_dynamic_map()
        absmax = code[absmax.int()] * linear.nested_absmax[groups] + linear.nested_offset
    code = bnb.functional.get_4bit_type(linear.quant_type, "cpu")
    codes = torch.stack((linear.weight >> 4, linear.weight & 15), dim=-1).flatten(1).int()
    return (code[codes] * absmax.repeat_interleave(64, dim=1))[:, : linear.in_features]


@pytest.mark.parametrize("dtype", DTYPES)
@every_quantization
def test_stored_bytes_equal_those_of_bitsandbytes(quantization, dtype):
    weight = random_weight((300, 4096), dtype)
    assert weight.numel() > quantized_linear.CHUNK_SIZE  # bitsandbytes quantizes it at once
    ours, theirs = quantized(quantization, weight), their_linear(quantization, weight)
    if quantization == "bnb.int8":
        assert torch.equal(ours.weight, theirs.weight.CB)
        assert torch.equal(ours.absmax, theirs.weight.SCB)
        return
    state = theirs.weight.quant_state
    assert torch.equal(ours.weight.flatten(), theirs.weight.flatten())
    assert torch.equal(ours.absmax.flatten(), state.absmax)
    if state.nested:
        assert torch.equal(ours.nested_absmax, state.state2.absmax)
        assert torch.equal(ours.nested_offset[0], state.offset)
    expected = bnb.functional.dequantize_4bit(theirs.weight, state)
    assert torch.equal(ours.dequantize(dtype), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quantization", FOUR_BIT)
def test_incomplete_blocks_are_stored_as_if_padded_with_zeros(quantization, shape):
    weight = random_weight(shape)
    theirs = their_linear(quantization, F.pad(weight, (0, -shape[1] % 64)))
    assert torch.equal(quantized(quantization, weight).weight.flatten(), theirs.weight.flatten())


@pytest.mark.parametrize("shape", SHAPES)
@every_quantization
def test_dequantized_weight_equals_its_definition(quantization, shape):
    weight = random_weight(shape)
    linear = quantized(quantization, weight)
    dequantized = linear.dequantize()
    assert dequantized.shape == weight.shape
    assert dequantized.dtype == torch.float32
    torch.testing.assert_close(dequantized, algebraic_weight(linear))
    # The widest gap between two values of the format, which are fractions of the largest weight of a block or row.
    gap = 1 / 127 if quantization == "bnb.int8" else 1 - 0.6962 if "nf4" in quantization else 1 - 2 / 3
    largest = weight.abs().amax(dim=1, keepdim=True)
    # At most half of it, were it not that int8 passes through float16 and "-dq" rounds its scales: hence 0.6.
    assert ((dequantized - weight).abs() <= 0.6 * gap * largest).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@every_quantization
def test_quantized_linear_equals_one_with_dequantized_weights(quantization, shape, bias):
    linear = quantized(quantization, random_weight(shape), torch.randn(shape[0]) if bias else None)
    weight = algebraic_weight(linear)
    x = torch.randn(2, 3, shape[1], requires_grad=True)
    expected = F.linear(x, weight, linear.bias)
    actual = linear(x)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    grad = torch.randn_like(expected) / shape[0] ** 0.5
    inputs = (x, linear.bias) if bias else (x,)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quantization", FOUR_BIT)
def test_the_fused_product_of_bitsandbytes_agrees(quantization, shape):
    linear = quantized(quantization, random_weight(shape))
    x = torch.randn(2, 3, shape[1])
    torch.testing.assert_close(linear.fused_product(x), linear.product(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@every_quantization
def test_half_precision_inputs_give_half_precision_gradients(quantization, dtype):
    linear = quantized(quantization, random_weight((96, 128)), torch.randn(96))
    x = torch.randn(4, 128, dtype=dtype, requires_grad=True)
    y = linear(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    weight = linear.dequantize()
    # One rounding of weights, bias and result to the dtype of the input, against none.
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(y.float(), F.linear(x.float(), weight, linear.bias), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(x.grad.float(), weight.sum(0).expand(4, -1), atol=tolerance, rtol=tolerance)


@every_quantization
def test_autocast_acts_as_on_a_linear(quantization):
    linear = quantized(quantization, random_weight((96, 128)), torch.randn(96))
    reference = nn.Linear(128, 96)
    reference.weight.data, reference.bias.data = linear.dequantize(), linear.bias.data
    x = torch.randn(4, 128, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = linear(x), reference(x)
    assert actual.dtype == expected.dtype == torch.bfloat16
    # bfloat16 has 8 bits of precision, and the bias is added before or after the sum is rounded to them.
    torch.testing.assert_close(actual, expected, atol=2e-2, rtol=2e-2)
    (grad,) = torch.autograd.grad(actual.sum(), x)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, expected_grad, atol=2e-2, rtol=2e-2)


@every_quantization
def test_checkpointing_keeps_gradients_of_quantized_linears(quantization):
    linear = quantized(quantization, random_weight((64, 64)))
    x = torch.randn(4, 64, requires_grad=True)
    (plain,) = torch.autograd.grad(linear(linear(x).tanh()).sum(), x)
    (recomputed,) = torch.autograd.grad(checkpoint(lambda x: linear(linear(x).tanh()), x, use_reentrant=False).sum(), x)
    assert torch.equal(plain, recomputed)

    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = linear(x)
    assert not saved
    kept = [value for value in vars(y.grad_fn).values() if isinstance(value, Tensor)]
    assert not kept


@every_quantization
def test_a_compiled_linear_computes_the_same(quantization):
    linear = quantized(quantization, random_weight((16, 96)), torch.randn(16))
    x = torch.randn(4, 96, requires_grad=True)
    # One graph, but for "-dq", whose table of 256 values cannot be traced.
    compiled = torch.compile(linear, fullgraph=not quantization.endswith("-dq"), backend="eager")
    actual, expected = compiled(x), linear(x)
    assert torch.equal(actual, expected)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (actual, expected)))


@every_quantization
def test_no_rows_in_no_rows_out(quantization):
    linear = quantized(quantization, random_weight((8, 64)), torch.zeros(8))
    x = torch.empty(2, 0, 64, requires_grad=True)
    y = linear(x)
    assert y.shape == (2, 0, 8)
    y.sum().backward()
    assert x.grad.shape == x.shape


@every_quantization
def test_a_row_of_zeros_stays_zero(quantization):
    weight = random_weight((4, 128))
    weight[1:3] = 0
    assert torch.equal(quantized(quantization, weight).dequantize()[1:3], torch.zeros(2, 128))


@every_quantization
def test_state_dict_loads_strictly_and_computes_the_same(quantization):
    shape = (10, 96)
    linear = quantized(quantization, random_weight(shape), torch.randn(10))
    state = linear.state_dict()
    assert all(type(value) is Tensor for value in state.values())
    x = torch.randn(3, 96)
    expected = linear(x)

    assigned = empty_linear(quantization, shape, nn.Parameter(torch.empty(10, device="meta")))
    assigned.load_state_dict(state, assign=True)
    assert torch.equal(assigned(x), expected)

    copied = empty_linear(quantization, shape, nn.Parameter(torch.empty(10, device="meta"))).to_empty(device="cpu")
    copied.load_state_dict(state)
    assert torch.equal(copied(x), expected)
    assert not any(parameter.requires_grad for name, parameter in copied.named_parameters() if name != "bias")


@every_quantization
@torch.no_grad()
def test_compiles_as_one_graph(quantization):
    """As `compile` of the generating scripts does, with `fullgraph`."""
    linear, x = quantized(quantization, random_weight((10, 96))), torch.randn(3, 96)
    torch.compiler.reset()  # a function may be compiled for 8 kinds of module
    compiled = torch.compile(linear, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(x), linear(x))


@every_quantization
def test_casting_the_module_casts_its_bias_alone(quantization):
    linear = quantized(quantization, random_weight((10, 96)), torch.randn(10))
    before = {name: value.clone() for name, value in linear.state_dict().items() if name != "bias"}
    linear.to(torch.bfloat16).half().to("cpu", torch.float64).to(torch.bfloat16)
    assert linear.bias.dtype == torch.bfloat16
    after = linear.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("shape", [(12, 128), (7, 96)])
@every_quantization
def test_parameters_can_be_sharded_along_their_first_dimension(quantization, shape):
    linear = quantized(quantization, random_weight(shape))
    x = torch.randn(3, shape[1])
    expected = linear(x)
    shards = {name: value.chunk(2) for name, value in linear.state_dict().items()}
    gathered = empty_linear(quantization, shape)
    gathered.load_state_dict({name: torch.cat(parts) for name, parts in shards.items()}, assign=True)
    assert torch.equal(gathered(x), expected)

    if quantization.endswith("dq"):
        return  # its scales share scales across rows
    rows = [len(part) for part in shards["weight"]]
    outputs = []
    for rank, n in enumerate(rows):
        shard = empty_linear(quantization, (n, shape[1]))
        shard.load_state_dict({name: parts[rank] for name, parts in shards.items()}, assign=True)
        outputs.append(shard(x))
    torch.testing.assert_close(torch.cat(outputs, dim=-1), expected)


def test_a_weight_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"expected a weight of shape \(4, 64\), found \(64, 4\)"):
        quantized("bnb.nf4", torch.zeros(4, 64)).load_weight(torch.zeros(64, 4), "cpu")


def tiny_config() -> Config:
    return Config(
        model_type="llama",
        vocab_size=50,
        block_size=32,
        n_layer=2,
        n_head=2,
        n_query_groups=1,
        n_embd=64,
        head_size=32,
        intermediate_size=96,
        attn_bias=True,
        rotary_size=32,
    )


@every_quantization
def test_linears_of_the_blocks_are_replaced_and_no_others(quantization):
    with torch.device("meta"):
        model = GPT(tiny_config())
        model.h[1].mlp.router = nn.Linear(64, 4)
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantize_linears(model, quantization)

    replaced = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert replaced.keys() == linears - {"lm_head", "h.1.mlp.router"}
    assert all(p.is_meta for p in model.parameters())
    assert {name: p for name, p in model.named_parameters() if name.endswith("bias")} == biases
    assert (replaced["h.0.mlp.down"].out_features, replaced["h.0.mlp.down"].in_features) == (64, 96)


def test_weights_with_fewer_rows_than_ranks_are_not_sharded(monkeypatch):
    monkeypatch.setattr(quantized_linear, "n_ranks", lambda: 80)
    with torch.device("meta"):
        model = GPT(tiny_config())
    quantize_linears(model, "bnb.nf4", in_parts=True)
    in_parts = {m.out_features: m.in_parts for m in model.modules() if isinstance(m, QuantizedLinear)}
    assert in_parts == {32: False, 64: False, 96: True}


@every_quantization
def test_a_quantized_model_equals_the_dequantized_one(quantization):
    reference = GPT(tiny_config())
    with torch.device("meta"):
        model = GPT(tiny_config())
    quantize_linears(model, quantization)
    rest = {}
    for name, tensor in reference.state_dict().items():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, QuantizedLinear) and name.endswith("weight"):
            module.load_weight(tensor, "cpu")
            tensor.copy_(module.dequantize())
            rest |= {f"{name.removesuffix('weight')}{key}": p for key, p in module.named_parameters() if key != "bias"}
        else:
            rest[name] = tensor
    model.load_state_dict(rest, assign=True)
    ids = torch.randint(0, 50, (2, 9))
    torch.testing.assert_close(model(ids), reference(ids), atol=1e-5, rtol=1e-5)


def test_unknown_quantization_is_refused_with_the_known_ones():
    with torch.device("meta"):
        model = GPT(tiny_config())
    with pytest.raises(ValueError, match=r"'bnb\.nf5' does not exist\. Use one of bnb\.nf4, bnb\.nf4-dq"):
        quantize_linears(model, "bnb.nf5")


def test_missing_bitsandbytes_error_gives_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with torch.device("meta"):
        model = GPT(tiny_config())
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        quantize_linears(model, "bnb.nf4")


def test_only_the_notice_about_the_unused_kernel_is_silenced(caplog):
    quantized_linear._import_bitsandbytes()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "any reason")
    logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(300, 4096), (7, 96), (13, 33)])
@every_quantization
def test_on_a_gpu_a_quantized_linear_equals_the_dequantized_one(quantization, shape):
    linear = quantized(quantization, random_weight(shape), torch.randn(shape[0]), device="cuda")
    on_cpu = quantized(quantization, random_weight(shape))
    weight = linear.dequantize()
    torch.testing.assert_close(weight.cpu(), algebraic_weight(linear.to("cpu")))
    # Kernels may differ in where they round a value that lies between two codes: in a few weights.
    assert (weight.cpu() != on_cpu.dequantize()).float().mean() < 1e-2

    linear.to("cuda")
    # Half precision: the rounding of weights and sums. float32: the order of a sum of up to 4096 products.
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 6e-2)):
        for n_tokens in (1, 7, 300):  # bitsandbytes has a kernel for few tokens and another for many
            x = torch.randn(n_tokens, shape[1], device="cuda", dtype=dtype, requires_grad=True)
            y = linear(x)
            y.sum().backward()
            expected = F.linear(x.float(), weight, linear.bias)
            torch.testing.assert_close(y.float(), expected, atol=tolerance, rtol=tolerance)
            expected_grad = weight.sum(0).expand(n_tokens, -1)
            torch.testing.assert_close(x.grad.float(), expected_grad, atol=tolerance, rtol=tolerance)
