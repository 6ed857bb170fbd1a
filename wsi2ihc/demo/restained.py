"""A partner for an H&E image whose true place is known: another stain of it, turned, warped and mirrored.

`restain` changes the colours, `distorted` the geometry. A registration that is tried on the two has to find the
`Truth` that comes with them. Colours first gives a slide that was restained; geometry first gives the noise of a
second scan as well, as `restain` adds it last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from ..arrays import RGB, RGBImage
from .noise import FloatImage, slow_noise
from .shapes import Floats
from .staining import EOSIN, GLASS, HAEMATOXYLIN

IHC_GLASS: RGB = (240, 240, 244)
"""Colour of the empty restained slide: another scanner, slightly cool."""

DAB = np.array([0.268, 0.570, 0.776], np.float32)
COUNTERSTAIN = np.array([0.650, 0.704, 0.286], np.float32)
"""Directions of DAB and of the haematoxylin beside it in optical-density space (Ruifrok and Johnston 2001)."""

STRONGEST = 3.0
"""The strength of a 3+ slide."""

MPP = 0.5
JPEG_QUALITY = 85
_BAND_PX = 64


def restain(he: RGBImage, seed: int, strength: float = 2.0, *, mpp: float = MPP) -> RGBImage:
    """What an H&E image might look like as IHC with DAB: (rows, columns, 3) uint8 RGB.

    Haematoxylin stays, weaker and slightly out of focus; most of the eosin goes; DAB lines the cells of some of the
    tissue. Noise and JPEG are added at the end. Takes about 60 bytes per px. The same arguments give the same pixels.

    Parameters
    ----------
    he
        H&E pixels (rows, columns, 3) on bright glass.
    seed
        Of where DAB lies, of the balance of the stains, and of the noise.
    strength
        Of the DAB, from 0 (none) to 3 (3+): how much of the tissue has it, and how dark it is.
    mpp
        Size of a pixel in µm, from which the sizes of cells follow.
    """
    rng = np.random.default_rng(seed)
    haematoxylin, eosin = _unmixed(he)
    tissue = _smooth(np.minimum((haematoxylin + eosin) / 0.15, 1), 3.0 / mpp)
    dab = _dab(haematoxylin, eosin, tissue, strength, rng, mpp)
    gain, gamma = rng.uniform(0.6, 0.9), rng.uniform(0.85, 1.25)
    nuclei = _smooth(gain * haematoxylin**gamma, rng.uniform(0.2, 0.5) / mpp)
    # what is left of the eosin's shade is the bluish veil that haematoxylin leaves on cytoplasm
    counterstain = nuclei + np.float32(rng.uniform(0.10, 0.2)) * eosin + np.float32(0.02) * tissue
    image = np.empty_like(he)
    for rows in _row_bands(len(he)):
        density = counterstain[rows, :, None] * COUNTERSTAIN + dab[rows, :, None] * DAB
        band = cv2.exp(density * np.float32(-math.log(10.0))) * np.array(IHC_GLASS, np.float32)
        band += rng.standard_normal(band.shape[:2], dtype=np.float32)[..., None] * np.float32(1.5)
        image[rows] = np.clip(np.rint(band), 0, 255)
    return _compressed(image)


def _row_bands(rows: int) -> Iterator[slice]:
    """Some rows at a time, as colours in float take twelve times the room of pixels."""
    for top in range(0, rows, _BAND_PX):
        yield slice(top, min(top + _BAND_PX, rows))


def _unmixed(he: RGBImage) -> tuple[FloatImage, FloatImage]:
    """Amounts of haematoxylin and eosin, (rows, columns) float32, none negative; what is neither is left out."""
    glass = np.maximum(np.percentile(he[::8, ::8], 99, axis=(0, 1)), 200).astype(np.float32)
    table = -np.log10(np.maximum(np.arange(256, dtype=np.float32), 1)[:, None] / glass)
    other = np.cross(HAEMATOXYLIN, EOSIN)
    vectors = np.stack([HAEMATOXYLIN, EOSIN, other / np.linalg.norm(other)])
    unmixing = np.ascontiguousarray(np.linalg.inv(vectors).T[:2], np.float32)
    amounts = np.empty((2, *he.shape[:2]), np.float32)
    for rows in _row_bands(len(he)):
        density = np.stack([np.maximum(table[:, channel], 0)[he[rows, :, channel]] for channel in range(3)], axis=-1)
        amounts[:, rows] = np.moveaxis(cv2.transform(density.astype(np.float32), unmixing), -1, 0)
    np.maximum(amounts, 0, out=amounts)
    return amounts[0], amounts[1]


def _dab(
    haematoxylin: FloatImage,
    eosin: FloatImage,
    tissue: FloatImage,
    strength: float,
    rng: np.random.Generator,
    mpp: float,
) -> FloatImage:
    """Optical density of DAB (rows, columns): around nuclei, in patches of the tissue that grow with the strength."""
    share = min(max(strength / STRONGEST, 0.0), 1.0)
    around = np.maximum(_smooth(haematoxylin, 3.0 / mpp) - 0.7 * _smooth(haematoxylin, 0.7 / mpp), 0)
    membranes = around / max(float(np.percentile(around[::4, ::4], 99)), 1e-3)
    membranes = membranes * (0.35 + 0.65 * np.minimum(eosin / 0.25, 1))
    # two scales: lesions of some 400 µm, and groups of cells within them
    patches = _slow(rng, haematoxylin.shape, 400 / mpp) + 0.4 * _slow(rng, haematoxylin.shape, 60 / mpp)
    reach = 1 / (1 + np.exp(np.clip(-4 * (patches + 2.2 * share - 1.3), -30, 30)))
    grain = np.exp(0.2 * _slow(rng, haematoxylin.shape, 4 / mpp))
    background = 0.02 + 0.03 * share
    amount = background * tissue + (1.1 * share**1.2) * reach * membranes * grain * tissue
    return np.asarray(np.clip(amount, 0, 2.2), np.float32)


def _slow(rng: np.random.Generator, shape: tuple[int, ...], wavelength_px: float) -> FloatImage:
    """Smooth noise of about unit variance; long waves are drawn on a coarse map."""
    step = max(1, int(wavelength_px / 8))
    coarse = slow_noise(rng, (shape[0] // step + 2, shape[1] // step + 2), max(2.0, wavelength_px / step))
    if step == 1:
        return coarse[: shape[0], : shape[1]]
    large = cv2.resize(coarse, (coarse.shape[1] * step, coarse.shape[0] * step), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large[: shape[0], : shape[1]], np.float32)


def _smooth(image: FloatImage, sigma_px: float) -> FloatImage:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(sigma_px, 0.1)), np.float32)


def _compressed(image: RGBImage) -> RGBImage:
    """The image after a round trip through JPEG, as scanners store it."""
    bgr = np.ascontiguousarray(image[..., ::-1])
    _, stream = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    decoded = cv2.imdecode(stream, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError("a JPEG that was just encoded cannot be decoded")
    return np.ascontiguousarray(decoded[..., ::-1], np.uint8)


@dataclass(frozen=True, slots=True)
class Distortion:
    """How the partner lies, compared with the image that it shows.

    angle_deg:      turn about the middle of the image, clockwise as seen on the screen
    scale:          µm of the partner per µm of the image
    mirrored:       whether left and right are exchanged before the turn
    shift_um:       (x, y), added to the middle of the image in the partner's middle
    warp_um:        greatest length of the smooth displacement; 0 for none
    wavelength_um:  shortest wave of it; the longest is twice as long
    seed:           of the waves
    """

    angle_deg: float = 0.0
    scale: float = 1.0
    mirrored: bool = False
    shift_um: tuple[float, float] = (0.0, 0.0)
    warp_um: float = 0.0
    wavelength_um: float = 600.0
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Where every point of the image (fixed) lies on its partner (moving), both in µm from the top left corner.

    The way from moving to fixed is given: the affine part, then a sum of plane waves,
    ``fixed = g + sum_k amplitudes[k] * sin(waves[k] · g + phases[k])`` with ``g = inverse[:, :2] @ moving +
    inverse[:, 2]``. The way back is solved for.

    inverse:     (2, 3), from moving to fixed µm, without the waves
    waves:       (K, 2), radians per µm
    phases:      (K,), radians
    amplitudes:  (K, 2), µm
    """

    inverse: Floats
    waves: Floats
    phases: Floats
    amplitudes: Floats

    @property
    def matrix(self) -> Floats:
        """The affine part from fixed to moving µm, (2, 3)."""
        linear = np.linalg.inv(self.inverse[:, :2])
        return np.column_stack([linear, -linear @ self.inverse[:, 2]])

    def to_fixed(self, moving_um: Floats) -> Floats:
        """Points (N, 2) of the partner on the image."""
        straight = np.asarray(moving_um, np.float64) @ self.inverse[:, :2].T + self.inverse[:, 2]
        return straight + self._warp(straight)

    def to_moving(self, fixed_um: Floats) -> Floats:
        """Points (N, 2) of the image on its partner, to 1e-6 µm."""
        fixed = np.asarray(fixed_um, np.float64)
        straight = fixed - self._warp(fixed)
        for _ in range(200):
            step = fixed - self._warp(straight) - straight
            straight = straight + step
            if not step.size or np.abs(step).max() < 1e-7:
                break
        matrix = self.matrix
        return np.asarray(straight @ matrix[:, :2].T + matrix[:, 2])

    def _warp(self, points: Floats) -> Floats:
        return np.asarray(np.sin(points @ self.waves.T + self.phases) @ self.amplitudes)


