"""Options of the finetune scripts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from lit_llm.args.base import Accelerator, Checked, Optimizer, Precision, Quantization


@dataclass(frozen=True)
class TrainArgs(Checked):
    """Training"""

    epochs: int | None = None
    """Passes over the training data; 1 if neither max_steps nor max_time is given. Training ends at the first limit."""
    max_steps: int | None = None
    """Optimizer steps at most."""
    max_time: float | None = None
    """Hours at most. The step at which they are over is the last one."""
    global_batch_size: int = 32
    """Examples per optimizer step, over all devices."""
    micro_batch_size: int = 4
    """Examples per forward pass on a device; with packing, times max_seq_length the most tokens in one pass."""
    optimizer: Optimizer = "adamw"
    """adamw, sgd (momentum 0.9), adafactor and lion; with 8 bit state; or paged, whose state leaves the memory of a CUDA device
    when that is short. Lion wants about a third of AdamW's learning rate."""
    learning_rate: float = 3e-4
    """Highest learning rate."""
    min_lr: float | None = None
    """Learning rate at the end of the cosine; 10 % of learning_rate if not given."""
    lr_warmup_steps: int | None = None
    """Optimizer steps of linear warmup; 100, but at most 10 % of the run, if not given."""
    weight_decay: float = 0.01
    """Decoupled weight decay; with sgd, added to the gradient."""
    max_norm: float | None = 1.0
    """Gradients are scaled down to this norm; null switches clipping off."""
    packing: bool = True
    """Fill each forward pass with as many examples as its token budget holds. Does not change the gradient."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third slower."""
    compile: bool = False
    """Compile the blocks with torch.compile: a minute before the first step, then faster on a GPU. Needs a C++ compiler."""
    neftune_alpha: float | None = None
    """Strength of the noise on the embeddings while training, as in 5 (NEFTune, https://arxiv.org/abs/2310.05914)."""
    save_interval: int | None = None
    """Optimizer steps between saves from which a run can be resumed. Ctrl-C saves as well."""
    keep_last: int | None = None
    """Saves to keep; an older one is removed once a newer one is complete. All if not given."""
    log_interval: int = 1
    """Optimizer steps between rows of metrics.csv."""
    max_loss_spike: float | None = None
    """Stop when a loss is above so many times the running mean of the logged ones. A loss that is no number always stops the
    run; no save is made of it."""
    overfit_batches: int | None = None
    """Train and validate on the examples of the first so many steps alone: a run without mistakes learns them by heart."""
    probe: bool = True
    """Before the first step, run the longest micro-batch of the plan and tell time and memory. Changes nothing."""

    def rules(self) -> list[tuple[bool, str]]:
        counts = ("epochs", "max_steps", "max_time", "global_batch_size", "micro_batch_size", "learning_rate", "max_norm")
        return [
            *self.below(0, *counts, "neftune_alpha", "save_interval", "log_interval", group="train."),
            *self.below(0, "keep_last", "max_loss_spike", "overfit_batches", group="train."),
            *self.below(0, "min_lr", "lr_warmup_steps", "weight_decay", group="train.", allow_equal=True),
            (
                self.max_loss_spike is not None and 0 < self.max_loss_spike <= 1,
                f"`train.max_loss_spike` {self.max_loss_spike} would stop at any loss above the mean. Take 2 or more",
            ),
            (self.keep_last is not None and self.save_interval is None, "`train.keep_last` needs `train.save_interval`"),
            (
                self.min_lr is not None and self.min_lr > self.learning_rate,
                f"`train.min_lr` {self.min_lr} is above `train.learning_rate` {self.learning_rate}",
            ),
        ]


