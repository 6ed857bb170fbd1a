"""Real worker processes for tests: the command, forked from a server that has imported all modules."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from wsi2ihc.concurrency import ProgressCallback
from wsi2ihc.translation.checkpoint_folder import Checkpoint


def context() -> ForkServerContext:
    """Return a context whose workers start within some hundredths of a second, without state of the tests."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["wsi2ihc.cli.translate", "wsi2ihc.translation.resume"])
    return forkserver


def start(arguments: Sequence[str | Path], log: Path, gate: Path | None = None) -> ForkServerProcess:
    """Start ``wsi2ihc translate``, and write its output to ``log``.

    With a gate it waits until that file exists, and then delays every band, so that all waiting processes get work.
    """
    process = context().Process(target=_translate, args=([str(one) for one in arguments], str(log), gate))
    process.start()
    return process


def run(arguments: Sequence[str | Path], log: Path) -> int | None:
    """Run ``wsi2ihc translate`` to its end, and return the exit code."""
    process = start(arguments, log)
    process.join(120)
    assert process.exitcode is not None, log.read_text()
    return process.exitcode


def started_bands(log: Path) -> list[int]:
    """List the bands that a process has started, in order."""
    return [int(number) for number in re.findall(r"band (\d+) started", log.read_text())]


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
        _delay_bands()
    sys.argv = ["wsi2ihc"]
    main(["translate", *arguments])


def _delay_bands() -> None:
    from wsi2ihc.translation import resume

    original = resume.translate_band

    def slow(checkpoint: Checkpoint, number: int, *, progress: ProgressCallback) -> bool:
        time.sleep(0.3)
        return original(checkpoint, number, progress=progress)

    resume.translate_band = slow  # type: ignore[assignment]
