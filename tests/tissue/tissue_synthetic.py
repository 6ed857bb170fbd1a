"""Overviews painted by Beer-Lambert's law, and slides held in memory."""

from __future__ import annotations

import math
from types import TracebackType

import cv2
import numpy as np

from wsi2ihc.geometry import RGB, BoolImage, Region, RGBImage, Size
from wsi2ihc.slide import Level, SlideInfo
from wsi2ihc.tissue import TissueMask

BACKGROUND: RGB = (240, 238, 241)
MPP = 8.0
SHAPE = (400, 500)

HEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
"""Absorption of red, green and blue (Ruifrok and Johnston 2001)."""

PENS: dict[str, RGB] = {"red": (205, 15, 30), "green": (10, 130, 95), "blue": (40, 60, 170), "black": (25, 25, 30)}


def disc(shape: tuple[int, int], center: tuple[float, float], radius: float) -> BoolImage:
    """Px within ``radius`` of ``center`` (x, y)."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    return np.hypot(x - center[0], y - center[1]) <= radius


def bare_background(
    shape: tuple[int, int] = SHAPE, background: RGB = BACKGROUND, noise: float = 0.7, seed: int = 0
) -> np.ndarray:
    """Light per px, (rows, columns, 3) float, with the scanner's noise."""
    return np.array(background) + np.random.default_rng(seed).normal(size=(*shape, 3)) * noise


def stained(
    light: np.ndarray, where: BoolImage, dyes: dict[tuple[float, float, float], float], seed: int = 1
) -> np.ndarray:
    """The image with dyes of the given mean densities, unevenly taken up, in part of it."""
    rng = np.random.default_rng(seed)
    density = np.zeros_like(light)
    for dye, amount in dyes.items():
        uptake = cv2.GaussianBlur(rng.normal(size=where.shape), (0, 0), 1.2)
        density += amount * np.maximum(1 + 1.2 * uptake, 0.3)[..., np.newaxis] * np.array(dye)
    return np.where(where[..., np.newaxis], light * 10**-density, light)


def inked(light: np.ndarray, where: BoolImage, color: RGB) -> np.ndarray:
    """The image under ink that is out of focus by 20 µm."""
    cover = cv2.GaussianBlur(where.astype(float), (0, 0), 20 / MPP)[..., np.newaxis]
    return light * (np.array(color) / np.array(BACKGROUND)) ** cover


def to_image(light: np.ndarray) -> RGBImage:
    return np.rint(light).clip(0, 255).astype(np.uint8)


def px_under(mask: TissueMask, left: float, top: float, right: float, bottom: float) -> BoolImage:
    """The px of a mask that a rectangle in level-0 px overlaps."""
    across, down = (
        slice(max(0, math.floor((start - origin) / size)), max(0, math.ceil((stop - origin) / size)))
        for start, stop, origin, size in zip((left, top), (right, bottom), mask.origin, mask.pixel_size, strict=True)
    )
    return mask.pixels[down, across]


HE = {HEMATOXYLIN: 0.2, EOSIN: 0.2}


def he_blob(background: RGB = BACKGROUND, strength: float = 1.0, noise: float = 0.7) -> tuple[RGBImage, BoolImage]:
    """A round piece of H&E tissue, 1.6 mm wide, on background, and where it is."""
    where = disc(SHAPE, (250, 200), 100)
    light = stained(
        bare_background(background=background, noise=noise), where, {dye: strength * value for dye, value in HE.items()}
    )
    return to_image(light), where


class ArraySlide:
    """A slide held in memory: level 0 as given, and one level a quarter of its size."""

    def __init__(
        self,
        pixels: RGBImage,
        mpp: tuple[float, float] | None = (0.5, 0.5),
        bounds: Region | None = None,
    ) -> None:
        height, width = pixels.shape[:2]
        small = cv2.resize(pixels, (width // 4, height // 4), interpolation=cv2.INTER_AREA) if width > 64 else None
        self._levels = [pixels] if small is None else [pixels, np.asarray(small, np.uint8)]
        self.path = "memory.svs"
        self.info = SlideInfo(
            name="memory.svs",
            reader="openslide",
            vendor="test",
            levels=tuple(
                Level(Size(level.shape[1], level.shape[0]), float(4**index)) for index, level in enumerate(self._levels)
            ),
            mpp=mpp,
            mpp_source="slide" if mpp else "",
            magnification=None,
            bounds=bounds or Region(0, 0, width, height),
            background=(255, 255, 255),
            icc_profile=None,
            quickhash="sha256:0",
        )

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        pixels = self._levels[level]
        result = np.empty((region.height, region.width, 3), np.uint8)
        result[:] = self.info.background if fill is None else fill
        held = region.intersection(Region(0, 0, pixels.shape[1], pixels.shape[0]))
        if not held.is_empty:
            result[held.slices_in(region)] = pixels[held.y : held.bottom, held.x : held.right]
        return result

    def is_blank(self, level: int, region: Region) -> bool:
        return False

    def close(self) -> None:
        pass

    def __enter__(self) -> ArraySlide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
