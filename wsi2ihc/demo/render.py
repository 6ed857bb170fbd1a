"""Render stain amounts as RGB."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import RGB, Region, RGBImage, Size, ceil_to, floor_to
from .histology import Structures, populate
from .layout import STEP_PX, SURFACE_EPITHELIUM_PX, enlarged, slide_layout, tissue_layout
from .textures import FloatImage, Layer, Shapes, at_points, at_region, filled, stroked, texture


@dataclass(slots=True)
class Stains:
    """Optical densities along the stains' vectors: (height, width) float32 each."""

    hematoxylin: FloatImage
    eosin: FloatImage
    erythrocyte: FloatImage

    def cover(self, layer: FloatImage, hematoxylin: FloatImage | float, eosin: FloatImage | float) -> None:
        """Replace the stains under ``layer``, an opacity from 0 to 1."""
        self.hematoxylin += (hematoxylin - self.hematoxylin) * layer
        self.eosin += (eosin - self.eosin) * layer


@dataclass(frozen=True, slots=True)
class _Grain:
    """Noise of unit variance over one region: of 3.5 µm (cytoplasm), and of 22 µm."""

    fine: FloatImage
    cloud: FloatImage


def paint_tissue(structures: Structures, region: Region) -> Stains:
    """Compute the amounts of stain over ``region``, as if all of it were tissue."""
    grain = _Grain(at_region(texture(7, 7, 1), region), at_region(texture(44, 44, 2), region))
    stains = _stroma(structures, region, grain)
    fat, walls = filled(structures.fat, region), filled(structures.walls, region)
    if fat.any():
        stains.cover(_share(fat), 0.004, 0.012)
    if walls.any():
        stains.cover(_share(walls), 0.06 + 0.02 * grain.fine, 0.40 + 0.05 * grain.fine + 0.05 * grain.cloud)
    lumens = _share(filled(structures.lumens, region))
    _epithelium(stains, structures, region, lumens, grain)
    # basement membranes, brush borders, and the membranes of fat cells
    rims = _lines(structures.rims, region, 2, 0.9)
    stains.eosin += 0.15 * rims
    stains.hematoxylin += 0.03 * rims
    stains.cover(lumens * 0.97, 0.014 + 0.012 * grain.cloud, 0.012 + 0.008 * grain.cloud)
    red_cells = filled(structures.red_cells, region)
    if red_cells.any():
        stains.erythrocyte += red_cells * np.float32(0.62 / 255)
    _nuclei(stains, structures, region)
    np.maximum(stains.hematoxylin, 0, out=stains.hematoxylin)
    np.maximum(stains.eosin, 0, out=stains.eosin)
    return stains


def _share(layer: Layer) -> FloatImage:
    return layer * np.float32(1 / 255)


def _soft(layer: FloatImage, sigma_px: float) -> FloatImage:
    return np.asarray(cv2.GaussianBlur(layer, (0, 0), sigma_px), np.float32)


def _lines(shapes: Shapes, region: Region, thickness_px: int, sigma_px: float, *, closed: bool = True) -> FloatImage:
    """Draw softened outlines (or open lines) of shapes: 0 to 1."""
    return _soft(_share(stroked(shapes, region, thickness_px, closed=closed)), sigma_px)


def _ramp(values: FloatImage, start: float | FloatImage, width: float) -> FloatImage:
    """Map values linearly from ``start`` to ``start + width`` onto 0 to 1, clipped."""
    return np.asarray(np.clip((values - start) / np.float32(width), 0, 1), np.float32)


