"""A `protocol.Translator` over a function of single pixels; without torch."""

from __future__ import annotations

from collections.abc import Callable

from ..arrays import RGBBatch


class PixelTranslator:
    """A `Translator` over a function of single pixels, where nothing but the pixel in its place matters."""

    halo_px = 0
    lattice_px = 1
    multiple_px = 1
    is_exact = True

    def __init__(self, function: Callable[[RGBBatch], RGBBatch], bytes_per_px: float) -> None:
        self._function = function
        self.bytes_per_px = bytes_per_px

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        """Translate a batch of windows; the cores are as large as the windows."""
        return self._function(windows)
