"""Ordered work in threads, one worker process per job, and progress callbacks."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from .errors import OutputError
from .system import cores, how_it_ended, starting_processes
from .text import describe_error


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a stage; a ``total`` of 1 means that the duration is unknown.

    Attributes
    ----------
    unit
        What is counted, "px" or "step".
    note
        Further text to display, such as losses.
    """

    stage: str
    done: int = 0
    total: int = 1
    unit: str = "px"
    note: str = ""


ProgressCallback = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Ignore progress."""


Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    """Yield the results of ``function`` for ``items``, computed in the executor, in the order of the items.

    Memory bound: at most ``ahead`` results are pending. The first failure is raised in place of its result; calls that
    have not started by then are cancelled.
    """
    pending: deque[Future[Result]] = deque()
    source = iter(items)
    try:
        for item in source:
            pending.append(executor.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


Job = TypeVar("Job")

Send = Callable[[object], None]
"""Sends a message that can be pickled to the parent; thread-safe."""

Work = Callable[[Any, int, Send], None]
"""Work of a process: a module-level function of a job, a number of threads, and `Send`."""

_PARENT_GONE = 1
_TERMINATION_TIMEOUT_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finished:
    """Last message of each job.

    Attributes
    ----------
    failure
        Error in one line; "" if the job succeeded.
    fatal
        Whether the error would affect all jobs.
    """

    failure: str = ""
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class _LogMessage:
    logger: str
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class _Worker:
    number: int
    process: SpawnProcess
    connection: Connection


def run_in_processes(
    work: Work, jobs: Sequence[Job], names: Sequence[str], at_once: int
) -> Generator[tuple[int, object], None, None]:
    """Run each job in a separate process.

    Parameters
    ----------
    work
        Function that does a job.
    jobs
        Jobs, which are pickled.
    names
        Names of the jobs in log messages.
    at_once
        Most processes at a time; the cores are divided among them.

    Yields
    ------
    number, message
        Number of a job, and a message of its process. The last message of each job is `Finished`. Jobs start in order
        and end in any order.

    Notes
    -----
    Closing the iterator ends the processes. They are spawned, so a program that calls this function needs
    ``if __name__ == "__main__":``.
    """
    running: dict[Connection, _Worker] = {}
    started = 0
    try:
        while started < len(jobs) or running:
            while started < len(jobs) and len(running) < at_once:
                threads = max(1, cores() // min(at_once, len(jobs) - started + len(running)))
                worker = _start(work, jobs[started], started, threads)
                running[worker.connection] = worker
                started += 1
            for ready in wait(list(running)):
                worker = running[ready]  # type: ignore[index]  # only connections are waited for
                message = _receive(worker)
                if isinstance(message, _LogMessage):
                    text = f"{names[worker.number]}: {message.text}"
                    logging.getLogger(message.logger).log(message.level, "%s", text)
                    continue
                if isinstance(message, Finished):
                    del running[worker.connection]
                    worker.process.join(_TERMINATION_TIMEOUT_S)
                    _stop([worker])
                yield worker.number, message
    finally:
        _stop(list(running.values()))


def _start(work: Work, job: object, number: int, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    level = logging.getLogger("wsi2ihc").getEffectiveLevel()
    process = context.Process(target=_run_worker, args=(work, job, threads, level, theirs), daemon=True)
    with starting_processes():
        process.start()
    theirs.close()
    return _Worker(number, process, ours)


def _receive(worker: _Worker) -> object:
    """Receive a message, or create the last one if the process ended without it."""
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        return Finished(_describe_crash(worker.process.exitcode or 0))


def _describe_crash(code: int) -> str:
    how = how_it_ended(code)
    if code >= 0:
        return f"{how.text}; run again with -v, and please report it"
    return f"{how.text}; {'run again with fewer --workers' if how.was_killed else 'scan or export it again'}"


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_TERMINATION_TIMEOUT_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()


def _run_worker(work: Work, job: object, threads: int, level: int, connection: Connection) -> None:
    """Do a job; runs in the worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, args=(connection,), daemon=True).start()
    lock = threading.Lock()

    def send(message: object) -> None:
        try:
            with lock:
                connection.send(message)
        except OSError:
            os._exit(_PARENT_GONE)

    _forward_logs(send, level)
    try:
        work(job, threads, send)
    except Exception as error:
        _log.debug("%s", "".join(traceback.format_exception(error)))
        send(Finished(describe_error(error), _is_fatal(error)))
    else:
        send(Finished())


def _exit_with_parent(connection: Connection) -> None:
    try:
        connection.recv()
    except (EOFError, OSError):
        os._exit(_PARENT_GONE)


def _forward_logs(send: Send, level: int) -> None:
    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send(_LogMessage(record.name, record.levelno, record.getMessage()))

    logger = logging.getLogger("wsi2ihc")
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(Forward())


def _is_fatal(error: Exception) -> bool:
    """Whether an error would affect all jobs, because the output cannot be written."""
    return isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
