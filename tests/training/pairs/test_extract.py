"""Patch extraction: positions, pixels, rejections and order."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_slides import halves, write_slide
from make_tissue import cells, he_of, ihc_of

from wsi2ihc.errors import MissingResolutionError, OptionError, UnreadableSlideError
from wsi2ihc.geometry import RGB, Region, RGBImage
from wsi2ihc.registration.transform import Transform, affine, identity
from wsi2ihc.slide import Slide, open_slide, read_region, srgb_profile, working_grid
from wsi2ihc.training.pairs import extract
from wsi2ihc.training.pairs.extract import ExtractedPatch, extract_patches, plan_extraction
from wsi2ihc.training.pairs.options import PairsOptions
from wsi2ihc.training.pairs.quality import Limits
from wsi2ihc.translation.inference_setup import prepare_slide
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.windows import TissueGrid

MPP, SIDE_PX = 0.5, 1200
SHIFT_UM = (30.0, 20.0)
GLASS_PX = 500
"""Glass to the right of the tissue."""

ANYTHING = Limits(
    min_tissue=0, min_valid=0, max_residual_um=0, min_correlation=-1, min_sharpness=0, max_folds=1, max_pen=1
)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Slide, Slide]]:
    """The same tissue in both stains; the IHC lies `SHIFT_UM` further down and to the right."""
    folder: Path = tmp_path_factory.mktemp("pair")
    nuclei = cells(SIDE_PX * MPP)
    with_glass = ((0, 0), (0, GLASS_PX), (0, 0))
    he = np.pad(he_of(nuclei, SIDE_PX, MPP), with_glass, constant_values=245)
    ihc = np.pad(ihc_of(nuclei, SIDE_PX, MPP, SHIFT_UM, "2+"), with_glass, constant_values=245)
    write_slide(folder / "he.tiff", halves(he, 3), mpp=MPP, compression="deflate")
    write_slide(folder / "ihc.tiff", halves(ihc, 3), mpp=MPP, compression="deflate")
    with open_slide(folder / "he.tiff") as one, open_slide(folder / "ihc.tiff") as other:
        yield one, other


@pytest.fixture
def truth() -> Transform:
    return affine([[1, 0, SHIFT_UM[0]], [0, 1, SHIFT_UM[1]]])


def options(**changes: Any) -> PairsOptions:
    return PairsOptions(**{"patch_size": 256, "mpp": MPP, **changes})


def cut_patches(
    he: Slide, ihc: Slide, transform: Transform, how: PairsOptions, workers: int = 1
) -> Iterator[ExtractedPatch]:
    return extract_patches(plan_extraction(he, ihc, transform, how), workers=workers)


def corners(patches: list[ExtractedPatch]) -> list[tuple[int, int]]:
    return [(patch.region.x, patch.region.y) for patch in patches]


def on_tissue(patches: Iterable[ExtractedPatch]) -> list[ExtractedPatch]:
    """Return the patches that lie on tissue only."""
    return [patch for patch in patches if patch.region.right <= SIDE_PX]


def test_pairs_of_the_true_transform_are_kept(slides: tuple[Slide, Slide], truth: Transform) -> None:
    patches = on_tissue(cut_patches(*slides, truth, options(), workers=2))
    assert [(patch.region, patch.rejected) for patch in patches if patch.rejected] == []
    assert corners(patches)[:4] == [(0, 0), (256, 0), (512, 0), (768, 0)]
    for patch in patches:
        assert patch.metrics.residual_um == pytest.approx(0, abs=0.5)
        assert patch.metrics.correlation is not None
        assert patch.metrics.correlation > 0.6
        assert patch.he.shape == patch.ihc.shape == (256, 256, 3)
        assert patch.valid.all()


def test_pixels_are_those_of_the_readers(slides: tuple[Slide, Slide], truth: Transform) -> None:
    he, ihc = slides
    patch = on_tissue(cut_patches(he, ihc, truth, options()))[5]
    assert (patch.x_um, patch.y_um) == (patch.region.x * MPP, patch.region.y * MPP)
    np.testing.assert_array_equal(patch.he, read_region(he, working_grid(he.info, MPP), patch.region))
    # 30 and 20 µm are whole px
    moved = patch.region.shifted(60, 40)
    np.testing.assert_array_equal(patch.ihc, ihc.read_level(0, moved))


def test_a_wrong_transform_is_seen(slides: tuple[Slide, Slide], truth: Transform) -> None:
    off = affine([[1, 0, SHIFT_UM[0] + 9], [0, 1, SHIFT_UM[1] - 9]])
    for patch in on_tissue(cut_patches(*slides, off, options())):
        if patch.rejected != "outside":
            assert patch.rejected == "residual"
            assert patch.metrics.residual_um == pytest.approx(9 * math.sqrt(2), abs=0.7)


def test_outside_is_told_without_reading(slides: tuple[Slide, Slide], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "read_region", None)
    far = affine([[1, 0, 5000], [0, 1, 0]])
    patches = on_tissue(cut_patches(*slides, far, options(limits=Limits(min_valid=0.5))))
    assert patches
    for patch in patches:
        assert patch.rejected == "outside"
        assert patch.he.shape == patch.ihc.shape == (0, 0, 3)
        assert patch.valid.shape == (0, 0)
        assert (patch.metrics.valid, patch.metrics.tissue_ihc, patch.metrics.correlation) == (0, 0, None)


def test_partly_outside(slides: tuple[Slide, Slide]) -> None:
    up = affine([[1, 0, 0], [0, 1, -32]])
    first = next(iter(cut_patches(*slides, up, options())))
    assert first.rejected == "outside"
    read = next(iter(cut_patches(*slides, up, options(limits=ANYTHING))))
    assert read.rejected == ""
    assert read.metrics.valid == pytest.approx(0.75)
    assert not read.valid[:64].any()
    assert read.valid[64:].all()
    assert (read.ihc[:50].reshape(-1, 3) == read.ihc[0, 0]).all(), "background of the IHC"


def test_glass_is_no_candidate_and_its_rim_is_rejected(slides: tuple[Slide, Slide], truth: Transform) -> None:
    patches = list(cut_patches(*slides, truth, options(stride=64)))
    assert max(x for x, _ in corners(patches)) < SIDE_PX + 2 * 64 < SIDE_PX + GLASS_PX - 256
    rim = [patch for patch in patches if patch.region.x > SIDE_PX]
    assert rim
    assert {patch.rejected for patch in rim if patch.region.y < 700} == {"tissue"}
    shares = [patch.metrics.tissue_he for patch in patches]
    assert all(extract.CANDIDATE_SHARE <= share <= 1 for share in shares)


def test_tissue_is_counted_on_the_pixels_too(slides: tuple[Slide, Slide], truth: Transform) -> None:
    """The mask closes small inlets of background."""
    plan = plan_extraction(*slides, truth, options(stride=64, limits=dataclasses.replace(ANYTHING, min_tissue=0.5)))
    everywhere = (np.ones_like(mask.pixels) for mask in (plan.he_mask, plan.ihc_mask))
    masks = [
        dataclasses.replace(mask, pixels=pixels)
        for mask, pixels in zip((plan.he_mask, plan.ihc_mask), everywhere, strict=True)
    ]
    plan = dataclasses.replace(plan, he_mask=masks[0], ihc_mask=masks[1], shares=(1.0,) * len(plan.regions))
    edge = [patch for patch in extract_patches(plan) if patch.region.x < SIDE_PX < patch.region.right]
    assert edge
    for patch in edge:
        on_tissue_he = (SIDE_PX - patch.region.x) / 256
        if on_tissue_he < 0.85:  # a small gap at the edge counts as tissue
            assert patch.metrics.tissue_he == pytest.approx(on_tissue_he, abs=0.05)
        assert min(patch.metrics.tissue_he, patch.metrics.tissue_ihc) < 0.5 or patch.rejected == ""
        assert patch.rejected in ("", "tissue")


def test_the_lattice_has_whole_patches_only(slides: tuple[Slide, Slide], truth: Transform) -> None:
    patches = list(cut_patches(*slides, truth, options(patch_size=300, stride=200, limits=ANYTHING)))
    assert corners(patches) == sorted(corners(patches), key=lambda corner: (corner[1], corner[0]))
    assert {x % 200 for x, _ in corners(patches)} == {y % 200 for _, y in corners(patches)} == {0}
    assert max(y for _, y in corners(patches)) == 800  # 1000 + 300 is more than 1200
    assert list(cut_patches(*slides, truth, options(patch_size=1201))) == []


def test_a_level_close_by_is_taken_as_it_is(slides: tuple[Slide, Slide], truth: Transform) -> None:
    plan = plan_extraction(*slides, truth, options(mpp=0.98))
    assert plan.mpp == (1.0, 1.0)
    resampled = plan_extraction(*slides, truth, options(mpp=0.7))
    assert resampled.mpp == pytest.approx((0.7, 0.7), abs=0.001)
    patch = next(iter(extract.extract_patches(resampled)))
    assert patch.metrics.residual_um == pytest.approx(0, abs=0.5)


def test_any_number_of_workers_gives_the_same(slides: tuple[Slide, Slide], truth: Transform) -> None:
    one, three = (list(cut_patches(*slides, truth, options(), workers=workers)) for workers in (1, 3))
    for first, other in zip(one, three, strict=True):
        assert (first.region, first.metrics, first.rejected) == (other.region, other.metrics, other.rejected)
        np.testing.assert_array_equal(first.he, other.he)
        np.testing.assert_array_equal(first.ihc, other.ihc)


@pytest.mark.parametrize("workers", [1, 3])
def test_memory_is_bounded_by_the_workers(
    slides: tuple[Slide, Slide], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    lock, begun, most = threading.Lock(), itertools.count(1), [0]
    taken, cut_one = [0], extract._extract_one

    def counted(*arguments: Any) -> ExtractedPatch:
        with lock:
            most[0] = max(most[0], next(begun) - taken[0])
        return cut_one(*arguments)

    monkeypatch.setattr(extract, "_extract_one", counted)
    for _ in cut_patches(*slides, identity(), options(stride=128), workers=workers):
        with lock:
            taken[0] += 1
    assert 1 <= most[0] <= workers + 2


def test_stopping_early_stops_the_threads(slides: tuple[Slide, Slide], truth: Transform) -> None:
    patches = cut_patches(*slides, truth, options(), workers=2)
    next(patches)
    patches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cut")]


def test_colors_are_converted_as_in_translation(slides: tuple[Slide, Slide], truth: Transform, tmp_path: Path) -> None:
    """A profile that exchanges red and blue shows whether it was applied."""
    profile = exchanging_red_and_blue()
    he = slides[0].read_level(0, Region(0, 0, SIDE_PX, SIDE_PX))
    write_slide(tmp_path / "he.tiff", halves(he, 3), mpp=MPP, compression="deflate", icc_profile=profile)
    with open_slide(tmp_path / "he.tiff") as tagged:
        assert tagged.info.icc_profile
        plan = plan_extraction(tagged, slides[1], truth, options(icc="srgb", limits=ANYTHING))
        (kept,) = cut_patches(tagged, slides[1], truth, options(patch_size=1000, limits=ANYTHING))
        (converted,) = cut_patches(tagged, slides[1], truth, options(patch_size=1000, limits=ANYTHING, icc="srgb"))
        scene = prepare_slide(tagged, MPP, TranslateOptions(icc="srgb"))
        np.testing.assert_array_equal(converted.he, scene.reader(converted.region))
    assert np.abs(converted.he.astype(int) - kept.he[..., ::-1]).max() <= 3
    np.testing.assert_array_equal(converted.ihc, kept.ihc)
    assert plan.notes == ("ihc.tiff has no color profile; its colors are assumed to be sRGB (--icc srgb)",)
    assert np.abs(np.subtract(plan.he_colors.background, plan.he_mask.background[::-1])).max() <= 3


def exchanging_red_and_blue() -> bytes:
    """The profile of sRGB with the primaries of red and blue exchanged."""
    profile = bytearray(srgb_profile())
    tags = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(profile[128:132]), 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    profile[red + 4 : red + 12], profile[blue + 4 : blue + 12] = (
        profile[blue + 4 : blue + 12], profile[red + 4 : red + 12],
    )  # fmt: skip
    return bytes(profile)


def test_with_tissue_none_every_place_is_cut(slides: tuple[Slide, Slide], truth: Transform) -> None:
    how = options(limits=ANYTHING)
    found, every = (plan_extraction(*slides, truth, how, tissue=tissue) for tissue in ("auto", "none"))
    assert len(every.regions) == (SIDE_PX // 256) * ((SIDE_PX + GLASS_PX) // 256) > len(found.regions)
    assert every.fold_threshold == found.fold_threshold


def test_a_mask_file_says_where_the_tissue_is(slides: tuple[Slide, Slide], truth: Transform, tmp_path: Path) -> None:
    square = [[[0, 0], [500, 0], [500, 500], [0, 500], [0, 0]]]
    path = tmp_path / "mask.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": square}))
    plan = plan_extraction(*slides, truth, options(limits=ANYTHING), tissue=path)
    assert [(region.x, region.y) for region in plan.regions] == [(0, 0), (256, 0), (0, 256), (256, 256)]


@pytest.mark.parametrize("damaged", [0, 1])
def test_patches_that_cannot_be_read_are_left_out_where_that_is_allowed(
    slides: tuple[Slide, Slide], truth: Transform, damaged: int
) -> None:
    hole = Region(600, 600, 10, 10)
    pair = [slides[0], slides[1]]
    pair[damaged] = Damaged(pair[damaged], hole)  # type: ignore[call-overload]
    with pytest.raises(UnreadableSlideError, match="damaged here"):
        list(cut_patches(*pair, truth, options(limits=ANYTHING)))
    whole = list(cut_patches(*slides, truth, options(limits=ANYTHING)))
    patches = list(cut_patches(*pair, truth, options(limits=ANYTHING, on_read_error="background")))
    lost = [patch for patch in patches if patch.unreadable]
    assert 1 <= len(lost) <= 4
    assert {(patch.rejected, patch.metrics.valid) for patch in lost} == {("outside", 0.0)}
    for patch, intact in zip(patches, whole, strict=True):
        if not patch.unreadable:
            np.testing.assert_array_equal(patch.he, intact.he)
            np.testing.assert_array_equal(patch.ihc, intact.ihc)


class Damaged:
    """A slide that cannot be read where level 0 touches a region."""

    def __init__(self, slide: Slide, hole: Region) -> None:
        self._slide, self._hole = slide, hole
        self.path, self.info, self.is_blank, self.close = slide.path, slide.info, slide.is_blank, slide.close

    def read_level(self, level: int, region: Region, fill: RGB | None = None) -> RGBImage:
        if level == 0 and not region.intersection(self._hole).is_empty:
            raise UnreadableSlideError("it is damaged here")
        return self._slide.read_level(level, region, fill)


def test_unknown_resolution(slides: tuple[Slide, Slide], tmp_path: Path) -> None:
    path = write_slide(tmp_path / "unknown.tiff", np.full((300, 300, 3), 245, np.uint8), mpp=None)
    with open_slide(path) as unknown:
        for pair in ((unknown, slides[1]), (slides[0], unknown)):
            with pytest.raises(MissingResolutionError, match=r"unknown\.tiff"):
                plan_extraction(*pair, identity(), options())
    wanted = r"80 times coarser than the 0\.5 .* with the manifest's column ihc_mpp, "
    with (
        open_slide(path, mpp=40, mpp_option="the manifest's column ihc_mpp") as coarse,
        pytest.raises(OptionError, match=wanted),
    ):
        plan_extraction(slides[0], coarse, identity(), options())


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    st.tuples(st.floats(0.3, 40), st.floats(0.3, 40)),
    st.integers(1, 90),
    st.integers(0, 9),
)
def test_tissue_is_counted_as_for_a_region_alone(
    shape: tuple[int, int], origin: tuple[float, float], px: tuple[float, float], side: int, seed: int
) -> None:
    tissue = TissueGrid(np.random.default_rng(seed).random(shape) < 0.5, origin, px)
    x, y = np.arange(-100, 300, 37), np.arange(-60, 200, 53)
    found = extract._tissue_areas(tissue, x, y, side)
    wanted = [[tissue.area_in(Region(left, top, side, side)) for left in x.tolist()] for top in y.tolist()]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-6)


def test_masks_are_looked_up_on_the_slide_they_belong_to(slides: tuple[Slide, Slide], truth: Transform) -> None:
    plan = plan_extraction(*slides, truth, options())
    right = SIDE_PX * MPP
    places_um = np.array([[[100.0, 100.0], [right + 200, 100], [-5, 100], [100, 1e6]]])
    assert extract._in_mask(plan.ihc_mask, slides[1], places_um).tolist() == [[True, False, False, False]]


def test_bounds_of_patches(slides: tuple[Slide, Slide], truth: Transform) -> None:
    plan = plan_extraction(*slides, truth, options())
    whole = Region(0, 0, plan.grid.size.width, plan.grid.size.height)
    assert all(whole.contains(region) for region in plan.regions)
    assert len(plan.regions) == len(plan.shares)


def test_levels_that_do_not_show_the_slide_are_not_used(
    slides: tuple[Slide, Slide], truth: Transform, tmp_path: Path
) -> None:
    size = slides[0].info.size
    he = slides[0].read_level(0, Region(0, 0, size.width, size.height))
    lower = [np.ascontiguousarray(level[::-1, ::-1]) for level in halves(he, 3)[1:]]
    wrong = write_slide(tmp_path / "wrong.tiff", [he, *lower], mpp=MPP, compression="deflate")
    true = write_slide(tmp_path / "true.tiff", he, mpp=MPP, compression="deflate")
    how = options(mpp=2 * MPP, patch_size=128, limits=ANYTHING)
    with open_slide(wrong) as one, open_slide(true) as other:
        ours, theirs = (list(cut_patches(slide, slides[1], truth, how)) for slide in (one, other))
    assert len(ours) > 10
    assert corners(ours) == corners(theirs)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our.he, their.he)
