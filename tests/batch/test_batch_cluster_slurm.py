"""``wsi2ihc batch --slurm``, with programs that pretend to be SLURM's and run jobs on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import psutil
import pytest
from dask_processes import descendants, is_child, wait_until
from distributed.utils import get_ip
from fake_slurm import FakeSlurm
from make_batch import write_slides

from wsi2ihc.batch.slurm import job_settings, listens_everywhere, seconds_of
from wsi2ihc.errors import BatchError


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[FakeSlurm]:
    fake = FakeSlurm(tmp_path / "slurm", "    cores: 1\n    memory: 2GB\n    walltime: 02:00:00\n")
    yield fake
    for pid in fake.pids():
        if psutil.pid_exists(pid):
            for one in [*descendants(psutil.Process(pid)), psutil.Process(pid)]:
                one.kill()


def batch(slurm: FakeSlurm, slides: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wsi2ihc.cli.main", "batch", str(slides), str(slides.parent / "out"), "--model",
               "identity", "--workers", "1", "--slurm", "--json", *more]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=slurm.environment, cwd=slides.parent
    )  # fmt: skip


def test_jobs_are_submitted_used_and_cancelled(slurm: FakeSlurm, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", [*"abcde"])
    with batch(slurm, slides, "--children", "2") as client:
        answer, told = client.communicate(timeout=120)
    assert client.returncode == 0, told
    assert json.loads(answer)["counts"] == {"done": 5}
    assert "SLURM jobs submitted: 4711, 4712;" in told
    assert len(slurm.scripts()) == 2
    for script in slurm.scripts():
        assert "#SBATCH --gres=gpu:1\n" in script
        assert "--no-dashboard --dashboard-address 127.0.0.1:0 --resources GPU=1 --lifetime 6900s" in script
        assert "tcp://127.0.0.1:" in script
    assert slurm.cancelled() == {"4711", "4712"}
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in slurm.pids()))


def test_without_an_interface_the_scheduler_listens_at_one_address(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path / "slurm", "    interface: null\n")
    slides, listening = write_slides(tmp_path / "slides", ["a"]), set[str]()
    with batch(slurm, slides) as client:
        while client.poll() is None:
            with contextlib.suppress(psutil.Error):
                connections = psutil.Process(client.pid).net_connections("inet")
                listening |= {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
            time.sleep(0.05)
        answer, told = client.communicate(timeout=120)
    assert client.returncode == 0, told
    assert json.loads(answer)["counts"] == {"done": 1}
    assert "can be reached by all machines of the network" in told
    assert listening <= {get_ip(), "127.0.0.1"}


def test_an_interrupted_batch_leaves_no_job(slurm: FakeSlurm, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["endless1", "endless2", "endless3"])
    with batch(slurm, slides, "--device", "cpu") as client:
        wait_until(slurm.pids)
        job = psutil.Process(slurm.pids()[0])
        wait_until(lambda: any(is_child(one) for one in descendants(job)))
        time.sleep(0.5)
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=120)
    assert client.returncode == 130
    assert "gres" not in slurm.scripts()[0]
    assert slurm.cancelled() == {"4711"}
    wait_until(lambda: not psutil.pid_exists(job.pid))


def test_a_job_that_ends_in_mid_slide_is_submitted_again(slurm: FakeSlurm, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["slow1", "slow2"])
    with batch(slurm, slides) as client:
        wait_until(slurm.pids)
        job = psutil.Process(slurm.pids()[0])
        wait_until(lambda: any(is_child(one) for one in descendants(job)))
        time.sleep(0.5)
        os.killpg(job.pid, signal.SIGKILL)
        answer, told = client.communicate(timeout=120)
    assert client.returncode == 0, told
    assert json.loads(answer)["counts"] == {"done": 2}
    assert "worker wsi2ihc-0 was lost with 2 slides in flight" in told
    assert ["--name wsi2ihc-0" in script for script in slurm.scripts()] == [True, False]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("without", "there is no sbatch here"),
        ("refuse", "a job was refused (.*Invalid account"),
        ("broken", "SLURM job 4711 ended before its worker came"),
    ],
)
def test_failures_of_slurm_are_reported(slurm: FakeSlurm, tmp_path: Path, what: str, message: str) -> None:
    slides = write_slides(tmp_path / "slides", ["a"])
    if what == "without":
        slurm.without("sbatch")
    else:
        (slurm.jobs / what).touch()
    with batch(slurm, slides) as client:
        _, told = client.communicate(timeout=120)
    assert client.returncode == 1
    assert told.splitlines()[-1].startswith("Error: ")
    assert message.split("(.*")[0] in told
    assert message.rpartition(".*")[2] in told


LOCAL_HTTP = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]


def test_settings_complete_those_of_the_site(tmp_path: Path) -> None:
    plain = job_settings({"walltime": "00:30:00", "name": "dask-worker"}, tmp_path, needs_gpu=True)
    assert plain["processes"] == 1
    assert plain["job_extra_directives"] == ["--gres=gpu:1"]
    assert plain["worker_extra_args"] == [
        *LOCAL_HTTP,
        "--resources",
        "GPU=1",
        "--lifetime",
        "1620s",
        "--lifetime-stagger",
        "60s",
    ]
    assert plain["scheduler_options"]["dashboard_address"] == "127.0.0.1:0"
    assert plain["log_directory"] == str(tmp_path)
    own = {
        "cores": 4, "memory": "20GB", "walltime": "1-00", "log-directory": "/logs", "name": "stain",
        "worker-extra-args": ["--resources", "GPU=1", "--lifetime=5h"],
        "job-extra-directives": ["--gpus-per-node=a100:1"], "scheduler-options": {"dashboard_address": ":8787"},
        "job-script-prologue": ["module load cuda"],
    }  # fmt: skip
    assert job_settings(own, tmp_path, needs_gpu=True) == {
        "cores": 4, "memory": "20GB", "processes": 1, "job_name": "stain", "log_directory": "/logs",
        "worker_extra_args": ["--resources", "GPU=1", "--lifetime=5h", *LOCAL_HTTP],
        "job_extra_directives": ["--gpus-per-node=a100:1"],
        "job_script_prologue": ["module load cuda", "export PYTHONSAFEPATH=1"],
        "scheduler_options": {"dashboard_address": ":8787", "host": get_ip()},
    }  # fmt: skip
    bound = job_settings({**own, "interface": "ib0"}, tmp_path, needs_gpu=True)
    assert bound["scheduler_options"] == {"dashboard_address": ":8787"}
    on_cpus = job_settings({}, tmp_path, needs_gpu=False)
    assert (on_cpus["job_extra_directives"], on_cpus["worker_extra_args"]) == (
        [],
        ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"],
    )
    asked = job_settings(
        {"worker-extra-args": ["--no-dashboard", "--dashboard-address=:8787"]}, tmp_path, needs_gpu=False
    )
    assert asked["worker_extra_args"] == ["--no-dashboard", "--dashboard-address=:8787"]


@pytest.mark.parametrize(
    ("settings", "everywhere"),
    [
        ({}, True), ({"interface": None, "scheduler-options": {"dashboard_address": ":1"}}, True),
        ({"interface": "ib0"}, False), ({"scheduler-options": {"host": "10.0.0.1"}}, False),
    ],
)  # fmt: skip
def test_a_scheduler_open_to_all_networks_is_noticed(settings: dict[str, object], everywhere: bool) -> None:
    assert listens_everywhere(settings) == everywhere
    with dask.config.set({"distributed.comm.require-encryption": True}):
        assert not listens_everywhere(settings)


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("30", 1800), ("30:10", 1810), ("1:00:05", 3605), ("2-3", 183600), ("1-00:30", 88200), ("1-00:00:01", 86401)],
)
def test_walltimes_are_read_as_slurm_writes_them(walltime: str, seconds: int) -> None:
    assert seconds_of(walltime) == seconds
    with pytest.raises(BatchError, match="is not a SLURM time"):
        seconds_of("tomorrow")
