"""Commands that run in this process, and the options that keep them small."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from wsi2ihc.cli.main import main

CPU = ("--device", "cpu", "--precision", "fp32", "--workers", 1)
LOSSLESS = ("--compression", "deflate", "--tile-size", 64)
RECIPES = ("pix2pix", "pyramid", "variance")
TINY = (
    "--ngf", 4, "--ndf", 4, "--crop-size", 32, "--batch-size", 4, "--epochs", 1, "--log-every", 1, "--samples", 1,
    "--workers", 0, "--precision", "fp32", "--device", "cpu", "--mpp", 0.5, "--stain", "HER2",
)  # fmt: skip
SMALL_PAIRS = ("--patch-size", 128, "--mpp", 1, "--stain", "HER2", "--license", "CC0")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ended]


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Use one thread, ignore options in the environment, and do not wait for the disk; restore all that on exit.

    Log levels, handlers and the handler of SIGTERM are restored too, since fixtures of the session run commands.
    """
    loggers = [(logger, logger.level, list(logger.handlers)) for logger in map(logging.getLogger, ("", "wsi2ihc"))]
    terminate, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WSI2IHC_")]:
            patch.delenv(name)
        patch.setattr("os.fsync", lambda _: None)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            signal.signal(signal.SIGTERM, terminate)
            for logger, level, handlers in loggers:
                logger.setLevel(level)
                logger.handlers[:] = handlers


def run_command(*arguments: object) -> Ended:
    """Run a command of the program."""
    out, err = io.StringIO(), io.StringIO()
    with (
        isolated(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main([str(argument) for argument in arguments])
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())
