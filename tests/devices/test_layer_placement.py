"""Layers on several devices against one, on make-believe devices where an operation on tensors of two is an error."""

import re
from dataclasses import replace

import pytest
import torch
from devices import NAME, make_believe_devices
from families import BY_NAME, all_families, make_reference, random_ids
from greedy import LENGTHS, N_NEW, NoText, continued
from tiny import make_checkpoint

from lit_llm.checkpoint.adapters import write_adapter
from lit_llm.checkpoint.load import load
from lit_llm.checkpoint.load_model import load_model
from lit_llm.devices.layer_placement import choose_inference_strategy, place
from lit_llm.evaluation.score import Span, score
from lit_llm.generation.decode import Row
from lit_llm.generation.generate import generate
from lit_llm.generation.sampling import Sampling
from lit_llm.generation.speculative import continue_drafted
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.adapter_v2 import AdapterV2
from lit_llm.methods.inject import freeze
from lit_llm.methods.lora import LoRA, merge
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT
from lit_llm.model.quantized_linear import quantize_linears
from lit_llm.text.ending import Ending

FIRST, SECOND = (torch.device(NAME, i) for i in range(2))


@pytest.fixture(autouse=True)
def devices():
    with make_believe_devices():
        yield


def greedy(model, prompts, n_new=8):
    return [c.ids for c in generate(model, NoText(), prompts, max_new_tokens=n_new, temperature=0)]


def test_an_operation_on_tensors_of_two_devices_is_an_error():
    with pytest.raises(RuntimeError, match="on tensors of"):
        torch.ones(2, device=FIRST) + torch.ones(2, device=SECOND)
    assert (torch.ones(2, device=FIRST) + torch.ones(2, device=SECOND).to(FIRST)).tolist() == [2, 2]


@pytest.mark.parametrize("case", all_families())
def test_two_devices_write_and_score_as_one(case, tmp_path):
    make_reference(case, tmp_path)
    one, two = load_model(tmp_path), load_model(tmp_path, [FIRST, SECOND])
    assert {p.device for p in two.parameters()} == set(two.devices) == {FIRST, SECOND}
    prompts = [row[:n].tolist() for row, n in zip(random_ids(case, 4, 20), LENGTHS[:4], strict=True)]
    assert greedy(two, prompts) == greedy(one, prompts)
    spans = [Span(prompts[0] + end, len(end)) for end in ([1, 2], [3], [4, 5, 6])] + [Span(prompts[3], 5)]
    for a, b in zip(score(one, spans, 2), score(two, spans, 2), strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, rel=1e-5)


@pytest.mark.parametrize("n_devices", [2, 3])
def test_rows_that_join_and_leave_an_8_bit_cache(tmp_path, n_devices):
    case = BY_NAME["gemma3_text"]
    make_reference(case, tmp_path)
    prompts = [row[:n].tolist() for row, n in zip(random_ids(case, 8, 20), LENGTHS, strict=True)]
    spread = load_model(tmp_path, [torch.device(NAME, i) for i in range(n_devices)])
    assert len(spread.devices) == n_devices
    assert continued(spread, prompts, int8=True) == continued(load_model(tmp_path), prompts, int8=True)


@pytest.mark.parametrize("quantize", ["bnb.nf4", "bnb.fp4-dq", "bnb.int8"])
def test_quantized_linears_lie_where_their_layers_do(checkpoint, quantize):
    (one, tokenizer), (two, _) = (load(checkpoint, device=d, quantize=quantize) for d in ("cpu", [str(FIRST), str(SECOND)]))
    assert {p.device for p in two.h[1].parameters()} == {SECOND}
    prompts = [tokenizer.encode("the red cat"), tokenizer.encode("a")]
    assert greedy(two, prompts) == greedy(one, prompts)


@pytest.mark.parametrize(
    "method",
    [LoRA(targets="all-linear"), LoRA(targets="q,head", use_dora=True), Adapter(start_layer=0), AdapterV2(start_layer=0)],
)
def test_adapters_lie_where_their_layers_do(checkpoint, method, tmp_path):
    one, tokenizer = load(checkpoint, device="cpu")
    method.attach(one)
    for parameter in freeze(one, method):
        parameter.data.normal_(0, 0.3)
    write_adapter(tmp_path, one, method, checkpoint, None)
    plain, _ = load(checkpoint, tmp_path, device="cpu")
    two, _ = load(checkpoint, tmp_path, device=[str(FIRST), str(SECOND)])
    assert {p.device for p in two.h[1].parameters()} == {SECOND}
    prompts = [tokenizer.encode("the red cat"), tokenizer.encode("a")]
    assert greedy(two, prompts) == greedy(plain, prompts)
    assert greedy(two, prompts) != greedy(load(checkpoint, device="cpu")[0], prompts)
    if isinstance(method, LoRA):
        merge(two)
        assert greedy(two, prompts) == greedy(plain, prompts)


