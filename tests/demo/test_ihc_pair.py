"""The restained partner: what its colors are, and that its truth is true."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.demo.ihc_pair import IHC_BACKGROUND, Distortion, GroundTruthWarp, distorted, restain
from wsi2ihc.demo.render import BACKGROUND
from wsi2ihc.geometry import RGBImage

MPP = 0.5


@pytest.fixture(scope="module")
def he() -> RGBImage:
    image = np.full((500, 700, 3), BACKGROUND, np.uint8)
    image[80:420, 100:600] = synthetic_tissue(500, 340, seed=4)
    return image


def brown(image: RGBImage) -> npt.NDArray[np.bool_]:
    """Where red is well above blue: only DAB is so on these slides."""
    return image[..., 0].astype(int) - image[..., 2] > 25


def test_the_same_seed_gives_the_same_slide_and_another_one_another(he: RGBImage) -> None:
    first = restain(he, 1)
    assert first.shape == he.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, restain(he, 1))
    assert np.abs(first.astype(int) - restain(he, 2)).mean() > 2


def test_more_strength_is_more_and_darker_brown(he: RGBImage) -> None:
    images = [restain(he, 3, strength) for strength in (0, 1, 2, 3)]
    shares = [float(brown(image)[80:420, 100:600].mean()) for image in images]
    assert shares[0] < 0.001
    assert shares[1] < shares[2] < shares[3]
    assert shares[3] > 0.1
    assert images[3].mean() < images[2].mean() < images[0].mean()


def test_background_stays_bright_and_nuclei_stay_dark(he: RGBImage) -> None:
    image = restain(he, 5, 0).astype(int)
    assert np.abs(image[:60].mean(axis=(0, 1)) - IHC_BACKGROUND).max() < 2
    tissue = he[80:420, 100:600].astype(int)
    nuclei = tissue[..., 0] < 110
    assert nuclei.mean() > 0.05
    red = image[80:420, 100:600, 0]
    assert red[nuclei].mean() < red[~nuclei].mean() - 30


def test_eosin_is_removed(he: RGBImage) -> None:
    def pink(image: RGBImage) -> float:
        tissue = image[80:420, 100:600].astype(int)
        return float(np.mean(tissue[..., 0] - tissue[..., 1]))

    assert pink(he) > 40
    assert pink(restain(he, 7, 0)) < 12


distortions = st.builds(
    Distortion,
    angle_deg=st.floats(-180, 180),
    scale=st.floats(0.9, 1.1),
    mirrored=st.booleans(),
    shift_um=st.tuples(st.floats(-100, 100), st.floats(-100, 100)),
    warp_um=st.floats(0, 25),
    wavelength_um=st.floats(500, 1500),
    seed=st.integers(0, 1000),
)


@settings(max_examples=30, deadline=None)
@given(distortions, st.integers(0, 2**32 - 1))
def test_the_warp_is_invertible(distortion: Distortion, seed: int) -> None:
    try:
        truth = truth_of(distortion)
    except ValueError as error:  # that some warps are refused is tested below
        if "too steep" not in str(error):
            raise
        reject()
    points = np.random.default_rng(seed).uniform(0, 100, (50, 2))
    assert np.abs(truth.to_fixed(truth.to_moving(points)) - points).max() < 1e-5
    assert np.abs(truth.to_moving(truth.to_fixed(points)) - points).max() < 1e-5


def truth_of(distortion: Distortion) -> GroundTruthWarp:
    return distorted(np.zeros((20, 20, 3), np.uint8), 5.0, distortion)[1]


def blobs(points_px: npt.NDArray[np.float64], shape: tuple[int, int]) -> RGBImage:
    """Dark Gaussian spots on white with their centers at continuous px positions."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    image = np.full(shape, 250.0)
    for px, py in points_px:
        image -= 200 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 3.0**2))
    return np.repeat(np.clip(np.rint(image), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(
    "distortion",
    [
        Distortion(),
        Distortion(angle_deg=137.3, scale=1.04, mirrored=True, shift_um=(13.7, -5.2)),
        Distortion(angle_deg=-31, scale=0.97, warp_um=12, wavelength_um=200, seed=8),
    ],
)
def test_drawn_points_agree_with_the_ground_truth(distortion: Distortion) -> None:
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(40, 270, 45), np.arange(40, 220, 45)), axis=-1).reshape(-1, 2)
    points_px = grid + rng.uniform(-5, 5, grid.shape)
    partner, truth = distorted(blobs(points_px, (250, 300)), MPP, distortion, (250, 250, 250))
    expected_px = truth.to_moving(points_px * MPP) / MPP
    dark = 250.0 - partner[..., 0]
    for px, py in expected_px:
        left, top = int(px) - 11, int(py) - 11
        window = dark[top : top + 23, left : left + 23]
        y, x = np.mgrid[top : top + 23, left : left + 23] + 0.5
        center = np.array([(window * x).sum(), (window * y).sum()]) / window.sum()
        # centers of mass of spots that the warp stretches are a little off themselves
        assert np.abs(center - (px, py)).max() < 0.05


def test_the_warp_has_the_requested_length_and_shift() -> None:
    plain = truth_of(Distortion(shift_um=(7, -3)))
    assert np.allclose(plain.matrix, [[1, 0, 7 + 7], [0, 1, -3 + 3]])
    size_um = 2000.0
    image = np.zeros((100, 100, 3), np.uint8)
    warped = distorted(image, 20.0, Distortion(warp_um=30, wavelength_um=600, seed=2))[1]
    grid = np.stack(np.meshgrid(*[np.linspace(0, size_um, 150)] * 2), axis=-1).reshape(-1, 2)
    straight = grid @ warped.matrix[:, :2].T + warped.matrix[:, 2]
    lengths = np.linalg.norm(warped.to_fixed(straight) - grid, axis=1)
    assert lengths.max() == pytest.approx(30, rel=0.03)


def test_the_canvas_contains_the_complete_image(he: RGBImage) -> None:
    partner, truth = distorted(he, MPP, Distortion(angle_deg=45, shift_um=(40, 0), warp_um=5, seed=1), BACKGROUND)
    corners = truth.to_moving(np.array([[0, 0], [350, 0], [0, 250], [350, 250]], np.float64)) / MPP
    assert (corners >= 0).all()
    assert (corners <= partner.shape[1::-1]).all()
    for corner in (partner[:20, :20], partner[-20:, -20:]):
        assert np.array_equal(corner, np.broadcast_to(np.array(BACKGROUND, np.uint8), corner.shape))


def test_a_warp_that_could_fold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"200 µm is too steep for waves of 400 µm"):
        truth_of(Distortion(warp_um=200, wavelength_um=400))
