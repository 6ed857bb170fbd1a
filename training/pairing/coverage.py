"""How much of a patch is tissue by its own pixels.

A slide's tissue mask is coarse: it closes inlets of glass up to 160 µm wide, which is more than a small patch. So the
patch is looked at as well, and the smaller share counts.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from wsi2ihc.arrays import RGB, BoolImage, RGBImage

from .optical import reduced

SEEN_AT_UM = 2.0
"""µm per px at which tissue is told from glass: the noise of JPEG is averaged away, nuclei and fibres are not."""

LEAST_DENSITY = 0.02
"""Optical density, of the channel that is darkest beside the slide's own glass, from which a px is tissue. The stroma
of an IHC without DAB has no more. Of px on glass 0.2 % have it, on one slide 1.5 %; of what the mask holds of a pale
IHC 84 %, where 0.08 would leave 40 %. Glass under a coverslip that has it is not told from tissue: the mask decides."""

MENDED_UM = 10.0
"""Gaps of up to twice this width are closed: between fibres, in capillaries, in membranes that the px are too coarse
for."""

GAP_UM2 = 20_000.0
"""A gap up to this area counts as tissue: a lumen, an alveolus, a fat cell, 160 µm wide at the most..."""

EDGE_SHARE = 1 / 8
"""...but one that reaches the edge of the patch, so that nobody sees how wide it is, only up to this share of the
patch: in a small one it may well be the glass beside the tissue."""


def tissue_share(image: RGBImage, mpp: float, glass: RGB) -> float:
    """Share of a patch that is tissue with its small gaps, 0 to 1.

    Parameters
    ----------
    image
        (rows, columns, 3) uint8 RGB.
    mpp
        µm per px.
    glass
        Colour of the slide's glass.
    """
    image, mpp = reduced(image, mpp, SEEN_AT_UM)
    bright = tuple(math.ceil(value * 10**-LEAST_DENSITY) for value in glass)
    clear = cv2.inRange(image, np.array(bright), np.array((255, 255, 255)))
    if not clear.any():
        return 1.0
    radius = max(1, round(MENDED_UM / mpp))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    # opening what is clear closes what is not; nothing beyond the patch takes part
    gaps = cv2.morphologyEx(clear, cv2.MORPH_OPEN, disc)
    count, labels, figures, _ = cv2.connectedComponentsWithStats(gaps, connectivity=4)
    areas_um2 = figures[:, cv2.CC_STAT_AREA] * mpp**2
    allowed_um2 = np.full(count, GAP_UM2)
    allowed_um2[_at_edge(labels, count)] = min(GAP_UM2, EDGE_SHARE * labels.size * mpp**2)
    is_open = areas_um2 > allowed_um2
    is_open[0] = False  # what is no gap
    return 1 - float(areas_um2[is_open].sum()) / (labels.size * mpp**2)


def _at_edge(labels: np.ndarray, count: int) -> BoolImage:
    """Which labels reach an edge."""
    found = np.zeros(count, np.bool_)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        found[line] = True
    return found
