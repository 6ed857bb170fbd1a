"""The scene's layers, painted one over the other as amounts of haematoxylin, eosin and haemoglobin."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..geometry import Region
from .layout import SURFACE_EPITHELIUM_PX, enlarged
from .noise import FloatImage, at_points, at_region, texture
from .scene import Scene
from .shapes import Layer, Shapes, filled, stroked


@dataclass(slots=True)
class Stains:
    """Optical densities along the stains' vectors: (height, width) float32 each."""

    haematoxylin: FloatImage
    eosin: FloatImage
    erythrocyte: FloatImage

    def cover(self, layer: FloatImage, haematoxylin: FloatImage | float, eosin: FloatImage | float) -> None:
        """Replace what lies under ``layer``, which is 1 where it hides everything and 0 where it is absent."""
        self.haematoxylin += (haematoxylin - self.haematoxylin) * layer
        self.eosin += (eosin - self.eosin) * layer


@dataclass(frozen=True, slots=True)
class _Grain:
    """Noise of unit variance over one region: of 3.5 µm (cytoplasm), and of 22 µm."""

    fine: FloatImage
    cloud: FloatImage


def paint_tissue(scene: Scene, region: Region) -> Stains:
    """Amounts of stain over ``region``, as if all of it were tissue."""
    grain = _Grain(at_region(texture(7, 7, 1), region), at_region(texture(44, 44, 2), region))
    stains = _stroma(scene, region, grain)
    fat, walls = filled(scene.fat, region), filled(scene.walls, region)
    if fat.any():
        stains.cover(_share(fat), 0.004, 0.012)
    if walls.any():
        stains.cover(_share(walls), 0.06 + 0.02 * grain.fine, 0.40 + 0.05 * grain.fine + 0.05 * grain.cloud)
    lumens = _share(filled(scene.lumens, region))
    _epithelium(stains, scene, region, lumens, grain)
    _outlines(stains, scene, region)
    stains.cover(lumens * 0.97, 0.014 + 0.012 * grain.cloud, 0.012 + 0.008 * grain.cloud)
    red_cells = filled(scene.red_cells, region)
    if red_cells.any():
        stains.erythrocyte += red_cells * np.float32(0.62 / 255)
    _nuclei(stains, scene, region)
    np.maximum(stains.haematoxylin, 0, out=stains.haematoxylin)
    np.maximum(stains.eosin, 0, out=stains.eosin)
    return stains


def _share(layer: Layer) -> FloatImage:
    """A painted layer as 0 to 1."""
    return layer * np.float32(1 / 255)


def _soft(layer: FloatImage, sigma_px: float) -> FloatImage:
    return np.asarray(cv2.GaussianBlur(layer, (0, 0), sigma_px), np.float32)


def _lines(shapes: Shapes, region: Region, thickness_px: int, sigma_px: float, *, closed: bool = True) -> FloatImage:
    """Outlines (or open lines) of shapes, softened: 0 to 1."""
    layer = np.zeros((region.height, region.width), np.uint8)
    stroked(shapes, region, layer, thickness_px, closed)
    return _soft(_share(layer), sigma_px)


def _ramp(values: FloatImage, start: float | FloatImage, width: float) -> FloatImage:
    """0 below ``start``, 1 from ``start + width`` on, linear between."""
    return np.asarray(np.clip((values - start) / np.float32(width), 0, 1), np.float32)


def _stroma(scene: Scene, region: Region, grain: _Grain) -> Stains:
    """Fibres with empty clefts between them, as each layer of the wall has them."""
    fabric = {name: enlarged(coarse, region) for name, coarse in scene.fabric.items()}
    # level lines of the flow, crimped as collagen is
    across = enlarged(scene.flow_px, region) + 3.2 * at_region(texture(38, 38, 14), region)
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
    haematoxylin = fabric["haematoxylin"] * (1 + 0.4 * grain.cloud + 0.3 * grain.fine)
    return Stains(haematoxylin * (1 - empty), np.maximum(eosin, 0.02) * (1 - empty), np.zeros_like(eosin))


def _epithelium(stains: Stains, scene: Scene, region: Region, lumens: FloatImage, grain: _Grain) -> None:
    """Cytoplasm of the crypts and of the free surface, goblets, and the lines between cells."""
    depth = enlarged(scene.layout.depth_px, region)
    surface = 1 - _ramp(depth + 2.5 * grain.cloud, SURFACE_EPITHELIUM_PX, 3)
    cells = np.maximum(_share(filled(scene.glands, region)), surface)
    if not cells.any():
        return
    # the tops of the cells, beside the lumen, stain less
    apical = cv2.blur(lumens, (41, 41))
    stains.cover(
        cells,
        0.19 + 0.03 * grain.fine + 0.03 * grain.cloud - 0.10 * apical,
        0.31 + 0.03 * grain.fine + 0.03 * grain.cloud,
    )
    stains.eosin += 0.16 * _lines(scene.borders, region, 1, 0.8, closed=False)
    mucin = _soft(_share(filled(scene.goblets, region)), 1.2)
    stains.cover(mucin, 0.075 + 0.02 * grain.fine, 0.035 + 0.012 * grain.fine)
    rims = _lines(scene.goblets, region, 1, 0.9)
    stains.eosin += 0.14 * rims
    stains.haematoxylin += 0.06 * rims


def _outlines(stains: Stains, scene: Scene, region: Region) -> None:
    """Basement membranes, brush borders, and what little there is of a fat cell."""
    lines = _lines(scene.rims, region, 2, 0.9)
    stains.eosin += 0.15 * lines
    stains.haematoxylin += 0.03 * lines


def _nuclei(stains: Stains, scene: Scene, region: Region) -> None:
    """Nuclei: coarse chromatin, and a darker membrane around it."""
    density = _soft(_share(filled(scene.nuclei, region)), 0.6)
    membrane = _lines(scene.nuclei, region, 1, 0.8) * density
    chromatin = at_region(texture(4.0, 4.0, 21), region) + 0.6 * at_region(texture(8.0, 8.0, 22), region)
    # pale nuclei show their chromatin, dense ones are uniform
    openness = np.clip(1.35 - density, 0.25, 1)
    stains.haematoxylin += density * (0.74 + 0.17 * chromatin * openness) + 0.26 * membrane
    stains.eosin += density * (0.16 - 0.35 * stains.eosin)
    # a little cytoplasm around each nucleus
    around = _soft(density, 4.5) * (1 - density)
    stains.haematoxylin += 0.13 * around
    stains.eosin += 0.10 * around
