"""Weights laid out for decoding on a CPU, against the same model in float32."""

import pytest
import torch
from families import CASES, make_reference, random_ids, relative_difference

import lit_llm
from lit_llm.checkpoint.load_model import load_model
from lit_llm.model.cpu_linear import lay_out

TIED = [case for case in CASES if case.name in ("gpt2", "gemma2", "mixtral", "falcon-40b")]


@pytest.mark.parametrize("case", TIED, ids=str)
@torch.inference_mode()
def test_weights_by_columns_change_neither_logits_nor_names(case, tmp_path):
    reference = make_reference(case, tmp_path)
    model = load_model(tmp_path, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lay_out(model, "columns")
    assert any(not tensor.is_contiguous() for tensor in model.state_dict().values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert (model.lm_head.weight is model.wte.weight) == model.config.tie_embeddings
    ids = random_ids(case, 2, 12)
    assert relative_difference(model(ids), reference(ids).logits) < 1e-5


@pytest.mark.parametrize(("layout", "limit"), [("fp16", 1e-3), ("int8", 8.4e-2)])
@torch.inference_mode()
def test_cpu_weights_change_logits_and_loss_within_stated_bounds(layout, limit, shared_data):
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    model, tokenizer = lit_llm.load(shared_data / "stories260K", device="cpu")
    ids = torch.tensor([tokenizer.encode(text)])
    expected = model(ids)
    lay_out(model, layout)
    logits = model(ids)
    assert 0 < relative_difference(logits, expected) < limit
    loss, expected_loss = (torch.nn.functional.cross_entropy(x[0, :-1], ids[0, 1:]) for x in (logits, expected))
    assert abs(loss - expected_loss) < 1e-3


@pytest.mark.parametrize("layout", ["columns", "fp16", "int8"])
@pytest.mark.parametrize("case", TIED, ids=str)
@torch.inference_mode()
def test_layout_while_loading_equals_layout_afterwards(case, layout, tmp_path):
    make_reference(case, tmp_path)
    afterwards, at_once = load_model(tmp_path, dtype=torch.float32), load_model(tmp_path, dtype=torch.float32, layout=layout)
    lay_out(afterwards, layout)
    strides = [{name: tensor.stride() for name, tensor in model.state_dict().items()} for model in (afterwards, at_once)]
    assert strides[0] == strides[1]
    assert at_once.fingerprint == afterwards.fingerprint
    ids = random_ids(case, 2, 12)
    assert torch.equal(at_once(ids), afterwards(ids))


def test_what_cannot_be_laid_out_is_refused(checkpoint):
    with pytest.raises(ValueError, match="for a CPU in 32-true, not for cpu and torch"):
        lay_out(lit_llm.load(checkpoint, device="cpu", precision="bf16-true")[0], "fp16")
    with pytest.raises(ValueError, match="Omit `quantize`"):
        lay_out(lit_llm.load(checkpoint, device="cpu", quantize="bnb.int8")[0], "fp16")
    with pytest.raises(ValueError, match="Omit `quantize`"):
        lit_llm.load(checkpoint, device="cpu", quantize="bnb.int8", layout="int8")
    with pytest.raises(ValueError, match="for a CPU in 32-true"):
        lit_llm.load(checkpoint, device="cpu", precision="bf16-true", layout="fp16")
