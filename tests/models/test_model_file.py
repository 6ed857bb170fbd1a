"""Writing and reading checkpoints; and everything that is not one."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wsi2ihc.errors import ModelError, ModelNotFoundError, OutputError
from wsi2ihc.models.model_file import build_network, load_checkpoint, save_checkpoint
from wsi2ihc.models.model_spec import GeneratorSpec, read_spec
from wsi2ihc.models.networks import ResnetGenerator

SMALL = GeneratorSpec(depth=1, width=2, mpp=0.46, stain="HER2", license="CC BY 4.0", training={"steps": 3})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, build_network(SMALL), SMALL)
    return path


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any]) -> Path:
    """The file again after ``change`` of its tensors and its metadata."""
    tensors = load_file(path)
    metadata = {"format": "wsi2ihc-generator", "version": "1", "spec": SMALL.to_json()}
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    "spec",
    [
        SMALL,
        GeneratorSpec(depth=2, width=3, norm="instance", dropout=False, upsampling="bilinear"),
        GeneratorSpec(architecture="unet", depth=5, width=1),
        GeneratorSpec(architecture="unet", depth=6, width=1, norm="instance"),
    ],
    ids=["resnet", "instance", "unet", "unet instance"],
)
def test_round_trip(spec: GeneratorSpec, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = build_network(spec)
    for name, value in module.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_()
    path = tmp_path / "model.safetensors"
    digest = save_checkpoint(path, module, spec)
    loaded, found, sha256 = load_checkpoint(path)
    assert found == spec
    assert read_spec(path) == spec
    assert sha256 == digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not loaded.training
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), module.eval()(x), rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_weights_make_the_same_file(saved: Path, tmp_path: Path) -> None:
    module, spec, _ = load_checkpoint(saved)
    assert len({save_checkpoint(tmp_path / "again.safetensors", module, spec) for _ in range(10)}) == 1


def test_a_loaded_network_can_be_trained(saved: Path) -> None:
    module, _, _ = load_checkpoint(saved)
    module.train()(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(one.grad is not None for one in module.parameters())


def test_half_precision_is_smaller_and_loads_as_float32(saved: Path, tmp_path: Path) -> None:
    module, spec, _ = load_checkpoint(saved)
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, module, spec, half=True)
    loaded, _, _ = load_checkpoint(path)
    assert path.stat().st_size < saved.stat().st_size
    for name, value in loaded.state_dict().items():
        expected = module.state_dict()[name]
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected.half().to(expected.dtype) if expected.ndim > 1 else expected)


def test_a_weight_too_large_for_half_precision_is_not_written(saved: Path, tmp_path: Path) -> None:
    module, spec, _ = load_checkpoint(saved)
    with torch.no_grad():
        module.model[1].weight[0, 0, 0, 0] = 1e6  # type: ignore[index, operator]
    with pytest.raises(ModelError, match=r"not finite, in model\.1\.weight"):
        save_checkpoint(tmp_path / "half.safetensors", module, spec, half=True)
    assert list(tmp_path.iterdir()) == [saved]


def test_the_module_must_match_the_specification(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the module is not a ResNet of depth 1, width 2"):
        save_checkpoint(tmp_path / "a.safetensors", ResnetGenerator(2, 2), SMALL)


def test_unwritable_paths_are_refused(tmp_path: Path) -> None:
    module = build_network(SMALL)
    with pytest.raises(OutputError, match="does not exist"):
        save_checkpoint(tmp_path / "missing" / "a.safetensors", module, SMALL)
    with pytest.raises(OutputError, match=r"ends in \.safetensors"):
        save_checkpoint(tmp_path / "a.pth", module, SMALL)
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path: Path, saved: Path) -> None:
    cases: dict[str, tuple[bytes, str]] = {
        "empty": (b"", "not a safetensors"),
        "text": (b"this is not a model at all", "not a safetensors"),
        "legacy.pth": (pickle.dumps({"a": 1}), "models import legacy.pth"),
        "huge": (struct.pack("<Q", 2**62) + b"{}", "header claims"),
        "short": (saved.read_bytes()[:-5], "incomplete"),
        "header only": (saved.read_bytes()[:200], "not a safetensors"),
    }
    for name, (content, words) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ModelError, match=words) as caught:
            load_checkpoint(path)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "bomb.safetensors"
    torch.save({"model.1.weight": Bomb()}, path)
    with pytest.raises(ModelError, match="models import"):
        load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="is a folder, not a model file"):
        load_checkpoint(tmp_path)


def test_claims_of_more_bytes_than_the_file_has_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}).encode()
    path = tmp_path / "claims.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match="not a safetensors"):
        load_checkpoint(path)


def _without_spec(_: Any, metadata: dict[str, str]) -> None:
    del metadata["spec"]


def _of_the_future(_: Any, metadata: dict[str, str]) -> None:
    metadata["version"] = "2"


def _bad_spec(_: Any, metadata: dict[str, str]) -> None:
    metadata["spec"] = SMALL.to_json().replace('"width": 2', '"width": 1000000000')


def _deeper(_: Any, metadata: dict[str, str]) -> None:
    metadata["spec"] = SMALL.to_json().replace('"depth": 1', '"depth": 2')


def _wider(_: Any, metadata: dict[str, str]) -> None:
    metadata["spec"] = SMALL.to_json().replace('"width": 2', '"width": 4')


def _a_unet(_: Any, metadata: dict[str, str]) -> None:
    metadata["spec"] = SMALL.to_json().replace("resnet", "unet").replace('"depth": 1', '"depth": 5')


def _nan(tensors: dict[str, torch.Tensor], _: Any) -> None:
    tensors["model.4.weight"][1, 1, 0, 0] = float("nan")


def _infinite(tensors: dict[str, torch.Tensor], _: Any) -> None:
    tensors["model.2.running_mean"][0] = float("inf")


def _negative_variance(tensors: dict[str, torch.Tensor], _: Any) -> None:
    tensors["model.2.running_var"][0] = -1


def _integers(tensors: dict[str, torch.Tensor], _: Any) -> None:
    tensors["model.4.weight"] = tensors["model.4.weight"].to(torch.int32)


def _superfluous(tensors: dict[str, torch.Tensor], _: Any) -> None:
    tensors["netD.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_spec, "has no specification of its generator"),
        (_of_the_future, "format version '2'"),
        (_bad_spec, "width lies between 1 and 512"),
        (_deeper, "depth 2, width 2 .*lacks"),
        (_wider, "has the shape"),
        (_a_unet, "is not a U-Net"),
        (_nan, r"not finite, in model\.4\.weight"),
        (_infinite, r"not finite, in model\.2\.running_mean"),
        (_negative_variance, "below zero"),
        (_integers, "I32"),
        (_superfluous, r"has netD\.weight"),
    ],
)
def test_unusable_model_files_are_refused(saved: Path, change: Callable[..., None], words: str) -> None:
    rewritten(saved, change)
    with pytest.raises(ModelError, match=words) as caught:
        load_checkpoint(saved)
    assert "small.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=4), st.integers(0, 4000))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_refused_or_usable(saved: Path, edits: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(saved.read_bytes())
    for place, value in edits:
        content[place % len(content)] = value
    path = saved.with_name("damaged.safetensors")
    path.write_bytes(content[: len(content) - cut] if cut < len(content) else content)
    try:
        module, spec, _ = load_checkpoint(path)
    except ModelError:
        return
    assert all(bool(torch.isfinite(value).all()) for value in module.state_dict().values())
    assert spec.width == 2
