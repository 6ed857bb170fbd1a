"""Statistics of a sample, frozen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsi2ihc.errors import ModelError
from wsi2ihc.geometry import RGBImage
from wsi2ihc.models.model_spec import GeneratorSpec
from wsi2ihc.models.networks import ResnetGenerator, UnetGenerator
from wsi2ihc.models.normalization import estimate_statistics, from_bytes, to_bytes
from wsi2ihc.models.receptive_field import dependency
from wsi2ihc.models.registry import _described, load_model, make_translator, with_slide_statistics

BATCHES = [
    torch.linspace(-1, 1, 2 * 3 * 24 * 24).reshape(2, 3, 24, 24).roll(shift, 3) * scale
    for shift, scale in ((0, 1), (5, 0.3))
]


class Normalized(nn.Module):
    """A norm after scaling; gives three channels."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), norm)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(3),
        nn.InstanceNorm2d(3),
        nn.InstanceNorm2d(3, affine=True),
        nn.BatchNorm2d(3, track_running_stats=False),
    ],
)
def test_the_statistics_are_those_of_all_pixels_of_the_sample(norm: nn.Module) -> None:
    torch.manual_seed(0)
    module = Normalized(norm)
    estimated = estimate_statistics(module, BATCHES).module
    frozen = estimated.layers[1]  # type: ignore[index]
    assert isinstance(frozen, nn.BatchNorm2d)
    with torch.no_grad():
        inputs = module.layers[0](torch.cat(BATCHES)).double()
    torch.testing.assert_close(frozen.running_mean, inputs.mean((0, 2, 3)).float())
    torch.testing.assert_close(frozen.running_var, inputs.var((0, 2, 3), correction=0).float())
    output = estimated(torch.cat(BATCHES))
    torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_affine_weights_are_kept() -> None:
    norm = nn.InstanceNorm2d(3, affine=True)
    nn.init.constant_(norm.weight, 2.0)
    nn.init.constant_(norm.bias, -0.5)
    output = estimate_statistics(Normalized(norm), BATCHES).module(torch.cat(BATCHES))
    torch.testing.assert_close(output.mean((0, 2, 3)), torch.full((3,), -0.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "module",
    [
        ResnetGenerator(2, 4, "instance"),
        ResnetGenerator(2, 4, "batch").train(),
        UnetGenerator(5, 2, "instance").train(),
    ],
)
def test_any_generator_becomes_local(module: nn.Module) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    training = module.training
    estimated = estimate_statistics(module, [batch.repeat(1, 1, 4, 4)[:, :, :64, :64] for batch in BATCHES]).module
    assert dependency(estimated).is_local
    assert not estimated.training
    assert module.training == training
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_the_change_of_the_output_is_reported() -> None:
    module = Normalized(nn.BatchNorm2d(3)).eval()
    with torch.no_grad():
        conv = module.layers[0]
        conv.weight.copy_(torch.eye(3)[:, :, None, None])  # type: ignore[union-attr]
        conv.bias.copy_(torch.tensor([0.2, 0.0, -0.1]))  # type: ignore[union-attr]
    batches = [torch.full((1, 3, 8, 8), 0.1) + torch.tensor([-0.05, 0.05]).repeat(4)]
    moved = estimate_statistics(module, batches).moved_levels
    # Untouched running statistics are mean 0 and variance 1, so the output was 0.3, 0.1, 0.0; it is 0 now.
    assert moved == pytest.approx((-0.3 * 127.5, -0.1 * 127.5, 0), abs=0.01)


def test_empty_and_broken_samples_are_refused() -> None:
    with pytest.raises(ModelError, match="no tissue"):
        estimate_statistics(ResnetGenerator(1, 1), [])
    with pytest.raises(ModelError, match="not finite"):
        estimate_statistics(ResnetGenerator(1, 1), [torch.full((1, 3, 16, 16), float("nan"))])


def test_an_instance_norm_generator_translates_exactly_with_slide_statistics(image: RGBImage) -> None:
    torch.manual_seed(0)
    spec = GeneratorSpec(depth=1, width=4, norm="instance", stain="HER2")
    generator = _described("foreign", "0" * 64, spec)
    object.__setattr__(generator, "module", ResnetGenerator(1, 4, "instance", False).eval())
    with pytest.raises(ModelError, match=r"InstanceNorm2d.*use statistics of the slide"):
        make_translator(generator, "cpu", "fp32", exact=True)
    sample = (image[np.newaxis, y : y + 128, :128] for y in range(0, 512, 128))
    frozen = with_slide_statistics(generator, sample)
    assert len(frozen.moved_levels) == 3
    assert generator.dependency.reasons
    translator = make_translator(frozen.generator, "cpu", "fp32", exact=True)
    halo = translator.halo_px
    whole = translator(image[np.newaxis, :400, :400])[0]
    part = translator(image[np.newaxis, 100:300, 40:400])[0]
    np.testing.assert_array_equal(part, whole[100 : 300 - 2 * halo, 40:])


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_statistics_are_restored_to_the_bit(norm: str) -> None:
    torch.manual_seed(3)
    module = ResnetGenerator(1, 4, norm, False).eval()  # type: ignore[arg-type]
    estimated = estimate_statistics(module, BATCHES)
    content = to_bytes(estimated.module, estimated.moved_levels)
    again = from_bytes(module, content)
    assert again.moved_levels == estimated.moved_levels
    expected, found = estimated.module.state_dict(), again.module.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == [
        name for name in expected if name.endswith("num_batches_tracked")
    ]
    assert not again.module.training
    other = ResnetGenerator(2, 4, norm, False)  # type: ignore[arg-type]
    for broken, wrong in ((content[:-9], module), (b"", module), (content, other), (content, UnetGenerator(5, 2))):
        with pytest.raises(ModelError, match="stored normalization statistics are damaged or another model's"):
            from_bytes(wrong, broken)


def test_a_built_in_has_no_statistics(image: RGBImage) -> None:
    generator = load_model("counterstain")
    frozen = with_slide_statistics(generator, [image[np.newaxis]])
    assert (frozen.generator, frozen.moved_levels) == (generator, (0.0, 0.0, 0.0))


def test_precise_statistics_close_the_gap_to_training_mode(
    strong: Callable[..., ResnetGenerator], image: RGBImage
) -> None:
    """On the sample itself, frozen statistics output as batch statistics do."""
    torch.manual_seed(0)
    module = ResnetGenerator(2, 8, dropout=False).train()
    batch = torch.from_numpy(image[:400, :400]).permute(2, 0, 1)[None].float() / 127.5 - 1
    frozen = estimate_statistics(module, [batch]).module
    with torch.no_grad():
        torch.testing.assert_close(frozen(batch), module(batch), atol=1e-4, rtol=0)
