"""Mask files: round trips, formats, and errors."""

from __future__ import annotations

import dataclasses
import json
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from tissue_synthetic import BACKGROUND, ArraySlide, he_blob, px_under, to_image

from wsi2ihc.errors import MaskError, OutputError
from wsi2ihc.geometry import WHITE, BoolImage, Region
from wsi2ihc.slide import SlideInfo
from wsi2ihc.tissue import TissueMask, load_mask, read_mask, save_mask
from wsi2ihc.tissue.detection import mask_grid
from wsi2ihc.tissue.mask_io import draw_areas, draw_polygons, outlines, parse_areas

BOUNDS = Region(160, 80, 1600, 1200)
INFO: SlideInfo = ArraySlide(np.full((1400, 2000, 3), 255, np.uint8), bounds=BOUNDS).info
SQUARE = [[100, 100], [500, 100], [500, 300], [100, 300], [100, 100]]


def mask_on_slide(pixels: BoolImage) -> TissueMask:
    """A mask on the very grid on which GeoJSON is drawn."""
    grid = mask_grid(INFO)
    whole = np.zeros((grid.size.height, grid.size.width), np.bool_)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels[: whole.shape[0], : whole.shape[1]]
    return TissueMask(whole, grid.level0_origin, grid.downsample, WHITE, (), (BOUNDS.x, BOUNDS.y))


def written(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def feature(geometry: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {}}


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


@pytest.mark.parametrize(
    "document",
    [
        {"type": "FeatureCollection", "features": [feature(polygon(SQUARE))]},
        [feature(polygon(SQUARE))],
        feature(polygon(SQUARE)),
        polygon(SQUARE),
        polygon(SQUARE[:-1]),
        polygon([[x, y, 7.0] for x, y in SQUARE]),
        {"type": "MultiPolygon", "coordinates": [[SQUARE]]},
        {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 2]}, polygon(SQUARE)]},
        [feature(None), feature(polygon(SQUARE))],
    ],
)
def test_all_shapes_of_geojson(tmp_path: Path, document: Any) -> None:
    mask = read_mask(written(tmp_path / "mask.geojson", document), INFO, BACKGROUND)
    assert mask.background == BACKGROUND
    # Coordinates count from the corner of the scanned area.
    assert px_under(mask, 160 + 101, 80 + 101, 160 + 102, 80 + 102).any()
    assert px_under(mask, 160 + 498, 80 + 298, 160 + 499, 80 + 299).any()
    assert not px_under(mask, 160 + 532, 80 + 80, 160 + 700, 80 + 400).any()
    assert not px_under(mask, 160, 80, 160 + 68, 80 + 68).any()
    area = mask.pixels.sum() * mask.pixel_size[0] * mask.pixel_size[1]
    assert area == pytest.approx(400 * 200, rel=0.2)


def test_holes_stay_open_and_overlapping_polygons_add_up(tmp_path: Path) -> None:
    outer = [[0, 0], [800, 0], [800, 800], [0, 800]]
    hole = [[200, 200], [600, 200], [600, 600], [200, 600]]
    inner = [[350, 350], [450, 350], [450, 450], [350, 450]]
    mask = read_mask(written(tmp_path / "a.geojson", [feature(polygon(outer, hole)), feature(polygon(inner))]), INFO)
    assert px_under(mask, 160 + 100, 80 + 400, 160 + 101, 80 + 401).any()
    assert not px_under(mask, 160 + 240, 80 + 240, 160 + 320, 80 + 560).any()
    assert px_under(mask, 160 + 400, 80 + 400, 160 + 401, 80 + 401).any()
    twice = read_mask(written(tmp_path / "b.geojson", [feature(polygon(outer)), feature(polygon(outer))]), INFO)
    assert px_under(twice, 160 + 400, 80 + 400, 160 + 401, 80 + 401).any()


def annotated(classification: Any, *rings: Any, **properties: Any) -> dict[str, Any]:
    facts = {"objectType": "annotation", "isLocked": True, "classification": classification, **properties}
    return {**feature(polygon(*rings)), "properties": facts}


INNER = [[200, 160], [400, 160], [400, 240], [200, 240]]


