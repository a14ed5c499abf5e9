"""Out-of-memory errors that name the micro-batch."""

from collections.abc import Iterator
from contextlib import contextmanager

from lit_llm.data.batches import MicroBatch
from lit_llm.errors import is_out_of_memory


class OutOfMemoryError(MemoryError):
    """Says which micro-batch did not fit."""


@contextmanager
def naming_the_batch(batch: MicroBatch) -> Iterator[None]:
    """Turn a failed allocation into one that names the micro-batch."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        n_tokens, longest = batch.ids.size(1), max(batch.lengths)
        raise OutOfMemoryError(
            f"{len(batch.lengths)} documents, {n_tokens:,} tokens, the longest {longest:,}; {batch.targets.numel():,} labels"
        ) from error
