"""The payloads that pass between the stages."""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays import RGBImage
from ..plan import Window


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