def test_a_draft_writes_what_the_model_does(tmp_path):
    make_checkpoint(tmp_path, num_hidden_layers=3)
    one, two = load_model(tmp_path), load_model(tmp_path, [FIRST, SECOND])
    row = Row(NoText(), [1, 5, 9], N_NEW, Sampling(0.0), Ending())
    for _ in continue_drafted(two, load_model(tmp_path, FIRST), row):
        pass
    assert [row.completion().ids] == greedy(one, [[1, 5, 9]], N_NEW)


SIZES = Config(
    "llama",
    vocab_size=1000,
    block_size=64,
    n_layer=6,
    n_head=4,
    n_query_groups=4,
    n_embd=64,
    head_size=16,
    intermediate_size=128,
)


@pytest.mark.parametrize(
    ("quantize", "n_devices", "expected"),
    [
        # A layer has 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64 = 41088 weights; embedding, norm and head have 128064.
        (None, 2, [0, 1, 1, 1, 1, 1]),  # 169152 and 205440
        (None, 3, [1, 1, 1, 2, 2, 2]),  # 128064, 123264, 123264
        ("bnb.nf4", 2, [1, 1, 1, 1, 1, 1]),  # a layer takes a quarter beside them
    ],
)
def test_devices_get_about_as_many_bytes(quantize, n_devices, expected):
    with torch.device("meta"):
        model = GPT(SIZES)
    if quantize is not None:
        quantize_linears(model, quantize)
    devices = [torch.device("cuda", i) for i in range(n_devices)]
    assert [d.index for d in place(model, devices, torch.bfloat16)] == expected


CUDA, CPU, MPS = map(torch.device, ("cuda", "cpu", "mps"))


@pytest.mark.parametrize(
    ("asked", "options", "strategy", "told"),
    [
        ("auto", {}, "tensor", "of every layer"),
        ("tensor", {"device": CPU}, "tensor", "of every layer"),
        ("layers", {}, "layers", "one after the other"),
        ("auto", {"quantize": "bnb.nf4"}, "layers", "since `quantize`"),
        ("auto", {"has_adapter": True}, "layers", "since an adapter"),
        (
            "auto",
            {"config": replace(SIZES, n_expert=4, n_expert_per_token=2, expert_size=32)},
            "layers",
            "since the model has experts",
        ),
        ("auto", {"config": replace(SIZES, qk_norm="row")}, "layers", "norms over all heads"),
        ("auto", {"n_devices": 3}, "layers", "4 key/value heads and 128 features are not both divisible by 3"),
    ],
)
def test_the_strategy_is_chosen_and_told_with_its_reason(monkeypatch, asked, options, strategy, told):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    chosen, why = choose_inference_strategy(asked, **{**CHOICE, **options})
    assert chosen == strategy
    assert told in why


CHOICE = {"config": SIZES, "device": CUDA, "n_devices": 2, "quantize": None, "has_adapter": False}


@pytest.mark.parametrize(
    ("asked", "options", "told"),
    [
        (
            "tensor",
            {"quantize": "bnb.nf4"},
            "`strategy` tensor is not possible: `quantize` leaves no plain linears. Use `strategy` layers on GPUs",
        ),
        ("tensor", {"has_adapter": True, "device": CPU}, "scripts/merge_lora.py merges LoRA. Use"),
        ("auto", {"quantize": "bnb.nf4", "device": CPU}, "since a CPU is one device. Omit it"),
        ("layers", {"device": CPU}, "layers cannot be distributed, since a CPU is one device. Omit it"),
        ("auto", {"device": MPS}, "MPS is one device. Omit it"),
        ("auto", {"n_devices": 8}, "this machine has 4 CUDA devices"),
        ("layers", {"n_devices": 4, "config": replace(SIZES, n_layer=3)}, "there are only 3 layers. Use at most 3"),
    ],
)
def test_what_devices_cannot_do_is_refused(monkeypatch, asked, options, told):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match=re.escape(told)):
        choose_inference_strategy(asked, **{**CHOICE, **options})


def test_layers_are_one_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="Start it without torchrun or srun"):
        choose_inference_strategy("layers", **CHOICE)
