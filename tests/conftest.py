"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# Tests, and the commands that they start, run beside each other. On small tensors, the threads of all of them would
# mostly wait for each other, and take three times the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background makes them, and the commands that they interrupt, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # nohup ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    """Restore what a command changes in the process: log levels and handlers, and the handler of SIGTERM."""
    loggers = [logging.getLogger(name) for name in ("", "wsi2ihc")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    terminate = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, terminate)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a small network, as ``torch.save`` writes them."""
    import torch

    from wsi2ihc.models.networks import ResnetGenerator

    torch.manual_seed(0)
    path = tmp_path / "net.pth"
    torch.save(ResnetGenerator(1, 2).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """The folder of optional development data (real slides, bad files), or a skip where it is absent.

    ``WSI2IHC_DEV_DATA`` names it; without that, a folder beside the checkout is tried.
    """
    folder = Path(os.environ.get("WSI2IHC_DEV_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "slides").is_dir():
        pytest.skip(f"optional development data not found at {folder} (set WSI2IHC_DEV_DATA)")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in captured output, which pytest-xdist cannot send to its main process."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode("utf-8")) for name, text in report.sections
    ]
    return report
