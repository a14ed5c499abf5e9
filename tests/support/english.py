"""Phrases that are not idiomatic English, and the texts of the project in which to look for them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Pattern -> replacement. Patterns ignore case, except in the groups marked (?-i:...).
FOREIGN = {
    r"\b(tells?|telling|told)\b": "report, print, show",
    r"\b(stands?|standing|stood)\b": "is, occurs, is listed",
    r"\b(lies?|lain)\b": "is in",
    r"\b(bears?|bore|borne)\b": "has",
    r"\b(go|goes|going|gone|went) on\b": "continue, resume",
    r"\b(anew|afresh)\b": "again, from scratch",
    r"\bbesides?\b": "next to, also",
    r"\bbut for\b": "except",
    r"\b(so|as) many\b(?!\W+(?:\w+\W+){0,2}as\b)": "that many, the same number of",
    r"\b(un)?likeliest\b": "most likely",
    r"\bby heart\b": "memorized",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bwhoever\b": "name the person or program",
    r"(?<!there )\b(is|are|was|were) no (?!longer|more|less|fewer|such)[a-z]+": "is not a",
    r"\b(leaves?|leaving|left) out\b": "omit, ignore",
    r"\btoo (long|short|large|small|big|deep|early|late) an? \w+": "an example that is too long",
    r"\b(judge[sd]?|judging)\b|\bheld against\b": "check, compare",
    r"\bwhole numbers?\b": "integer",
    r"(?-i:(?<=[.;:] )(?:Take|Give|Leave)\b)": "Use, Specify, Omit",
    r"(?-i:(?:^|(?<=[.!?:] ))(?:What|Of|Where|Whether|Whoever)\b)(?![^.!?]*\?)": "begin with the subject",
}
IN_PROSE = FOREIGN | {
    r"\b(in|at|on|from|by|of|with|to|for|after|before|under|over) which\b": "a clause without a preposition",
}


def markdown_texts(path: Path) -> Iterator[str]:
    """Paragraphs, list items and table cells, without code."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "`code`", re.sub(r"^#+ .*$", "", text, flags=re.MULTILINE))
    for block in re.split(r"\n\s*\n|^[-*] |^\d+\. |^\|| \||\|$", text, flags=re.MULTILINE):
        yield " ".join(block.split())


def python_texts(path: Path) -> Iterator[str]:
    """Docstrings, messages and other strings. The values of an f-string count as `{}`."""
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            todo += [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
            yield from re.split(r"\n\s*\n", "".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.split(r"\n\s*\n", node.value)
        else:
            todo += ast.iter_child_nodes(node)


class Found(NamedTuple):
    phrase: str
    around: str
    use: str


def foreign_phrases(path: Path) -> list[Found]:
    """Each phrase of a .md or .py file that is in FOREIGN, or for .md in IN_PROSE."""
    texts, phrases = (markdown_texts(path), IN_PROSE) if path.suffix == ".md" else (python_texts(path), FOREIGN)
    found = []
    for text in (" ".join(text.split()) for text in texts):
        for pattern, use in phrases.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                found.append(Found(match[0], text[max(match.start() - 30, 0) : match.end() + 30], use))
    return found
