"""Importing published state dicts, whose architecture is recognized by names and shapes."""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsi2ihc.errors import ModelError, ModelNotFoundError
from wsi2ihc.models.import_weights import import_checkpoint
from wsi2ihc.models.model_file import build_network, load_checkpoint, save_checkpoint
from wsi2ihc.models.model_spec import GeneratorSpec
from wsi2ihc.models.networks import ResnetGenerator, UnetGenerator

State = dict[str, Tensor]

ARCHITECTURES = [
    GeneratorSpec(depth=9, width=4, norm="batch", dropout=True),
    GeneratorSpec(depth=6, width=8, norm="batch", dropout=False),
    GeneratorSpec(depth=9, width=4, norm="instance", dropout=False),
    GeneratorSpec(depth=2, width=4, norm="instance", dropout=True),
    GeneratorSpec(architecture="unet", depth=8, width=2, norm="batch"),
    GeneratorSpec(architecture="unet", depth=7, width=2, norm="instance"),
]


def trained(spec: GeneratorSpec) -> nn.Module:
    torch.manual_seed(3)
    module = build_network(spec)
    for name, value in module.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
    return module.eval()


def imported(content: Any, folder: Path) -> tuple[nn.Module, GeneratorSpec]:
    path = folder / "latest_net_G.pth"
    torch.save(content, path)
    return import_checkpoint(path, mpp=0.46, stain="HER2", license="non-commercial")


@pytest.mark.parametrize("spec", ARCHITECTURES, ids=lambda s: f"{s.architecture}-{s.depth}-{s.norm}-{s.dropout}")
def test_the_architecture_is_recognized(spec: GeneratorSpec, tmp_path: Path) -> None:
    module = trained(spec)
    loaded, found = imported(module.state_dict(), tmp_path)
    assert (found.architecture, found.depth, found.width, found.norm, found.dropout) == (
        spec.architecture, spec.depth, spec.width, spec.norm, spec.dropout,
    )  # fmt: skip
    assert (found.mpp, found.stain, found.license) == (0.46, "HER2", "non-commercial")
    assert found.training["imported_from"] == "latest_net_G.pth"
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    save_checkpoint(tmp_path / "model.safetensors", loaded, found)
    assert load_checkpoint(tmp_path / "model.safetensors")[1] == found


def _parallel(state: State) -> Any:
    return {f"module.{name}": value for name, value in state.items()}


def _in_state_dict(state: State) -> Any:
    return {"epoch": 100, "state_dict": state}


def _compiled_and_wrapped(state: State) -> Any:
    return {"step": torch.tensor(3), "netG": {f"_orig_mod.module.{name}": value for name, value in state.items()}}


def _with_discriminator(state: State) -> Any:
    generator = {f"netG.{name}": value for name, value in state.items()}
    return {"state_dict": generator | {"netD.model.0.weight": torch.zeros(64, 6, 4, 4)}}


def _as_attribute(state: State) -> Any:
    return {f"model.{name}": value for name, value in state.items()}


def _without_counters(state: State) -> Any:
    return OrderedDict((name, value) for name, value in state.items() if not name.endswith("num_batches_tracked"))


def _with_metadata_entry(state: State) -> Any:
    return dict(state) | {"_metadata": {"": {"version": 1}}}


def _in_half_precision(state: State) -> Any:
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        _parallel, _in_state_dict, _with_discriminator, _as_attribute, _without_counters, _with_metadata_entry,
        _in_half_precision,
    ],
)  # fmt: skip
def test_wrapped_state_dicts_are_found(wrap: Any, tmp_path: Path) -> None:
    module = trained(ARCHITECTURES[1])
    loaded, spec = imported(wrap(module.state_dict()), tmp_path)
    assert spec.depth == 6
    half = wrap is _in_half_precision
    for name, value in module.state_dict().items():
        expected = value.half().float() if half and value.is_floating_point() else value
        torch.testing.assert_close(loaded.state_dict()[name], expected, rtol=0, atol=0)


