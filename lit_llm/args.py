"""Every option that a user sees, as frozen dataclasses without torch, so that `--help` is instant.

The docstring under a field is its help. `__post_init__` raises ValueError with one line for each mistake.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]
Quantization = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8"]
Accelerator = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Checked:
    """Collects the mistakes of a dataclass and raises them together."""

    def __post_init__(self) -> None:
        if mistakes := [text for wrong, text in self.rules() if wrong]:
            raise ValueError("\n".join(mistakes))

    def rules(self) -> list[tuple[bool, str]]:
        """(whether it is wrong, what to tell the user), for each rule."""
        raise NotImplementedError

    def below(self, limit: float, *names: str, group: str = "", allow_equal: bool = False) -> list[tuple[bool, str]]:
        """Rules: each named field, where given, must be above `limit`, or equal to it if allowed."""
        word = "at least" if allow_equal else "above"
        found = []
        for name in names:
            value = getattr(self, name)
            wrong = value is not None and not (value >= limit if allow_equal else value > limit)  # NaN is wrong too
            found.append((wrong, f"--{group}{name} must be {word} {limit}, found {value}"))
        return found


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
    learning_rate: float = 3e-4
    """Highest learning rate."""
    min_lr: float | None = None
    """Learning rate at the end of the cosine; 10 % of learning_rate if not given."""
    lr_warmup_steps: int | None = None
    """Optimizer steps of linear warmup; 100, but at most 10 % of the run, if not given."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""
    max_norm: float | None = 1.0
    """Gradients are scaled down to this norm; null switches clipping off."""
    packing: bool = True
    """Fill each forward pass with as many examples as its token budget holds. Does not change the gradient."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third slower."""
    neftune_alpha: float | None = None
    """Strength of the noise on the embeddings while training, as in 5 (NEFTune, https://arxiv.org/abs/2310.05914)."""
    save_interval: int | None = None
    """Optimizer steps between saves from which a run can be resumed. Ctrl-C saves as well."""
    log_interval: int = 1
    """Optimizer steps between rows of metrics.csv."""

    def rules(self) -> list[tuple[bool, str]]:
        counts = ("epochs", "max_steps", "max_time", "global_batch_size", "micro_batch_size", "learning_rate", "max_norm")
        return [
            *self.below(0, *counts, "neftune_alpha", "save_interval", "log_interval", group="train."),
            *self.below(0, "min_lr", "lr_warmup_steps", "weight_decay", group="train.", allow_equal=True),
            (
                self.min_lr is not None and self.min_lr > self.learning_rate,
                f"--train.min_lr {self.min_lr} is above --train.learning_rate {self.learning_rate}",
            ),
        ]


