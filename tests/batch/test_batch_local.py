"""Batches with real child processes: crashes, kills, resuming, and what does not count as done."""

from __future__ import annotations

import contextlib
import json
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
from make_batch import OPTIONS, tasks_of, write_slides

from wsi2ihc.atomic_files import published
from wsi2ihc.batch import local
from wsi2ihc.batch.local import LocalEngine, LocalWorker, worker_environments
from wsi2ihc.batch.preflight import check_folder
from wsi2ihc.batch.results_table import ResultsWriter, read_results, results_of
from wsi2ihc.batch.scheduler import SlideState, run_batch
from wsi2ihc.batch.task import BATCH_FOLDER, BatchOptions, SlideTask, locks_folder, logs_folder, marker_path, read_done
from wsi2ihc.cli.main import main
from wsi2ihc.errors import DeviceError, OutputError
from wsi2ihc.locks import exclusive_lock
from wsi2ihc.models.model_file import build_network, save_checkpoint
from wsi2ihc.models.model_spec import GeneratorSpec
from wsi2ihc.pyramid.verify import read_level
from wsi2ihc.translation.checkpoint_folder import IN_USE, checkpoint_path

POISON = """
import ctypes, os, sys, time
if "wsi2ihc.batch.worker:serve" in sys.orig_argv:
    from wsi2ihc.translation import translate
    run = translate.translate_job
    def poisoned(job, path, **more):
        if "poison" in path.name:
            ctypes.string_at(0)
        if "device" in path.name:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if "slow" in path.name:
            time.sleep(60)
        return run(job, path, **more)
    translate.translate_job = poisoned
"""
"""A ``sitecustomize`` that makes a child crash, truly, over slides of some name, and sleep over others."""


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("batch") / "slides", ["a", "b", "c", "d"])


@pytest.fixture
def poisonous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))


def run(tasks: list[SlideTask], **options: float) -> list[SlideState]:
    chosen = BatchOptions(**options)  # type: ignore[arg-type]
    return run_batch(tasks, lambda: LocalEngine(tasks[0].output.parent, "cpu", chosen), chosen)


def statuses(states: list[SlideState]) -> dict[str, str]:
    return {state.task.name.partition(".")[0]: state.status for state in states}


def command(slides: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "wsi2ihc.cli.main", "batch", str(slides), str(out), "--model", "identity",
            "--device", "cpu", "--workers", "1", *more]  # fmt: skip


def test_slides_are_done_once_and_stay_done(slides: Path, tmp_path: Path) -> None:
    tasks = tasks_of(slides, tmp_path / "out")
    first = run(tasks)
    assert statuses(first) == dict.fromkeys("abcd", "done")
    times = {task.name: task.output.stat().st_mtime_ns for task in tasks}
    assert statuses(run(tasks)) == dict.fromkeys("abcd", "done before")
    assert {task.name: task.output.stat().st_mtime_ns for task in tasks} == times
    results = results_of(first)
    ResultsWriter(tmp_path / "out").finish(results)
    assert read_results(tmp_path / "out") == (results, [])
    assert float(results[0].seconds) > 0
    page = (tmp_path / "out" / "summary.html").read_text()
    assert page.count("<article") == 4
    assert page.count(".jpg") == 4
    assert str(tmp_path) not in page


