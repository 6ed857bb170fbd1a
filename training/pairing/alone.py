"""One process at a time in the folder of a slide."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from wsi2ihc.errors import OutputBusyError
from wsi2ihc.locks import locked

_PATIENCE_S = 30.0
"""For the child of a run that was killed: it ends by itself, within moments."""

_PAUSE_S = 0.2


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep others out of a slide's folder; wait for the child of a run that was killed a moment ago.

    Raises
    ------
    OutputError
        If another process stays in it, or it cannot be written.
    """
    until = time.monotonic() + _PATIENCE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder, f"another process is writing {folder}; wait for it"))
                break
            except OutputBusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE_S)
        yield
