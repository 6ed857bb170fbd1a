"""Tissue masks in files: GeoJSON (as QuPath has it) and PNG."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..arrays import RGB, WHITE, BoolImage
from ..errors import MaskError, OutputError
from ..files import read_regular
from ..pyramid import published
from ..slide import Slide, SlideInfo
from .geojson import Area, draw_areas, outlines, parse_areas, to_geojson
from .mask import Annotation, TissueMask
from .survey import LARGEST_OVERVIEW_PX, mask_grid, measure_glass

GEOJSON_SUFFIXES, PNG_SUFFIXES = (".geojson", ".json"), (".png",)

LARGEST_FILE_BYTES = 512 << 20
MOST_ANNOTATIONS = 1_000
"""Classes and names that are kept: a file of cells may name each of a million."""

LARGEST_PNG_PX = 80_000_000
"""A mask at 8 µm/px of the largest slides has 20 million px."""

SHAPE_TOLERANCE = 0.02
"""How far the aspect ratio of a PNG may be off that of the slide."""


def load_mask(path: str | Path, slide: Slide) -> TissueMask:
    """Read a mask for an open slide, and measure the slide's glass.

    Parameters
    ----------
    path
        ``.geojson`` or ``.json``: outlines in level-0 px from the corner of the slide's scanned area, as QuPath has
        them. ``.png``: any px that is not black (and not transparent) is tissue; the picture is stretched over the
        scanned area.
    slide
        The slide that the mask was made for.

    Raises
    ------
    MaskError
        If the file cannot be read, holds no mask, or does not fit the slide.
    UnreadableSlideError
        If the slide is damaged.
    """
    mask = read_mask(path, slide.info)
    glass, warnings = measure_glass(slide)
    return dataclasses.replace(mask, glass=glass, warnings=(*mask.warnings, *warnings))


def read_mask(path: str | Path, info: SlideInfo, glass: RGB = WHITE) -> TissueMask:
    """`load_mask` for a slide of which only the facts are at hand, and perhaps the colour of its glass."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*GEOJSON_SUFFIXES, *PNG_SUFFIXES):
        raise MaskError(f"{path.name}: unknown kind of mask {path.suffix!r}; give a .geojson or a .png")
    content = _content(path)
    if suffix in PNG_SUFFIXES:
        return _from_png(content, path.name, info, glass)
    return _from_geojson(content, path.name, info, glass)


