"""How a slide is read for its patches: tissue, colors, and damaged areas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi2ihc.arrays import RGB, RGBImage
from wsi2ihc.slide import Slide, known_mpp, to_srgb_transform
from wsi2ihc.tissue import TissueMask, detect_tissue, load_mask, whole_slide, without_margin
from wsi2ihc.translation.reading import ForgivingSlide

from .cells import Tissue
from .options import PairsOptions


def seen_as(slide: Slide, options: PairsOptions) -> Slide:
    """Return the slide for overviews and registration: damaged areas are background, if the options allow damage."""
    return ForgivingSlide(slide) if options.on_read_error == "glass" else slide


def tissue_of(slide: Slide, tissue: Tissue | Path) -> TissueMask:
    """Find the tissue of a slide, without a margin around it.

    Raises
    ------
    MaskError
        If a mask file cannot be read or does not fit the slide.
    UnreadableSlideError
        If the slide is damaged.
    """
    if isinstance(tissue, Path):
        return load_mask(tissue, slide)
    if tissue == "none":
        return whole_slide(slide)
    return without_margin(detect_tissue(slide), known_mpp(slide.info))


@dataclass(frozen=True, slots=True)
class Colors:
    """The colors that patches of a slide have.

    convert:    converts pixels of the slide, as translation does
    background: color of the slide's background, converted
    notes:      what could not be done, one sentence each
    """

    convert: Callable[[RGBImage], RGBImage]
    background: RGB
    notes: tuple[str, ...] = ()


def colors_of(slide: Slide, background: RGB, options: PairsOptions) -> Colors:
    """Return the slide's own colors, or sRGB by its profile, as the option ``icc`` says."""
    if options.icc == "keep":
        return Colors(_as_it_is, background)
    if slide.info.icc_profile is None:
        note = f"{slide.info.name} has no color profile; its colors were taken for sRGB (--icc srgb)"
        return Colors(_as_it_is, background, (note,))
    convert = to_srgb_transform(slide.info.icc_profile)
    red, green, blue = convert(np.array([[background]], np.uint8))[0, 0].tolist()
    return Colors(convert, (red, green, blue))


def _as_it_is(pixels: RGBImage) -> RGBImage:
    return pixels
