"""The report of a run: one file, complete, without a request to anywhere, and safe against what stands in the data."""

import json
import re
from html.parser import HTMLParser

import pytest
from webdriver import browser

from lit_llm.training.report import write_report


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for name, v in attrs if name in ("src", "href", "xlink:href") and not v.startswith("#")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkpoint, data_dir):
    import subprocess
    import sys

    from conftest import REPOSITORY

    out_dir = tmp_path_factory.mktemp("runs") / "reported"
    options = [f"--checkpoint_dir={checkpoint}", f"--data_dir={data_dir}", f"--out_dir={out_dir}", "--lora.r=4"]
    command = [
        sys.executable,
        "finetune/lora.py",
        *options,
        "--train.global_batch_size=8",
        "--eval.max_new_tokens=8",
        "--eval.exact_match=4",
    ]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return out_dir


def test_a_run_leaves_a_self_contained_report(finished):
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert not page.addresses
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert not re.search(r"url\((?!#)", text)
    assert page.tags.count("svg") == 5
    for expected in (
        "--lora.r",
        "validation loss: ",
        "exact match on held-out prompts: ",
        "examples        20 of 20",
        "torch",
        "finetuned",
        "trained tokens",
    ):
        assert expected in page.text
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("width", "n_columns"), [(1280, 2), (390, 1)])
def test_a_browser_shows_the_report_offline_without_side_scroll(finished, tmp_path, width, n_columns):
    """On a phone the cells of a row stand below each other, and each says what it is."""
    with browser(tmp_path, width, 900) as page:
        page.open(f"file://{finished}/report.html")
        assert page.run("return performance.getEntriesByType('resource').length") == 0
        assert page.run("return document.documentElement.scrollWidth") == width
        lefts = "return new Set([...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().left)).size"
        assert page.run(lefts, "figure") == n_columns
        assert page.run(lefts, "table:first-of-type td") == (1 if width == 390 else 4)
        assert page.run("return getComputedStyle(document.querySelector('td'), '::before').content") == (
            '"prompt: "' if width == 390 else "none"
        )


def test_text_of_the_data_stays_text(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,train_loss,val_loss,learning_rate,grad_norm,tokens_per_second,peak_memory_gb\n0,,3.5,,,,\n1,3.2,,0.1,1.0,9,1\n"
    )
    (tmp_path / "environment.json").write_text(json.dumps({"python": "3"}))
    evil = "<script>alert('&')</script>"
    write_report(tmp_path, evil, [evil], evil, [(evil, evil)], [(evil, evil, evil, evil)])
    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert page.text.count(evil) == 10
