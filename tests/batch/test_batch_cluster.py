"""Batches on a Dask cluster of real processes: workers that die, slides that crash, and no worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from dask_processes import DaskProcesses, is_child, wait_until
from make_batch import tasks_of, write_slides

from wsi2ihc.batch import dask_backend
from wsi2ihc.batch.dask_backend import DaskEngine, address_of, located
from wsi2ihc.batch.local import LocalEngine
from wsi2ihc.batch.results_table import results_of
from wsi2ihc.batch.scheduler import Engine, SlideState, run_batch
from wsi2ihc.batch.task import BatchOptions, SlideTask
from wsi2ihc.errors import BatchError
from wsi2ihc.pyramid.verify import read_level


@pytest.fixture(autouse=True)
def _slow_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer for workers, which start slowly on a busy machine."""
    monkeypatch.setattr(dask_backend, "_FIRST_WORKER_S", 60)
    monkeypatch.setattr(dask_backend, "_CONNECT_S", 30)


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """Two workers that offer a GPU; whether it exists does not matter."""
    processes = DaskProcesses(tmp_path_factory.mktemp("dask") / "two")
    for name in ("one", "two"):
        processes.start_worker(name, "--resources", "GPU=1")
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def no_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """A scheduler without workers, at first."""
    processes = DaskProcesses(tmp_path_factory.mktemp("dask") / "none")
    yield processes
    processes.close()


def run(tasks: list[SlideTask], processes: DaskProcesses, device: str = "auto", **options: int) -> list[SlideState]:
    chosen = BatchOptions(**options)

    def make_engine() -> Engine:
        return DaskEngine(tasks[0].output.parent, device, chosen, scheduler=str(processes.file))

    return run_batch(tasks, make_engine, chosen)


def statuses(states: list[SlideState]) -> dict[str, str]:
    return {state.task.name.partition(".")[0]: state.status for state in states}


def assert_equal_to_one_machine(tasks: list[SlideTask], folder: Path) -> None:
    """Outputs are those of children of this process, which know nothing of hooks."""
    slides = Path(tasks[0].slide).parent
    other = tasks_of(slides, folder)
    run_batch(other, lambda: LocalEngine(folder, "cpu", BatchOptions()), BatchOptions())
    for one, same in zip(tasks, other, strict=True):
        assert (read_level(one.output, 0) == read_level(same.output, 0)).all()


def test_slides_are_done_once_and_as_on_one_machine(two_gpus: DaskProcesses, tmp_path: Path) -> None:
    tasks = tasks_of(write_slides(tmp_path / "slides", [*"abcdefg"]), tmp_path / "out")
    states = run(tasks, two_gpus)
    assert statuses(states) == dict.fromkeys("abcdefg", "done")
    assert [state.attempts for state in states] == [1] * 7
    assert_equal_to_one_machine(tasks, tmp_path / "local")
    hidden = tmp_path / "out" / ".wsi2ihc-batch"
    assert {path.name.split("-")[1] for path in (hidden / "logs").iterdir()} == {"one", "two"}
    assert not list(hidden.glob(".wsi2ihc-*")), "the probe is removed"
    wait_until(lambda: not two_gpus.children())
    assert statuses(run(tasks, two_gpus)) == dict.fromkeys("abcdefg", "done before")


def test_a_killed_worker_costs_no_slide(two_gpus: DaskProcesses, tmp_path: Path) -> None:
    tasks = tasks_of(write_slides(tmp_path / "slides", [f"slow{n}" for n in range(6)]), tmp_path / "out")
    killed: list[int] = []

    def kill_a_worker() -> None:
        wait_until(lambda: len(two_gpus.children()) == 2)
        time.sleep(0.4)  # in mid-slide: all of them sleep for a second
        worker = two_gpus.children()[0].parent()
        assert worker is not None
        worker.kill()
        killed.append(worker.pid)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    states = run(tasks, two_gpus)
    killer.join(120)
    assert killed
    assert statuses(states) == {f"slow{n}": "done" for n in range(6)}
    assert sorted(state.returns for state in states)[-2:] == [1, 1], "two slides were in its hands"
    assert {state.attempts for state in states} == {1}
    results = results_of(states)
    assert len({result.slide for result in results}) == len(results) == 6
    assert_equal_to_one_machine(tasks, tmp_path / "local")


def test_a_slide_that_crashes_fails_alone(two_gpus: DaskProcesses, tmp_path: Path) -> None:
    names = ["a", "b", "c", "poison", "d", "e", "f", "g"]
    states = run(tasks_of(write_slides(tmp_path / "slides", names, side=200), tmp_path / "out"), two_gpus, attempts=2)
    found = statuses(states)
    assert found.pop("poison") == "failed"
    assert set(found.values()) == {"done"}
    failed = next(state for state in states if state.status == "failed")
    assert failed.attempts == 2
    assert "SIGSEGV" in failed.error


