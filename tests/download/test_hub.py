"""Downloads, over real HTTP from a hub on the loopback interface."""

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from fake_hub import COMMIT, FakeHub
from huggingface_hub import constants

from lit_llm.args.checkpoint import DownloadArgs
from lit_llm.download import resumable
from lit_llm.download.hub import download_checkpoint, download_url, known_repositories, local_file
from lit_llm.errors import CheckpointError

ROOT = Path(__file__).parents[2]
REPO = "org/tiny"
IMPATIENT = "import lit_llm.download.resumable; lit_llm.download.resumable.FIRST_WAIT = 0.01; "


def noise(n_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(n_bytes)


COMPANIONS = {
    name: f"content of {name}\n".encode()
    for name in (
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "LICENSE",
    )
}  # fmt: skip
WEIGHTS = {"model.safetensors": noise(300_000)}
SHARDS = {f"model-{i}-of-00002.safetensors": noise(200_000, seed) for i, seed in (("00001", 1), ("00002", 2))}
INDEX = {"model.safetensors.index.json": json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()}
UNWANTED = dict.fromkeys(
    (
        ".gitattributes", "README.md", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "consolidated.safetensors",
        "adapter_model.safetensors", "model.fp16.safetensors", "modeling_tiny.py", "onnx/config.json", "original/model.bin",
    ),
    b"not needed",
)  # fmt: skip


@pytest.fixture
def hub():
    with FakeHub(repos={REPO: {**COMPANIONS, **WEIGHTS, **UNWANTED}}) as server:
        yield server


@pytest.fixture
def fetch_here(hub, monkeypatch, tmp_path):
    """`download_checkpoint` of REPO in this process."""
    monkeypatch.setattr(resumable, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    huggingface_hub.close_session()
    return lambda: download_checkpoint(REPO, tmp_path / "checkpoints", access_token="hf_any")


def clean_environment(url: str, cwd: Path) -> dict[str, str]:
    """Of the user's settings neither token, cache, offline mode nor proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()}
    return kept | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": url, "HF_HOME": str(cwd / "hf_home"), "HOME": str(cwd)}


def download(url: str, cwd: Path, *flags: str, before: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/download.py in `cwd` as a user does; `before` is Python to run first."""
    cwd.mkdir(exist_ok=True)
    script = f"{before}import runpy; runpy.run_path({str(ROOT / 'scripts/download.py')!r}, run_name='__main__')"
    command = [sys.executable, "-c", script, *flags]
    return subprocess.run(command, cwd=cwd, env=clean_environment(url, cwd) | env, capture_output=True, text=True, timeout=100)


def refused(run: subprocess.CompletedProcess[str]) -> str:
    """The message of a run that the user can mend: exit 2, nothing on stdout, no traceback."""
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    return "".join(line for line in run.stderr.splitlines() if line.startswith("error:"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_needed_files_arrive_and_the_next_command_is_shown(hub, tmp_path):
    run = download(hub.url, tmp_path, "--repo_id", REPO)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "checkpoints" / REPO
    assert contents(folder) == {**COMPANIONS, **WEIGHTS}
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert "python generate/base.py --checkpoint_dir checkpoints/org/tiny --prompt" in run.stdout
    assert "model.safetensors: 300.0 kB, done" in run.stderr  # plain lines without a terminal
    assert "\r" not in run.stderr
    assert not (tmp_path / "hf_home").exists()


def test_files_are_those_that_huggingface_hub_downloads(hub, tmp_path):
    download(hub.url, tmp_path, "--repo_id", REPO)
    script = f"""import huggingface_hub
huggingface_hub.snapshot_download({REPO!r}, local_dir='reference', allow_patterns={[*COMPANIONS, *WEIGHTS]})"""
    env = clean_environment(hub.url, tmp_path)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=100)
    reference = {n: c for n, c in contents(tmp_path / "reference").items() if not n.startswith(".cache")}
    assert reference == contents(tmp_path / "checkpoints" / REPO)


def test_shards_are_those_that_the_index_names(hub, fetch_here):
    leftover = {"model-00001-of-00009.safetensors": noise(50)}
    hub.repos[REPO] = {**COMPANIONS, **INDEX, **SHARDS, **leftover, **UNWANTED, "pytorch_model.bin.index.json": b"{}"}
    assert contents(fetch_here()) == {**COMPANIONS, **INDEX, **SHARDS}


def test_legacy_weights_are_taken_when_there_is_nothing_else(hub, fetch_here):
    hub.repos[REPO] = {"config.json": b"{}", "pytorch_model.bin": noise(1000), "training_args.bin": b"no"}
    assert contents(fetch_here()) == {"config.json": b"{}", "pytorch_model.bin": noise(1000)}


def test_tokenizer_only_leaves_the_weights(hub, tmp_path):
    run = download(hub.url, tmp_path, "--repo_id", REPO, "--tokenizer_only", "--checkpoint_dir", "elsewhere")
    assert run.returncode == 0, run.stderr
    assert contents(tmp_path / "elsewhere" / REPO) == COMPANIONS
    assert "python scripts/estimate.py --checkpoint_dir elsewhere/org/tiny" in run.stdout


def test_interrupted_download_goes_on_in_the_next_run(hub, tmp_path):
    hub.cut = {"model.safetensors": 100_000}
    message = refused(download(hub.url, tmp_path, "--repo_id", REPO, before=IMPATIENT))
    assert "run the same command again" in message
    folder = tmp_path / "checkpoints" / REPO
    assert not (folder / "model.safetensors").exists()  # only complete files bear their name
    assert (folder / "model.safetensors.part").read_bytes() == WEIGHTS["model.safetensors"][:100_000]
    hub.cut, hub.requests = {}, []
    run = download(hub.url, tmp_path, "--repo_id", REPO)
    assert run.returncode == 0, run.stderr
    assert contents(folder) == {**COMPANIONS, **WEIGHTS}
    assert [r.headers["range"] for r in hub.fetched("model.safetensors")] == ["bytes=100000-"]
    assert not hub.fetched("config.json")  # complete already


def test_busy_server_is_asked_again(hub, fetch_here, capsys):
    hub.busy = 2
    assert contents(fetch_here()) == {**COMPANIONS, **WEIGHTS}
    assert capsys.readouterr().err.count("Trying again") == 2


def test_part_of_another_revision_is_not_continued(hub, fetch_here):
    hub.cut = {"model.safetensors": 100_000}
    with pytest.raises(ConnectionError):
        fetch_here()
    hub.cut, hub.repos[REPO]["model.safetensors"] = {}, noise(300_000, seed=7)
    assert contents(fetch_here()) == {**COMPANIONS, "model.safetensors": noise(300_000, seed=7)}


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "config.json"])
def test_damaged_file_is_refused_and_fetched_again(hub, tmp_path, name):
    hub.repos[REPO] = {**COMPANIONS, **INDEX, **SHARDS}
    hub.corrupt = {name}
    message = refused(download(hub.url, tmp_path, "--repo_id", REPO))
    assert f"{name} arrived damaged" in message
    assert not [*(tmp_path / "checkpoints" / REPO).glob(f"{name}*")]
    hub.corrupt = set()
    assert download(hub.url, tmp_path, "--repo_id", REPO).returncode == 0
    assert contents(tmp_path / "checkpoints" / REPO) == {**COMPANIONS, **INDEX, **SHARDS}


def test_file_that_was_damaged_on_the_disk_is_mended(hub, fetch_here):
    path = fetch_here() / "model.safetensors"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    hub.requests = []
    assert contents(fetch_here()) == {**COMPANIONS, **WEIGHTS}
    assert not hub.fetched("tokenizer.json")


def test_gated_repository_is_explained_and_opens_with_a_token(hub, tmp_path):
    hub.tokens[REPO] = {"hf_good"}
    message = refused(download(hub.url, tmp_path, "--repo_id", REPO))
    assert all(part in message for part in (f"{hub.url}/{REPO}", "licence", "settings/tokens", "--access_token", "HF_TOKEN"))
    message = refused(download(hub.url, tmp_path, "--repo_id", REPO, "--access_token", "hf_other"))
    assert "does not open it (403)" in message
    assert "hf_other" not in message
    assert download(hub.url, tmp_path, "--repo_id", REPO, HF_TOKEN="hf_good").returncode == 0
    assert download(hub.url, tmp_path / "b", "--repo_id", REPO, "--access_token", "hf_good").returncode == 0
    assert contents(tmp_path / "b/checkpoints" / REPO) == {**COMPANIONS, **WEIGHTS}


def test_token_is_not_sent_to_the_store(hub, tmp_path):
    assert download(hub.url, tmp_path, "--repo_id", REPO, "--access_token", "hf_secret").returncode == 0
    seen = {r.path.split("/")[1]: r.headers.get("authorization") for r in hub.requests}
    assert seen == {"api": "Bearer hf_secret", "org": "Bearer hf_secret", "store": None}


def test_expired_token_is_explained(hub, tmp_path):
    message = refused(download(hub.url, tmp_path, "--repo_id", REPO, "--access_token", "hf_expired"))
    assert "refuses your access token (401)" in message


@pytest.mark.parametrize("flags", [[], ["--access_token", "hf_good"]])
def test_missing_repository_is_explained(hub, tmp_path, flags):
    message = refused(download(hub.url, tmp_path, "--repo_id", "EleutherAI/pythia-70n", *flags))
    assert "there is no model EleutherAI/pythia-70n" in message
    assert "Did you mean EleutherAI/pythia-70m" in message
    assert "ORG/NAME" in message
    assert not (tmp_path / "checkpoints").exists()


def test_revision(hub, tmp_path):
    assert "has no revision 'v2'" in refused(download(hub.url, tmp_path, "--repo_id", REPO, "--revision", "v2"))
    assert download(hub.url, tmp_path, "--repo_id", REPO, "--revision", "v1").returncode == 0
    resolved = [r.path for r in hub.requests if "/resolve/" in r.path]
    assert all(f"/resolve/{COMMIT}/" in path for path in resolved)  # one commit for all files, even if a branch moves meanwhile


def test_no_network_is_explained(tmp_path):
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        message = refused(download(url, tmp_path, "--repo_id", REPO))
    assert f"the connection to {url} fails" in message
    assert "Check the network" in message


def test_offline_mode_is_explained(hub, tmp_path):
    assert "HF_HUB_OFFLINE" in refused(download(hub.url, tmp_path, "--repo_id", REPO, HF_HUB_OFFLINE="1"))


def test_login_page_of_a_network_is_explained(hub, tmp_path):
    hub.login_page = True
    assert "does not answer like the Hugging Face hub" in refused(download(hub.url, tmp_path, "--repo_id", REPO))


ODD_ANSWERS = {
    "a list": (lambda info: [], "must be an object"),
    "no files": (lambda info: {**info, "siblings": None}, "siblings is missing"),
    "a name that is a number": (lambda info: {**info, "siblings": [{"rfilename": 5}]}, r"siblings\[0\]\.rfilename must be"),
    "a size that is a string": (
        lambda info: {**info, "siblings": [{**info["siblings"][0], "size": "9"}]}, r"siblings\[0\]\.size must be an integer",
    ),
    "no commit": (lambda info: {**info, "sha": 3}, "sha must be a string, found 3"),
    "a checksum that is a list": (
        lambda info: {**info, "siblings": [{**info["siblings"][0], "lfs": {"sha256": []}}]}, r"lfs\.sha256 must be a string",
    ),
    "sizes below zero": (
        lambda info: {**info, "siblings": [{**entry, "size": -1} for entry in info["siblings"]]}, "has no config.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("answer", ODD_ANSWERS)
def test_an_odd_answer_of_the_hub_is_refused(hub, fetch_here, tmp_path, answer):
    hub.change_info, message = ODD_ANSWERS[answer]
    with pytest.raises(CheckpointError, match=message):
        fetch_here()
    assert contents(tmp_path) == {}


def test_full_disk_is_told_before_the_download(hub, tmp_path, fetch_here, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=290_000))
        with pytest.raises(OSError, match=r"needs 300.\d kB, but .* has only 290.0 kB free"):
            fetch_here()
        assert contents(tmp_path) == {}
    hub.cut = {"model.safetensors": 100_000}
    with pytest.raises(ConnectionError):
        fetch_here()
    hub.cut = {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=290_000))
    assert contents(fetch_here()) == {**COMPANIONS, **WEIGHTS}  # 100 kB of it were there already


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/evil", "a/../../evil", "..\\evil.json", "C:\\evil"])
def test_file_outside_of_the_folder_is_refused(hub, tmp_path, fetch_here, name):
    hub.listed[REPO] = [name]
    with pytest.raises(ValueError, match="is outside of its folder"):
        fetch_here()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("../../evil.safetensors", "names '../../evil.safetensors', which the repository does not have"),
        ("onnx/config.json", "names 'onnx/config.json', which"),
        ("model-00003-of-00003.safetensors", "names 'model-00003-of-00003.safetensors', which"),
        (["a"], r"index\.json: weight_map\.a must be a string or null, found \['a'\]"),
        (None, r"index\.json: weight_map is missing, an object"),
    ],
)
def test_index_that_names_other_files_is_refused(hub, fetch_here, named, message):
    index = {"weight_map": {"a": named}} if named else {}
    hub.repos[REPO] = {**COMPANIONS, **UNWANTED, "model.safetensors.index.json": json.dumps(index).encode()}
    with pytest.raises(ValueError, match=message):
        fetch_here()


