"""A last look before a batch begins: every slide is opened, every model read, and all that is wrong told together."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from ..errors import OutputError, Wsi2IhcError
from ..generator.registry import describe_generator
from ..slide import known_mpp, open_slide
from ..tissue import load_mask
from .manifest import Problem, Row
from .places import BATCH_FOLDER
from .privacy import told
from .task import SlideTask

THREADS = 8
"""Headers are read by so many threads: on network file systems each takes some tenths of a second."""


def check_rows(
    rows: Sequence[Row], folder: Path, listed: Sequence[Row], on_checked: Callable[[int], None] = lambda _count: None
) -> tuple[list[SlideTask], list[Problem]]:
    """Open every slide, and find out whether it can be translated as far as its header and its model tell.

    Parameters
    ----------
    rows
        Without clashes.
    folder
        Of the outputs.
    listed
        All rows of the list, of which these may be a shard: none of their slides may be replaced.
    on_checked
        Told how many rows have been looked at.

    Returns
    -------
    tasks, problems
        In the order of the rows.
    """
    inputs = _inputs(listed)
    tasks: list[SlideTask] = []
    problems: list[Problem] = []
    with ThreadPoolExecutor(THREADS, "check") as pool:
        for count, found in enumerate(pool.map(lambda row: _check(row, folder, inputs), rows), 1):
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
        (folder / BATCH_FOLDER).mkdir(parents=True, exist_ok=True)
        for where in (folder, folder / BATCH_FOLDER):
            probe = where / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink(missing_ok=True)
    except OSError as error:
        where = error.filename or folder
        raise OutputError(f"{where} cannot be written ({error.strerror}); name another output folder") from error


def check_writable(folder: Path) -> None:
    """Find out whether the output folder can be made and written, without doing so.

    Raises
    ------
    OutputError
        If it cannot.
    """
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there} cannot be written; name another output folder")


def _check(row: Row, folder: Path, inputs: Set[str]) -> SlideTask | Problem:
    output = folder / row.output
    tissue = row.options.tissue

    def problem(message: str) -> Problem:
        return Problem(row.line, row.name, message, row.output)

    try:
        if os.path.realpath(output) in inputs:
            return problem("its output is a slide of this list; name another output, or folder")
        if (output.exists() or output.is_symlink()) and not output.is_file():
            return problem(f"its output {row.output} is there and is no file; remove it, or name another output")
        version = _model_version(row.model)
        with open_slide(row.slide, mpp=row.mpp, mpp_option="the column mpp") as slide:
            known_mpp(slide.info)
            facts = slide.info
            if tissue not in ("auto", "none"):
                load_mask(tissue, slide)
            region = row.options.region
            if region is not None and region.intersection(facts.bounds).is_empty:
                return problem(f"the region {region} lies outside the slide")
        source = f"{facts.name} {facts.quickhash} {facts.size} {'' if facts.changed_at is None else facts.changed_at}"
    except (Wsi2IhcError, OSError) as error:
        return problem(told(error, row.slide, row.model, tissue, output))
    options = dataclasses.replace(row.options, overwrite=True, preview=None)
    return SlideTask(0, row.slide, output, row.model, row.mpp, options, source, version)


def _inputs(rows: Sequence[Row]) -> frozenset[str]:
    """What must never be replaced: slides, models and masks, by their real paths."""
    named = [path for row in rows for path in (row.slide, row.model, str(row.options.tissue)) if "://" not in path]
    return frozenset(os.path.realpath(path) for path in named if _exists(path))


def _exists(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=64)
def _model_version(model: str) -> str:
    return describe_generator(model).version
