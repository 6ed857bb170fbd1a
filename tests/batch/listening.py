"""A background command whose listening addresses are recorded."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil


class Listening:
    """Starts a command; at the end, all its processes are gone.

    addresses:  at which one of its processes has listened so far
    printed:    what it printed, once it has ended
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        self.addresses: set[str] = set()
        self.printed = ""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `__exit__`
        self._process = subprocess.Popen(
            command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output
        )
        self._known = {self._process.pid: psutil.Process(self._process.pid)}
        self._ended = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._looking.start()

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._looking.join()
        for process in self._known.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._output.close()

    def wait(self, timeout_s: float = 120) -> int:
        """Wait for the end of the command; its exit code."""
        try:
            code = self._process.wait(timeout_s)
        finally:
            self._output.seek(0)
            self.printed = self._output.read().decode("utf-8", "replace")
        return code

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            for process in list(self._known.values()):
                with contextlib.suppress(psutil.Error):
                    self._known |= {one.pid: one for one in process.children()}
                    connections = process.net_connections("inet")
                    self.addresses |= {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
