"""The slide as a translation sees it: its working grid, what of it is shown, where the tissue is, how it is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import RGB
from ..errors import NoTissueError, OptionError
from ..geometry import Region
from ..plan import TissueGrid
from ..slide import Slide, WorkingGrid, known_mpp, to_srgb_transform, working_grid
from ..tissue import TissueMask, detect_tissue, load_mask, place_mask, whole_slide
from .feathering import Fade, make_fade
from .options import TranslateOptions
from .reading import ForgivingSlide, RegionReader

ENLARGED_FROM = 1.3
"""How much coarser than the model a slide may be without a word: 0.65 µm/px for 0.5 is near enough."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A slide made ready.

    grid:    the working grid, at the model's resolution
    extent:  what the output shows, in working px
    mask:    the tissue, as it was found or given
    tissue:  the same, placed on the working grid
    fade:    how the translation fades into the fill around it
    covered: where any of the translation shows: the tissue and the transition around it
    reader:  reads regions of the working grid
    warnings: what was asked for and could not be done as it was
    """

    grid: WorkingGrid
    extent: Region
    mask: TissueMask
    tissue: TissueGrid
    fade: Fade
    covered: TissueGrid
    reader: RegionReader
    warnings: tuple[str, ...] = ()

    @property
    def damaged_places(self) -> tuple[tuple[int, int, int], ...]:
        """Where the slide could not be read so far and was taken for glass: (level, x, y), in px of the level."""
        slide = self.reader.slide
        if not isinstance(slide, ForgivingSlide):
            return ()
        return tuple(sorted((level, region.x, region.y) for level, region in slide.damaged))

    @property
    def tissue_px(self) -> float:
        """Working px of the mask inside the extent."""
        return self.tissue.area_in(self.extent)

    @property
    def shown_glass(self) -> RGB:
        """The glass colour as the generator sees it: converted, if colours are."""
        if self.reader.colour is None:
            return self.mask.glass
        red, green, blue = self.reader.colour(np.array([[self.mask.glass]], dtype=np.uint8))[0, 0].tolist()
        return red, green, blue


def set_scene(
    slide: Slide, model_mpp: float | None, options: TranslateOptions, mask: TissueMask | None = None
) -> Scene:
    """Choose the working grid, find the tissue unless it is known (``mask``), and make the reader.

    Raises
    ------
    MissingResolutionError
        If the slide's resolution is unknown.
    NoTissueError
        If there is nothing to translate in the region.
    """
    own = max(known_mpp(slide.info))  # raises where it is not known
    grid = working_grid(slide.info, model_mpp)
    extent = Region(0, 0, grid.size.width, grid.size.height)
    if options.region is not None:
        extent = grid.region_from_level0(options.region)
        if extent.is_empty:
            raise OptionError(f"{slide.info.name}: --region {options.region} lies outside the slide")
    warnings: tuple[str, ...] = ()
    if model_mpp is not None and own > ENLARGED_FROM * model_mpp:
        warnings += (
            f"at {own:.4g} µm per pixel the slide is {own / model_mpp:.2g} times coarser than what the model was "
            "trained on; it is enlarged, which does not bring back the detail that the model reads",
        )
    if options.region is not None and not slide.info.bounds.contains(options.region):
        warnings += (f"--region {options.region} reaches beyond the slide and was clipped to it",)
    if options.icc == "srgb" and slide.info.icc_profile is None:
        warnings += ("the slide has no colour profile; its colours were taken for sRGB",)
    if options.on_read_error == "glass":
        slide = ForgivingSlide(slide)
    if mask is None:
        mask = find_mask(slide, options)
    colour = None
    if options.icc == "srgb" and slide.info.icc_profile is not None:
        colour = to_srgb_transform(slide.info.icc_profile)
    reader = RegionReader(slide, grid, mask.glass, colour)
    tissue = place_mask(mask, grid)
    fade = make_fade(tissue, grid.mpp)
    return Scene(grid, extent, mask, tissue, fade, fade.covered, reader, warnings)


def find_mask(slide: Slide, options: TranslateOptions) -> TissueMask:
    """The tissue mask that the options ask for."""
    if options.tissue == "auto":
        mask = detect_tissue(slide)
    elif options.tissue == "none":
        mask = whole_slide(slide)
    else:
        mask = load_mask(options.tissue, slide)
    if mask.is_empty:
        raise NoTissueError(
            f"{slide.info.name}: no tissue was found; if there is some, draw it (--tissue FILE.geojson) "
            "or translate everything (--tissue none)"
        )
    return mask
