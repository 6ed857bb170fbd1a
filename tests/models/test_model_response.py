"""Weights that are finite, and useless all the same."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from wsi2ihc.errors import ModelError
from wsi2ihc.models.import_weights import import_checkpoint
from wsi2ihc.models.inference import check_response
from wsi2ihc.models.model_file import build_network, save_checkpoint
from wsi2ihc.models.model_spec import GeneratorSpec
from wsi2ihc.models.networks import ResnetGenerator
from wsi2ihc.models.registry import load_model

SPECS = [
    GeneratorSpec(depth=1, width=4, norm="batch"),
    GeneratorSpec(depth=1, width=4, norm="instance"),
    GeneratorSpec(architecture="unet", depth=5, width=2, norm="batch"),
    GeneratorSpec(architecture="unet", depth=5, width=2, norm="instance"),
]


def usable(spec: GeneratorSpec) -> nn.Module:
    torch.manual_seed(1)
    module = build_network(spec).eval()
    for value in module.parameters():
        if value.ndim > 1:
            nn.init.normal_(value, 0, 0.25)
    return module


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.architecture} {spec.norm}")
def test_a_usable_model_passes_without_warning(spec: GeneratorSpec, caplog: pytest.LogCaptureFixture) -> None:
    check_response(usable(spec), "model")
    assert not caplog.records


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.architecture} {spec.norm}")
def test_constant_outputs_cause_a_warning(
    spec: GeneratorSpec, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    module = usable(spec)
    for value in module.parameters():
        value.data.zero_()
    save_checkpoint(tmp_path / "constant.safetensors", module, spec)
    with caplog.at_level(logging.WARNING):
        load_model(tmp_path / "constant.safetensors")
    assert "constant.safetensors translates a test image into a single color" in caplog.text


def test_saturated_outputs_cause_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    module = usable(SPECS[0])
    assert isinstance(module, ResnetGenerator)
    module.model[-2].weight.data.mul_(1e4)  # type: ignore[union-attr, operator]
    check_response(module, "model")
    assert "nothing but 0 and 255" in caplog.text


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.architecture} {spec.norm}")
def test_a_model_that_overflows_is_not_loaded(spec: GeneratorSpec, tmp_path: Path) -> None:
    module = usable(spec)
    for value in module.parameters():
        if value.ndim > 1:
            value.data.mul_(1e38)
    path = tmp_path / "overflow.safetensors"
    save_checkpoint(path, module, spec)
    with pytest.raises(ModelError, match=r"overflow\.safetensors overflows .* layer model\..* is not finite"):
        load_model(path)


def test_a_model_that_overflows_is_not_imported(tmp_path: Path) -> None:
    state = ResnetGenerator(1, 2).state_dict()
    state = {name: value * 1e30 if value.ndim > 1 else value for name, value in state.items()}
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match="is not finite"):
        import_checkpoint(tmp_path / "net.pth", mpp=0.5, stain="")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.1.weight", "model.2.running_mean", "model.26.bias"])
def test_weights_that_are_not_finite_are_named_in_the_error(name: str, value: float, tmp_path: Path) -> None:
    state = ResnetGenerator(9, 2).state_dict()
    state[name].flatten()[0] = value
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=rf"net\.pth holds values that are not finite, in {name}"):
        import_checkpoint(tmp_path / "net.pth", mpp=0.5, stain="")