@dataclass(frozen=True)
class EvalArgs(Checked):
    """Evaluation during and after finetuning"""

    interval: int | None = 100
    """Optimizer steps between validations; null: only at the end."""
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
            *self.below(0, "interval", "max_batches", "max_new_tokens", group="eval."),
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
            (not 0 <= self.dropout < 1, f"--lora.dropout must be at least 0 and below 1, found {self.dropout}"),
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
    """Number of devices."""
    seed: int = 1337
    """Seed of initialisation, dropout and the order of the examples."""
    resume: str | None = None
    """Go on with an interrupted run in out_dir: `auto` from its newest save, or the path of one."""
    dry_run: bool = False
    """Tell what would be trained, show an example with its trained tokens, and stop before the weights are loaded."""
    train: TrainArgs = field(default_factory=TrainArgs)
    eval: EvalArgs = field(default_factory=EvalArgs)

    def rules(self) -> list[tuple[bool, str]]:
        one = (self.checkpoint_dir is None) != (self.data_dir is None)
        given, lacking = ("data_dir", "checkpoint_dir") if self.checkpoint_dir is None else ("checkpoint_dir", "data_dir")
        return [
            (one, f"--{given} needs --{lacking}. Give both, or neither for the embedded demo"),
            *self.below(0, "max_seq_length", "devices"),
            (self.devices > 1, f"--devices {self.devices}: training runs on one device so far. Leave it out"),
            *self.below(0, "seed", allow_equal=True),
            (
                self.precision == "16-true",
                "--precision 16-true overflows in training. Take 16-mixed, or bf16-true where the device supports it",
            ),
            (self.quantize is not None and self.precision == "16-mixed", "--quantize does not go with --precision 16-mixed"),
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
        quantized = "--quantize freezes the weights that full finetuning trains. Take finetune/lora.py for a quantized base"
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
        unmasked = "--mask_prompt false has no effect here: a preference is about the answers only"
        noise = "--train.neftune_alpha does not go with DPO: it compares with a model without noise"
        return [*super().rules(), (not self.mask_prompt, unmasked), (self.train.neftune_alpha is not None, noise)]


@dataclass(frozen=True)
class GenerateArgs(Checked):
    """What to generate, and how"""

    prompt: str | None = None
    """Text to continue; an empty one starts from BOS."""
    prompt_file: Path | None = None
    """File that holds the prompt."""
    checkpoint_dir: Path | None = None
    """Folder of the model; the embedded demo's if not given."""
    num_samples: int = 1
    """Texts to generate."""
    max_new_tokens: int = 50
    """Tokens at most, the prompt not counted."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities sum to at least this (https://arxiv.org/abs/1904.09751)."""
    seed: int = 1337
    """Seed of the samples."""
    precision: Precision | None = None
    """Weights and arithmetic. On a CPU float32, else the checkpoint's own, if not given."""
    quantize: Quantization | None = None
    """Hold the linears in 4 or 8 bits."""
    accelerator: Accelerator = "auto"
    """Kind of device."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            ((self.prompt is None) == (self.prompt_file is None), "give either --prompt TEXT or --prompt_file FILE"),
            *self.below(0, "num_samples", "max_new_tokens", "top_k"),
            *self.below(0, "temperature", "seed", allow_equal=True),
            (not 0 < self.top_p <= 1, f"--top_p must be above 0 and at most 1, found {self.top_p}"),
            (
                self.temperature == 0 and (self.top_k is not None or self.top_p < 1),
                "--temperature 0 takes the likeliest token: --top_k and --top_p cannot act. Leave them out",
            ),
            (
                self.temperature == 0 and self.num_samples > 1,
                "--temperature 0 gives the same text each time: leave out --num_samples",
            ),
            (
                self.precision is not None and self.precision.endswith("-mixed"),
                f"--precision {self.precision} is for training. Generate in 32-true, 16-true or bf16-true",
            ),
        ]


@dataclass(frozen=True)
class AdapterGenerateArgs(GenerateArgs):
    """What to generate, and how"""

    adapter_dir: Path = field(kw_only=True)
    """Folder of the adapter, as finetuning wrote it."""
    checkpoint_dir: Path | None = None
    """Folder of the base model; the one that the adapter was trained on if not given."""
    prompt: str | None = None
    """Instruction to answer, in the adapter's prompt style."""
    input: str = ""
    """Further input that goes with the instruction."""


@dataclass(frozen=True)
class FullGenerateArgs(GenerateArgs):
    """What to generate, and how"""

    checkpoint_dir: Path = field(kw_only=True)
    """Folder of the finetuned model, as finetuning wrote it."""
    prompt: str | None = None
    """Instruction to answer, in the prompt style of the finetuning."""
    input: str = ""
    """Further input that goes with the instruction."""


@dataclass(frozen=True)
class ModelArgs(Checked):
    """Which model"""

    checkpoint_dir: Path | None = None
    """Folder of the model; with adapter_dir the base that it was trained on, if not given; else the embedded demo's."""
    adapter_dir: Path | None = None
    """Folder of an adapter; it stays unmerged."""
    precision: Precision | None = None
    """Weights and arithmetic. On a CPU float32, else the checkpoint's own, if not given."""
    quantize: Quantization | None = None
    """Hold the linears in 4 or 8 bits."""
    accelerator: Accelerator = "auto"
    """Kind of device."""

    def rules(self) -> list[tuple[bool, str]]:
        mixed = self.precision is not None and self.precision.endswith("-mixed")
        return [(mixed, f"--precision {self.precision} is for training. Take 32-true, 16-true or bf16-true")]


@dataclass(frozen=True)
class HarnessArgs(ModelArgs):
    """What to evaluate, on what"""

    tasks: str | list[str] = field(kw_only=True)
    """Tasks or groups of the harness, as in `[hellaswag,truthfulqa_mc2]`."""
    include_path: Path | None = None
    """Folder with more tasks, as YAML files."""
    num_fewshot: int | None = None
    """Solved examples before each question; as the task says if not given."""
    limit: float | None = None
    """Questions per task at most; below 1 a share of them."""
    batch_size: int = 8
    """Texts in one pass of the model."""
    apply_chat_template: bool = False
    """Put the questions into the checkpoint's chat template."""
    output_file: Path | None = None
    """File for the results, in the harness's own JSON."""
    log_samples: bool = False
    """Write samples_<task>.jsonl beside output_file: every question with what the model made of it."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *super().rules(),
            *self.below(0, "batch_size", "limit"),
            *self.below(0, "num_fewshot", allow_equal=True),
            (self.log_samples and self.output_file is None, "--log_samples needs --output_file FILE to write beside"),
        ]


@dataclass(frozen=True)
class PerplexityArgs(ModelArgs):
    """What to evaluate, on what"""

    data_file: Path = field(kw_only=True)
    """Text file."""
    stride: int | None = None
    """Tokens that each window scores; less than the context gives each token more to go by, and costs more passes.
    The whole context if not given."""
    batch_size: int = 8
    """Windows in one pass of the model."""

    def rules(self) -> list[tuple[bool, str]]:
        return [*super().rules(), *self.below(0, "stride", "batch_size")]


@dataclass(frozen=True)
class CompareArgs(Checked):
    """What to compare, on what"""

    models: list[Path]
    """Folders of checkpoints and adapters, as in `[checkpoints/org/base, out/lora/name/final]`; all are held against the
    first."""
    data_dir: Path
    """Data folder: the rows of its val.jsonl are asked."""
    prompt_style: str | None = None
    """How a row becomes a prompt for the models that were not finetuned; as the first finetuned one's if not given."""
    limit: int | None = None
    """Rows at most."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    batch_size: int = 8
    """Rows in one pass of the model."""
    n_resamples: int = 1000
    """Resamples of the rows, of which the intervals are made."""
    precision: Precision | None = None
    """Weights and arithmetic. On a CPU float32, else the checkpoint's own, if not given."""
    quantize: Quantization | None = None
    """Hold the linears in 4 or 8 bits."""
    accelerator: Accelerator = "auto"
    """Kind of device."""
    seed: int = 1337
    """Seed of the resampling."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *self.below(0, "limit", "max_new_tokens", "batch_size", "n_resamples"),
            *self.below(0, "seed", allow_equal=True),
            (len(self.models) < 2, "--models takes at least two folders, as in `[base, finetuned]`"),
        ]


@dataclass(frozen=True)
class ServeArgs(ModelArgs):
    """What to serve, and where"""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int = 8080
    """Port to listen on."""
    max_body_size: int = 1_000_000
    """Bytes of a request at most."""
    max_new_tokens: int = 2048
    """Tokens at most that a request may ask for."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *super().rules(),
            *self.below(0, "max_body_size", "max_new_tokens"),
            (not 0 <= self.port <= 65535, f"--port must be from 0 to 65535, found {self.port}"),
        ]


