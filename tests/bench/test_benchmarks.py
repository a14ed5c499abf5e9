"""Run what eval/benchmark.py measures on models and data too small for meaningful figures, to check that it works."""

import asyncio
import json

import pytest
import torch
from tiny import make_checkpoint

from lit_llm.args.measure import BenchmarkArgs
from lit_llm.bench import decode_speed, load_memory, packing_speed, prepare_speed, rounding_error, serve_load, train_speed
from lit_llm.bench.measuring import in_new_process
from lit_llm.bench.train_speed import ragged_examples
from lit_llm.model.config import Config

TINY = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 1024,
}  # fmt: skip


def test_decoding_beside_transformers(monkeypatch):
    monkeypatch.setattr(decode_speed, "N_NEW", 12)
    monkeypatch.setattr(decode_speed, "in_new_process", lambda function, *arguments: function(*arguments))
    found = decode_speed.compare(TINY, repetitions=1)
    names = {"lit_llm", "lit_llm fp16", "lit_llm int8", "transformers"}
    assert set(found["tokens_per_cpu_second"]) == {"batch 1", "batch 8"}
    for by_name in found["tokens_per_cpu_second"].values():
        assert names <= set(by_name) and all(speed["decode"] > 0 and speed["prefill"] > 0 for speed in by_name.values())
    assert names <= set(found["memory_mb"])
    assert decode_speed.as_markdown({"tiny": found}).count("x transformers") == 6


def test_share_of_the_bandwidth():
    found = decode_speed.bandwidth_share(Config.from_hf(TINY), torch.device("cpu"), torch.float32, n_new=8)
    assert 0 < found["share_of_limit"] < 1
    weights = 4 * (256 * 32 + 2 * (4 * 32**2 + 3 * 32 * 64 + 2 * 32) + 32)  # the head, the blocks, and the last norm
    cache = 2 * 2 * 32 * 4 * (decode_speed.N_PROMPT + 9)
    assert abs(found["gb_per_token"] - (weights + cache) / 1e9) < 0.1 * (weights + cache) / 1e9


def test_training_beside_peft(monkeypatch):
    def in_this_process(function, *arguments):  # which may have grown before
        return 1 + function(*arguments)

    monkeypatch.setattr(train_speed, "in_new_process", in_this_process)
    found = train_speed.compare_speed(TINY, repetitions=1, n_examples=4)
    ours, peft = (found["contenders"][name] for name in ("lit_llm", "peft"))
    assert abs(ours["first_loss"] - peft["first_loss"]) < 1e-4
    assert ours["tokens_per_cpu_second"] > 0
    assert "peft" in found["lit_llm_over_peer"]
    assert train_speed.as_markdown({"tiny": found}).count("x (") == len(found["contenders"]) - 1


def test_preparation_by_rows_and_from_the_cache(tmp_path, capsys):
    prepare_speed.write_rows(tmp_path / "rows.jsonl", 3000)
    found = {}
    for step in prepare_speed.STEPS:
        found[step] = prepare_speed.run(str(tmp_path), step)["made"]
        printed = capsys.readouterr()
        assert ("is up to date" in printed.out) == (step == "prepare again")
        assert ("from train-tokens" in printed.err) == (step == "read the cache")
    assert found["curate"] == found["prepare again"] == 3000
    assert found["tokenize"] == found["read the cache"] > 100 * 2000


def test_a_process_of_its_own_returns_what_the_function_does(tmp_path):
    prepare_speed.write_rows(tmp_path / "rows.jsonl", 50)
    found = in_new_process(prepare_speed.run, str(tmp_path), "curate")
    assert found["made"] == 50
    assert found["cpu_seconds"] > 0


def test_layouts_of_a_step_by_speed(tmp_path):
    steps = packing_speed.layout_steps(make_checkpoint(tmp_path / "tiny"), 512)
    losses = [step(ragged_examples(6, 256, seed=0)) for step in steps.values()]
    assert steps.keys() == packing_speed.LAYOUTS.keys()
    assert losses == pytest.approx(losses[:1] * 3, abs=0.01)  # the mean per label; each step changes the weights a little


def test_memory_of_loading(tmp_path):
    found = in_new_process(load_memory.load_case, str(make_checkpoint(tmp_path / "tiny")), "float32", as_user=True)
    assert found["weights_mb"] > 0
    assert found["aim_mb"] == pytest.approx(1.1 * found["weights_mb"])
    assert isinstance(found["met"], bool)


def test_answers_to_many_clients_equal_those_to_one(monkeypatch, tmp_path):
    pytest.importorskip("fastapi")
    monkeypatch.setattr(serve_load, "N_QUESTIONS", 4)
    with serve_load.server(tmp_path / "log") as (port, process):
        found = asyncio.run(serve_load.send(port, serve_load.questions(), 8, 2, seed=0))
        assert serve_load.resident_mb(process.pid) > 10
    assert found.seconds and found.n_tokens and not found.wrong


def test_rounding_error_of_each_format(tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "org" / "tiny")
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"instruction": f"the {word} cat", "output": "sees a bird"} for word in ("red", "big", "old")]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rounding_error.measure(BenchmarkArgs(check="rounding_error", checkpoint_dir=checkpoint, data_dir=data, n_examples=2))
    found = {row["weights"]: row for row in json.loads(capsys.readouterr().out)["results"]}
    assert set(found) == set(rounding_error.FORMATS)
    kl = {name: row["kl"] for name, row in found.items()}
    assert 0 <= kl["--cpu_weights fp16"] < kl["--cpu_weights int8"] and kl["--cpu_weights fp16"] < kl["--quantize bnb.nf4"]
    assert all(0 < row["same_token"] <= 1 for row in found.values())