@pytest.mark.parametrize(
    "ignored",
    [
        {"name": "Ignore*", "color": [180, 180, 180]},
        {"name": "Ignore*", "colorRGB": -5_000_000},
        {"names": ["Ignore*"]},
        {"names": ["Tumor", "Ignore*"]},
        {"name": "Tumor: Ignore*"},
        {"name": "ignore*"},
        {"name": "Artifact*"},
        "Ignore*",
    ],
)
@pytest.mark.parametrize("ignored_first", [True, False])
def test_areas_of_ignored_classes_are_excluded(tmp_path: Path, ignored: Any, ignored_first: bool) -> None:
    features = [annotated({"name": "Tumor"}, SQUARE, name="core 1"), annotated(ignored, INNER)]
    document = features[::-1] if ignored_first else features
    mask = read_mask(written(tmp_path / "mask.geojson", {"type": "FeatureCollection", "features": document}), INFO)
    assert px_under(mask, 160 + 120, 80 + 120, 160 + 140, 80 + 280).all()
    assert not px_under(mask, 160 + 260, 80 + 190, 160 + 340, 80 + 210).any()
    assert px_under(mask, 160 + 182, 80 + 190, 160 + 198, 80 + 210).all()
    assert {(one.classification, one.name, one.areas, one.is_ignored) for one in mask.annotations} >= {
        ("Tumor", "core 1", 1, False)
    }
    assert mask.warnings[0].startswith("1 area was excluded from the mask (class ")


@pytest.mark.parametrize(
    "tissue", [{"name": "Region*"}, {"name": "Tumor"}, {"name": "Ignored"}, {"name": None}, None, {}, 7, {"names": [1]}]
)
def test_areas_of_other_classes_are_tissue(tmp_path: Path, tissue: Any) -> None:
    mask = read_mask(written(tmp_path / "mask.geojson", [annotated(tissue, SQUARE)]), INFO)
    assert px_under(mask, 160 + 120, 80 + 120, 160 + 480, 80 + 280).all()
    assert not mask.warnings


def test_missing_cores_are_ignored(tmp_path: Path) -> None:
    there = annotated(None, INNER, objectType="tmaCore", isMissing=False)
    mask = read_mask(written(tmp_path / "m.geojson", [annotated(None, SQUARE, isMissing=True), there]), INFO)
    assert not px_under(mask, 160 + 110, 80 + 110, 160 + 130, 80 + 280).any()
    assert px_under(mask, 160 + 210, 80 + 170, 160 + 390, 80 + 230).all()


def test_a_mask_with_only_ignored_areas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"only areas to ignore \(Ignore\*\)"):
        read_mask(written(tmp_path / "mask.geojson", [annotated({"name": "Ignore*"}, SQUARE)]), INFO)


def test_a_donut_with_an_island_keeps_its_hole_and_its_island(tmp_path: Path) -> None:
    outer = [[0, 0], [800, 0], [800, 800], [0, 800]]
    hole = [[200, 200], [600, 200], [600, 600], [200, 600]]
    island = [[350, 350], [450, 350], [450, 450], [350, 450]]
    parts = [polygon(outer, hole), polygon(island), {"type": "Point", "coordinates": [3, 3]}]
    shapes = [
        feature({"type": "GeometryCollection", "geometries": parts}),
        feature({"type": "MultiPolygon", "coordinates": [[outer, hole], [island]]}),
    ]
    for shape in shapes:
        mask = read_mask(written(tmp_path / "mask.geojson", [shape]), INFO)
        assert px_under(mask, 160 + 360, 80 + 360, 160 + 440, 80 + 440).all()
        assert not px_under(mask, 160 + 240, 80 + 240, 160 + 320, 80 + 560).any()


def test_polygons_are_clipped_to_the_slide(tmp_path: Path) -> None:
    far = [[-1e9, -1e9], [1e9, -1e9], [1e9, 1e9], [-1e9, 1e9]]
    assert read_mask(written(tmp_path / "mask.geojson", polygon(far)), INFO).share == 1.0


def test_a_polygon_smaller_than_a_px_is_not_lost(tmp_path: Path) -> None:
    tiny = [[700.1, 500.1], [700.9, 500.1], [700.9, 500.9]]
    assert read_mask(written(tmp_path / "mask.geojson", polygon(tiny)), INFO).pixels.sum() >= 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@example(np.eye(5, dtype=np.bool_))
