"""Causal language models of transformers that are refused: the reason, and the way out where there is one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Why models of some `model_type`s are refused."""

    reason: str
    """Completes `model_type 'x' is not supported: `."""
    model_types: tuple[str, ...]
    instead: str | None = None
    """The way out, a sentence without its full stop."""


def _refusal(reason: str, model_types: str, instead: str | None = None) -> Refusal:
    return Refusal(reason, tuple(model_types.split()), instead)


REFUSALS: tuple[Refusal, ...] = (
    _refusal(
        "the decoder reads the output of an encoder",
        """bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr whisper""",
    ),
    _refusal(
        "an encoder for masked tokens, which transformers can run causally",
        """bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta
        roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xmod""",
    ),
    _refusal("tokens predict each other in a permuted order, or a prompt is read in both directions", "cpmant xlnet"),
    _refusal(
        "the model reads or writes sound or images next to text, and its text part is not opened",
        """cohere_compass_text emu3 fuyu git got_ocr2 mllama moshi moss_transcribe_diarize musicgen musicgen_melody
        phi4_multimodal""",
    ),
    _refusal("state-space layers are not implemented", "bamba falcon_mamba jamba mamba mamba2 zamba zamba2"),
    _refusal("state-space layers are not implemented", "falcon_h1", "Use Falcon 3, whose model_type is llama"),
    _refusal("state-space layers are not implemented", "granitemoehybrid", "Use Granite 3.3, whose model_type is granite"),
    _refusal("state-space layers are not implemented", "nemotron_h", "Use Llama-Nemotron or nemotron"),
    _refusal(
        "its linear attention or recurrent state is not implemented",
        "bailing_hybrid kimi_linear minimax rwkv xlstm",
    ),
    _refusal(
        "gated delta nets are implemented for Qwen3.5 and Qwen3-Next only, whose other layers differ",
        "qwen4_exp qwen4_exp_text",
        "Use Qwen3.5, whose model_type is qwen3_5 or qwen3_5_moe",
    ),
    _refusal(
        "gated delta nets are implemented for Qwen3.5 and Qwen3-Next only, whose other layers differ",
        "olmo_hybrid",
        "Use OLMo 3, model_type olmo3",
    ),
    _refusal(
        "its linear attention or recurrent state is not implemented", "recurrent_gemma", "Use gemma2 or gemma3_text"
    ),
    _refusal("short convolutions are implemented for LFM2 only, whose other layers differ", "inkling2_text inkling_text zaya"),
    _refusal(
        "short convolutions are implemented for LFM2 only, whose other layers differ",
        "lfm3",
        "Use LFM2, whose model_type is lfm2",
    ),
    _refusal(
        "the output of its mixture of experts has a norm, which is not implemented",
        "axk1",
    ),
    _refusal(
        "layers with two attentions, and with experts that return their input, are not implemented",
        "longcat_flash",
    ),
    _refusal(
        "attention to keys that an index selects is not implemented",
        "axk2 deepseek_v32 deepseek_v4 dots3_note dots3_note_text glm_moe_dsa hy_v4 minimax_m3_vl_text",
    ),
    _refusal(
        "attention with sinks is implemented for GPT-OSS only, whose other layers differ",
        "flint granite_swa granitemoe_swa mimo_v2_flash",
    ),
    _refusal(
        "attention whose output has a gate is implemented for Qwen3.5 and Qwen3-Next only, whose other layers differ",
        "afmoe beam laguna",
    ),
    _refusal("differential attention is not implemented", "diffllama"),
    _refusal("attention with a mask that depends on the values is not implemented", "doge"),
    _refusal("attention to hashed buckets of positions is not implemented", "reformer"),
    _refusal("the mixture of experts also has experts of attention", "jetmoe"),
    _refusal(
        "its way of choosing or weighting experts is not implemented",
        "aria_text cohere2_moe dbrx hy_v3 kolibri1",
    ),
    _refusal(
        "embeddings for each layer, or keys that layers share, are not implemented",
        """gemma3n gemma3n_text gemma4 gemma4_assistant gemma4_text gemma4_unified gemma4_unified_assistant
        gemma4_unified_text""",
        "Use Gemma 3, whose model_type is gemma3 or gemma3_text",
    ),
    _refusal("sinusoidal positions are not implemented", "ctrl xglm"),
    _refusal("only its last layer has a bias of attention", "gpt_neox_japanese"),
    _refusal("weights are ternary, with activations of 8 bits", "bitnet"),
    _refusal("bytes are grouped into patches by another model", "blt"),
    _refusal("blocks of layers run several times", "hrm_text"),
    _refusal("the head has layers of its own, and the first layer has no norm", "modernbert-decoder"),
    _refusal(
        "no checkpoint has it: those of GPT-SW3 have model_type gpt2", "gpt-sw3", 'Set "model_type": "gpt2" in config.json'
    ),
)  # fmt: skip

REFUSED: dict[str, Refusal] = {model_type: refusal for refusal in REFUSALS for model_type in refusal.model_types}


def why_refused(model_type: object) -> str | None:
    """Return the reason and the way out for a `model_type` of transformers. None: it is not a causal language model there."""
    refusal = REFUSED.get(model_type) if isinstance(model_type, str) else None
    if refusal is None:
        return None
    return refusal.reason if refusal.instead is None else f"{refusal.reason}. {refusal.instead}"
