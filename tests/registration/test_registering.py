"""Two slides to a transform, and never a guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wsi2ihc.concurrency import Progress
from wsi2ihc.demo.ihc_pair import Distortion, distorted, restain
from wsi2ihc.demo.render import synthetic_tissue
from wsi2ihc.errors import MissingResolutionError, OptionError
from wsi2ihc.registration import register as register_module
from wsi2ihc.registration.affine import LEAST_SCORE
from wsi2ihc.registration.landmarks import landmark_errors, match_landmarks, read_landmarks
from wsi2ihc.registration.register import Registration, RegistrationOptions, orientation, register
from wsi2ihc.registration.transform import to_fixed, to_moving
from wsi2ihc.slide import open_slide
from wsi2ihc.slide.readers.image_reader import MemorySlide

MPP = 1.0
WITH_MIRRORS = RegistrationOptions(mirror=True)


def on_background(seed: int) -> np.ndarray:
    canvas = np.full((1000, 1300, 3), 243, np.uint8)
    canvas[100:900, 150:1150] = synthetic_tissue(1000, 800, seed)
    canvas[100:260, 150:500] = 243
    return canvas


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return on_background(3)


def slide(pixels: np.ndarray, mpp: float = MPP) -> MemorySlide:
    return MemorySlide(pixels, "memory.tiff", (mpp, mpp))


def errors_um(found: Registration, truth) -> np.ndarray:
    assert found.transform is not None
    points = np.random.default_rng(0).uniform((200, 300), (1100, 850), (300, 2))
    return np.hypot(*(to_moving(found.transform, points) - truth.to_moving(points)).T)


@pytest.mark.parametrize(("angle_deg", "scale", "mirrored"), [(200.0, 1.06, False), (35.0, 0.95, True)])
def test_a_warped_restained_slide_is_found_to_a_px(
    tissue: np.ndarray, angle_deg: float, scale: float, mirrored: bool
) -> None:
    how = Distortion(angle_deg, scale, mirrored, warp_um=20, wavelength_um=600, seed=1)
    partner, truth = distorted(restain(tissue, 1, 2.0, mpp=MPP), MPP, how)
    found = register(slide(tissue), slide(partner), WITH_MIRRORS)
    assert (found.status, found.reason, found.mirrored) == ("registered", "", mirrored)
    assert abs((found.angle_deg - angle_deg + 180) % 360 - 180) < 3
    assert found.scale == pytest.approx(scale, abs=0.03)
    errors = errors_um(found, truth)
    assert np.median(errors) <= 1.0
    assert np.percentile(errors, 90) <= 3.0
    assert found.residual_um is not None
    assert found.residual_um < 2.0
    assert [stage.name for stage in found.stages[:3]] == ["coarse", "affine", "local"]
    assert found.transform is found.stages[-1].transform
    back = to_fixed(found.transform, to_moving(found.transform, [[600.0, 500.0]]))
    np.testing.assert_allclose(back, [[600, 500]], atol=0.01)


def test_another_resolution_of_the_partner(tissue: np.ndarray) -> None:
    partner, truth = distorted(restain(tissue, 2, 1.0, mpp=MPP), MPP, Distortion(90.0))
    coarse = partner[::2, ::2].copy()
    found = register(slide(tissue), slide(coarse, 2 * MPP), RegistrationOptions(local=False))
    assert found.status == "registered"
    assert [stage.name for stage in found.stages] == ["coarse", "affine"]
    # every second px was taken, so that the image lies half a px off
    assert np.median(errors_um(found, truth)) < 2.0


@pytest.fixture(scope="module")
def in_one_thread(tissue: np.ndarray) -> tuple[Registration, list[Progress]]:
    """Registration of a restained section, and its progress."""
    told: list[Progress] = []
    partner = slide(restain(tissue, 1, 2.0, mpp=MPP))
    return register(slide(tissue), partner, workers=1, progress=told.append), told


def test_threads_do_not_matter(tissue: np.ndarray, in_one_thread: tuple[Registration, list[Progress]]) -> None:
    one = in_one_thread[0]
    several = register(slide(tissue), slide(restain(tissue, 1, 2.0, mpp=MPP)), workers=3)
    assert one.transform is not None
    assert several.transform is not None
    np.testing.assert_array_equal(one.transform.matrix, several.transform.matrix)
    assert one.score == several.score


def test_a_mirrored_section_fails_where_mirrors_are_not_allowed(tissue: np.ndarray) -> None:
    partner = restain(tissue[:, ::-1].copy(), 1, 2.0, mpp=MPP)
    found = register(slide(tissue), slide(partner))
    assert found.status == "failed"
    assert found.transform is None
    assert "face down" in found.reason
    assert "--mirror" in found.reason


def test_slides_that_do_not_belong_together_fail(tissue: np.ndarray) -> None:
    found = register(slide(tissue), slide(restain(on_background(8), 1, 2.0, mpp=MPP)), WITH_MIRRORS)
    assert (found.status, found.transform, found.residual_um) == ("failed", None, None)
    assert "does not match" in found.reason
    assert found.score < LEAST_SCORE


def test_stages_take_the_time_that_they_take(tissue: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"overview_of": 0.1, "find_candidates": 0.3, "find_placement": 0.7}
    for name, seconds in parts.items():
        monkeypatch.setattr(register_module, name, slowed(getattr(register_module, name), seconds))
    started = time.perf_counter()
    found = register(slide(tissue), slide(restain(tissue, 1, 2.0, mpp=MPP)), RegistrationOptions(local=False))
    whole = time.perf_counter() - started
    coarse, affine = found.stages
    assert (coarse.name, affine.name) == ("coarse", "affine")
    assert coarse.seconds > 0.5
    assert affine.seconds > 0.7
    assert coarse.seconds + affine.seconds <= whole


def slowed(work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **more: Any) -> Any:
        time.sleep(seconds)
        return work(*arguments, **more)

    return wrapped


@pytest.mark.parametrize("which", ["H&E", "IHC"])
def test_a_slide_without_tissue_fails(tissue: np.ndarray, which: str) -> None:
    empty = np.random.default_rng(0).normal(240, 2, tissue.shape).clip(0, 255).astype(np.uint8)
    pair = (empty, tissue) if which == "H&E" else (tissue, empty)
    found = register(slide(pair[0]), slide(pair[1]))
    assert found.status == "failed"
    assert f"no tissue was found on the {which} slide" in found.reason


def test_progress_is_reported(in_one_thread: tuple[Registration, list[Progress]]) -> None:
    told = in_one_thread[1]
    assert [one.done for one in told] == list(range(len(told)))
    assert all(one.done < one.total for one in told)
    assert {"reading overviews", "searching placements", "fitting affine maps"} <= {one.note for one in told}


def test_an_unknown_resolution_names_the_option_of_its_slide(tissue: np.ndarray, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(tissue).save(tmp_path / "plain.png")
    for option, is_fixed in (("--mpp", True), ("--moving-mpp", False)):
        with open_slide(tmp_path / "plain.png", mpp_option=option) as plain:
            pair = (plain, slide(tissue)) if is_fixed else (slide(tissue), plain)
            with pytest.raises(MissingResolutionError, match=rf"plain\.png.* {option} "):
                register(*pair)


@pytest.mark.parametrize("which", ["H&E", "IHC"])
def test_a_thumbnail_is_too_coarse_but_no_wrong_option(tissue: np.ndarray, which: str) -> None:
    side = max(tissue.shape)
    times = side / 40  # at which the blocks of the other one would be six times finer
    small = np.asarray(cv2.resize(tissue, None, fx=1 / times, fy=1 / times, interpolation=cv2.INTER_AREA))
    pair = [slide(tissue), MemorySlide(small, "thumbnail", (MPP * times, MPP * times))]
    found = register(*(pair if which == "IHC" else pair[::-1]))
    assert found.status == "failed"
    assert "match" in found.reason


def test_options_are_checked() -> None:
    for spacing in (0.0, 5000.0, float("nan")):
        with pytest.raises(OptionError, match="--spacing-um"):
            RegistrationOptions(spacing_um=spacing)


def test_the_orientation_of_a_matrix() -> None:
    angle = np.radians(70)
    turn = 1.05 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert orientation(np.column_stack([turn, [1, 2]])) == (False, pytest.approx(70), pytest.approx(1.05))
    mirrored = turn @ np.diag([-1.0, 1.0])
    assert orientation(np.column_stack([mirrored, [1, 2]])) == (True, pytest.approx(70), pytest.approx(1.05))


@pytest.mark.parametrize(
    ("folder", "he", "ihc", "mpp", "bar"),
    [
        ("rat-kidney_", "Rat-Kidney_HE", "Rat-Kidney_PanCytokeratin", 5.0, 0.0035),
        ("lesions_", "Izd2-29-041-w35_HE", "Izd2-29-041-w35_proSPC", 3.5, 0.006),
    ],
)
def test_serial_sections_with_landmarks(dev_data: Path, folder: str, he: str, ihc: str, mpp: float, bar: float) -> None:
    at = dev_data / "registration" / folder
    with open_slide(at / f"{he}.jpg", mpp=mpp) as fixed, open_slide(at / f"{ihc}.jpg", mpp=mpp) as moving:
        found = register(fixed, moving)
        size = moving.info.size
    marks = match_landmarks(*(read_landmarks(at / f"{name}.csv", (mpp, mpp)) for name in (he, ihc)))
    diagonal_um = float(np.hypot(size.width, size.height)) * mpp
    rtre = {stage.name: landmark_errors(stage.transform, marks, diagonal_um).median_rtre for stage in found.stages}
    assert found.transform is not None
    assert landmark_errors(found.transform, marks, diagonal_um).median_rtre <= bar
    assert rtre["local"] <= rtre["affine"] + 0.0005
