import re

import numpy as np
import pytest
import torch

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

from lit_llm.compare import paired_bootstrap


def test_the_interval_equals_that_of_another_resampling():
    """Against a resampling in numpy with draws of its own; both have an error of about 1 % of the interval."""
    draw = np.random.default_rng(0)
    ours, base, n = draw.normal(1.0, 1.0, 200), draw.normal(0.5, 1.0, 200), draw.integers(1, 9, 200).astype(float)
    index = draw.integers(0, 200, (20_000, 200))
    expected = np.quantile(ours[index].sum(1) / n[index].sum(1) - base[index].sum(1) / n[index].sum(1), [0.025, 0.975])
    draws = torch.randint(200, (20_000, 200), generator=torch.Generator().manual_seed(1))
    tensors = [torch.from_numpy(x) for x in (ours, base, n)]
    with torch.no_grad():
        low, high = paired_bootstrap((tensors[0].float(), tensors[2].float()), (tensors[1].float(), tensors[2].float()), draws)
    assert [low, high] == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))


def test_a_finetuned_model_is_held_against_its_base(script, checkpoint, data_dir, tmp_path):
    options = ["--checkpoint_dir", checkpoint, "--data_dir", data_dir, "--out_dir", tmp_path / "run", "--train.max_steps", 3]
    done = script("finetune/lora.py", *options, "--train.learning_rate", 0.01, "--eval.samples", 0)
    expected = re.search(r"validation loss: (\S+) -> (\S+)", done.stdout)
    models = f"[{checkpoint},{tmp_path / 'run' / 'final'},{checkpoint}]"
    table = script("eval/compare.py", "--models", models, "--data_dir", data_dir, "--max_new_tokens", 8).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| /")]
    assert [row[0] for row in rows] == [str(checkpoint), str(tmp_path / "run" / "final"), str(checkpoint)]
    assert float(rows[0][4]) == pytest.approx(float(expected[1]), abs=1e-4)
    assert float(rows[1][4].split()[0]) == pytest.approx(float(expected[2]), abs=1e-4)
    assert rows[2][4] == f"{rows[0][4]} (+0.0000 to +0.0000)"
    done = script("eval/compare.py", "--models", f"[{checkpoint}]", "--data_dir", data_dir, check=False)
    assert done.returncode == 2
