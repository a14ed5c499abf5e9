"""Held-out answers of a run end where those of the generate scripts do."""

import json

from tiny import WORDS, make_checkpoint
from tokenizers import Tokenizer as HFTokenizer

from lit_llm.args.finetune import EvalArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.args.generate import LoRAGenerateArgs
from lit_llm.generation.answer_prompts import answer
from lit_llm.methods.lora import LoRA
from lit_llm.training.finetune import finetune

ROWS = [{"instruction": word, "output": f"{WORDS[-i]} {word}"} for i, word in enumerate(WORDS[:10], 1)]


def test_held_out_answers_end_at_the_token_that_closes_a_turn(tmp_path, capsys):
    """ChatML on a base model whose EOS is another token than <|im_end|>, as with Qwen's."""
    base = make_checkpoint(tmp_path / "base")
    tokenizer = HFTokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(base / "tokenizer.json"))
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name in ("train.jsonl", "val.jsonl", "prompts.jsonl"):
        (tmp_path / name).write_text(lines)
    run = tmp_path / "run"
    train = TrainArgs(max_steps=120, global_batch_size=10, micro_batch_size=10, learning_rate=1e-2, weight_decay=0.0)
    finetune(
        LoRAFinetuneArgs(
            checkpoint_dir=base, data_dir=tmp_path, out_dir=run, prompt_style="chatml", accelerator="cpu", train=train,
            eval=EvalArgs(exact_match=10, max_new_tokens=12, initial=False),
        ),
        LoRA(r=16, alpha=32, dropout=0.0, targets="all-linear,head"),
    )  # fmt: skip
    told = capsys.readouterr().out
    answer(
        LoRAGenerateArgs(adapter_dir=run / "final", prompt_file=tmp_path / "prompts.jsonl", temperature=0, max_new_tokens=12)
    )
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["text"], line["finish"]) for line in answers] == [(row["output"], "stop") for row in ROWS]
    assert "exact match on held-out prompts: 0/10 (0.0%) -> 10/10 (100.0%)" in told
