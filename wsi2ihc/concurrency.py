"""Ordered work in threads, worker processes, and progress callbacks."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import pkgutil
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import IO, Any, TypeVar, cast

from .errors import OutputError
from .system import cores, how_it_ended, python_command, safe_environment
from .text import describe_error


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a stage; a ``total`` of 1 means that the duration is unknown."""

    stage: str
    done: int = 0
    total: int = 1
    unit: str = "px"  # what is counted, "px" or "step"
    note: str = ""  # further text to display, such as losses


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


Send = Callable[[object], None]
"""Sends a message that can be pickled to the parent; thread-safe."""

Serve = Callable[[Iterator[Any], Send], None]
"""Main function of a worker process: a module-level function of the messages of the parent, and of `Send`.

The messages end when the parent closes the pipe or ends; the process exits when the function returns.
"""

END_TIMEOUT_S = 10.0
"""Seconds for a worker process to end by itself."""

_log = logging.getLogger(__name__)


class WorkerProcess:
    """Python process that exchanges messages with this one, and ends with it.

    It does not use multiprocessing, because a worker of Dask may not have such children, and because the environment
    must be set before the libraries of the process are loaded.

    Parameters
    ----------
    serve
        Main function of the process.
    receive
        Called in a thread with every message of the process, and with None when its pipe has ended.
    environment
        Additional environment variables.
    stderr
        As for `subprocess.Popen`.

    Attributes
    ----------
    stderr
        Stream of what the process writes to stderr, if ``stderr`` is `subprocess.PIPE`.
    """

    def __init__(
        self, serve: Serve, receive: Callable[[Any], None], environment: Mapping[str, str] | None = None,
        stderr: int | None = None,
    ) -> None:  # fmt: skip
        variables = {**os.environ, **(environment or {})}
        self._process = subprocess.Popen(
            [*python_command(__name__), f"{serve.__module__}:{serve.__qualname__}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            env=variables | safe_environment(variables),
            start_new_session=True,  # Ctrl-C reaches all processes of a session; this one ends its workers
        )  # fmt: skip
        self._stdin, self._stdout = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        self.stderr = self._process.stderr
        self._listener = threading.Thread(target=self._listen, args=(receive,), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: object) -> None:
        """Send a message that can be pickled. If the process has ended, the end of its pipe reports it."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the pipe was closed
            self._stdin.write(pickle.dumps(message))
            self._stdin.flush()

    def end(self, timeout_s: float = 0.0) -> int:
        """Close the pipe to the process, kill it after the timeout, and return its exit code (negative: a signal)."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._listener.join(END_TIMEOUT_S)  # its pipe has ended with the process
        self._stdout.close()
        return code

    def _listen(self, receive: Callable[[Any], None]) -> None:
        try:
            for message in _messages(self._stdout):
                receive(message)
        finally:
            receive(None)


def _messages(stream: IO[bytes]) -> Iterator[Any]:
    with contextlib.suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):  # the other end may be killed
        while True:
            yield pickle.load(stream)


def _run_worker() -> None:
    """Run the main function that the command line names; runs in the worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # systems without sessions send Ctrl-C to workers as well
    stream, sending = os.fdopen(os.dup(1), "wb"), threading.Lock()
    os.dup2(2, 1)  # what libraries print does not belong among the messages

    def send(message: object) -> None:
        content = pickle.dumps(message)
        with sending, contextlib.suppress(BrokenPipeError):
            stream.write(content)
            stream.flush()

    code = 0
    try:
        pkgutil.resolve_name(sys.argv[1])(_messages(sys.stdin.buffer), send)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)  # unfinished threads are discarded


Job = TypeVar("Job")

Work = Callable[[Any, int, Send], None]
"""Work of a process: a module-level function of a job, a number of threads, and `Send`."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Last message of each job."""

    failure: str = ""  # error in one line; "" if the job succeeded
    fatal: bool = False  # whether the error would affect all jobs


@dataclass(frozen=True, slots=True)
class _LogMessage:
    logger: str
    level: int
    text: str


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
    Closing the iterator ends the processes.
    """
    received: SimpleQueue[tuple[int, object]] = SimpleQueue()
    running: dict[int, WorkerProcess] = {}
    level = logging.getLogger("wsi2ihc").getEffectiveLevel()
    started = 0

    def receive(number: int, message: object) -> None:
        received.put((number, message))

    try:
        while started < len(jobs) or running:
            while started < len(jobs) and len(running) < at_once:
                threads = max(1, cores() // min(at_once, len(jobs) - started + len(running)))
                running[started] = WorkerProcess(_serve_job, partial(receive, started))
                running[started].send((work, jobs[started], threads, level))
                started += 1
            number, message = received.get()
            if number not in running:  # the end of the pipe of a finished job
                continue
            if isinstance(message, _LogMessage):
                logging.getLogger(message.logger).log(message.level, "%s", f"{names[number]}: {message.text}")
                continue
            if message is None:
                message = Finished(_describe_crash(running[number].end(END_TIMEOUT_S)))
            if isinstance(message, Finished):
                running.pop(number).end(END_TIMEOUT_S)
            yield number, message
    finally:
        for worker in running.values():
            worker.end()


def _describe_crash(code: int) -> str:
    how = how_it_ended(code)
    if code >= 0:
        return f"{how.text}; run again with -v, and please report it"
    return f"{how.text}; {'run again with fewer --workers' if how.was_killed else 'scan or export it again'}"


def _serve_job(messages: Iterator[Any], send: Send) -> None:
    """Do one job; runs in the worker process."""
    work, job, threads, level = next(messages)
    threading.Thread(target=_exit_with_parent, args=(messages,), daemon=True).start()
    _forward_logs(send, level)
    try:
        work(job, threads, send)
    except Exception as error:
        _log.debug("%s", "".join(traceback.format_exception(error)))
        send(Finished(describe_error(error), _is_fatal(error)))
    else:
        send(Finished())


def _exit_with_parent(messages: Iterator[object]) -> None:
    for _ in messages:
        pass
    os._exit(1)


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


if __name__ == "__main__":
    from wsi2ihc.concurrency import _run_worker as run  # the module of its name, whose classes can be pickled

    run()
