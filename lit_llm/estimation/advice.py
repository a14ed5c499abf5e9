"""Memory that a run needs, by term, and the options that reduce it."""

from dataclasses import replace

from lit_llm.args.finetune import FinetuneArgs
from lit_llm.estimation.step_memory import STATE_BYTES, estimate
from lit_llm.methods.method import Method
from lit_llm.model.config import Config


def estimate_for(args: FinetuneArgs, config: Config, method: Method, max_tokens: int) -> dict[str, int]:
    """Bytes by term of the run that `args` ask for, at micro-batches of `micro_batch_size` x `max_tokens`."""
    max_tokens //= method.documents_per_example
    sizes = args.train.micro_batch_size, args.train.global_batch_size
    assert args.precision
    found = estimate(
        config, method, min(sizes), max_tokens, sizes[1] > sizes[0], args.train.activation_checkpointing, args.precision,
        args.quantize,
    )  # fmt: skip
    memory = dict(found["memory_bytes"])
    state = int(STATE_BYTES[args.train.optimizer] * found["trainable_params"])
    for term in ("above_model", "total"):
        memory[term] += state - memory["optimizer"]
    return {**memory, "optimizer": state}


def terms(memory: dict[str, int]) -> str:
    """One line: GB by term."""
    return "estimate in GB: " + ", ".join(f"{name.replace('_', ' ')} {n / 1e9:.2f}" for name, n in memory.items())


def explain(args: FinetuneArgs, config: Config, method: Method, max_tokens: int, where: str) -> str:
    """Explain why a micro-batch did not fit: the largest term, and the saving of each option."""
    memory = estimate_for(args, config, method, max_tokens)
    largest = max(("weights", "adapter", "gradients", "optimizer", "activations"), key=lambda name: memory[name])
    lines = [
        f"out of memory in a micro-batch of {where}",
        f"{terms(memory)}; the largest is {largest}",
    ]
    ways: list[tuple[str, FinetuneArgs, int]] = []
    half = args.train.micro_batch_size // 2
    if half:
        fewer = replace(args, train=replace(args.train, micro_batch_size=half))
        ways.append((f"`train.micro_batch_size` {half}", fewer, max_tokens))
    if not args.train.activation_checkpointing:
        recomputed = replace(args, train=replace(args.train, activation_checkpointing=True))
        ways.append(("`train.activation_checkpointing`", recomputed, max_tokens))
    if args.quantize is None and not method.trains_base:
        ways.append(("`quantize` bnb.nf4", replace(args, quantize="bnb.nf4"), max_tokens))
    ways.append((f"`max_seq_length` {max_tokens // 2} (longer examples are dropped)", args, max_tokens // 2))
    for way, other, longest in ways:
        saved = memory["total"] - estimate_for(other, config, method, longest)["total"]
        if saved > 0:
            lines.append(f"{way} would save {saved / 1e9:.2f} GB")
    return "\n".join(lines)
