"""Layout of the synthetic slide: coarse maps of the tissue, its layers, pen marks and focus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..geometry import Region, Size
from .textures import FloatImage, Floats, slow_noise

STEP_PX = 8

# thicknesses of the layers of the wall: 625, 45, 675 and 23 µm
MUCOSA_PX = 1250.0
MUSCLE_PLATE_PX = 90.0
SUBMUCOSA_PX = 1350.0
SURFACE_EPITHELIUM_PX = 46.0


@dataclass(frozen=True, slots=True)
class Zone:
    """Composition of a layer of the wall."""

    eosin: float  # amount, as optical density along its stain vector
    fine: float  # modulation of eosin by thin fibers
    broad: float  # modulation of eosin by thick fibers
    hematoxylin: float  # amount of hematoxylin outside nuclei
    cleft: float  # level above which the fiber noise (of unit variance) is an empty cleft
    round_cells: float  # lymphocytes and plasma cells per mm²
    spindle_cells: float  # fibroblasts or muscle cells per mm²


# Stroma is paler, looser and more cellular than in slides of many laboratories. It resembles the training data of the
# default model, where the density of eosin is 0.08 to 0.26 outside epithelium (median 0.15) and 0.14 to 0.37 inside
# (0.26). The model mistakes redder and emptier stroma for epithelium.
ZONES: Mapping[str, Zone] = {
    "lamina propria": Zone(0.12, 0.03, 0.03, 0.05, 1.25, 5600, 2200),
    "muscle plate": Zone(0.14, 0.02, 0.02, 0.05, 1.9, 250, 3200),
    "submucosa": Zone(0.11, 0.04, 0.06, 0.02, 0.35, 260, 1500),
    "muscle": Zone(0.12, 0.03, 0.03, 0.04, 1.1, 60, 2600),
    "follicle": Zone(0.16, 0.03, 0.02, 0.12, 3.0, 16500, 200),
}


@dataclass(frozen=True, slots=True)
class SlideLayout:
    """Coarse maps of a slide, (height / STEP_PX, width / STEP_PX) float32 each, rounded up."""

    size: Size  # size of the slide in px
    tissue_px: FloatImage  # distance to the outline of the tissue, positive inside
    depth_px: FloatImage  # distance to the luminal surface; large if there is none
    zones: Mapping[str, FloatImage]  # fraction of each layer of the wall; they add up to 1
    pen: FloatImage  # optical density of pen marks
    stain: FloatImage  # slow relative variation of the stain strength, about 1
    focus: FloatImage  # amount of blur, from 0 (in focus) to 1
    surface: tuple[Floats, ...]  # free surfaces as polylines, (N, 2) px each

    @property
    def frame(self) -> Region:
        return self.size.frame

    def at(self, coarse: FloatImage, points: Floats) -> npt.NDArray[np.float32]:
        """Sample a coarse map at (N, 2) points of the slide, nearest neighbor: (N,) float32."""
        column, row = np.clip(points / STEP_PX, 0, np.array(coarse.shape[::-1]) - 1).astype(np.intp).T
        return np.asarray(coarse[row, column], np.float32)


def enlarged(coarse: FloatImage, region: Region) -> FloatImage:
    """Enlarge a coarse map to the pixels of ``region``, whose sides and origin are multiples of `STEP_PX`: float32.

    Interpolation is bilinear, with an additional value on each side, so that neighboring regions match exactly.
    """
    rows = np.arange(region.y // STEP_PX - 1, region.bottom // STEP_PX + 1).clip(0, coarse.shape[0] - 1)
    columns = np.arange(region.x // STEP_PX - 1, region.right // STEP_PX + 1).clip(0, coarse.shape[1] - 1)
    patch = coarse[rows[:, None], columns[None, :]]
    size = (region.width + 2 * STEP_PX, region.height + 2 * STEP_PX)
    large = cv2.resize(patch, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(large[STEP_PX:-STEP_PX, STEP_PX:-STEP_PX], np.float32)


def slide_layout(size: Size, rng: np.random.Generator) -> SlideLayout:
    """Lay out a section of a colon wall, a small biopsy, and a pen stroke at the lower right corner of the wall."""
    shape = _map_shape(size)
    wall, wall_surface = _wall(size, rng)
    biopsy = _biopsy(size, rng)
    tissue = np.maximum(_signed_distance(wall, shape), _signed_distance(biopsy, shape))
    depth = np.minimum(_distance_to(wall_surface, shape, closed=False), _distance_to(biopsy, shape, closed=True))
    # cut edges are ragged, the luminal surface is smooth
    tissue = tissue + np.clip(depth / 150 - 0.3, 0, 1) * (
        14 * slow_noise(rng, shape, 240 / STEP_PX) + 75 * slow_noise(rng, shape, 1100 / STEP_PX)
    )
    return SlideLayout(
        size,
        tissue_px=tissue.astype(np.float32),
        depth_px=depth,
        zones=_zones(depth, 0.66 * size.height, size, rng),
        pen=_pen(size, rng),
        stain=1 + 0.07 * slow_noise(rng, shape, 1500 / STEP_PX),
        focus=np.clip(0.25 * slow_noise(rng, shape, 1800 / STEP_PX) - 0.05, 0, 0.6),
        surface=(wall_surface, np.concatenate([biopsy, biopsy[:1]])),
    )


def tissue_layout(size: Size, rng: np.random.Generator) -> SlideLayout:
    """Lay out mucosa from edge to edge, without background."""
    shape = _map_shape(size)
    return SlideLayout(
        size,
        tissue_px=np.full(shape, 1e4, np.float32),
        depth_px=np.full(shape, MUCOSA_PX / 2, np.float32),
        zones={name: np.full(shape, float(name == "lamina propria"), np.float32) for name in ZONES},
        pen=np.zeros(shape, np.float32),
        stain=1 + 0.07 * slow_noise(rng, shape, 1500 / STEP_PX),
        focus=np.zeros(shape, np.float32),
        surface=(),
    )


def _map_shape(size: Size) -> tuple[int, int]:
    return max(2, -(-size.height // STEP_PX)), max(2, -(-size.width // STEP_PX))  # a slope needs two values


def _wall(size: Size, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw the outline of the colon wall, (N, 2) px, and its luminal part."""
    length, thickness = 0.60 * size.width, 0.66 * size.height
    s = np.linspace(-0.5, 0.5, max(40, int(length / 16)))
    folds = np.zeros_like(s)
    for share, periods in ((0.055, 1.3), (0.03, 3.1), (0.012, 7.3)):
        folds += share * thickness * np.sin(2 * np.pi * periods * s + rng.uniform(0, 2 * np.pi))
    rounding = (2 * np.abs(s)) ** 5 * 0.20 * thickness
    top = np.stack([s * length, -thickness / 2 + folds + rounding], axis=1)
    sag = 0.03 * thickness * np.sin(9 * s + rng.uniform(0, 6)) - 0.10 * thickness * (2 * s) ** 4
    bottom = np.stack([(0.90 * s + 0.02) * length, thickness / 2 + sag], axis=1)[::-1]
    tilt = np.deg2rad(rng.uniform(7, 12))
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    center = np.array([0.385 * size.width, 0.52 * size.height])
    return np.concatenate([top, bottom]) @ turn.T + center, top @ turn.T + center


