"""Finding models by name and by file."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from wsi2ihc.errors import ModelError, ModelNotFoundError
from wsi2ihc.models import registry
from wsi2ihc.models.model_file import build_network, save_checkpoint
from wsi2ihc.models.model_spec import GeneratorSpec, file_sha256
from wsi2ihc.models.registry import DEFAULT_MODEL, describe_generator, list_models, load_model, make_translator

SPEC = GeneratorSpec(depth=1, width=2, mpp=0.46, stain="HER2", license="CC0", training={"recipe": "variance"})


def test_the_built_in_models_are_listed() -> None:
    names = [model.name for model in list_models()]
    assert names == sorted(names)
    assert {"identity", "counterstain", DEFAULT_MODEL} <= set(names)


def test_built_in_models() -> None:
    assert load_model().name == DEFAULT_MODEL
    model = load_model("counterstain")
    assert (model.mpp, model.channel_name, model.sha256) == (None, "counterstain (computed)", None)
    assert (model.dependency.radius_px, model.dependency.stride_px) == (0, 1)


def test_a_model_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "her2.safetensors"
    digest = save_checkpoint(path, build_network(SPEC), SPEC)
    for given in (path, str(path)):
        model = load_model(given)
        assert (model.name, model.version, model.sha256) == ("her2", digest, digest)
        assert (model.mpp, model.stain, model.license, model.spec) == (0.46, "HER2", "CC0", SPEC)
        assert model.channel_name == "virtual HER2 (computed)"
        assert (model.dependency.radius_px, model.dependency.stride_px) == (20, 4)


def test_a_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BUNDLED", tmp_path)
    save_checkpoint(tmp_path / "pan-ck.safetensors", build_network(SPEC), SPEC)
    listed = next(model for model in list_models() if model.name == "pan-ck")
    assert listed.spec == SPEC
    with pytest.raises(ModelError, match="has no weights"):
        make_translator(listed, "cpu", exact=True)
    assert load_model("pan-ck").sha256 == listed.sha256 == file_sha256(tmp_path / "pan-ck.safetensors")


def test_a_model_is_described_without_its_network(tmp_path: Path) -> None:
    path = tmp_path / "her2.safetensors"
    save_checkpoint(path, build_network(SPEC), SPEC)
    for given, spec in ((str(path), SPEC), ("counterstain", None), (DEFAULT_MODEL, load_model().spec)):
        described = describe_generator(given)
        assert (described.spec, described.module) == (spec, None)
        assert described.version == load_model(given).version
    with pytest.raises(ModelNotFoundError, match="nothing"):
        describe_generator("nothing")


def test_describing_the_default_needs_no_torch() -> None:
    program = (
        "import sys; from wsi2ihc.models.registry import DEFAULT_MODEL, describe_generator;"
        "describe_generator(DEFAULT_MODEL); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_model_describes_its_use(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, about="Shows the path; not for HER2")
    save_checkpoint(tmp_path / "demo.safetensors", build_network(spec), spec)
    assert load_model(tmp_path / "demo.safetensors").description == (
        "Shows the path; not for HER2 (ResNet of depth 1, width 2, batch norm, trained at 0.46 µm/px)"
    )


@pytest.mark.parametrize("name", ["resnet", "models/her2.safetensors", "", "counterstain.safetensors"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="counterstain, identity"):
        load_model(name or "nothing")


def test_a_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder, not a model file"):
        load_model(tmp_path)


def test_a_local_file_without_suffix_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="mine is not a safetensors"):
        load_model("mine")


@pytest.mark.parametrize("name", ["", "a" * 5000, "a/" * 3000, "a\0b"])
def test_an_impossible_file_name_is_a_clear_error(name: str) -> None:
    for function in (load_model, describe_generator):
        with pytest.raises(ModelNotFoundError, match="there is no model") as caught:
            function(name)
        assert len(str(caught.value)) < 400


def test_objects_are_not_accepted_as_names() -> None:
    with pytest.raises(TypeError, match="by its name or file, not as a Model"):
        load_model(load_model("identity"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"notes": "a" * 2_000_000}, "characters"),
        ({"a": [[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]}, "deeper than 20"),
    ],
)
def test_a_model_file_with_endless_provenance_is_refused(
    training: dict[str, object], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "her2.safetensors"
    save_checkpoint(path, build_network(SPEC), SPEC)
    facts = json.loads(SPEC.to_json()) | {"training": training}
    metadata = {"format": "wsi2ihc-generator", "version": "1", "spec": json.dumps(facts)}
    save_file(load_file(path), path, metadata)
    for function in (load_model, describe_generator):
        with pytest.raises(ModelError, match=words) as caught:
            function(path)
        assert len(str(caught.value)) < 400


def test_a_model_file_with_a_huge_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "her2.safetensors"
    header = (
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(160_000)) + b"}"
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    for function in (load_model, describe_generator):
        with pytest.raises(ModelError, match="header claims"):
            function(path)
