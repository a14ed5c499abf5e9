"""What a data folder trains, shown to a person."""

import sys

from lit_llm.args.data import InspectDataArgs
from lit_llm.args.finetune import TrainArgs
from lit_llm.checkpoint.load import load_tokenizer
from lit_llm.checkpoint.read import read_config
from lit_llm.data.batches import Plan
from lit_llm.data.prepare import prepared
from lit_llm.data.token_cache import style_of
from lit_llm.preflight import inspect, load_examples, show


def inspect_data(args: InspectDataArgs) -> None:
    """Print some examples and then what finetuning tells before it starts.

    Raises:
        ValueError: if finetuning would refuse the data.
    """
    config = read_config(args.checkpoint_dir)
    tokenizer = load_tokenizer(args.checkpoint_dir, config)
    data_dir = prepared(args.data_dir) if args.data_dir.is_file() else args.data_dir
    paths = [data_dir / f"{name}.jsonl" for name in (args.split, "val")]
    style = args.prompt_style or style_of(paths[0], tokenizer)
    limit = min(args.max_seq_length or config.block_size, config.block_size)
    found = [load_examples(path, style, tokenizer, args.mask_prompt, args.train_on, limit) for path in paths if path.is_file()]
    examples, n_dropped = found[0]
    for number, example in enumerate(examples[: args.num_examples], 1):
        print(f"--- example {number} of {len(examples)}")
        print(show(example, tokenizer, sys.stdout.isatty()))
    val_examples = found[1][0] if args.split == "train" and len(found) > 1 else []
    lengths, train = [len(example) for example in examples], TrainArgs()
    plan = Plan(lengths, train.global_batch_size, train.micro_batch_size, max(lengths), train.packing, 0)
    preflight = inspect(examples, val_examples, n_dropped, style, tokenizer, plan)
    print(f"---\nstyle           {style}\n{preflight.text()}")
    preflight.check()
