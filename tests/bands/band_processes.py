"""Real processes for the tests: the command, in children of a process that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from wsi2ihc.bands.store import Store
from wsi2ihc.progress import ProgressCallback


def context() -> ForkServerContext:
    """Children begin in some hundredths of a second, and know nothing of what the tests have done."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["wsi2ihc.cli.translate", "wsi2ihc.bands.running", "wsi2ihc.bands.opening"])
    return made


def start(arguments: Sequence[str | Path], log: Path, gate: Path | None = None) -> ForkServerProcess:
    """Start ``wsi2ihc translate``; what it says goes to ``log``.

    With a gate it waits until that file is there, and then takes its time over every band, so that all who have waited
    find something to do.
    """
    process = context().Process(target=_translate, args=([str(one) for one in arguments], str(log), gate))
    process.start()
    return process


def run(arguments: Sequence[str | Path], log: Path) -> int | None:
    """Run ``wsi2ihc translate`` to its end; the exit code."""
    process = start(arguments, log)
    process.join(120)
    assert process.exitcode is not None, log.read_text()
    return process.exitcode


def begun(log: Path) -> list[int]:
    """The bands that a process has begun, in order."""
    return [int(number) for number in re.findall(r"band (\d+) begun", log.read_text())]


def _translate(arguments: list[str], log: str, gate: Path | None) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from wsi2ihc.cli.main import main

    if gate is not None:
        gate.with_name(f"{gate.name}-{os.getpid()}").touch()
        until = time.monotonic() + 120
        while not gate.exists():
            assert time.monotonic() < until
            time.sleep(0.001)
        _do_bands_slowly()
    sys.argv = ["wsi2ihc"]
    main(["translate", *arguments])


def _do_bands_slowly() -> None:
    from wsi2ihc.bands import running

    quick = running.translate_band

    def slow(store: Store, number: int, *, progress: ProgressCallback) -> bool:
        time.sleep(0.3)
        return quick(store, number, progress=progress)

    running.translate_band = slow  # type: ignore[assignment]
