"""Keep tifffile's log messages about recoverable damage off the terminal."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)


class _ToDebug(logging.Filter):
    """Filter that forwards tifffile's records at debug level, and drops the originals."""

    def filter(self, record: logging.LogRecord) -> bool:
        logger.debug("tifffile: %s", record.getMessage())
        return False


_filter = _ToDebug()
_filter_lock = threading.Lock()
_filter_users = 0


@contextlib.contextmanager
def quiet_tifffile() -> Iterator[None]:
    """Forward tifffile's log records to this module's logger at debug level, while any thread is in the body.

    tifffile logs recoverable damage as warnings or errors, which Python prints if logging is not set up.
    """
    global _filter_users
    target = logging.getLogger("tifffile")
    with _filter_lock:
        _filter_users += 1
        target.addFilter(_filter)
    try:
        yield
    finally:
        with _filter_lock:
            _filter_users -= 1
            if _filter_users == 0:
                target.removeFilter(_filter)
