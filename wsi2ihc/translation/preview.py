"""One picture of the whole: the slide and its virtual stain side by side."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..arrays import RGBImage
from ..files import read_regular
from ..pyramid import published
from ..pyramid import read_overview as read_result
from ..slide import overview_grid, read_overview
from .job import Job
from .provenance import caption

PREVIEW_PX = 1600
"""Longest side of each half."""

GAP_PX = 8

ORIGIN = "wsi2ihc"
"""The text of a preview that says of which output and slide it is."""

LARGEST_PREVIEW_BYTES = 64 << 20


def write_preview(preview: Path, result: Path, job: Job, *, of: str) -> None:
    """Write ``preview`` (PNG): the source on the left, the finished ``result`` on the right, at one scale.

    Its text (PNG's Description) says what it shows. ``of`` is the name that the result has or will have.

    Raises
    ------
    OutputError
        If the picture cannot be written.
    """
    virtual = read_result(result, PREVIEW_PX)
    height, width = virtual.shape[:2]
    both = np.full((height, 2 * width + GAP_PX, 3), 255, dtype=np.uint8)
    both[:, :width] = _source(job, width, height)
    both[:, -width:] = virtual
    text = PngInfo()
    text.add_itxt("Description", caption(job))
    text.add_itxt(ORIGIN, _origin(of, job.slide.info.quickhash))
    with published(preview, overwrite=True) as partial:
        Image.fromarray(both).save(partial, format="PNG", pnginfo=text)


def is_preview_of(preview: Path, name: str, quickhash: str) -> bool:
    """Whether a file is the preview of an output of this name, made from this slide."""
    try:
        with Image.open(io.BytesIO(read_regular(preview, LARGEST_PREVIEW_BYTES)), formats=["PNG"]) as image:
            return image.info.get(ORIGIN) == _origin(name, quickhash)
    # what Pillow raises on damaged chunks and text
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error):
        return False


def _origin(name: str, quickhash: str) -> str:
    return json.dumps([name, quickhash])


def _source(job: Job, width: int, height: int) -> RGBImage:
    """The extent of the slide, (height, width, 3), from a level not much larger."""
    grid, extent, info = job.scene.grid, job.plan.extent, job.slide.info
    shrink = extent.width * grid.downsample[0] / width
    overview = overview_grid(info, max(1.0, shrink))
    reader = job.scene.reader
    pixels = read_overview(reader.slide, overview, reader.glass)
    if reader.colour is not None:
        pixels = reader.colour(pixels)
    left, top, right, bottom = (
        edge * grid.downsample[axis] / overview.downsample[axis]
        for edge, axis in ((extent.x, 0), (extent.y, 1), (extent.right, 0), (extent.bottom, 1))
    )
    part = pixels[int(top) : max(int(top) + 1, round(bottom)), int(left) : max(int(left) + 1, round(right))]
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
