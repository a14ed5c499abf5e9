"""Options of the finetune scripts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from lit_llm.args.base import Accelerator, Checked, Optimizer, Precision, Quantization, Rules, bounds
from lit_llm.args.data import ExampleArgs

MAX_RANK = 2**16  # of LoRA, and tokens of a prompt: beyond it a mistyped number would fill the memory


@dataclass(frozen=True)
class TrainArgs(Checked):
    """Training"""

    epochs: int | None = None
    """Passes over the training data. Default: 1 if neither max_steps nor max_time is given. Training stops at the
    first limit."""
    max_steps: int | None = None
    """Stop after this many optimizer steps."""
    max_time: float | None = None
    """Stop after this many hours; the current step finishes."""
    global_batch_size: int = 32
    """Examples per optimizer step, over all devices."""
    micro_batch_size: int = 4
    """Examples per forward pass on a device; with packing, as many tokens as this many examples of max_seq_length."""
    optimizer: Optimizer = "adamw"
    """adamw, lion, sgd (momentum 0.9) or adafactor. 8bit stores the state in 8 bits; paged moves it out of the memory of a CUDA
    device when that is short. Lion needs about a third of AdamW's learning rate."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    min_lr: float | None = None
    """Learning rate at the end of the cosine. Default: 10 % of learning_rate."""
    lr_warmup_steps: int | None = None
    """Optimizer steps of linear warmup. Default: 100, but at most 10 % of the run."""
    weight_decay: float = 0.01
    """Decoupled weight decay; with sgd, added to the gradient."""
    max_norm: float | None = 1.0
    """Clip gradients to this norm; null disables clipping."""
    packing: bool = True
    """Fill each forward pass with as many examples as fit into its token budget. Does not change the gradient."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third slower."""
    compile: bool = False
    """Compile the blocks with torch.compile: a minute before the first step, then faster on a GPU. Needs a C++ compiler."""
    neftune_alpha: float | None = None
    """Strength of the noise on the embeddings while training, e.g. 5 (NEFTune, https://arxiv.org/abs/2310.05914)."""
    router_loss: float = 0.0
    """Coefficient of the loss that balances the experts of a mixture, e.g. 0.01 (https://arxiv.org/abs/2101.03961); 0: off."""
    save_interval: int | None = None
    """Optimizer steps between checkpoints from which the run can be resumed. Ctrl-C writes one as well."""
    keep_last: int | None = None
    """Checkpoints to keep; an older one is removed once a newer one is complete. Default: all."""
    log_interval: int = 1
    """Optimizer steps between rows of metrics.csv."""
    max_loss_spike: float | None = None
    """Stop when a loss is above this many times the running mean of the logged losses. NaN always stops the run, without a
    checkpoint."""
    overfit_batches: int | None = None
    """Train and validate on the examples of the first this many steps only, as a check: a correct run memorizes them."""
    probe: bool = True
    """Before the first step, run the longest micro-batch and report time and memory. Does not change the result."""

    def rules(self) -> Rules:
        counts = ("epochs", "max_steps", "max_time", "global_batch_size", "micro_batch_size", "learning_rate", "max_norm")
        return [
            *bounds(self, *counts, "neftune_alpha", "save_interval", "log_interval", above=0),
            *bounds(self, "keep_last", "max_loss_spike", "overfit_batches", above=0),
            *bounds(self, "min_lr", "lr_warmup_steps", "weight_decay", "router_loss", at_least=0),
            *self.needs("save_interval", "keep_last"),
            (self.compile and self.router_loss > 0, "`router_loss` is not supported with `compile`. Omit one of them"),
            (
                0 < (self.max_loss_spike or 2) <= 1,
                f"`max_loss_spike` {self.max_loss_spike} stops at any loss above the mean. Use 2 or more",
            ),
            ((self.min_lr or 0) > self.learning_rate, f"`min_lr` {self.min_lr} is above `learning_rate` {self.learning_rate}"),
        ]


