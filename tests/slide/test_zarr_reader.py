"""OME-Zarr as input: this program's own output, other writers' layouts, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
from make_slides import halves, texture, write_slide

from wsi2ihc.errors import OptionError, UnreadableSlideError
from wsi2ihc.geometry import Region, Size
from wsi2ihc.models.registry import load_model
from wsi2ihc.slide import open_slide
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.translate import translate

IMAGE = texture(700, 600)
PYRAMID = halves(IMAGE, 3)
RGB = [{"color": color} for color in ("FF0000", "00FF00", "0000FF")]


def write(
    path: Path, *, version: str = "0.4", axes: str = "tczyx", unit: str | None = "micrometer", mpp: float = 0.5,
    pyramid: list[np.ndarray] | None = None, group: str = "", channels: Any = RGB, **how: Any,
) -> Path:  # fmt: skip
    """An OME-Zarr as other programs write it."""
    pyramid = PYRAMID if pyramid is None else pyramid
    zarr_format: Any = 2 if version == "0.4" else 3
    root = zarr.open_group(str(path), mode="a", zarr_format=zarr_format)
    part = root.create_group(group) if group else root
    for number, level in enumerate(pyramid):
        data = level.transpose(["yxc".index(axis) for axis in axes if axis in "yxc"])
        data = data[tuple(slice(None) if axis in "yxc" else None for axis in axes)]
        chunks = tuple(256 if axis in "yx" else 1 for axis in axes)
        array = part.create_array(
            str(number), shape=data.shape, dtype=data.dtype, **{"chunks": chunks, "fill_value": 0, **how}
        )
        array[:] = data
    kinds = {"t": "time", "c": "channel"}
    described = [
        {"name": axis, "type": kinds.get(axis, "space")} | ({"unit": unit} if unit and axis in "zyx" else {})
        for axis in axes
    ]
    datasets = [
        {"path": str(number), "coordinateTransformations": [
            {"type": "scale", "scale": [mpp * 2**number if axis in "yx" else 1 for axis in axes]}
        ]}
        for number in range(len(pyramid))
    ]  # fmt: skip
    facts: dict[str, Any] = {"multiscales": [{"axes": described, "datasets": datasets}]}
    if channels is not None:
        facts["omero"] = {"channels": channels}
    if version == "0.4":
        facts["multiscales"][0]["version"] = version
        part.attrs.update(facts)
    else:
        part.attrs["ome"] = {"version": version, **facts}
    return path


def refused(path: Path | str, kind: type[Exception] = UnreadableSlideError, **choice: int) -> str:
    with pytest.raises(kind) as caught:
        open_slide(path, **choice)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("a.zarr: ")
    return str(caught.value)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "cyx", "yxc", "czyx"])
def test_images_of_other_writers(tmp_path: Path, version: str, axes: str) -> None:
    path = write(tmp_path / "a.zarr", version=version, axes=axes)
    with open_slide(path) as slide:
        info = slide.info
        assert (info.name, info.reader, info.size) == ("a.zarr", "zarr", Size(700, 600))
        assert [level.downsample for level in info.levels] == [1, 2, 4]
        assert (info.mpp, info.mpp_source) == ((0.5, 0.5), "slide")
        assert not any("chunks" in problem or "channels" in problem for problem in info.problems)
        for number, level in enumerate(PYRAMID):
            height, width = level.shape[:2]
            np.testing.assert_array_equal(slide.read_level(number, Region(0, 0, width, height)), level)
        np.testing.assert_array_equal(slide.read_level(0, Region(650, 550, 80, 80))[:50, :50], IMAGE[550:, 650:])
        assert (slide.read_level(0, Region(650, 550, 80, 80))[50:] == 255).all()
        first = info.quickhash
    with open_slide(path) as again:
        assert again.info.quickhash == first


def test_sharded_arrays(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", version="0.5", axes="cyx", chunks=(3, 64, 64), shards=(3, 256, 256))
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 700, 600)), IMAGE)
        assert not any("chunks" in problem for problem in slide.info.problems)


def test_this_program_s_own_output(tmp_path: Path) -> None:
    source = write_slide(tmp_path / "a.tif", PYRAMID, compression="deflate", mpp=0.5)
    output = tmp_path / "out.ome.zarr"
    with open_slide(source) as slide:
        translate(slide, load_model("identity"), output, TranslateOptions(tissue="none", workers=1))
        with open_slide(output) as own:
            assert own.info.size == slide.info.size
            assert own.info.mpp == pytest.approx((0.5, 0.5))
            assert not any("channels" in problem or "chunks" in problem for problem in own.info.problems)
            assert np.abs(own.read_level(0, Region(0, 0, 700, 600)).astype(int) - IMAGE).max() <= 1


@pytest.mark.parametrize(("unit", "mpp", "expected"), [
    ("micrometer", 0.5, 0.5), ("nanometer", 500, 0.5), ("millimeter", 0.0005, 0.5), ("angstrom", 5000, 0.5),
    (None, 0.5, None), ("furlong", 0.5, None),
])  # fmt: skip
def test_units(tmp_path: Path, unit: str | None, mpp: float, expected: float | None) -> None:
    with open_slide(write(tmp_path / "a.zarr", unit=unit, mpp=mpp)) as slide:
        assert slide.info.mpp == (None if expected is None else pytest.approx((expected, expected)))
        assert any("unit" in problem for problem in slide.info.problems) == (expected is None)


def test_series_of_bioformats2raw(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(path, group="0", pyramid=[texture(120, 100, 3)], mpp=16.0)
    write(path, group="1")
    zarr.open_group(str(path), mode="a").attrs["bioformats2raw.layout"] = 3
    with open_slide(path) as slide:
        assert slide.info.size == Size(700, 600)
        assert slide.info.mpp == (0.5, 0.5)
        assert any("series 0: 120×100 px" in problem for problem in slide.info.problems)
        assert [image.chosen for image in slide.info.images] == [False, True]
        first = slide.info.quickhash
    with open_slide(path, series=0) as slide:
        assert slide.info.size == Size(120, 100)
        assert slide.info.quickhash != first
    assert "series 0, 1" in refused(path, OptionError, series=7)
    assert "has no pages" in refused(path, OptionError, page=0)
    write(path, group="2", pyramid=[texture(690, 600, 3)])
    assert "choose one with --series N" in refused(path)


def test_missing_chunks_are_the_fill_value_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", axes="cyx", chunks=(3, 256, 256), fill_value=255)
    (path / "0" / "0.1.1").unlink()
    with open_slide(path) as slide:
        pixels = slide.read_level(0, Region(0, 0, 700, 600))
        assert (pixels[256:512, 256:512] == 255).all()
        np.testing.assert_array_equal(pixels[:256], IMAGE[:256])
        assert any("Missing chunks: 1 of 9" in problem and "(255)" in problem for problem in slide.info.problems)


@pytest.mark.parametrize(
    ("version", "compressor"),
    [
        ("0.4", numcodecs.Blosc()), ("0.4", numcodecs.Zlib()), ("0.4", numcodecs.GZip()), ("0.4", numcodecs.LZ4()),
        ("0.4", numcodecs.Zstd()), ("0.4", None), ("0.5", zarr.codecs.ZstdCodec()), ("0.5", zarr.codecs.BloscCodec()),
        ("0.5", zarr.codecs.GzipCodec()), ("0.5", None),
    ],
)  # fmt: skip
def test_damaged_chunks_are_errors(tmp_path: Path, version: str, compressor: Any) -> None:
    path = write(
        tmp_path / "a.zarr", version=version, axes="cyx", chunks=(3, 256, 256), compressors=compressor, pyramid=[IMAGE]
    )
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 700, 600)), IMAGE)
    chunk = path / "0" / ("0.0.0" if version == "0.4" else "c/0/0/0")
    whole = chunk.read_bytes()
    for part in (whole[:100], whole[: len(whole) // 2], b"", whole * 5):
        chunk.write_bytes(part)
        with (
            open_slide(path) as slide,
            pytest.raises(UnreadableSlideError, match=r"^a\.zarr: damaged at level-0 px x 0"),
        ):
            slide.read_level(0, Region(0, 0, 100, 100))


@pytest.mark.parametrize("compressor", [numcodecs.Blosc(), numcodecs.Zlib(), numcodecs.LZ4(), numcodecs.Zstd()])
def test_a_chunk_that_would_decode_into_more_is_not_decoded(tmp_path: Path, compressor: Any) -> None:
    path = write(tmp_path / "a.zarr", axes="cyx", chunks=(3, 256, 256), compressors=compressor, pyramid=[IMAGE])
    (path / "0" / "0.0.0").write_bytes(compressor.encode(bytes(50_000_000)))
    with open_slide(path) as slide, pytest.raises(UnreadableSlideError, match="a chunk of 196,608 bytes holds"):
        slide.read_level(0, Region(0, 0, 100, 100))


def _streamed(data: bytes) -> bytes:
    """A Zstandard frame that does not state its size, of raw blocks (RFC 8878, 3.1.1)."""
    blocks = [data[start : start + 65536] for start in range(0, len(data), 65536)]
    headers = [
        (len(block) << 3 | (number == len(blocks))).to_bytes(3, "little") for number, block in enumerate(blocks, 1)
    ]
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(header + block for header, block in zip(headers, blocks, strict=True))


def test_a_zstd_chunk_that_does_not_state_its_size_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", axes="cyx", chunks=(3, 256, 256), compressors=numcodecs.Zstd(), pyramid=[IMAGE])
    chunk = path / "0" / "0.0.0"
    stream = _streamed(bytes(numcodecs.Zstd().decode(chunk.read_bytes())))
    chunk.write_bytes(stream)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 700, 600)), IMAGE)
    for damaged in (stream[:-1000], _streamed(bytes(50_000_000))):
        chunk.write_bytes(damaged)
        with open_slide(path) as slide, pytest.raises(UnreadableSlideError, match=r"^a\.zarr: damaged"):
            slide.read_level(0, Region(0, 0, 100, 100))


def test_a_compression_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", axes="cyx", compressors=numcodecs.BZ2(), pyramid=[IMAGE])
    assert "its compression bz2 is not one that is read" in refused(path)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"pyramid": [IMAGE[..., :1]]}, "have 1 channel"),
        ({"pyramid": [np.dstack([IMAGE, IMAGE[..., :1]])]}, "have 4 channels"),
        ({"pyramid": [IMAGE.astype(np.uint16)]}, "are of the type uint16"),
        ({"channels": [{"color": color} for color in ("0000FF", "00FF00", "FF0000")]}, "not red, green and blue"),
        ({"axes": "yxc", "chunks": (1, 1, 1), "unit": "micrometer", "version": "0.3"}, "0.3; versions 0.4 and 0.5"),
    ],
)
def test_other_images_are_refused(tmp_path: Path, how: dict[str, Any], reason: str) -> None:
    version = how.pop("version", None)
    path = write(tmp_path / "a.zarr", **({"pyramid": [IMAGE[:8, :8]]} | how))
    if version:
        attributes = json.loads((path / ".zattrs").read_text())
        attributes["multiscales"][0]["version"] = version
        (path / ".zattrs").write_text(json.dumps(attributes))
    assert reason in refused(path)


def test_planes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", pyramid=[IMAGE])
    array = zarr.open_group(str(path), mode="a").create_array(
        "0", shape=(1, 3, 5, 60, 70), chunks=(1, 1, 1, 60, 70), dtype="u1", overwrite=True
    )
    array[:] = 1
    assert "lie in 5 planes" in refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"multiscales": []}, {"multiscales": 5}, {"multiscales": [{}]}, {"multiscales": None}, {"plate": {}},
        {"multiscales": [{"axes": [{"name": "c"}, {"name": "y"}, {"name": "x"}], "datasets": [{"path": "../../b"}]}]},
        {"multiscales": [{"axes": [{"name": "c"}, {"name": "y"}, {"name": "x"}], "datasets": [{"path": "nowhere"}]}]},
        {"multiscales": [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}]},
        {"multiscales": [{"axes": [{"name": "q"}, {"name": "y"}, {"name": "x"}], "datasets": [{"path": "0"}]}]},
    ],
)  # fmt: skip
def test_damaged_metadata(tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path / "a.zarr")
    attributes = json.loads((path / ".zattrs").read_text()) | change
    (path / ".zattrs").write_text(json.dumps({key: value for key, value in attributes.items() if value is not None}))
    refused(path)


def test_text_that_is_not_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr")
    (path / ".zattrs").write_text("{")
    refused(path)
    (path / ".zattrs").write_text(" " * (17 * 2**20))
    assert "17,825,792 bytes" in refused(path)


def test_an_address(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", axes="cyx")
    memory = fsspec.filesystem("memory")
    for file in path.rglob("*"):
        if file.is_file():
            memory.pipe(f"/slides/a.zarr/{file.relative_to(path)}", file.read_bytes())
    with open_slide("memory://slides/a.zarr") as slide:
        assert slide.info.name == "a.zarr"
        np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 700, 600)), IMAGE)
    with pytest.raises(FileNotFoundError, match="no OME-Zarr"):
        open_slide("memory://slides/none.zarr")


def test_levels_in_another_order_are_sorted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", version="0.5", axes="cyx")
    facts = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    facts["attributes"]["ome"]["multiscales"][0]["datasets"].reverse()
    (path / "zarr.json").write_text(json.dumps(facts), encoding="utf-8")
    with open_slide(path) as slide:
        assert slide.info.size == Size(700, 600)
        assert [level.downsample for level in slide.info.levels] == [1, 2, 4]
        assert slide.info.mpp == (0.5, 0.5)
        assert np.array_equal(slide.read_level(0, Region(0, 0, 700, 600)), IMAGE)


def test_a_level_without_pixels_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", version="0.5", axes="cyx")
    facts = json.loads((path / "0" / "zarr.json").read_text(encoding="utf-8"))
    (path / "0" / "zarr.json").write_text(json.dumps(facts | {"shape": [3, 0, 0]}), encoding="utf-8")
    assert "no pixels" in refused(path)


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
def test_huge_metadata_are_refused_without_reading_them(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.zarr", version="0.5", axes="cyx")
    os.truncate(path / name, 2**30)
    assert "zarr.json has 1,073,741,824 bytes, more than any slide's" in refused(path)


@pytest.mark.timeout(120)
@pytest.mark.skipif(os.name != "posix", reason="no such files")
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json", "0/c/0/0/0"])
def test_nothing_waits_for_a_pipe_or_reads_a_device(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path / "a.zarr", version="0.5", axes="cyx")
    file = path / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(UnreadableSlideError, match=r"not a regular file|OME-Zarr"):
        open_slide(path).read_level(0, Region(0, 0, 256, 256))