def test_repository_without_a_checkpoint_is_refused(hub, fetch_here):
    hub.repos[REPO] = {"README.md": b"", "tiny.onnx": b"x"}
    with pytest.raises(ValueError, match=r"no config.json.* README.md, tiny.onnx"):
        fetch_here()
    hub.repos[REPO]["config.json"] = b"{}"
    with pytest.raises(ValueError, match=r"no model.safetensors or pytorch_model.bin"):
        fetch_here()


def test_other_weights_in_the_folder_are_refused(hub, fetch_here):
    folder = fetch_here()
    (folder / "lit_model.safetensors").write_bytes(b"converted")
    fetch_here()  # converted from these very weights
    hub.repos[REPO]["model.safetensors"] = noise(10)
    with pytest.raises(ValueError, match=r"has other weights: lit_model.safetensors"):
        fetch_here()
    (folder / "lit_model.safetensors").unlink()
    hub.repos[REPO] = {**COMPANIONS, **INDEX, **SHARDS}
    with pytest.raises(ValueError, match=r"has other weights: model.safetensors"):
        fetch_here()


@pytest.mark.parametrize(
    "repo_id",
    [
        "gpt2",
        "../evil",
        "a/..",
        "a/b/c",
        "https://huggingface.co/a/b",
        "a/b.git",
        "a--b/c",
        "org/",
        "org/a b",
        "org/-a",
        "örg/a",
    ],
)
def test_malformed_name_is_refused(repo_id):
    with pytest.raises(ValueError, match="`repo_id` takes ORG/NAME"):
        DownloadArgs(repo_id=repo_id)


