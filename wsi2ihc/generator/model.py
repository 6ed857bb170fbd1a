"""A generator as the rest of the program holds it: facts about a model, and what makes translators of it.

torch is imported by the functions that need it only, so that built-in models work without loading it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..arrays import RGBBatch
from ..errors import ModelError
from .dependency import PIXELWISE, Dependency
from .protocol import Translator
from .spec import GeneratorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True)
class Generator:
    """A model that can translate slides: either a network, or a built-in function of single pixels.

    name:           as it is listed, or the file's name
    version:        SHA-256 of the model file, or the version of a built-in
    stain:          what it makes, as in "HER2"
    channel_name:   name for the channel that it makes; says that it is computed
    mpp:            µm per px that it works at; None for built-ins, which work at the slide's own resolution
    licence:        of the weights; "" where that is unknown
    description:    one sentence for people
    spec:           of a trained generator, else None
    module:         its network, in evaluation mode, else None
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
    def dependency(self) -> Dependency:
        """How far it looks, and whether it is a local function; computed from the layers each time."""
        if self.module is None:
            return PIXELWISE
        from .reach import dependency

        return dependency(self.module)


@dataclass(frozen=True, slots=True)
class SlideStatistics:
    """A generator whose normalisation statistics were taken from a slide.

    generator:     the generator, now a local function
    moved_levels:  by how many grey levels its mean answer moved on the sample, in red, green and blue. Stain strength
                   can be the diagnosis: a user should hear of it.
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
        a built-in ignores device and precision: it runs on the CPU, and is exact in any case
    device:
        one device, as `device.parse_devices` reads or gives it
    precision:
        "auto", "fp32", "bf16" or "fp16"; see `device.choose_precision`
    exact:
        True: cores with a halo, seamless by construction. False: windows to be blended, padded by the network itself

    Raises
    ------
    DeviceError
        If there is no such device, several were named, or it cannot work in this precision.
    ModelError
        If exactness is asked for and the generator is not local.
    """
    if generator.module is None:
        if generator.pixelwise is None:
            raise ModelError(f"the model {generator.name} holds no generator, only its description")
        from .pixelwise import PixelTranslator

        return PixelTranslator(generator.pixelwise, generator.bytes_per_px)
    from .device import choose_precision, one_device
    from .translator import TorchTranslator

    chosen = one_device(device)
    return TorchTranslator(generator.module, chosen, choose_precision(precision, chosen), is_exact=exact)


def with_slide_statistics(
    generator: Generator, sample: Sequence[RGBBatch], device: str | torch.device = "cpu"
) -> SlideStatistics:
    """Freeze a generator's normalisation at the statistics of a slide's tissue; see `estimate_statistics`.

    Parameters
    ----------
    generator:
        a trained one (a built-in has no statistics, and comes back as it is)
    sample:
        batches (N, H, W, 3) uint8 of tissue at the generator's resolution; some 30 images of 256 px are enough
    device:
        where to compute

    Raises
    ------
    ModelError
        If the sample is empty or gives statistics that are not finite.
    DeviceError
        If there is no such device.
    """
    if generator.module is None:
        return SlideStatistics(generator, (0.0, 0.0, 0.0))
    import copy

    import numpy as np
    import torch

    from .device import one_device
    from .pixels import to_network
    from .statistics import estimate_statistics

    module = copy.deepcopy(generator.module).to(one_device(device))
    batches = [to_network(torch.from_numpy(np.require(batch, requirements=["C", "W"]))) for batch in sample]
    estimated = estimate_statistics(module, batches)
    return SlideStatistics(replace(generator, module=estimated.module.cpu()), estimated.moved_levels)
