"""What the translation needs to know of a generator, whatever it is made of."""

from __future__ import annotations

from typing import Protocol

from ..arrays import RGBBatch


class Translator(Protocol):
    """A generator made ready for one device and precision: batches of windows in, batches of cores out.

    halo_px:       how many px on each side of a window are context only: the answer is the window less this margin.
                   At least the network's dependency radius where the translation is exact; 0 where windows are
                   blended (then the network pads its windows in its own way).
    lattice_px:    windows must start on multiples of this (from the working grid's origin)
    multiple_px:   sides of windows must be multiples of this (at least the lattice; more where the device's kernels
                   give bit-equal pixels only so)
    is_exact:      whether each output pixel is the same in whatever window it lies (at ``halo_px`` from its border)
    bytes_per_px:  peak working memory per px of a window, beyond the model's own weights
    """

    @property
    def halo_px(self) -> int: ...
    @property
    def lattice_px(self) -> int: ...
    @property
    def multiple_px(self) -> int: ...
    @property
    def is_exact(self) -> bool: ...
    @property
    def bytes_per_px(self) -> float: ...

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        """Translate windows (N, H, W, 3) uint8 into cores (N, H - 2·halo_px, W - 2·halo_px, 3) uint8.

        Called from one thread at a time. The answer may be the argument itself or a view of it.

        Raises
        ------
        ModelError
            If the network's answer is not finite.
        DeviceMemoryError
            If even a single window does not fit on the device.
        """
        ...
