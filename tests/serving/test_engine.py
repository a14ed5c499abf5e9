"""The engine beside generation of each prompt alone: what joins and leaves the batch changes no answer."""

import copy
import dataclasses
import queue
import random
import threading

import pytest
import torch
from families import BY_NAME, make_reference
from serving import wait_until

import lit_llm
from lit_llm.cli import DEMO
from lit_llm.generation.decode import TokenScore
from lit_llm.generation.generate import generate
from lit_llm.generation.sampling import Sampling
from lit_llm.serving.engine import ClosedError, Engine, Job, QueueFullError, Task
from lit_llm.text.ending import Ending, raw_ending

EOS = Ending(frozenset([1]))  # of the demo's tokenizer


@pytest.fixture(scope="module")
def demo():
    return lit_llm.load(DEMO / "checkpoint", device="cpu")


@pytest.fixture
def make_engine(demo):
    engines = []

    def make(model=demo[0], tokenizer=demo[1], **options):
        limits = {"max_batch_size": 4, "max_length": model.config.block_size, "max_queue": 100, "timeout": 60, **options}
        engines.append(Engine(model, tokenizer, **limits))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close(grace=0)
        engine.join()


def gather(chunks, n):
    """Chunks of each of n jobs from a queue of them, until all have ended."""
    found = [[] for _ in range(n)]
    while not all(of_one and of_one[-1].finish for of_one in found):
        i, chunk = chunks.get(timeout=60)
        found[i].append(chunk)
    return found


def run(engine, jobs):
    chunks = queue.Queue()
    engine.submit(jobs, lambda i, chunk: chunks.put((i, chunk)))
    return gather(chunks, len(jobs))


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def prompts(tokenizer, n, seed=0):
    draw, text = random.Random(seed), (DEMO / "data" / "val.jsonl").read_text()
    return [
        tokenizer.encode(text[(start := draw.randrange(len(text) - 400)) : start + draw.randint(3, 300)])[:120]
        for _ in range(n)
    ]


def test_answers_in_a_batch_are_those_of_each_prompt_alone(demo, make_engine):
    """60 jobs of all lengths through 4 places, greedy and sampled."""
    jobs = [
        Job(ids, random.Random(i).randint(1, 60), Sampling(temperature=0.0 if i % 2 else 0.9, seed=i), EOS, continues=False)
        for i, ids in enumerate(prompts(demo[1], 60))
    ]
    for job, chunks in zip(jobs, run(make_engine(), jobs), strict=True):
        how = job.sampling
        (alone,) = generate(
            *demo, [job.prompt], max_new_tokens=job.max_new_tokens, temperature=how.temperature, seed=how.seed
        )  # fmt: skip
        assert text_of(chunks) == alone.text
        assert chunks[-1].finish == ("stop" if alone.ended else "length")


def test_scores_in_a_batch_are_those_of_each_prompt_alone(demo, make_engine):
    jobs = [Job(ids, 12, Sampling(0.0), EOS, n_top=n % 4) for n, ids in enumerate(prompts(demo[1], 8, seed=1))]
    for job, chunks in zip(jobs, run(make_engine(), jobs), strict=True):
        (alone,) = generate(*demo, [job.prompt], max_new_tokens=12, temperature=0, n_top=job.n_top)
        tokens = [token for chunk in chunks for token in chunk.tokens]
        assert "".join(token.text for token in tokens) == text_of(chunks)
        assert [t.score.log_prob for t in tokens] == pytest.approx([s.log_prob for s in alone.scores], abs=1e-4)
        assert [list(t.score.top) for t in tokens] == [list(s.top) for s in alone.scores]


def test_a_model_with_a_window_answers_as_alone(tmp_path, make_engine):
    """Rows of a ring cache are put and moved too."""
    from tiny import make_checkpoint

    folder = make_checkpoint(tmp_path / "m", "mistral", num_key_value_heads=2, sliding_window=16)
    model, tokenizer = lit_llm.load(folder)
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(2, 300, (n,), generator=draw).tolist() for n in (3, 40, 16, 17, 90, 5, 15)]
    jobs = [Job(prompt, 10 + 5 * i, Sampling(0.0), raw_ending(tokenizer), continues=False) for i, prompt in enumerate(ids)]
    for job, chunks in zip(jobs, run(make_engine(model, tokenizer, max_batch_size=3), jobs), strict=True):
        (alone,) = generate(model, tokenizer, [job.prompt], max_new_tokens=job.max_new_tokens, temperature=0)
        assert text_of(chunks) == alone.text