@dataclass(frozen=True)
class EvalArgs(Checked):
    """Evaluation during and after finetuning"""

    interval: int | None = 100
    """Optimizer steps between validations; null: at the end only."""
    patience: int | None = None
    """Stop after this many validations in a row without a better loss; best/ has the best weights. Default: never."""
    max_batches: int | None = None
    """Most micro-batches per validation. Default: all."""
    initial: bool = True
    """Validate before the first step."""
    final: bool = True
    """Validate after the last step."""
    samples: int = 5
    """Held-out prompts that the base and the finetuned model answer, shown side by side at the end."""
    exact_match: int = 0
    """Held-out prompts for the exact match rate of both models, measured at the end. An answer counts if it is identical and
    has ended."""
    max_new_tokens: int = 64
    """Longest of these answers, in tokens."""

    def rules(self) -> Rules:
        return [
            *bounds(self, "interval", "patience", "max_batches", "max_new_tokens", above=0),
            *self.needs("interval", "patience"),
            *bounds(self, "samples", "exact_match", at_least=0),
        ]


@dataclass(frozen=True)
class LoRAArgs(Checked):
    """LoRA (https://arxiv.org/abs/2106.09685)"""

    r: int = 8
    """Rank of the update."""
    alpha: float = 16
    """The update is scaled by alpha / r."""
    dropout: float = 0.05
    """Dropout probability of the input of the update."""
    targets: str | list[str] = "q,v"
    """Linears to adapt: q k v o gate up down head, or the groups attn, mlp, all-linear (attn and mlp). Latent attention has
    q_down q_up kv_down kv_up, short convolutions have in_proj o, gated delta nets q k v o o_gate rate decay. Names of
    transformers, as q_proj or query_key_value, are accepted too, and full names of single linears."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead, for high ranks (rsLoRA, https://arxiv.org/abs/2312.03732)."""
    use_dora: bool = False
    """Train the magnitude of each row of a weight apart from its direction (DoRA, https://arxiv.org/abs/2402.09353)."""
    lr_ratio: float = 1.0
    """Learning rate of B over that of A (LoRA+, https://arxiv.org/abs/2402.12354)."""

    def rules(self) -> Rules:
        return [
            *bounds(self, "r", above=0, at_most=MAX_RANK),
            *bounds(self, "alpha", "lr_ratio", above=0),
            *bounds(self, "dropout", at_least=0, below=1),
        ]


@dataclass(frozen=True)
class FinetuneArgs(ExampleArgs):
    """Model, data and run"""

    method: ClassVar[str]

    out_dir: Path | None = None
    """Folder of this run. Default: out/<method>/<name of the data>."""
    precision: Precision | None = None
    """dtype of frozen weights and arithmetic; trained weights are float32. Default: the best that the device supports."""
    quantize: Quantization | None = None
    """Quantize the frozen linears to 4 or 8 bits (https://arxiv.org/abs/2305.14314)."""
    accelerator: Accelerator = "auto"
    """Kind of device."""
    devices: int = 1
    """Devices of each machine; on a CPU, processes."""
    num_nodes: int = 1
    """Machines. With more than one, torchrun or SLURM starts the processes."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Parallelism over several devices. ddp: each holds the whole model; fsdp: each holds a part of every weight; auto: fsdp if
    the model fills half of a device or more."""
    cpu_offload: bool = False
    """With fsdp: keep weights, gradients and optimizer state in CPU memory, and copy one block at a time to the GPU."""
    seed: int = 1337
    """Seed of initialization, dropout and the order of the examples."""
    resume: str | None = None
    """Resume an interrupted run in out_dir: `auto` from its newest checkpoint, or the path of one."""
    init_from: Path | None = None
    """Adapter that a new run starts from, with a fresh optimizer: one of ours, or of PEFT for LoRA and DPO. The run keeps its
    rank, targets and so on."""
    logger: Literal["csv", "tensorboard", "wandb", "mlflow"] = "csv"
    """Also send the rows of metrics.csv, which is always written, to this logger. Its package must be installed."""
    dry_run: bool = False
    """Report the data, steps, tokens, memory, time and trained weights of the run, show an example with its trained tokens, and
    stop before the weights are loaded. The output folder may exist."""
    train: TrainArgs = field(default_factory=TrainArgs)
    eval: EvalArgs = field(default_factory=EvalArgs)

    def rules(self) -> Rules:
        one = (self.checkpoint_dir is None) != (self.data_dir is None)
        given, lacking = ("data_dir", "checkpoint_dir") if self.checkpoint_dir is None else ("checkpoint_dir", "data_dir")
        return [
            (one, f"`{given}` needs `{lacking}`. Specify both, or neither for the embedded demo"),
            *super().rules(),
            *bounds(self, "devices", "num_nodes", above=0),
            *bounds(self, "seed", at_least=0),
            (self.precision == "16-true", "`precision` 16-true overflows in training. Use 16-mixed, or bf16-true if supported"),
            (self.cpu_offload and self.strategy != "fsdp", "`cpu_offload` needs `strategy` fsdp"),
            (self.precision == "16-mixed" and self.quantize is not None, "`precision` 16-mixed excludes `quantize`"),
        ]


