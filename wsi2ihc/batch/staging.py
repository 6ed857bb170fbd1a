"""Slides on a local disk while they are read; and what children leave that were ended in the middle of their work."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..pyramid.atomic import remove_leftovers
from ..slide import Slide, open_slide
from .task import SlideTask

CACHE_VARIABLE = "WSI2IHC_CHILD_CACHE"
"""Names the folder to a child; for workers of a cluster, whose disks differ, it is set where they start."""

_IN_SEVERAL_FILES = frozenset({".dcm", ".vms", ".vmu"})
"""Formats that lie in several files beside each other: they are read where they are."""

_WITH_FOLDER = ".mrxs"
"""MIRAX keeps its pixels in a folder of the same name."""


@contextlib.contextmanager
def staged(task: SlideTask) -> Iterator[Slide]:
    """The open slide of a task; read from a copy where a cache is named. The copy is removed afterwards."""
    cache, source = os.environ.get(CACHE_VARIABLE), Path(task.slide)
    if not cache or "://" in task.slide or source.suffix.lower() in _IN_SEVERAL_FILES:
        with open_slide(task.slide, mpp=task.mpp) as slide:
            yield slide
        return
    with tempfile.TemporaryDirectory(prefix=_prefix(os.getpid()), dir=cache, ignore_cleanup_errors=True) as folder:
        copy = Path(shutil.copy2(source, folder))
        if source.suffix.lower() == _WITH_FOLDER and source.with_suffix("").is_dir():
            shutil.copytree(source.with_suffix(""), copy.with_suffix(""))
        with open_slide(copy, mpp=task.mpp) as slide:
            yield slide


def remove_leftovers_of(pid: int, tasks: Sequence[SlideTask], cache: Path | None) -> None:
    """Remove what a child that is gone has left: copies of slides, and partial outputs of what it had in hand."""
    folder = os.environ.get(CACHE_VARIABLE) or cache
    if folder:
        for copy in Path(folder).glob(f"{_prefix(pid)}*"):
            shutil.rmtree(copy, ignore_errors=True)
    for task in tasks:
        with contextlib.suppress(OSError):
            remove_leftovers(task.output)


def _prefix(pid: int) -> str:
    return f"wsi2ihc-{pid}-"