def test_a_row_outgrowing_the_short_longrope_table_equals_alone(tmp_path, make_engine):
    """Rows of other lengths run beside it, and the switch comes at another step for each."""
    from tiny import make_tokenizer

    case = BY_NAME["phi3-longrope"]
    reference = make_reference(dataclasses.replace(case, vocab_size=320), tmp_path)
    make_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    reference.generation_config.eos_token_id = None
    model, tokenizer = lit_llm.load(tmp_path)
    ids = [row[:n].tolist() for row, n in zip(torch.randint(2, 300, (3, 20)), (5, 12, 20), strict=True)]
    jobs = [Job(prompt, 24, Sampling(0.0), Ending(), continues=False) for prompt in ids]
    for job, chunks in zip(jobs, run(make_engine(model, tokenizer), jobs), strict=True):
        theirs = reference.generate(torch.tensor([job.prompt]), max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert text_of(chunks) == tokenizer.decode(theirs[0, len(job.prompt) :].tolist())


def test_tokens_end_before_a_stop_sequence_of_several_tokens(demo, make_engine):
    engine = make_engine()
    (ids,) = prompts(demo[1], 1, seed=5)
    (whole,) = run(engine, [Job(ids, 40, Sampling(0.0), EOS)])
    for start in range(3, 30, 4):
        stop = text_of(whole)[start : start + 9]
        (chunks,) = run(engine, [Job(ids, 40, Sampling(0.0), EOS.with_strings([stop, "never there"]), n_top=1)])
        expected = text_of(whole)[: text_of(whole).index(stop)]
        assert text_of(chunks) == expected
        assert "".join(token.text for chunk in chunks for token in chunk.tokens) == expected
        sent = ""
        for chunk in chunks:  # tokens are never ahead of the text
            sent += chunk.text
            assert sum(len(token.text) for c in chunks[: chunks.index(chunk) + 1] for token in c.tokens) <= len(sent)


@pytest.mark.parametrize("stop", [[], ["b\ufffd"], ["c"]])
@pytest.mark.parametrize("n_bytes", [1, 2, 3])
def test_tokens_join_to_a_text_that_ends_within_a_character(demo, n_bytes, stop):
    tokenizer, chunks = demo[1], []
    task = Task(
        Job(tokenizer.encode("a"), 20, Sampling(), EOS.with_strings(stop), n_top=0), tokenizer, chunks.append, deadline=1e9
    )
    ids = [*tokenizer.encode_more("b🦜")[: 1 + n_bytes], min(tokenizer.eos_ids)]
    for token in ids:
        task.take(token, TokenScore(0.0, {}))
        sent = "".join(token.text for chunk in chunks for token in chunk.tokens)
        assert text_of(chunks).startswith(sent)
    assert text_of(chunks) == sent == (" " if stop == ["b\ufffd"] else " b\ufffd")


def test_a_cancelled_job_makes_room_for_one_that_waits(demo, make_engine):
    engine = make_engine(max_batch_size=1, max_queue=1)
    (ids,) = prompts(demo[1], 1)
    started, chunks = threading.Event(), queue.Queue()
    long = engine.submit([Job(ids, 100, Sampling(1.0), EOS)], lambda i, chunk: started.set())
    assert started.wait(30)
    engine.submit([Job(ids, 3, Sampling(0.0), EOS)], lambda i, chunk: chunks.put((i, chunk)))
    with pytest.raises(QueueFullError):
        engine.submit([Job(ids, 3, Sampling(), EOS)], print)
    engine.cancel(long)
    gather(chunks, 1)
    wait_until(lambda: engine.n_unfinished() == 0)
    waiting = engine.submit([Job(ids, 100, Sampling(), EOS), Job(ids, 100, Sampling(), EOS)], lambda i, chunk: None)
    engine.cancel(waiting[1:])
    assert engine.n_unfinished() == 1
    engine.cancel(waiting)


def test_jobs_without_a_place_are_refused_before_any_work(make_engine, monkeypatch):
    engine = make_engine(max_batch_size=1, max_queue=1)
    monkeypatch.setattr(Sampling, "generator", None)
    with pytest.raises(QueueFullError):
        engine.submit([Job([5], 3, Sampling(), EOS)] * 3, print)


def test_a_job_ends_when_its_time_is_over(demo, make_engine):
    (ids,) = prompts(demo[1], 1)
    ends = run(make_engine(timeout=0.02, max_batch_size=1), [Job(ids[:100], 120, Sampling(1.0), Ending()) for _ in range(3)])
    assert {chunks[-1].finish for chunks in ends} == {"timeout"}


def test_a_job_counts_once_while_its_first_token_comes(demo, make_engine):
    engine, seen, done = make_engine(), [], threading.Event()
    (ids,) = prompts(demo[1], 1)

    def emit(i, chunk):
        seen.append(engine.n_unfinished())
        if chunk.finish:
            done.set()

    engine.submit([Job(ids, 1, Sampling(0.0), EOS)], emit)
    assert done.wait(30)
    assert set(seen) == {1}


def test_a_job_cancelled_during_another_prefill_emits_nothing(demo, make_engine):
    """Both are admitted at once, as the first one's prompt is scored the second is given up."""
    engine, chunks, tasks, submitted = make_engine(), queue.Queue(), [], threading.Event()
    (ids,) = prompts(demo[1], 1)

    def emit(i, chunk):
        assert submitted.wait(30)
        if chunk.prompt_scores:
            engine.cancel(tasks[1:])
        chunks.put((i, chunk))

    tasks += engine.submit([Job(ids, 5, Sampling(0.0), EOS, n_top=0, score_prompt=True), Job(ids, 5, Sampling(0.0), EOS)], emit)
    submitted.set()
    gather(chunks, 1)
    wait_until(lambda: engine.n_unfinished() == 0)
    assert chunks.empty()


def test_a_closed_engine_drains_jobs_and_accepts_no_more(demo, make_engine):
    (ids,) = prompts(demo[1], 1)
    for grace, finishes in ((30, ("stop", "length")), (0, ("closed",))):
        engine, chunks = make_engine(), queue.Queue()
        engine.submit([Job(ids, 60, Sampling(1.0, seed=2), EOS)], lambda i, chunk, chunks=chunks: chunks.put((i, chunk)))
        engine.close(grace)
        with pytest.raises(ClosedError):
            engine.submit([Job(ids, 3, Sampling(), EOS)], print)
        assert gather(chunks, 1)[0][-1].finish in finishes
        engine.join()


def test_a_fault_ends_the_jobs_that_it_hits_and_not_the_engine(demo, make_engine, capfd):
    """A token beyond the embedding is such a fault: the routes let none through."""
    engine = make_engine()
    (ids,) = prompts(demo[1], 1)
    bad, good = run(engine, [Job([10**6], 5, Sampling(0.0), EOS), Job(ids, 5, Sampling(0.0), EOS)])
    assert bad[-1].finish == "error"
    assert good[-1].finish == "length"
    assert "IndexError" in capfd.readouterr().err
    assert run(engine, [Job(ids, 5, Sampling(0.0), EOS)])[0][-1].finish == "length"


def test_a_fault_in_writing_one_job_ends_no_other(demo, make_engine, capfd):
    """A job that had ended is not told of it, and the one that it hits gets one last chunk."""
    engine, chunks = make_engine(), queue.Queue()
    (ids,) = prompts(demo[1], 1)

    def emit(i, chunk):
        if i == 1 and chunk.finish != "error" and chunk.n_new > 1:
            raise ArithmeticError("as if")
        chunks.put((i, chunk))

    engine.submit([Job(ids, n, Sampling(0.0), EOS) for n in (2, 8, 8)], emit)
    ends = [of_one[-1].finish for of_one in gather(chunks, 3)]
    assert ends == ["length", "error", "length"]
    wait_until(lambda: engine.n_unfinished() == 0)
    assert chunks.empty()
    assert "ArithmeticError" in capfd.readouterr().err


@pytest.mark.parametrize("options", [{}, {"n_top": 2}, {"n_top": 0, "score_prompt": True}])
def test_a_job_whose_logits_are_not_finite_fails_alone(demo, make_engine, capfd, options):
    """A token whose embedding is no number stands for what overflows."""
    model = copy.deepcopy(demo[0])
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    model.wte.weight[1500] = float("nan")
    ids, more = prompts(demo[1], 2)
    jobs = [Job(ids[:20], 8, Sampling(0.7), EOS, **options), Job((ids + more)[:150], 20, Sampling(0.7), EOS, **options)]
    engine = make_engine(model)
    expected = [text_of(chunks) for chunks in run(make_engine(), jobs)]
    for bad in ([1500, *ids], [*ids, *more, 1500]):
        failed, *found = run(engine, [dataclasses.replace(jobs[0], prompt=bad), *jobs])
        assert failed[-1].finish == "error"
        assert [text_of(chunks) for chunks in found] == expected
    found = run(engine, [jobs[1], jobs[0], jobs[0]])  # what was left in the cache harms none
    assert [text_of(chunks) for chunks in found] == [expected[1], expected[0], expected[0]]
    assert "logits are not finite" in capfd.readouterr().err
