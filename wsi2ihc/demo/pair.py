"""Synthetic H&E slides and their IHC partners as files, with landmarks that are true."""

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
SECOND_HE_NAME, SECOND_IHC_NAME = "he2.tiff", "ihc2.tiff"
MANIFEST_NAME = "manifest.csv"
STUDY_NAMES = (
    HE_NAME, IHC_NAME, HE_LANDMARKS_NAME, IHC_LANDMARKS_NAME, SECOND_HE_NAME, SECOND_IHC_NAME, MANIFEST_NAME,
)  # fmt: skip
"""All that `make_demo_study` writes."""

MANIFEST = """patient_id,slide_id,he_path,ihc_path,her2,split,landmarks
P1,S1,he.tiff,ihc.tiff,3+,train,he.csv;ihc.csv
P2,S2,he2.tiff,ihc2.tiff,3+,validation,
"""

LANDMARKS = 60
DISTORTION = Distortion(angle_deg=14.0, scale=1.01, shift_um=(60.0, -40.0), warp_um=25.0, wavelength_um=700.0)
"""Some turn, and a warp such as mounting leaves behind."""

SECOND_DISTORTION = Distortion(angle_deg=-35.0, shift_um=(20.0, 30.0), warp_um=15.0, wavelength_um=600.0)
FIRST_SIZE, SECOND_SIZE, SECOND_SEED = (3600, 2700), (2400, 1800), 5

STAGE = "making slides"


def make_demo_study(
    folder: Path,
    *,
    sizes: tuple[tuple[int, int], tuple[int, int]] = (FIRST_SIZE, SECOND_SIZE),
    on_progress: ProgressCallback | None = None,
) -> None:
    """Write what a paired data set can be made of: `make_demo_pair`, the pair of a second patient, and a manifest.

    Parameters
    ----------
    folder
        Where to write; it has to be there. Files of `STUDY_NAMES` are replaced.
    sizes
        Width and height of either H&E slide in px of 0.5 µm.
    on_progress
        Called after each of the four slides.

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
    names = SECOND_HE_NAME, SECOND_IHC_NAME
    _write_slides(folder, names, sizes[1], SECOND_SEED, 2.5, SECOND_DISTORTION, from_slide(2))
    with published(folder / MANIFEST_NAME, overwrite=True) as partial:
        partial.write_text(MANIFEST, encoding="utf-8")


def make_demo_pair(
    folder: Path,
    *,
    size: tuple[int, int] = FIRST_SIZE,
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
    names = HE_NAME, IHC_NAME
    layout, truth = _write_slides(folder, names, size, seed, strength, distortion, on_progress or silent)
    places_um = _places(layout, np.random.default_rng(seed)) * MPP
    _write_landmarks(folder / HE_LANDMARKS_NAME, places_um)
    _write_landmarks(folder / IHC_LANDMARKS_NAME, truth.to_moving(places_um))
    return truth


def _write_slides(
    folder: Path,
    names: tuple[str, str],
    size: tuple[int, int],
    seed: int,
    strength: float,
    distortion: Distortion,
    report: ProgressCallback,
) -> tuple[Layout, Truth]:
    """The H&E slide and its partner, under these names; where tissue is, and where places lie on the partner."""
    width, height = size
    if min(width, height) < MIN_SIDE_PX:
        raise OptionError(f"a demo slide needs at least {MIN_SIDE_PX} px each way, not {width}×{height}")
    scene = synthetic_scene(Size(width, height), seed)
    with ThreadPoolExecutor(WORKERS) as workers:
        strips = [Region(0, y, width, min(BAND_PX, height - y)) for y in range(0, height, BAND_PX)]
        he = np.concatenate(list(workers.map(lambda strip: paint(scene, strip), strips)))
        write_slide_file(folder / names[0], Size(width, height), _bands(he), workers, TITLE)
        report(Progress(STAGE, 1, 2, "slide"))
        turned, truth = distorted(he, MPP, distortion)
        ihc = restain(turned, seed, strength)
        partner_size = Size(ihc.shape[1], ihc.shape[0])
        write_slide_file(folder / names[1], partner_size, _bands(ihc), workers, "wsi2ihc synthetic IHC")
        report(Progress(STAGE, 2, 2, "slide"))
    return scene.layout, truth


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
