"""The architecture of a model, derived from the checkpoint's own `config.json`."""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_llm.errors import CheckpointError
from lit_llm.files import read_json_object
from lit_llm.model.config_json import MAX_LAYERS, MAX_MODULES, MAX_WEIGHTS, check_rope, check_size, positive
from lit_llm.model.families import FAMILIES, TEXT_PARTS, text_part
from lit_llm.model.families.refused import why_refused
from lit_llm.schema import conform, shown

LIT_CONFIG = "lit_config.json"
LIT_GPT_WEIGHTS = "lit_model.pth"


_CHOICES = {
    "norm": ("rms", "rms_plus_one", "layer", "layer_plus_one", "rms_fixed", "layer_fixed"),
    "qk_norm": (None, "head", "heads", "each_head", "row", "fixed"),
    "mlp": ("gated", "plain"),
    "router_score": ("softmax", "sigmoid", "sparsemixer"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu", "relu2", "quick_gelu", "xielu"),
}

_POSITIVE = (
    "norm_eps", "latent_norm_eps", "rope_theta", "clip_qkv", "attention_scale", "attention_softcap", "swiglu_limit",
    "query_growth", "logit_scale", "logit_softcap", "local_rope_theta", "embedding_scale", "residual_scale", "alibi",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Architecture of a `GPT`. Sizes are numbers of elements; a field that a family does not use keeps its default."""

    model_type: str
    """Hugging Face's name of the family; selects the table of weight names."""
    vocab_size: int
    """Rows of the embedding, padding included."""
    block_size: int
    """Longest sequence, in tokens."""
    n_layer: int
    n_head: int
    n_query_groups: int
    """Key/value heads: n_head is multi-head attention, 1 multi-query, anything between grouped-query."""
    n_embd: int
    head_size: int
    intermediate_size: int
    norm: str = "rms"
    """`rms` (https://arxiv.org/abs/1910.07467), `layer` (https://arxiv.org/abs/1607.06450), either with `_plus_one` (the weight
    is stored minus one) or `_fixed` (there is no weight)."""
    norm_eps: float = 1e-5
    norm_bias: bool = False
    pre_norm: bool = True
    """Attention and MLP read the normalised residual stream."""
    post_norm: bool = False
    """The outputs of attention and MLP are normalised before they are added to the residual stream."""
    residual_norm: bool = False
    """The residual stream is normalised after the outputs of attention and MLP are added to it; without pre_norm."""
    final_norm: bool = True
    """The residual stream is normalised after the last layer."""
    qk_norm: str | None = None
    """Norm of q and k: `head` (all heads share its weight), `heads` (each has its row of one weight), `each_head` (each has a
    weight of its own), `row` (all heads at once) or `fixed` (no weight, and only in layers with RoPE)."""
    qk_norm_after_rope: bool = False
    mlp: str = "gated"
    """`gated`: down(act(gate(x)) * up(x)) (https://arxiv.org/abs/2002.05202); `plain`: down(act(up(x)))."""
    activation: str = "silu"
    """Among them `relu2`, max(x, 0)^2 (https://arxiv.org/abs/2109.08668), and `xielu`, which has parameters of its own in each
    plain MLP (https://arxiv.org/abs/2411.13010)."""
    swiglu_limit: float | None = None
    """Gated MLPs compute down(act(min(gate, limit)) * (clamp(up, -limit, limit) + 1)), as in gpt-oss."""
    n_expert: int = 0
    """Gated MLPs among which a router chooses for each token (https://arxiv.org/abs/2101.03961). 0: one MLP, no router."""
    n_expert_per_token: int = 0
    expert_size: int = 0
    """intermediate_size of each expert."""
    expert_bias: bool = False
    normalize_expert_weights: bool = True
    """The weights of the chosen experts sum to 1."""
    routed_scale: float = 1.0
    """Factor of the weights of the chosen experts."""
    router_score: str = "softmax"
    """`softmax` over all experts, `sigmoid` of each, or `sparsemixer` (https://arxiv.org/abs/2409.12136)."""
    router_bias: bool = False
    router_jitter: float = 0.0
    """`sparsemixer`: scores that differ by at most twice this fraction share the weight."""
    choice_bias: bool = False
    """A bias that is added to the scores for the choice of the experts, but not for their weights
    (https://arxiv.org/abs/2408.15664)."""
    n_expert_group: int = 1
    """Groups of experts, of which `n_chosen_group` are chosen first (https://arxiv.org/abs/2405.04434, section 2.2.2)."""
    n_chosen_group: int = 1
    n_in_group_score: int = 2
    """Largest scores in a group whose sum is the score of the group."""
    weigh_expert_inputs: bool = False
    """The weight of an expert multiplies its input, not its output."""
    shared_expert_size: int = 0
    """intermediate_size of an expert that sees every token. 0: none."""
    shared_expert_gate: bool = False
    """The output of the shared expert is multiplied by sigmoid(w x)."""
    dense_layers: list[int] | None = None
    """Layers with one MLP of intermediate_size in a model with experts. None: no layer."""
    kv_latent_size: int | None = None
    """Multi-head latent attention (https://arxiv.org/abs/2405.04434, section 2.1): keys and values are projected up from this
    many numbers per token. None: from n_embd."""
    q_latent_size: int | None = None
    """The same for queries."""
    latent_norm_eps: float = 1e-6
    """norm_eps of these latent vectors."""
    v_head_size: int | None = None
    """head_size of values. None: that of keys."""
    attn_bias: bool = False
    """Bias of the q, k and v projections; with latent attention, of those down to latent vectors."""
    attn_out_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    clip_qkv: float | None = None
    """q, k and v are clamped to plus and minus this."""
    attention_scale: float | None = None
    """Factor of q k^T. None: 1 / sqrt(head_size)."""
    attention_sinks: bool = False
    """Each head has a trained score that takes part in the softmax and belongs to no key (https://arxiv.org/abs/2309.17453)."""
    attention_gate: bool = False
    """The outputs of the heads are multiplied by sigmoid(W x), W of their size (https://arxiv.org/abs/2505.06708)."""
    attention_softcap: float | None = None
    """Attention scores s become softcap * tanh(s / softcap)."""
    logit_softcap: float | None = None
    """The same for logits."""
    query_growth: float | None = None
    """Queries at position p are multiplied by 1 + query_growth * log(1 + floor(p / query_growth_length)): attention over
    long contexts stays sharp (https://arxiv.org/abs/2501.19399). None: they are not."""
    query_growth_length: int | None = None
    query_growth_offset: int = 0
    """Added to p."""
    query_growth_without_rope: bool = False
    """Only in layers without RoPE."""
    logit_scale: float = 1.0
    """Factor of the logits, before the softcap."""
    sliding_window: int | None = None
    """Number of positions that each one attends to, itself included. None: all before it."""
    chunked: bool = False
    """The window does not slide: each position attends to those up to itself in its chunk of `sliding_window` positions."""
    sliding_layers: list[int] | None = None
    """Layers that have the sliding window. None: all of them."""
    conv_layers: list[int] | None = None
    """Layers with a gated short convolution in place of attention (https://arxiv.org/abs/2511.23404). None: no layer."""
    conv_size: int = 1
    """Number of positions that a convolution reads, up to and including its own."""
    conv_bias: bool = False
    """Bias of the convolution and of the projections to and from it."""
    delta_layers: list[int] | None = None
    """Layers with a gated delta net in place of attention (https://arxiv.org/abs/2412.06464), which reads queries, keys and
    values through a convolution of `conv_size`. None: no layer."""
    delta_heads: int = 1
    """Heads with values of their own; `delta_heads / delta_key_heads` of them share queries and keys."""
    delta_key_heads: int = 1
    delta_key_size: int = 1
    """Numbers per head of queries and keys."""
    delta_value_size: int = 1
    parallel_residual: bool = False
    """x + attn(norm_1(x)) + mlp(norm_2(x)) instead of attention first, MLP second."""
    shared_attention_norm: bool = False
    """Parallel residual with one norm for both branches."""
    learned_positions: bool = False
    """A trained vector for each of block_size positions is added to the embedding."""
    position_offset: int = 0
    """Rows of the table of learned positions before that of position 0."""
    rotary_size: int = 0
    """Leading dimensions of each head that RoPE rotates; the others carry no position."""
    rope_interleaved: bool = False
    """RoPE rotates dimensions 2i and 2i + 1 together instead of i and i + rotary_size / 2."""
    rope_reversed: bool = False
    """RoPE rotates in the other direction."""
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    """Hugging Face's `rope_parameters` without theta: `rope_type` and the parameters of that type."""
    local_rope_theta: float | None = None
    """theta, without scaling, of layers with a sliding window. None: the same RoPE in all layers."""
    no_rope_layers: list[int] | None = None
    """Layers without RoPE. None: no layer."""
    alibi: float | None = None
    """Scores decrease with the distance of the key, for head i of n by 2^(-alibi * i / n) per position
    (https://arxiv.org/abs/2108.12409). None: they do not."""
    alibi_rounded: bool = False
    """These biases are rounded to bfloat16 and multiplied by the attention scale, as in Falcon."""
    scale_embeddings: bool = False
    """Embeddings are multiplied by sqrt(n_embd)."""
    embedding_scale: float = 1.0
    """Factor of the embeddings."""
    residual_scale: float = 1.0
    """Factor of the outputs of attention and MLP, before they are added to the residual stream."""
    embedding_size: int | None = None
    """Numbers per token in embedding and output layer, which linears project to and from n_embd. None: n_embd."""
    embedding_norm: bool = False
    """Embeddings are normalised."""
    tie_embeddings: bool = False
    """The output layer uses the embedding's weight."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise CheckpointError(f"{name} must be one of {', '.join(map(str, choices))}, found {shown(value)}")
        for name in ("vocab_size", "block_size", "n_head", "n_query_groups", "n_embd", "head_size", "intermediate_size"):
            check_size(name, getattr(self, name))
        check_size("n_layer", self.n_layer, MAX_LAYERS)
        if self.activation == "xielu" and self.mlp != "plain":
            raise CheckpointError("activation xielu is not supported in gated MLPs")
        if self.n_head % self.n_query_groups:
            raise CheckpointError(
                f"{self.n_head} query heads cannot share {self.n_query_groups} key/value heads (n_query_groups) evenly"
            )
        if not 0 <= self.rotary_size <= self.head_size or self.rotary_size % 2:
            raise CheckpointError(f"rotary_size must be even and at most head_size {self.head_size}, found {self.rotary_size}")
        for name in _POSITIVE:
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        if self.rope_scaling is not None:
            check_rope(self.rope_scaling, self.rotary_size, self.rope_theta)
        if type(self.position_offset) is not int or not 0 <= self.position_offset <= 2**31:
            raise CheckpointError(f"position_offset must be an integer from 0 to {2**31}, found {shown(self.position_offset)}")
        self._check_sizes()
        if self.alibi is not None and self.attention_softcap is not None:
            raise CheckpointError("alibi and attention_softcap exclude each other: no model has both")
        if self.query_growth is not None:
            check_size("query_growth_length", self.query_growth_length)
        if self.n_expert:
            check_size("n_expert", self.n_expert, MAX_MODULES // self.n_layer)
            check_size("n_expert_per_token (num_experts_per_tok in config.json)", self.n_expert_per_token, self.n_expert)
            check_size("expert_size", self.expert_size)
            self._check_routing()
        attention = (self.head_size + self.value_size) * (self.n_head + self.n_query_groups)
        attention += (self.kv_latent_size or 0) + (self.q_latent_size or 0)
        mlp = 3 * max(self.intermediate_size, self.n_expert * self.expert_size + self.shared_expert_size)
        n_weights = self.n_embd * (2 * self.vocab_size + self.block_size * self.learned_positions)
        n_weights += self.n_embd * self.n_layer * (max(attention, self._mixer_weights) + mlp)
        if n_weights > MAX_WEIGHTS:
            raise CheckpointError(
                f"vocab_size {self.vocab_size}, n_embd {self.n_embd}, n_layer {self.n_layer}, intermediate_size "
                f"{self.intermediate_size} and the other sizes make a model of about {n_weights:.1e} weights; more than "
                f"{MAX_WEIGHTS:.0e} is refused"
            )

    def _check_sizes(self) -> None:
        for name in ("conv_size", "delta_heads", "delta_key_heads", "delta_key_size", "delta_value_size"):
            check_size(name, getattr(self, name))
        if self.delta_heads % self.delta_key_heads:
            raise CheckpointError(
                f"{self.delta_heads} heads of a delta net (linear_num_value_heads) cannot share the keys of "
                f"{self.delta_key_heads} (linear_num_key_heads) evenly"
            )
        for name in ("embedding_size", "sliding_window", "kv_latent_size", "q_latent_size", "v_head_size"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))

    def _check_routing(self) -> None:
        positive("routed_scale", self.routed_scale)
        if self.shared_expert_size:
            check_size("shared_expert_size", self.shared_expert_size)
        elif self.shared_expert_gate:
            raise CheckpointError("shared_expert_gate needs a shared expert, but shared_expert_size is 0")
        if self.n_expert % self.n_expert_group:
            n = f"{self.n_expert_group} groups of equal size (n_expert_group, n_group in config.json)"
            raise CheckpointError(f"{self.n_expert} experts cannot form {n}")
        if self.n_expert_group > 1:
            in_group = self.n_expert // self.n_expert_group
            check_size("n_chosen_group (topk_group in config.json)", self.n_chosen_group, self.n_expert_group)
            check_size("n_in_group_score", self.n_in_group_score, in_group)
            check_size(
                "n_expert_per_token (num_experts_per_tok in config.json)",
                self.n_expert_per_token,
                in_group * self.n_chosen_group,
            )

    @property
    def _mixer_weights(self) -> int:
        """Weights of a layer without attention, divided by n_embd."""
        keys, values = self.delta_sizes
        convolution = 4 * self.n_embd + self.conv_size if self.conv_layers else 0
        return max(convolution, (2 * keys + 3 * values + self.conv_size) if self.delta_layers else 0)

    @property
    def delta_sizes(self) -> tuple[int, int]:
        """Numbers per token of the keys, and of the values, of all heads of a delta net."""
        return self.delta_key_heads * self.delta_key_size, self.delta_heads * self.delta_value_size

    @property
    def keeps_state(self) -> bool:
        """True if some layers keep a state of fixed size, from which no token can be removed."""
        return any(self.mixer(layer) != "attn" for layer in range(self.n_layer))

    @property
    def score_factor(self) -> float:
        """Factor of q k^T."""
        return self.head_size**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def value_size(self) -> int:
        """Numbers per head of values."""
        return self.head_size if self.v_head_size is None else self.v_head_size

    def mixer(self, layer: int) -> str:
        """Return the part that mixes the tokens in this layer: `attn`, `conv` for a gated short convolution, or `delta` for a
        gated delta net."""
        if layer in (self.delta_layers or ()):
            return "delta"
        return "conv" if layer in (self.conv_layers or ()) else "attn"

    def is_sliding(self, layer: int) -> bool:
        """Return True if attention in this layer is limited to `sliding_window`."""
        return self.sliding_window is not None and (self.sliding_layers is None or layer in self.sliding_layers)

    def has_rope(self, layer: int) -> bool:
        """Return True if this layer has RoPE."""
        return self.rotary_size > 0 and layer not in (self.no_rope_layers or ())

    def has_experts(self, layer: int) -> bool:
        """Return True if this layer has a mixture of experts instead of one MLP."""
        return self.n_expert > 0 and layer not in (self.dense_layers or ())

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> "Config":
        """Build from the dict of a Hugging Face `config.json`; of a multimodal model, for its text part.

        Raises:
            CheckpointError: if the family is unknown, or a field changes the maths in a way that is not supported.
        """
        if (part := text_part(hf)) is not None:
            hf = part.config_json(hf)
        model_type = hf.get("model_type")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            why = why_refused(model_type) or f"known families: {', '.join(sorted(FAMILIES.keys() | TEXT_PARTS.keys()))}"
            raise CheckpointError(f"model_type {shown(model_type)} is not supported: {why}")
        fields, unread = FAMILIES[model_type].fields(hf)
        config = cls(model_type=model_type, **fields)
        if unread:
            warnings.warn(
                f"config.json has keys that lit_llm does not know and ignores: {', '.join(key[:60] for key in unread)}",
                stacklevel=2,
            )
        return config

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Invert `to_dict`. Raise CheckpointError for a field that this version does not know, or of another type."""
        return cls(**conform(values, cls, LIT_CONFIG, "Convert the checkpoint again"))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_checkpoint(cls, checkpoint_dir: Path) -> "Config":
        """Read `lit_config.json`, or else Hugging Face's `config.json`.

        Raises:
            FileNotFoundError: if the folder has neither.
            CheckpointError: if the file is not a config that is supported.
        """
        for name in (LIT_CONFIG, "config.json"):
            if (Path(checkpoint_dir) / name).is_file():
                return cls.from_file(Path(checkpoint_dir) / name)
        if (Path(checkpoint_dir) / LIT_GPT_WEIGHTS).is_file():
            raise CheckpointError(convert_first(checkpoint_dir))
        raise FileNotFoundError(
            f"{checkpoint_dir} has no config.json or {LIT_CONFIG}: it is not a checkpoint folder. "
            "Download one: python scripts/download.py --repo_id ORG/NAME"
        )

    @classmethod
    def from_file(cls, path: Path) -> "Config":
        """Read one of the two kinds of file. Raise CheckpointError, naming it, if it is not a config that is supported."""
        try:
            values = read_json_object(path)
            if path.name == LIT_CONFIG and "model_type" not in values and "padded_vocab_size" in values:
                raise CheckpointError(convert_first(path.parent))
            return cls.from_dict(values) if path.name == LIT_CONFIG else cls.from_hf(values)
        except ValueError as error:
            raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def convert_first(checkpoint_dir: Path) -> str:
    """Return the message for a folder in the layout of Lit-GPT."""
    return (
        f"{checkpoint_dir} is a checkpoint of Lit-GPT. Convert it first: "
        f"python scripts/convert_hf_checkpoint.py --checkpoint_dir {checkpoint_dir}"
    )
