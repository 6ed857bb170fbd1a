"""A last look before a batch begins: every slide is opened, every model read, and all that is wrong told together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from ..errors import BatchError, OutputError, Wsi2IhcError
from ..generator.registry import model_version
from ..slide import known_mpp, open_slide
from .manifest import Problem, Row
from .task import DONE_FOLDER, SlideTask

THREADS = 8
"""Headers are read by so many threads: on network file systems each takes some tenths of a second."""


def check_rows(
    rows: Sequence[Row], folder: Path, on_checked: Callable[[int], None] = lambda _count: None
) -> tuple[list[SlideTask], list[Problem]]:
    """Open every slide, and find out whether it can be translated as far as its header and its model tell.

    Parameters
    ----------
    rows
        Without clashes.
    folder
        Of the outputs.
    on_checked
        Told how many rows have been looked at.

    Returns
    -------
    tasks, problems
        In the order of the rows.
    """
    tasks: list[SlideTask] = []
    problems: list[Problem] = []
    with ThreadPoolExecutor(THREADS, "check") as pool:
        for count, found in enumerate(pool.map(lambda row: _check(row, folder), rows), 1):
            if isinstance(found, SlideTask):
                tasks.append(dataclasses.replace(found, number=len(tasks)))
            else:
                problems.append(found)
            on_checked(count)
    return tasks, problems


def check_folder(folder: Path) -> None:
    """Make the output folder, if it is not there.

    Raises
    ------
    OutputError
        If it cannot be made or written.
    """
    try:
        (folder / DONE_FOLDER).mkdir(parents=True, exist_ok=True)
        probe = folder / DONE_FOLDER / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be written ({error.strerror}); name another one") from error


def shard_of(tasks: Iterable[SlideTask], shard: str) -> list[SlideTask]:
    """The tasks of one of N shards, ``"I/N"`` with I from 0: every N-th by the name of its output.

    The same tasks whatever the order of the manifest, so that some indices of an array job can be submitted again.

    Raises
    ------
    BatchError
        If it is no such text.
    """
    number, slash, count = shard.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 0 <= int(number) < int(count)):
        raise BatchError(f"--shard {shard!r:.40} is not I/N with 0 ≤ I < N, such as 0/8 for the first of eight")
    return sorted(tasks, key=lambda task: task.name)[int(number) :: int(count)]


def _check(row: Row, folder: Path) -> SlideTask | Problem:
    output = folder / row.output
    try:
        version = _model_version(row.model)
        with open_slide(row.slide, mpp=row.mpp, mpp_option="the column mpp") as slide:
            known_mpp(slide.info)
            facts = slide.info
        if output.exists() and Path(row.slide).exists() and output.samefile(row.slide):
            return Problem(row.line, row.name, "its output is the slide itself; name another output")
        source = f"{facts.name} {facts.quickhash} {facts.size}"
    except Wsi2IhcError as error:
        return Problem(row.line, row.name, " ".join(str(error).split()))
    options = dataclasses.replace(row.options, overwrite=True, preview=None)
    return SlideTask(0, row.slide, output, row.model, row.mpp, options, source, version)


@lru_cache(maxsize=64)
def _model_version(model: str) -> str:
    return model_version(model)
