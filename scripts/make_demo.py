"""Create the embedded demo: pretrain a tiny Llama on tales of an invented village, and write data to finetune it with.

The village has 96 animal inhabitants. The pretraining text contains all facts about all of them, and some school lessons, but
no instruction. Finetuning shows Alpaca instructions about some of them; the held-out prompts ask about the others. The format
thus comes from finetuning, and the facts can only come from the pretrained weights.
"""

import csv
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_llm.args.base import Checked, Rules, bounds
from lit_llm.cli import DEMO, run

if TYPE_CHECKING:
    from torch import Tensor

    from lit_llm.model.gpt import GPT

FINETUNE = Path(__file__).parent.parent / "finetune"
VILLAGE = Path(__file__).with_name("demo_village.yaml")
PAPERS = {"card": "a birthday card", "letter": "an invitation"}
HELD_OUT = 0.375  # share of the inhabitants, and about that of the words of each lesson
N_UNSEEN = 2  # the last phrasings of each kind of fact occur in the pretraining text, but in no finetuning row

VOCAB_SIZE = 1536
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB_SIZE, "max_position_embeddings": 256,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 128, "head_dim": 32,
    "intermediate_size": 352, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
}  # fmt: skip
BATCH_SIZE, CONTEXT = 8, 128
BOS, EOS = 0, 1


@dataclass(frozen=True)
class MakeDemoArgs(Checked):
    """Demo to create"""

    output_dir: Path = Path("lit_llm/demo")
    """Folder to write checkpoint and data into; an existing demo is replaced."""
    seed: int = 1337
    """Seed of the village, its tales and the weights."""
    steps: int = 6000
    """Steps of pretraining, 1,024 tokens each."""
    controls: bool = False
    """Create nothing; finetune the demo in output_dir, and random weights in its place, and print the exact matches."""

    def rules(self) -> Rules:
        return [*bounds(self, "steps", above=0), *bounds(self, "seed", at_least=0)]


@dataclass(frozen=True)
class Kind:
    """Statements and questions of one kind of fact: templates over the fields of a fact."""

    told: list[str]
    """The first is the answer that finetuning asks for."""
    asked: list[str]
    tasks: list[str]
    """Instructions with the word `a` as their input."""


@dataclass(frozen=True)
class Fact:
    kind: Kind
    fields: dict[str, str]
    held_out: bool

    @property
    def answer(self) -> str:
        return self.kind.told[0].format(**self.fields)

    def tell(self, rng: random.Random) -> str:
        return rng.choice(self.kind.told).format(**self.fields)

    def ask(self, rng: random.Random) -> str:
        return rng.choice(self.kind.asked).format(**self.fields)

    def asks(self, unseen: bool) -> list[tuple[str, str]]:
        """Return pairs of instruction and input: those of finetuning rows, or those that no row shows."""
        asks = [(question.format(**self.fields), "") for question in self.kind.asked]
        if unseen:
            return asks[-N_UNSEEN:]
        return asks[:-N_UNSEEN] + 2 * [(task, self.fields["a"]) for task in self.kind.tasks]  # twice, being few