def distorted(image: RGBImage, mpp: float, distortion: Distortion, fill: RGB = GLASS) -> tuple[RGBImage, Truth]:
    """The image as another scan of the same section would show it, and where its points went.

    Pixels are interpolated with cubic splines at exact positions, in bands of rows; takes about 16 bytes per px of
    the image. The canvas holds the whole turned image; beyond the image it shows ``fill``.

    Parameters
    ----------
    image
        Pixels (rows, columns, 3) of ``mpp`` µm; the partner has pixels of the same size.
    mpp
        Size of a pixel in µm.
    distortion
        Turn, scale, mirror, shift and warp.
    fill
        Colour beyond the image.

    Raises
    ------
    ValueError
        If the warp is so steep for its wavelength that it could fold.
    """
    height, width = image.shape[:2]
    truth, canvas_um = _truth((width * mpp, height * mpp), distortion)
    columns, rows = (math.ceil(side / mpp) for side in canvas_um)
    splines = [ndimage.spline_filter(image[..., channel], order=3, output=np.float32) for channel in range(3)]
    partner = np.empty((rows, columns, 3), np.uint8)
    x = (np.arange(columns) + 0.5) * mpp
    for part in _row_bands(rows):
        y = (np.arange(part.start, part.stop) + 0.5) * mpp
        at = truth.to_fixed(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)) / mpp
        inside = ((at >= 0) & (at <= (width, height))).all(axis=1)
        band = np.broadcast_to(np.array(fill, np.uint8), (len(at), 3)).copy()
        where = at[inside, ::-1].T - 0.5
        for channel, spline in enumerate(splines):
            values = ndimage.map_coordinates(spline, where, order=3, mode="nearest", prefilter=False)
            band[inside, channel] = np.clip(np.rint(values), 0, 255)
        partner[part] = band.reshape(len(y), columns, 3)
    return partner, truth


