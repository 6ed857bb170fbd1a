"""Commands that run in this process, and the options that keep them small."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from wsi2ihc.cli.main import main

CPU = ("--device", "cpu", "--precision", "fp32", "--workers", 1)
LOSSLESS = ("--compression", "deflate", "--tile-size", 64)
RECIPES = ("pix2pix", "pyramid", "variance")
TINY = (
    "--ngf", 4, "--ndf", 4, "--crop-size", 32, "--batch-size", 4, "--epochs", 1, "--log-every", 1, "--pictures", 1,
    "--workers", 0, "--precision", "fp32", "--device", "cpu", "--mpp", 0.5, "--stain", "HER2",
)  # fmt: skip
SMALL_PAIRS = ("--patch-size", 128, "--mpp", 1, "--stain", "HER2", "--licence", "CC0")


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


def run_command(*arguments: object) -> Ended:
    """Run a command of the program."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())
