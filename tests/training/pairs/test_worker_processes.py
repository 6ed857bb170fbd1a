"""What a child's end tells, however it comes about."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest

from wsi2ihc.concurrency import Finished, Send, WorkerProcess, run_in_processes
from wsi2ihc.errors import DatasetError, OutputError


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes import the work of this module."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


NAMES = ("well", "refused", "crashed", "killed", "full", "short", "odd", "left", "bytes", "surrogate", "exits")


def work(job: str, threads: int, send: Send) -> None:
    """One of the ways to end."""
    send((job, threads, threading.current_thread() is threading.main_thread()))
    logging.getLogger("wsi2ihc.work").warning("this is %s", job)
    if job == "crashed":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "left":
        os._exit(7)
    errors = {
        "refused": DatasetError("two\nlines"),
        "full": OutputError("the disk is full"),
        "short": MemoryError(),
        "odd": KeyError("x"),
        "bytes": UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte"),
        "surrogate": ValueError("a\udcff"),
        "exits": SystemExit(3),
    }
    if job in errors:
        raise errors[job]


def test_every_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "wsi2ihc"):
        messages = list(run_in_processes(work, NAMES, NAMES, 2))
    heard = {NAMES[number]: message for number, message in messages if not isinstance(message, Finished)}
    assert [heard[name][0] for name in NAMES] == list(NAMES)  # type: ignore[index]
    ended = {NAMES[number]: message for number, message in messages if isinstance(message, Finished)}
    assert ended["well"] == Finished()
    assert ended["refused"] == Finished("two lines")
    assert ended["full"] == Finished("the disk is full", fatal=True)
    assert "lower --workers" in ended["short"].failure
    assert "unexpected KeyError: 'x'" in ended["odd"].failure
    assert "crashed (SIGSEGV)" in ended["crashed"].failure
    assert "was killed (SIGKILL)" in ended["killed"].failure
    assert "ended with code 7" in ended["left"].failure
    assert "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff" in ended["bytes"].failure
    assert r"ValueError: a\xff" in ended["surrogate"].failure
    assert ended["surrogate"].failure.encode()
    assert "ended with code 3" in ended["exits"].failure
    assert not any(end.fatal for name, end in ended.items() if name != "full")
    texts = {record.getMessage() for record in caplog.records if record.name == "wsi2ihc.work"}
    assert texts == {f"{name}: this is {name}" for name in NAMES}


def wait(job: str, threads: int, send: Send) -> None:
    """Tell the process, and never end."""
    send(os.getpid())
    threading.Event().wait()


def test_who_stops_listening_ends_the_children() -> None:
    messages = run_in_processes(wait, ["a", "b"], ["a", "b"], 2)
    first = next(messages)
    second = next(messages)
    messages.close()
    for _, number in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)  # type: ignore[arg-type]


def echo(messages: Iterator[object], send: Send) -> None:
    """Print, as libraries do, and send messages back; one of them ends the process."""
    for message in messages:
        sys.stdout.write("printed\n")
        if message == "exit":
            sys.exit(7)
        send(message)


def test_messages_come_back_and_the_exit_code_last(capfd: pytest.CaptureFixture[str]) -> None:
    received: SimpleQueue[object] = SimpleQueue()
    worker = WorkerProcess(echo, received.put, {"WSI2IHC_TEST": "1"})
    large = {"bytes": bytes(1 << 20)}
    worker.send(large)
    assert received.get(timeout=60) == large
    worker.send("exit")
    assert received.get(timeout=60) is None
    worker.send("too late")
    assert worker.end(10) == 7
    assert capfd.readouterr().out == ""


def test_a_worker_that_does_not_end_is_killed() -> None:
    received: SimpleQueue[object] = SimpleQueue()
    worker = WorkerProcess(echo, received.put)
    assert worker.end(60) == 0, "it ends when its pipe is closed"
    assert received.get() is None
    assert WorkerProcess(echo, received.put).end() == -signal.SIGKILL


def test_a_worker_ends_with_its_parent() -> None:
    program = (
        "import test_worker_processes as tests, time, wsi2ihc.concurrency\n"
        "worker = wsi2ihc.concurrency.WorkerProcess(tests.echo, lambda _: None)\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert not psutil.wait_procs([worker], timeout=30)[1]
