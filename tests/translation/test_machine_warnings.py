"""What is said of a model on its device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from wsi2ihc.generator.registry import load_generator
from wsi2ihc.generator.spec import GeneratorSpec
from wsi2ihc.translation.machine import _other_colors
from wsi2ihc.translation.options import ColourPolicy, TranslateOptions


@pytest.mark.parametrize(
    ("training", "icc", "is_warned"),
    [
        ({"data": {"icc": "srgb"}}, "keep", True),
        ({"data": {"icc": "keep"}}, "srgb", True),
        ({"data": {"icc": "srgb"}}, "srgb", False),
        ({"data": {"icc": None}}, "srgb", False),
        ({"data": ["icc"]}, "srgb", False),
        ({}, "srgb", False),
    ],
)
def test_a_model_trained_on_colors_that_were_read_otherwise_is_warned_of(
    training: dict[str, Any], icc: ColourPolicy, is_warned: bool
) -> None:
    generator = dataclasses.replace(load_generator("identity"), spec=GeneratorSpec(training=training))
    warnings = _other_colors(generator, TranslateOptions(icc=icc))
    assert [f"and this run has --icc {icc}" in warning for warning in warnings] == [True] * is_warned
