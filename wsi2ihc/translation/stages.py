"""The payloads that pass between the stages, and the tool that keeps threads ordered and bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TypeVar

from ..arrays import RGBImage
from ..plan import Window

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class WindowPixels:
    """A window as it was read: ``pixels`` cover ``window.region``, context included."""

    window: Window
    pixels: RGBImage


@dataclass(frozen=True, slots=True)
class TranslatedWindow:
    """A window's answer: ``pixels`` cover ``window.answer``; ``source`` is the H&E of ``window.core``."""

    window: Window
    source: RGBImage
    pixels: RGBImage


@dataclass(frozen=True, slots=True)
class FinishedCore:
    """Final pixels: ``pixels`` and ``source`` both cover ``window.core``. Each output pixel comes exactly once."""

    window: Window
    source: RGBImage
    pixels: RGBImage


def ordered_map(
    executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    """Results of ``function`` over ``items``, computed in the executor, in the order of the items.

    Memory bound: at most ``ahead`` results wait, finished or under way. The first failure is raised where its result
    would have come; what has not started by then never does.
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
