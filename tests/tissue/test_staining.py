"""Whether a slide looks like H&E."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from tissue_synthetic import (
    BACKGROUND,
    DAB,
    EOSIN,
    HE,
    HEMATOXYLIN,
    MPP,
    SHAPE,
    bare_background,
    disc,
    stained,
    to_image,
)

from wsi2ihc.slide import open_slide
from wsi2ihc.tissue import detect_tissue, find_tissue, green_excess, staining_warning

Dyes = dict[tuple[float, float, float], float]
EVERYWHERE = np.ones(SHAPE, np.bool_)


def stain(dyes: Dyes) -> np.ndarray:
    return to_image(stained(bare_background(), disc(SHAPE, (250, 200), 100), dyes))


@pytest.mark.parametrize("dyes", [HE, {HEMATOXYLIN: 0.3, EOSIN: 0.1}, {EOSIN: 0.4}, {HEMATOXYLIN: 0.05, EOSIN: 0.1}])
def test_he_causes_no_warning(dyes: Dyes) -> None:
    assert staining_warning(stain(dyes), EVERYWHERE, BACKGROUND) is None


GRAY, BLUE = (1.0, 1.0, 1.0), (1.0, 0.6, 0.3)


@pytest.mark.parametrize("dyes", [{HEMATOXYLIN: 0.1, DAB: 0.3}, {DAB: 0.2}, {GRAY: 0.2}, {BLUE: 0.3}])
def test_ihc_gray_and_blue_causes_a_warning(dyes: Dyes) -> None:
    warning = staining_warning(stain(dyes), EVERYWHERE)
    assert warning is not None
    assert "does not look like H&E" in warning


def test_the_excess_follows_from_the_dyes_and_not_from_the_amount_of_background() -> None:
    excess = green_excess(stain({EOSIN: 0.2, DAB: 0.2}), EVERYWHERE, BACKGROUND)
    assert excess == pytest.approx(2 * (0.99 + 0.57) / (0.07 + 0.11 + 0.27 + 0.78), rel=0.02)


def test_bare_background_is_not_evaluated() -> None:
    assert green_excess(to_image(bare_background()), EVERYWHERE) is None
    assert staining_warning(stain({DAB: 0.3}), ~EVERYWHERE) is None


@pytest.mark.parametrize(
    ("name", "mpp", "warns"),
    [
        ("CMU-1-Small-Region.svs", None, False),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, False),
        ("dicom_jpeg/wsm_jpeg.dcm", None, False),
        ("dicom_jp2k/wsm_jp2k.dcm", None, False),
        ("kidney-48-5.tif", 8.0, True),
    ],
)
def test_real_slides(dev_data: Path, name: str, mpp: float | None, warns: bool) -> None:
    with open_slide(dev_data / "slides" / name, mpp=mpp) as slide:
        mask = detect_tissue(slide)
    assert not mask.is_empty
    assert any("H&E" in warning for warning in mask.warnings) == warns


def test_real_thumbnails_and_serial_sections(dev_data: Path) -> None:
    paths = [
        *sorted((dev_data / "thumbs").glob("*rgb.png")),
        *(dev_data / "thumbs" / name for name in ("hs2p-slide.jpg", "pen_red.png", "slide-pen.png")),
        *sorted((dev_data / "registration").glob("*/*.jpg")),
    ]
    alarms = []
    for path in paths:
        overview = np.ascontiguousarray(cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])
        tissue, background, _ = find_tissue(overview, MPP)
        if staining_warning(overview, tissue, background):
            alarms.append(path.stem)
    assert sorted(alarms) == ["Izd2-29-041-w35_proSPC", "Rat-Kidney_PanCytokeratin"]
