from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from make_slides import texture
from PIL import ImageCms

from wsi2ihc.slide import srgb_profile, to_srgb_transform
from wsi2ihc.slide.icc import is_usable_profile


def swapped_profile(color_space: bytes = b"RGB ") -> bytes:
    """A matrix profile whose red primary is sRGB's green, and the other way round: unmistakable when it is applied."""
    tags = dict(_tags(srgb_profile()))
    tags[b"rXYZ"], tags[b"gXYZ"] = tags[b"gXYZ"], tags[b"rXYZ"]
    header = bytearray(srgb_profile()[:128])
    header[16:20] = color_space
    body, table = b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data.ljust(-(-len(data) // 4) * 4, b"\0")
    profile = header + struct.pack(">I", len(tags)) + table + body
    profile[:4] = struct.pack(">I", len(profile))
    return bytes(profile)


def _tags(profile: bytes) -> list[tuple[bytes, bytes]]:
    count = struct.unpack(">I", profile[128:132])[0]
    entries = [struct.unpack(">4sII", profile[132 + 12 * at : 144 + 12 * at]) for at in range(count)]
    return [(name, profile[offset : offset + size]) for name, offset, size in entries]


def test_srgb_stays_as_it_is() -> None:
    image = texture(80, 60)
    assert np.abs(to_srgb_transform(srgb_profile())(image).astype(int) - image).max() <= 1


def test_profile_is_applied() -> None:
    image = texture(80, 60)
    converted = to_srgb_transform(swapped_profile())(image)
    assert np.abs(converted.astype(int) - image[..., [1, 0, 2]]).max() <= 1


def test_source_is_left_alone_and_result_is_its_own() -> None:
    image = texture(80, 60)
    before = image.copy()
    converted = to_srgb_transform(swapped_profile())(image)
    converted[:] = 0
    np.testing.assert_array_equal(image, before)


def test_it_works_px_by_px() -> None:
    convert = to_srgb_transform(swapped_profile())
    image = texture(80, 60)
    whole = convert(image)
    np.testing.assert_array_equal(convert(image[10:40, 5:50]), whole[10:40, 5:50])
    assert convert(image[:0]).shape == (0, 80, 3)


def test_threads() -> None:
    convert = to_srgb_transform(swapped_profile())
    images = [texture(200, 200, seed) for seed in range(6)]
    alone = [convert(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        for one, other in zip(alone * 5, pool.map(convert, images * 5), strict=True):
            np.testing.assert_array_equal(one, other)


def test_default_intent_is_that_of_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = bytearray(srgb_profile())
    seen = []
    real = ImageCms.ImageCmsTransform

    def transform(*arguments: object, intent: ImageCms.Intent) -> ImageCms.ImageCmsTransform:
        seen.append(intent)
        return real(*arguments, intent=intent)

    monkeypatch.setattr(ImageCms, "ImageCmsTransform", transform)
    for intent in ImageCms.Intent:
        profile[64:68] = struct.pack(">I", intent)  # ICC.1:2022, 7.2.15
        to_srgb_transform(bytes(profile))
    assert seen == list(ImageCms.Intent)


@pytest.mark.parametrize(
    "profile", [b"", b"x" * 300, srgb_profile()[:200], swapped_profile(b"CMYK"), swapped_profile(b"GRAY")]
)
def test_profiles_that_cannot_be_used(profile: bytes) -> None:
    assert not is_usable_profile(profile)
    with pytest.raises(ValueError, match="color profile"):
        to_srgb_transform(profile)


def test_our_profile_is_the_same_every_time_and_readable() -> None:
    assert srgb_profile() == srgb_profile.__wrapped__()
    assert srgb_profile()[24:36] == bytes([7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0])
    opened = ImageCms.getOpenProfile(BytesIO(srgb_profile()))
    assert "sRGB" in ImageCms.getProfileDescription(opened)
