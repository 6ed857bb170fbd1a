"""Prepare the inputs of a translation: the slide with its tissue mask, and the model on its devices.

`prepare_slide` chooses the working grid, finds the tissue and makes the reader. `set_up_inference` makes a translator
for each device; with slide statistics it first samples tissue and freezes the normalization of the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import NoTissueError, OptionError
from ..geometry import RGB, BoolImage, Region, RGBBatch, RGBImage, ceil_to
from ..models.model_spec import Translator
from ..models.registry import (
    Model,
    SlideStatistics,
    make_translator,
    statistics_from_bytes,
    statistics_to_bytes,
    with_slide_statistics,
)
from ..slide import Slide, WorkingGrid, known_mpp, to_srgb_transform, working_grid
from ..tissue import TissueMask, detect_tissue, load_mask, whole_slide
from .blend import Fade, make_fade
from .options import TranslateOptions
from .stages import FaultTolerantSlide, RegionReader
from .windows import TissueGrid, mask_on_grid

ENLARGED_FROM = 1.3
"""How many times coarser than the model a slide may be without a warning: 0.65 µm/px for 0.5 is close enough."""


@dataclass(frozen=True, slots=True)
class PreparedSlide:
    """A slide with its working grid and tissue."""

    grid: WorkingGrid  # working grid, at the resolution of the model
    extent: Region  # region of the output, in working px
    mask: TissueMask
    tissue: TissueGrid  # tissue mask on the working grid
    fade: Fade  # weights of the transition from the translation to the fill
    covered: TissueGrid  # area in which the translation is visible: the tissue and the transition
    reader: RegionReader  # reader for regions of the working grid
    warnings: tuple[str, ...] = ()  # warnings about options that could not be applied as requested

    @property
    def unreadable_areas(self) -> tuple[tuple[int, int, int], ...]:
        """Areas that could not be read so far, as (level, x, y) in px of the level."""
        slide = self.reader.slide
        if not isinstance(slide, FaultTolerantSlide):
            return ()
        return tuple(sorted((level, region.x, region.y) for level, region in slide.damaged))

    @property
    def tissue_px(self) -> float:
        """Working px of the mask inside the extent."""
        return self.tissue.area_in(self.extent)

    @property
    def shown_background(self) -> RGB:
        """Background color as input of the generator, after color conversion."""
        if self.reader.color is None:
            return self.mask.background
        red, green, blue = self.reader.color(np.array([[self.mask.background]], dtype=np.uint8))[0, 0].tolist()
        return red, green, blue


def prepare_slide(
    slide: Slide, model_mpp: float | None, options: TranslateOptions, mask: TissueMask | None = None
) -> PreparedSlide:
    """Choose the working grid, find the tissue unless ``mask`` is given, and make the reader.

    Raises
    ------
    MissingResolutionError
        If the slide's resolution is unknown.
    NoTissueError
        If there is nothing to translate in the region.
    """
    slide_mpp = max(known_mpp(slide.info))
    grid = working_grid(slide.info, model_mpp)
    extent = Region(0, 0, grid.size.width, grid.size.height)
    if options.region is not None:
        extent = grid.region_from_level0(options.region)
        if extent.is_empty:
            raise OptionError(f"{slide.info.name}: --region {options.region} lies outside the slide")
    warnings: tuple[str, ...] = ()
    if model_mpp is not None and slide_mpp > ENLARGED_FROM * model_mpp:
        warnings += (
            f"at {slide_mpp:.4g} µm/px the slide is {slide_mpp / model_mpp:.2g} times coarser than the training "
            "data of the model; it is enlarged, which does not restore the missing detail",
        )
    if options.region is not None and not slide.info.bounds.contains(options.region):
        warnings += (f"--region {options.region} extends beyond the slide and was clipped to it",)
    if options.icc == "srgb" and slide.info.icc_profile is None:
        warnings += ("the slide has no color profile; sRGB was assumed",)
    if options.on_read_error == "background":
        slide = FaultTolerantSlide(slide)
    if mask is None:
        mask = find_mask(slide, options)
    color = None
    if options.icc == "srgb" and slide.info.icc_profile is not None:
        color = to_srgb_transform(slide.info.icc_profile)
    reader = RegionReader(slide, grid, mask.background, color)
    tissue = mask_on_grid(mask, grid)
    fade = make_fade(tissue, grid.mpp)
    return PreparedSlide(grid, extent, mask, tissue, fade, fade.covered, reader, warnings)


def find_mask(slide: Slide, options: TranslateOptions) -> TissueMask:
    """Detect or load the tissue mask, as requested."""
    if options.tissue == "auto":
        mask = detect_tissue(slide)
    elif options.tissue == "none":
        mask = whole_slide(slide)
    else:
        mask = load_mask(options.tissue, slide)
    if mask.is_empty:
        raise NoTissueError(
            f"{slide.info.name}: no tissue was found; annotate it (--tissue FILE.geojson) "
            "or translate everything (--tissue none)"
        )
    return mask


LARGEST_EXACT_RADIUS_PX = 256
"""With a larger receptive field, the halo is most of every window, and blending is the default."""

SAMPLE_WINDOWS = 32
SAMPLE_WINDOW_PX = 256
SAMPLE_BATCH = 4
CANDIDATE_WINDOWS = 128
"""Sample for slide statistics: of 128 random windows of 256² px, the 32 with the least background."""

BACKGROUND_LEVELS = 12
"""Largest difference of a background px from the background color, in any channel."""


@dataclass(frozen=True, slots=True)
class InferenceSetup:
    """Translators and their description for the report."""

    translators: tuple[Translator, ...]  # one translator per device
    # device, precision: description of the devices, and number format
    device: str
    precision: str
    on_gpu: bool  # whether the devices are GPUs
    memory_bytes: int | None  # smallest free memory of the GPUs; None on a CPU
    warnings: tuple[str, ...]  # warnings about the model and its options
    statistics: bytes | None = None  # serialized normalization statistics of the slide, if any
    is_local: bool = True  # whether an output px depends on its neighborhood only, and not on the whole window

    @property
    def bytes_per_px(self) -> float:
        """Working memory per px of a window."""
        return self.translators[0].bytes_per_px


def set_up_inference(
    generator: Model,
    prepared: PreparedSlide,
    options: TranslateOptions,
    translators: Sequence[Translator] | None,
    statistics: bytes | None = None,
) -> InferenceSetup:
    """Load the generator onto its devices, unless ``translators`` replace it.

    ``statistics`` are normalization statistics of this slide from another run; they are estimated if None.

    Raises
    ------
    OptionError
        If an exact translation is requested with a network that is not local.
    DeviceError
        If a device is missing.
    """
    if translators is not None:
        return InferenceSetup(tuple(translators), "given", "given", False, None, ())
    if generator.module is None:
        warnings = _ignored_options(generator, options)
        return InferenceSetup((make_translator(generator, exact=True),), "cpu", "exact", False, None, warnings)
    from ..models.device import choose_precision, free_memory_bytes, parse_devices

    devices = parse_devices(options.device)
    precision = choose_precision(options.precision, devices[0])
    warnings = _other_colors(generator, options)
    if options.statistics == "slide":
        if statistics is None:
            sample = list(_sample_tissue(prepared, generator.dependency.stride_px, options.seed))
            estimated = with_slide_statistics(generator, sample, devices[0])
        else:
            estimated = statistics_from_bytes(generator, statistics)
        generator, statistics = estimated.generator, statistics_to_bytes(estimated)
        warnings += (_statistics_warning(estimated),)
    exact = _is_exact(generator, options)
    if not exact and options.blend == "auto":
        warnings += (_blending_warning(generator),)
    if exact and options.overlap_px:
        warnings += ("--overlap was ignored: the translation is exact, and nothing is blended",)
    made = tuple(make_translator(generator, device, precision, exact=exact) for device in devices)
    names = ", ".join(str(device) for device in devices)
    free_bytes = [free for device in devices if (free := free_memory_bytes(device)) is not None]
    on_gpu = devices[0].type != "cpu"
    is_local = generator.dependency.is_local
    return InferenceSetup(made, names, precision, on_gpu, min(free_bytes, default=None), warnings, statistics, is_local)


def resolved_precision(generator: Model, options: TranslateOptions) -> str:
    """Return the precision that `set_up_inference` will choose; `DeviceError` as it raises."""
    if generator.module is None:
        return "exact"
    from ..models.device import choose_precision, parse_devices

    return choose_precision(options.precision, parse_devices(options.device)[0])


def _other_colors(generator: Model, options: TranslateOptions) -> tuple[str, ...]:
    """Warn if the model states that it was trained with another color conversion."""
    data = generator.spec.training.get("data") if generator.spec else None
    trained = data.get("icc") if isinstance(data, Mapping) else None
    if trained not in ("keep", "srgb") or trained == options.icc:
        return ()
    return (f"{generator.name} was trained on slides read with --icc {trained}, and this run has --icc {options.icc}: "
            "colors differ from the training data",)  # fmt: skip


def _ignored_options(generator: Model, options: TranslateOptions) -> tuple[str, ...]:
    """Warn about options that a built-in model ignores."""
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


def _is_exact(generator: Model, options: TranslateOptions) -> bool:
    dependency = generator.dependency
    if options.blend == "overlap":
        return False
    if options.blend == "exact":
        if not dependency.is_local:
            raise OptionError(
                f"--blend exact: model {generator.name} normalizes by the statistics of each window, so no tiling is "
                "exact; use --blend overlap, or --statistics slide to freeze them"
            )
        return True
    return bool(dependency.is_local and dependency.radius_px <= LARGEST_EXACT_RADIUS_PX)


def _blending_warning(generator: Model) -> str:
    if not generator.dependency.is_local:
        return (
            f"model {generator.name} normalizes by the statistics of each window, so windows are blended and the "
            "result is an approximation; --statistics slide makes it exact"
        )
    return (
        f"model {generator.name} has a receptive field of {generator.dependency.radius_px} px in each direction, so "
        "windows are blended and the result is an approximation"
    )


def _statistics_warning(estimated: SlideStatistics) -> str:
    moved = ", ".join(f"{round(levels):+d}" for levels in estimated.moved_levels)
    return (
        "normalization statistics were estimated on this slide, which can change its stain strength (here the mean "
        f"color by {moved} gray levels in red, green, blue): do not compare it with slides translated without"
    )


def _sample_tissue(prepared: PreparedSlide, stride_px: int, seed: int) -> Iterator[RGBBatch]:
    """Yield batches of tissue windows: random ones with little background, or else those with the least."""
    side = ceil_to(SAMPLE_WINDOW_PX, stride_px)
    regions = [
        Region(x, y, side, side)
        for y in range(prepared.extent.y, prepared.extent.bottom, side)
        for x in range(prepared.extent.x, prepared.extent.right, side)
    ]
    regions = [region for region in regions if prepared.tissue.area_in(region) > 0]
    drawn = np.random.default_rng(seed).permutation(len(regions))[:CANDIDATE_WINDOWS]
    windows = [prepared.reader(regions[index]) for index in drawn]
    # Background is recognized by its color, since the mask has a margin and may cover everything. A stable sort of
    # rounded fractions keeps the random order of windows full of tissue.
    fractions = [float(background_mask(window, prepared.shown_background).mean()) for window in windows]
    order = np.argsort([round(fraction, 1) for fraction in fractions], kind="stable")[:SAMPLE_WINDOWS]
    tissue = [windows[index] for index in order if fractions[index] <= 0.5]
    tissue = tissue or [windows[index] for index in order[:SAMPLE_BATCH]]
    for first in range(0, len(tissue), SAMPLE_BATCH):
        yield np.stack(tissue[first : first + SAMPLE_BATCH])


def background_mask(pixels: RGBImage, background: RGB) -> BoolImage:
    """Return which px are within `BACKGROUND_LEVELS` of the background color in every channel."""
    distance = cv2.absdiff(pixels, np.full_like(pixels, background)).max(axis=2)
    return np.asarray(distance <= BACKGROUND_LEVELS, np.bool_)