@example(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.bool_))
def test_geojson_round_trip(tmp_path: Path, pixels: BoolImage) -> None:
    if not pixels.any():
        return
    mask = mask_on_slide(pixels)
    save_mask(mask, tmp_path / "mask.geojson")
    back = read_mask(tmp_path / "mask.geojson", INFO)
    assert (back.origin, back.pixel_size, back.bounds_origin) == (mask.origin, mask.pixel_size, mask.bounds_origin)
    assert back.pixels[mask.pixels].all()
    added = back.pixels & ~mask.pixels
    # Px are added only beside the mask, and only if somewhere px met in a corner.
    assert not (added & ~cv2.dilate(mask.pixels.view(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)).any()
    falling = mask.pixels[:-1, :-1] & mask.pixels[1:, 1:]
    rising = mask.pixels[:-1, 1:] & mask.pixels[1:, :-1]
    assert not added.any() or falling.any() or rising.any()


Segment = tuple[tuple[int, int], tuple[int, int]]


def side(start: tuple[int, int], stop: tuple[int, int], point: tuple[int, int]) -> int:
    return int(np.sign((stop[0] - start[0]) * (point[1] - start[1]) - (stop[1] - start[1]) * (point[0] - start[0])))


def meet(one: Segment, other: Segment) -> bool:
    """Whether two segments have a point in common, in whole numbers."""
    boxes_meet = all(
        max(min(one[0][axis], one[1][axis]), min(other[0][axis], other[1][axis]))
        <= min(max(one[0][axis], one[1][axis]), max(other[0][axis], other[1][axis]))
        for axis in (0, 1)
    )
    return (
        boxes_meet
        and side(*one, other[0]) * side(*one, other[1]) <= 0
        and side(*other, one[0]) * side(*other, one[1]) <= 0
    )


@settings(max_examples=60, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 8), st.integers(1, 8))))
@example(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.bool_))
@example(np.ones((1, 1), np.bool_))
def test_outlines_never_cross_or_touch_and_hold_every_px(pixels: BoolImage) -> None:
    polygons = outlines(pixels)
    segments: list[Segment] = []
    for ring in (ring for rings in polygons for ring in rings):
        corners = [(round(4 * x), round(4 * y)) for x, y in ring]
        assert len(set(corners)) == len(corners) >= 3
        segments += zip(corners, corners[1:] + corners[:1], strict=True)
    for index, one in enumerate(segments):
        for other in segments[index + 1 :]:
            assert set(one) & set(other) or not meet(one, other)
    assert draw_polygons(polygons, (0, 0), (1, 1), pixels.shape)[pixels].all()  # type: ignore[arg-type]