def test_flags_that_cannot_act_are_refused(tmp_path):
    assert "--revision needs --repo_id" in refused(download("http://127.0.0.1:1", tmp_path, "--revision", "v1"))


def test_without_flags_repositories_are_listed_by_family(tmp_path):
    from huggingface_hub.utils import validate_repo_id

    run = download("http://127.0.0.1:1", tmp_path)
    assert run.returncode == 0, run.stderr
    assert "python scripts/download.py --repo_id" in run.stdout
    listed = [line.strip() for line in run.stdout.splitlines() if line.startswith("  ") and "/" in line.split()[0]]
    names = [name for names in known_repositories().values() for name in names]
    assert [name for name in listed if " " not in name] == names
    assert len(set(names)) == len(names)
    for name in names:
        validate_repo_id(name)
        assert name.count("/") == 1


DATA = noise(100_000, seed=3)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(resumable, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")
    with FakeHub(plain={"/data.json": DATA}) as server:
        yield server


def test_url_is_fetched_and_checked(server, tmp_path, capsys):
    target = tmp_path / "new" / "data.json"
    assert download_url(f"{server.url}/data.json", target) == target
    assert contents(target.parent) == {"data.json": DATA}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "data.json: 100.0 kB, done" in captured.err
    digest = hashlib.sha256(DATA).hexdigest()
    download_url(f"{server.url}/data.json", target, sha256=digest)
    assert len(server.requests) == 1  # it was there
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="arrived damaged"):
        download_url(f"{server.url}/data.json", target, sha256="0" * 64)
    assert contents(target.parent) == {"data.json": b"old"}
    download_url(f"{server.url}/data.json", target, sha256=digest)
    assert target.read_bytes() == DATA


