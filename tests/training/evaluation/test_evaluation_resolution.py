"""Models on patches of another resolution than theirs."""

from __future__ import annotations

import numpy as np
import pytest
from make_images import stained_image

from wsi2ihc.errors import OptionError
from wsi2ihc.geometry import RGBBatch
from wsi2ihc.training.evaluation.methods import Method, at_model_resolution


def model(mpp: float | None, seen: list[tuple[int, ...]], multiple_px: int = 16) -> Method:
    def negative(images: RGBBatch) -> RGBBatch:
        seen.append(images.shape)
        return 255 - images

    return Method("m", "model", negative, multiple_px, 10, {"mpp": mpp})


@pytest.mark.parametrize(("mpp", "patch_mpp"), [(0.5, 0.46), (0.5, 0.5), (0.5, None), (None, 0.25)])
def test_no_resampling_at_the_same_resolution(mpp: float | None, patch_mpp: float | None) -> None:
    method = model(mpp, [])
    assert at_model_resolution(method, patch_mpp) is method


@pytest.mark.parametrize(("mpp", "scaled"), [(0.5, (1, 48, 64, 3)), (0.125, (1, 192, 208, 3)), (0.3, (1, 80, 96, 3))])
def test_patches_are_resampled_for_the_model_and_back(mpp: float, scaled: tuple[int, ...]) -> None:
    seen: list[tuple[int, ...]] = []
    image = stained_image(1, 112)[:96, :103]
    method = at_model_resolution(model(mpp, seen), 0.25)
    assert method.translate is not None
    (answer,) = method.translate(image[np.newaxis])
    assert seen == [scaled], "padded to multiples of 16"
    assert answer.shape == image.shape
    assert np.abs(answer.astype(int) - (255 - image.astype(int))).mean() < 4
    assert (method.multiple_px, method.halo_px) == (1, {0.5: 20, 0.125: 5, 0.3: 12}[mpp])


@pytest.mark.parametrize("patch_mpp", [0.02, 5.0])
def test_very_different_resolution_is_an_error(patch_mpp: float) -> None:
    with pytest.raises(OptionError, match="too different for an evaluation"):
        at_model_resolution(model(0.5, []), patch_mpp)
