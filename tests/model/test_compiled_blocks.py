"""torch.compile of the blocks: the same numbers, no new compilation for other lengths, and runs that resume."""

from types import SimpleNamespace

import pytest
import torch
from conftest import needs_compiler
from methods import randomize
from safetensors.torch import load_file
from tiny import make_checkpoint

from lit_llm.args.finetune import EvalArgs, LoRAFinetuneArgs, TrainArgs
from lit_llm.args.generate import GenerateArgs
from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import collate
from lit_llm.data.examples import Example
from lit_llm.generation.answer_prompts import continue_prompts
from lit_llm.methods.inject import freeze
from lit_llm.methods.lora import LoRA
from lit_llm.methods.loss import next_token_loss
from lit_llm.model.compiled_blocks import compile_blocks
from lit_llm.training.finetune import finetune
from lit_llm.training.probe import _plain


def loss_and_gradients(model, lengths):
    draw = torch.Generator().manual_seed(len(lengths))
    examples = [Example(torch.randint(320, (n,), generator=draw).int(), torch.ones(n, dtype=torch.bool)) for n in lengths]
    model.zero_grad()
    batch = collate(examples)
    loss = next_token_loss(model, batch)[0] / batch.n_targets
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@needs_compiler
def test_compiled_blocks_keep_loss_and_gradient_at_any_length(checkpoint):
    """Compiled once: the number of documents and their lengths do not matter."""
    model, method = load_model(checkpoint), LoRA(dropout=0.0)
    torch.manual_seed(0)
    method.attach(model)
    freeze(model, method)
    randomize(model)
    batches = [(5, 20, 33), (7,), (60, 12, 9, 44, 3), (20, 33)]
    expected = [loss_and_gradients(model, lengths) for lengths in batches]
    torch._dynamo.reset()
    compile_blocks(model)
    torch._dynamo.utils.counters.clear()
    n_graphs = []
    for lengths, (loss, gradients) in zip(batches, expected, strict=True):
        found_loss, found = loss_and_gradients(model, lengths)
        n_graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        assert found_loss == pytest.approx(loss, rel=1e-5)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)
    assert n_graphs == [n_graphs[0]] * 4 and n_graphs[0] > 0


@needs_compiler
def test_a_compiled_run_with_dropout_resumes_bit_identical(tmp_path, data_dir):
    checkpoint = make_checkpoint(tmp_path / "one_layer", num_hidden_layers=1)

    def go(resume):
        train = TrainArgs(
            epochs=2, global_batch_size=4, micro_batch_size=2, learning_rate=1e-2, save_interval=3, probe=False, compile=True
        )
        args = LoRAFinetuneArgs(
            checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=tmp_path / "run", accelerator="cpu", resume=resume,
            train=train, eval=EvalArgs(interval=None, samples=1, max_new_tokens=4),
        )  # fmt: skip
        finetune(args, LoRA(dropout=0.1))
        return load_file(tmp_path / "run" / "final" / "adapter.safetensors")

    expected = go(None)
    again = go(str(tmp_path / "run" / "step-000003"))
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert expected.keys() == again.keys()


def test_the_probe_tells_the_time_without_that_of_compiling(checkpoint, data_dir, tmp_path, monkeypatch, capsys):
    """On a clock that only the blocks advance: the first one, which compiles, by more."""
    clock, passes = [0.0], []
    monkeypatch.setattr("lit_llm.training.probe.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def compile_slowly(model):
        run_block = model.run_block

        def compiled(*args, **kwargs):
            clock[0] += 0.5 if passes else 150.0
            passes.append(1)
            return run_block(*args, **kwargs)

        model.run_block = compiled

    monkeypatch.setattr("lit_llm.training.finetune.compile_blocks", compile_slowly)
    args = LoRAFinetuneArgs(
        checkpoint_dir=checkpoint, data_dir=data_dir, out_dir=tmp_path / "run", accelerator="cpu",
        train=TrainArgs(compile=True, max_steps=1), eval=EvalArgs(interval=None, samples=0, initial=False),
    )  # fmt: skip
    finetune(args, LoRA())
    assert "tokens, 1 s, " in capsys.readouterr().err  # two blocks
    assert _plain(150.4) == "150" and _plain(1234.5) == "1,234" and _plain(0.0321) == "0.032"


def test_without_a_compiler_nothing_is_started(monkeypatch, tmp_path, checkpoint, data_dir):
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    options = {"checkpoint_dir": checkpoint, "accelerator": "cpu"}
    args = LoRAFinetuneArgs(data_dir=data_dir, out_dir=tmp_path / "run", train=TrainArgs(compile=True), **options)
    with pytest.raises(ValueError, match=r"`train\.compile`: .*no-such-compiler.*Install a C\+\+ compiler"):
        finetune(args)
    assert not (tmp_path / "run").exists()
    torch._dynamo.reset()
    with pytest.raises(ValueError, match=r"`compile`: .*no-such-compiler.*Install a C\+\+ compiler"):
        continue_prompts(GenerateArgs(prompt="x", compile=True, **options))
