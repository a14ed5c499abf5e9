"""Mutated files of prompts: prompts to answer and to continue, or an error that names the file and the line."""

import json

from fuzz import fuzz, mutated, mutated_bytes, result_or_clear_error

from lit_llm.errors import DataError
from lit_llm.generation.prompt_file import as_messages, as_text, read_lines

PROMPTS = [
    "the red cat",
    {"instruction": "say", "input": "it", "system": "be brief"},
    {"prompt": "the big dog"},
    {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"},
                  {"role": "user", "content": "d", "name": "e"}], "tools": [{"type": "function", "function": {"name": "f"}}]},
]  # fmt: skip


def as_lines(prompts):
    return "".join(json.dumps(prompt) + "\n" for prompt in prompts).encode() if isinstance(prompts, list) else b"[" * 20_000


@fuzz(mutated(PROMPTS).map(as_lines) | mutated(PROMPTS).map(as_lines).flatmap(mutated_bytes))
def test_mutated_prompts(tmp_path, content):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with result_or_clear_error("prompts.jsonl"):
        prompts = read_lines(path)
        for prompt in prompts:
            for use in (as_messages, as_text):
                with result_or_clear_error(errors=(DataError,)):
                    use(prompt)
