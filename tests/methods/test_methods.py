"""All methods on all families: what trains, what stays, and what a saved result gives back."""

import json
import re

import pytest
import torch
from families import all_families, make_reference
from lightning.fabric import Fabric
from methods import METHODS, documents
from published import config_of_2023

from lit_llm.args.finetune import FinetuneArgs, TrainArgs
from lit_llm.checkpoint.adapters import attach_adapter, write_adapter, write_finetuned
from lit_llm.checkpoint.load_model import load_model
from lit_llm.data.batches import StepPlan, collate
from lit_llm.generation.generate import generate
from lit_llm.methods.adapter import Adapter
from lit_llm.methods.adapter_v2 import AdapterV2
from lit_llm.methods.full import Full
from lit_llm.methods.lora import LoRA
from lit_llm.methods.loss import next_token_loss
from lit_llm.model.config import Config
from lit_llm.model.gpt import GPT
from lit_llm.training.loop import Job, fit
from lit_llm.training.objective import Objective
from lit_llm.training.optimizers import make_optimizer
from lit_llm.training.preflight import first_epoch
from lit_llm.training.run_data import RunData
from lit_llm.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder of a tiny random checkpoint by family, made when first asked for."""
    made = {}

    def folder(case):
        if case.name not in made:
            made[case.name] = tmp_path_factory.mktemp("families") / case.name
            make_reference(case, made[case.name])
        return made[case.name]

    return folder


@pytest.mark.parametrize("case", all_families())
@pytest.mark.parametrize("name", METHODS)
def test_a_method_on_a_family(folders, tmp_path, case, name):
    """No-op at first; after a validation and two steps exactly what trains has moved; a saved adapter gives the same model."""
    folder, method = folders(case), METHODS[name]()
    base, model = load_model(folder), load_model(folder)
    ids = torch.arange(3, 23)[None] % case.vocab_size
    torch.manual_seed(0)
    method.attach(model)
    with torch.no_grad():
        start = base(ids)
        torch.testing.assert_close(model.eval()(ids), start, rtol=1e-5, atol=1e-5)

    examples = documents(case.vocab_size)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    gradients, idle = train_two_steps(model, method, examples, tmp_path)
    for n, parameter in model.named_parameters():
        if method.trainable(n) and not n.startswith(idle):
            assert gradients[n] > 0, f"{n} has no gradient"
            assert not torch.equal(parameter, before[n]), f"{n} has not moved"
        elif not method.trainable(n):
            assert torch.equal(parameter, before[n]), f"{n} is frozen and has moved"
    with torch.no_grad():
        trained = model.eval()(ids)
    assert (trained - start).abs().max() > 1e-4

    if isinstance(method, Full):
        write_finetuned(tmp_path, model, method, folder, None)
        loaded = load_model(tmp_path)
    else:
        write_adapter(tmp_path, model, method, folder, None)
        loaded = load_model(folder)
        attach_adapter(loaded, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids), trained, rtol=1e-5, atol=1e-5)
        cached = continue_greedily(loaded, ids[0].tolist(), 8)
        assert cached == recompute_greedily(model, ids[0].tolist(), 8)


def train_two_steps(model, method, examples, out_dir):
    """Through the real loop, a validation first. Returns the largest gradient of each parameter over both steps, and the names
    of experts that had no token in one of them."""
    largest, tokens = {}, {f"{n}.": [] for n, _ in model.named_modules() if re.search(r"experts\.\d+$", n)}
    for n, counts in tokens.items():
        count = lambda module, inputs, counts=counts: counts.append(len(inputs[0])) if module.training else None  # noqa: E731
        model.get_submodule(n[:-1]).register_forward_pre_hook(count)

    def watch(parameter, name):
        parameter.register_hook(lambda g: largest.update({name: max(largest.get(name, 0.0), g.abs().max().item())}))

    train = TrainArgs(global_batch_size=3, micro_batch_size=1, max_steps=2, learning_rate=0.01, lr_warmup_steps=0)
    fabric = Fabric(accelerator="cpu", devices=1)
    optimizer = make_optimizer(model, method, train, fabric.device)
    for n, parameter in model.named_parameters():
        if parameter.requires_grad:
            watch(parameter, n)
    objective, optimizer = fabric.setup(Objective(model, next_token_loss), optimizer)
    plan = StepPlan([len(e) for e in examples], 3, 1, 60, True, 0)
    data = RunData(examples, plan, first_epoch(plan), {"data": [collate(examples)]})
    job = Job(FinetuneArgs(train=train), method, data, RunFolder(out_dir))
    state = fit(fabric, objective, optimizer, job, lambda f: None)
    assert state.step == 2
    assert state.first_val_loss is not None
    idle = tuple(n for n, counts in tokens.items() if not (sum(counts[:3]) and sum(counts[3:])))
    assert len(idle) <= len(tokens) / 2
    return {n: largest.get(n, 0.0) for n, _ in model.named_parameters()}, idle


class NoEnd:
    eos_ids = frozenset()

    def decode_more(self, ids):
        return ""

    def token_bytes(self, i, before):
        return b""


def continue_greedily(model, ids, n):
    return generate(model, NoEnd(), [ids], max_new_tokens=n, temperature=0)[0].ids


def recompute_greedily(model, ids, n):
    ids = list(ids)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-n:]


# Counts


def n_trained(config, method):
    with torch.device("meta"):
        model = GPT(config)
    method.attach(model)
    return sum(p.numel() for name, p in model.named_parameters() if method.trainable(name))


COUNTS = {
    "full": lambda: Full(),
    "lora_qv_r8": lambda: LoRA(8),
    "lora_qv_r16": lambda: LoRA(16),
    "lora_all_and_head_r8": lambda: LoRA(8, targets="all-linear,head"),
    "adapter": lambda: Adapter(),
    "adapter_v2": lambda: AdapterV2(),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_trainable_parameters_of_82_published_models(shared_data, kind):
    """The counts are of Lit-GPT, with untied embeddings."""
    published = json.loads((shared_data / "config_facts" / "lit_gpt_2023.json").read_text())
    assert len(published) > 80
    counts = {}  # many fine-tunes share their base's sizes
    for row in published:
        hf = config_of_2023(row)
        key = json.dumps(hf, sort_keys=True)
        if key not in counts:
            counts[key] = n_trained(Config.from_hf(hf), COUNTS[kind]())
        assert counts[key] == row["counts"][kind], row["name"]


def test_trainable_parameters_of_falcon_7b():
    """As published with Lit-GPT."""
    hf = {"model_type": "falcon", "vocab_size": 65024, "tie_word_embeddings": False}
    config = Config.from_hf(hf)
    assert n_trained(config, Full()) == 7_217_189_760
    assert n_trained(config, Adapter()) == 1_365_330
    assert n_trained(config, AdapterV2()) == 3_839_186
    assert n_trained(config, LoRA()) == 3_506_176