def test_geojson_has_the_fields_that_qupath_reads(tmp_path: Path) -> None:
    mask = TissueMask(np.ones((3, 4), np.bool_), (160, 80), (16.0, 16.0), WHITE, (), (160, 80))
    save_mask(mask, tmp_path / "mask.geojson")
    document = json.loads((tmp_path / "mask.geojson").read_text())
    assert document["type"] == "FeatureCollection"
    (only,) = document["features"]
    assert only["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "Tissue", "color": [200, 0, 100]},
    }
    (ring,) = only["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    assert sorted({x for x, _ in ring}) == [4, 60]
    assert sorted({y for _, y in ring}) == [4, 44]


def test_png_round_trip(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((75, 100)) < 0.3
    mask = TissueMask(pixels, (160, 80), (16.0, 16.0), WHITE, (), (160, 80))
    save_mask(mask, tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "L"
        assert set(np.unique(np.asarray(image))) == {0, 255}
        assert json.loads(image.info["wsi2ihc"]) == {"origin_px": [160, 80], "pixel_size_px": [16.0, 16.0]}
    back = read_mask(tmp_path / "mask.png", INFO)
    np.testing.assert_array_equal(back.pixels, pixels)
    assert (back.origin, back.pixel_size, back.bounds_origin) == ((160, 80), (16.0, 16.0), (160, 80))


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    buffer = BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


ROUND = np.zeros((150, 200), np.uint8)
cv2.circle(ROUND, (100, 75), 50, 255, -1)


@pytest.mark.parametrize(
    "content",
    [
        png(ROUND),
        png(ROUND // 255),
        png(ROUND, "1"),
        png(ROUND, "RGB"),
        png(ROUND, "RGBA"),
        png(ROUND, "LA"),
        png(ROUND.astype(np.uint16) * 257),
        png(np.dstack([np.full_like(ROUND, 255)] * 3 + [ROUND])),
    ],
)
def test_all_kinds_of_png(tmp_path: Path, content: bytes) -> None:
    mask = read_mask(written(tmp_path / "mask.png", content), INFO)
    np.testing.assert_array_equal(mask.pixels, ROUND > 0)
    assert mask.pixel_size == (8.0, 8.0)


def test_a_png_with_a_palette_counts_everything_but_the_first_color(tmp_path: Path) -> None:
    image = Image.new("P", (200, 150))
    image.putdata((ROUND // 255 * 3).ravel().tolist())
    image.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9, 200, 10, 10])
    image.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", INFO).pixels, ROUND > 0)


def test_a_huge_png_is_reduced_without_losing_tissue(tmp_path: Path) -> None:
    pixels = np.zeros((4800, 6400), np.uint8)
    pixels[3001, 5001] = 255
    mask = read_mask(written(tmp_path / "mask.png", png(pixels)), INFO)
    assert mask.pixels.shape == (2400, 3200)
    assert mask.pixel_size == (0.5, 0.5)
    assert np.argwhere(mask.pixels).tolist() == [[1500, 2500]]


def test_tiny_masks_may_be_off_by_a_px(tmp_path: Path) -> None:
    assert read_mask(written(tmp_path / "mask.png", png(np.ones((3, 5), np.uint8))), INFO).share == 1.0


def bomb() -> bytes:
    """A PNG of 30,000² px in a few kB."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(3751 * 3000), 9)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mask.geojson", b"", "not readable as JSON"),
        ("mask.geojson", b"{", "not readable as JSON"),
        ("mask.geojson", b"\xff\xfe\x00", "not readable as JSON"),
        ("mask.geojson", b"[" * 100_000, "not readable as JSON"),
        ("mask.geojson", b'{"type":"Polygon","coordinates":[[[0,0],[NaN,1],[2,2]]]}', "NaN is not a finite number"),
        ("mask.geojson", b'{"type":"Polygon","coordinates":[[[0,0],[1e999,1],[2,2]]]}', "not a coordinate"),
        ("mask.geojson", b'{"type":"Polygon","coordinates":[[[0,0],["1",1],[2,2]]]}', "not a coordinate"),
        ("mask.geojson", b'{"type":"Polygon","coordinates":[[[0,0],[true,1],[2,2]]]}', "not a coordinate"),
        ("mask.geojson", b'{"type":"Polygon","coordinates":[[[0,0],[null,1],[2,2]]]}', "not a coordinate"),
        ("mask.geojson", polygon([[0, 0], [1, 10**30], [2, 2]]), "not a coordinate"),
        ("mask.geojson", polygon([[0, 0], [1], [2, 2]]), "not a vertex"),
        ("mask.geojson", polygon([[0, 0], [1, 1]]), "fewer than 3"),
        ("mask.geojson", polygon(), "without outlines"),
        ("mask.geojson", {"type": "Polygon"}, "without a list of coordinates"),
        ("mask.geojson", {"type": "FeatureCollection", "features": 3}, "without a list of features"),
        ("mask.geojson", {"type": "Circle"}, "unknown type 'Circle'"),
        ("mask.geojson", {"type": ["\n"]}, "unknown type a list"),
        ("mask.geojson", {}, "unknown type None"),
        ("mask.geojson", b"3", "expected an object"),
        ("mask.geojson", [], "no polygon"),
        ("mask.geojson", {"type": "Point", "coordinates": [1, 2]}, "no polygon"),
        ("mask.geojson", polygon([[9000, 9000], [9100, 9000], [9100, 9100]]), "no polygon lies on memory.svs"),
        ("mask.png", b"", "not a PNG"),
        ("mask.png", b"GIF89a" + bytes(40), "not a PNG"),
        ("mask.png", png(ROUND)[:60], "damaged"),
        ("mask.png", png(ROUND)[:-40], "damaged"),
        ("mask.png", png(ROUND)[:16] + bytes(8) + png(ROUND)[24:], "a mask cannot have"),
        ("mask.png", bomb(), "a mask cannot have"),
        ("mask.png", png(ROUND[:140]), "shape of memory.svs"),
        ("mask.png", png(ROUND.T.copy()), "shape of memory.svs"),
        ("mask.png", png(ROUND * 0), "black all over"),
        ("mask.png", png(to_image(np.dstack([ROUND, 255 - ROUND, ROUND]).astype(float))), "color image"),
        ("mask.tif", b"II*\0", "unknown kind of mask '.tif'"),
        ("mask", b"", "unknown kind of mask ''"),
    ],
)
def test_bad_masks_are_refused_in_one_line_that_names_the_file(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    with pytest.raises(MaskError, match=message) as caught:
        read_mask(written(tmp_path / name, content), INFO)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_mask_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="no such mask"):
        read_mask(tmp_path / "missing.png", INFO)
    (tmp_path / "folder.geojson").mkdir()
    with pytest.raises(MaskError, match="cannot be read"):
        read_mask(tmp_path / "folder.geojson", INFO)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
    | st.sampled_from(["Polygon", "MultiPolygon", "Feature", "FeatureCollection", "GeometryCollection"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["type", "features", "geometry", "geometries", "coordinates"]), inner, max_size=4)
    | st.fixed_dictionaries({"type": st.just("Polygon"), "coordinates": inner})
    | st.fixed_dictionaries({"type": st.just("Feature"), "geometry": inner}),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(json_values.map(json.dumps) | st.binary(max_size=40) | st.text(max_size=40))
def test_the_geojson_parser_gives_polygons_or_a_mask_error(text: str | bytes) -> None:
    polygons, complaint = [], None
    try:
        polygons = parse_areas(text, "mask.geojson")
    except MaskError as error:
        complaint = str(error)
    assert bool(polygons) != bool(complaint)
    assert "\n" not in (complaint or "")
    assert draw_areas(polygons, (0, 0), (1, 1), (8, 8)).shape == (8, 8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_png_gives_a_mask_or_a_mask_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(png(ROUND, data.draw(st.sampled_from(["L", "P", "RGBA", "1"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path / "mask.png", bytes(content[: data.draw(st.integers(0, len(content)))]))
    found, complaint = False, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about odd metadata
        try:
            found = bool(read_mask(path, INFO).pixels.any())
        except MaskError as error:
            complaint = str(error)
    assert found != bool(complaint)
    assert "\n" not in (complaint or "")


@pytest.mark.parametrize("name", ["mask.png", "mask.geojson"])
def test_saving_replaces_a_file_and_leaves_nothing_else(tmp_path: Path, name: str) -> None:
    mask = mask_on_slide(np.ones((2, 2), np.bool_))
    (tmp_path / name).write_bytes(b"old")
    save_mask(mask, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not read_mask(tmp_path / name, INFO).is_empty


def test_masks_that_cannot_be_saved(tmp_path: Path) -> None:
    mask = mask_on_slide(np.ones((2, 2), np.bool_))
    with pytest.raises(OutputError, match="unknown kind of mask"):
        save_mask(mask, tmp_path / "mask.tif")
    with pytest.raises(OutputError, match="missing does not exist"):
        save_mask(mask, tmp_path / "missing" / "mask.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mask.png", "mask.geojson"])
def test_loading_for_an_open_slide_measures_its_background(tmp_path: Path, name: str) -> None:
    overview, where = he_blob()
    slide = ArraySlide(np.asarray(cv2.resize(overview, None, fx=4, fy=4), np.uint8), (2.0, 2.0))
    made = TissueMask(where, (0, 0), (4.0, 4.0), WHITE)
    save_mask(made, tmp_path / name)
    loaded = load_mask(tmp_path / name, slide)
    assert np.abs(np.subtract(loaded.background, BACKGROUND)).max() <= 1
    assert loaded.share == pytest.approx(made.share, rel=0.05)
    assert dataclasses.replace(loaded, background=WHITE).background == WHITE