def test_url_errors_are_explained(server, tmp_path):
    with pytest.raises(OSError, match=r"404: there is no such file"):
        download_url(f"{server.url}/none.json", tmp_path / "a")
    server.busy = 99
    with pytest.raises(OSError, match=r"503: try again later"):
        download_url(f"{server.url}/data.json", tmp_path / "a")
    for wrong in ("data.json", "ftp://example.com/a", "https://", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="is not a web address"):
            download_url(wrong, tmp_path / "a")
    assert contents(tmp_path) == {}


def test_url_that_cannot_be_reached_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(resumable, "FIRST_WAIT", 0.01)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError, match="Check the network"):
            download_url(f"http://127.0.0.1:{closed.getsockname()[1]}/a", tmp_path / "a")


def test_url_is_resumed(server, tmp_path):
    server.cut = {"data.json": 40_000}
    with pytest.raises(ConnectionError, match="resumes where it stopped"):
        download_url(f"{server.url}/data.json", tmp_path / "data.json")
    server.cut, server.requests = {}, []
    download_url(f"{server.url}/data.json", tmp_path / "data.json")
    assert [(r.headers["range"], r.status) for r in server.requests] == [("bytes=40000-", 206)]
    assert contents(tmp_path) == {"data.json": DATA}


@pytest.mark.parametrize("difference", ["content", "no ranges", "weak"])
def test_url_is_fetched_anew_where_it_cannot_be_resumed(server, tmp_path, difference):
    server.weak = difference == "weak"
    server.cut = {"data.json": 40_000}
    with pytest.raises(ConnectionError):
        download_url(f"{server.url}/data.json", tmp_path / "data.json")
    server.cut = {}
    server.ranges = difference != "no ranges"
    if difference != "no ranges":
        server.plain["/data.json"] = noise(90_000, seed=4)
    download_url(f"{server.url}/data.json", tmp_path / "data.json")
    assert contents(tmp_path) == {"data.json": server.plain["/data.json"]}


