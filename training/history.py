"""What a training run writes down as it goes: two tables, a picture per epoch, and the same for TensorBoard.

A row is in its file as soon as it is given, so a killed run loses at most the row that was being written. A run that is
resumed does some steps again; their rows are dropped first, so its tables are those of a run that was never stopped.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import OutputError, TrainingError
from wsi2ihc.files import read_regular

from .events import open_events
from .files import GrowingFile, make_folder, write_whole
from .pictures import save_png

STEPS = "steps.csv"
VALIDATION = "validation.csv"
PICTURES = "pictures"
TENSORBOARD = "tensorboard"

STEP_KEYS = ("step", "epoch")
VALIDATION_KEYS = ("epoch", "step")
"""The first columns; rows are in the order of the very first."""

NOT_LOSSES = frozenset({"learning_rate", "images_per_s", "seconds"})
"""Columns of the steps that tell how training goes, not what it minimises."""

_LARGEST_TABLE_BYTES = 1 << 30
"""Ten million steps take some 800 MB."""

Columns = dict[str, npt.NDArray[np.float64]]

_log = logging.getLogger(__name__)


class RunRecord:
    """The tables, pictures and TensorBoard events of one run. A context manager; one per run, in one process.

    Parameters
    ----------
    folder
        Of the run; made if it is not there.
    first_step
        How many steps were done before: 0 for a new run, else that of the checkpoint it goes on from. Rows of later
        steps are dropped, and the next step is ``first_step + 1``: steps and epochs count from 1.
    first_epoch
        How many epochs were done, validation included.
    tensorboard
        Whether to write TensorBoard events too.
    step_names, validation_names
        Columns after step and epoch, in this order.

    Raises
    ------
    OutputError
        If a file cannot be written, then or later.
    TrainingError
        If tables to go on with are damaged or have other columns.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        first_epoch: int,
        tensorboard: bool = True,
        *,
        step_names: Sequence[str],
        validation_names: Sequence[str],
    ) -> None:
        self._pictures = folder / PICTURES
        make_folder(self._pictures)
        resumed = first_step > 0
        done = first_epoch if resumed else -1  # a validation before the first step is that of epoch 0
        self._steps = _Table(folder / STEPS, STEP_KEYS, step_names, first_step, resumed)
        self._validation = _Table(folder / VALIDATION, VALIDATION_KEYS, validation_names, done, resumed)
        # of steps that are done again, TensorBoard shows the later event
        first_shown = first_step + 1 if resumed else 0
        self._events = open_events(folder / TENSORBOARD, first_shown) if tensorboard else None
        self._step = first_step

    def step(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Note the losses of one step. What is missing from ``values`` stays empty."""
        self._steps.append((step, epoch), values)
        self._step = step
        if self._events:
            self._events.scalars(step, {_step_tag(name): value for name, value in values.items()})

    def validation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Note the metrics of one validation, after ``epoch`` epochs and ``step`` steps."""
        self._validation.append((epoch, step), values)
        if self._events:
            self._events.scalars(step, {f"validation/{name}": value for name, value in values.items()})

    def picture(self, epoch: int, image: RGBImage) -> None:
        """Keep the picture of an epoch, (rows, columns, 3)."""
        save_png(self._pictures / f"epoch-{epoch:04d}.png", image)
        if self._events:
            self._events.image(self._step, "validation/picture", image)

    def close(self) -> None:
        """Write what is held back, and close the files."""
        with contextlib.ExitStack() as files:  # if one fails, the others are closed all the same
            files.callback(self._steps.close)
            files.callback(self._validation.close)
            if self._events:
                files.callback(self._events.close)

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(*([OutputError] if error else [])):  # what went wrong first is what is told
            self.close()


def read_steps(folder: Path) -> Columns:
    """The columns of a run's ``steps.csv``, float64 each, NaN where a value is missing.

    A last line that is still being written is left out.

    Raises
    ------
    TrainingError
        If the file is missing, damaged, or something else.
    """
    return _columns(folder / STEPS, STEP_KEYS)


def read_validation(folder: Path) -> Columns:
    """The columns of a run's ``validation.csv``; see `read_steps`."""
    return _columns(folder / VALIDATION, VALIDATION_KEYS)


class _Table:
    """A CSV file that grows by whole rows, in the order of its first column."""

    def __init__(self, path: Path, keys: tuple[str, str], names: Sequence[str], last: int, resumed: bool) -> None:
        self._path, self._names, self._header = path, tuple(names), (*keys, *names)
        if len(set(self._header)) < len(self._header) or any(set(name) & set(',"\r\n') for name in names):
            raise ValueError(f"columns must be distinct and without commas: {', '.join(self._header)}")
        self._last = last
        rows = _rows_to_keep(path, keys, self._header, last) if resumed else []
        write_whole(path, "".join(f"{line}\n" for line in [",".join(self._header), *rows]).encode())
        self._file = GrowingFile(path)

    def append(self, keys: tuple[int, int], values: Mapping[str, float]) -> None:
        unknown = values.keys() - set(self._names)
        if unknown:
            raise ValueError(f"{self._path.name} has no column {', '.join(sorted(unknown))}")
        if keys[0] <= self._last:
            raise ValueError(f"{self._header[0]} {keys[0]} is not after {self._last} in {self._path.name}")
        cells = [_cell(values.get(name)) for name in self._names]
        row = ",".join([*map(str, keys), *cells]) + "\n"
        self._file.append(row.encode())
        self._last = keys[0]

    def close(self) -> None:
        self._file.close()


def _step_tag(name: str) -> str:
    return f"progress/{name}" if name in NOT_LOSSES else f"loss/{name}"


def _rows_to_keep(path: Path, keys: tuple[str, str], header: tuple[str, ...], last: int) -> list[str]:
    """The rows up to number ``last``, as they stand."""
    if not path.exists():
        _log.warning("%s is missing: the run goes on with a new one", path)
        return []
    found, rows = _lines(path, keys)
    if found != header:
        raise TrainingError(f"{path} has other columns than this run writes: move it away, or start a new run")
    return [",".join(row) for row in rows if int(row[0]) <= last]


def _columns(path: Path, keys: tuple[str, str]) -> Columns:
    header, rows = _lines(path, keys)
    table = np.array([[float(cell or "nan") for cell in row] for row in rows], dtype=np.float64)
    return dict(zip(header, table.reshape(-1, len(header)).T, strict=True))


def _lines(path: Path, keys: tuple[str, str]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Header and cells of a table, without a last line that is not whole."""
    try:
        text = read_regular(path, _LARGEST_TABLE_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise TrainingError(f"{path} is missing: {path.parent} is not the folder of a training run") from None
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}") from error
    lines = [line.rstrip("\r") for line in text.split("\n")[:-1]]  # a whole line ends in a newline
    header = tuple(lines[0].split(",")) if lines else ()
    if header[:2] != keys:
        raise TrainingError(f"{path} is not a table of a training run: it has to begin with {','.join(keys)}")
    rows = [line.split(",") for line in lines[1:]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header) or not _are_numbers(row):
            raise TrainingError(f"{path} is damaged in line {number}: remove that line")
    return header, rows


def _are_numbers(row: list[str]) -> bool:
    try:
        int(row[0])
        for cell in row[1:]:
            float(cell or "nan")
    except ValueError:
        return False
    return True


def _cell(value: float | None) -> str:
    """The shortest text that reads back as the same float."""
    return "" if value is None else repr(float(value))
