"""The generator on its devices: which precision, which form, whose statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..arrays import RGB, RGBBatch, RGBImage
from ..errors import OptionError
from ..generator.model import (
    Generator,
    SlideStatistics,
    make_translator,
    statistics_from_bytes,
    statistics_to_bytes,
    with_slide_statistics,
)
from ..generator.protocol import Translator
from ..geometry import Region, ceil_to
from .options import TranslateOptions
from .scene import Scene

if TYPE_CHECKING:
    import torch

LARGEST_EXACT_RADIUS_PX = 256
"""Beyond this dependency radius the halo is most of every window, and blending is the sensible default."""

SAMPLE_WINDOWS = 32
SAMPLE_WINDOW_PX = 256
SAMPLE_BATCH = 4
CANDIDATE_WINDOWS = 128
"""For statistics of a slide: of 128 windows of 256² px drawn at random, the 32 with the least glass."""

GLASS_LEVELS = 12
"""A px is glass if no channel is further than this from the slide's glass colour."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Translators, one per device, and what is said of them in the report.

    memory_bytes: free memory of the (first) GPU; None on a CPU
    is_local:     whether an output px depends on its surroundings only, and not on the whole window
    statistics:   the normalisation statistics that were taken from the slide, as bytes; None where there are none
    """

    translators: tuple[Translator, ...]
    device: str
    precision: str
    on_gpu: bool
    memory_bytes: int | None
    warnings: tuple[str, ...]
    statistics: bytes | None = None
    is_local: bool = True

    @property
    def bytes_per_px(self) -> float:
        """Working memory per px of a window."""
        return self.translators[0].bytes_per_px


def make_machine(
    generator: Generator,
    scene: Scene,
    options: TranslateOptions,
    translators: Sequence[Translator] | None,
    statistics: bytes | None = None,
) -> Machine:
    """Put the generator on its devices.

    ``statistics`` are those that another machine took from this slide; without them they are taken anew.

    Raises
    ------
    OptionError
        If an exact translation is asked of a network that is not local.
    DeviceError
        If a device is missing.
    """
    if translators is not None:
        return Machine(tuple(translators), "given", "given", False, None, ())
    if generator.module is None:
        warnings = _ignored(generator, options)
        return Machine((make_translator(generator, exact=True),), "cpu", "exact", False, None, warnings)
    from ..generator.device import choose_precision, free_memory_bytes, parse_devices

    devices = parse_devices(options.device)
    precision = choose_precision(options.precision, devices[0])
    warnings = _other_colors(generator, options)
    if options.statistics == "slide":
        estimated = _slide_statistics(generator, scene, options, devices[0], statistics)
        generator, statistics = estimated.generator, statistics_to_bytes(estimated)
        warnings += (_how_moved(estimated),)
    exact = _is_exact(generator, options)
    if not exact and options.blend == "auto":
        warnings += (_why_blended(generator),)
    if exact and options.overlap_px:
        warnings += ("--overlap was ignored: the translation is exact, and nothing is blended",)
    made = tuple(make_translator(generator, device, precision, exact=exact) for device in devices)
    names = ", ".join(str(device) for device in devices)
    free_bytes = [free for device in devices if (free := free_memory_bytes(device)) is not None]
    on_gpu = devices[0].type != "cpu"
    is_local = generator.dependency.is_local
    return Machine(made, names, precision, on_gpu, min(free_bytes, default=None), warnings, statistics, is_local)


def resolved_precision(generator: Generator, options: TranslateOptions) -> str:
    """The precision that `make_machine` will settle on.

    Raises
    ------
    DeviceError
        If the device is missing, or cannot work in the chosen precision.
    """
    if generator.module is None:
        return "exact"
    from ..generator.device import choose_precision, parse_devices

    return choose_precision(options.precision, parse_devices(options.device)[0])


def _other_colors(generator: Generator, options: TranslateOptions) -> tuple[str, ...]:
    """A warning where the model was trained on colors that were read otherwise than these are, as far as it says."""
    data = generator.spec.training.get("data") if generator.spec else None
    trained = data.get("icc") if isinstance(data, Mapping) else None
    if trained not in ("keep", "srgb") or trained == options.icc:
        return ()
    return (f"{generator.name} was trained on slides read with --icc {trained}, and this run has --icc {options.icc}: "
            "it sees other colors than it knows",)  # fmt: skip


def _ignored(generator: Generator, options: TranslateOptions) -> tuple[str, ...]:
    """Warnings of options that mean nothing to a built-in model."""
    given = {
        "--device": options.device not in ("auto", "cpu"),
        "--precision": options.precision != "auto",
        "--statistics": options.statistics != "trained",
        "--overlap": options.overlap_px > 0 and options.blend != "overlap",
    }
    return tuple(
        f"{option} was ignored: the built-in model {generator.name} has no network"
        for option, is_given in given.items()
        if is_given
    )


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


def _slide_statistics(
    generator: Generator, scene: Scene, options: TranslateOptions, device: torch.device, known: bytes | None
) -> SlideStatistics:
    if known is not None:
        return statistics_from_bytes(generator, known)
    sample = list(_sample(scene, generator.dependency.lattice_px, options.seed))
    return with_slide_statistics(generator, sample, device)


def _how_moved(estimated: SlideStatistics) -> str:
    moved = ", ".join(f"{round(levels):+d}" for levels in estimated.moved_levels)
    return (
        "normalisation statistics were estimated on this slide, which can move the strength of its stain (here its "
        f"mean colour by {moved} grey levels in red, green, blue): do not compare it with slides translated otherwise"
    )


def _sample(scene: Scene, lattice_px: int, seed: int) -> Iterator[RGBBatch]:
    """Batches of windows of tissue: at random among those with little glass, else those with the least."""
    side = ceil_to(SAMPLE_WINDOW_PX, lattice_px)
    regions = [
        Region(x, y, side, side)
        for y in range(scene.extent.y, scene.extent.bottom, side)
        for x in range(scene.extent.x, scene.extent.right, side)
    ]
    regions = [region for region in regions if scene.tissue.area_in(region) > 0]
    drawn = np.random.default_rng(seed).permutation(len(regions))[:CANDIDATE_WINDOWS]
    windows = [scene.reader(regions[index]) for index in drawn]
    # The mask has a margin, and may be "everything": glass is told by its colour. A stable sort on coarse shares keeps
    # the order of the draw among windows full of tissue.
    glass = [round(_glass_share(window, scene.shown_glass), 1) for window in windows]
    best = [windows[index] for index in np.argsort(glass, kind="stable")[:SAMPLE_WINDOWS]]
    tissue = [window for window in best if _glass_share(window, scene.shown_glass) <= 0.5] or best[:SAMPLE_BATCH]
    for first in range(0, len(tissue), SAMPLE_BATCH):
        yield np.stack(tissue[first : first + SAMPLE_BATCH])


def _glass_share(window: RGBImage, glass: RGB) -> float:
    """Share of px within `GLASS_LEVELS` of the glass colour in every channel."""
    distance = np.abs(window.astype(np.int16) - np.array(glass, dtype=np.int16)).max(axis=2)
    return float((distance <= GLASS_LEVELS).mean())