def save_mask(mask: TissueMask, path: str | Path) -> None:
    """Write a mask as ``.geojson`` (or ``.json``) or ``.png``, to be read back by `load_mask`.

    A PNG is 8-bit, 0 and 255, one px per mask px, with a text chunk "wsi2ihc" that says where the mask lies. A file
    of that name is replaced, but only by a complete one.

    Raises
    ------
    OutputError
        If the suffix is another, or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in PNG_SUFFIXES:
        content = _to_png(mask)
    elif suffix in GEOJSON_SUFFIXES:
        content = _to_geojson(mask).encode()
    else:
        raise OutputError(f"{path.name}: unknown kind of mask {path.suffix!r}; name it .geojson or .png")
    with published(path, overwrite=True) as partial:
        try:
            partial.write_bytes(content)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise MaskError(f"{path.name}: larger than {LARGEST_FILE_BYTES >> 20} MB; simplify the outlines")
        return read_regular(path, LARGEST_FILE_BYTES)
    except FileNotFoundError:
        raise MaskError(f"{path}: there is no such mask file; check the path") from None
    except OSError as error:
        raise MaskError(f"{path}: the mask cannot be read ({error.strerror}); check the path") from error


def _from_geojson(content: bytes, name: str, info: SlideInfo, glass: RGB) -> TissueMask:
    areas = parse_areas(content, name)
    grid = mask_grid(info)
    bounds = info.bounds
    origin = (grid.level0_origin[0] - bounds.x, grid.level0_origin[1] - bounds.y)
    pixels = draw_areas(areas, origin, grid.downsample, (grid.size.height, grid.size.width))
    if not pixels.any():
        raise MaskError(
            f"{name}: no polygon lies on {info.name}; coordinates are level-0 pixels, 0 to {bounds.width} and 0 to "
            f"{bounds.height} from the corner of the scanned area"
        )
    annotations = _annotations(areas)
    return TissueMask(
        pixels, grid.level0_origin, grid.downsample, glass, _left_out(annotations), (bounds.x, bounds.y), annotations
    )


def _annotations(areas: list[Area]) -> tuple[Annotation, ...]:
    """What the areas are called, in the order of their first appearance; the first `MOST_ANNOTATIONS`."""
    counts = Counter((area.classification, area.name, area.is_ignored) for area in areas)
    named = [Annotation(kind, name, count, ignored) for (kind, name, ignored), count in counts.items()]
    return tuple(named[:MOST_ANNOTATIONS])


def _left_out(annotations: tuple[Annotation, ...]) -> tuple[str, ...]:
    ignored = Counter[str]()
    for one in annotations:
        if one.is_ignored:
            ignored[one.classification] += one.areas
    return tuple(
        f"{count} area{' was' if count == 1 else 's were'} left out of the mask (class {kind})"
        for kind, count in ignored.items()
    )


def _to_geojson(mask: TissueMask) -> str:
    corner = np.array(mask.origin) - mask.bounds_origin
    polygons = [[ring * mask.pixel_size + corner for ring in polygon] for polygon in outlines(mask.pixels)]
    return to_geojson(polygons)


def _from_png(content: bytes, name: str, info: SlideInfo, glass: RGB) -> TissueMask:
    pixels = _non_black(content, name)
    rows, columns = pixels.shape
    bounds = info.bounds
    wanted = columns * bounds.height / bounds.width
    # Masks of few px are off by rounding alone: up to a px each way.
    slack = max(SHAPE_TOLERANCE * wanted, 1 + bounds.height / bounds.width)
    if abs(rows - wanted) > slack:
        raise MaskError(
            f"{name}: {columns}×{rows} px does not have the shape of {info.name} ({bounds}); make the mask from the "
            "whole scanned area"
        )
    if not pixels.any():
        raise MaskError(f"{name}: the mask is black all over; paint the tissue white")
    step = math.ceil(math.sqrt(pixels.size / LARGEST_OVERVIEW_PX))
    pixel_size = (bounds.width * step / columns, bounds.height * step / rows)
    corner = (bounds.x, bounds.y)
    return TissueMask(_any_in_blocks(pixels, step), corner, pixel_size, glass, bounds_origin=corner)


def _non_black(content: bytes, name: str) -> BoolImage:
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise MaskError(f"{name}: not a PNG file; save the mask as PNG")
    # Checked before the decoder sees it: a few kB can unpack to a terabyte.
    width, height = struct.unpack(">II", content[16:24])
    if not 0 < width * height <= LARGEST_PNG_PX:
        raise MaskError(f"{name}: {width}×{height} px is no usable mask; {LARGEST_PNG_PX:,} px is the most")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            pixels, mode = np.asarray(image), image.mode
    # What Pillow raises on damaged chunks, data and text.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise MaskError(f"{name}: the PNG is damaged ({str(error)[:80]}); save the mask again") from error
    if pixels.ndim == 2:  # grey, bits, or indices into a palette, of which 0 is the background
        return np.asarray(pixels != 0, np.bool_)
    colours, visible = pixels, np.ones(pixels.shape[:2], np.bool_)
    if mode in ("LA", "RGBA"):
        colours, visible = pixels[..., :-1], pixels[..., -1] != 0
    if (colours[visible] != colours[visible][:, :1]).any():
        raise MaskError(f"{name}: a colour picture, not a mask; save tissue as white and the rest as black")
    return np.asarray(visible & (colours[..., 0] != 0), np.bool_)


def _any_in_blocks(pixels: BoolImage, step: int) -> BoolImage:
    """The mask reduced ``step`` times each way, so that no tissue is lost."""
    rows, columns = pixels.shape
    padded = np.pad(pixels, ((0, -rows % step), (0, -columns % step)))
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    return np.asarray(blocks.any(axis=(1, 3)), np.bool_)


def _to_png(mask: TissueMask) -> bytes:
    text = PngInfo()
    text.add_text("wsi2ihc", json.dumps({"origin_px": mask.origin, "pixel_size_px": mask.pixel_size}))
    buffer = io.BytesIO()
    Image.fromarray(mask.pixels.astype(np.uint8) * 255).save(buffer, "PNG", pnginfo=text, optimize=True)
    return buffer.getvalue()