def _biopsy(size: Size, rng: np.random.Generator) -> Floats:
    """Draw the outline of the biopsy, (N, 2) px."""
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    radius = np.ones_like(angle)
    for harmonic in range(2, 7):
        radius += 0.16 / harmonic * rng.standard_normal() * np.cos(harmonic * angle + rng.uniform(0, 6))
    reach = np.array([0.085 * size.width, 0.15 * size.height])
    center = np.array([0.845 * size.width, 0.25 * size.height])
    return np.asarray(np.stack([np.cos(angle) * radius, np.sin(angle) * radius], axis=1) * reach + center, np.float64)


def _zones(depth: FloatImage, thickness: float, size: Size, rng: np.random.Generator) -> dict[str, FloatImage]:
    """Compute the fractions of the layers by depth, with a lymphoid follicle at the bottom of the mucosa."""
    shape = depth.shape
    # small slides have thinner layers, not fewer
    scale = min(1.0, thickness / 3900)
    wavy = depth / scale + 70 * slow_noise(rng, shape, 500 / STEP_PX)
    plate_end = MUCOSA_PX + MUSCLE_PLATE_PX

    def beyond(limit_px: float, blur_px: float) -> FloatImage:
        return np.asarray(np.clip((wavy - limit_px) / blur_px + 0.5, 0, 1), np.float32)

    below_mucosa, below_plate = beyond(MUCOSA_PX, 24), beyond(plate_end, 24)
    below_submucosa = beyond(plate_end + SUBMUCOSA_PX, 60)
    rows, columns = np.indices(shape, dtype=np.float32) * STEP_PX
    x = rng.uniform(0.40, 0.55) * size.width
    near = np.hypot((columns - x) / (430 * scale), (wavy - 1130) * scale / (300 * scale))
    near = near + 0.12 * slow_noise(rng, shape, 200 / STEP_PX)
    follicle = (np.clip((1 - near) * 5, 0, 1) * (rows < 0.8 * size.height)).astype(np.float32)
    rest = 1 - follicle
    return {
        "lamina propria": (1 - below_mucosa) * rest,
        "muscle plate": (below_mucosa - below_plate) * rest,
        "submucosa": (below_plate - below_submucosa) * rest,
        "muscle": below_submucosa * rest,
        "follicle": follicle,
    }


