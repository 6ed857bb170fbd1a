"""Tables of a run after an interruption, after resuming, and on a full disk."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi2ihc.errors import OutputError, TrainingError
from wsi2ihc.geometry import RGBImage
from wsi2ihc.training.history import RunRecord, read_steps, read_validation

LOSSES = ("generator", "l1")
SCORES = ("psnr",)


def opened(folder: Path, first_step: int = 0, first_epoch: int = 0, tensorboard: bool = False) -> RunRecord:
    return RunRecord(folder, first_step, first_epoch, tensorboard, step_names=LOSSES, validation_names=SCORES)


def train(record: RunRecord, first: int, last: int, per_epoch: int = 4) -> None:
    """Note steps ``first`` to ``last``, whose values follow from their numbers, and validate after each epoch."""
    for step in range(first, last + 1):
        record.step(step, 1 + (step - 1) // per_epoch, {"generator": 1 / step, "l1": step / 3})
        if step % per_epoch == 0:
            record.validation(step // per_epoch, step, {"psnr": 20 + 1 / step})


def tables(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "steps.csv").read_bytes(), (folder / "validation.csv").read_bytes()


def read(path: Path) -> RGBImage:
    with Image.open(path) as image:
        return np.asarray(image)


def test_values_round_trip_exactly(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1e-300, float(np.nextafter(1, 2)), float("inf")]
    with opened(tmp_path) as record:
        for step, value in enumerate(values, start=1):
            record.step(step, 1, {"generator": value, "l1": float(np.float32(0.1))})
    columns = read_steps(tmp_path)
    assert list(columns) == ["step", "epoch", *LOSSES]
    assert columns["generator"].tolist() == values
    assert columns["l1"].tolist() == [float(np.float32(0.1))] * 4
    assert columns["step"].tolist() == [1, 2, 3, 4]
    assert all(column.dtype == np.float64 for column in columns.values())


def test_missing_and_undefined_values_are_nan(tmp_path: Path) -> None:
    with opened(tmp_path) as record:
        record.step(1, 1, {"generator": 2.0})
        record.step(2, 1, {"generator": float("nan"), "l1": 1.0})
    assert (tmp_path / "steps.csv").read_text().splitlines()[1:] == ["1,1,2.0,", "2,1,nan,1.0"]
    np.testing.assert_array_equal(read_steps(tmp_path)["l1"], [np.nan, 1.0])
    np.testing.assert_array_equal(read_steps(tmp_path)["generator"], [2.0, np.nan])


def test_new_run_has_empty_tables(tmp_path: Path) -> None:
    with opened(tmp_path):
        assert {name: len(column) for name, column in read_steps(tmp_path).items()} == dict.fromkeys(
            ("step", "epoch", *LOSSES), 0
        )
    assert list(read_validation(tmp_path)) == ["epoch", "step", *SCORES]


def test_new_run_replaces_tables(tmp_path: Path) -> None:
    with opened(tmp_path) as record:
        train(record, 1, 4)
    with opened(tmp_path):
        pass
    assert len(read_steps(tmp_path)["step"]) == len(read_validation(tmp_path)["step"]) == 0


@pytest.mark.parametrize(("done", "checkpoint"), [(10, 10), (11, 6), (12, 10), (5, 3), (8, 8), (3, 1)])
def test_tables_of_resumed_and_uninterrupted_runs_are_equal(tmp_path: Path, done: int, checkpoint: int) -> None:
    with opened(tmp_path / "whole") as record:
        train(record, 1, 14)
    stopped = opened(tmp_path / "resumed")
    train(stopped, 1, done)  # never closed, as after a kill
    with opened(tmp_path / "resumed", checkpoint, checkpoint // 4) as record:
        assert read_steps(tmp_path / "resumed")["step"].max() == checkpoint
        train(record, checkpoint + 1, 14)
    stopped.close()
    assert tables(tmp_path / "resumed") == tables(tmp_path / "whole")


def test_validation_before_the_first_step_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as record:
        record.validation(0, 0, {"psnr": 9.0})
        train(record, 1, 3)
    with opened(tmp_path, 2, 0):
        pass
    assert read_validation(tmp_path)["psnr"].tolist() == [9.0]


@pytest.mark.parametrize("torn", ["3", "3,1", "3,1,0.5,0.2", "3,1,0.5,", "\0\0\0"])
def test_incomplete_last_line_is_ignored_and_then_dropped(tmp_path: Path, torn: str) -> None:
    with opened(tmp_path) as record:
        train(record, 1, 2)
    whole = (tmp_path / "steps.csv").read_bytes()
    with (tmp_path / "steps.csv").open("a") as file:
        file.write(torn)
    assert read_steps(tmp_path)["step"].tolist() == [1, 2]
    with opened(tmp_path, 2, 0) as record:
        assert (tmp_path / "steps.csv").read_bytes() == whole
        train(record, 3, 3)
    assert read_steps(tmp_path)["step"].tolist() == [1, 2, 3]


def test_rows_survive_sigkill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from wsi2ihc.training.history import RunRecord\n"
        "record = RunRecord(Path(sys.argv[1]), 0, 0, False, step_names=['a'], validation_names=['b'])\n"
        "for step in range(1, 8): record.step(step, 1, {'a': step / 7})\n"
        "record.validation(1, 7, {'b': 0.5})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert ended.returncode == -9
    assert read_steps(tmp_path)["a"].tolist() == [step / 7 for step in range(1, 8)]
    assert read_validation(tmp_path)["b"].tolist() == [0.5]


def test_step_is_not_written_twice(tmp_path: Path) -> None:
    with opened(tmp_path, 0, 0) as record:
        with pytest.raises(ValueError, match=r"step 0 is not after 0 in steps\.csv"):
            record.step(0, 1, {})
        train(record, 1, 4)
        with pytest.raises(ValueError, match="epoch 1 is not after 1"):
            record.validation(1, 5, {})
    assert read_steps(tmp_path)["step"].tolist() == [1, 2, 3, 4]


def test_unknown_names_are_an_error(tmp_path: Path) -> None:
    with opened(tmp_path) as record, pytest.raises(ValueError, match="has no column psnr"):
        record.step(1, 1, {"generator": 1.0, "psnr": 1.0})
    with pytest.raises(ValueError, match="distinct"):
        RunRecord(tmp_path, 0, 0, False, step_names=("epoch",), validation_names=())


def test_other_columns_are_an_error(tmp_path: Path) -> None:
    with opened(tmp_path) as record:
        train(record, 1, 4)
    before = tables(tmp_path)
    with pytest.raises(TrainingError, match=r"steps\.csv has other columns"):
        RunRecord(tmp_path, 2, 0, False, step_names=("generator",), validation_names=SCORES)
    assert tables(tmp_path) == before


def test_missing_table_is_replaced_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as record:
        train(record, 1, 8)
    (tmp_path / "validation.csv").unlink()
    with opened(tmp_path, 8, 2) as record:
        train(record, 9, 12)
    assert "validation.csv is missing" in caplog.text
    assert read_validation(tmp_path)["epoch"].tolist() == [3]
    assert len(read_steps(tmp_path)["step"]) == 12


def test_invalid_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"steps\.csv is missing.*not the folder of a training run"):
        read_steps(tmp_path)
    for content in (b"", b"name,age\nada,36\n", b"\x89PNG\r\n\x1a\n\0\0", b"epoch,step,psnr\n"):
        (tmp_path / "steps.csv").write_bytes(content)
        with pytest.raises(TrainingError, match="is not a table of a training run"):
            read_steps(tmp_path)
    for row in ("x,1,2", "2,1", "2,1,2,3", "1.5,1,2", "nan,1,2"):
        (tmp_path / "steps.csv").write_text(f"step,epoch,l1\n1,1,2\n{row}\n3,1,2\n")
        with pytest.raises(TrainingError, match="damaged in line 3"):
            read_steps(tmp_path)
    (tmp_path / "steps.csv").unlink()
    (tmp_path / "steps.csv").mkdir()
    with pytest.raises(TrainingError, match="cannot read"):
        read_steps(tmp_path)


def test_table_saved_by_a_spreadsheet(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_bytes(b"step,epoch,l1\r\n1,1,2.5\r\n2,1,\r\n")
    np.testing.assert_array_equal(read_steps(tmp_path)["l1"], [2.5, np.nan])


SMALL_BYTES = 4096


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file of this process can grow beyond some bytes: the closest to a full disk that needs no disk.

    Not a fixture, which would still hold when pytest writes the test's result, perhaps to a large file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_leaves_complete_rows(tmp_path: Path) -> None:
    with (
        small_files(),
        pytest.raises(OutputError, match=r"cannot write .*steps\.csv: .*free some space"),
        opened(tmp_path) as record,
    ):
        train(record, 1, 1000, per_epoch=2000)
    content = (tmp_path / "steps.csv").read_bytes()
    assert content.endswith(b"\n")
    assert SMALL_BYTES - 60 < len(content) <= SMALL_BYTES
    assert len(read_steps(tmp_path)["step"]) > 50


def test_failed_sample_image_keeps_the_previous_one(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with small_files(), opened(tmp_path) as record:
        record.samples(1, np.zeros((8, 8, 3), np.uint8))
        with pytest.raises(OutputError, match=r"epoch-0001\.png"):
            record.samples(1, noise)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["epoch-0001.png"]
    assert read(tmp_path / "samples" / "epoch-0001.png").shape == (8, 8, 3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="run"):
        opened(tmp_path / "run")


def test_file_instead_of_the_run_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="run"):
        opened(tmp_path / "run")


def test_sample_images_are_named_by_epoch(tmp_path: Path) -> None:
    image = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    with opened(tmp_path) as record:
        record.samples(12, image)
    np.testing.assert_array_equal(read(tmp_path / "samples" / "epoch-0012.png"), image)


def test_first_error_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = RunRecord.close

    def failing(self: RunRecord) -> None:
        close(self)
        raise OutputError("closing failed")

    monkeypatch.setattr(RunRecord, "close", failing)
    with pytest.raises(TrainingError, match="first"), opened(tmp_path):
        raise TrainingError("first")
    with pytest.raises(OutputError, match="closing failed"), opened(tmp_path / "other"):
        pass