@dataclass(frozen=True)
class ChallengeCheckArgs(Checked):
    """Which server to check"""

    url: str = "http://localhost:8080"
    """Address of the server."""
    timeout: float = 300
    """Seconds that it may take to answer."""
    context: int = 2048
    """Tokens of a prompt and its continuation that it must take."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *self.below(0, "timeout", "context"),
            (not self.url.startswith(("http://", "https://")), f"--url must begin with http:// or https://, found {self.url}"),
        ]


@dataclass(frozen=True)
class PrepareArgs(Checked):
    """Where the data is, and where it goes"""

    source: ClassVar[str] = "data_file"

    destination_path: Path = Path("data")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""
    val_split_fraction: float = 0.05
    """Share of the rows that is held out for validation."""
    seed: int = 42
    """Seed of the split."""
    checkpoint_dir: Path | None = None
    """Folder of a model: its tokenizer counts the tokens of the examples."""
    near_duplicates: float | None = None
    """Drop a row that is this similar to an earlier one (Jaccard similarity of its words in threes, as in 0.8)."""
    min_answer_chars: int = 1
    """Drop a row with a shorter answer."""
    max_chars: int | None = None
    """Drop a longer row, counted in characters of all its texts."""
    max_examples: int | None = None
    """Keep at most so many rows, the first ones that pass."""
    write_dropped: bool = False
    """Write the dropped rows, each with its reason, to dropped.jsonl."""

    def rules(self) -> list[tuple[bool, str]]:
        return [
            (
                not 0 <= self.val_split_fraction < 1,
                f"--val_split_fraction must be at least 0 and below 1, found {self.val_split_fraction}",
            ),
            *self.below(0, "seed", allow_equal=True),
            *self.below(0, "min_answer_chars", "max_chars", "max_examples"),
            (
                self.near_duplicates is not None and not 0.3 <= self.near_duplicates <= 1,
                f"--near_duplicates must be at least 0.3 and at most 1, found {self.near_duplicates}",
            ),
        ]


@dataclass(frozen=True)
class ColumnArgs(PrepareArgs):
    """Where the data is, and where it goes"""

    instruction_column: str = "instruction"
    """Column that holds the instruction."""
    input_column: str = "input"
    """Column that holds its input; need not be there."""
    output_column: str = "output"
    """Column that holds the answer."""
    system_column: str = "system"
    """Column that holds a system text; need not be there."""


@dataclass(frozen=True)
class PrepareAlpacaArgs(PrepareArgs):
    """Where the data is, and where it goes"""

    data_file: str = "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json"
    """JSON list of rows with instruction, input and output: a path, an address, or hf://datasets/ORG/NAME/FILE."""
    destination_path: Path = Path("data/alpaca")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""


