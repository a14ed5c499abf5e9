"""Our numbers against those of lm-eval's own `hf` model on the same weights."""

import json

import pytest
import torch

pytest.importorskip("lm_eval")

from harness import FAMILIES, make_adapter, make_model, write_gsm8k, write_mmlu, write_task, write_truthfulqa

import lit_llm
from lit_llm.errors import OptionError
from lit_llm.evaluation.harness import HarnessModel
from lit_llm.evaluation.score import Span, score


@pytest.fixture(scope="module", autouse=True)
def _offline_and_quick(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        import datasets
        import lm_eval.evaluator

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)  # lists all packages: two seconds each time
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, tmp_path_factory, shared_data):
    folder, theirs = make_model(tmp_path_factory.mktemp("models") / request.param, request.param, shared_data)
    return folder, theirs


def run(model, tasks, folder, **options):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder, include_defaults=False)
    return simple_evaluate(model=model, tasks=tasks, task_manager=manager, bootstrap_iters=0, log_samples=True, **options)


def ours(folder, batch_size=8, **loading):
    return HarnessModel(*lit_llm.load(folder, **loading), folder, batch_size)


def metrics(results):
    """Values of all tasks, without what says how they were made."""
    return {
        task: {name: value for name, value in row.items() if name.split(",")[0] in ("acc", "acc_norm", "exact_match")}
        for task, row in results["results"].items()
    }


def assert_equal(found, expected):
    assert metrics(found) == metrics(expected)
    assert any(metrics(expected).values())
    for task, rows in expected["samples"].items():
        for mine, other in zip(found["samples"][task], rows, strict=True):
            assert mine["doc_id"] == other["doc_id"]
            for (a,), (b,) in zip(mine["resps"], other["resps"], strict=True):
                if isinstance(b, str):
                    assert a == b
                else:
                    assert a[0] == pytest.approx(b[0], abs=1e-4)
                    assert a[1] == b[1]


def test_five_shot_mmlu_equals_the_harness_own_model(models, tmp_path, shared_data):
    """All 57 subjects on one family; a quarter of them on the others. Some prompts exceed the context and are cut."""
    folder, theirs = models
    tasks = write_mmlu(tmp_path, shared_data, 5)
    assert len(tasks) == 57
    tasks = tasks if folder.name == "llama" else tasks[::4]
    assert_equal(run(ours(folder), tasks, tmp_path), run(theirs, tasks, tmp_path))


def test_long_and_generated_answers_equal_the_harness_hf_model(models, tmp_path, shared_data):
    folder, theirs = models
    tasks = [write_truthfulqa(tmp_path, shared_data, 25), write_gsm8k(tmp_path, shared_data, 6)]
    expected = run(theirs, tasks, tmp_path)
    assert_equal(run(ours(folder, 3), tasks, tmp_path), expected)
    stop = expected["samples"]["our_gsm8k"][0]["resps"][0][0][40:42]  # now with a stop sequence that does occur
    (tmp_path / "stopped").mkdir()
    task = write_gsm8k(tmp_path / "stopped", shared_data, 6, until=[stop, "Q:"])
    found, expected = (run(model, [task], tmp_path / "stopped") for model in (ours(folder, 3), theirs))
    assert_equal(found, expected)
    assert len(found["samples"]["our_gsm8k"][0]["resps"][0][0]) <= 40


def test_a_trained_model_equals_the_harness_own_model(tmp_path, shared_data):
    """stories260K has 512 positions: five shots are cut from the left."""
    from lm_eval.models.huggingface import HFLM

    folder = shared_data / "stories260K"
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8)
    tasks = [write_truthfulqa(tmp_path, shared_data, 40), write_gsm8k(tmp_path, shared_data, 6)]
    tasks += write_mmlu(tmp_path, shared_data, 4)[::10]
    assert_equal(run(ours(folder), tasks, tmp_path), run(theirs, tasks, tmp_path))