@dataclass(frozen=True)
class EvalArgs(Checked):
    """Evaluation during and after finetuning"""

    interval: int | None = 100
    """Optimizer steps between validations; null: only at the end."""
    patience: int | None = None
    """Stop after so many validations in a row without a better loss; `best` holds the best. Never if not given."""
    max_batches: int | None = None
    """Micro-batches per validation at most; all if not given."""
    initial: bool = True
    """Validate before the first step."""
    final: bool = True
    """Validate after the last step."""
    samples: int = 5
    """Held-out prompts that are answered by the base and by the finetuned model, and shown side by side at the end."""
    exact_match: int = 0
    """Held-out prompts over which both models' rates of exact answers are measured at the end. An answer counts if it is
    identical and has ended."""
    max_new_tokens: int = 64
    """Longest answer of these, in tokens."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *self.below(0, "interval", "patience", "max_batches", "max_new_tokens", group="eval."),
            (self.patience is not None and self.interval is None, "`eval.patience` needs `eval.interval`"),
            *self.below(0, "samples", "exact_match", group="eval.", allow_equal=True),
        ]


@dataclass(frozen=True)
class LoRAArgs(Checked):
    """LoRA (https://arxiv.org/abs/2106.09685)"""

    r: int = 8
    """Rank of the update."""
    alpha: float = 16
    """The update is scaled by alpha / r."""
    dropout: float = 0.05
    """Share of the update's input that is dropped while training."""
    targets: str | list[str] = "q,v"
    """Linears to adapt: q k v o gate up down head, or the groups attn, mlp, all-linear (attn and mlp)."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead, for high ranks (https://arxiv.org/abs/2312.03732)."""
    use_dora: bool = False
    """Train the length of each row of a weight apart from its direction (https://arxiv.org/abs/2402.09353)."""
    lr_ratio: float = 1.0
    """Learning rate of B over that of A (LoRA+, https://arxiv.org/abs/2402.12354)."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *self.below(0, "r", "alpha", "lr_ratio", group="lora."),
            (not 0 <= self.dropout < 1, f"`lora.dropout` must be at least 0 and below 1, found {self.dropout}"),
        ]


@dataclass(frozen=True)
class FinetuneArgs(Checked):
    """What to finetune, on what"""

    method: ClassVar[str]

    checkpoint_dir: Path | None = None
    """Folder of the base model, as Hugging Face publishes it or converted. Without it and data_dir: the embedded demo."""
    data_dir: Path | None = None
    """Folder with train.jsonl and, if there is one, val.jsonl, as the prepare scripts write it; or a .csv, .json, .jsonl or
    .parquet file, which is prepared on the way."""
    out_dir: Path | None = None
    """Folder of this run; out/<method>/<name of the data> if not given."""
    prompt_style: str | None = None
    """How a record becomes a prompt; the style that fits the checkpoint and the records if not given."""
    mask_prompt: bool = True
    """Train on the answers only."""
    train_on: Literal["all", "last"] = "all"
    """Answers of a conversation to train on: all of them, or the last."""
    max_seq_length: int | None = None
    """Longest example in tokens; longer ones are dropped and counted. The model's context if not given."""
    precision: Precision | None = None
    """Frozen weights and arithmetic; trained weights are always float32. The best that the device supports if not given."""
    quantize: Quantization | None = None
    """Hold the frozen linears in 4 or 8 bits (https://arxiv.org/abs/2305.14314)."""
    accelerator: Accelerator = "auto"
    """Kind of device."""
    devices: int = 1
    """Devices of each machine; on a CPU, processes."""
    num_nodes: int = 1
    """Machines. Above 1, torchrun or SLURM starts the processes."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices share the work. ddp: each holds the whole model; fsdp: each holds a part of every weight; auto: fsdp
    if the model fills half of a device or more."""
    cpu_offload: bool = False
    """With fsdp: hold weights, gradients and optimizer in the memory of the CPU, and bring a block at a time to the GPU."""
    seed: int = 1337
    """Seed of initialisation, dropout and the order of the examples."""
    resume: str | None = None
    """Go on with an interrupted run in out_dir: `auto` from its newest save, or the path of one."""
    logger: Literal["csv", "tensorboard", "wandb", "mlflow"] = "csv"
    """Where the rows of metrics.csv, which is always written, also go. The package must be installed."""
    dry_run: bool = False
    """Tell what would be trained, show an example with its trained tokens, and stop before the weights are loaded."""
    train: TrainArgs = field(default_factory=TrainArgs)
    eval: EvalArgs = field(default_factory=EvalArgs)

    def rules(self) -> list[tuple[bool, str]]:
        one = (self.checkpoint_dir is None) != (self.data_dir is None)
        given, lacking = ("data_dir", "checkpoint_dir") if self.checkpoint_dir is None else ("checkpoint_dir", "data_dir")
        return [
            (one, f"`{given}` needs `{lacking}`. Give both, or neither for the embedded demo"),
            *self.below(0, "max_seq_length", "devices", "num_nodes"),
            *self.below(0, "seed", allow_equal=True),
            (
                self.precision == "16-true",
                "`precision` 16-true overflows in training. Take 16-mixed, or bf16-true where the device supports it",
            ),
            (self.cpu_offload and self.strategy != "fsdp", "`cpu_offload` needs `strategy` fsdp"),
            (self.quantize is not None and self.precision == "16-mixed", "`quantize` does not go with `precision` 16-mixed"),
        ]


@dataclass(frozen=True)
class LoRAFinetuneArgs(FinetuneArgs):
    """What to finetune, on what"""

    method: ClassVar[str] = "lora"

    lora: LoRAArgs = field(default_factory=LoRAArgs)


@dataclass(frozen=True)
class FullArgs(Checked):
    """Full finetuning"""

    trainable: str | list[str] = "all"
    """What trains: all, or names of parameters and modules, as in `lm_head,h.30,h.31,norm`."""

    def rules(self) -> list[tuple[bool, str]]:
        return []


@dataclass(frozen=True)
class FullFinetuneArgs(FinetuneArgs):
    """What to finetune, on what"""

    method: ClassVar[str] = "full"

    train: TrainArgs = field(default_factory=lambda: TrainArgs(learning_rate=2e-5))
    full: FullArgs = field(default_factory=FullArgs)

    def rules(self) -> list[tuple[bool, str]]:
        quantized = "`quantize` freezes the weights that full finetuning trains. Take finetune/lora.py for a quantized base"
        return [*super().rules(), (self.quantize is not None, quantized)]


@dataclass(frozen=True)
class AdapterArgs(Checked):
    """LLaMA-Adapter (https://arxiv.org/abs/2303.16199; V2: https://arxiv.org/abs/2304.15010)"""

    prompt_length: int = 10
    """Learned tokens that the attention of a layer also sees."""
    start_layer: int = 2
    """First layer that has them; 0 is the lowest."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *self.below(0, "prompt_length", group="adapter."),
            *self.below(0, "start_layer", group="adapter.", allow_equal=True),
        ]


def _adapter_training() -> TrainArgs:
    return TrainArgs(learning_rate=1e-3, weight_decay=0.0)


@dataclass(frozen=True)
class AdapterFinetuneArgs(FinetuneArgs):
    """What to finetune, on what"""

    method: ClassVar[str] = "adapter"

    train: TrainArgs = field(default_factory=_adapter_training)
    adapter: AdapterArgs = field(default_factory=AdapterArgs)


@dataclass(frozen=True)
class AdapterV2FinetuneArgs(AdapterFinetuneArgs):
    """What to finetune, on what"""

    method: ClassVar[str] = "adapter_v2"


@dataclass(frozen=True)
class IA3FinetuneArgs(FinetuneArgs):
    """What to finetune, on what"""

    method: ClassVar[str] = "ia3"

    train: TrainArgs = field(default_factory=_adapter_training)


@dataclass(frozen=True)
class DPOArgs(Checked):
    """Direct preference optimisation (https://arxiv.org/abs/2305.18290)"""

    beta: float = 0.1
    """How much a change of the model costs: the higher, the closer it stays to the base."""

    def rules(self) -> list[tuple[bool, str]]:
        return self.below(0, "beta", group="dpo.")


@dataclass(frozen=True)
class DPOFinetuneArgs(FinetuneArgs):
    """What to finetune, on what"""

    method: ClassVar[str] = "dpo"

    train: TrainArgs = field(default_factory=lambda: TrainArgs(learning_rate=5e-6))
    lora: LoRAArgs = field(default_factory=LoRAArgs)
    dpo: DPOArgs = field(default_factory=DPOArgs)

    def rules(self) -> list[tuple[bool, str]]:
        unmasked = "`mask_prompt` false has no effect here: a preference is about the answers only"
        noise = "`train.neftune_alpha` does not go with DPO: it compares with a model without noise"
        return [*super().rules(), (not self.mask_prompt, unmasked), (self.train.neftune_alpha is not None, noise)]


_KINDS: tuple[type[FinetuneArgs], ...] = (
    FullFinetuneArgs, LoRAFinetuneArgs, AdapterFinetuneArgs, AdapterV2FinetuneArgs, IA3FinetuneArgs, DPOFinetuneArgs,
)  # fmt: skip
METHODS = {kind.method: kind for kind in _KINDS}
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
