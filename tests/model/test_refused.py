"""The causal language models of transformers that are refused: all of them, each for a true reason."""

import inspect
import re

import pytest
from conftest import REPOSITORY
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lit_llm.model.config import Config
from lit_llm.model.families import FAMILIES, TEXT_PARTS
from lit_llm.model.families.refused import REFUSALS, REFUSED, why_refused


def refused_table() -> str:
    """The second table of tutorials/models.md."""
    lines = ["| `model_type` | why it is refused | way out |", "|---|---|---|"]
    for refusal in REFUSALS:
        types = ", ".join(f"`{model_type}`" for model_type in refusal.model_types)
        lines.append(f"| {types} | {refusal.reason} | {refusal.instead or ''} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_refused_models_is_that_of_the_code():
    assert refused_table() in (REPOSITORY / "tutorials" / "models.md").read_text(), refused_table()


def test_each_causal_model_is_supported_or_refused():
    supported, known = FAMILIES.keys() | TEXT_PARTS.keys(), set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert sorted(REFUSED.keys() & supported) == [], "rows of families/refused.py to delete"
    assert sorted(known - supported - REFUSED.keys()) == [], "rows that families/refused.py lacks"
    assert sorted(REFUSED.keys() - known) == []
    assert len(REFUSED) == sum(len(refusal.model_types) for refusal in REFUSALS)


# A part of the reason, and what the source or the configuration of every such model in transformers has.
_EVIDENCE = {
    "reads the output of an encoder": r"encoder_hidden_states",
    "an encoder for masked tokens": r"is_decoder|WithLMHead",
    "state-space layers": r"mamba|ssm",
    "linear attention or recurrent state": r"delta|decay|recurrent",
    "gated delta nets": r"GatedDeltaNet",
    "short convolutions": r"conv",
    "mixture of experts has a norm": r"post_mlp_layernorm",
    "two attentions": r"zero_expert_num",
    "an index selects": r"Indexer",
    "attention with sinks": r"sink",
    "output has a gate": r"gate",
    "choosing or weighting experts": r"[Ee]xpert",
    "for each layer, or keys that layers share": r"per_layer_input|kv_shared|shared_kv",
    "sinusoidal positions": r"[Ss]inusoidal|pos_encoding",
}  # fmt: skip


@pytest.mark.parametrize("reason", _EVIDENCE)
def test_the_source_of_refused_models_shows_the_reason(reason):
    model_types = [t for refusal in REFUSALS if reason in refusal.reason for t in refusal.model_types]
    assert model_types
    for model_type in model_types:
        model = AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[model_type]]
        assert re.search(_EVIDENCE[reason], inspect.getsource(inspect.getmodule(model))), model_type


def test_gpt_sw3_is_gpt2():
    assert AutoConfig.for_model("gpt-sw3").model_type == "gpt2"


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_the_error_gives_the_reason_and_the_way_out(model_type):
    with pytest.raises(ValueError) as caught:
        Config.from_hf({"model_type": model_type})
    assert str(caught.value) == f"model_type '{model_type}' is not supported: {why_refused(model_type)}"
    instead = REFUSED[model_type].instead
    assert instead is None or str(caught.value).endswith(instead)


def test_an_unknown_model_type_lists_the_families():
    with pytest.raises(ValueError, match=r"'gpt5' is not supported: known families: .*llama, "):
        Config.from_hf({"model_type": "gpt5"})