def test_damaged_and_changed_outputs_are_redone(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = tasks_of(slides, out)
    run(tasks)
    a, b, c, _ = tasks
    a.output.write_bytes(a.output.read_bytes()[:-100])  # truncated
    b.output.write_bytes(c.output.read_bytes())  # somebody else's
    marker_path(c.output).write_text("{")
    assert [read_done(task) is not None for task in tasks] == [False, False, False, True]
    redone = run(tasks)
    assert statuses(redone) == {"a": "done", "b": "done", "c": "done", "d": "done before"}
    other = tasks_of(slides, out, model="counterstain")
    assert statuses(run(other)) == dict.fromkeys("abcd", "done"), "another model"
    assert statuses(run(tasks_of(slides, out))) == dict.fromkeys("abcd", "done"), "and back again"


@pytest.mark.usefixtures("poisonous")
def test_a_slide_that_crashes_its_child_fails_alone(tmp_path: Path) -> None:
    names = [*"abcdefghijklmnopqrs", "poison"]  # in the order of names it is the 16th of twenty
    states = run(tasks_of(write_slides(tmp_path / "slides", names, side=200), tmp_path / "out"), attempts=2)
    found = statuses(states)
    assert found.pop("poison") == "failed"
    assert list(found.values()) == ["done"] * 19
    failed = next(state for state in states if state.status == "failed")
    assert failed.attempts == 2
    assert "SIGSEGV" in failed.error


@pytest.mark.usefixtures("poisonous")
def test_a_slide_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["a", "slow", "z"], side=200)
    states = run(tasks_of(slides, tmp_path / "out"), attempts=1, timeout_min=0.1)
    assert statuses(states) == {"a": "done", "slow": "failed", "z": "done"}
    assert "--timeout-min" in next(state.error for state in states if state.status == "failed")


def test_a_killed_child_costs_no_slide(slides: Path, tmp_path: Path) -> None:
    tasks = tasks_of(slides, tmp_path / "out")
    undisturbed = tasks_of(slides, tmp_path / "other")
    run(undisturbed)
    options = BatchOptions(children=2)
    engine = LocalEngine(tmp_path / "out", "cpu", options)
    victim = next(iter(engine._workers.values())).pid

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):  # on a fast machine all may be done by then
            os.kill(victim, signal.SIGKILL)

    threading.Timer(0.7, kill).start()
    states = run_batch(tasks, lambda: engine, options)
    assert statuses(states) == dict.fromkeys("abcd", "done")
    for one, other in zip(tasks, undisturbed, strict=True):
        assert (read_level(one.output, 0) == read_level(other.output, 0)).all()
    assert len(results_of(states)) == 4


def test_a_worn_child_is_replaced(slides: Path, tmp_path: Path) -> None:
    tasks = tasks_of(slides, tmp_path / "out")
    assert statuses(run(tasks, restart_every=2)) == dict.fromkeys("abcd", "done")
    logs = list((tmp_path / "out" / ".wsi2ihc-batch" / "logs").glob("child-*.log"))
    assert len(logs) >= 2


@pytest.fixture
def client(slides: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command(slides, tmp_path / "out"), stderr=subprocess.PIPE, start_new_session=True)
    yield process
    process.kill()
    process.communicate()


def wait_until(is_time: object, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not is_time():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.01)


def test_after_a_killed_client_only_what_is_missing_runs(
    slides: Path, tmp_path: Path, client: subprocess.Popen[bytes]
) -> None:
    done = tmp_path / "out" / ".wsi2ihc-batch" / "done"
    wait_until(lambda: list(done.glob("*.json")))
    children = psutil.Process(client.pid).children(recursive=True)
    client.kill()
    client.wait()
    psutil.wait_procs(children, timeout=20)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    before = {path.name: path.stat().st_mtime_ns for path in done.glob("*.json")}
    assert before
    again = subprocess.run(command(slides, tmp_path / "out", "--json"), capture_output=True, check=True)
    answer = json.loads(again.stdout)
    assert answer["counts"].get("done before", 0) == len(before)
    assert sum(answer["counts"].values()) == 4
    assert {name: (done / name).stat().st_mtime_ns for name in before} == before
    assert not list((tmp_path / "out").glob(".*.partial"))


