"""Image grids: H&E, reference and virtual stain."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsi2ihc.atomic_files import write_atomically
from wsi2ihc.geometry import WHITE, RGBImage

LABELS = ("H&E", "reference", "virtual")

SHOWN_PX = 512
"""Maximum width and height of patches in the image; larger ones are reduced."""

MIN_PX = 128
"""Smaller patches are enlarged by an integer factor until they have this width, so that their labels fit."""

GUTTER_PX = 8
LABEL_PX = 18
CAPTION_PX = 13
TEXT_COLOR = (40, 40, 40)


def image_grid_figure(
    rows: Sequence[tuple[RGBImage, ...]],
    labels: Sequence[str] = LABELS,
    captions: Sequence[str] | None = None,
) -> RGBImage:
    """Combine several patches into one image: a row per patch, a column per kind of image, labels above, captions
    below.

    Parameters
    ----------
    rows
        One image (rows, columns, 3) per label for each patch; images may differ in size.
    labels
        Column headers.
    captions
        One line per row, such as the patch's name; shortened in the middle if it is too long.

    Returns
    -------
    RGBImage
        On white. Patches over 512 px are reduced by area averaging, small ones are enlarged by an integer factor.

    Raises
    ------
    ValueError
        If there are no rows, or the numbers of images, labels and captions do not match.
    """
    if not rows or any(len(row) != len(labels) for row in rows) or len(captions or rows) != len(rows):
        raise ValueError("an image grid needs one image per label in every row, and one caption per row or none")
    shown = [[_at_shown_size(image) for image in row] for row in rows]
    cell_px = max(image.shape[1] for row in shown for image in row)
    width = len(labels) * (cell_px + GUTTER_PX) + GUTTER_PX
    heights = [max(image.shape[0] for image in row) for row in shown]
    head_px, foot_px = LABEL_PX + GUTTER_PX, CAPTION_PX + GUTTER_PX if captions else 0
    height = GUTTER_PX + head_px + sum(heights) + len(rows) * (foot_px + GUTTER_PX)
    canvas = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(canvas)
    lefts = [GUTTER_PX + column * (cell_px + GUTTER_PX) for column in range(len(labels))]
    for left, label in zip(lefts, labels, strict=True):
        _write(draw, label, (left + cell_px // 2, GUTTER_PX // 2 + LABEL_PX), cell_px, LABEL_PX, "ms")
    top = GUTTER_PX + head_px
    for number, (row, row_px) in enumerate(zip(shown, heights, strict=True)):
        for left, image in zip(lefts, row, strict=True):
            canvas.paste(Image.fromarray(image), (left + (cell_px - image.shape[1]) // 2, top))
        if captions:
            baseline = (GUTTER_PX, top + row_px + CAPTION_PX + 2)
            _write(draw, captions[number], baseline, width - 2 * GUTTER_PX, CAPTION_PX, "ls")
        top += row_px + foot_px + GUTTER_PX
    return np.array(canvas, dtype=np.uint8)


def save_png(path: Path, image: RGBImage) -> None:
    """Write an image (rows, columns, 3) as PNG atomically, replacing an existing file.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def _at_shown_size(image: RGBImage) -> RGBImage:
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest > SHOWN_PX:
        size = (max(1, round(width * SHOWN_PX / longest)), max(1, round(height * SHOWN_PX / longest)))
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    factor = min(-(-MIN_PX // width), SHOWN_PX // longest)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _write(
    draw: ImageDraw.ImageDraw, text: str, position: tuple[int, int], width_px: int, size_px: int, anchor: str
) -> None:
    font = ImageFont.load_default(size_px)
    draw.text(position, _shortened(text, width_px, font), fill=TEXT_COLOR, font=font, anchor=anchor)


def _shortened(text: str, width_px: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the text, or as much of its two ends as fits."""
    shorter = text
    for length in range(len(text) - 1, 0, -1):
        if font.getlength(shorter) <= width_px:
            break
        shorter = f"{text[: (length + 1) // 2]}...{text[len(text) - length // 2 :]}"
    return shorter
