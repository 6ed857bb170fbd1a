"""What tifffile logs about damage that it survives, kept from the terminal."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)


class _ToDebug(logging.Filter):
    """Passes tifffile's complaints on at debug level, and stops them there."""

    def filter(self, record: logging.LogRecord) -> bool:
        logger.debug("tifffile: %s", record.getMessage())
        return False


_filter = _ToDebug()
_filter_lock = threading.Lock()
_filter_users = 0


@contextlib.contextmanager
def quiet_tifffile() -> Iterator[None]:
    """While any thread is inside, tifffile's log records go to this module's logger at debug level only.

    tifffile logs damage that it survives as warnings or errors, which Python prints where logging is not set up.
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
