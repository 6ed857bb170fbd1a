"""Training log: CSV tables, sample images and TensorBoard events.

`RunRecord` writes all three; `read_steps` and `read_validation` read the tables. When a run is resumed, rows after the
checkpoint are dropped, and TensorBoard drops the events of those steps.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from wsi2ihc.atomic_files import cannot_write, make_folder, write_atomically
from wsi2ihc.errors import OutputError, TrainingError
from wsi2ihc.files import open_without_following, read_regular
from wsi2ihc.geometry import RGBImage

from .image_grid import save_png

_log = logging.getLogger(__name__)

STEPS, VALIDATION, SAMPLES, TENSORBOARD = "steps.csv", "validation.csv", "samples", "tensorboard"

STEP_KEYS, VALIDATION_KEYS = ("step", "epoch"), ("epoch", "step")
"""The first columns; rows are ordered by the very first."""

NOT_LOSSES = frozenset({"learning_rate", "images_per_s", "seconds"})
"""Columns of the steps that are not losses."""

_LARGEST_TABLE_BYTES = 1 << 30
"""Ten million steps take some 800 MB."""

Columns = dict[str, npt.NDArray[np.float64]]


class Events:
    """TensorBoard events; a run has one file for each time that it was started.

    A thread of torch's `SummaryWriter` writes every event at once, so those of a killed run can be read. An error ends
    it, and the next method that is called raises an `OutputError`; from then on, events are ignored.

    Events of ``first_step`` and later ones in older files are hidden. Without TensorBoard, this raises `ImportError`.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _hide_tracebacks_of_event_threads()
        self._folder = folder
        self._writer: SummaryWriter | None = None
        make_folder(folder)
        with self._errors():
            self._writer = SummaryWriter(folder, purge_step=first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step by their tags."""
        with self._errors():
            for tag, value in values.items():
                if self._writer:
                    self._writer.add_scalar(tag, value, step)

    def image(self, step: int, tag: str, image: RGBImage) -> None:
        """Add an image, (rows, columns, 3)."""
        with self._errors():
            if self._writer:
                self._writer.add_image(tag, image, step, dataformats="HWC")

    def close(self) -> None:
        """Wait until all events are written, and end the thread."""
        with self._errors():
            if self._writer:
                self._writer.close()
                self._writer = None

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            raise cannot_write(self._folder, error) from error


@functools.cache
def _hide_tracebacks_of_event_threads() -> None:
    """Print no traceback when a thread of TensorBoard fails, since the next call raises its error."""
    print_traceback = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            print_traceback(failed)

    threading.excepthook = hook


def open_events(folder: Path, first_step: int) -> Events | None:
    """Return `Events`, or None if TensorBoard is not installed."""
    try:
        return Events(folder, first_step)
    except ImportError:
        _log.info("TensorBoard is not installed (pip install tensorboard): no events are written")
        return None


class RunRecord:
    """Writer of the tables, sample images and TensorBoard events of one run, used as a context manager in one process.

    Parameters
    ----------
    folder
        Of the run; made if missing.
    first_step
        Number of steps done before: 0 for a new run, else that of the checkpoint. Rows of later steps are dropped, and
        the next step is ``first_step + 1``: steps and epochs count from 1.
    first_epoch
        Number of epochs done, including validation.
    step_names, validation_names
        Columns after step and epoch, in this order.

    Raises
    ------
    OutputError
        If a file cannot be written, then or later.
    TrainingError
        If existing tables are damaged or have other columns.
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
        self._samples = folder / SAMPLES
        make_folder(self._samples)
        resumed = first_step > 0
        done = first_epoch if resumed else -1  # a validation before the first step is that of epoch 0
        with contextlib.ExitStack() as files:  # if one cannot be opened or closed, the others are still closed
            self._steps = _Table(folder / STEPS, STEP_KEYS, step_names, first_step, resumed)
            files.callback(self._steps.close)
            self._validation = _Table(folder / VALIDATION, VALIDATION_KEYS, validation_names, done, resumed)
            files.callback(self._validation.close)
            self._events = open_events(folder / TENSORBOARD, first_step + 1 if resumed else 0) if tensorboard else None
            if self._events:
                files.callback(self._events.close)
            self._files = files.pop_all()
        self._step = first_step

    def step(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write the losses of one step. Values that are missing from ``values`` stay empty."""
        self._steps.append((step, epoch), values)
        self._step = step
        if self._events:
            tags = {name: f"progress/{name}" if name in NOT_LOSSES else f"loss/{name}" for name in values}
            self._events.scalars(step, {tags[name]: value for name, value in values.items()})

    def validation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of one validation, after ``epoch`` epochs and ``step`` steps."""
        self._validation.append((epoch, step), values)
        if self._events:
            self._events.scalars(step, {f"validation/{name}": value for name, value in values.items()})

    def samples(self, epoch: int, image: RGBImage) -> None:
        """Write the sample image of an epoch, (rows, columns, 3)."""
        save_png(self._samples / f"epoch-{epoch:04d}.png", image)
        if self._events:
            self._events.image(self._step, "validation/samples", image)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(*([OutputError] if error else [])):  # the first error is reported
            self.close()


def read_steps(folder: Path) -> Columns:
    """Read the columns of a run's ``steps.csv``, float64 each, NaN where a value is missing.

    An incomplete last line is ignored.

    Raises
    ------
    TrainingError
        If the file is missing, damaged, or another file.
    """
    return _columns(folder / STEPS, STEP_KEYS)


def read_validation(folder: Path) -> Columns:
    """Read the columns of a run's ``validation.csv``; see `read_steps`."""
    return _columns(folder / VALIDATION, VALIDATION_KEYS)


class _Table:
    """CSV file to which rows are appended in the order of its first column, each completely or not at all.

    It is not buffered: an error is raised at once, and closing does not try to write again.
    """

    def __init__(self, path: Path, keys: tuple[str, str], names: Sequence[str], last: int, resumed: bool) -> None:
        self._path, self._names, self._header = path, tuple(names), (*keys, *names)
        if len(set(self._header)) < len(self._header) or any(set(name) & set(',"\r\n') for name in names):
            raise ValueError(f"columns must be distinct and without commas: {', '.join(self._header)}")
        self._last = last
        rows = _rows_to_keep(path, keys, self._header, last) if resumed else []
        content = "".join(f"{line}\n" for line in [",".join(self._header), *rows]).encode()
        write_atomically(path, content)
        self._size = len(content)
        try:
            self._file = io.FileIO(open_without_following(path, os.O_WRONLY | os.O_APPEND), "ab")
        except OSError as error:
            raise cannot_write(path, error) from error

    def append(self, keys: tuple[int, int], values: Mapping[str, float]) -> None:
        if self._file.closed:
            raise ValueError(f"{self._path} is closed")
        unknown = values.keys() - set(self._names)
        if unknown:
            raise ValueError(f"{self._path.name} has no column {', '.join(sorted(unknown))}")
        if keys[0] <= self._last:
            raise ValueError(f"{self._header[0]} {keys[0]} is not after {self._last} in {self._path.name}")
        # the shortest texts that read back as the same floats
        cells = [repr(float(values[name])) if name in values else "" for name in self._names]
        row = (",".join([*map(str, keys), *cells]) + "\n").encode()
        written = 0
        try:
            while written < len(row):
                written += self._file.write(row[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise cannot_write(self._path, error) from error
        self._size += len(row)
        self._last = keys[0]

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise cannot_write(self._path, error) from error


def _rows_to_keep(path: Path, keys: tuple[str, str], header: tuple[str, ...], last: int) -> list[str]:
    """Return the rows up to number ``last``, unchanged."""
    if not path.exists():
        _log.warning("%s is missing: a new one is started", path)
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
    """Return header and cells of a table, without an incomplete last line."""
    try:
        text = read_regular(path, _LARGEST_TABLE_BYTES).decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise TrainingError(f"{path} is missing: {path.parent} is not the folder of a training run") from None
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}") from error
    lines = [line.rstrip("\r") for line in text.split("\n")[:-1]]  # a complete line ends in a newline
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
