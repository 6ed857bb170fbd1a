"""One slide has the device until its last window is translated."""

from __future__ import annotations

import threading

from wsi2ihc.batch.child import _Turn, _watched
from wsi2ihc.progress import Progress


def test_the_turn_is_given_back_after_translating_not_before() -> None:
    device = threading.Semaphore(1)

    def is_free() -> bool:
        return device.acquire(blocking=False) and not device.release()

    with _Turn(device) as turn:
        watch = _watched(0, turn, lambda _: None)
        for stage in ("waiting for another process", "finding tissue", "loading the model"):
            watch(Progress(stage))
            assert not is_free()
        watch(Progress("translating", 0, 10))
        watch(Progress("translating", 5, 10))
        assert not is_free()
        watch(Progress("writing the file", 0, 3, "tile"))
        assert is_free()
    with _Turn(device) as turn:
        watch = _watched(0, turn, lambda _: None)
        watch(Progress("translating", 10, 10))
        assert is_free()