def _pen(size: Size, rng: np.random.Generator) -> FloatImage:
    """Draw the optical density of a felt-tip stroke from the lower right corner of the wall into the background."""
    shape = _map_shape(size)
    corners = np.array([[0.545, 0.80], [0.63, 0.875], [0.735, 0.80], [0.81, 0.635], [0.965, 0.655]])
    # a line of 300 points with rounded corners
    knots, t = np.arange(len(corners)), np.linspace(0, len(corners) - 1, 300)
    path = np.stack([np.interp(t, knots, side) for side in (corners * [size.width, size.height]).T], axis=1)
    kernel = np.hanning(91) / np.hanning(91).sum()
    padded = np.pad(path, ((45, 45), (0, 0)), mode="reflect", reflect_type="odd")
    path = np.stack([np.convolve(side, kernel, mode="valid") for side in padded.T], axis=1)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    aside = np.stack([-along[:, 1], along[:, 0]], axis=1)
    half_width = 0.020 * size.width
    # the tip leaves streaks; ink dries darkest along the rim
    density = np.zeros(shape, np.float32)
    offsets = np.linspace(-1, 1, 23)
    for offset in offsets:
        start, end = int(abs(offset) ** 3 * 7 + rng.integers(0, 4)), len(path) - int(rng.integers(1, 7))
        line = (path + aside * offset * (half_width - 12))[start:end]
        strength = rng.normal(0.55, 0.09) + 0.30 * abs(offset) ** 8
        thickness = max(1, round(3.2 * half_width / len(offsets) / STEP_PX))
        streak = np.zeros(shape, np.float32)
        cv2.polylines(streak, [np.rint(line / STEP_PX).astype(np.int32)], False, strength, thickness)
        np.maximum(density, streak, out=density)
    cloud = 1 + 0.13 * slow_noise(rng, shape, 600 / STEP_PX)
    return (cv2.GaussianBlur(density, (0, 0), 1.7) * cloud).astype(np.float32)


def _signed_distance(outline: Floats, shape: tuple[int, int]) -> FloatImage:
    """Compute the distance to a closed outline in px, positive inside, smoothed over two map px."""
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.rint(outline / STEP_PX * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    inside = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return cv2.GaussianBlur((inside - outside) * np.float32(STEP_PX), (0, 0), 2).astype(np.float32)


def _distance_to(line: Floats, shape: tuple[int, int], *, closed: bool) -> FloatImage:
    """Compute the distance to a line in px, smoothed over two map px."""
    mask = np.ones(shape, np.uint8)
    cv2.polylines(mask, [np.rint(line / STEP_PX * 16).astype(np.int32)], closed, 0, 1, cv2.LINE_8, 4)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * np.float32(STEP_PX)
    return cv2.GaussianBlur(distance, (0, 0), 1).astype(np.float32)