def test_two_batches_share_workers(two_gpus: DaskProcesses, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", [*"abcd"])
    found: dict[str, dict[str, str]] = {}

    def one(name: str) -> None:
        found[name] = statuses(run(tasks_of(slides, tmp_path / name), two_gpus))

    threads = [threading.Thread(target=one, args=(name,)) for name in ("x", "y")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {name: dict.fromkeys("abcd", "done") for name in ("x", "y")}


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_children_end_with_their_client(
    two_gpus: DaskProcesses, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    slides = write_slides(tmp_path / "slides", [f"endless{n}" for n in range(5)], side=200)
    command = [sys.executable, "-m", "wsi2ihc.cli.main", "batch", str(slides), str(tmp_path / "out"), "--model",
               "identity", "--workers", "1", "--scheduler", str(two_gpus.file)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        wait_until(lambda: len(two_gpus.children()) == 2)
        time.sleep(0.5)
        children = two_gpus.children()
        client.send_signal(how)
        client.communicate(timeout=120)
    assert client.returncode == code
    psutil.wait_procs(children, timeout=30)
    assert not [one for one in children if is_child(one)]
    table = tmp_path / "out" / "results.csv"
    assert not table.exists() or "done" not in table.read_text()


def test_the_scheduler_of_the_user_keeps_running(two_gpus: DaskProcesses) -> None:
    """After all that: two nannies whose workers were killed, cancelled and left."""
    assert all(one.poll() is None for one in two_gpus.processes)


def test_missing_workers_are_reported_soon(
    no_gpu: DaskProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tasks_of(write_slides(tmp_path / "slides", ["a", "b", "c"]), tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(dask_backend, "_FIRST_WORKER_S", 0.5)
        with pytest.raises(BatchError, match="there is no worker; start some: dask worker tcp://127"):
            run(tasks, no_gpu, "cpu")
    no_gpu.start_worker("plain", "--no-nanny")
    began = time.monotonic()
    monkeypatch.setattr(dask_backend, "_FIRST_WORKER_S", 6)
    with pytest.raises(BatchError, match=r'worker plain offers no GPU; .*--resources "GPU=1", or use --device cpu'):
        run(tasks, no_gpu)
    assert time.monotonic() - began < 40
    assert statuses(run(tasks, no_gpu, "cpu")) == dict.fromkeys("abc", "done")


@pytest.mark.usefixtures("_in_a_hurry")
def test_unsuitable_workers_are_named(no_gpu: DaskProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch = Path.touch
    with monkeypatch.context() as patch:
        patch.setattr(dask_backend, "versions", lambda: {"wsi2ihc": "99"})
        with pytest.raises(BatchError, match=r"worker plain has wsi2ihc .*, but the client has 99; install the same"):
            DaskEngine(tmp_path, "cpu", BatchOptions(), scheduler=str(no_gpu.file))
    with monkeypatch.context() as patch:
        patch.setattr(
            dask_backend.Path, "touch", lambda path, **_: None if path.name.startswith(".wsi") else touch(path)
        )
        with pytest.raises(BatchError, match="does not see the output folder"):
            DaskEngine(tmp_path, "cpu", BatchOptions(), scheduler=str(no_gpu.file))


@pytest.fixture
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_backend, "_FIRST_WORKER_S", 0.5)
    monkeypatch.setattr(dask_backend, "_CONNECT_S", 0.5)


class LateRegistry:
    """Registry whose only worker responds as it is asked."""

    def __init__(self) -> None:
        self.refreshed = False

    def refresh(self) -> None:
        self.refreshed = True

    def usable(self) -> list[str]:
        return ["worker"] if self.refreshed else []

    def pending(self) -> int:
        return 0 if self.refreshed else 1

    def why_none(self) -> str:
        return "none of 0 workers responds"


def test_a_worker_that_responds_after_the_timeout_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_backend, "_FIRST_WORKER_S", -1.0)
    engine = DaskEngine.__new__(DaskEngine)
    engine._registry = LateRegistry()  # type: ignore[assignment]
    engine._wait_for_a_worker()


@pytest.mark.usefixtures("_in_a_hurry")
def test_a_missing_scheduler_is_reported(tmp_path: Path) -> None:
    (tmp_path / "not.json").write_text("[]")
    for scheduler, message in {
        "tcp://127.0.0.1:9": "there is no Dask scheduler at tcp://127.0.0.1:9",
        "tls://127.0.0.1:9": "requires certificates; set DASK_DISTRIBUTED__COMM__TLS__",
        "not an address": "there is no Dask scheduler at not an address",
        "": "name the address",
        str(tmp_path / "absent.json"): "there is no scheduler file",
        str(tmp_path / "not.json"): "is not a scheduler file",
    }.items():
        with pytest.raises(BatchError, match=message):
            DaskEngine(tmp_path, "cpu", BatchOptions(), scheduler=scheduler)
    assert address_of("tcp://127.0.0.1:9") == "tcp://127.0.0.1:9"


def test_paths_mean_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = SlideTask(0, "a.svs", Path("out/a.ome.tiff"), "net.safetensors")
    there = located(task)
    assert (there.slide, there.output) == (str(tmp_path / "a.svs"), tmp_path / "out/a.ome.tiff")
    assert there.model == str(tmp_path / "net.safetensors")
    elsewhere = located(SlideTask(0, "s3://bucket/a.svs", Path("a.ome.tiff"), "counterstain"))
    assert (elsewhere.slide, elsewhere.model) == ("s3://bucket/a.svs", "counterstain")
    assert os.fspath(there.options.tissue) == "auto"
