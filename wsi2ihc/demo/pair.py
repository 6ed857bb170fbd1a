"""A synthetic H&E slide and its IHC partner as files, with landmarks that are true."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..arrays import RGBImage
from ..errors import OptionError
from ..geometry import Region, Size
from ..progress import Progress, ProgressCallback, silent
from ..pyramid import published
from .layout import Layout
from .restained import Distortion, Truth, distorted, restain
from .shapes import Floats
from .slide_file import BAND_PX, MIN_SIDE_PX, MPP, TITLE, WORKERS, write_slide_file
from .synthetic import paint, synthetic_scene

HE_NAME, IHC_NAME = "he.tiff", "ihc.tiff"
HE_LANDMARKS_NAME, IHC_LANDMARKS_NAME = "he.csv", "ihc.csv"

LANDMARKS = 60
DISTORTION = Distortion(angle_deg=14.0, scale=1.01, shift_um=(60.0, -40.0), warp_um=25.0, wavelength_um=700.0)
"""Some turn, and a warp such as mounting leaves behind."""

STAGE = "making the pair"


def make_demo_pair(
    folder: Path,
    *,
    size: tuple[int, int] = (3600, 2700),
    seed: int = 1,
    strength: float = 2.5,
    distortion: Distortion = DISTORTION,
    on_progress: ProgressCallback | None = None,
) -> Truth:
    """Write a synthetic H&E slide, the same section as IHC, turned and warped, and landmarks on both.

    The files are ``he.tiff``, ``ihc.tiff``, ``he.csv`` and ``ihc.csv``; those that are there are replaced. Both
    slides are held in memory: about 80 bytes per px of the larger one.

    Parameters
    ----------
    folder
        Where to write; it has to be there.
    size
        Width and height of the H&E slide in px of 0.5 µm, each at least 256.
    seed
        Of everything drawn at random.
    strength
        Of the DAB, from 0 to 3, as for `restain`.
    distortion
        How the IHC slide lies.
    on_progress
        Called after each of the two slides.

    Returns
    -------
    Truth
        Where each place of the H&E slide lies on the IHC slide.

    Raises
    ------
    OptionError
        If the size is too small for a slide.
    OutputError
        If a file cannot be written.
    """
    width, height = size
    if min(width, height) < MIN_SIDE_PX:
        raise OptionError(f"a demo slide needs at least {MIN_SIDE_PX} px each way, not {width}×{height}")
    report = on_progress or silent
    scene = synthetic_scene(Size(width, height), seed)
    with ThreadPoolExecutor(WORKERS) as workers:
        strips = [Region(0, y, width, min(BAND_PX, height - y)) for y in range(0, height, BAND_PX)]
        he = np.concatenate(list(workers.map(lambda strip: paint(scene, strip), strips)))
        write_slide_file(folder / HE_NAME, Size(width, height), _bands(he), workers, TITLE)
        report(Progress(STAGE, 1, 2, "slide"))
        turned, truth = distorted(he, MPP, distortion)
        ihc = restain(turned, seed, strength)
        partner_size = Size(ihc.shape[1], ihc.shape[0])
        write_slide_file(folder / IHC_NAME, partner_size, _bands(ihc), workers, "wsi2ihc synthetic IHC")
        report(Progress(STAGE, 2, 2, "slide"))
    places_um = _places(scene.layout, np.random.default_rng(seed)) * MPP
    _write_landmarks(folder / HE_LANDMARKS_NAME, places_um)
    _write_landmarks(folder / IHC_LANDMARKS_NAME, truth.to_moving(places_um))
    return truth


def _bands(image: RGBImage) -> Iterator[RGBImage]:
    for y in range(0, image.shape[0], BAND_PX):
        yield image[y : y + BAND_PX]


def _places(layout: Layout, rng: np.random.Generator) -> Floats:
    """Up to `LANDMARKS` places on tissue, (N, 2) px."""
    points = rng.uniform(0, (layout.size.width, layout.size.height), (50 * LANDMARKS, 2))
    return points[layout.at(layout.tissue_px, points) > 0][:LANDMARKS]


def _write_landmarks(path: Path, points_um: Floats) -> None:
    """In level-0 px whose whole numbers are middles of px."""
    rows = [f"{number},{x:.3f},{y:.3f}" for number, (x, y) in enumerate(points_um / MPP - 0.5, start=1)]
    with published(path, overwrite=True) as partial:
        partial.write_text("\n".join([",X,Y", *rows, ""]), encoding="utf-8")
