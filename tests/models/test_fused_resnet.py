"""The fused ResNet computes the network's own function, and equal pixels in windows of any size and place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.errors import ModelError
from wsi2ihc.geometry import RGBImage
from wsi2ihc.models import fused_resnet
from wsi2ihc.models.fused_resnet import FusedResnet, can_fuse, to_network
from wsi2ihc.models.inference import peak_bytes
from wsi2ihc.models.networks import ResnetGenerator, UnetGenerator
from wsi2ihc.models.receptive_field import dependency

Strong = Callable[..., ResnetGenerator]

VARIANTS = [
    {"blocks": 9},
    {"blocks": 6, "dropout": False},
    {"blocks": 1, "upsampling": "bilinear"},
    {"blocks": 3, "norm": "instance", "upsampling": "bilinear"},
]


def windows_of(image: RGBImage, rows: int, columns: int, y: int = 0, x: int = 0) -> torch.Tensor:
    return torch.from_numpy(image[y : y + rows, x : x + columns].copy())[None]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("by_strips", [True, False], ids=["strips", "whole"])
def test_fused_and_original_networks_agree(
    strong: Strong, image: RGBImage, options: dict[str, object], by_strips: bool
) -> None:
    module = strong(**options)
    fused = FusedResnet(module, by_strips=by_strips)
    halo = fused.halo_px
    reach = dependency(module)
    assert reach.radius_px <= halo < reach.radius_px + 3 * reach.stride_px
    windows = windows_of(image, 2 * halo + 40, 2 * halo + 64)
    with torch.inference_mode():
        values = module(to_network(windows))[:, :, halo:-halo, halo:-halo].permute(0, 2, 3, 1)
        output = fused(windows)
    assert output.shape == (1, 40, 64, 3)
    assert float(values.std()) > 0.2
    # Rounding is the only difference: half a gray level, and what float32 leaves.
    assert float((output - (values + 1) * 127.5).abs().max()) < 0.51


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strips_change_no_bit(
    strong: Strong, image: RGBImage, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = strong(blocks=3)
    windows = windows_of(image, 640, 720)
    with torch.inference_mode():
        monkeypatch.setattr(fused_resnet, "STRIP_BYTES", 1 << 40)
        expected = FusedResnet(module, dtype)(windows)
        for size in (1 << 19, 3 << 19):
            monkeypatch.setattr(fused_resnet, "STRIP_BYTES", size)
            torch.testing.assert_close(FusedResnet(module, dtype)(windows), expected, rtol=0, atol=0)
        whole = FusedResnet(module, dtype, by_strips=False)(windows)
    torch.testing.assert_close(whole, expected, rtol=0, atol=0)


def test_images_of_a_batch_are_independent(strong: Strong, image: RGBImage) -> None:
    fused = FusedResnet(strong(blocks=2))
    windows = torch.cat([windows_of(image, 320, 320, y, x) for y, x in ((0, 0), (400, 40), (100, 600))])
    with torch.inference_mode():
        together = fused(windows)
        for i in range(3):
            torch.testing.assert_close(fused(windows[i : i + 1])[0], together[i], rtol=0, atol=0)


@given(
    rows=st.integers(60, 150),
    columns=st.integers(60, 150),
    y=st.integers(0, 75),
    x=st.integers(0, 100),
    upsampling=st.sampled_from(["transposed", "bilinear"]),
)
@settings(max_examples=30, deadline=None)
def test_windows_of_any_size_and_position_give_the_same_bits(
    strong: Strong, image: RGBImage, rows: int, columns: int, y: int, x: int, upsampling: str
) -> None:
    """Tiled equals whole: in float32, to the bit, on the stride."""
    fused, whole = _narrow(strong, image, upsampling)
    smallest = -(-fused.smallest_window_px // 4)
    rows, columns = 4 * max(smallest, rows), 4 * max(smallest, columns)
    y, x = min(4 * y, 900 - rows), min(4 * x, 1000 - columns)
    with torch.inference_mode():
        part = fused(windows_of(image, rows, columns, y, x))
    halo = fused.halo_px
    expected = whole[:, y : y + rows - 2 * halo, x : x + columns - 2 * halo]
    torch.testing.assert_close(part, expected, rtol=0, atol=0)


_kept: dict[str, tuple[FusedResnet, torch.Tensor]] = {}


def _narrow(strong: Strong, image: RGBImage, upsampling: str = "transposed") -> tuple[FusedResnet, torch.Tensor]:
    if upsampling not in _kept:
        fused = FusedResnet(strong(blocks=9, width=8, upsampling=upsampling))
        with torch.inference_mode():
            _kept[upsampling] = fused, fused(windows_of(image, 900, 1000))
    return _kept[upsampling]


def test_other_strides_or_halos_change_the_output(strong: Strong, image: RGBImage) -> None:
    """The control: with these weights, a wrong halo or place shows."""
    fused, whole = _narrow(strong, image)
    halo = fused.halo_px
    with torch.inference_mode():
        shifted = fused(windows_of(image, 500, 500, 102, 102)).int()
        short = windows_of(image, 500, 500, 100, 100)
        short[:, : halo - 16], short[:, :, : halo - 16] = 243, 243
        cut = fused(short).int()
    expected = whole.int()
    assert (shifted - expected[:, 102 : 602 - 2 * halo, 102 : 602 - 2 * halo]).abs().max() > 10
    assert (cut - expected[:, 100 : 600 - 2 * halo, 100 : 600 - 2 * halo]).abs().max() > 2


@pytest.mark.parametrize(("width", "upsampling"), [(64, "transposed"), (32, "bilinear")])
def test_wide_networks_are_exact_to_the_bit(strong: Strong, image: RGBImage, width: int, upsampling: str) -> None:
    fused = FusedResnet(strong(width=width, blocks=9, upsampling=upsampling))
    halo = fused.halo_px
    with torch.inference_mode():
        whole = fused(windows_of(image, 2 * halo + 132, 2 * halo + 124))
        part = fused(windows_of(image, 2 * halo + 92, 2 * halo + 44, 36, 72))
    torch.testing.assert_close(part, whole[:, 36 : 36 + 92, 72 : 72 + 44], rtol=0, atol=0)


def test_bfloat16_is_close_to_float32(strong: Strong) -> None:
    """Random weights are a harder case than trained ones, which differ by a gray level at most."""
    tissue = synthetic_tissue(480, 480, seed=5)
    module = strong(blocks=9, width=64, on=tissue)
    windows = torch.from_numpy(tissue[:272, :272].copy())[None]
    with torch.inference_mode():
        exact = FusedResnet(module)(windows).int()
        difference = (FusedResnet(module, torch.bfloat16)(windows).int() - exact).abs().float()
    assert 25 < float(exact.float().std()) < 60
    assert float(difference.mean()) <= 0.5
    assert float(difference.flatten().quantile(0.999)) <= 3


def test_unsupported_networks_are_not_fused(strong: Strong) -> None:
    assert not can_fuse(UnetGenerator(5, 1).eval())
    assert not can_fuse(ResnetGenerator(1, 1, "instance").eval())
    assert not can_fuse(ResnetGenerator(1, 1).train())
    with pytest.raises(ModelError, match="not a local function"):
        FusedResnet(ResnetGenerator(1, 1).train())


def test_fusing_changes_neither_the_network_nor_the_random_state(strong: Strong) -> None:
    module = strong(blocks=1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    FusedResnet(module, torch.bfloat16)
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_that_are_not_finite_are_refused(strong: Strong, image: RGBImage, dtype: torch.dtype) -> None:
    """Wherever it arises: no activation on the way hides it."""
    module = strong(blocks=1)
    for index in (1, 4, 11, 14):
        broken = FusedResnet(_with_nan(module, index), dtype)
        with torch.inference_mode(), pytest.raises(ModelError, match="not finite"):
            broken(windows_of(image, 320, 320))


def _with_nan(module: ResnetGenerator, index: int) -> ResnetGenerator:
    broken = ResnetGenerator(1, 16).eval()
    broken.load_state_dict(module.state_dict())
    norm = broken.model[index + 1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.bias[0] = float("nan")
    return broken


@pytest.mark.parametrize(
    ("dtype", "width", "side"), [(torch.float32, 16, 800), (torch.bfloat16, 16, 896), (torch.bfloat16, 32, 800)]
)
def test_the_stated_memory_is_used(
    strong: Strong, image: RGBImage, dtype: torch.dtype, width: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a count of the tensors that are alive. (Strips scaled to the width, as for a full network.)"""
    monkeypatch.setattr(fused_resnet, "STRIP_BYTES", fused_resnet.STRIP_BYTES * width // 64)
    fused = FusedResnet(strong(blocks=1, width=width), dtype)
    windows = torch.from_numpy(np.resize(image, (side, side, 3)))[None]
    assert fused.working_bytes(side, side) == pytest.approx(peak_bytes(lambda: fused(windows)), rel=0.15)


def test_fused_weights_do_not_depend_on_memory_alignment() -> None:
    torch.manual_seed(7)
    module = ResnetGenerator(1, 4, dropout=False).eval()
    for weights in module.parameters():
        weights.data.mul_(6.0 if weights.ndim > 1 else 1.0)
    kept, found = [], set()
    for number in range(24):
        kept.append(torch.empty(1 + 997 * number))
        fused = FusedResnet(module)
        kept.append(fused.stem.weight)
        found.add((tuple(fused.center.tolist()), tuple(fused.stem.bias.tolist())))
    assert len(found) == 1
