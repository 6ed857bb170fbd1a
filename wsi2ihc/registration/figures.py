"""Figures of a registration: checkerboards, deformation, captions and scale bars."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..geometry import RGB, WHITE, RGBImage
from ..slide import Slide
from .transform import FloatArray, SlideFrame, Transform, frame_of, identity, moving_grid
from .warped_region import read_warped

INK: RGB = (40, 40, 40)
TEXT_PX = 16

_MARGIN_PX, _LINE_PX = 10, 24

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


def swatch(color: RGB) -> RGBImage:
    """Color swatch of a caption."""
    return np.full((TEXT_PX, TEXT_PX, 3), color, np.uint8)


def add_caption(image: RGBImage, entries: Sequence[tuple[str, RGBImage | None]], mpp: float) -> RGBImage:
    """Add lines of text and a scale bar below an image of ``mpp`` µm per px.

    ``entries`` are texts and optionally samples that are `TEXT_PX` high, such as color swatches.
    """
    font = ImageFont.load_default(TEXT_PX)
    bar_um = _round_length(image.shape[1] * mpp / 5)
    bar_px = max(1, round(bar_um / mpp))
    bar_text = f"{bar_um / 1000:g} mm" if bar_um >= 1000 else f"{bar_um:g} µm"
    room_px = image.shape[1] - 3 * _MARGIN_PX - bar_px
    places, lines = _flowed([_entry_width(text, sample, font) for text, sample in entries], room_px)
    height = image.shape[0] + 2 * _MARGIN_PX + max(lines, 2) * _LINE_PX
    canvas = Image.new("RGB", (image.shape[1], height), WHITE)
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    top = image.shape[0] + _MARGIN_PX
    for (text, sample), (x, line) in zip(entries, places, strict=True):
        left = _MARGIN_PX + x
        if sample is not None:
            canvas.paste(Image.fromarray(sample), (left, top + line * _LINE_PX + (_LINE_PX - TEXT_PX) // 2))
            left += sample.shape[1] + 6
        shown = _shortened(text, max(room_px - (left - _MARGIN_PX), 1), font)
        _write(draw, left, top + line * _LINE_PX + _LINE_PX // 2, shown, font)
    right = image.shape[1] - _MARGIN_PX
    draw.rectangle((right - bar_px, top + 4, right, top + 9), fill=INK)
    _write(draw, right - math.ceil(_length(bar_text, font)), top + _LINE_PX + _LINE_PX // 2 - 4, bar_text, font)
    return np.array(canvas, dtype=np.uint8)


def _write(draw: ImageDraw.ImageDraw, left: int, middle: int, text: str, font: _Font) -> None:
    """Draw a line of text. The font of Pillow lacks µ, which is drawn as u with a longer stem."""
    plain = text.replace("µ", "u")
    draw.text((left, middle), plain, fill=INK, font=font, anchor="lm")
    for at in (number for number, character in enumerate(text) if character == "µ"):
        x, _, _, baseline = draw.textbbox((left + font.getlength(plain[:at]), middle), "u", font=font, anchor="lm")
        stem = round(x)
        draw.rectangle((stem, round(baseline) - 2, stem + TEXT_PX // 16, round(baseline) + TEXT_PX // 4), fill=INK)


def _length(text: str, font: _Font) -> float:
    return float(font.getlength(text.replace("µ", "u")))


def _entry_width(text: str, sample: RGBImage | None, font: _Font) -> int:
    return math.ceil(_length(text, font)) + (0 if sample is None else sample.shape[1] + 6)


def _flowed(widths_px: Sequence[int], room_px: int) -> tuple[list[tuple[int, int]], int]:
    """Arrange entries in lines; return (x, line) of each and the number of lines."""
    places: list[tuple[int, int]] = []
    x, line = 0, 0
    for width in widths_px:
        if x and x + width > room_px:
            x, line = 0, line + 1
        places.append((x, line))
        x += width + 24
    return places, line + 1


def _round_length(um: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, … µm that is not longer."""
    power = 10.0 ** math.floor(math.log10(um))
    return max(step * power for step in (1, 2, 5) if step * power <= um * (1 + 1e-9))


def _shortened(text: str, room_px: int, font: _Font) -> str:
    """Shorten a text in the middle until it fits."""
    shorter = text
    for kept in range(len(text) - 1, 0, -1):
        if _length(shorter, font) <= room_px:
            break
        shorter = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
    return shorter


