"""What a command changes in the process, undone after each test."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("", "wsi2ihc")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    terminate = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, terminate)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
