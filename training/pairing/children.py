"""One process per job, some at once: what goes wrong in one of them ends that one, and its memory comes back.

A slide that makes a decoder crash, or takes so much memory that the system kills the process, is one failed job. A
child ends at once when its parent is gone, however that went, since its end of the pipe between them closes.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from wsi2ihc.errors import OutputError
from wsi2ihc.processes import how_it_ended, starting_processes
from wsi2ihc.runtime import cores
from wsi2ihc.text import describe_error

Job = TypeVar("Job")

Tell = Callable[[object], None]
"""Sends a message, of any kind that can be pickled, to the parent; of any thread."""

Work = Callable[[Any, int, Tell], None]
"""What a child does: a function of a module, of its job, of how many threads it may use, and of `Tell`."""

_PARENT_GONE = 1
_PATIENCE_S = 5.0
"""For a child that was asked to end."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """The last message of each job: "" if all went well, else one line; ``fatal`` if no job can go on."""

    failure: str = ""
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class _Logged:
    logger: str
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class _Child:
    number: int
    process: SpawnProcess
    connection: Connection


def run_in_children(
    work: Work, jobs: Sequence[Job], names: Sequence[str], at_once: int
) -> Generator[tuple[int, object], None, None]:
    """Do all jobs, each in a process of its own.

    Parameters
    ----------
    work
        What to do of a job.
    jobs
        To be pickled.
    names
        Of the jobs, for what children log.
    at_once
        Most children at a time. The cores are shared out among them.

    Yields
    ------
    number, message
        Of a job: what its child tells, in that order; at last `Ended`. Jobs are begun in order, and end in any.

    Notes
    -----
    Whoever stops to iterate ends the children; closing the iterator does so at once. Processes are spawned, so a
    program that calls this needs ``if __name__ == "__main__":``.
    """
    running: dict[Connection, _Child] = {}
    begun = 0
    try:
        while begun < len(jobs) or running:
            while begun < len(jobs) and len(running) < at_once:
                threads = max(1, cores() // min(at_once, len(jobs) - begun + len(running)))
                child = _start(work, jobs[begun], begun, threads)
                running[child.connection] = child
                begun += 1
            for ready in wait(list(running)):
                child = running[ready]  # type: ignore[index]  # nothing but connections is waited for
                message = _heard(child)
                if isinstance(message, _Logged):
                    text = f"{names[child.number]}: {message.text}"
                    logging.getLogger(message.logger).log(message.level, "%s", text)
                    continue
                if isinstance(message, Ended):
                    del running[child.connection]
                    child.process.join(_PATIENCE_S)
                    _end([child])
                yield child.number, message
    finally:
        _end(list(running.values()))


def _start(work: Work, job: object, number: int, threads: int) -> _Child:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    level = logging.getLogger("wsi2ihc").getEffectiveLevel()
    process = context.Process(target=_child, args=(work, job, threads, level, theirs), daemon=True)
    with starting_processes():
        process.start()
    theirs.close()
    return _Child(number, process, ours)


def _heard(child: _Child) -> object:
    """The message that is there; if the pipe has ended instead, how the process has."""
    try:
        return child.connection.recv()
    except (EOFError, OSError):
        child.process.join()
        return Ended(_how_it_died(child.process.exitcode or 0))


def _how_it_died(code: int) -> str:
    how = how_it_ended(code)
    if code >= 0:
        return f"{how.text}; run again with -v, and please report it"
    return f"{how.text}; {'run again with fewer --workers' if how.was_killed else 'scan or export it again'}"


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        child.process.terminate()
    for child in children:
        child.process.join(_PATIENCE_S)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        child.connection.close()


def _child(work: Work, job: object, threads: int, level: int, connection: Connection) -> None:
    """What runs in the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_the_parent, args=(connection,), daemon=True).start()
    lock = threading.Lock()

    def tell(message: object) -> None:
        try:
            with lock:
                connection.send(message)
        except OSError:
            os._exit(_PARENT_GONE)

    _forward_logs(tell, level)
    try:
        work(job, threads, tell)
    except Exception as error:
        _log.debug("%s", "".join(traceback.format_exception(error)))
        tell(Ended(describe_error(error), _is_fatal(error)))
    else:
        tell(Ended())


def _end_with_the_parent(connection: Connection) -> None:
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(_PARENT_GONE)


def _forward_logs(tell: Tell, level: int) -> None:
    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(_Logged(record.name, record.levelno, record.getMessage()))

    logger = logging.getLogger("wsi2ihc")
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(Forward())


def _is_fatal(error: Exception) -> bool:
    """Whether it would meet all jobs: the output cannot be written."""
    return isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