@dataclass(frozen=True)
class PrepareCsvArgs(ColumnArgs):
    """Where the data is, and where it goes"""

    csv_path: Path = field(kw_only=True)
    """CSV file with a header row and at least the columns instruction and output."""
    destination_path: Path = Path("data/csv")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""


@dataclass(frozen=True)
class PrepareJsonArgs(ColumnArgs):
    """Where the data is, and where it goes"""

    json_path: str = field(kw_only=True)
    """JSON list, JSON lines or parquet: instruction rows, chats (messages, ShareGPT's conversations), preference pairs
    (prompt, chosen, rejected) or texts. A path, an address, or hf://datasets/ORG/NAME/FILE."""
    destination_path: Path = Path("data/json")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""


@dataclass(frozen=True)
class PrepareDollyArgs(PrepareArgs):
    """Where the data is, and where it goes"""

    data_file: str = "hf://datasets/databricks/databricks-dolly-15k/databricks-dolly-15k.jsonl"
    """JSON lines with instruction, context and response: a path, an address, or hf://datasets/ORG/NAME/FILE."""
    destination_path: Path = Path("data/dolly")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""


@dataclass(frozen=True)
class PrepareLimaArgs(PrepareArgs):
    """Where the data is, and where it goes"""

    data_file: str = "hf://datasets/GAIR/lima/train.jsonl"
    """JSON lines with conversations: a path, an address, or hf://datasets/ORG/NAME/FILE. The hub wants the terms
    accepted, and the account's token in HF_TOKEN."""
    destination_path: Path = Path("data/lima")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""
    include_multiturn_conversations: bool = False
    """Keep all turns of a conversation, not its first exchange only."""


