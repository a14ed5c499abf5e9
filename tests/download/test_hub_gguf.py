"""Downloads of GGUF files: one of several, and nothing else."""

import pytest
from fake_hub import FakeHub
from test_hub import COMPANIONS, REPO, contents, download, fetch_here, noise, refused  # noqa: F401

GGUF = {f"tiny-{kind}.gguf": noise(1000, i) for i, kind in enumerate(("Q4_K_M", "Q4_K", "Q8_0", "f16"))}
SPLIT = {f"tiny-BF16-0000{i}-of-00002.gguf": noise(700, i) for i in (1, 2)}
OTHERS = {"README.md": b"", "mmproj-F16.gguf": b"no", "tiny.imatrix.gguf": b"no", ".gitattributes": b""}


@pytest.fixture
def hub():
    with FakeHub(repos={REPO: {**COMPANIONS, **GGUF, **SPLIT, **OTHERS}}) as server:
        yield server


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("Q4_K_M", ["tiny-Q4_K_M.gguf"]),
        ("q4_k", ["tiny-Q4_K.gguf"]),  # not a part of Q4_K_M
        ("F16", ["tiny-f16.gguf"]),
        ("tiny-Q8_0.gguf", ["tiny-Q8_0.gguf"]),
        ("BF16", list(SPLIT)),
    ],
)
def test_the_named_file_arrives_alone(hub, tmp_path, wanted, names):
    run = download(hub.url, tmp_path, "--repo_id", REPO, "--gguf", wanted)
    assert run.returncode == 0, run.stderr
    assert contents(tmp_path / "checkpoints" / REPO) == {name: {**GGUF, **SPLIT}[name] for name in names}
    assert f"--checkpoint_dir checkpoints/{REPO}/{names[0]} --prompt" in run.stdout


def test_a_repository_of_one_gguf_file_needs_no_choice(hub, fetch_here):  # noqa: F811
    hub.repos[REPO] = {"config.json": b"{}", "tiny.Q4_0.gguf": noise(900), **OTHERS}
    file = fetch_here()
    assert file.name == "tiny.Q4_0.gguf"
    assert contents(file.parent) == {file.name: noise(900)}


def test_several_files_are_listed_with_their_sizes(hub, tmp_path):
    message = refused(download(hub.url, tmp_path, "--repo_id", REPO))
    assert "has several GGUF files: tiny-BF16.gguf (1.4 kB), tiny-Q4_K.gguf (1.0 kB), " in message
    assert "mmproj" not in message
    assert "--gguf Q4_K_M" in message
    message = refused(download(hub.url, tmp_path, "--repo_id", REPO, "--gguf", "Q5_0"))
    assert "has no GGUF file with Q5_0 in its name, but tiny-BF16.gguf" in message
    assert not (tmp_path / "checkpoints").exists()


def test_weights_of_another_form_come_first(hub, fetch_here):  # noqa: F811
    hub.repos[REPO] |= {"model.safetensors": noise(500)}
    assert contents(fetch_here()).keys() == {*COMPANIONS, "model.safetensors"}


def test_a_repository_without_the_wanted_form_is_refused(hub, tmp_path):
    hub.repos[REPO] = {**COMPANIONS, "model.safetensors": noise(500)}
    message = refused(download(hub.url, tmp_path, "--repo_id", REPO, "--gguf", "Q4_0"))
    assert "has no GGUF file in its top folder. Omit --gguf" in message


def test_the_tokenizer_alone_of_a_gguf_file_is_refused(hub, tmp_path):
    hub.repos[REPO] = {"tiny.Q4_0.gguf": noise(900)}
    assert "has no config.json" in refused(download(hub.url, tmp_path, "--repo_id", REPO, "--tokenizer_only"))
    message = refused(download(hub.url, tmp_path, "--repo_id", REPO, "--gguf", "Q8_0", "--tokenizer_only"))
    assert "--tokenizer_only has no effect on a GGUF file" in message
