"""Decoding of all pixels, and duplicates among them."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_pairs import SIZE, he_pixels, kinds_first, save, side_by_side
from PIL import Image

from wsi2ihc.errors import DatasetError
from wsi2ihc.training.data import decode_pairs, find_pairs, images, load_data

NAMES = {"train": ["a", "b", "c", "d"], "val": ["v", "w"], "test": ["t"]}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("make", [kinds_first, side_by_side])
def test_sound_data(tmp_path: Path, make: Callable[..., Path]) -> None:
    calls: list[tuple[int, int]] = []
    pairs = find_pairs(make(tmp_path, NAMES)).pairs
    assert decode_pairs(pairs, lambda done, total: calls.append((done, total))) == ()
    assert calls == [(done, 6) for done in range(1, 7)]


def test_first_bad_pair_by_path_is_named(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    for split, name in (("val", "v"), ("train", "d"), ("train", "b")):
        truncate(tmp_path / "IHC" / split / f"{name}.png")
    pairs = find_pairs(tmp_path).pairs
    for order in (pairs, pairs[::-1]):
        with pytest.raises(DatasetError) as caught:
            decode_pairs(order)
        assert str(caught.value).startswith(f"{tmp_path / 'IHC' / 'train' / 'b.png'} cannot be decoded")
        assert "\n" not in str(caught.value)


def test_test_images_are_never_opened(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    for kind in ("HE", "IHC"):
        (tmp_path / kind / "test" / "t.png").write_bytes(b"no image")
    assert decode_pairs(find_pairs(tmp_path).pairs) == ()
    with pytest.raises(DatasetError, match="there are no pairs"):
        decode_pairs(find_pairs(tmp_path).of("test"))


def test_identical_halves_are_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(np.hstack([he_pixels(name)] * 2), tmp_path / "train" / f"{name}.png")
    pairs = find_pairs(tmp_path).pairs
    with pytest.raises(DatasetError, match="the H&E and the IHC of every pair have the same pixels"):
        decode_pairs(pairs)


def test_some_pairs_of_the_same_image_are_a_warning(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    with Image.open(tmp_path / "HE" / "train" / "b.png") as image:
        image.save(tmp_path / "IHC" / "train" / "b.png", compress_level=0)
    (warning,) = decode_pairs(find_pairs(tmp_path).pairs)
    assert warning.startswith("1 of the pairs has the same pixels in H&E and IHC, first ")
    assert "b.png" in warning


def test_interrupt_cancels_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = find_pairs(side_by_side(tmp_path, {"": [f"{number:03}" for number in range(100)]})).pairs
    first, interrupted, decoded = threading.Event(), threading.Event(), []

    def slowly(pair: object) -> tuple[bytes | None, ...]:
        if first.is_set():
            assert interrupted.wait(5)
        first.set()
        decoded.append(pair)
        return None, None

    def interrupt(*_: int) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "_hashes_of", slowly)
    with pytest.raises(KeyboardInterrupt):
        decode_pairs(pairs, interrupt)
    assert len(decoded) < 100


# duplicates


def copy(folder: Path, kind: str, source: str, target: str) -> None:
    shutil.copy(folder / kind / f"{source}.png", folder / kind / f"{target}.png")


@pytest.mark.parametrize(("kind", "stain"), [("HE", "H&E"), ("IHC", "IHC")])
def test_images_shared_by_train_and_validation(tmp_path: Path, kind: str, stain: str) -> None:
    kinds_first(tmp_path, NAMES)
    copy(tmp_path, kind, "train/c", "val/w")
    copy(tmp_path, kind, "train/b", "val/v")
    (warning,) = decode_pairs(find_pairs(tmp_path).pairs)
    he = tmp_path / "HE"
    assert warning.startswith(f"the {stain} of {he / 'train' / 'b.png'} (train) and of {he / 'val' / 'v.png'} (val")
    assert "images of 2 validation pairs in all are also in train" in warning
    assert "\n" not in warning


def test_pair_counts_once(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    for kind in ("HE", "IHC"):
        copy(tmp_path, kind, "train/c", "val/w")
        copy(tmp_path, kind, "train/c", "train/d")
    shared, repeated = decode_pairs(find_pairs(tmp_path).pairs)
    assert "images of 1 validation pair " in shared
    assert repeated == "1 pair of train with the pixels of an image of another train pair"


def test_duplicates_within_one_role(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    copy(tmp_path, "HE", "train/a", "train/b")
    copy(tmp_path, "IHC", "train/c", "train/d")
    copy(tmp_path, "IHC", "val/v", "val/w")
    assert decode_pairs(find_pairs(tmp_path).pairs) == (
        "2 pairs of train with the pixels of an image of another train pair",
        "1 pair of validation with the pixels of an image of another validation pair",
    )


def test_pixels_are_compared_not_files(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    source = tmp_path / "HE" / "train" / "a.png"
    (tmp_path / "HE" / "val" / "v.png").unlink()
    with Image.open(source) as image:
        image.save(tmp_path / "HE" / "val" / "v.tif")
    (warning,) = decode_pairs(find_pairs(tmp_path).pairs)
    assert "v.tif (validation) have the same pixels" in warning


def test_halves_of_one_file_are_compared(tmp_path: Path) -> None:
    side_by_side(tmp_path, NAMES)
    shutil.copy(tmp_path / "train" / "a.png", tmp_path / "val" / "v.png")
    (warning,) = decode_pairs(find_pairs(tmp_path).pairs)
    assert "images of 1 validation pair " in warning


def test_same_bytes_in_another_shape_differ(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    for name, shape in (("a", (8, 16, 3)), ("b", (16, 8, 3))):
        save(pixels.reshape(shape), tmp_path / "HE" / f"{name}.png")
        save(255 - pixels.reshape(shape), tmp_path / "IHC" / f"{name}.png")
    assert decode_pairs(find_pairs(tmp_path).pairs) == ()


def test_empty_background_is_not_compared(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    background = np.full((SIZE[1], SIZE[0], 3), (243, 240, 244), np.uint8)
    for name in ("train/a", "train/b", "val/v"):
        save(background, tmp_path / "HE" / f"{name}.png")
    assert decode_pairs(find_pairs(tmp_path).pairs) == ()


def test_pair_is_not_a_duplicate_of_itself(tmp_path: Path) -> None:
    """As where the same pairs are trained and validated on."""
    pairs = find_pairs(kinds_first(tmp_path, {"train": ["a", "b"]})).pairs
    assert decode_pairs(pairs + pairs) == ()
    unknown = tuple(dataclasses.replace(pair, role=None) for pair in pairs)
    assert decode_pairs(unknown) == ()


def test_real_data(dev_data: Path) -> None:
    assert decode_pairs(load_data(dev_data / "hemit512_sample", split_by_patch=True).pairs) == ()
