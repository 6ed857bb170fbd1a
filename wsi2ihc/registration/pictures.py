"""Pictures by which a person judges a registration: before, after, the deformation, and the patches cut from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ..arrays import RGB, WHITE, RGBImage
from ..slide import Slide
from .captions import TEXT_PX, swatch, with_foot
from .transform import FloatArray, SlideFrame, Transform, frame_of, identity, moving_grid
from .warping import read_warped

LONGEST_PX = 1200
COARSEST_MPP = 50.0
"""A slide is read at this resolution at the coarsest; one of 75 mm is then 1500 px wide."""

CELLS = 12
"""Along the longer side of a checkerboard."""

GRID_LINES = 24
"""Along the longer side of a picture of the deformation."""

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
"""None of them is a red or a purple: the tissue is."""

OTHER_REASON: RGB = (150, 230, 0)
TINT = 0.3
"""How much of its colour a patch gets."""


@dataclass(frozen=True, slots=True)
class PatchMark:
    """One patch on the overview.

    x_um, y_um:  its top left corner on the fixed slide
    side_um:     width and height
    reason:      why it was rejected; "" if it was kept
    """

    x_um: float
    y_um: float
    side_um: float
    reason: str = ""


def picture_mpp(frames: Iterable[SlideFrame], longest_px: int = LONGEST_PX) -> float:
    """The resolution, µm/px, at which the first of these slides is ``longest_px`` long, and none is enlarged."""
    known = list(frames)
    longest_um = max(known[0].size.width * known[0].mpp[0], known[0].size.height * known[0].mpp[1])
    coarsest_own = max(max(frame.mpp) for frame in known)
    return max(min(longest_um / longest_px, COARSEST_MPP), coarsest_own)


def thumbnail(slide: Slide, mpp: float, fill: RGB = WHITE) -> RGBImage:
    """A whole slide from its top left corner at ``mpp`` µm/px: (rows, columns, 3)."""
    x_um, y_um = _grid(frame_of(slide.info), mpp)
    return read_warped(slide, identity(), mpp, x_um, y_um, fill).pixels


def checkerboard(
    fixed: Slide, moving: Slide, transform: Transform | None, fill: RGB = WHITE, *, longest_px: int = LONGEST_PX
) -> RGBImage:
    """Both slides in turn, on the fields of a checkerboard; where they are registered, outlines go on across fields.

    Parameters
    ----------
    fixed, moving
        Open slides of known resolution. The picture shows all of the fixed one, whose field is the one at the top left.
    transform
        From fixed to moving; None for both as they are, corner upon corner, in µm.
    fill
        Colour of what lies outside the moving slide.
    longest_px
        About how long the picture is; less where a slide has not so many px.
    """
    here = frame_of(fixed.info)
    mpp = picture_mpp((here, frame_of(moving.info)), longest_px)
    x_um, y_um = _grid(here, mpp)
    board = read_warped(fixed, identity(), mpp, x_um, y_um, fill).pixels.copy()
    other = read_warped(moving, transform or identity(), mpp, x_um, y_um, fill).pixels
    side_px = math.ceil(max(board.shape[:2]) / CELLS)
    row, column = np.ogrid[: board.shape[0], : board.shape[1]]
    odd = (row // side_px + column // side_px) % 2 == 1
    board[odd] = other[odd]
    what = "as the slides lie" if transform is None else "after registration"
    return with_foot(board, [(f"{fixed.info.name} and {moving.info.name} in turn, {what}", None)], mpp)


def deformation_picture(transform: Transform, overview: RGBImage, mpp: float) -> RGBImage:
    """The local displacement on an overview of the fixed slide: its length in colour, and a grid that it bends.

    The affine part is left out. The grid's displacement is exaggerated, by a whole factor that is written below.

    Parameters
    ----------
    transform
        From fixed to moving.
    overview
        The fixed slide from its top left corner, (rows, columns, 3), as `thumbnail` gives it.
    mpp
        Its resolution, µm/px.
    """
    rows, columns = overview.shape[:2]
    grey = cv2.cvtColor(cv2.cvtColor(overview, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if transform.field is None:
        return with_foot(np.asarray(grey, np.uint8), [("no local displacement: the transform is affine", None)], mpp)
    displaced_um = _displacement(transform, rows, columns, mpp)
    length_um = np.linalg.norm(displaced_um, axis=-1)
    top_um = max(float(length_um.max()), 1e-3)
    colours = _coloured(length_um / top_um)
    image = np.asarray(np.rint(0.5 * grey + 0.5 * colours), np.uint8)
    spacing_px = max(8, round(max(rows, columns) / GRID_LINES))
    factor = max(1, int(0.75 * spacing_px * mpp / top_um))
    _draw_grid(image, displaced_um * (factor / mpp), spacing_px)
    bar = _coloured(np.linspace(0, 1, 160)[None].repeat(TEXT_PX, axis=0))
    enlarged = "as it is" if factor == 1 else f"{factor} times as large"
    text = f"0 to {top_um:.3g} µm of local displacement; the grid shows it {enlarged}"
    return with_foot(image, [(text, bar)], mpp)


def kept_and_rejected(overview: RGBImage, mpp: float, patches: Sequence[PatchMark]) -> RGBImage:
    """Where patches were cut, on an overview of the fixed slide: kept ones in green, others by the reason.

    Parameters
    ----------
    overview
        The fixed slide from its top left corner, (rows, columns, 3), as `thumbnail` gives it.
    mpp
        Its resolution, µm/px.
    patches
        In any order; kept ones are drawn last.
    """
    image = overview.copy()
    tinted = overview.copy()
    marks = [(_corners(patch, mpp), _colour_of(patch.reason)) for patch in sorted(patches, key=lambda p: not p.reason)]
    for (left, top, right, bottom), colour in marks:
        cv2.rectangle(tinted, (left, top), (right, bottom), colour, cv2.FILLED)
    image = np.asarray(cv2.addWeighted(image, 1 - TINT, tinted, TINT, 0), np.uint8)
    for (left, top, right, bottom), colour in marks:
        width = 2 if right - left >= 16 else 1
        if right - left >= 5:
            # inside of the patch, so that neighbours do not draw over each other
            cv2.rectangle(image, (left + width // 2, top + width // 2), (right - 1, bottom - 1), colour, width)
    counts = Counter(patch.reason for patch in patches)
    order = ["", *REASONS, *sorted(set(counts) - {"", *REASONS})]
    legend = [
        (f"{counts[reason]:,} {f'rejected: {reason}' if reason else 'kept'}", swatch(_colour_of(reason)))
        for reason in order
        if counts[reason] or not reason
    ]
    return with_foot(image, legend, mpp)


def _grid(frame: SlideFrame, mpp: float) -> tuple[FloatArray, FloatArray]:
    """Centres of the px of a picture of the whole slide, in µm: along x, and along y."""
    columns = max(1, math.ceil(frame.size.width * frame.mpp[0] / mpp - 1e-6))
    rows = max(1, math.ceil(frame.size.height * frame.mpp[1] / mpp - 1e-6))
    return _centres(columns, mpp), _centres(rows, mpp)


def _centres(count: int, mpp: float) -> FloatArray:
    return np.asarray((np.arange(count) + 0.5) * mpp, np.float64)


def _displacement(transform: Transform, rows: int, columns: int, mpp: float) -> FloatArray:
    """What the field adds to the affine part, turned back into the fixed frame: (rows, columns, 2) µm."""
    x, y = _centres(columns, mpp), _centres(rows, mpp)
    added = moving_grid(transform, x, y) - moving_grid(Transform(transform.matrix), x, y)
    return np.asarray(added @ np.linalg.inv(transform.matrix[:, :2]).T)


def _coloured(share: FloatArray) -> RGBImage:
    """Values from 0 to 1 as colours (rows, columns, 3), dark blue to yellow."""
    levels = np.asarray(np.clip(np.rint(share * 255), 0, 255), np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[..., ::-1], np.uint8)


def _draw_grid(image: RGBImage, moved_px: FloatArray, spacing_px: int) -> None:
    """Lines ``spacing_px`` apart, each point moved by ``moved_px`` (rows, columns, 2) at its place."""
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


def _colour_of(reason: str) -> RGB:
    return REASONS.get(reason, OTHER_REASON) if reason else KEPT
