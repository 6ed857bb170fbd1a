"""Header checks before training, and decoding of pairs."""

from __future__ import annotations

import io
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from make_pairs import SIZE, he_pixels, kinds_first, save, side_by_side
from PIL import Image

from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import Size
from wsi2ihc.training.data import Pair, check_images, find_pairs, image_file, images, load_data, read_pair
from wsi2ihc.training.data.image_file import read_image, read_size

NAMES = {"train": ["a_1", "a_2"], "val": ["b_1"], "test": ["c_1"]}


def check(folder: Path, crop_px: int = 16) -> str:
    """Return the result of `check_images` for a dataset."""
    return str(check_images(find_pairs(folder).pairs, crop_px=crop_px))


def check_error(folder: Path, *parts: str, crop_px: int = 16) -> None:
    with pytest.raises(DatasetError) as caught:
        check(folder, crop_px)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [kinds_first, side_by_side])
def test_sizes(tmp_path: Path, make: Callable[..., Path]) -> None:
    make(tmp_path, NAMES)
    assert check(tmp_path) == "40×32"
    make(tmp_path, {"train": ["d"]}, size=(24, 64))
    make(tmp_path, {"test": ["e"]}, size=(4, 4))
    sizes = check_images(find_pairs(tmp_path).pairs, crop_px=16)
    assert (sizes.smallest, sizes.largest, sizes.patches) == (Size(24, 32), Size(40, 64), 4)
    assert str(sizes) == "24×32 to 40×64"