@pytest.mark.parametrize(
    ("quantization", "theirs"),
    [
        (None, {}),
        ("bnb.nf4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        ("bnb.int8", {"load_in_8bit": True}),
    ],
)
def test_an_unmerged_adapter_equals_peft_in_the_harness(tmp_path, shared_data, quantization, theirs):
    """bitsandbytes multiplies in bfloat16 or int8 on a CPU: transformers turns what it quantized back into float32."""
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder, plain = make_model(tmp_path / "model", "llama", shared_data, hidden_size=128, intermediate_size=192)
    adapter = make_adapter(folder, tmp_path / "adapter")
    how = {"quantization_config": BitsAndBytesConfig(**theirs)} if theirs else {}
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    base = base.dequantize().float() if theirs else base
    peft = PeftModel.from_pretrained(base, adapter / "peft").eval()
    reference = HFLM(pretrained=peft, tokenizer=plain.tokenizer, batch_size=8, device="cpu", max_length=2048)
    tasks = [*write_mmlu(tmp_path, shared_data, 2)[::28], write_truthfulqa(tmp_path, shared_data, 15)]
    tasks.append(write_gsm8k(tmp_path, shared_data, 4))
    found = run(ours(folder, adapter_dir=adapter, quantize=quantization), tasks, tmp_path)
    expected = run(reference, tasks, tmp_path)
    assert_equal(found, expected)
    parts = [{"quantize": quantization}, *([{"adapter_dir": adapter}] if quantization else [])]
    for part in parts:  # neither the adapter nor the quantization is without effect
        with pytest.raises(AssertionError):
            assert_equal(run(ours(folder, **part), tasks, tmp_path), expected)


def test_texts_that_share_a_beginning_cost_it_once(shared_data):
    """Scores with and without sharing, and the tokens that the model really computes."""
    model, tokenizer = lit_llm.load(shared_data / "stories260K")
    start = tokenizer.encode("Once upon a time, there was a little girl named Lily. " * 15)
    ends = [tokenizer.encode(f"{name} said {word}.", bos=False) for name in ("Tom", "Lily") for word in ("no", "hello", "yes")]
    spans = [Span(start + end, n) for end in ends for n in (1, len(end))]
    alone = [score(model, [span], 1)[0] for span in spans]
    counted = []
    model.wte.register_forward_hook(lambda module, inputs, output: counted.append(inputs[0].numel()))
    together = score(model, spans, 4)
    assert sum(counted) < len(start) + 6 * max(map(len, ends))
    for a, b in zip(alone, together, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)
        assert a.greedy == b.greedy


def test_tasks_sampling_at_tiny_temperature_are_greedy(shared_data):
    model = ours(shared_data / "stories260K")
    prompt, how = [model.tokenizer.encode("Once upon a time")], {"until": ["."], "max_gen_toks": 20}
    greedy = model._generate(prompt, {**how, "do_sample": False})
    assert model._generate(prompt, {**how, "do_sample": True, "temperature": 1e-7}) == greedy
    assert model._generate(prompt, {**how, "do_sample": True, "temperature": 5.0}) != greedy
    assert model._generate(prompt, {**how, "num_beams": 1}) == greedy
    with pytest.raises(OptionError, match="num_beams"):
        model._generate(prompt, {**how, "num_beams": 2})


def test_nothing_is_shared_where_keys_depend_on_the_length(tmp_path):
    from tiny import hf_model, make_checkpoint

    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 64, "pad_token_id": 0}
    folder = make_checkpoint(tmp_path / "model", "phi3", **changes)
    model, theirs = lit_llm.load(folder)[0], hf_model("phi3", **changes)
    start = torch.randint(2, 300, (60,)).tolist()
    spans = [Span(start + torch.randint(2, 300, (n,)).tolist(), 3) for n in (4, 90, 91, 92, 93, 94, 95)]
    for span, found in zip(spans, score(model, spans, 4), strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([span.ids[:-1]])).logits[0, -3:]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(span.ids[-3:])[:, None])[:, 0]
        assert found.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_multiple_choice_is_faster_than_the_harness_own_model():
    """What eval/benchmark.py measures, on a small model. On the CPU of both in one process, at equal batch size."""
    from lit_llm.bench.eval_speed import TASKS, TOLERANCE, compare_speed

    shape = {
        "model_type": "llama", "vocab_size": 1536, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
        "num_attention_heads": 8, "max_position_embeddings": 2048,
    }  # fmt: skip
    found = compare_speed(shape, repetitions=1, n_questions=12)
    assert found.keys() == TASKS.keys()
    assert all(0 <= row["difference"] < TOLERANCE for row in found.values())
    assert found["five_shots"]["ratio"] > 1.5


def test_the_script_writes_the_results_of_the_harness(script, tmp_path, checkpoint):
    write_task(
        tmp_path, "colours", {"test": [{"q": "the", "a": ["red", "blue house"]}, {"q": "a cat sees", "a": ["dog", "tree"]}]},
        output_type="multiple_choice", doc_to_text="{{q}}", doc_to_choice="a", doc_to_target=0,
        metric_list=[{"metric": "acc"}],
    )  # fmt: skip
    done = script(
        "eval/lm_eval_harness.py", "--checkpoint_dir", checkpoint, "--tasks", "[colours]", "--include_path", tmp_path,
        "--output_file", "out/results.json", "--log_samples", "--quantize", "bnb.nf4",
    )  # fmt: skip
    assert "|colours|" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 <= results["results"]["colours"]["acc,none"] <= 1
    assert {"results", "configs", "versions", "n-shot", "n-samples", "config"} <= results.keys()
    assert len((tmp_path / "out" / "samples_colours.jsonl").read_text().splitlines()) == 2
    done = script("eval/lm_eval_harness.py", "--checkpoint_dir", checkpoint, "--tasks", "[hellaswagg]", check=False)
    assert done.returncode == 2
    assert "hellaswag" in done.stderr


CHAT = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<|a|>{% endif %}"


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chats_are_rendered_as_transformers_does(tmp_path, add_generation_prompt):
    from tiny import make_checkpoint
    from transformers import AutoTokenizer

    folder = make_checkpoint(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(CHAT)
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is"}]
    expected = theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt
    )
    assert ours(folder).apply_chat_template(messages, add_generation_prompt) == expected