def test_part_that_is_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "data.json.part").write_bytes(b"x" * 200_000)
    digest = hashlib.sha256(DATA).hexdigest()
    (tmp_path / "data.json.part.of").write_text(digest)
    download_url(f"{server.url}/data.json", tmp_path / "data.json", sha256=digest)
    assert contents(tmp_path) == {"data.json": DATA}


@pytest.mark.parametrize("length", [True, False])
def test_url_that_is_too_large_is_refused(server, tmp_path, length):
    server.length = length
    with pytest.raises(ValueError, match=r"larger than 99.0 kB"):
        download_url(f"{server.url}/data.json", tmp_path / "a", max_bytes=99_000)
    assert contents(tmp_path) == {}
    download_url(f"{server.url}/data.json", tmp_path / "a", max_bytes=100_000)
    assert contents(tmp_path) == {"a": DATA}


def test_local_file_fetches_an_address_once(server, tmp_path, capsys):
    assert local_file("data/x.json") == Path("data/x.json")
    server.plain["/b/data.json"] = b"another"
    first = local_file(f"{server.url}/data.json?version=1", tmp_path)
    second = local_file(f"{server.url}/b/data.json", tmp_path)
    assert (first.read_bytes(), second.read_bytes()) == (DATA, b"another")
    assert local_file(f"{server.url}/b/data.json", tmp_path) == second
    assert len(server.requests) == 2
    assert "is there already" in capsys.readouterr().err


def test_an_adapter_of_peft_arrives_in_one_form(hub, fetch_here, tmp_path):
    adapter = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": noise(1000)}
    others = {"adapter_model.bin": noise(900), "training_args.bin": b"no", "optimizer.pt": b"no", "README.md": b"no"}
    hub.repos[REPO] = {**adapter, **others, "tokenizer.json": b"{}"}
    folder = fetch_here()
    assert {path.name for path in folder.iterdir() if path.suffix != ".lock"} == {*adapter, "tokenizer.json"}


def test_weights_arrive_in_one_of_several_formats(hub, fetch_here):
    others = {"pytorch_model.bin": noise(900), "model.Q4_0.gguf": noise(800), "original/consolidated.00.pth": b"no"}
    more = {"consolidated.safetensors": noise(700), "onnx/model.onnx": b"no", "adapter_model.safetensors": noise(600)}
    hub.repos[REPO] = {"config.json": b"{}", "model.safetensors": noise(1000), **others, **more}
    folder = fetch_here()
    assert {path.name for path in folder.iterdir() if path.suffix != ".lock"} == {"config.json", "model.safetensors"}
