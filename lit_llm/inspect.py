"""What a data folder trains, shown to a person."""

import sys
from collections import Counter

from lit_llm.args.data import InspectDataArgs
from lit_llm.checkpoint import load_tokenizer, read_config
from lit_llm.data import iter_records
from lit_llm.prompts import default_style
from lit_llm.tokens import examples_of, shown


def inspect_data(args: InspectDataArgs) -> None:
    """Print some examples, trained tokens in green or between ⟦ and ⟧, and what there is of everything."""
    tokenizer = load_tokenizer(args.checkpoint_dir, read_config(args.checkpoint_dir))
    path = args.data_dir / f"{args.split}.jsonl"
    is_text = all("text" in record for record in iter_records(path))
    style = args.prompt_style or default_style(tokenizer, is_text)
    examples = examples_of(path, style, tokenizer, args.mask_prompt, args.train_on)
    for number, record in zip(range(1, args.num_examples + 1), iter_records(path), strict=False):
        print(f"--- example {number} of {len(examples)}")
        print(shown(record, style, tokenizer, args.mask_prompt, args.train_on, sys.stdout.isatty()))
    documents = [document for example in examples for document in example.documents]
    ids = Counter(i for document in documents for i in document.ids.tolist())
    lengths = sorted(map(len, documents))
    n_trained, n_tokens = sum(e.n_labels for e in examples), sum(lengths)
    ended = sum(bool(document.trained[-1]) and int(document.ids[-1]) in tokenizer.eos_ids for document in documents)
    kinds = {document.ids.numpy().tobytes() for document in documents}
    print("---")
    print(f"style: {style}")
    print(f"examples: {len(examples):,}, of them {len(documents) - len(kinds):,} duplicates")
    print(f"tokens: {n_tokens:,}, of them {n_trained:,} trained ({n_trained / n_tokens:.1%})")
    print(f"tokens per document: shortest {lengths[0]}, median {lengths[len(lengths) // 2]}, longest {lengths[-1]}")
    for name, i in (("BOS", tokenizer.bos_id), ("EOS", tokenizer.eos_id)):
        print(f"{name}: {ids[i]:,}" if i is not None else f"{name}: the tokenizer has none")
    print(f"documents that end in a trained EOS: {ended:,} of {len(documents):,}")