@dataclass(frozen=True)
class PrepareTextArgs(PrepareArgs):
    """Where the data is, and where it goes"""

    text_path: str = field(kw_only=True)
    """Text file: a path, an address, or hf://datasets/ORG/NAME/FILE."""
    destination_path: Path = Path("data/text")
    """Folder to write train.jsonl, val.jsonl and meta.json into."""
    separator: str | None = None
    """What stands between two documents, as in <|endoftext|>; without it the file is one document."""
    chunk_chars: int = 2000
    """Documents are cut, where a paragraph, line or word ends, to rows of at most so many characters; EOS follows the last."""

    def rules(self) -> list[tuple[bool, str]]:
        return [*super().rules(), *self.below(0, "chunk_chars"), (self.separator == "", "--separator must not be empty")]


@dataclass(frozen=True)
class InspectDataArgs(Checked):
    """What to look at"""

    checkpoint_dir: Path
    """Folder of the model whose tokenizer and chat template are used."""
    data_dir: Path
    """Folder with train.jsonl."""
    prompt_style: str | None = None
    """How a record becomes a prompt; the style that fits the checkpoint and the records if not given."""
    mask_prompt: bool = True
    """Train on the answers only."""
    train_on: Literal["all", "last"] = "all"
    """Answers of a conversation to train on: all of them, or the last."""
    num_examples: int = 3
    """Examples that are shown."""
    split: Literal["train", "val"] = "train"
    """Which of the two files."""

    def rules(self) -> list[tuple[bool, str]]:
        return self.below(0, "num_examples", allow_equal=True)


@dataclass(frozen=True)
class ConvertHfArgs(Checked):
    """What to convert"""

    checkpoint_dir: Path
    """Folder with config.json and weights as Hugging Face publishes it, or one of Lit-GPT or litgpt with lit_model.pth. The
    result is written beside them."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """dtype of the result; as the source if not given."""

    def rules(self) -> list[tuple[bool, str]]:
        return []


@dataclass(frozen=True)
class DownloadArgs(Checked):
    """What to download"""

    repo_id: str | None = None
    """Repository on the Hugging Face hub, as ORG/NAME; a list to choose from if not given."""
    checkpoint_dir: Path = Path("checkpoints")
    """Folder of all checkpoints; this one goes into ORG/NAME in it."""
    revision: str | None = None
    """Branch, tag or commit; the main branch if not given."""
    access_token: str | None = None
    """Token for gated and private repositories; that of HF_TOKEN or of `hf auth login` if not given."""
    tokenizer_only: bool = False
    """Config and tokenizer without the weights."""

    def rules(self) -> list[tuple[bool, str]]:
        part = r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_]([\w.-]*[A-Za-z0-9_])?"
        parts = (self.repo_id or "").split("/")
        well_formed = len(parts) == 2 and all(re.fullmatch(part, name, re.ASCII) for name in parts)
        others = {"revision": self.revision, "access_token": self.access_token, "tokenizer_only": self.tokenizer_only}
        return [
            (
                self.repo_id is not None and not well_formed,
                f"--repo_id takes ORG/NAME, as in EleutherAI/pythia-70m; found {self.repo_id}",
            ),
            *[(self.repo_id is None and bool(value), f"--{name} needs --repo_id ORG/NAME") for name, value in others.items()],
        ]


@dataclass(frozen=True)
class ConvertLitArgs(Checked):
    """What to convert, and where to"""

    checkpoint_dir: Path
    """Folder of a model in our layout; with adapter_dir, the base that the adapter was trained on."""
    output_dir: Path
    """Folder to write: for transformers, or with adapter_dir for PEFT."""
    adapter_dir: Path | None = None
    """LoRA adapter to write in PEFT's format."""

    def rules(self) -> list[tuple[bool, str]]:
        return []