@dataclass(frozen=True)
class LoRAFinetuneArgs(FinetuneArgs):
    method: ClassVar[str] = "lora"

    lora: LoRAArgs = field(default_factory=LoRAArgs)


@dataclass(frozen=True)
class FullArgs(Checked):
    """Full finetuning"""

    trainable: str | list[str] = "all"
    """Weights to train: all, or names of parameters and modules, e.g. `lm_head,h.30,h.31,norm`."""


@dataclass(frozen=True)
class FullFinetuneArgs(FinetuneArgs):
    method: ClassVar[str] = "full"

    train: TrainArgs = field(default_factory=lambda: TrainArgs(learning_rate=2e-5))
    full: FullArgs = field(default_factory=FullArgs)

    def rules(self) -> Rules:
        quantized = "`quantize` freezes the weights that full finetuning trains. Use finetune/lora.py for a quantized base"
        started = (
            "`init_from` takes an adapter, which full finetuning does not train. To start from a finetuned model, use it as "
            "`checkpoint_dir`; scripts/merge_lora.py makes one of base and adapter"
        )
        return [*super().rules(), (self.quantize is not None, quantized), (self.init_from is not None, started)]


@dataclass(frozen=True)
class AdapterArgs(Checked):
    """LLaMA-Adapter (https://arxiv.org/abs/2303.16199; V2: https://arxiv.org/abs/2304.15010)"""

    prompt_length: int = 10
    """Learned tokens that a layer also attends to."""
    start_layer: int = 2
    """First layer with learned tokens; 0 is the lowest."""

    def rules(self) -> Rules:
        return [*bounds(self, "prompt_length", above=0, at_most=MAX_RANK), *bounds(self, "start_layer", at_least=0)]


def _adapter_training() -> TrainArgs:
    return TrainArgs(learning_rate=1e-3, weight_decay=0.0)


@dataclass(frozen=True)
class AdapterFinetuneArgs(FinetuneArgs):
    method: ClassVar[str] = "adapter"

    train: TrainArgs = field(default_factory=_adapter_training)
    adapter: AdapterArgs = field(default_factory=AdapterArgs)


@dataclass(frozen=True)
class AdapterV2FinetuneArgs(AdapterFinetuneArgs):
    method: ClassVar[str] = "adapter_v2"


@dataclass(frozen=True)
class IA3FinetuneArgs(FinetuneArgs):
    method: ClassVar[str] = "ia3"

    train: TrainArgs = field(default_factory=lambda: TrainArgs(learning_rate=1e-3, weight_decay=0.0))


@dataclass(frozen=True)
class DPOArgs(Checked):
    """Direct preference optimization (https://arxiv.org/abs/2305.18290)"""

    beta: float = 0.1
    """Cost of a change of the model: the higher, the closer it stays to the base."""

    def rules(self) -> Rules:
        return bounds(self, "beta", above=0)


@dataclass(frozen=True)
class DPOFinetuneArgs(FinetuneArgs):
    method: ClassVar[str] = "dpo"

    train: TrainArgs = field(default_factory=lambda: TrainArgs(learning_rate=5e-6))
    lora: LoRAArgs = field(default_factory=LoRAArgs)
    dpo: DPOArgs = field(default_factory=DPOArgs)

    def rules(self) -> Rules:
        unmasked = "`mask_prompt` false has no effect with DPO: a preference is about the answers only"
        noise = "`train.neftune_alpha` cannot be used with DPO, which compares with a model without noise"
        return [*super().rules(), (not self.mask_prompt, unmasked), (self.train.neftune_alpha is not None, noise)]


_KINDS: tuple[type[FinetuneArgs], ...] = (
    FullFinetuneArgs, LoRAFinetuneArgs, AdapterFinetuneArgs, AdapterV2FinetuneArgs, IA3FinetuneArgs, DPOFinetuneArgs,
)  # fmt: skip
METHODS = {kind.method: kind for kind in _KINDS}
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
