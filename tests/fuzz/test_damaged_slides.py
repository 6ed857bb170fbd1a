"""A small, fixed part of ``damaged_slides.py``, and that its verdicts are right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from damaged_slides import DAMAGES, Trial, kinds

GOOD = {"refused", "whole", "stated"}


@pytest.mark.parametrize("name", ["JPEG SVS", "deflate TIFF", "PNG", "BMP"])
def test_damage_is_refused_or_stated(tmp_path: Path, name: str) -> None:
    trial = Trial(tmp_path, kinds(None)[name])
    rng = random.Random(name)
    damages = [damage for kind, damage in DAMAGES.items() if kind != "flip" or name != "JPEG SVS"]
    verdicts = {trial.verdict(damage, rng)[0] for damage in damages}
    assert verdicts <= GOOD


def test_wrong_pixels_without_a_message_are_reported(tmp_path: Path) -> None:
    trial = Trial(tmp_path, kinds(None)["PNG"])
    trial.expected[0, 0] ^= 1
    assert trial.verdict(lambda data, _: data, random.Random(1))[0] == "SILENT"
