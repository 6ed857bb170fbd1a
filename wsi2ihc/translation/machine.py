"""The generator on its devices: which precision, which form, whose statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..arrays import RGBBatch
from ..errors import OptionError
from ..generator.model import Generator, make_translator, with_slide_statistics
from ..generator.protocol import Translator
from ..geometry import Region, ceil_to
from .options import TranslateOptions
from .scene import Scene

if TYPE_CHECKING:
    import torch

LARGEST_EXACT_RADIUS_PX = 256
"""Beyond this dependency radius the halo is most of every window, and blending is the sensible default."""

SAMPLE_WINDOWS = 32
SAMPLE_WINDOW_PX = 512
SAMPLE_BATCH = 4
"""For statistics of a slide: 32 windows of 512² px are 8 Mpx of tissue, read once."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Translators, one per device, and what is said of them in the report.

    memory_bytes: free memory of the (first) GPU; None on a CPU
    """

    translators: tuple[Translator, ...]
    device: str
    precision: str
    on_gpu: bool
    memory_bytes: int | None
    warnings: tuple[str, ...]

    @property
    def bytes_per_px(self) -> float:
        """Working memory per px of a window."""
        return self.translators[0].bytes_per_px


def make_machine(
    generator: Generator, scene: Scene, options: TranslateOptions, translators: Sequence[Translator] | None
) -> Machine:
    """Put the generator on its devices.

    Raises
    ------
    OptionError
        If an exact translation is asked of a network that is not local.
    DeviceError
        If a device is missing.
    """
    if translators is not None:
        return Machine(tuple(translators), "given", "given", False, None, ())
    warnings: tuple[str, ...] = ()
    if options.statistics == "slide":
        generator, warnings = _with_slide_statistics(generator, scene, options)
    if generator.module is None:
        return Machine((make_translator(generator, exact=True),), "cpu", "exact", False, None, warnings)
    from ..generator.device import choose_precision, parse_devices

    devices = parse_devices(options.device)
    precision = choose_precision(options.precision, devices[0])
    exact = _is_exact(generator, options)
    if not exact and options.blend == "auto":
        warnings += (_why_blended(generator),)
    made = tuple(make_translator(generator, device, precision, exact=exact) for device in devices)
    names = ", ".join(str(device) for device in devices)
    return Machine(made, names, precision, devices[0].type != "cpu", _free_bytes(devices[0]), warnings)


def _free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a GPU; None on other devices, which share the host's."""
    if device.type != "cuda":
        return None
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def _is_exact(generator: Generator, options: TranslateOptions) -> bool:
    dependency = generator.dependency
    if options.blend == "overlap":
        return False
    if options.blend == "exact":
        if not dependency.is_local:
            raise OptionError(
                f"--blend exact: model {generator.name} looks at the statistics of each window, so no tiling of it is "
                "exact; use --blend overlap, or --statistics slide to freeze them"
            )
        return True
    return bool(dependency.is_local and dependency.radius_px <= LARGEST_EXACT_RADIUS_PX)


def _why_blended(generator: Generator) -> str:
    if not generator.dependency.is_local:
        return (
            f"model {generator.name} looks at the statistics of each window, so windows are blended and the result is "
            "an approximation; --statistics slide makes it exact"
        )
    return (
        f"model {generator.name} sees {generator.dependency.radius_px} px far, so windows are blended and the result "
        "is an approximation"
    )


def _with_slide_statistics(
    generator: Generator, scene: Scene, options: TranslateOptions
) -> tuple[Generator, tuple[str, ...]]:
    if generator.module is None:
        return generator, (f"--statistics slide: model {generator.name} has no statistics; ignored",)
    sample = list(_sample(scene, generator.dependency.lattice_px, options.seed))
    frozen = with_slide_statistics(generator, sample)
    moved = ", ".join(f"{levels:+.0f}" for levels in frozen.moved_levels)
    return frozen.generator, (
        "normalisation statistics were estimated on this slide, which can move the strength of its stain (here its "
        f"mean colour by {moved} grey levels in red, green, blue): do not compare it with slides translated otherwise",
    )


def _sample(scene: Scene, lattice_px: int, seed: int) -> Iterator[RGBBatch]:
    """Batches of windows of tissue, drawn without replacement among those with the least glass."""
    side = ceil_to(SAMPLE_WINDOW_PX, lattice_px)
    regions = [
        Region(x, y, side, side)
        for y in range(scene.extent.y, scene.extent.bottom, side)
        for x in range(scene.extent.x, scene.extent.right, side)
    ]
    random = np.random.default_rng(seed)
    order = random.permutation(len(regions))
    # A stable sort on the rounded share: full windows come first, in random order.
    share = [-round(scene.tissue.area_in(regions[index]) / (side * side), 1) for index in order]
    chosen = [regions[order[index]] for index in np.argsort(share, kind="stable")[:SAMPLE_WINDOWS]]
    chosen = [region for region in chosen if scene.tissue.area_in(region) > 0]
    for first in range(0, len(chosen), SAMPLE_BATCH):
        yield np.stack([scene.reader(region) for region in chosen[first : first + SAMPLE_BATCH]])
