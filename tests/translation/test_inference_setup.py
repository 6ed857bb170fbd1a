"""Warnings about a model and its options."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from wsi2ihc.models.model_spec import GeneratorSpec
from wsi2ihc.models.registry import load_model
from wsi2ihc.translation.inference_setup import _other_colors
from wsi2ihc.translation.options import ColorPolicy, TranslateOptions


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
def test_a_model_trained_with_another_color_conversion_is_warned_about(
    training: dict[str, Any], icc: ColorPolicy, is_warned: bool
) -> None:
    generator = dataclasses.replace(load_model("identity"), spec=GeneratorSpec(training=training))
    warnings = _other_colors(generator, TranslateOptions(icc=icc))
    assert [f"and this run has --icc {icc}" in warning for warning in warnings] == [True] * is_warned