def test_test_images_are_never_opened(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    (tmp_path / "HE" / "test" / "c_1.png").write_bytes(b"no image")
    assert check(tmp_path) == "40×32"
    (tmp_path / "HE" / "val" / "b_1.png").write_bytes(b"no image")
    check_error(tmp_path, "b_1.png is not an image")


def rgb16(path: Path) -> None:
    cv2.imwrite(str(path), np.full((SIZE[1], SIZE[0], 3), 40_000, np.uint16))


def rgb16_tiff(path: Path) -> None:
    tifffile.imwrite(path, np.full((SIZE[1], SIZE[0], 3), 40_000, np.uint16), photometric="rgb")


def transparent(path: Path) -> None:
    """An RGB PNG of which one color is transparent."""
    Image.fromarray(he_pixels("x")).save(path, transparency=(255, 255, 255))


def converted(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(he_pixels("x")).convert(mode).save(path)


@pytest.mark.parametrize(
    ("suffix", "write", "problem"),
    [
        ("png", rgb16, "has 16 bits per channel"),
        ("tif", rgb16_tiff, "has 16 bits per channel"),
        ("png", converted("I;16"), "has 16 bits per channel"),
        ("tiff", converted("F"), "has 32 bits per channel"),
        ("png", converted("L"), "is gray"),
        ("jpg", converted("L"), "is gray"),
        ("png", converted("LA"), "is gray with alpha"),
        ("png", converted("1"), "is black and white"),
        ("png", converted("P"), "has a palette"),
        ("png", converted("RGBA"), "has an alpha channel"),
        ("tif", converted("RGBA"), "has an alpha channel"),
        ("png", transparent, "has an alpha channel"),
        ("jpg", converted("CMYK"), "is CMYK"),
        ("tif", converted("LAB"), "has the mode LAB"),
    ],
)
def test_unsupported_pixel_formats(tmp_path: Path, suffix: str, write: Callable[[Path], None], problem: str) -> None:
    kinds_first(tmp_path, {"train": ["a_1", "a_2"]})
    path = tmp_path / "IHC" / "train" / f"a_2.{suffix}"
    path.with_suffix(".png").unlink()
    write(path)
    check_error(tmp_path, f"{path} {problem}; convert it to 8-bit RGB")
    with pytest.raises(DatasetError, match="convert it to 8-bit RGB"):
        read_pair(find_pairs(tmp_path).pairs[1])


@pytest.mark.parametrize(("suffix", "kind"), [("tif", "TIFF"), ("png", "PNG"), ("jpg", "MPO")])
def test_files_with_several_images(tmp_path: Path, suffix: str, kind: str) -> None:
    """TIFF pages, an animated PNG, and multi-picture JPEG."""
    kinds_first(tmp_path, {"train": ["a_1", "a_2"]})
    path = tmp_path / "IHC" / "train" / f"a_2.{suffix}"
    path.with_suffix(".png").unlink()
    others = [Image.fromarray(he_pixels(name)) for name in "yz"]
    Image.fromarray(he_pixels("x")).save(path, kind, save_all=True, append_images=others)
    check_error(tmp_path, f"{path} holds several images; keep one image in a file")
    with pytest.raises(DatasetError, match="holds several images"):
        read_pair(find_pairs(tmp_path).pairs[1])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, when the pair is read
@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", b"\xff\xd8\xff", b"BM"])
def test_file_is_not_an_image(tmp_path: Path, content: bytes) -> None:
    kinds_first(tmp_path, NAMES)
    path = tmp_path / "HE" / "train" / "a_1.png"
    path.write_bytes(content)
    check_error(tmp_path, f"{path} is not an image, or is damaged; replace it")
    with pytest.raises(DatasetError, match=r"a_1.png is not an image"):
        read_pair(find_pairs(tmp_path).pairs[0])


def test_damaged_header_of_a_tiff(tmp_path: Path) -> None:
    """Without a width: Pillow's is then a TypeError."""
    kinds_first(tmp_path, NAMES)
    path = tmp_path / "HE" / "train" / "a_1.png"
    Image.fromarray(he_pixels("x")).save(path, "TIFF")
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<HHI", 256, 4, 1), struct.pack("<HHI", 999, 4, 1)))
    assert path.read_bytes() != data
    check_error(tmp_path, f"{path} is not an image, or is damaged")


def test_giant_image(tmp_path: Path) -> None:
    """A PNG whose header claims 60,000 px each way: refused before memory is asked for."""
    kinds_first(tmp_path, NAMES)
    path = tmp_path / "HE" / "train" / "a_1.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = path.read_bytes()
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    check_error(tmp_path, f"{path} is too large for a patch")


@pytest.mark.parametrize("size", [(8193, 8192), (13_000, 13_000), (1_000_000, 1000)])
def test_too_large_patches_are_an_error_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    """A file of 1.2 MB with 13,000² px of one color took 6 GB to decode."""
    kinds_first(tmp_path, NAMES)
    for kind in ("PNG", "BMP", "TIFF"):
        path = tmp_path / "HE" / "train" / "a_1.png"
        path.write_bytes(claiming(kind, *size))
        check_error(tmp_path, f"{path} is too large for a patch: {size[0]}×{size[1]} px, and 8192×8192 is the most")
        with pytest.raises(DatasetError, match="is too large for a patch"):
            read_image(path)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A file of 4 px whose header claims more."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, kind)
    data = bytearray(file.getvalue())
    if kind == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:
        for tag, value in ((256, width), (257, height)):
            at = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
            data[at : at + 4] = struct.pack("<I", value)
    return bytes(data)


def test_two_images_side_by_side_may_be_twice_as_large(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(claiming("PNG", 16_384, 8192))
    assert read_size(path, images=2) == Size(16_384, 8192)
    with pytest.raises(DatasetError, match="too large for a patch"):
        read_size(path)


@pytest.mark.parametrize(
    "content", [b"8BPS\0\1", b"SIMPLE  =", b"GIF89a", b"RIFF....WEBP", b"\0\0\2\0\0\0", b"%!PS-Adobe"]
)
def test_other_formats_reach_no_decoder(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was called")

    for plugin in image_file._SIGNATURES:
        monkeypatch.setattr(image_file, "_SIGNATURES", [(plugin[0], plugin[1], opened)])
    monkeypatch.setattr(Image, "open", opened)
    path = tmp_path / "x.png"
    path.write_bytes(content + bytes(500))
    for read in (read_size, read_image):
        with pytest.raises(DatasetError, match="is not an image, or is damaged"):
            read(path)


@pytest.mark.parametrize("name", ["x.tif", "x.png", "x.jpg"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_format_is_identified_by_content(tmp_path: Path, kind: str, name: str) -> None:
    Image.fromarray(he_pixels("x")).save(tmp_path / name, kind)
    assert read_size(tmp_path / name) == Size(*SIZE)
    assert read_image(tmp_path / name).shape == (SIZE[1], SIZE[0], 3)


def test_pipe_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    os.mkfifo(path)
    for read in (read_size, read_image):
        with pytest.raises(DatasetError, match="is not a regular file"):
            read(path)


def directory(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """A little-endian TIFF file of one directory; entries of tag, type, count, and value or offset."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + struct.pack("<I", following) + bytes(4096)


SMALL = ((256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (directory(*SMALL, (259, 3, 1, 1), (322, 4, 1, 60_000), (323, 4, 1, 60_000)), "is too large for a patch"),
        (directory(*SMALL, (259, 3, 1, 34887)), "has an unsupported compression"),
        (directory(*SMALL, (259, 3, 1, 50000)), "has an unsupported compression"),
        (directory(*SMALL, (259, 3, 1, 1), following=8), "holds several images"),
        (directory(*SMALL, (259, 3, 1, 1), (274, 3, 1, 6)), "has an orientation tag; save it upright"),
        (directory(*SMALL, *((40_000 + tag, 7, 1 << 24, 8) for tag in range(300))), "is not an image, or is damaged"),
        (directory(*SMALL, *((40_000 + tag, 7, 1, 8) for tag in range(5000))), "is not an image, or is damaged"),
        (directory(*SMALL, (258, 3, 1 << 31, 8)), "is not an image, or is damaged"),
        (directory(), "is not an image, or is damaged"),
        (struct.pack("<2sHI", b"II", 42, 1 << 31), "is not an image, or is damaged"),
    ],
)
def test_tiff_headers_are_checked_before_decoding(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    for read in (read_size, read_image):
        with pytest.raises(DatasetError, match=problem):
            read(path)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("big", [False, True])
def test_tiff_compressions(tmp_path: Path, compression: str, big: bool) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(he_pixels("x")).save(path, compression=compression, big_tiff=big)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), np.asarray(image))
    tifffile.imwrite(path, he_pixels("x"), photometric="rgb", tile=(32, 32), bigtiff=big, byteorder="<" if big else ">")
    np.testing.assert_array_equal(read_image(path), he_pixels("x"))


def test_text_that_decompresses_to_more_than_the_file_is_an_error(tmp_path: Path) -> None:
    path = save(he_pixels("x"), tmp_path / "x.png")
    data = path.read_bytes()
    for name in (b"zTXt", b"iCCP"):
        chunk = name + b"x\0\0" + zlib.compress(bytes(1 << 26))
        packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(data[:33] + packed + data[33:])
        with pytest.raises(DatasetError, match="is not an image, or is damaged"):
            read_size(path)


def test_small_patch_in_a_large_file_is_an_error(tmp_path: Path) -> None:
    path = save(he_pixels("x"), tmp_path / "x.bmp")
    with path.open("r+b") as file:
        file.truncate(65 << 20)
    with pytest.raises(DatasetError, match=r"has 68,157,440 bytes, too many for 40×32 px"):
        read_size(path)


def test_jpeg_with_many_scans_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(he_pixels("x")).save(path, progressive=True)
    data = path.read_bytes()
    assert read_image(path).shape == (32, 40, 3)
    scan = data[data.rindex(b"\xff\xda") : -2]
    path.write_bytes(data[:-2] + 100 * scan + data[-2:])
    with pytest.raises(DatasetError, match="scans"):
        read_image(path)


def test_threads_share_a_memory_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds_first(tmp_path, {"train": [f"{number:02}" for number in range(12)]})
    pairs = find_pairs(tmp_path).pairs
    monkeypatch.setattr(images, "_memory", images._MemoryBudget(3 * 2 * SIZE[0] * SIZE[1] * 12))
    inside, most = [], []

    def hold(pair: Pair) -> None:
        with images.reserved_memory(pair):
            inside.append(pair)
            most.append(len(inside))
            time.sleep(0.005)
            inside.remove(pair)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, pairs))
    assert max(most) == 3
    monkeypatch.setattr(images, "_memory", images._MemoryBudget(1))
    with images.reserved_memory(pairs[0]):
        pass  # alone, whatever it needs


def test_missing_file(tmp_path: Path) -> None:
    pairs = find_pairs(kinds_first(tmp_path, NAMES)).pairs
    pairs[0].ihc.unlink()
    with pytest.raises(DatasetError, match=r"a_1.png cannot be read \(No such file"):
        check_images(pairs, crop_px=16)
    with pytest.raises(DatasetError, match=r"a_1.png cannot be decoded \(.*No such file"):
        read_pair(pairs[0])


def test_different_sizes(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    save(he_pixels("a_2", (40, 36)), tmp_path / "IHC" / "train" / "a_2.png")
    check_error(tmp_path, "a_2.png has 40×32 px, but", "a_2.png 40×36; a pair has one size")
    with pytest.raises(DatasetError, match="has 40×32 px, but"):
        read_pair(find_pairs(tmp_path).pairs[1])


def test_one_folder_for_both_stains_is_an_error(tmp_path: Path) -> None:
    kinds_first(tmp_path / "data", NAMES)
    shutil.rmtree(tmp_path / "data" / "IHC")
    (tmp_path / "data" / "IHC").symlink_to(tmp_path / "data" / "HE", target_is_directory=True)
    with pytest.raises(DatasetError, match="are one file, but given as H&E and as IHC"):
        find_pairs(tmp_path / "data")
    (tmp_path / "data" / "IHC").unlink()
    shutil.copytree(tmp_path / "data" / "HE", tmp_path / "data" / "IHC")
    check_error(tmp_path / "data", "the H&E and the IHC images are the same")


def test_hard_linked_pair_is_an_error(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    ihc = tmp_path / "IHC" / "val" / "b_1.png"
    ihc.unlink()
    ihc.hardlink_to(tmp_path / "HE" / "val" / "b_1.png")
    with pytest.raises(DatasetError, match=r"b_1\.png are one file"):
        find_pairs(tmp_path)


def test_odd_width_of_two_halves(tmp_path: Path) -> None:
    side_by_side(tmp_path, NAMES)
    save(he_pixels("a_2", (41, 32)), tmp_path / "train" / "a_2.png")
    check_error(tmp_path, "a_2.png is 41 px wide, but two images side by side have an even width")
    with pytest.raises(DatasetError, match="is 41 px wide"):
        read_pair(find_pairs(tmp_path).pairs[1])


def test_patch_smaller_than_the_crop(tmp_path: Path) -> None:
    kinds_first(tmp_path, NAMES)
    assert check(tmp_path, crop_px=32) == "40×32"
    check_error(tmp_path, "a_1.png: a patch of 40×32 px is smaller than the crop of 36; lower --crop-size", crop_px=36)


def test_no_pairs_to_check() -> None:
    with pytest.raises(DatasetError, match="there are no pairs"):
        check_images([], crop_px=16)


# decoding


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_pixels_match_pillow(tmp_path: Path, suffix: str) -> None:
    he = save(he_pixels("x"), tmp_path / f"he.{suffix}")
    ihc = save(he_pixels("y"), tmp_path / f"ihc.{suffix}")
    read = read_pair(Pair("x", he, ihc))
    for pixels, path in zip(read, (he, ihc), strict=True):
        assert (pixels.dtype, pixels.shape) == (np.uint8, (32, 40, 3))
        with Image.open(path) as image:
            np.testing.assert_array_equal(pixels, np.asarray(image))


def test_halves(tmp_path: Path) -> None:
    side_by_side(tmp_path, {"": ["x"]})
    path = tmp_path / "x.png"
    left, right = read_pair(Pair("x", path, path, "left"))
    np.testing.assert_array_equal(left, he_pixels("x"))
    np.testing.assert_array_equal(right, 255 - he_pixels("x"))
    swapped = read_pair(Pair("x", path, path, "right"))
    np.testing.assert_array_equal(swapped[0], right)
    np.testing.assert_array_equal(swapped[1], left)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_orientation_in_exif_is_ignored(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(he_pixels("x")).save(path, exif=exif)
    assert read_pair(Pair("x", path, path))[0].shape == (32, 40, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.98])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(he_pixels("x", (128, 128)), tmp_path / f"x.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DatasetError) as caught:
        read_pair(Pair("x", path, path))
    assert str(caught.value).startswith(f"{path} ")
    assert "\n" not in str(caught.value)


def test_damaged_png(tmp_path: Path) -> None:
    path = save(he_pixels("x", (128, 128)), tmp_path / "x.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"x.png cannot be decoded"):
        read_pair(Pair("x", path, path))


def test_real_data(dev_data: Path) -> None:
    data = load_data(dev_data / "hemit512_sample", split_by_patch=True)
    assert str(check_images(data.pairs, crop_px=256)) == "512×512"
    for pair in data.pairs[:3]:
        for pixels, path in zip(read_pair(pair), (pair.he, pair.ihc), strict=True):
            with Image.open(path) as image:
                np.testing.assert_array_equal(pixels, np.asarray(image))
