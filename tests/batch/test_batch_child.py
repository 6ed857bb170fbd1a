"""One slide has the device while it is prepared and its windows are translated, and at no other time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from wsi2ihc.batch.worker import DeviceLease, _progress_callback
from wsi2ihc.concurrency import Progress
from wsi2ihc.translation.options import CHECKING, TRANSLATING, WAITING, WRITING

PREPARING = ("waiting for another process", "finding tissue", "loading the model")


@dataclass
class Slide:
    """One slide: the events for its progress, and for waiting."""

    device: threading.Semaphore
    turn: DeviceLease = field(init=False)
    waited: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.turn = DeviceLease(self.device, self.waited.append)
        self.tell = _progress_callback(0, self.turn, lambda _: None)

    def is_device_free_at(self, stage: str, done: int = 0, total: int = 1) -> bool:
        self.tell(Progress(stage, done, total))
        return is_free(self.device)


def is_free(device: threading.Semaphore) -> bool:
    return device.acquire(blocking=False) and not device.release()


@pytest.fixture
def slide() -> Iterator[Slide]:
    made = Slide(threading.Semaphore(1))
    with made.turn:
        yield made
    assert is_free(made.device)
    assert not made.device.acquire(blocking=False) or not made.device.acquire(blocking=False), "given back twice"


def test_the_turn_is_given_back_after_translating_not_before(slide: Slide) -> None:
    assert not any(slide.is_device_free_at(stage) for stage in PREPARING)
    assert not slide.is_device_free_at(TRANSLATING, 0, 10)
    assert not slide.is_device_free_at(TRANSLATING, 5, 10)
    assert slide.is_device_free_at(TRANSLATING, 10, 10)
    assert slide.is_device_free_at(CHECKING)
    assert slide.waited == [True, False]


def test_it_is_given_back_where_all_bands_were_done_before(slide: Slide) -> None:
    assert not any(slide.is_device_free_at(stage) for stage in PREPARING)
    assert slide.is_device_free_at(WRITING, 0, 3)
    assert slide.is_device_free_at(CHECKING)


def test_it_is_taken_again_for_bands_that_come_after_a_wait(slide: Slide) -> None:
    assert not slide.is_device_free_at(TRANSLATING, 5, 10)
    assert slide.is_device_free_at(WAITING)
    assert slide.is_device_free_at(WAITING)
    assert not slide.is_device_free_at(TRANSLATING, 6, 10)
    assert slide.is_device_free_at(WRITING, 1, 3)
    assert not slide.is_device_free_at(TRANSLATING, 8, 10), "a band that cannot be read back is done again"
    assert slide.is_device_free_at(TRANSLATING, 10, 10)
    assert slide.waited == [True, False] * 3


def test_who_takes_it_again_waits_while_another_has_it(slide: Slide) -> None:
    slide.tell(Progress(WAITING))
    with DeviceLease(slide.device, lambda _: None):
        goes_on = threading.Thread(target=slide.tell, args=(Progress(TRANSLATING, 6, 10),))
        goes_on.start()
        until = time.monotonic() + 20
        while slide.waited[-1] is False and time.monotonic() < until:
            time.sleep(0.001)
        assert slide.waited == [True, False, True], "it does not count as its time"
    goes_on.join(20)
    assert slide.waited == [True, False, True, False]
    assert not is_free(slide.device)
