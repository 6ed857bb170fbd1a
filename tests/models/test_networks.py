"""The networks have the sizes and the names of the published ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsi2ihc.models.networks import INIT_STD, ResnetGenerator, UnetGenerator


def parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def test_resnet_9_has_the_published_number_of_parameters() -> None:
    assert parameters(ResnetGenerator(blocks=9, width=64, norm="batch")) == 11_383_427


def test_unet_256_has_the_published_number_of_parameters() -> None:
    assert parameters(UnetGenerator(downs=8, width=64)) == 54_413_955


@pytest.mark.parametrize(
    ("dropout", "second"), [(True, "model.10.conv_block.6.weight"), (False, "model.10.conv_block.5.weight")]
)
def test_weights_of_a_resnet_have_the_published_names(dropout: bool, second: str) -> None:
    names = ResnetGenerator(blocks=9, width=2, dropout=dropout).state_dict()
    expected = {
        "model.1.weight", "model.2.running_mean", "model.4.weight", "model.7.weight", "model.8.bias",
        "model.10.conv_block.1.weight", "model.10.conv_block.2.weight", second, "model.18.conv_block.1.weight",
        "model.19.weight", "model.20.weight", "model.22.weight", "model.23.running_var", "model.26.weight",
        "model.26.bias",
    }  # fmt: skip
    assert expected <= names.keys()
    assert names["model.26.weight"].shape == (3, 2, 7, 7)
    assert "model.1.bias" not in names
    assert "model.27.weight" not in names


def test_instance_norm_brings_biases_and_no_norm_weights() -> None:
    names = ResnetGenerator(blocks=6, width=2, norm="instance").state_dict()
    assert {"model.1.bias", "model.10.conv_block.1.bias", "model.16.bias", "model.23.bias"} <= names.keys()
    assert not any(name.startswith("model.2.") or "running" in name for name in names)


def test_weights_of_a_unet_have_the_published_names() -> None:
    names = UnetGenerator(downs=8, width=2).state_dict()
    innermost = "model.model.1.model.3.model.3.model.3.model.3.model.3.model.3.model."
    expected = {
        "model.model.0.weight", "model.model.1.model.1.weight", "model.model.1.model.2.running_mean",
        "model.model.1.model.5.weight", "model.model.1.model.6.bias", "model.model.3.weight", "model.model.3.bias",
        innermost + "1.weight", innermost + "3.weight", innermost + "4.weight",
    }  # fmt: skip
    assert expected <= names.keys()
    assert innermost + "2.weight" not in names  # the innermost level has no norm after its halving
    assert names["model.model.3.weight"].shape == (4, 3, 4, 4)


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_resnet_keeps_the_size(upsampling: str, norm: str) -> None:
    module = ResnetGenerator(2, 2, norm, False, upsampling).eval()  # type: ignore[arg-type]
    output = module(torch.zeros(2, 3, 24, 36))
    assert output.shape == (2, 3, 24, 36)
    assert output.abs().max() <= 1


@pytest.mark.parametrize("downs", [7, 8])
def test_a_unet_keeps_the_size_at_multiples_of_its_stride(downs: int) -> None:
    output = UnetGenerator(downs, 1).eval()(torch.zeros(1, 3, 2**downs, 2 ** (downs + 1)))
    assert output.shape == (1, 3, 2**downs, 2 ** (downs + 1))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    module = ResnetGenerator(1, 32)
    stem, norm, head = module.model[1], module.model[2], module.model[-2]
    assert isinstance(stem, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(head, nn.Conv2d)
    assert float(stem.weight.detach().std()) == pytest.approx(INIT_STD, rel=0.05)
    assert float(norm.weight.detach().mean()) == pytest.approx(1, abs=0.02)
    assert 0 < float(norm.weight.detach().std()) < 2 * INIT_STD
    assert head.bias is not None
    assert float(head.bias.detach().abs().max()) == 0


def test_skips_of_the_unet_equal_the_published_in_place_activation() -> None:
    """The published leaky ReLU overwrites the skipped tensor; through the ReLU that follows, both give the same."""
    torch.manual_seed(0)
    module = UnetGenerator(5, 2).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = module(x)
    for layer in module.modules():
        if isinstance(layer, nn.LeakyReLU):
            layer.inplace = True
    with torch.no_grad():
        torch.testing.assert_close(module(x.clone()), expected, rtol=0, atol=0)