LONGEST_PX = 1200
COARSEST_MPP = 50.0
"""Coarsest resolution at which a slide is read; 75 mm are then 1500 px."""

CELLS = 12
"""Number of fields along the longer side of a checkerboard."""

GRID_LINES = 24
"""Number of grid lines along the longer side of a deformation figure."""

KEPT: RGB = (0, 140, 50)
REASONS: dict[str, RGB] = {
    "tissue": (170, 170, 170),
    "outside": (20, 20, 20),
    "residual": (255, 215, 0),
    "correlation": (240, 110, 0),
    "blur": (0, 70, 255),
    "fold": (120, 60, 0),
    "pen": (0, 210, 225),
}
"""Colors that differ from the reds and purples of tissue."""

OTHER_REASON: RGB = (150, 230, 0)
TINT = 0.3
"""Opacity of the color of a patch."""


@dataclass(frozen=True, slots=True)
class PatchMark:
    """One patch on the overview."""

    x_um: float  # its top left corner on the fixed slide
    y_um: float  # its top left corner on the fixed slide
    side_um: float  # width and height
    reason: str = ""  # why it was rejected; "" if it was kept


def figure_mpp(frames: Iterable[SlideFrame], longest_px: int = LONGEST_PX) -> float:
    """Return the resolution in µm/px at which the first slide is ``longest_px`` long and none is enlarged."""
    known = list(frames)
    longest_um = max(known[0].size.width * known[0].mpp[0], known[0].size.height * known[0].mpp[1])
    coarsest_own = max(max(frame.mpp) for frame in known)
    return max(min(longest_um / longest_px, COARSEST_MPP), coarsest_own)


def thumbnail(slide: Slide, mpp: float, fill: RGB = WHITE) -> RGBImage:
    """Read a slide from its top left corner at ``mpp`` µm/px: (rows, columns, 3)."""
    x_um, y_um = _grid(frame_of(slide.info), mpp)
    return read_warped(slide, identity(), mpp, x_um, y_um, fill).pixels


