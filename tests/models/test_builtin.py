"""The built-in generators, which need no torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import separate_stains

from wsi2ihc.geometry import RGBImage
from wsi2ihc.models.registry import EOSIN, HEMATOXYLIN, WHITE_LEVEL, counterstain, identity, load_model, make_translator


def stained(hematoxylin: float, eosin: float) -> tuple[int, ...]:
    """The color of so much of either stain on white."""
    stains = np.array([HEMATOXYLIN, EOSIN]) / np.linalg.norm([HEMATOXYLIN, EOSIN], axis=1, keepdims=True)
    density = np.array([hematoxylin, eosin]) @ stains
    return tuple(int(level) for level in np.rint(WHITE_LEVEL * np.exp(-density)))


def one(color: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(level) for level in counterstain(np.array([[[color]]], np.uint8))[0, 0, 0])


def test_against_the_color_deconvolution_of_scikit_image() -> None:
    """The look-up tables give what unmixing in floating point gives, to a gray level."""
    image = np.random.default_rng(0).integers(1, 246, (1, 200, 300, 3), dtype=np.uint8)
    stains = np.array([HEMATOXYLIN, EOSIN]) / np.linalg.norm([HEMATOXYLIN, EOSIN], axis=1, keepdims=True)
    unmixing = np.linalg.inv(np.vstack([stains, np.cross(*stains)]))
    # separate_stains takes intensities of 1e-6 to 1 and gives amounts in units of -ln(1e-6), none below 0.
    amounts = separate_stains(image[0] / WHITE_LEVEL, unmixing)[..., :1] * -np.log(1e-6)
    expected = WHITE_LEVEL * np.exp(-amounts * stains[0])
    # Blue follows from the rounded green level, by up to 0.5 · 0.37 · blue / green; with its own rounding that is below
    # 1 from green level 60 on, and below 1.5 from 20 on.
    difference = np.abs(counterstain(image)[0].astype(float) - expected)
    for least_green, bound in ((60, 1.0), (20, 1.5)):
        light = expected[..., 1] > least_green
        assert light.sum() > 20_000
        assert difference[light].max() <= bound


def test_eosin_is_removed_and_hematoxylin_remains() -> None:
    assert max(abs(a - b) for a, b in zip(one(stained(0, 0.6)), one(stained(0, 0)), strict=True)) <= 1
    nucleus = stained(1.2, 0)
    assert max(abs(a - b) for a, b in zip(one(nucleus), nucleus, strict=True)) <= 1
    both = one(stained(1.2, 0.5))
    assert max(abs(a - b) for a, b in zip(both, nucleus, strict=True)) <= 2


def test_nuclei_are_blue_on_a_paler_ground() -> None:
    """Colors picked from a real H&E slide: a nucleus, stroma, an erythrocyte."""
    nucleus, stroma, erythrocyte = one((70, 40, 100)), one((225, 120, 150)), one((200, 40, 60))
    assert nucleus[2] > nucleus[0] > nucleus[1]
    assert sum(nucleus) + 200 < sum(stroma)
    assert min(stroma) > 200
    assert min(erythrocyte) > 150


def test_background_is_unchanged() -> None:
    for level in range(235, 256):
        output = one((level, level, level))
        assert max(output) - min(output) <= 8
        assert max(abs(value - min(level, WHITE_LEVEL)) for value in output) <= 5


def test_ink_and_dirt_stay_dark_or_fade_to_blue() -> None:
    assert max(one((0, 0, 0))) <= 5
    assert max(one((30, 30, 30))) < 120
    for ink in ((20, 110, 80), (30, 50, 150), (200, 20, 30), (0, 0, 0), (90, 90, 90)):
        red, green, blue = one(ink)
        assert blue >= red >= green or blue == red == green


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_pixels_are_independent(count: int, height: int, width: int, seed: int) -> None:
    windows = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    output = counterstain(windows)
    assert output.shape == windows.shape
    np.testing.assert_array_equal(counterstain(windows[:, ::-1, ::2])[:, ::-1], output[:, :, ::2])


def test_blocks_do_not_change_the_result(image: RGBImage) -> None:
    wide = np.concatenate([image] * 70, 1)[:5]
    np.testing.assert_array_equal(
        counterstain(wide[np.newaxis])[0, :, 1000:2000], counterstain(image[:5][np.newaxis])[0]
    )
    tall = counterstain(image[np.newaxis])[0]
    np.testing.assert_array_equal(tall[450:], counterstain(image[np.newaxis, 450:])[0])


def test_the_input_is_unchanged() -> None:
    windows = np.full((1, 8, 8, 3), 100, np.uint8)
    windows.flags.writeable = False
    assert counterstain(windows).flags.writeable
    assert identity(windows) is windows
    assert (windows == 100).all()


def test_built_in_models_are_translators(image: RGBImage) -> None:
    for name, function in (("identity", identity), ("counterstain", counterstain)):
        translator = make_translator(load_model(name), "cuda", "bf16", exact=False)
        assert (translator.halo_px, translator.stride_px, translator.multiple_px, translator.is_exact) == (
            0,
            1,
            1,
            True,
        )
        assert translator.bytes_per_px > 0
        np.testing.assert_array_equal(translator(image[np.newaxis]), function(image[np.newaxis]))


def test_no_torch_is_imported_for_them() -> None:
    code = (
        "import sys, numpy as np\n"
        "from wsi2ihc.models.registry import list_models, load_model\n"
        "from wsi2ihc.models.registry import make_translator\n"
        "assert [model.name for model in list_models()]\n"
        "translate = make_translator(load_model('counterstain'), exact=True)\n"
        "translate(np.zeros((1, 4, 4, 3), np.uint8)); load_model('identity').dependency\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
