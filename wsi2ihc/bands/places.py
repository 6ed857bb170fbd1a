"""Where the store of an output lies, what killed runs left there, and how it goes away. Knows no zarr."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import OutputBusyError, OutputError
from ..locks import locked, unused
from ..progress import Progress, ProgressCallback
from ..pyramid.folders import remove_replaced, remove_tree
from ..storage import hidden_path, hidden_stem, leftovers

IMAGE, DONE, LOCKS, IN_USE, PUBLISHED = "image.ome.zarr", "done", "locks", "in-use", "published.json"
"""In a store: the image, a marker for each finished band, locks, the file that is locked as long as somebody uses the
store, and the note of what was published."""

_SUFFIX = "partial"

PAUSE_S = 0.5
"""Between two looks at what other processes have done."""

_log = logging.getLogger(__name__)


def store_path(output: Path) -> Path:
    """Where the store of an output lies that processes share."""
    return output.with_name(hidden_stem(_visible(output)))


def hidden_store_path(output: Path) -> Path:
    """A new name for a store that is being made, is one process's own, or is being removed."""
    return hidden_path(_visible(output), _SUFFIX)


@contextmanager
def alone(output: Path, progress: ProgressCallback, *, wait: bool) -> Iterator[bool]:
    """Be the only one who opens, makes or removes a store of this output, while the body runs.

    Yields
    ------
    bool
        Whether that is so; False on file systems without locks, where nobody can tell.

    Raises
    ------
    OutputBusyError
        If another process is, and ``wait`` is False.
    """
    with ExitStack() as stack:
        while True:
            try:
                is_alone = stack.enter_context(locked(output.parent, _busy(output), f"{store_path(output).name}.lock"))
                break
            except OutputBusyError:
                if not wait:
                    raise
            progress(Progress("waiting for another process"))
            time.sleep(PAUSE_S)
        yield is_alone


def remove_leftovers(output: Path, *, shared: bool) -> None:
    """Remove what killed runs left under names of their own.

    Raises
    ------
    OutputBusyError
        If such a run is alive and no other may be (not ``shared``).
    """
    for leftover in leftovers(_visible(output), _SUFFIX):
        try:
            with _unused(leftover, output):
                remove_tree(leftover)
                _log.info("removed %s, left behind by an interrupted run", leftover.name)
        except OutputBusyError:
            if not shared:
                raise
        except OutputError as error:
            _log.warning("%s", error)


def remove_store(folder: Path, output: Path) -> None:
    """Remove a store: first its name, in one step, then what is in it.

    Raises
    ------
    OutputError
        If the file system refuses.
    """
    gone = hidden_store_path(output)
    try:
        folder.rename(gone)
    except OSError as error:
        raise OutputError(f"{folder} cannot be removed ({error.strerror}); {output.name} does not need it") from error
    remove_tree(gone)


def remove_unused(output: Path) -> None:
    """Remove the store that processes share.

    Raises
    ------
    OutputBusyError
        If some process uses it.
    OutputError
        If the file system refuses.
    """
    with _unused(store_path(output), output):
        remove_store(store_path(output), output)


def discard_store(output: Path) -> None:
    """Remove what is left of an output's store, since the output is complete; not what somebody works in, or may."""
    try:
        with alone(output, lambda _: None, wait=False):
            remove_leftovers(output, shared=True)
            remove_replaced(output)
            if store_path(output).is_dir():
                remove_unused(output)
    except OSError as error:
        _log.info("%s", error)


def count_done(output: Path) -> int | None:
    """How many bands are marked as done in the store of an output; None if there is no store."""
    folder = store_path(output) / DONE
    return sum(path.suffix == ".json" for path in folder.iterdir()) if folder.is_dir() else None


def _visible(output: Path) -> Path:
    """What the names of stores are made of."""
    return output.with_name(f"{output.name}.bands")


def _unused(folder: Path, output: Path) -> contextlib.AbstractContextManager[None]:
    if not (folder / IN_USE).is_file():
        return contextlib.nullcontext()
    return unused(folder / IN_USE, _busy(output))


def _busy(output: Path) -> str:
    return f"another run is writing {output}: wait for it to end, or choose another name"
