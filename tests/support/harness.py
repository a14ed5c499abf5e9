"""Offline tasks for the evaluation harness from the real data, and tiny models with a tokenizer made for them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from tiny import hf_model

FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "gpt_neox": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 100},
}


def write_task(folder: Path, name: str, splits: dict[str, list[dict]], **config) -> None:
    files = {}
    for split, rows in splits.items():
        files[split] = str(folder / f"{name}_{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", **config}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(about))


def mmlu_rows(path: Path, n: int) -> list[dict]:
    rows = list(csv.DictReader(path.open(encoding="utf-8")))[:n]
    return [{**row, "answer": int(row["answer"])} for row in rows]


def write_mmlu(folder: Path, data: Path, n_questions: int) -> list[str]:
    """5-shot tasks for all 57 subjects. Returns their names."""
    names = []
    for path in sorted((data / "mmlu" / "test").glob("*_test.csv")):
        subject = path.name.removesuffix("_test.csv")
        splits = {
            "test": mmlu_rows(path, n_questions),
            "dev": mmlu_rows(data / "mmlu" / "dev" / f"{subject}_dev.csv", 5),
        }
        write_task(
            folder, f"our_mmlu_{subject}", splits, fewshot_split="dev", fewshot_config={"sampler": "first_n"},
            num_fewshot=5, output_type="multiple_choice", doc_to_choice=["A", "B", "C", "D"], doc_to_target="answer",
            doc_to_text="{{question.strip()}}\nA. {{choice0}}\nB. {{choice1}}\nC. {{choice2}}\nD. {{choice3}}\nAnswer:",
            description=f"Questions about {subject.replace('_', ' ')}.\n\n",
            metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
        )  # fmt: skip
        names.append(f"our_mmlu_{subject}")
    return names


def write_truthfulqa(folder: Path, data: Path, n_questions: int) -> str:
    """Which answer is likeliest; answers have very different lengths."""
    rows = []
    with (data / "truthfulqa" / "TruthfulQA.csv").open(encoding="utf-8-sig") as file:
        for row in list(csv.DictReader(file))[:n_questions]:
            wrong = [a.strip() for a in row["Incorrect Answers"].split(";") if a.strip()]
            rows.append({"question": row["Question"], "choices": [row["Best Answer"], *wrong]})
    write_task(
        folder, "our_truthfulqa", {"test": rows}, output_type="multiple_choice", doc_to_choice="choices", doc_to_target=0,
        doc_to_text="Q: {{question}}\nA:", metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )  # fmt: skip
    return "our_truthfulqa"


def write_gsm8k(folder: Path, data: Path, n_questions: int, until: Sequence[str] = ("Q:", "\n\n")) -> str:
    rows = {
        split: [json.loads(line) for line in (data / "gsm8k" / f"{split}.jsonl").read_text().splitlines()[:n]]
        for split, n in (("train", 4), ("test", n_questions))
    }
    write_task(
        folder, "our_gsm8k", rows, fewshot_split="train", fewshot_config={"sampler": "first_n"}, num_fewshot=2,
        output_type="generate_until", doc_to_text="Q: {{question}}\nA:", doc_to_target="{{answer.split('####')[-1].strip()}}",
        generation_kwargs={"until": list(until), "do_sample": False, "max_gen_toks": 32},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    return "our_gsm8k"


def make_model(folder: Path, family: str, data: Path, **changes):
    """Checkpoint folder with a tokenizer trained on the questions, and lm-eval's own model of the same weights."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = [path.read_text(encoding="utf-8") for path in sorted((data / "mmlu" / "dev").glob("*.csv"))]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    sizes = {"vocab_size": 2048, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 1}
    model = hf_model(family, **{**sizes, **FAMILIES[family], **changes})
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return folder, HFLM(pretrained=model, tokenizer=theirs, batch_size=8, device="cpu", max_length=2048)


def make_adapter(checkpoint_dir: Path, folder: Path) -> Path:
    """A LoRA adapter on all linears whose updates are far from zero, and beside it the same one for PEFT. Returns it."""
    import torch
    from methods import randomize

    from lit_llm.checkpoint.adapters import write_adapter
    from lit_llm.checkpoint.export import export_peft
    from lit_llm.checkpoint.load_model import load_model
    from lit_llm.methods.lora import LoRA

    model, method = load_model(checkpoint_dir), LoRA(targets="all-linear")
    method.attach(model)
    torch.manual_seed(1)
    randomize(model)
    folder.mkdir()
    write_adapter(folder, model, method, checkpoint_dir, None)
    export_peft(checkpoint_dir, folder, folder / "peft")
    return folder
