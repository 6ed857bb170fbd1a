"""The densities that two stains share."""

from __future__ import annotations

import numpy as np

from wsi2ihc.registration.overview import structure

HEMATOXYLIN = np.array([0.650, 0.704, 0.286])
DAB = np.array([0.268, 0.570, 0.776])


def stained(densities: np.ndarray, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """An image of 4×4 px whose optical densities over the background are those given."""
    return np.broadcast_to(np.rint(np.array(background) * 10**-densities), (4, 4, 3)).astype(np.uint8)


def test_background_of_any_color_has_no_density() -> None:
    for background in ((255, 255, 255), (219, 215, 210)):
        assert (structure(np.full((4, 4, 3), background, np.uint8), background, "he") == 0).all()
    assert (structure(np.full((4, 4, 3), 250, np.uint8), (230, 230, 230), "ihc") == 0).all(), "brighter than background"


def test_hematoxylin_is_separated_from_the_second_stain() -> None:
    unit = HEMATOXYLIN / np.linalg.norm(HEMATOXYLIN)
    nuclei = structure(stained(0.5 * unit), (255, 255, 255), "ihc")
    brown = structure(stained(0.5 * DAB / np.linalg.norm(DAB)), (255, 255, 255), "ihc")
    np.testing.assert_allclose(nuclei[..., 1], 0.5, atol=0.01)
    np.testing.assert_allclose(nuclei[..., 0], 0.5 * unit.mean(), atol=0.01)
    assert brown[..., 1].max() < 0.01
    assert brown[..., 0].min() > 0.2


def test_densities_are_relative_to_the_background_of_the_slide() -> None:
    densities = np.array([0.3, 0.4, 0.2])
    bright = structure(stained(densities), (255, 255, 255), "he")
    dull = structure(stained(densities, (200, 205, 190)), (200, 205, 190), "he")
    np.testing.assert_allclose(dull, bright, atol=0.01)
