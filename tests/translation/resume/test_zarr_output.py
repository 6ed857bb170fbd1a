"""OME-Zarr outputs: metadata of the specification, shards, validation, and what is never replaced."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from make_slides import halves, write_slide
from ome_zarr_models.v05 import Image as OmeZarrImage
from PIL import Image, ImageCms

import wsi2ihc
from wsi2ihc.errors import OutputError, OutputExistsError
from wsi2ihc.geometry import Region, RGBImage, Size
from wsi2ihc.pyramid import PyramidOptions, Tile, read_overview
from wsi2ihc.pyramid.levels import PyramidLevel
from wsi2ihc.pyramid.ome_zarr import (
    DamagedShardError,
    create_level,
    open_level,
    read_tiles,
    tiles_per_shard,
    validate_image,
    write_tiles,
)
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.resume import open_checkpoint, translate_band

MakeOptions = Callable[..., TranslateOptions]


def translated(slide_file: Path, out: Path, options: TranslateOptions, model: str = "counterstain") -> dict[str, Any]:
    with wsi2ihc.open_slide(slide_file) as slide:
        return wsi2ihc.translate(slide, wsi2ihc.load_model(model), out, options).to_json()


def attributes(out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / "zarr.json").read_text())
    assert (facts["zarr_format"], facts["node_type"]) == (3, "group")
    return dict(facts["attributes"])


def test_the_metadata_follows_the_specification(slide_file: Path, make_options: MakeOptions, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.zarr"
    report = translated(slide_file, out, make_options())
    image = OmeZarrImage.from_zarr(zarr.open_group(out, mode="r"))  # validates against the specification
    (scale,) = image.ome_attributes.multiscales
    assert [(axis.name, axis.type, axis.unit) for axis in scale.axes] == [
        ("c", "channel", None),
        ("y", "space", "micrometer"),
        ("x", "space", "micrometer"),
    ]
    assert [one.path for one in scale.datasets] == ["0", "1", "2", "3"]
    for number, (one, size) in enumerate(zip(scale.datasets, report["output_levels"], strict=True)):
        first, second = one.coordinateTransformations
        assert first.scale == [1.0, 0.5 * 2**number, 0.5 * 2**number]
        assert second.translation == [0.0, *[0.25 * (2**number - 1)] * 2]
        assert image.members[one.path].shape == (3, size["height"], size["width"])
        assert image.members[one.path].data_type == "uint8"
    ome = attributes(out)["ome"]
    assert [(one["label"], one["color"]) for one in ome["omero"]["channels"]] == [
        ("Red", "FF0000"),
        ("Green", "00FF00"),
        ("Blue", "0000FF"),
    ]
    assert ome["omero"]["channels"][0]["window"] == {"min": 0, "max": 255, "start": 0, "end": 255}


def test_the_provenance_contains_no_paths(slide_file: Path, make_options: MakeOptions, tmp_path: Path) -> None:
    out = tmp_path / "out.ome.zarr"
    report = translated(slide_file, out, make_options(region=Region(100, 60, 200, 190)))
    facts = attributes(out)
    assert facts["wsi2ihc"]["provenance"]["source quickhash"] == report["source"]["quickhash"]
    assert "not for diagnosis" in facts["wsi2ihc"]["notice"]
    first = facts["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert first[1]["translation"] == [0.0, 30.0, 50.0]
    text = (out / "zarr.json").read_text() + (tmp_path / "out.ome.zarr.json").read_text()
    assert str(tmp_path) not in text
    assert str(slide_file.parent) not in text
    assert report["output_bytes"] == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_partial_files_of_a_killed_writer_are_not_in_the_output(
    slide_file: Path, make_options: MakeOptions, tmp_path: Path
) -> None:
    whole, out, options = tmp_path / "whole.ome.zarr", tmp_path / "out.ome.zarr", make_options(resume=True)
    model = wsi2ihc.load_model("counterstain")
    translated(slide_file, whole, options)
    with wsi2ihc.open_slide(slide_file) as slide, open_checkpoint(slide, model, out, options) as checkpoint:
        assert translate_band(checkpoint, 0)
        zeros = "0" * 32
        for name in (f"0/c/0/3/0.{zeros}.partial", f"0/c/0/1/0.{zeros}.partial", f"zarr.{zeros}.partial"):
            (checkpoint.image / name).parent.mkdir(parents=True, exist_ok=True)
            (checkpoint.image / name).write_bytes(b"half of a shard")
    translated(slide_file, out, options)
    assert files_in(out) == files_in(whole)


def test_an_interrupted_replacement_leaves_no_old_image(
    slide_file: Path, make_options: MakeOptions, tmp_path: Path
) -> None:
    out, old, options = tmp_path / "out.ome.zarr", tmp_path / ".out.ome.zarr.01234567.old", make_options(resume=True)
    old.mkdir()
    with (
        wsi2ihc.open_slide(slide_file) as slide,
        open_checkpoint(slide, wsi2ihc.load_model("identity"), out, options),
    ):
        assert old.is_dir()  # until a new image replaces it
    translated(slide_file, out, options, "identity")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ome.zarr", "out.ome.zarr.json"]
    for again in (options, replace(options, resume=False, overwrite=True)):  # nothing to do; a restart
        old.mkdir()
        translated(slide_file, out, again, "identity")
        assert not old.exists()


def test_ignored_options_are_reported(slide_file: Path, make_options: MakeOptions, tmp_path: Path) -> None:
    out, region = tmp_path / "out.ome.zarr", Region(0, 0, 128, 128)
    choices = PyramidOptions(tile_px=64, quality=30, openslide_compatible=True)
    report = translated(slide_file, out, make_options(pyramid=choices, region=region, tissue="none"))
    stored = {"tile_px": 64, "compression": "zstd"}
    assert report["options"]["pyramid"] == stored
    assert json.loads(attributes(out)["wsi2ihc"]["provenance"]["options"])["pyramid"] == stored
    assert any("--quality, --openslide-compatible" in warning for warning in report["warnings"])
    other = translated(
        slide_file,
        tmp_path / "b.ome.zarr",
        make_options(pyramid=PyramidOptions(tile_px=64), region=region, tissue="none"),
    )
    assert not any("lossless" in warning for warning in other["warnings"])


def test_a_preview_of_an_ome_zarr(slide_file: Path, image: RGBImage, make_options: MakeOptions, tmp_path: Path) -> None:
    out, preview = tmp_path / "out.ome.zarr", tmp_path / "both.png"
    translated(slide_file, out, make_options(tissue="none", preview=preview), "identity")
    both = np.asarray(Image.open(preview))
    np.testing.assert_array_equal(both[:, :460], image)
    np.testing.assert_array_equal(both[:, -460:], image)
    assert read_overview(out, 115).shape == (108, 115, 3)


def test_a_lost_color_profile_is_reported(image: RGBImage, make_options: MakeOptions, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = write_slide(tmp_path / "s.svs", halves(image, 2), style="aperio", compression="jpeg", icc_profile=profile)
    options = make_options(tissue="none", region=Region(0, 0, 64, 64))
    kept = translated(path, tmp_path / "a.ome.zarr", options)
    converted = translated(path, tmp_path / "b.ome.zarr", replace(options, icc="srgb"))
    assert any("--icc srgb" in warning for warning in kept["warnings"])
    assert not any("--icc srgb" in warning for warning in converted["warnings"])


def test_only_an_image_is_replaced_and_only_with_overwrite(
    slide_file: Path, make_options: MakeOptions, tmp_path: Path
) -> None:
    out, options = tmp_path / "out.ome.zarr", make_options()
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a Zarr image"):
        translated(slide_file, out, replace(options, overwrite=True))
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    (out / "thesis.txt").rename(out / "zarr.json")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        translated(slide_file, out, options)
    assert (out / "zarr.json").read_text() == "mine"
    translated(slide_file, out, replace(options, overwrite=True))
    assert attributes(out)["ome"]["version"] == "0.5"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ome.zarr", "out.ome.zarr.json"]
    with pytest.raises(OutputError, match="does not exist"):
        translated(slide_file, tmp_path / "nowhere" / "out.ome.zarr", options)


@pytest.fixture
def level() -> PyramidLevel:
    """A level of 300×150 px in tiles of 16, a third of them occupied."""
    return PyramidLevel(Size(300, 150), 16, np.arange(190).reshape(10, 19) % 3 == 0)


def tiles_of(pixels: RGBImage, level: PyramidLevel) -> list[Tile]:
    padded = np.pad(pixels, ((0, 10), (0, 4), (0, 0)))
    return [
        Tile(column, row, padded[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16])
        for row, column in np.argwhere(level.occupied).tolist()
    ]


def test_tiles_are_read_back_from_shards(level: PyramidLevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi2ihc.pyramid.ome_zarr.SHARD_PX", 16 * 16 * 5)
    assert tiles_per_shard(level) == 5
    pixels = np.random.default_rng(1).integers(0, 256, (150, 300, 3), dtype=np.uint8)
    array, tiles = create_level(tmp_path / "image", 0, level), tiles_of(pixels, level)
    with ThreadPoolExecutor(3) as executor:
        for rows in (range(4, 10), range(4)):  # bands in any order, tiles in nearly any order
            mine = [tile for tile in tiles if tile.row in rows]
            shuffled = sorted(mine, key=lambda tile: (tile.row // 2, tile.column))
            write_tiles(tmp_path / "image", shuffled, level, rows, (9, 8, 7), executor, 2)
        stored = np.moveaxis(np.asarray(array), 0, 2)
        back = list(read_tiles(array, level, executor, 3))
    expected = np.full_like(pixels, (9, 8, 7))
    for tile in tiles:
        place = np.s_[tile.row * 16 : tile.row * 16 + 16, tile.column * 16 : tile.column * 16 + 16]
        expected[place] = pixels[place]
    np.testing.assert_array_equal(stored, expected)
    assert [(tile.row, tile.column) for tile in back] == [(tile.row, tile.column) for tile in tiles]
    for tile, original in zip(back, tiles, strict=True):
        np.testing.assert_array_equal(tile.pixels, original.pixels)


@pytest.mark.parametrize("fill", [(9, 8, 7), (0, 0, 0)])
def test_blank_shards_are_written_without_tiles(tmp_path: Path, fill: tuple[int, int, int]) -> None:
    level = PyramidLevel(Size(9000, 1000), 512, np.zeros((2, 18), bool))
    array = create_level(tmp_path / "image", 0, level)
    with ThreadPoolExecutor(1) as executor:
        for rows in (range(1, 2), range(1)):
            write_tiles(tmp_path / "image", [], level, rows, fill, executor, 2)
        assert list(read_tiles(array, level, executor, 2)) == []
    stored = np.asarray(array)
    assert [set(np.unique(channel).tolist()) for channel in stored] == [{value} for value in fill]
    assert len([path for path in (tmp_path / "image" / "0" / "c").rglob("*") if path.is_file()]) == 4


def test_a_damaged_shard_is_named_in_the_error(level: PyramidLevel, tmp_path: Path) -> None:
    array = create_level(tmp_path / "image", 0, level)
    with ThreadPoolExecutor(1) as executor:
        noise = np.random.default_rng(1).integers(0, 256, (150, 300, 3), dtype=np.uint8)
        write_tiles(tmp_path / "image", tiles_of(noise, level), level, range(10), (9, 8, 7), executor, 2)
        file = tmp_path / "image" / "0" / "c" / "0" / "6" / "0"
        file.write_bytes(file.read_bytes()[:-3])
        with pytest.raises(DamagedShardError) as caught:
            list(read_tiles(array, level, executor, 2))
    assert (caught.value.row, caught.value.column) == (6, 0)


@pytest.mark.parametrize(
    "failure", [MemoryError(), *(OSError(number, "no more") for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM))]
)
def test_missing_system_resources_are_not_damage(level: PyramidLevel, failure: Exception) -> None:
    class Failing:
        def __getitem__(self, _: object) -> None:
            raise failure

    with ThreadPoolExecutor(1) as executor, pytest.raises(type(failure)) as caught:
        list(read_tiles(Failing(), level, executor, 2))  # type: ignore[arg-type]
    assert caught.value is failure


@pytest.mark.parametrize("content", [None, b"", b'{"zarr', b"[]", b'{"zarr_format": 3}', b"\xff"])
def test_damaged_metadata_is_a_clear_error(level: PyramidLevel, tmp_path: Path, content: bytes | None) -> None:
    create_level(tmp_path, 0, level)
    metadata = tmp_path / "0" / "zarr.json"
    metadata.unlink() if content is None else metadata.write_bytes(content)
    for write in (False, True):
        with pytest.raises(OutputError, match="level 0 cannot be opened"):
            open_level(tmp_path, 0, write=write)


def test_an_image_that_cannot_be_read_back_is_refused(
    slide_file: Path, make_options: MakeOptions, tmp_path: Path
) -> None:
    out = tmp_path / "out.ome.zarr"
    translated(slide_file, out, make_options())
    sizes = [Size(460, 430), Size(230, 215), Size(115, 108), Size(58, 54)]
    validate_image(out, sizes)
    with pytest.raises(OutputError, match="4 levels instead of 3"):
        validate_image(out, sizes[:3])
    with pytest.raises(OutputError, match="level 3 has shape"):
        validate_image(out, [*sizes[:3], Size(59, 54)])
    (out / "1" / "c" / "unlisted").touch()
    with pytest.raises(OutputError, match="1/c/unlisted is not part of the image"):
        validate_image(out, sizes)
    (out / "1" / "c" / "unlisted").unlink()
    shard = (out / "1" / "c" / "0" / "0" / "0").rename(tmp_path / "shard")
    with pytest.raises(OutputError, match="1/c/0/0/0 is missing"):
        validate_image(out, sizes)
    shard.rename(out / "1" / "c" / "0" / "0" / "0")
    shard = out / "2" / "c" / "0" / "1" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(OutputError, match="cannot be read back"):
        validate_image(out, sizes)
