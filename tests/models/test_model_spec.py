"""A generator's description: round trip and refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi2ihc.errors import ModelError
from wsi2ihc.models.model_spec import GeneratorSpec

lines = st.text(st.characters(categories=["L", "N", "P", "Zs"], include_characters=" "), min_size=1, max_size=50)
specs = st.builds(
    GeneratorSpec,
    architecture=st.just("resnet"),
    depth=st.integers(1, 64),
    width=st.integers(1, 512),
    norm=st.sampled_from(["batch", "instance"]),
    dropout=st.booleans(),
    upsampling=st.sampled_from(["transposed", "bilinear"]),
    mpp=st.floats(0.01, 100),
    stain=lines.filter(lambda text: bool(text.strip()) and text.isprintable()),
    license=lines.filter(str.isprintable),
    about=lines.filter(str.isprintable),
    training=st.dictionaries(st.text(), st.none() | st.integers() | st.lists(st.text()) | st.floats(-1e9, 1e9)),
)


@given(specs)
def test_round_trip_through_json(spec: GeneratorSpec) -> None:
    assert GeneratorSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "vit"),
        ("architecture", ["resnet"]),
        ("depth", 0),
        ("depth", 65),
        ("depth", 9.0),
        ("depth", True),
        ("width", 0),
        ("width", 100_000_000),
        ("width", "64"),
        ("norm", "layer"),
        ("dropout", 1),
        ("upsampling", "nearest"),
        ("mpp", 0),
        ("mpp", -0.5),
        ("mpp", float("nan")),
        ("mpp", float("inf")),
        ("mpp", "0.5"),
        ("mpp", True),
        ("stain", ""),
        ("stain", "  "),
        ("stain", "HER2\nmore"),
        ("stain", None),
        ("license", "x" * 201),
        ("license", 7),
        ("about", "x" * 501),
        ("about", "two\nlines"),
        ("training", [1]),
        ("training", {"a": object()}),
        ("training", {"a": float("nan")}),
    ],
)
def test_invalid_values_are_refused(field: str, value: object) -> None:
    with pytest.raises(ModelError):
        GeneratorSpec(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("depth", "upsampling"), [(4, "transposed"), (11, "transposed"), (8, "bilinear")])
def test_invalid_unets_are_refused(depth: int, upsampling: str) -> None:
    with pytest.raises(ModelError):
        GeneratorSpec(architecture="unet", depth=depth, upsampling=upsampling)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"depth": 9}', "[" * 100_000])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        GeneratorSpec.from_json(text)


def test_missing_and_unknown_fields_are_named() -> None:
    values = dataclasses.asdict(GeneratorSpec())
    with pytest.raises(ModelError, match="unknown heads"):
        GeneratorSpec.from_json(json.dumps(values | {"heads": 8}))
    del values["norm"]
    with pytest.raises(ModelError, match="lacks norm"):
        GeneratorSpec.from_json(json.dumps(values))


@given(
    st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(GeneratorSpec)]),
        st.none() | st.text() | st.integers() | st.lists(st.integers()),
    )
)
def test_any_json_is_either_a_spec_or_a_model_error(values: dict[str, object]) -> None:
    text = json.dumps(dataclasses.asdict(GeneratorSpec()) | values)
    try:
        spec = GeneratorSpec.from_json(text)
    except ModelError:
        return
    assert {"padding": "reflect", "antialiasing": False} | json.loads(spec.to_json()) == json.loads(text)


def test_files_without_newer_fields_are_read() -> None:
    values = json.loads(GeneratorSpec().to_json())
    del values["about"]
    assert GeneratorSpec.from_json(json.dumps(values)) == GeneratorSpec()