def _stroma(structures: Structures, region: Region, grain: _Grain) -> Stains:
    """Paint the fibers of each layer of the wall, with empty clefts between them."""
    fabric = {name: enlarged(coarse, region) for name, coarse in structures.fabric.items()}
    # level lines of the flow, crimped as collagen is
    across = enlarged(structures.flow_px, region) + 3.2 * at_region(texture(38, 38, 14), region)
    x = np.arange(region.x, region.right, dtype=np.float32)[None, :]
    y = np.arange(region.y, region.bottom, dtype=np.float32)[:, None]
    along = np.ascontiguousarray(np.broadcast_to(x * 0.985 + y * 0.17, across.shape), np.float32)
    hair = at_points(texture(34, 3.2, 13), along, across)
    thin = at_points(texture(90, 7, 11), along, across)
    thick = at_points(texture(260, 22, 12), along, across)
    eosin = (
        fabric["eosin"]
        + fabric["fine"] * (thin + 0.7 * hair)
        + fabric["broad"] * thick
        + 0.03 * grain.cloud
        + 0.025 * grain.fine
    )
    empty = 0.9 * _ramp(0.15 * hair + 0.55 * thin + 0.7 * thick + 0.45 * grain.cloud, fabric["cleft"], 0.4)
    hematoxylin = fabric["hematoxylin"] * (1 + 0.4 * grain.cloud + 0.3 * grain.fine)
    return Stains(hematoxylin * (1 - empty), np.maximum(eosin, 0.02) * (1 - empty), np.zeros_like(eosin))


def _epithelium(stains: Stains, structures: Structures, region: Region, lumens: FloatImage, grain: _Grain) -> None:
    """Paint cytoplasm of the crypts and of the free surface, goblets, and the lines between cells."""
    depth = enlarged(structures.layout.depth_px, region)
    surface = 1 - _ramp(depth + 2.5 * grain.cloud, SURFACE_EPITHELIUM_PX, 3)
    cells = np.maximum(_share(filled(structures.glands, region)), surface)
    if not cells.any():
        return
    # the tops of the cells, beside the lumen, stain less
    apical = cv2.blur(lumens, (41, 41))
    stains.cover(
        cells,
        0.19 + 0.03 * grain.fine + 0.03 * grain.cloud - 0.10 * apical,
        0.31 + 0.03 * grain.fine + 0.03 * grain.cloud,
    )
    stains.eosin += 0.16 * _lines(structures.borders, region, 1, 0.8, closed=False)
    mucin = _soft(_share(filled(structures.goblets, region)), 1.2)
    stains.cover(mucin, 0.075 + 0.02 * grain.fine, 0.035 + 0.012 * grain.fine)
    rims = _lines(structures.goblets, region, 1, 0.9)
    stains.eosin += 0.14 * rims
    stains.hematoxylin += 0.06 * rims


def _nuclei(stains: Stains, structures: Structures, region: Region) -> None:
    """Paint nuclei: coarse chromatin, and a darker membrane."""
    density = _soft(_share(filled(structures.nuclei, region)), 0.6)
    membrane = _lines(structures.nuclei, region, 1, 0.8) * density
    chromatin = at_region(texture(4.0, 4.0, 21), region) + 0.6 * at_region(texture(8.0, 8.0, 22), region)
    # pale nuclei show their chromatin, dense ones are uniform
    openness = np.clip(1.35 - density, 0.25, 1)
    stains.hematoxylin += density * (0.74 + 0.17 * chromatin * openness) + 0.26 * membrane
    stains.eosin += density * (0.16 - 0.35 * stains.eosin)
    # a little cytoplasm around each nucleus
    around = _soft(density, 4.5) * (1 - density)
    stains.hematoxylin += 0.13 * around
    stains.eosin += 0.10 * around


BACKGROUND: RGB = (243, 241, 240)  # color of the background, slightly warm


def _unit(red: float, green: float, blue: float) -> npt.NDArray[np.float32]:
    vector = np.array([red, green, blue], np.float32)
    return vector / np.linalg.norm(vector)


# Directions in optical-density space. Hematoxylin and eosin lie between the values of Ruifrok and Johnston (2001)
# and those that Macenko et al. (2009) give for slides from a scanner.
HEMATOXYLIN = _unit(0.61, 0.71, 0.35)
EOSIN = _unit(0.17, 0.86, 0.48)
ERYTHROCYTE = _unit(0.10, 0.78, 0.62)
GREEN_PEN = _unit(0.83, 0.26, 0.49)


