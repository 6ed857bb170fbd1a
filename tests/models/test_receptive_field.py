"""Reach and stride, computed from the layers, against the derivative of the network itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wsi2ihc.errors import ModelError
from wsi2ihc.models.networks import ResnetBlock, ResnetGenerator, UnetGenerator
from wsi2ihc.models.receptive_field import dependency


def all_positive(module: nn.Module) -> nn.Module:
    """Weights that cannot cancel, and small enough that no tanh saturates: what is reached has a derivative."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.constant_(layer.weight, 1.0 / layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module.eval().double()


def seen_by(module: nn.Module, size: int, row: int) -> tuple[int, int]:
    """First and last row of the input that row ``row`` of the output depends on."""
    x = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    output: Tensor = module(x)
    output[:, :, row].sum().backward()
    assert x.grad is not None
    rows = torch.nonzero(x.grad.abs().sum((0, 1, 3))).flatten()
    return int(rows[0]), int(rows[-1])


def test_resnet_9() -> None:
    reach = dependency(ResnetGenerator(9, 1).eval())
    assert reach.per_phase == ((82, 82), (83, 81), (84, 84), (81, 83))
    assert (reach.radius_px, reach.stride_px, reach.is_local) == (84, 4, True)


def test_resnet_6_has_a_radius_8_px_smaller_per_block() -> None:
    assert dependency(ResnetGenerator(6, 1).eval()).radius_px == 84 - 3 * 8


def test_unet_256() -> None:
    reach = dependency(UnetGenerator(8, 1).eval())
    assert (reach.radius_px, reach.stride_px, reach.is_local) == (765, 256, True)


@pytest.mark.parametrize(
    "module",
    [
        ResnetGenerator(1, 1, "batch", False),
        ResnetGenerator(2, 1, "batch", True),
        ResnetGenerator(1, 1, "batch", False, "bilinear"),
        ResnetGenerator(1, 1, "batch", False, antialiasing=True),
        UnetGenerator(5, 1),
    ],
    ids=["resnet", "two blocks", "bilinear", "antialiasing", "unet"],
)
def test_networks_against_their_derivative(module: nn.Module) -> None:
    reach = dependency(all_positive(module))
    stride = reach.stride_px
    size = max(2 * (reach.radius_px // stride + 2), 4) * stride
    for phase in sorted({0, 1, 2, 3, stride // 2, stride - 1}):
        row = size // 2 // stride * stride + phase
        first, last = seen_by(module, size, row)
        assert (row - first, last - row) == reach.per_phase[phase], phase


@st.composite
def stacks(draw: st.DrawFn) -> nn.Sequential:
    """Convolutions, pads, blocks, halvings, and as many doublings; the output is as large as the input."""
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["same", "padded", "block", "pool"]))
        if kind == "same":
            kernel, dilation = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 2))
            layers.append(nn.Conv2d(3, 3, kernel, padding="same", dilation=dilation))
        elif kind == "padded":
            pads = draw(st.tuples(*[st.integers(0, 3)] * 4).filter(lambda p: p[0] + p[1] == p[2] + p[3]))
            pad = draw(st.sampled_from([nn.ReflectionPad2d, nn.ZeroPad2d, nn.ReplicationPad2d]))
            layers += [pad(pads), nn.Conv2d(3, 3, pads[0] + pads[1] + 1), nn.ReLU()]
        elif kind == "block":
            layers += [ResnetBlock(3, "batch", dropout=draw(st.booleans()))]
        else:
            down = draw(st.sampled_from([nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 4, 2, 1), nn.Conv2d(3, 3, 2, 2)]))
            up = draw(
                st.sampled_from(
                    [
                        nn.ConvTranspose2d(3, 3, 3, 2, 1, 1),
                        nn.ConvTranspose2d(3, 3, 4, 2, 1),
                        nn.ConvTranspose2d(3, 3, 2, 2),
                        nn.Upsample(scale_factor=2, mode="nearest"),
                        nn.Upsample(scale_factor=2, mode="bilinear"),
                    ]
                )
            )
            layers += [down, nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1), up]
    return nn.Sequential(*layers)


@given(stacks(), st.data())
@settings(max_examples=40, deadline=None)
def test_random_stacks_against_their_derivative(module: nn.Sequential, data: st.DataObject) -> None:
    reach = dependency(all_positive(module))
    size = 12 * reach.stride_px + 8 * ((reach.radius_px + 7) // 8)
    size = -(-size // reach.stride_px) * reach.stride_px
    phase = data.draw(st.integers(0, reach.stride_px - 1))
    row = size // 2 // reach.stride_px * reach.stride_px + phase
    down = seen_by(module, size, row)
    across = seen_by(nn.Sequential(Transpose(), module, Transpose()), size, row)
    found = (row - min(down[0], across[0]), max(down[1], across[1]) - row)
    assert found == reach.per_phase[phase]


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)


def test_shifts_by_the_stride_shift_the_output_and_others_do_not() -> None:
    torch.manual_seed(0)
    module = ResnetGenerator(1, 2, dropout=False).eval().double()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0, 0.3)
    x = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    with torch.inference_mode():
        output, by_4, by_2 = (module(x[:, :, shift:, :])[:, :, 40:48] for shift in (0, 4, 2))
        torch.testing.assert_close(by_4, module(x)[:, :, 44:52], rtol=0, atol=1e-12)
        assert float((by_2 - module(x)[:, :, 42:50]).abs().max()) > 1e-3
    assert output.shape == by_4.shape


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (ResnetGenerator(1, 1, "instance").eval(), "InstanceNorm2d"),
        (ResnetGenerator(1, 1, "batch", dropout=False).train(), "BatchNorm2d"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5)).train(), "Dropout"),
        (nn.BatchNorm2d(3, track_running_stats=False).eval(), "BatchNorm2d"),
        (nn.Sequential(nn.GroupNorm(1, 3)).eval(), "GroupNorm"),
    ],
)
def test_nonlocal_networks_are_detected(module: nn.Module, word: str) -> None:
    reach = dependency(module)
    assert not reach.is_local
    assert word in reach.reasons[0]


def test_frozen_norms_are_local() -> None:
    assert dependency(nn.InstanceNorm2d(3, track_running_stats=True).eval()).is_local
    assert dependency(ResnetGenerator(1, 1, "batch").eval()).is_local


@pytest.mark.parametrize(
    "module",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Linear(8, 8)),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.Upsample(size=64, mode="nearest"),
    ],
)
def test_an_unknown_layer_is_named_in_the_error(module: nn.Module) -> None:
    with pytest.raises(ModelError, match="receptive field of layer network"):
        dependency(module)


@pytest.mark.parametrize("module", [nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 2, 2), nn.Upsample(scale_factor=2)])
def test_outputs_of_another_size_are_refused(module: nn.Module) -> None:
    with pytest.raises(ModelError, match="size of its input"):
        dependency(module)
