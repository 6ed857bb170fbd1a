"""Damage inside plain images: what their formats can tell is an error."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from make_slides import texture
from PIL import Image

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.slide import open_slide

IMAGE = texture(400, 300)


def stored(kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, kind, **how)
    return buffer.getvalue()


def refusal(path: Path) -> str | None:
    try:
        open_slide(path).close()
    except UnreadableSlideError as error:
        return str(error)
    return None


def test_any_flipped_bit_of_a_png_is_noticed(tmp_path: Path) -> None:
    rng = random.Random(1)
    content = stored("PNG")
    for _ in range(30):
        damaged = bytearray(content)
        damaged[rng.randrange(8, len(content))] ^= 1 << rng.randrange(8)
        (tmp_path / "a.png").write_bytes(damaged)
        assert refusal(tmp_path / "a.png")


@pytest.mark.parametrize(
    "how", [{}, {"progressive": True}, {"optimize": True}], ids=["plain", "progressive", "own tables"]
)
def test_holes_in_a_jpeg_are_noticed(tmp_path: Path, how: dict[str, bool]) -> None:
    rng = random.Random(2)
    content = stored("JPEG", quality=90, **how)
    for _ in range(20):
        at = rng.randrange(700, len(content) - 512)
        (tmp_path / "a.jpg").write_bytes(content[:at] + bytes(512) + content[at + 512 :])
        assert refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("kind", "how"), [("JPEG", {}), ("PNG", {}), ("BMP", {}), ("WEBP", {}), ("WEBP", {"lossless": True})]
)
def test_cut_images_are_noticed(tmp_path: Path, kind: str, how: dict[str, bool]) -> None:
    rng = random.Random(3)
    content = stored(kind, **how)
    for _ in range(10):
        (tmp_path / "a").write_bytes(content[: rng.randrange(20, len(content) - 12)])
        assert refusal(tmp_path / "a")


def test_pixels_are_those_of_pillow(tmp_path: Path) -> None:
    for how in ({}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}):
        content = stored("JPEG", quality=85, **how)
        (tmp_path / "a.jpg").write_bytes(content + bytes(1000))  # cameras append what they like
        with Image.open(io.BytesIO(content)) as image, open_slide(tmp_path / "a.jpg") as slide:
            np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 400, 300)), np.asarray(image))
