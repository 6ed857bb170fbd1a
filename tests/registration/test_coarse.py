"""Placements from the shape of the tissue."""

from __future__ import annotations

import numpy as np
import pytest

from wsi2ihc.demo.ihc_pair import Distortion, distorted, restain
from wsi2ihc.demo.render import synthetic_tissue
from wsi2ihc.registration.coarse import CANDIDATES, find_candidates
from wsi2ihc.registration.overview import OverviewPair, overview_of
from wsi2ihc.registration.transform import Transform, to_moving
from wsi2ihc.slide.readers.image_reader import MemorySlide

MPP = 2.0


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """A section with an outline of its own, on background."""
    canvas = np.full((600, 800, 3), 243, np.uint8)
    canvas[100:500, 150:650] = synthetic_tissue(500, 400, 3)
    canvas[100:240, 150:330] = 243
    return canvas


def overview(pixels: np.ndarray):
    return overview_of(MemorySlide(pixels, "memory", (MPP, MPP)))


@pytest.mark.parametrize(("angle_deg", "scale", "mirrored"), [(0, 1.0, False), (137, 0.93, False), (256, 1.08, True)])
def test_the_best_candidate_is_near_the_truth(
    tissue: np.ndarray, angle_deg: float, scale: float, mirrored: bool
) -> None:
    partner, truth = distorted(restain(tissue, 1, 2.0, mpp=MPP), MPP, Distortion(angle_deg, scale, mirrored))
    pair = OverviewPair(overview(tissue), overview(partner))
    candidates = find_candidates(pair)
    assert 1 <= len(candidates) <= CANDIDATES
    assert [one.score for one in candidates] == sorted((one.score for one in candidates), reverse=True)
    best = candidates[0]
    assert best.mirrored == mirrored
    points = np.random.default_rng(0).uniform((400, 300), (1200, 900), (50, 2))
    errors = np.hypot(*(to_moving(pair.on_slides(Transform(best.matrix)), points) - truth.to_moving(points)).T)
    assert np.median(errors) < 0.08 * 1600


def test_candidates_are_clearly_different(tissue: np.ndarray) -> None:
    pair = OverviewPair(overview(tissue), overview(tissue))
    candidates = find_candidates(pair)
    distances = [
        pair.fixed.distance_um(one.matrix, other.matrix)
        for number, one in enumerate(candidates)
        for other in candidates[:number]
    ]
    assert min(distances) > 0.1 * pair.longest_um
