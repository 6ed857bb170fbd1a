"""The lowered ResNet computes the network's own function, and equal pixels in windows of any size and place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsi2ihc.arrays import RGBImage
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.errors import ModelError
from wsi2ihc.generator import lowering
from wsi2ihc.generator.lowering import LoweredResnet, can_lower
from wsi2ihc.generator.memory import peak_bytes
from wsi2ihc.generator.networks import ResnetGenerator, UnetGenerator
from wsi2ihc.generator.pixels import to_network
from wsi2ihc.generator.reach import dependency

Strong = Callable[..., ResnetGenerator]

VARIANTS = [
    {"blocks": 9},
    {"blocks": 6, "dropout": False},
    {"blocks": 1, "upsampling": "bilinear"},
    {"blocks": 3, "norm": "instance", "upsampling": "bilinear"},
]


def windows_of(picture: RGBImage, rows: int, columns: int, y: int = 0, x: int = 0) -> torch.Tensor:
    return torch.from_numpy(picture[y : y + rows, x : x + columns].copy())[None]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("by_strips", [True, False], ids=["strips", "whole"])
def test_the_same_function(strong: Strong, picture: RGBImage, options: dict[str, object], by_strips: bool) -> None:
    module = strong(**options)
    lowered = LoweredResnet(module, by_strips=by_strips)
    halo = lowered.halo_px
    reach = dependency(module)
    assert reach.radius_px <= halo < reach.radius_px + 3 * reach.lattice_px
    windows = windows_of(picture, 2 * halo + 40, 2 * halo + 64)
    with torch.inference_mode():
        values = module(to_network(windows))[:, :, halo:-halo, halo:-halo].permute(0, 2, 3, 1)
        answer = lowered(windows)
    assert answer.shape == (1, 40, 64, 3)
    assert float(values.std()) > 0.2
    # Rounding is the only difference: half a grey level, and what float32 leaves.
    assert float((answer - (values + 1) * 127.5).abs().max()) < 0.51


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strips_change_no_bit(
    strong: Strong, picture: RGBImage, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = strong(blocks=3)
    windows = windows_of(picture, 640, 720)
    with torch.inference_mode():
        monkeypatch.setattr(lowering, "STRIP_BYTES", 1 << 40)
        expected = LoweredResnet(module, dtype)(windows)
        for size in (1 << 19, 3 << 19):
            monkeypatch.setattr(lowering, "STRIP_BYTES", size)
            torch.testing.assert_close(LoweredResnet(module, dtype)(windows), expected, rtol=0, atol=0)
        whole = LoweredResnet(module, dtype, by_strips=False)(windows)
    torch.testing.assert_close(whole, expected, rtol=0, atol=0)


def test_batches_are_images_by_themselves(strong: Strong, picture: RGBImage) -> None:
    lowered = LoweredResnet(strong(blocks=2))
    windows = torch.cat([windows_of(picture, 320, 320, y, x) for y, x in ((0, 0), (400, 40), (100, 600))])
    with torch.inference_mode():
        together = lowered(windows)
        for i in range(3):
            torch.testing.assert_close(lowered(windows[i : i + 1])[0], together[i], rtol=0, atol=0)


@given(
    rows=st.integers(60, 150),
    columns=st.integers(60, 150),
    y=st.integers(0, 75),
    x=st.integers(0, 100),
    upsampling=st.sampled_from(["transposed", "bilinear"]),
)
@settings(max_examples=30, deadline=None)
def test_windows_of_any_size_and_place_give_the_same_bits(
    strong: Strong, picture: RGBImage, rows: int, columns: int, y: int, x: int, upsampling: str
) -> None:
    """Tiled equals whole: in float32, to the bit, on the lattice."""
    lowered, whole = _narrow(strong, picture, upsampling)
    smallest = -(-lowered.smallest_window_px // 4)
    rows, columns = 4 * max(smallest, rows), 4 * max(smallest, columns)
    y, x = min(4 * y, 900 - rows), min(4 * x, 1000 - columns)
    with torch.inference_mode():
        part = lowered(windows_of(picture, rows, columns, y, x))
    halo = lowered.halo_px
    expected = whole[:, y : y + rows - 2 * halo, x : x + columns - 2 * halo]
    torch.testing.assert_close(part, expected, rtol=0, atol=0)


_kept: dict[str, tuple[LoweredResnet, torch.Tensor]] = {}


def _narrow(strong: Strong, picture: RGBImage, upsampling: str = "transposed") -> tuple[LoweredResnet, torch.Tensor]:
    if upsampling not in _kept:
        lowered = LoweredResnet(strong(blocks=9, width=8, upsampling=upsampling))
        with torch.inference_mode():
            _kept[upsampling] = lowered, lowered(windows_of(picture, 900, 1000))
    return _kept[upsampling]


def test_off_the_lattice_or_with_a_short_halo_the_answer_is_another(strong: Strong, picture: RGBImage) -> None:
    """The control: with these weights, a wrong halo or place shows."""
    lowered, whole = _narrow(strong, picture)
    halo = lowered.halo_px
    with torch.inference_mode():
        shifted = lowered(windows_of(picture, 500, 500, 102, 102)).int()
        short = windows_of(picture, 500, 500, 100, 100)
        short[:, : halo - 16], short[:, :, : halo - 16] = 243, 243
        cut = lowered(short).int()
    expected = whole.int()
    assert (shifted - expected[:, 102 : 602 - 2 * halo, 102 : 602 - 2 * halo]).abs().max() > 10
    assert (cut - expected[:, 100 : 600 - 2 * halo, 100 : 600 - 2 * halo]).abs().max() > 2


@pytest.mark.parametrize(("width", "upsampling"), [(64, "transposed"), (32, "bilinear")])
def test_networks_as_wide_as_trained_ones_to_the_bit(
    strong: Strong, picture: RGBImage, width: int, upsampling: str
) -> None:
    lowered = LoweredResnet(strong(width=width, blocks=9, upsampling=upsampling))
    halo = lowered.halo_px
    with torch.inference_mode():
        whole = lowered(windows_of(picture, 2 * halo + 132, 2 * halo + 124))
        part = lowered(windows_of(picture, 2 * halo + 92, 2 * halo + 44, 36, 72))
    torch.testing.assert_close(part, whole[:, 36 : 36 + 92, 72 : 72 + 44], rtol=0, atol=0)


def test_bfloat16_is_near_float32(strong: Strong) -> None:
    """Random weights are a harder case than trained ones, which differ by a grey level at most."""
    tissue = synthetic_tissue(480, 480, seed=5)
    module = strong(blocks=9, width=64, on=tissue)
    windows = torch.from_numpy(tissue[:272, :272].copy())[None]
    with torch.inference_mode():
        exact = LoweredResnet(module)(windows).int()
        difference = (LoweredResnet(module, torch.bfloat16)(windows).int() - exact).abs().float()
    assert 25 < float(exact.float().std()) < 60
    assert float(difference.mean()) <= 0.5
    assert float(difference.flatten().quantile(0.999)) <= 3


def test_what_cannot_be_lowered(strong: Strong) -> None:
    assert not can_lower(UnetGenerator(5, 1).eval())
    assert not can_lower(ResnetGenerator(1, 1, "instance").eval())
    assert not can_lower(ResnetGenerator(1, 1).train())
    with pytest.raises(ModelError, match="no local function"):
        LoweredResnet(ResnetGenerator(1, 1).train())


def test_lowering_changes_neither_the_network_nor_the_random_numbers(strong: Strong) -> None:
    module = strong(blocks=1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    LoweredResnet(module, torch.bfloat16)
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_answer_that_is_not_finite(strong: Strong, picture: RGBImage, dtype: torch.dtype) -> None:
    """Wherever it arises: no activation on the way hides it."""
    module = strong(blocks=1)
    for index in (1, 4, 11, 14):
        broken = LoweredResnet(_with_nan(module, index), dtype)
        with torch.inference_mode(), pytest.raises(ModelError, match="not finite"):
            broken(windows_of(picture, 320, 320))


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
def test_the_memory_that_it_says(
    strong: Strong, picture: RGBImage, dtype: torch.dtype, width: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a count of the tensors that are alive. (Strips scaled to the width, as for a full network.)"""
    monkeypatch.setattr(lowering, "STRIP_BYTES", lowering.STRIP_BYTES * width // 64)
    lowered = LoweredResnet(strong(blocks=1, width=width), dtype)
    windows = torch.from_numpy(np.resize(picture, (side, side, 3)))[None]
    assert lowered.working_bytes(side, side) == pytest.approx(peak_bytes(lambda: lowered(windows)), rel=0.15)


def test_the_same_model_is_lowered_to_the_same_bits_wherever_it_lies_in_memory() -> None:
    torch.manual_seed(7)
    module = ResnetGenerator(1, 4, dropout=False).eval()
    for weights in module.parameters():
        weights.data.mul_(6.0 if weights.ndim > 1 else 1.0)
    kept, found = [], set()
    for number in range(24):
        kept.append(torch.empty(1 + 997 * number))
        lowered = LoweredResnet(module)
        kept.append(lowered.stem.weight)
        found.add((tuple(lowered.centre.tolist()), tuple(lowered.stem.bias.tolist())))
    assert len(found) == 1
