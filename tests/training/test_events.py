"""TensorBoard events read back by TensorBoard, and errors while writing them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wsi2ihc.errors import OutputError
from wsi2ihc.training import history
from wsi2ihc.training.history import EventFile, RunRecord, open_events, read_steps

LOSSES = ("generator", "learning_rate")


@pytest.fixture
def shown() -> Callable[[Path], Any]:
    """What TensorBoard shows of a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return lambda folder: accumulator.EventAccumulator(str(folder)).Reload()


def opened(folder: Path, first_step: int = 0, first_epoch: int = 0) -> RunRecord:
    return RunRecord(folder, first_step, first_epoch, step_names=LOSSES, validation_names=("psnr",))


def values(log: Any, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in log.Scalars(tag)}


def test_events_of_losses_metrics_and_samples(tmp_path: Path, shown: Callable[[Path], Any]) -> None:
    image = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    with opened(tmp_path) as record:
        record.validation(0, 0, {"psnr": 9.5})
        for step in range(1, 5):
            record.step(step, 1, {"generator": step / 4, "learning_rate": 0.5})
        record.validation(1, 4, {"psnr": float("nan")})
        record.samples(1, image)
    log = shown(tmp_path / "tensorboard")
    assert log.Tags()["scalars"] == ["validation/psnr", "loss/generator", "progress/learning_rate"]
    assert values(log, "loss/generator") == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1}
    assert values(log, "progress/learning_rate") == dict.fromkeys(range(1, 5), 0.5)
    assert values(log, "validation/psnr") == pytest.approx({0: 9.5, 4: float("nan")}, nan_ok=True)
    (logged,) = log.Images("validation/samples")
    assert (logged.step, logged.width, logged.height) == (4, 6, 8)
    from cv2 import COLOR_BGR2RGB, IMREAD_COLOR, cvtColor, imdecode

    decoded = imdecode(np.frombuffer(logged.encoded_image_string, np.uint8), IMREAD_COLOR)
    assert decoded is not None
    np.testing.assert_array_equal(cvtColor(decoded, COLOR_BGR2RGB), image)


def test_events_of_a_resumed_run(tmp_path: Path, shown: Callable[[Path], Any]) -> None:
    with opened(tmp_path) as before:
        for step in range(1, 7):
            before.step(step, 1, {"generator": 100.0 + step})
        before.samples(1, np.zeros((8, 8, 3), np.uint8))
    with opened(tmp_path, 4, 1) as after:
        for step in range(5, 8):
            after.step(step, 2, {"generator": step})
    log = shown(tmp_path / "tensorboard")
    assert values(log, "loss/generator") == {1: 101, 2: 102, 3: 103, 4: 104, 5: 5, 6: 6, 7: 7}
    assert log.Images("validation/samples") == []  # that of step 6, which was done again


def test_new_run_hides_events_of_an_aborted_start(tmp_path: Path, shown: Callable[[Path], Any]) -> None:
    for first in (10.0, 20.0):
        with opened(tmp_path) as record:
            record.validation(0, 0, {"psnr": first})
    assert values(shown(tmp_path / "tensorboard"), "validation/psnr") == {0: 20}


def test_events_are_flushed_during_the_run(
    tmp_path: Path, shown: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time=lambda: 1.7e9, monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(history, "time", clock)
    threads = threading.active_count()
    file = EventFile(tmp_path, 0)
    (path,) = tmp_path.iterdir()
    begun = path.stat().st_size
    for step, clock.now in ((1, 100.5), (2, 119.9)):
        file.scalars(step, {"a": step})
        assert path.stat().st_size == begun
    for step, clock.now in ((3, 120.5), (4, 121.0)):
        file.scalars(step, {"a": step})
    assert values(shown(tmp_path), "a") == {1: 1, 2: 2, 3: 3}
    file.close()
    assert values(shown(tmp_path), "a") == {1: 1, 2: 2, 3: 3, 4: 4}
    assert threading.active_count() == threads


def test_event_files_of_one_second_are_ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    for now in (1.7e9, 1.7e9 + 0.0005, 1.7e9 + 0.25):
        monkeypatch.setattr(history, "time", SimpleNamespace(time=lambda now=now: now, monotonic=time.monotonic))
        EventFile(tmp_path, 0).close()
    names = [f"events.out.tfevents.{at}.{os.getpid()}" for at in (
        "1700000000.000000", "1700000000.000500", "1700000000.250000")]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_full_disk_is_a_one_line_error(tmp_path: Path, shown: Callable[[Path], Any]) -> None:
    # in a process of its own: only so would a thread's traceback, or one at exit, be seen
    code = (
        "import resource, signal, sys; from pathlib import Path; from wsi2ihc.errors import OutputError\n"
        "from wsi2ihc.training import history; history.FLUSH_S = 0\n"
        "file, done = history.EventFile(Path(sys.argv[1]), 0), 0\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    for done in range(1000): file.scalars(done, {'a': done})\n"
        "except OutputError as error: print(done, error)\n"
        "file.close()"
    )
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", code, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    (line,) = ended.stdout.splitlines()
    done, message = line.split(" ", 1)
    assert message.startswith(f"cannot write {tmp_path}/events.out.tfevents.")
    assert message.endswith("free some space or write elsewhere")
    assert values(shown(tmp_path), "a") == {step: step for step in range(int(done))}  # nothing torn


def test_close_reports_a_full_disk_and_closes_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    record = opened(tmp_path)
    record.step(1, 1, {"generator": 1.0})
    before = {path.name: path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OutputError, match=r"cannot write .*tfevents.*: No space left"):
            record.close()
    record.close()  # closed, and nothing left to write
    assert {path.name: path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()} == before
    with pytest.raises(ValueError, match=r"steps\.csv is closed"):
        record.step(2, 1, {"generator": 1.0})


def full(handle: int, content: bytes) -> int:
    raise OSError(28, "No space left on device")


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*tensorboard: "):
        EventFile(tmp_path / "tensorboard", 0)


@pytest.mark.parametrize("missing", ["tensorboard.summary.writer.record_writer", "torch.utils.tensorboard"])
def test_tensorboard_is_optional(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # importing it fails
    with caplog.at_level(logging.INFO, logger="wsi2ihc"), opened(tmp_path) as record:
        record.step(1, 1, {"generator": 1.0})
        record.samples(1, np.zeros((8, 8, 3), np.uint8))
    assert caplog.messages == ["TensorBoard is not installed (pip install tensorboard): no events are written"]
    assert not (tmp_path / "tensorboard").exists()
    assert len(read_steps(tmp_path)["step"]) == 1
    assert open_events(tmp_path, 0) is None