def test_two_batches_on_one_folder_do_each_slide_once(slides: Path, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(command(slides, tmp_path / "out", "--json"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all(sum(answer["counts"].values()) == 4 for answer in answers)
    for task in tasks_of(slides, tmp_path / "out"):
        assert read_done(task) is not None
        assert read_level(task.output, 0).shape == (260, 260, 3)


def test_a_cache_is_used_and_left_empty(slides: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    tasks = tasks_of(slides, tmp_path / "out")[:1]
    assert statuses(run(tasks, cache=cache)) == {"a": "done"}  # type: ignore[arg-type]
    assert list(cache.iterdir()) == []


def test_children_share_the_cores_and_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    seen = [one["CUDA_VISIBLE_DEVICES"] for one in worker_environments("auto", BatchOptions())]
    assert seen == ["3", "5"]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in worker_environments("cuda:1", BatchOptions())] == ["5"]
    assert len(worker_environments("cpu", BatchOptions(children=3))) == 3
    with pytest.raises(DeviceError, match="there is no GPU 2"):
        worker_environments("cuda:2", BatchOptions())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        worker_environments("cuda", BatchOptions())
    assert OPTIONS.device == "cpu"


def test_a_table_that_another_batch_is_writing_does_not_block(tmp_path: Path) -> None:
    table = tmp_path / "results.csv"
    with published(table, overwrite=True) as partial:
        partial.write_text("another's")
        writer = ResultsWriter(tmp_path)
        writer.update(list)
        assert not table.exists()
    writer.finish([])
    assert table.read_text().startswith("slide,output,model,status")


def test_a_model_that_changes_is_not_used(tmp_path: Path) -> None:
    model = tmp_path / "net.safetensors"
    spec = GeneratorSpec(architecture="resnet", depth=1, width=4, mpp=0.5, stain="HER2")
    save_checkpoint(model, build_network(spec), spec)
    tasks = tasks_of(write_slides(tmp_path / "slides", ["a"]), tmp_path / "out", str(model))
    save_checkpoint(model, build_network(spec), spec)
    (state,) = run(tasks)
    assert state.status == "failed"
    assert "net.safetensors has changed" in state.error


def test_what_waits_does_not_count_as_time(slides: Path, tmp_path: Path) -> None:
    """Another batch has the slide for longer than a slide may take."""
    tasks = tasks_of(slides, tmp_path / "out")[:1]
    held = exclusive_lock(locks_folder(tmp_path / "out"), "busy", tasks[0].name)
    held.__enter__()
    threading.Timer(5, lambda: held.__exit__(None, None, None)).start()
    assert statuses(run(tasks, timeout_min=0.05, attempts=1)) == {"a": "done"}


@pytest.mark.usefixtures("poisonous")
def test_a_device_error_is_the_slides_that_has_it(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["a", "device", "z"], side=200)
    states = run(tasks_of(slides, tmp_path / "out"), attempts=1)
    assert statuses(states) == {"a": "done", "device": "failed", "z": "done"}


def test_an_interrupted_batch_leaves_no_partial_and_no_copy(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    process = subprocess.Popen(
        command(slides, tmp_path / "out", "--cache", str(tmp_path / "cache")), stderr=subprocess.PIPE,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_until(lambda: list((tmp_path / "out").glob(".*.ome.tiff.*.partial")) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode in (0, 130), error  # 0: it was too fast
    assert not list((tmp_path / "out").glob(".*.partial"))
    assert not list((tmp_path / "cache").iterdir())
    left, _ = read_results(tmp_path / "out")
    assert {one.status for one in left} <= {"done", "waiting", "interrupted"}
    assert process.returncode == 0 or "interrupted" in {one.status for one in left}
    assert (tmp_path / "out" / "summary.html").is_file()


def test_the_command_reports_failures_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def batch(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["batch", *arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    slides = write_slides(tmp_path / "slides", ["a"])
    (slides / "broken.tif").write_bytes(b"II*\0nothing")
    out = tmp_path / "out"
    arguments = command(slides, out)[4:]
    assert batch(*arguments)[0] == 1
    assert not out.exists()
    code, _, stderr = batch(*arguments, "--keep-going")
    assert code == 3
    assert "replaced" not in stderr
    code, stdout, stderr = batch(*arguments, "--keep-going", "-q")
    assert code == 3
    assert not stdout
    assert "failed  broken.tif: " in stderr
    changed = (*arguments, "--keep-going", "--model", "counterstain")
    code, stdout, _ = batch(*changed, "--dry-run")
    assert code == 3
    told, model = stdout.splitlines()
    assert told == "1 slide can be translated (0 done before, 1 output to be replaced), 1 cannot"
    assert model.startswith("  model counterstain: Takes the eosin out")
    assert (
        "replacing outputs (damaged, made with different options, or not by a batch): a.ome.tiff" in batch(*changed)[2]
    )
    code, stdout, _ = batch("--status", str(out), "--json")
    assert code == 3
    answer = json.loads(stdout)
    assert answer["counts"] == {"done": 1, "failed": 1}
    (done,) = (slide for slide in answer["slides"] if slide["status"] == "done")
    assert done["model"] == "counterstain"
    assert isinstance(done["seconds"], float)


def test_a_checkpoint_is_removed_by_a_batch_without_resume(tmp_path: Path) -> None:
    """A batch with --resume was killed, and the next one is without."""
    (task,) = tasks_of(write_slides(tmp_path / "slides", ["a"]), tmp_path / "out")
    store = checkpoint_path(task.output)
    store.mkdir()
    (store / IN_USE).touch()
    assert statuses(run([task])) == {"a": "done"}
    assert not store.exists()


def test_links_in_the_folder_of_a_batch_lead_nowhere(slides: Path, tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.mkdir()
    out.mkdir()
    (out / BATCH_FOLDER).symlink_to(victim)
    with pytest.raises(OutputError, match="symbolic link"):
        check_folder(out)
    (out / BATCH_FOLDER).unlink()
    (out / BATCH_FOLDER).mkdir()
    (out / BATCH_FOLDER / "locks").symlink_to(victim)
    with pytest.raises(OutputError, match="symbolic link"):
        check_folder(out)
    (victim / "file").write_text("content")
    log = logs_folder(out) / "child.log"
    log.parent.mkdir()
    log.symlink_to(victim / "file")
    with pytest.raises(OSError, match="symbolic link"):
        LocalWorker(0, lambda *_: None, {}, log)
    assert [(path.name, path.read_text()) for path in victim.iterdir()] == [("file", "content")]


def test_a_full_disk_under_the_log_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    monkeypatch.setattr(local, "open_without_following", lambda _path, flags: os.open("/dev/full", flags & ~os.O_CREAT))
    is_ready = threading.Event()
    worker = LocalWorker(0, lambda *_: is_ready.set(), {}, tmp_path / "child.log")
    assert is_ready.wait(120)
    worker._process.send("not a task")  # a traceback on stderr
    time.sleep(0.5)
    assert worker.end() == 0
    assert not worker._log_thread.is_alive()
    assert failures == []


def test_workers_that_never_start_end_the_batch(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import os, sys\nif len(sys.argv) > 1: os._exit(7)\n")
    environment = {"PYTHONPATH": str(tmp_path / "site")}
    engine = LocalEngine(tmp_path / "out", "cpu", BatchOptions(), environments=[environment])
    with pytest.raises(DeviceError, match=r"worker processes ended before they were ready \(.* code 7\); see "):
        run_batch(tasks_of(slides, tmp_path / "out"), lambda: engine, BatchOptions())
    assert len(list(logs_folder(tmp_path / "out").iterdir())) == 3


def test_gpus_are_counted_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'GPU 0: H200 (UUID: GPU-1)'\necho '  MIG 1g'\necho 'GPU 1: A2 (UUID: GPU-2)'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.visible_gpus() == ["0", "1"]
    with pytest.raises(DeviceError, match="there is no GPU 2; the number of visible GPUs is 2"):
        worker_environments("cuda:2", BatchOptions())
