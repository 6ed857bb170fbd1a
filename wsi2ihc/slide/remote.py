"""Open files at URLs, with timeouts for servers that do not respond."""

from __future__ import annotations

import re
import threading
from typing import Any

_SILENCE_S = 10
"""Longest time without any data from a server. A slow one that keeps sending is waited for."""

SILENT = f"the server has sent nothing for {_SILENCE_S} s"


class RemoteFile:
    """A file at a URL that fsspec supports. Thread-safe: reads happen one at a time.

    After the first timeout, every read fails at once: waiting for each tile would take days.

    Raises
    ------
    Exception
        Of nearly any kind, if it cannot be opened.
    """

    def __init__(self, name: str, address: str) -> None:
        from fsspec.core import url_to_fs

        protocols = re.findall(r"(?:^|::)([A-Za-z0-9+]+)://", address)
        options = {protocol: found for protocol in protocols if (found := _options(protocol.lower()))}
        file_system, path = url_to_fs(address, **options)
        self.name = name
        self.handle: Any = file_system.open(path)
        self._lock = threading.Lock()
        self._is_silent = False

    def read_at(self, offset: int, count: int) -> bytes:
        with self._lock:
            if self._is_silent:
                raise TimeoutError(SILENT)
            try:
                self.handle.seek(offset)
                return bytes(self.handle.read(count))
            except Exception as error:  # of any kind: each protocol has its own
                self._is_silent = did_not_answer(error)
                reason = SILENT if self._is_silent else str(error) or type(error).__name__
                raise (TimeoutError if self._is_silent else OSError)(reason) from error

    def close(self) -> None:
        self.handle.close()

    @property
    def closed(self) -> bool:
        return bool(self.handle.closed)


def did_not_answer(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a timeout."""
    for _ in range(8):
        if error is None:
            return False
        if isinstance(error, TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _options(protocol: str) -> dict[str, Any]:
    """Timeouts, as options of the protocol's package; the user's configuration of fsspec takes precedence."""
    from fsspec.config import conf

    own = conf.get(protocol, {})
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=_SILENCE_S, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
        return {"client_kwargs": {"timeout": timeout, **own.get("client_kwargs", {})}}
    if protocol in ("s3", "s3a"):
        waits = {"connect_timeout": _SILENCE_S, "read_timeout": _SILENCE_S, "retries": {"max_attempts": 1}}
        return {"config_kwargs": {**waits, **own.get("config_kwargs", {})}}
    return {}
