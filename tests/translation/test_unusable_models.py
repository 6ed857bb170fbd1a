"""Models with unusable weights are refused or reported, with every strategy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_slides import write_slide
from torch import nn

import wsi2ihc
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.errors import ModelError
from wsi2ihc.models.networks import ResnetGenerator, UnetGenerator
from wsi2ihc.models.registry import Model, make_translator
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.translation.options import TranslateOptions

PATHS: dict[str, dict[str, Any]] = {
    "exact": {"blend": "exact"},
    "blended": {"blend": "overlap"},
    "bf16": {"precision": "bf16"},
    "bands": {"resume": True},
}


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300×280 px of tissue on 420×400 px, with a much darker corner."""
    image = np.full((400, 420, 3), 243, np.uint8)
    image[60:340, 60:360] = synthetic_tissue(300, 280, seed=3)
    image[300:340, 320:360] = (40, 0, 60)
    path = tmp_path_factory.mktemp("slides") / "tissue.svs"
    return write_slide(path, image, style="aperio", compression="deflate", tile=256, mpp=0.5)


def resnet(change: Callable[[ResnetGenerator], None]) -> Model:
    torch.manual_seed(1)
    module = ResnetGenerator(1, 4, "batch", dropout=False).eval()
    with torch.no_grad():
        for weights in module.parameters():
            weights.mul_(6.0) if weights.ndim > 1 else None
        change(module)
    return Model("odd", "0", "HER2", "HER2 (virtual)", 0.5, "", "", module=module)


def translated(slide_file: Path, generator: Model, out: Path, how: dict[str, Any]) -> Any:
    options = TranslateOptions(
        **{"device": "cpu", "pyramid": PyramidOptions(tile_px=64), "core_px": 128, "band_px": 128, **how}
    )
    with wsi2ihc.open_slide(slide_file) as slide:
        return wsi2ihc.translate(slide, generator, out, options)


def head(module: ResnetGenerator) -> nn.Conv2d:
    layer = module.model[-2]
    assert isinstance(layer, nn.Conv2d)
    return layer


def with_nan_weights(module: ResnetGenerator) -> None:
    head(module).weight[0, 0, 0, 0] = torch.nan


def with_infinite_statistics(module: ResnetGenerator) -> None:
    module.model[2].running_var.fill_(torch.inf)  # type: ignore[union-attr]


def with_negative_variance(module: ResnetGenerator) -> None:
    module.model[2].running_var.fill_(-1.0)  # type: ignore[union-attr]


def with_overflow(module: ResnetGenerator) -> None:
    for number in (4, 7):
        module.model[number].weight.mul_(1e30)  # type: ignore[operator]


@pytest.mark.parametrize("how", list(PATHS))
@pytest.mark.parametrize("change", [with_nan_weights, with_infinite_statistics, with_negative_variance, with_overflow])
def test_values_that_are_not_finite_are_refused_with_the_model_name(
    slide_file: Path, tmp_path: Path, change: Callable[[ResnetGenerator], None], how: str
) -> None:
    with pytest.raises(ModelError, match=r"^model odd.*(not finite|overflow)") as caught:
        translated(slide_file, resnet(change), tmp_path / "out.ome.tiff", PATHS[how])
    assert "\n" not in str(caught.value)
    assert re.search(r"another model|--precision fp32", str(caught.value))
    assert not (tmp_path / "out.ome.tiff").exists()


class OnlyInTheDark(nn.Module):
    """Return NaN for windows with dark pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.mean(1, keepdim=True) < -0.6, torch.nan, x)


@pytest.mark.parametrize("how", ["exact", "blended", "bands"])
def test_nan_in_some_windows_only_is_refused(
    slide_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("wsi2ihc.models.receptive_field._POINTWISE", (OnlyInTheDark, nn.Conv2d))
    generator = Model(
        "odd", "0", "HER2", "HER2", 0.5, "", "", module=nn.Sequential(OnlyInTheDark(), nn.Conv2d(3, 3, 1))
    )
    with pytest.raises(ModelError, match=r"^model odd.*not finite"):
        translated(slide_file, generator, tmp_path / "out.ome.tiff", PATHS[how])
    assert not (tmp_path / "out.ome.tiff").exists()


@pytest.mark.parametrize("architecture", ["resnet", "instance", "unet"])
@pytest.mark.parametrize("exact", [True, False])
def test_an_overflow_does_not_pass_for_a_saturated_output(architecture: str, exact: bool) -> None:
    torch.manual_seed(1)
    module: nn.Module = UnetGenerator(5, 2, "batch", dropout=False)
    if architecture != "unet":
        module = ResnetGenerator(1, 4, "batch" if architecture == "resnet" else "instance", dropout=False)
    with torch.no_grad():
        last = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)][-1]
        if isinstance(module, UnetGenerator):
            last = module.model.model[-2]  # type: ignore[assignment]
        for layer in module.modules():
            layer.weight.mul_(6.0) if isinstance(layer, nn.Conv2d) else None
        last.weight.fill_(3e38)
        assert last.bias is not None
        last.bias.fill_(3e38)
    generator = Model("odd", "0", "HER2", "HER2", 0.5, "", "", module=module.eval())
    if exact and not generator.dependency.is_local:
        pytest.skip("not local")
    translator = make_translator(generator, "cpu", "fp32", exact=exact)
    side = 2 * translator.halo_px + 64
    window = np.random.default_rng(0).integers(0, 255, (1, side, side, 3), dtype=np.uint8)
    with pytest.raises(ModelError, match=r"^model odd.*not finite"):
        translator(window)


@pytest.mark.parametrize("how", ["exact", "blended", "bands"])
def test_an_output_of_a_single_color_is_reported(slide_file: Path, tmp_path: Path, how: str) -> None:
    def silence(module: ResnetGenerator) -> None:
        head(module).weight.zero_()

    report = translated(slide_file, resnet(silence), tmp_path / "out.ome.tiff", PATHS[how])
    assert any(re.match(r"model odd translates tissue into a single color", warning) for warning in report.warnings)


def test_a_saturated_output_is_reported(slide_file: Path, tmp_path: Path) -> None:
    def shout(module: ResnetGenerator) -> None:
        head(module).weight.mul_(1e6)

    report = translated(slide_file, resnet(shout), tmp_path / "out.ome.tiff", {})
    assert any("nothing but 0 and 255" in warning for warning in report.warnings)


def test_a_usable_model_causes_no_warning(slide_file: Path, tmp_path: Path) -> None:
    report = translated(slide_file, resnet(lambda _: None), tmp_path / "out.ome.tiff", {})
    assert not any("model odd" in warning for warning in report.warnings)
