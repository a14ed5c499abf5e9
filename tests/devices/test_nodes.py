"""Two hosts on one machine: network namespaces that see each other over one cable, and torchrun in each."""

import csv
import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from tiny import make_data

NAMES = [f"lit-llm-{os.getpid()}-{i}" for i in range(2)]
ADDRESSES = ["10.77.0.1", "10.77.0.2"]


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@pytest.fixture
def two_hosts():
    """Names of two network namespaces, which have the addresses above on interfaces called eth0."""
    if shutil.which("ip") is None or ip("netns", "add", NAMES[0]).returncode:
        pytest.skip("network namespaces are not permitted here")
    try:
        ip("netns", "add", NAMES[1])
        cable = [f"lit{os.getpid() % 10**6}{end}" for end in "ab"]
        if ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1]).returncode:
            pytest.skip("virtual network devices are not permitted here")
        for name, end, address in zip(NAMES, cable, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name)
            for command in (
                ["link", "set", end, "name", "eth0"], ["addr", "add", f"{address}/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"], ["link", "set", "lo", "up"],
            ):  # fmt: skip
                assert ip("-n", name, *command).returncode == 0
        yield NAMES
    finally:
        for name in NAMES:
            ip("netns", "del", name)


def test_two_hosts_with_torchrun_train_as_one_process(tmp_path, checkpoint, two_hosts, script):
    data_dir = make_data(tmp_path / "data")
    options = [
        f"--checkpoint_dir={checkpoint}", f"--data_dir={data_dir}", "--accelerator=cpu", "--train.global_batch_size=4",
        "--eval.samples=0", "--lora.dropout=0.0", "--train.micro_batch_size=2",
    ]  # fmt: skip
    hosts = []
    for rank, name in enumerate(two_hosts):
        command = [
            "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}",
            "--nproc_per_node=1", f"--master_addr={ADDRESSES[0]}", "--master_port=29500", "finetune/lora.py",
            f"--out_dir={tmp_path}/two", "--num_nodes=2", *options,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        hosts.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes))
    try:
        script("finetune/lora.py", f"--out_dir={tmp_path}/one", *options)
        for rank, host in enumerate(hosts):
            stdout, stderr = host.communicate(timeout=240)
            assert host.returncode == 0, stderr
            assert ("Talk to it" in stdout) == (rank == 0)
            assert rank == 1 or "strategy: ddp" in stderr
    finally:
        for host in hosts:
            host.kill()
    losses = []
    for run in ("one", "two"):
        with (tmp_path / run / "metrics.csv").open() as file:
            losses.append(
                [float(row[name]) for row in csv.DictReader(file) for name in ("train_loss", "val_loss") if row[name]]
            )
    assert len(losses[0]) > 5
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
