"""Second stage: pixels of windows through the generator, in batches, on one device or several."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from ..generator.protocol import Translator
from ..ordered import ordered_map
from .stages import TranslatedWindow, WindowPixels

BATCHES_AHEAD = 3
"""Batches per device that are under way, waiting, or being taken apart: so that no device waits for Python."""


@dataclass(slots=True)
class DeviceClock:
    """Seconds that the translators worked, summed over devices."""

    busy_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seconds: float) -> None:
        with self._lock:
            self.busy_s += seconds


def batched(patches: Iterable[WindowPixels], size: int) -> Iterator[list[WindowPixels]]:
    """Lists of up to ``size`` successive windows of equal shape, in order."""
    batch: list[WindowPixels] = []
    for patch in patches:
        if batch and (len(batch) == size or patch.pixels.shape != batch[0].pixels.shape):
            yield batch
            batch = []
        batch.append(patch)
    if batch:
        yield batch


def translate_windows(
    patches: Iterable[WindowPixels], translators: Sequence[Translator], batch_size: int, clock: DeviceClock
) -> Iterator[TranslatedWindow]:
    """Translate windows in batches; the order of the plan is kept whatever number of devices works.

    Each translator works in one thread at a time. Memory bound: `BATCHES_AHEAD` batches per device.
    """
    idle: SimpleQueue[Translator] = SimpleQueue()
    for translator in translators:
        idle.put(translator)

    def translate_one(batch: list[WindowPixels]) -> list[TranslatedWindow]:
        translator = idle.get()
        started = time.perf_counter()
        try:
            return _translate_batch(batch, translator)
        finally:
            clock.add(time.perf_counter() - started)
            idle.put(translator)

    ahead = BATCHES_AHEAD * len(translators)
    with (
        ThreadPoolExecutor(len(translators), thread_name_prefix="device") as executor,
        closing(ordered_map(executor, translate_one, batched(patches, batch_size), ahead)) as results,
    ):
        for batch in results:
            yield from batch


def _translate_batch(batch: list[WindowPixels], translator: Translator) -> list[TranslatedWindow]:
    windows = batch[0].pixels[np.newaxis] if len(batch) == 1 else np.stack([patch.pixels for patch in batch])
    answers = translator(windows)
    translated = []
    for patch, answer in zip(batch, answers, strict=True):
        window = patch.window
        source = patch.pixels[window.core.slices_in(window.region)]
        translated.append(TranslatedWindow(window, source, answer))
    return translated