def transmitted(
    hematoxylin: FloatImage, eosin: FloatImage, erythrocyte: FloatImage, ink: FloatImage
) -> npt.NDArray[np.float32]:
    """Compute the light transmitted by four stains, (height, width, 3) float32, 1 for background.

    Beer–Lambert: the optical densities (each (height, width), along the stain's unit vector) add up, and the
    transmitted share is ``10 ** -density``.
    """
    amounts = np.stack([hematoxylin, eosin, erythrocyte, ink], axis=-1)
    vectors = np.stack([HEMATOXYLIN, EOSIN, ERYTHROCYTE, GREEN_PEN])
    exponent = cv2.transform(amounts, np.ascontiguousarray(vectors.T * np.float32(-np.log(10.0))))
    return np.asarray(cv2.exp(exponent), np.float32)


_MARGIN_PX = 4 * STEP_PX  # more than the radius of any blur (the widest is a box of 41 px)

_BAND_PX = 512  # painting takes about 150 bytes per px, so a large field is painted in bands


def synthetic_tissue(width: int, height: int, seed: int) -> RGBImage:
    """Paint H&E-stained mucosa from edge to edge, at 0.5 µm/px: (height, width, 3) uint8 RGB.

    Crypts and stroma without background. The same arguments give the same pixels.
    """
    rng = np.random.default_rng(seed)
    structures = populate(tissue_layout(Size(width, height), rng), rng)
    bands = [Region(0, y, width, min(_BAND_PX, height - y)) for y in range(0, height, _BAND_PX)]
    return np.concatenate([paint(structures, band) for band in bands])


def synthetic_structures(size: Size, seed: int) -> Structures:
    """Make the structures of a demo slide: a colon wall, a biopsy and a pen stroke."""
    rng = np.random.default_rng(seed)
    return populate(slide_layout(size, rng), rng)


def paint(structures: Structures, region: Region) -> RGBImage:
    """Paint a region of the slide: (height, width, 3) uint8 RGB."""
    left, top = floor_to(region.x, STEP_PX) - _MARGIN_PX, floor_to(region.y, STEP_PX) - _MARGIN_PX
    right, bottom = ceil_to(region.right, STEP_PX) + _MARGIN_PX, ceil_to(region.bottom, STEP_PX) + _MARGIN_PX
    around = Region(left, top, right - left, bottom - top)
    layout = structures.layout
    edge = enlarged(layout.tissue_px, around) + 4 * at_region(texture(36, 36, 3), around)
    coverage = np.asarray(np.clip(edge / 3 + 0.5, 0, 1), np.float32)
    ink = enlarged(layout.pen, around)
    if coverage.any():
        stains = paint_tissue(structures, around)
        strength = coverage * enlarged(layout.stain, around)
        light = transmitted(stains.hematoxylin * strength, stains.eosin * strength, stains.erythrocyte * strength, ink)
        light = _focused(light, enlarged(layout.focus, around))
    else:
        nothing = np.zeros_like(ink)
        light = transmitted(nothing, nothing, nothing, ink)
    # brightness of the lamp
    shading = 1 + 0.004 * at_region(texture(700, 700, 5), around)
    image = light * (shading[..., None] * np.array(BACKGROUND, np.float32))
    # noise of one gray level, less where it is dark
    image += (at_region(texture(1.5, 1.5, 6), around) * np.float32(1.1))[..., None] * (0.4 + 0.6 * light)
    rows, columns = region.slices_in(around)
    return np.ascontiguousarray(np.clip(np.rint(image[rows, columns]), 0, 255).astype(np.uint8))


def _focused(light: FloatImage, focus: FloatImage) -> FloatImage:
    """Blur everywhere, and more where the tissue is out of focus."""
    sharp = cv2.GaussianBlur(light, (5, 5), 0.65)
    if not focus.any():
        return np.asarray(sharp, np.float32)
    soft = cv2.GaussianBlur(light, (0, 0), 1.9)
    return np.asarray(sharp + (soft - sharp) * focus[..., None], np.float32)
