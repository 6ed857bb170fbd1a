"""Slides on a local disk while they are read; and what children leave that were ended in the middle of their work."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import OutputError
from ..locks import in_use, unused
from ..slide import Slide, open_slide
from ..storage import remove_leftovers
from .task import SlideTask

CACHE_VARIABLE = "WSI2IHC_CHILD_CACHE"
"""Names the folder to a child; for workers of a cluster, whose disks differ, it is set where they start."""

_IN_SEVERAL_FILES = frozenset({".dcm", ".vms", ".vmu"})
"""Formats that lie in several files beside each other: they are read where they are."""

_WITH_FOLDER = ".mrxs"
"""MIRAX keeps its pixels in a folder of the same name."""

_IN_USE = "in-use"
"""A file beside a copy that is locked as long as its process lives."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def staged(task: SlideTask, warn: Callable[[str], None]) -> Iterator[Slide]:
    """The open slide of a task, read from a copy where a cache is named and has room; else ``warn`` is told."""
    with contextlib.ExitStack() as stack:
        try:
            path: str | Path = stack.enter_context(_copied(task.slide))
        except OSError as error:
            why = error.strerror or " ".join(str(error).split())[:120]
            warn(f"it was read where it is: the cache could not take it ({why})")
            path = task.slide
        yield stack.enter_context(open_slide(path, mpp=task.mpp, series=task.series, page=task.page))


@contextlib.contextmanager
def _copied(slide: str) -> Iterator[str | Path]:
    """A copy of a slide in the cache; the slide itself where there is no cache, or where it would not do.

    Raises
    ------
    OSError
        If the cache is full, or cannot be written.
    """
    cache, source = os.environ.get(CACHE_VARIABLE), Path(slide)
    if not cache or "://" in slide or source.is_dir() or source.suffix.lower() in _IN_SEVERAL_FILES:
        yield slide
        return
    with tempfile.TemporaryDirectory(prefix=_prefix(os.getpid()), dir=cache, ignore_cleanup_errors=True) as folder:
        used = Path(folder, f".{_IN_USE}")
        used.touch()
        with in_use(used):
            used.rename(used.with_name(_IN_USE))  # only now can it be found, and it is locked already
            copy = Path(shutil.copy2(source, folder))
            if source.suffix.lower() == _WITH_FOLDER and source.with_suffix("").is_dir():
                shutil.copytree(source.with_suffix(""), copy.with_suffix(""))
            yield copy


def cache_folder(cache: Path | None) -> Path | None:
    """Where slides are copied to: what this machine says goes before what the batch says; None: nowhere."""
    own = os.environ.get(CACHE_VARIABLE)
    return Path(own) if own else cache


def remove_old_copies(cache: Path | None) -> None:
    """Remove copies from the cache whose processes are gone: killed ones cannot do it themselves."""
    folder = cache_folder(cache)
    for used in folder.glob(f"{_prefix('*')}*/{_IN_USE}") if folder else ():
        with contextlib.suppress(OutputError, OSError), unused(used, "busy"):
            shutil.rmtree(used.parent, ignore_errors=True)
            _log.info("removed %s from the cache, left behind by a killed run", used.parent.name)


def remove_leftovers_of(pid: int, tasks: Sequence[SlideTask], cache: Path | None) -> None:
    """Remove what a child that is gone has left: copies of slides, and partial outputs of what it had in hand."""
    if folder := cache_folder(cache):
        for copy in folder.glob(f"{_prefix(pid)}*"):
            shutil.rmtree(copy, ignore_errors=True)
    for task in tasks:
        with contextlib.suppress(OSError):
            remove_leftovers(task.output)


def _prefix(pid: int | str) -> str:
    return f"wsi2ihc-{pid}-"