@dataclass(frozen=True)
class MergeLoRAArgs(Checked):
    """What to merge, and where to"""

    checkpoint_dir: Path
    """Folder of the base model, in full precision."""
    adapter_dir: Path | list[Path]
    """LoRA adapter, or a list of them, as in `[out/a/final, out/b/final]`."""
    output_dir: Path
    """Folder to write the merged checkpoint into."""
    weights: list[float] | None = None
    """Factor of each adapter; 1 for each if not given."""

    def rules(self) -> list[tuple[bool, str]]:
        n = len(self.adapter_dir) if isinstance(self.adapter_dir, list) else 1
        found = 0 if self.weights is None else len(self.weights)
        return [(found not in (0, n), f"--weights has {found} numbers for {n} adapters")]


@dataclass(frozen=True)
class BenchmarkArgs(Checked):
    """What to measure"""

    check: Literal["train_speed", "invariance", "load_memory"]
    """train_speed: LoRA steps beside transformers with PEFT and litgpt, where installed. invariance: that loss and gradient on
    your data do not depend on micro-batches or packing. load_memory: most memory while a checkpoint is loaded."""
    checkpoint_dir: Path | None = None
    """Model for invariance."""
    data_dir: Path | None = None
    """Data for invariance."""
    shapes: list[Literal["pythia-70m", "llama-6x512", "llama-100m"]] = field(
        default_factory=lambda: ["pythia-70m", "llama-6x512", "llama-100m"]
    )
    """Sizes of the models for train_speed."""
    repetitions: int = 5
    """Measured steps of each contender for train_speed."""
    n_examples: int = 16
    """Examples per step."""

    def rules(self) -> list[tuple[bool, str]]:
        lacking = self.check == "invariance" and (self.checkpoint_dir is None or self.data_dir is None)
        return [
            *self.below(0, "repetitions", "n_examples"),
            (lacking, "--check invariance needs --checkpoint_dir and --data_dir"),
        ]


@dataclass(frozen=True)
class EstimateArgs(Checked):
    """What to estimate"""

    checkpoint_dir: Path
    """Folder with config.json; weights are not needed."""
    method: Literal["full", "lora", "adapter", "adapter_v2", "dpo"] = "lora"
    """Way of finetuning."""
    max_seq_length: int | None = None
    """Longest example in tokens; the smaller of the model's context and 2048 if not given."""
    micro_batch_size: int = 4
    """Examples per forward pass."""
    global_batch_size: int = 32
    """Examples per optimizer step."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass."""
    precision: Literal["32-true", "bf16-true"] = "32-true"
    """Frozen weights and activations."""
    quantize: Quantization | None = None
    """Hold the frozen linears in 4 or 8 bits."""
    hours: float | None = None
    """Time to plan for, on a gpu."""
    gpu: Literal["a100-40gb", "rtx-4090"] | None = None
    """GPU to plan for."""
    lora: LoRAArgs = field(default_factory=LoRAArgs)
    adapter: AdapterArgs = field(default_factory=AdapterArgs)

    def rules(self) -> list[tuple[bool, str]]:
        return [
            *self.below(0, "max_seq_length", "micro_batch_size", "global_batch_size", "hours"),
            (self.method == "full" and self.quantize is not None, "--quantize freezes the weights that --method full trains"),
            ((self.hours is None) != (self.gpu is None), "--hours and --gpu go together"),
            (self.lora != LoRAArgs() and self.method not in ("lora", "dpo"), "--lora options have no effect on this method"),
            (self.adapter != AdapterArgs() and "adapter" not in self.method, "--adapter options have no effect on this method"),
        ]
