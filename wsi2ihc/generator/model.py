"""A generator as the rest of the program holds it: facts about a model, and what makes translators of it.

torch is imported only where a network is at work, so that built-in models do without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arrays import RGBBatch
from ..errors import ModelError
from .dependency import PIXELWISE, Dependency
from .pixelwise import PixelTranslator
from .protocol import Translator
from .spec import GeneratorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Generator:
    """A model that can translate slides: a trained network, or a built-in function of single pixels.

    name:           as it is listed, or the file's name without suffix
    version:        of a built-in, as in "counterstain 1"; of a trained one, the SHA-256 of its file
    stain:          what it makes, as in "HER2"
    channel_name:   name for the channel that it makes, which says that it is computed
    mpp:            µm per px that it works at; None for a built-in, which works at the slide's own resolution
    licence:        of the weights; "" where that is unknown
    description:    one sentence for people
    spec:           of a trained one, else None
    module:         its network, in evaluation mode; None for a built-in, and where it is only described
    pixelwise:      of a built-in: images (N, H, W, 3) uint8 to the same, each pixel by itself; else None
    bytes_per_px:   working memory of ``pixelwise``
    """

    name: str
    version: str
    stain: str
    channel_name: str
    mpp: float | None
    licence: str
    description: str
    spec: GeneratorSpec | None = None
    module: nn.Module | None = None
    pixelwise: Callable[[RGBBatch], RGBBatch] | None = None
    bytes_per_px: float = 0.0

    @property
    def sha256(self) -> str | None:
        """Of the model file; None for a built-in."""
        return None if self.spec is None else self.version

    @property
    def dependency(self) -> Dependency:
        """How far it looks, and whether it is a local function; computed from the layers each time."""
        if self.pixelwise is not None:
            return PIXELWISE
        from .reach import dependency

        return dependency(_network(self))


@dataclass(frozen=True, slots=True)
class SlideStatistics:
    """A generator whose normalisation statistics were taken from a slide.

    generator:     the generator, now a local function
    moved_levels:  by how many grey levels the mean of its answer to the sample moved, in red, green and blue. Stain
                   strength can be the diagnosis: a user should hear of it.
    """

    generator: Generator
    moved_levels: tuple[float, float, float]


def make_translator(
    generator: Generator, device: str | torch.device = "auto", precision: str = "auto", *, exact: bool
) -> Translator:
    """Make a generator ready for one device and precision.

    Parameters
    ----------
    generator:
        a built-in runs on the CPU in any case, and is exact in any case
    device:
        one device, as `device.parse_devices` reads or gives it
    precision:
        "auto", "fp32", "bf16" or "fp16": see `device.choose_precision`
    exact:
        True: cores with a halo, seamless by construction. False: windows to be blended, which the network pads itself.

    Raises
    ------
    DeviceError
        If there is no such device, several were named, or it cannot work in this precision.
    ModelError
        If exactness is asked for and the generator is not local.
    """
    if generator.pixelwise is not None:
        return PixelTranslator(generator.pixelwise, generator.bytes_per_px)
    from .device import choose_precision, one_device
    from .translator import TorchTranslator

    chosen = one_device(device)
    return TorchTranslator(
        _network(generator), chosen, choose_precision(precision, chosen), exact=exact, name=generator.name
    )


def with_slide_statistics(
    generator: Generator, sample: Iterable[RGBBatch], device: str | torch.device = "cpu"
) -> SlideStatistics:
    """Freeze a generator's normalisation at the statistics of a slide's tissue: see `statistics.estimate_statistics`.

    Parameters
    ----------
    generator:
        a trained one; a built-in has no statistics, and comes back as it is
    sample:
        batches (N, H, W, 3) uint8 of tissue at the generator's resolution; some 30 images of 256 px are enough. They
        are held in memory together.
    device:
        where to compute

    Raises
    ------
    ModelError
        If the sample is empty, or gives statistics that are not finite.
    DeviceError
        If there is no such device.
    """
    if generator.pixelwise is not None:
        return SlideStatistics(generator, (0.0, 0.0, 0.0))
    from .device import one_device
    from .statistics import statistics_of_pixels

    estimated = statistics_of_pixels(_network(generator), sample, one_device(device))
    return SlideStatistics(dataclasses.replace(generator, module=estimated.module), estimated.moved_levels)


def statistics_to_bytes(estimated: SlideStatistics) -> bytes:
    """Statistics that were taken from a slide, to be kept: the bytes of a safetensors file."""
    from .statistics import to_bytes

    return to_bytes(_network(estimated.generator), estimated.moved_levels)


def statistics_from_bytes(generator: Generator, content: bytes) -> SlideStatistics:
    """The generator with statistics that `statistics_to_bytes` kept, to the bit.

    Raises
    ------
    ModelError
        If they are damaged, or another generator's.
    """
    from .statistics import from_bytes

    stored = from_bytes(_network(generator), content)
    return SlideStatistics(dataclasses.replace(generator, module=stored.module), stored.moved_levels)


def _network(generator: Generator) -> nn.Module:
    if generator.module is None:
        raise ModelError(f"the model {generator.name} is only described here; load it with load_generator")
    return generator.module