def _truth(size_um: tuple[float, float], distortion: Distortion) -> tuple[Truth, tuple[float, float]]:
    """The mapping, and width and height in µm of a canvas that holds the whole partner."""
    angle = math.radians(distortion.angle_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = distortion.scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if distortion.mirrored else 1.0, 1.0])
    middle = np.array(size_um) / 2
    corners = np.array([[x, y] for x in (0.0, size_um[0]) for y in (0.0, size_um[1])]) - middle
    shift = np.array(distortion.shift_um)
    reach = np.abs(corners @ turn.T).max(axis=0) + distortion.scale * distortion.warp_um + np.abs(shift)
    matrix = np.column_stack([turn, reach + shift - turn @ middle])
    linear = np.linalg.inv(matrix[:, :2])
    inverse = np.column_stack([linear, -linear @ matrix[:, 2]])
    waves, phases, amplitudes = _waves(size_um, distortion)
    return Truth(inverse, waves, phases, amplitudes), (float(2 * reach[0]), float(2 * reach[1]))


def _waves(size_um: tuple[float, float], distortion: Distortion) -> tuple[Floats, Floats, Floats]:
    """Six plane waves in random directions whose sum is nowhere longer than ``warp_um`` on the image."""
    rng = np.random.default_rng(distortion.seed)
    count = 6
    lengths_um = distortion.wavelength_um * rng.uniform(1, 2, count)
    towards = rng.uniform(0, 2 * np.pi, count)
    waves = np.stack([np.cos(towards), np.sin(towards)], axis=1) * (2 * np.pi / lengths_um)[:, None]
    phases = rng.uniform(0, 2 * np.pi, count)
    along = rng.uniform(0, 2 * np.pi, count)
    amplitudes = np.stack([np.cos(along), np.sin(along)], axis=1)
    steps = [np.linspace(0, side, max(2, math.ceil(8 * side / distortion.wavelength_um))) for side in size_um]
    grid = np.stack(np.meshgrid(*steps), axis=-1).reshape(-1, 2)
    longest = float(np.linalg.norm(np.sin(grid @ waves.T + phases) @ amplitudes, axis=1).max())
    amplitudes *= distortion.warp_um / max(longest, 1e-9)
    # the sum of all slopes bounds the Lipschitz constant; below 1 the mapping cannot fold, and its inverse converges
    steepest = float((np.linalg.norm(amplitudes, axis=1) * np.linalg.norm(waves, axis=1)).sum())
    if steepest >= 0.95:
        raise ValueError(
            f"a warp of {distortion.warp_um:g} µm is too steep for waves of {distortion.wavelength_um:g} µm "
            f"(slope {steepest:.2f}, at most 0.95); use a smaller warp or longer waves"
        )
    return waves, phases, amplitudes