def checkerboard(
    fixed: Slide, moving: Slide, transform: Transform | None, fill: RGB = WHITE, *, longest_px: int = LONGEST_PX
) -> RGBImage:
    """Draw both slides on alternating fields of a checkerboard; registered outlines continue across fields.

    The figure shows the entire fixed slide, which has the top left field, and is about ``longest_px`` long; smaller if
    a slide has fewer px. Without a transform, the slides lie corner upon corner, in µm. ``fill`` is the color outside
    the moving slide.
    """
    here = frame_of(fixed.info)
    mpp = figure_mpp((here, frame_of(moving.info)), longest_px)
    x_um, y_um = _grid(here, mpp)
    board = read_warped(fixed, identity(), mpp, x_um, y_um, fill).pixels.copy()
    other = read_warped(moving, transform or identity(), mpp, x_um, y_um, fill).pixels
    side_px = math.ceil(max(board.shape[:2]) / CELLS)
    row, column = np.ogrid[: board.shape[0], : board.shape[1]]
    odd = (row // side_px + column // side_px) % 2 == 1
    board[odd] = other[odd]
    what = "as the slides lie" if transform is None else "after registration"
    return add_caption(board, [(f"{fixed.info.name} and {moving.info.name} in turn, {what}", None)], mpp)


def deformation_figure(transform: Transform, overview: RGBImage, mpp: float) -> RGBImage:
    """Draw the local displacement on an overview of the fixed slide: its length as color, and a deformed grid.

    The affine part is left out. The displacement of the grid is exaggerated, by a factor that is written below. The
    overview is that of `thumbnail`, at ``mpp``.
    """
    rows, columns = overview.shape[:2]
    gray = cv2.cvtColor(cv2.cvtColor(overview, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if transform.field is None:
        return add_caption(np.asarray(gray, np.uint8), [("no local displacement: the transform is affine", None)], mpp)
    displaced_um = _displacement(transform, rows, columns, mpp)
    length_um = np.linalg.norm(displaced_um, axis=-1)
    top_um = max(float(length_um.max()), 1e-3)
    colors = _colored(length_um / top_um)
    image = np.asarray(np.rint(0.5 * gray + 0.5 * colors), np.uint8)
    spacing_px = max(8, round(max(rows, columns) / GRID_LINES))
    factor = max(1, int(0.75 * spacing_px * mpp / top_um))
    _draw_grid(image, displaced_um * (factor / mpp), spacing_px)
    bar = _colored(np.linspace(0, 1, 160)[None].repeat(TEXT_PX, axis=0))
    scale = "at true scale" if factor == 1 else f"enlarged {factor} times"
    text = f"local displacement: 0 to {top_um:.3g} µm; grid {scale}"
    return add_caption(image, [(text, bar)], mpp)


def kept_and_rejected(overview: RGBImage, mpp: float, patches: Sequence[PatchMark]) -> RGBImage:
    """Draw the patches on an overview (`thumbnail` at ``mpp``) of the fixed slide: kept ones in green, others by
    reason.
    """
    image = overview.copy()
    tinted = overview.copy()
    marks = [(_corners(patch, mpp), _color_of(patch.reason)) for patch in sorted(patches, key=lambda p: not p.reason)]
    for (left, top, right, bottom), color in marks:
        cv2.rectangle(tinted, (left, top), (right, bottom), color, cv2.FILLED)
    image = np.asarray(cv2.addWeighted(image, 1 - TINT, tinted, TINT, 0), np.uint8)
    for (left, top, right, bottom), color in marks:
        width = 2 if right - left >= 16 else 1
        if right - left >= 5:
            # inside of the patch, so that neighbors do not draw over each other
            cv2.rectangle(image, (left + width // 2, top + width // 2), (right - 1, bottom - 1), color, width)
    counts = Counter(patch.reason for patch in patches)
    order = ["", *REASONS, *sorted(set(counts) - {"", *REASONS})]
    legend = [
        (f"{counts[reason]:,} {f'rejected: {reason}' if reason else 'kept'}", swatch(_color_of(reason)))
        for reason in order
        if counts[reason] or not reason
    ]
    return add_caption(image, legend, mpp)


def _grid(frame: SlideFrame, mpp: float) -> tuple[FloatArray, FloatArray]:
    """Return the px centers of an overview in µm, along x and along y."""
    columns = max(1, math.ceil(frame.size.width * frame.mpp[0] / mpp - 1e-6))
    rows = max(1, math.ceil(frame.size.height * frame.mpp[1] / mpp - 1e-6))
    return _centers(columns, mpp), _centers(rows, mpp)


def _centers(count: int, mpp: float) -> FloatArray:
    return np.asarray((np.arange(count) + 0.5) * mpp, np.float64)


def _displacement(transform: Transform, rows: int, columns: int, mpp: float) -> FloatArray:
    """Return the displacement beyond the affine map in the fixed frame, (rows, columns, 2) µm."""
    x, y = _centers(columns, mpp), _centers(rows, mpp)
    added = moving_grid(transform, x, y) - moving_grid(Transform(transform.matrix), x, y)
    return np.asarray(added @ np.linalg.inv(transform.matrix[:, :2]).T)


def _colored(share: FloatArray) -> RGBImage:
    """Map values from 0 to 1 to colors (rows, columns, 3), dark blue to yellow."""
    levels = np.asarray(np.clip(np.rint(share * 255), 0, 255), np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1], np.uint8)


def _draw_grid(image: RGBImage, moved_px: FloatArray, spacing_px: int) -> None:
    """Draw lines ``spacing_px`` apart, displaced by ``moved_px`` (rows, columns, 2)."""
    rows, columns = image.shape[:2]
    lines = [(np.arange(columns), np.full(columns, row)) for row in range(spacing_px // 2, rows, spacing_px)]
    lines += [(np.full(rows, column), np.arange(rows)) for column in range(spacing_px // 2, columns, spacing_px)]
    for x, y in lines:
        points = np.stack([x, y], axis=1) + moved_px[y, x]
        # in sixteenths of a px, as OpenCV takes them
        cv2.polylines(image, [np.rint(points * 16).astype(np.int32)], False, WHITE, 1, cv2.LINE_AA, 4)


def _corners(patch: PatchMark, mpp: float) -> tuple[int, int, int, int]:
    left, top = round(patch.x_um / mpp), round(patch.y_um / mpp)
    right, bottom = round((patch.x_um + patch.side_um) / mpp), round((patch.y_um + patch.side_um) / mpp)
    return left, top, max(right - 1, left), max(bottom - 1, top)


def _color_of(reason: str) -> RGB:
    return REASONS.get(reason, OTHER_REASON) if reason else KEPT