class World:
    """All facts of a village that the seed determines, and texts about them."""

    def __init__(self, seed: int) -> None:
        village = yaml.safe_load(VILLAGE.read_text(encoding="utf-8"))
        rng = random.Random(seed)
        self.openings, self.endings = _split(village["openings"]), _split(village["endings"])
        topics = _split(village["topics"])
        names = _split(village["names"]["female"] + ", " + village["names"]["male"], ", ")
        rng.shuffle(names)
        columns = {key: _split(values, ", ") for key, values in village["values"].items()}
        columns = {key: values * (len(names) // len(values)) for key, values in columns.items()}
        for values in columns.values():
            rng.shuffle(values)
        for key in ("species", "job"):
            columns[key] = [("an " if noun[0] in "aeiou" else "a ") + noun for noun in columns[key]]
        kinds = {name: _kind(entry, topics) for name, entry in village["animals"].items()}
        n_held_out = int(HELD_OUT * len(names))
        self.names = names
        self.animals: dict[str, dict[str, Fact]] = {}
        for i, name in enumerate(names):
            friend = i ^ 1  # pairs (0, 1), (2, 3), ...: friends are on the same side of the split
            fields = {key: values[i] for key, values in columns.items()}
            fields |= {"n": name, "f": names[friend], "friend_food": columns["food"][friend]}
            self.animals[name] = {key: Fact(kind, fields, i < n_held_out) for key, kind in kinds.items()}
        self.lessons = {name: _lesson(entry, topics, rng) for name, entry in village["lessons"].items()}

    def facts(self) -> list[Fact]:
        groups = [list(facts.values()) for facts in self.animals.values()] + list(self.lessons.values())
        return [fact for group in groups for fact in group]

    def rows(self, seed: int, held_out: bool, per_fact: int = 1, unseen: bool = False) -> list[dict[str, str]]:
        """Return Alpaca records in random order, with `per_fact` phrasings of each fact on one side of the split."""
        rng = random.Random(seed)
        rows = []
        for fact in self.facts():
            if fact.held_out != held_out:
                continue
            for instruction, given in rng.sample(fact.asks(unseen), per_fact):
                if not held_out and rng.random() < 0.15 and instruction.split()[0] not in self.names:
                    instruction = instruction[0].lower() + instruction[1:].rstrip(".?")  # as people type
                rows.append({"instruction": instruction, "input": given, "output": fact.answer})
        rng.shuffle(rows)
        return rows

    def text(self, rng: random.Random) -> str:
        """Return one document: a life, two friends, a talk, a lesson, or a letter.

        Questions are asked and answered within a paragraph. No line is a single sentence, so that the base model, which never
        saw an answer end there, does not answer by accident.
        """
        share = rng.random()
        if share < 0.28:
            return " ".join(fact.tell(rng) for fact in self._some(rng.choice(self.names), rng.randint(4, 8), rng))
        if share < 0.40:
            name = rng.choice(self.names)
            facts = self._some(name, 3, rng) + self._some(self.animals[name]["friend"].fields["f"], 3, rng)
            rng.shuffle(facts)
            told = [fact.tell(rng) for fact in facts]
        elif share < 0.64:
            facts = [self._some(rng.choice(self.names), 1, rng)[0] for _ in range(rng.randint(2, 4))]
            told = [self._talk(fact, rng) for fact in facts]
        elif share < 0.88:
            weights = [len(facts) ** 0.8 for facts in self.lessons.values()]
            lessons = rng.choices(list(self.lessons.values()), weights, k=rng.randint(3, 6))
            facts = [rng.choice(lesson) for lesson in lessons]
            told = [fact.tell(rng) if rng.random() < 0.4 else self._talk(fact, rng) for fact in facts]
        else:
            return self._letter(rng.choice(self.names), rng.choice(list(PAPERS)), rng)
        return " ".join([rng.choice(self.openings), *told, rng.choice(self.endings)])

    def _some(self, name: str, n: int, rng: random.Random) -> list[Fact]:
        return rng.sample([fact for key, fact in self.animals[name].items() if key not in PAPERS], n)

    def _talk(self, fact: Fact, rng: random.Random) -> str:
        asker, answerer = rng.sample(self.names, 2)
        asked, answered = rng.choice(("asked", "said", "wondered")), rng.choice(("answered", "replied", "said", "laughed"))
        if rng.random() < 0.5:
            return f"“{fact.ask(rng)}” {asked} {asker}. “{fact.answer}” {answered} {answerer}."
        return f"{asker} {asked}: “{fact.ask(rng)}” {answerer} {answered}: “{fact.answer}”"

    def _letter(self, name: str, paper: str, rng: random.Random) -> str:
        fact, friend = self.animals[name][paper], self.animals[name][paper].fields["f"]
        if rng.random() < 0.5:
            opening = rng.choice(("{n} wrote {paper}:", "Here is {paper} from {n}:", "{n} sent {paper} to {f}:"))
            opening = opening.format(n=name, f=friend, paper=PAPERS[paper])
        else:
            opening = f"“{fact.ask(rng)}” asked {rng.choice(self.names)}. {rng.choice(('Here it is:', 'So it went:'))}"
        closing = rng.choice(("read it twice", "was glad", "kept it", "smiled"))
        return f"{opening}\n{fact.answer}\n{friend} {closing}. {rng.choice(self.endings)}"


def _split(text: str, separator: str = " | ") -> list[str]:
    return text.split(separator) if text else []


def _kind(entry: dict[str, str], topics: list[str]) -> Kind:
    common = [ask.replace("{topic}", entry["topic"]) for ask in topics] if "topic" in entry else []
    told = [statement.replace(" / ", "\n") for statement in _split(entry["told"])]
    return Kind(told, _split(entry["asked"]) + common, _split(entry.get("tasks", "")))


def _lesson(entry: dict[str, str], topics: list[str], rng: random.Random) -> list[Fact]:
    kind, pairs = _kind(entry, topics), [pair.rpartition(" ") for pair in _split(entry["pairs"], ", ")]
    rng.shuffle(pairs)
    facts = []
    for i, (a, _, b) in enumerate(pairs):
        facts += [Fact(kind, {"a": x, "b": y}, i < 0.3 * len(pairs)) for x, y in ([a, b], [b, a])[: 1 + ("both_ways" in entry)]]
    return facts


def train_tokenizer(texts: list[str]) -> Any:
    """Train BPE with byte fallback in which a word is the same token after a space, a newline and an opening quote.

    The normalizer writes the word mark ▁ for each space, and another one at the beginning of the text and after each newline
    and opening quote. The decoder removes the latter, so that every text without a literal ▁ round-trips. A model this small
    would not learn that "Edith" and " Edith" are one hedgehog.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        # not at the end of the text: there the separately encoded answer has its own mark
        + [normalizers.Replace(Regex(rf"{mark}(?=[\s\S])"), f"{mark}▁") for mark in "\n“"]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|▁?[^\w▁]|▁"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Replace(f"{mark}▁", mark) for mark in "\n“"]
        + [decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[chr(code) for code in range(32, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:2]  # the bytes are a fallback, not special tokens to find in a text
    state["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(state))
    bos_first = {"single": "<s> $A", "pair": "<s> $A $B", "special_tokens": [("<s>", BOS)]}
    tokenizer.post_processor = processors.TemplateProcessing(**bos_first)
    return tokenizer


def batches(world: World, tokenizer: Any, rng: random.Random) -> "Iterator[Tensor]":
    """Yield (BATCH_SIZE, CONTEXT + 1) token ids without end, cut from new texts that follow one another."""
    import torch

    ids: list[int] = []
    size = BATCH_SIZE * (CONTEXT + 1)
    while True:
        while len(ids) < size:
            for encoding in tokenizer.encode_batch([world.text(rng) for _ in range(100)]):
                ids += [*encoding.ids, EOS]
        yield torch.tensor(ids[:size]).view(BATCH_SIZE, -1)
        ids = ids[size:]


def random_model(seed: int) -> "GPT":
    """Return a model before pretraining."""
    import torch

    from lit_llm.model.config import Config
    from lit_llm.model.gpt import GPT

    torch.manual_seed(seed)
    model = GPT(Config.from_hf(CONFIG))
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.02)
    return model


def pretrain(model: "GPT", data: "Iterator[Tensor]", steps: int, learning_rate: float = 3e-3) -> None:
    """Train all weights with AdamW, warmup and cosine."""
    import torch
    import torch.nn.functional as F

    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    start = time.perf_counter()
    for step in range(steps):
        factor = min(1.0, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = learning_rate * factor
        ids = next(data)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            seconds = time.perf_counter() - start
            print(f"step {step + 1}/{steps}: loss {loss.item():.3f}, {seconds:.0f} s", file=sys.stderr, flush=True)


def save(model: "GPT", tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint folder, in bfloat16."""
    import torch

    from lit_llm.checkpoint.write import write_checkpoint
    from lit_llm.files import new_folder, write_json

    with new_folder(folder) as new:
        write_checkpoint(new, model, new, torch.bfloat16)
        tokenizer.save(str(new / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONFIG["max_position_embeddings"]}
        special = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": False}
        write_json(new / "tokenizer_config.json", settings | special)
        write_json(new / "config.json", CONFIG)
        write_json(new / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS})


def make_data(world: World, folder: Path, seed: int, unseen: bool = False) -> None:
    """Write a data folder. With `unseen`, no training row shows the phrasings of the held-out prompts."""
    from lit_llm.files import new_folder, write_json

    rows = {"train": world.rows(seed, held_out=False, per_fact=2), "val": world.rows(seed, held_out=True, unseen=unseen)}
    with new_folder(folder) as new:
        for name, split in rows.items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in split)
            (new / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        counts = {name: len(split) for name, split in rows.items()}
        write_json(new / "meta.json", {"source": "scripts/make_demo.py", "license": "Apache-2.0", "rows": counts, "seed": seed})


def make_pairs(data: Path, folder: Path, seed: int) -> None:
    """Write preference pairs from a data folder: the answer of a row is chosen, that of another row rejected."""
    from lit_llm.files import new_folder, write_json

    rng = random.Random(seed)
    counts = {}
    with new_folder(folder) as new:
        for name in ("train", "val"):
            rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
            rows = [row for row in rows if not row["input"]]
            others = [rng.choice([other for other in rows if other["output"] != row["output"]]) for row in rows]
            pairs = [
                {"prompt": row["instruction"], "chosen": row["output"], "rejected": other["output"]}
                for row, other in zip(rows, others, strict=True)
            ]
            lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
            (new / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
            counts[name] = len(pairs)
        write_json(new / "meta.json", {"source": "scripts/make_demo.py", "license": "Apache-2.0", "rows": counts, "seed": seed})


def run_controls(demo: Path, seed: int) -> None:
    """Finetune the pretrained and random weights on the same rows, as a user does, and print the held-out exact matches.

    Full finetuning is the important control: LoRA can hardly move the logits of random weights, but full finetuning memorizes
    the rows, and still answers no held-out prompt.
    """
    from lit_llm.checkpoint.write import write_checkpoint
    from lit_llm.files import read_json_object

    lora = ["lora", "--config", DEMO / "lora.yaml", "--seed", seed]
    full = ["full", "--train.epochs", 20, "--train.learning_rate", 3e-3, "--seed", seed]
    full += ["--train.global_batch_size", 16, "--train.micro_batch_size", 16, "--eval.max_new_tokens", 48]
    with tempfile.TemporaryDirectory() as name:
        pretrained, data, other = demo / "checkpoint", demo / "data", Path(name)
        (other / "random").mkdir()
        write_checkpoint(other / "random", random_model(seed), pretrained)
        make_data(World(read_json_object(data / "meta.json")["seed"]), other / "unseen", seed, unseen=True)
        controls: dict[str, tuple[Path, Path, list[Any]]] = {
            "LoRA": (pretrained, data, lora),
            "LoRA on a 4-bit base": (pretrained, data, [*lora, "--quantize", "bnb.nf4"]),
            "LoRA, asked in phrasings that no row shows": (pretrained, other / "unseen", lora),
            "LoRA on random weights": (other / "random", data, lora),
            "full finetuning of random weights": (other / "random", data, full),
        }
        for i, (title, (checkpoint_dir, data_dir, (method, *options))) in enumerate(controls.items()):
            options += ["--checkpoint_dir", checkpoint_dir, "--data_dir", data_dir, "--out_dir", other / str(i)]
            options += ["--eval.exact_match", len((data_dir / "val.jsonl").read_text(encoding="utf-8").splitlines())]
            command = [sys.executable, FINETUNE / f"{method}.py", *options]
            done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
            (exact,) = (line for line in done.stdout.splitlines() if line.startswith("exact match"))
            loss = (other / str(i) / "metrics.csv").read_text(encoding="utf-8").splitlines()
            loss = next(row["train_loss"] for row in reversed(list(csv.DictReader(loss))) if row["train_loss"])
            print(f"{title}: {exact}; last training loss {float(loss):.4f}", flush=True)


def _check_replaceable(folder: Path) -> None:
    """Raise OptionError if the folder has one of the output folders, and their data is not from this script."""
    from lit_llm.errors import OptionError
    from lit_llm.files import read_json_object

    meta = folder / "data" / "meta.json"
    ours = meta.is_file() and read_json_object(meta).get("source") == "scripts/make_demo.py"
    if not ours and any((folder / name).exists() for name in ("data", "pairs", "checkpoint")):
        raise OptionError(f"{folder} holds folders that are not a demo. Choose another `output_dir`")


def main(args: MakeDemoArgs) -> None:
    import torch

    from lit_llm.text.conversation import prompt_style, question

    torch.set_num_threads(1)  # matrices this small do not gain from more threads

    if args.controls:
        return run_controls(args.output_dir, args.seed)
    _check_replaceable(args.output_dir)
    world = World(args.seed)
    make_data(world, args.output_dir / "data", args.seed)
    make_pairs(args.output_dir / "data", args.output_dir / "pairs", args.seed)
    rng = random.Random(args.seed + 1)
    # With the prompt in the tokenizer's text, each of its words becomes one token. The model sees them only in finetuning.
    prompts = [prompt_style("alpaca").render(question("", given), True, {}) for given in ("", "x")]
    tokenizer = train_tokenizer([world.text(rng) for _ in range(20_000)] + 200 * prompts)
    model = random_model(args.seed)
    pretrain(model, batches(world, tokenizer, rng), args.steps)
    save(model, tokenizer, args.output_dir / "checkpoint")


if __name__ == "__main__":
    run(main)