def test_wrappers_with_tensors_are_searched(tmp_path: Path) -> None:
    module = trained(ARCHITECTURES[1])
    loaded, _ = imported(_compiled_and_wrapped(module.state_dict()), tmp_path)
    torch.testing.assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_prefixes_of_a_unet_are_removed(tmp_path: Path) -> None:
    module = trained(ARCHITECTURES[4])
    loaded, spec = imported(_parallel(module.state_dict()), tmp_path)
    assert spec.architecture == "unet"
    torch.testing.assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_running_statistics_of_old_instance_norms_are_dropped(tmp_path: Path) -> None:
    module = trained(ARCHITECTURES[3])
    state = module.state_dict()
    for index, channels in ((2, 4), (5, 8), (8, 16), (13, 8), (16, 4)):
        state[f"model.{index}.running_mean"] = torch.zeros(channels)
        state[f"model.{index}.running_var"] = torch.ones(channels)
        state[f"model.{index}.num_batches_tracked"] = torch.tensor(5)
    loaded, spec = imported(state, tmp_path)
    assert spec.norm == "instance"
    assert loaded.state_dict().keys() == module.state_dict().keys()


def test_other_content_is_named_in_the_error(tmp_path: Path) -> None:
    resnet = ResnetGenerator(1, 2).state_dict()
    gray = dict(resnet) | {"model.1.weight": torch.zeros(2, 1, 7, 7)}
    no_norm = {name: value for name, value in resnet.items() if not name.startswith("model.2.")}
    affine = dict(resnet) | {"model.1.bias": torch.zeros(2)}
    filters = dict(resnet) | {"model.4.filt": torch.zeros(2, 1, 3, 3)}
    cases: list[tuple[Any, str]] = [
        (torch.zeros(3), "Tensor instead of"),
        ([1, 2], "list instead of"),
        ({"epoch": 3}, "holds no weights, only 1 entry such as epoch"),
        ({}, "holds no weights, only nothing"),
        ({"encoder.weight": torch.zeros(3)}, r"neither a ResNet nor a U-Net of pix2pix, but .*encoder\.weight"),
        (gray, "images of 1 channel instead of 3"),
        (no_norm, "without normalization"),
        (affine, "BatchNorm follows convolutions with biases"),
        (filters, "anti-aliasing filters in some places only"),
        (resnet | {"model.14.weight": torch.zeros(1, 3, 3, 3)}, "is not a ResNet"),
        ({name: value for name, value in resnet.items() if "running" not in name}, r"lacks model\.10\..*running_mean"),
        ({"model.1.weight": torch.zeros(100_000, 3, 7, 7), "model.2.weight": torch.zeros(1)}, "is not a ResNet"),
        (UnetGenerator(5, 1).state_dict() | {"x": torch.zeros(1, 1, 1, 1)}, "is not a U-Net|it has x"),
    ]
    for content, words in cases:
        with pytest.raises(ModelError, match=words) as caught:
            imported(content, tmp_path)
        assert "latest_net_G.pth" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_nan_weights_are_not_imported(tmp_path: Path) -> None:
    state = ResnetGenerator(1, 2).state_dict()
    state["model.4.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        imported(state, tmp_path)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    with pytest.raises(ModelError, match="holds other objects is not opened"):
        imported({"state_dict": ResnetGenerator(1, 1).state_dict(), "options": Bomb()}, tmp_path)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(ModelError, match="holds other objects is not opened"):
        imported({"state_dict": {}, "opt": argparse.Namespace(netG="resnet_9blocks")}, tmp_path)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(ResnetGenerator(1, 2).state_dict(), path)
    content = path.read_bytes()
    for damaged in (b"", b"hello", content[:1000], content[:-100], b"\x80\x02}q\x00.", content[:2000] + b"\0" * 3000):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"net\.pth"):
            import_checkpoint(path, mpp=0.5, stain="HER2")
    with pytest.raises(ModelNotFoundError):
        import_checkpoint(tmp_path / "none.pth", mpp=0.5, stain="HER2")
    with pytest.raises(ModelError):
        import_checkpoint(tmp_path, mpp=0.5, stain="HER2")


def test_an_empty_stain_becomes_ihc(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(ResnetGenerator(1, 1).state_dict(), path)
    assert import_checkpoint(path, mpp=0.5, stain="")[1].stain == "IHC"
