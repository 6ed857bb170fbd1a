"""TensorBoard events read back by TensorBoard, and errors while writing them."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_history import small_files

from wsi2ihc.errors import OutputError
from wsi2ihc.training.history import Events, RunRecord, open_events, read_steps

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


def wait_for_the_next_second() -> None:
    """Wait until a new event file follows the others by its name, which holds the time in seconds."""
    time.sleep(1 - time.time() % 1)


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
    wait_for_the_next_second()
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
        wait_for_the_next_second()
    assert values(shown(tmp_path / "tensorboard"), "validation/psnr") == {0: 20}


def test_events_of_a_killed_run_can_be_read(tmp_path: Path, shown: Callable[[Path], Any]) -> None:
    code = (
        "import os, signal, sys, time; from pathlib import Path; from wsi2ihc.training.history import Events\n"
        "events = Events(Path(sys.argv[1]), 0)\n"
        "for step in range(50): events.scalars(step, {'a': step})\n"
        "time.sleep(2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120, check=False)
    assert ended.returncode == -9
    assert values(shown(tmp_path), "a") == {step: step for step in range(50)}


def test_closing_ends_the_thread(tmp_path: Path, shown: Callable[[Path], Any]) -> None:
    threads = threading.active_count()
    events = Events(tmp_path, 0)
    events.scalars(1, {"a": 1})
    events.close()
    events.close()
    assert threading.active_count() == threads
    assert values(shown(tmp_path), "a") == {1: 1}


def test_full_disk_is_a_one_line_error(tmp_path: Path, shown: Callable[[Path], Any]) -> None:
    # in a process of its own: only so would a thread's traceback, or one at exit, be seen
    code = (
        "import resource, sys, time; from pathlib import Path; from wsi2ihc.errors import OutputError\n"
        "from wsi2ihc.training.history import Events\n"
        "events, done = Events(Path(sys.argv[1]), 0), 0\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    for done in range(1000): events.scalars(done, {'a': done})\n"
        "except OutputError as error: print(done, error)\n"
        "events.close()\n"
        "time.sleep(0.5)"
    )
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", code, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    (line,) = ended.stdout.splitlines()
    done, message = line.split(" ", 1)
    assert message == f"cannot write {tmp_path}: File too large; free some space or write elsewhere"
    found = values(shown(tmp_path), "a")
    assert 20 < len(found) <= int(done)
    assert found == {step: step for step in range(len(found))}  # nothing torn is shown


def test_events_after_a_full_disk_are_shown(tmp_path: Path, shown: Callable[[Path], Any]) -> None:
    with small_files(), pytest.raises(OutputError, match=r"cannot write .*tensorboard"), opened(tmp_path) as record:
        fill(record)
    wait_for_the_next_second()
    with opened(tmp_path, 5, 0) as record:
        record.step(6, 1, {"generator": 100})
    assert values(shown(tmp_path / "tensorboard"), "loss/generator") == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 100}


def test_close_reports_a_full_disk_and_closes_all_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    record = opened(tmp_path)
    with small_files(), pytest.raises(OutputError, match=r"cannot write .*tensorboard: File too large"):
        fill(record)
    record.close()
    record.close()  # closed, and nothing left to write
    with pytest.raises(ValueError, match=r"steps\.csv is closed"):
        record.step(1000, 1, {"generator": 1.0})


def fill(record: RunRecord) -> None:
    """Write more than 4 kB of events, but not of tables; the error of the thread may be raised by any call."""
    for step in range(1, 100):
        record.step(step, 1, {"generator": step, "learning_rate": 1.0})
    record.close()


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*tensorboard: "):
        Events(tmp_path / "tensorboard", 0)


@pytest.mark.parametrize("missing", ["tensorboard", "torch.utils.tensorboard"])
def test_tensorboard_is_optional(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)  # importing it fails
    with caplog.at_level(logging.INFO, logger="wsi2ihc"), opened(tmp_path) as record:
        record.step(1, 1, {"generator": 1.0})
        record.samples(1, np.zeros((8, 8, 3), np.uint8))
    assert caplog.messages == ["TensorBoard is not installed (pip install tensorboard): no events are written"]
    assert not (tmp_path / "tensorboard").exists()
    assert len(read_steps(tmp_path)["step"]) == 1
    assert open_events(tmp_path, 0) is None
