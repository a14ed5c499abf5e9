"""ALiBi against transformers and against a dense matrix of biases, in all kinds of attention."""

from functools import partial

import pytest
import torch
from families import BY_NAME, make_reference, random_ids, relative_difference
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as build_falcon_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from lit_llm.checkpoint.load_model import load_model
from lit_llm.errors import CheckpointError
from lit_llm.model.alibi import EXTRA, Alibi, slopes, with_biases
from lit_llm.model.attention import Documents, attend
from lit_llm.model.config import Config

HEADS = [1, 2, 3, 6, 8, 12, 20, 32, 71, 112]


@pytest.mark.parametrize("n_head", HEADS)
def test_biases_equal_those_of_bloom_falcon_and_mpt(n_head):
    """For numbers of heads that are powers of 2, and others. Falcon rounds its biases: from 256 on to even numbers and more."""
    mask, positions = torch.ones(1, 700, dtype=torch.long), torch.arange(700)
    bloom = build_alibi_tensor(mask, n_head, torch.float32)[:, 0]
    torch.testing.assert_close(Alibi(n_head, 8.0, 0.25, False).biases(positions), bloom, rtol=1e-6, atol=0)
    falcon = build_falcon_alibi_tensor(mask, n_head, torch.float32)[:, 0]
    assert torch.equal(Alibi(n_head, 8.0, 0.25, True).biases(positions), falcon * 0.25)
    mpt = build_mpt_alibi_tensor(n_head, 700, alibi_bias_max=16)[:, 0]
    torch.testing.assert_close(slopes(n_head, 16.0)[:, None] * (positions - 699), mpt, rtol=1e-6, atol=0)


def _random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _dense(q, k, v, alibi, lengths, window):
    """Attention by its definition, in float64, over documents of `lengths`."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = torch.cat([torch.arange(n) for n in lengths])
    distance = position[:, None] - position
    visible = (document[:, None] == document) & (distance >= 0) & (distance < (window or len(position)))
    k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))
    scores = alibi.scale * q @ k.mT - alibi.slopes.double()[:, None, None] * distance
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("n_query_groups", [1, 2, 6])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("lengths", [[40], [5, 1, 20, 14]])
def test_attention_equals_dense_biases(n_query_groups, window, lengths):
    """Over several documents, in windows and with shared key/value heads."""
    alibi, positions = Alibi(6, 8.0, 0.3, False), torch.cat([torch.arange(n) for n in lengths])
    q, (k, v) = _random(1, 6, 40, 16), _random(2, 1, n_query_groups, 40, 16)
    expected = _dense(q, k, v, alibi, lengths, window)
    biased = with_biases(q.float(), k.float(), v.float(), alibi.of_keys(positions, torch.float32))
    documents = Documents(lengths, torch.device("cpu")) if len(lengths) > 1 else None
    found = attend(*biased, documents, None, window, alibi.scale, None)
    assert relative_difference(found[..., :-EXTRA].double(), expected) < 1e-6
    assert not found[..., -EXTRA:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_bits_of_the_biases(dtype):
    """At position 5000, where numbers of bfloat16 are 32 apart. q, k and v are rounded in the expected result too."""
    alibi, positions = Alibi(6, 8.0, 0.3, False), torch.arange(5000, 5040)
    q, k, v = (x.to(dtype) for x in _random(3, 1, 6, 40, 16))
    expected = _dense(q.double(), k.double(), v.double(), alibi, [40], None)
    biased = with_biases(q, k, v, alibi.of_keys(positions, dtype))
    scores = alibi.scale * biased[0].float() @ biased[1].float().mT  # kernels sum in float32
    visible = torch.ones(40, 40, dtype=torch.bool).tril()
    found = scores.masked_fill(~visible, -torch.inf).softmax(-1).double() @ v.double()
    assert relative_difference(found, expected) < 2e-3  # float32 holds 5000 to 2.4e-4


@torch.inference_mode()
def test_largest_slope_of_mpt(tmp_path):
    """MPT-7B-StoryWriter has `alibi_bias_max` 16, which mosaicml's own code reads, but transformers' model leaves at 8."""
    case = BY_NAME["mpt"]
    reference, ids = make_reference(case, tmp_path), random_ids(case, 2, 30)
    reference.transformer.build_mpt_alibi_tensor = partial(build_mpt_alibi_tensor, alibi_bias_max=16)
    path = tmp_path / "config.json"
    text = path.read_text()
    assert text.count('"alibi_bias_max": 8') == 1
    path.write_text(text.replace('"alibi_bias_max": 8', '"alibi_bias_max": 16'))
    assert relative_difference(load_model(tmp_path)(ids), reference(ids).logits) < 1e-5


@pytest.mark.parametrize(
    ("hf", "told"),
    [
        ({"model_type": "mpt", "attn_config": {"alibi": False}}, "alibi = false is not supported"),
        (
            {"model_type": "mpt", "attn_config": {"kv_n_heads": 2}},
            r"keys that are not supported: \['kv_n_heads'\]",
        ),
        ({"model_type": "mpt", "attn_config": {"alibi_bias_max": -8}}, "alibi_bias_max must be a positive number"),
        ({"model_type": "gpt_neo", "num_layers": 3}, "attention_types must be a list of pairs .* for 3 layers"),
        (
            {"model_type": "gpt_neo", "num_layers": 1, "attention_types": [["far", 1]]},
            "attention_types must be a list of pairs",
        ),
    ],
)
def test_what_older_families_refuse(hf, told):
    with pytest.raises(CheckpointError, match=told):
        Config.from_hf(hf)
