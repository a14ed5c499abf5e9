"""The chat page in a browser, against the server on the demo model."""

import re

import pytest
from conftest import REPOSITORY
from serving import alone, serving, wait_until
from tiny import make_endless_checkpoint
from webdriver import browser

import lit_llm
from lit_llm.args.serve import ServeArgs
from lit_llm.cli import DEMO
from lit_llm.serving.app import make_app
from lit_llm.text.conversation import prompt_ids

QUESTION = "Where does Frida live?"


@pytest.fixture(scope="module")
def demo():
    return lit_llm.load(DEMO / "checkpoint", device="cpu")


def settle(page):
    """Wait for the end of an answer."""
    wait_until(lambda: page.shows("#send"), 60)


def send(page, text):
    page.type("#prompt", text + "\n")


def greedy(page, limit=20):
    page.run("document.querySelector('#settings').open = true")
    page.run("document.querySelector('#temperature').value = 0; document.querySelector('#limit').value = arguments[0]", limit)


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_the_page_talks_with_the_model(demo, tmp_path, width, height):
    app = make_app(*demo, ServeArgs(), name="demo")
    with serving(app) as url, browser(tmp_path, width, height) as page:
        page.open(url)
        wait_until(lambda: page.texts("#model") == ["demo"])
        greedy(page)
        page.type("#system", "Be kind.")
        send(page, QUESTION)
        settle(page)
        turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": QUESTION}]
        first = alone(demo, prompt_ids("alpaca", demo[1], turns), 20).text
        assert page.texts(".turn") == [QUESTION, first]
        send(page, "And Igor?")
        settle(page)
        turns += [{"role": "assistant", "content": first.strip()}, {"role": "user", "content": "And Igor?"}]
        assert page.texts(".turn")[2:] == ["And Igor?", alone(demo, prompt_ids("alpaca", demo[1], turns), 20).text]
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")  # nothing hangs over the side
        page.run("document.querySelector('#settings').open = false")
        page.screenshot(tmp_path / f"page-{width}.png")
        page.click("#fresh")
        assert page.texts(".turn") == []


def test_an_answer_is_stopped_and_its_place_free(tmp_path):
    endless = lit_llm.load(make_endless_checkpoint(tmp_path / "endless"))
    app = make_app(*endless, ServeArgs(max_length=32768, max_new_tokens=30000))
    with serving(app) as url, browser(tmp_path, 390, 844) as page:
        page.open(url)
        send(page, QUESTION)
        wait_until(lambda: (page.texts(".turn.assistant") or [""])[0])
        page.click("#stop")
        settle(page)
        wait_until(lambda: app.state.engine.n_unfinished() == 0)
        assert page.texts(".note") == ["Stopped."]


def test_text_is_never_read_as_html(demo, tmp_path):
    """A message with a script, and an error that repeats what the client sent."""
    with (
        serving(make_app(*demo, ServeArgs(), name="<img src=x onerror='window.hit=1'>")) as url,
        browser(tmp_path, 390, 844) as page,
    ):
        page.open(url)
        wait_until(lambda: page.texts("#model") == ["<img src=x onerror='window.hit=1'>"])
        greedy(page, 10**6)
        send(page, "<script>window.hit=1</script><b>bold</b>")
        settle(page)
        (told,) = page.texts(".note.bad")
        assert "exceed the context" in told
        assert page.run("return document.querySelector('#prompt').value").startswith("<script>")  # given back
        assert page.run("return document.querySelectorAll('main b, main img, header img').length + (window.hit ?? 0)") == 0


def test_the_page_asks_for_the_key(demo, tmp_path):
    with serving(make_app(*demo, ServeArgs(api_key="sesame"), name="demo")) as url, browser(tmp_path, 390, 844) as page:
        page.open(url)
        wait_until(lambda: page.shows("#key"))
        page.type("#key", "sesame\t")
        wait_until(lambda: page.texts("#model") == ["demo"])


def test_the_page_loads_nothing_from_elsewhere():
    text = (REPOSITORY / "lit_llm" / "serving" / "chat.html").read_text()
    assert not re.findall(
        r"https?://|//\w+\.\w+/|\bsrc=|@import|url\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write", text
    )
