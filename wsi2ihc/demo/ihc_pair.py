"""Synthetic IHC partner of an H&E slide, distorted by a known warp, with ground-truth landmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from ..atomic_files import published
from ..concurrency import Progress, ProgressCallback, silent
from ..geometry import RGB, Region, RGBImage, Size
from .demo_slide import BAND_PX, JPEG_QUALITY, MPP, TITLE, WORKERS, structures_of, write_slide_file
from .layout import SlideLayout
from .render import BACKGROUND, EOSIN, HEMATOXYLIN, paint
from .textures import FloatImage, Floats, slow_noise

IHC_BACKGROUND: RGB = (240, 240, 244)  # background color of the IHC slide, slightly cool, as of another scanner

DAB = np.array([0.268, 0.570, 0.776], np.float32)
COUNTERSTAIN = np.array([0.650, 0.704, 0.286], np.float32)
"""Directions of DAB and of the hematoxylin beside it in optical-density space (Ruifrok and Johnston 2001)."""

STRONGEST = 3.0  # the strength of a 3+ slide
_ROWS_PX = 64  # rows computed at a time, since colors in float take twelve times the memory of pixels


def restain(he: RGBImage, seed: int, strength: float = 2.0, *, mpp: float = MPP) -> RGBImage:
    """Simulate an IHC image with DAB from an H&E image: (rows, columns, 3) uint8 RGB.

    Hematoxylin remains, weaker and slightly blurred; most eosin is removed; DAB surrounds the cells of some of the
    tissue. Noise and JPEG are added at the end. Takes about 60 bytes per px. The same arguments give the same pixels.

    ``he`` has a bright background and pixels of ``mpp`` µm, from which the sizes of cells follow. ``strength`` is the
    extent and density of DAB, from 0 (none) to 3 (3+).
    """
    rng = np.random.default_rng(seed)
    hematoxylin, eosin = _unmixed(he)
    tissue = _smooth(np.minimum((hematoxylin + eosin) / 0.15, 1), 3.0 / mpp)
    dab = _dab(hematoxylin, eosin, tissue, strength, rng, mpp)
    gain, gamma = rng.uniform(0.6, 0.9), rng.uniform(0.85, 1.25)
    nuclei = _smooth(gain * hematoxylin**gamma, rng.uniform(0.2, 0.5) / mpp)
    # a remainder of eosin represents the bluish counterstain of cytoplasm
    counterstain = nuclei + np.float32(rng.uniform(0.10, 0.2)) * eosin + np.float32(0.02) * tissue
    image = np.empty_like(he)
    for rows in _row_bands(len(he)):
        density = counterstain[rows, :, None] * COUNTERSTAIN + dab[rows, :, None] * DAB
        band = cv2.exp(density * np.float32(-math.log(10.0))) * np.array(IHC_BACKGROUND, np.float32)
        band += rng.standard_normal(band.shape[:2], dtype=np.float32)[..., None] * np.float32(1.5)
        image[rows] = np.clip(np.rint(band), 0, 255)
    return _compressed(image)


def _row_bands(rows: int) -> Iterator[slice]:
    return (slice(top, min(top + _ROWS_PX, rows)) for top in range(0, rows, _ROWS_PX))


def _unmixed(he: RGBImage) -> tuple[FloatImage, FloatImage]:
    """Separate hematoxylin and eosin, (rows, columns) float32 each, not negative, and ignore the residual."""
    background = np.maximum(np.percentile(he[::8, ::8], 99, axis=(0, 1)), 200).astype(np.float32)
    table = -np.log10(np.maximum(np.arange(256, dtype=np.float32), 1)[:, None] / background)
    other = np.cross(HEMATOXYLIN, EOSIN)
    vectors = np.stack([HEMATOXYLIN, EOSIN, other / np.linalg.norm(other)])
    unmixing = np.ascontiguousarray(np.linalg.inv(vectors).T[:2], np.float32)
    amounts = np.empty((2, *he.shape[:2]), np.float32)
    for rows in _row_bands(len(he)):
        density = np.stack([np.maximum(table[:, channel], 0)[he[rows, :, channel]] for channel in range(3)], axis=-1)
        amounts[:, rows] = np.moveaxis(cv2.transform(density.astype(np.float32), unmixing), -1, 0)
    np.maximum(amounts, 0, out=amounts)
    return amounts[0], amounts[1]


def _dab(
    hematoxylin: FloatImage,
    eosin: FloatImage,
    tissue: FloatImage,
    strength: float,
    rng: np.random.Generator,
    mpp: float,
) -> FloatImage:
    """Compute the optical density of DAB (rows, columns): around nuclei, in areas that grow with the strength."""
    share = min(max(strength / STRONGEST, 0.0), 1.0)
    around = np.maximum(_smooth(hematoxylin, 3.0 / mpp) - 0.7 * _smooth(hematoxylin, 0.7 / mpp), 0)
    membranes = around / max(float(np.percentile(around[::4, ::4], 99)), 1e-3)
    membranes = membranes * (0.35 + 0.65 * np.minimum(eosin / 0.25, 1))
    # two scales: lesions of some 400 µm, and groups of cells within them
    patches = _slow(rng, hematoxylin.shape, 400 / mpp) + 0.4 * _slow(rng, hematoxylin.shape, 60 / mpp)
    reach = 1 / (1 + np.exp(np.clip(-4 * (patches + 2.2 * share - 1.3), -30, 30)))
    grain = np.exp(0.2 * _slow(rng, hematoxylin.shape, 4 / mpp))
    background = 0.02 + 0.03 * share
    amount = background * tissue + (1.1 * share**1.2) * reach * membranes * grain * tissue
    return np.asarray(np.clip(amount, 0, 2.2), np.float32)


def _slow(rng: np.random.Generator, shape: tuple[int, ...], wavelength_px: float) -> FloatImage:
    """Draw smooth noise of about unit variance; long waves are drawn on a coarse map."""
    step = max(1, int(wavelength_px / 8))
    coarse = slow_noise(rng, (shape[0] // step + 2, shape[1] // step + 2), max(2.0, wavelength_px / step))
    if step == 1:
        return coarse[: shape[0], : shape[1]]
    large = cv2.resize(coarse, (coarse.shape[1] * step, coarse.shape[0] * step), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large[: shape[0], : shape[1]], np.float32)


def _smooth(image: FloatImage, sigma_px: float) -> FloatImage:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(sigma_px, 0.1)), np.float32)


def _compressed(image: RGBImage) -> RGBImage:
    """Compress and decompress an image as JPEG."""
    _, stream = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return np.ascontiguousarray(np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])


@dataclass(frozen=True, slots=True)
class Distortion:
    """Distortion of the partner relative to the image."""

    angle_deg: float = 0.0  # rotation about the center of the image, clockwise on the screen
    scale: float = 1.0  # µm of the partner per µm of the image
    mirrored: bool = False  # whether left and right are exchanged before the rotation
    shift_um: tuple[float, float] = (0.0, 0.0)  # shift (x, y) of the center of the image from the center of the partner
    warp_um: float = 0.0  # largest length of the smooth displacement
    wavelength_um: float = 600.0  # shortest wavelength of the displacement; the longest is twice as long
    seed: int = 0  # seed of the waves


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruthWarp:
    """Map between the image (fixed) and its partner (moving), in µm from the top left corner.

    The map from moving to fixed is an affine transform followed by a sum of plane waves,
    ``fixed = g + sum_k amplitudes[k] * sin(waves[k] · g + phases[k])`` with ``g = inverse[:, :2] @ moving +
    inverse[:, 2]``. Its inverse is computed iteratively.
    """

    inverse: Floats  # affine transform from moving to fixed, (2, 3)
    waves: Floats  # (K, 2) radians per µm
    phases: Floats  # (K,) radians
    amplitudes: Floats  # (K, 2) µm

    @property
    def matrix(self) -> Floats:
        """Affine transform from fixed to moving, (2, 3)."""
        return _inverted(self.inverse)

    def to_fixed(self, moving_um: Floats) -> Floats:
        """Map points (N, 2) of the partner to the image."""
        straight = np.asarray(moving_um, np.float64) @ self.inverse[:, :2].T + self.inverse[:, 2]
        return straight + self._warp(straight)

    def to_moving(self, fixed_um: Floats) -> Floats:
        """Map points (N, 2) of the image to its partner, to 1e-6 µm."""
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


def distorted(
    image: RGBImage, mpp: float, distortion: Distortion, fill: RGB = BACKGROUND
) -> tuple[RGBImage, GroundTruthWarp]:
    """Distort an image as if the section was scanned again, and return the ground truth.

    Pixels are interpolated with cubic splines at exact positions, in bands of rows; takes about 16 bytes per px of the
    image. The canvas contains the complete rotated image, surrounded by ``fill``. Raises `ValueError` if the warp is
    too steep for its wavelength and could fold.
    """
    height, width = image.shape[:2]
    truth, canvas_um = _ground_truth((width * mpp, height * mpp), distortion)
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


def _ground_truth(size_um: tuple[float, float], distortion: Distortion) -> tuple[GroundTruthWarp, tuple[float, float]]:
    """Return the map, and width and height in µm of a canvas that contains the partner."""
    angle = math.radians(distortion.angle_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = distortion.scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if distortion.mirrored else 1.0, 1.0])
    middle = np.array(size_um) / 2
    corners = np.array([[x, y] for x in (0.0, size_um[0]) for y in (0.0, size_um[1])]) - middle
    shift = np.array(distortion.shift_um)
    reach = np.abs(corners @ turn.T).max(axis=0) + distortion.scale * distortion.warp_um + np.abs(shift)
    matrix = np.column_stack([turn, reach + shift - turn @ middle])
    return GroundTruthWarp(_inverted(matrix), *_waves(size_um, distortion)), (float(2 * reach[0]), float(2 * reach[1]))


def _inverted(affine: Floats) -> Floats:
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


def _waves(size_um: tuple[float, float], distortion: Distortion) -> tuple[Floats, Floats, Floats]:
    """Draw six plane waves in random directions whose sum is at most ``warp_um`` long on the image."""
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


STUDY_NAMES = ("he.tiff", "ihc.tiff", "he.csv", "ihc.csv", "he2.tiff", "ihc2.tiff", "manifest.csv")
"""Files of `make_demo_study`."""

MANIFEST = """patient_id,slide_id,he_path,ihc_path,her2,split,landmarks
P1,S1,he.tiff,ihc.tiff,3+,train,he.csv;ihc.csv
P2,S2,he2.tiff,ihc2.tiff,3+,validation,
"""

LANDMARKS = 60
DISTORTION = Distortion(angle_deg=14.0, scale=1.01, shift_um=(60.0, -40.0), warp_um=25.0, wavelength_um=700.0)
"""Moderate rotation, and a warp typical of mounting."""

SECOND_DISTORTION = Distortion(angle_deg=-35.0, shift_um=(20.0, 30.0), warp_um=15.0, wavelength_um=600.0)
FIRST_SIZE, SECOND_SIZE, SECOND_SEED = (3600, 2700), (2400, 1800), 5

STAGE = "making slides"


def make_demo_study(
    folder: Path,
    *,
    sizes: tuple[tuple[int, int], tuple[int, int]] = (FIRST_SIZE, SECOND_SIZE),
    on_progress: ProgressCallback | None = None,
) -> None:
    """Write slides for a paired dataset: `make_demo_pair`, the pair of a second patient, and a manifest.

    Files of `STUDY_NAMES` in the folder are replaced. ``sizes`` are width and height of both H&E slides in px of
    0.5 µm. Progress is reported after each of the four slides.

    Raises
    ------
    OptionError
        If a size is too small for a slide.
    OutputError
        If a file cannot be written.
    """
    report = on_progress or silent

    def from_slide(first: int) -> ProgressCallback:
        return lambda progress: report(Progress(STAGE, first + progress.done, 4, "slide"))

    make_demo_pair(folder, size=sizes[0], on_progress=from_slide(0))
    _write_slides(folder, ("he2.tiff", "ihc2.tiff"), sizes[1], SECOND_SEED, 2.5, SECOND_DISTORTION, from_slide(2))
    with published(folder / "manifest.csv", overwrite=True) as partial:
        partial.write_text(MANIFEST, encoding="utf-8")


def make_demo_pair(
    folder: Path,
    *,
    size: tuple[int, int] = FIRST_SIZE,
    seed: int = 1,
    strength: float = 2.5,
    distortion: Distortion = DISTORTION,
    on_progress: ProgressCallback | None = None,
) -> GroundTruthWarp:
    """Write a synthetic H&E slide, the same section as IHC, turned and warped, and landmarks on both.

    The files are ``he.tiff``, ``ihc.tiff``, ``he.csv`` and ``ihc.csv``; existing ones are replaced. Both slides are
    held in memory: about 80 bytes per px of the larger one.

    ``size`` is the width and height of the H&E slide in px, each at least 256; ``strength`` is that of `restain`.
    Returns the map from the H&E slide to the IHC slide. Progress is reported after each of the two slides.

    Raises
    ------
    OptionError
        If the size is too small for a slide.
    OutputError
        If a file cannot be written.
    """
    names = "he.tiff", "ihc.tiff"
    layout, truth = _write_slides(folder, names, size, seed, strength, distortion, on_progress or silent)
    points = np.random.default_rng(seed).uniform(0, size, (50 * LANDMARKS, 2))
    points_um = points[layout.at(layout.tissue_px, points) > 0][:LANDMARKS] * MPP
    for name, landmarks_um in (("he.csv", points_um), ("ihc.csv", truth.to_moving(points_um))):
        # in px of level 0 whose whole numbers are centers of pixels
        rows = [f"{number},{x:.3f},{y:.3f}" for number, (x, y) in enumerate(landmarks_um / MPP - 0.5, start=1)]
        with published(folder / name, overwrite=True) as partial:
            partial.write_text("\n".join([",X,Y", *rows, ""]), encoding="utf-8")
    return truth


def _write_slides(
    folder: Path,
    names: tuple[str, str],
    size: tuple[int, int],
    seed: int,
    strength: float,
    distortion: Distortion,
    report: ProgressCallback,
) -> tuple[SlideLayout, GroundTruthWarp]:
    structures = structures_of(size, seed)
    strips = [Region(0, y, size[0], min(BAND_PX, size[1] - y)) for y in range(0, size[1], BAND_PX)]
    with ThreadPoolExecutor(WORKERS) as workers:
        he = np.concatenate(list(workers.map(lambda strip: paint(structures, strip), strips)))
    _write_image(folder / names[0], he, TITLE)
    report(Progress(STAGE, 1, 2, "slide"))
    turned, truth = distorted(he, MPP, distortion)
    _write_image(folder / names[1], restain(turned, seed, strength), "wsi2ihc synthetic IHC")
    report(Progress(STAGE, 2, 2, "slide"))
    return structures.layout, truth


def _write_image(path: Path, image: RGBImage, title: str) -> None:
    bands = (image[y : y + BAND_PX] for y in range(0, len(image), BAND_PX))
    write_slide_file(path, Size(image.shape[1], image.shape[0]), bands, title)
