"""Bands and one pass give the same pixels, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from make_slides import halves, write_slide

import wsi2ihc
from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region, RGBImage
from wsi2ihc.tissue import detect_tissue
from wsi2ihc.translation import inference_setup
from wsi2ihc.translation.checkpoint_folder import read_shared_plan, write_shared_plan
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.report import TranslateReport
from wsi2ihc.translation.resume import assemble, open_checkpoint, translate_band

MakeOptions = Callable[..., TranslateOptions]


def levels(path: Path) -> list[RGBImage]:
    """Read all levels of an OME-TIFF or an OME-Zarr, (height, width, 3)."""
    if path.is_dir():
        group = zarr.open_group(path, mode="r")
        return [np.moveaxis(np.asarray(group[str(number)]), 0, 2) for number in range(len(list(group.array_keys())))]
    with tifffile.TiffFile(path) as tiff:
        return [level.asarray() for level in tiff.series[0].levels]


def assert_same(one: Path, other: Path) -> None:
    for first, second in zip(levels(one), levels(other), strict=True):
        np.testing.assert_array_equal(first, second)


def without_times(report: TranslateReport) -> dict[str, object]:
    plain = report.to_json()
    for name in ("seconds", "mpx_per_s", "created", "plan", "seams", "output_name", "output_bytes", "output_sha256"):
        plain.pop(name)
    return plain


def options_of(report: TranslateReport) -> dict[str, Any]:
    return dict(report.to_json()["options"])


@pytest.mark.parametrize(
    ("model", "choices"),
    [
        ("batch", {"tissue": "none", "region": Region(90, 71, 303, 301)}),
        ("batch", {"tissue": "auto", "core_px": 100, "region": Region(3, 5, 450, 400)}),
        ("instance", {"tissue": "auto", "core_px": 96, "overlap_px": 32}),
        ("instance", {"tissue": "none", "core_px": 64, "overlap_px": 64, "region": Region(90, 71, 303, 301)}),
        ("instance", {"tissue": "auto", "core_px": 200, "overlap_px": 32}),  # cores higher than a band
        ("counterstain", {"tissue": "auto"}),
    ],
)
def test_bands_have_the_pixels_of_one_pass(
    slide_file: Path,
    models: dict[str, Path],
    make_options: MakeOptions,
    tmp_path: Path,
    model: str,
    choices: dict[str, object],
) -> None:
    generator = wsi2ihc.load_model(models.get(model, model))
    paths = [tmp_path / name for name in ("whole.ome.tiff", "bands.ome.tiff", "bands.ome.zarr")]
    with wsi2ihc.open_slide(slide_file) as slide:
        whole = wsi2ihc.translate(slide, generator, paths[0], make_options(**choices))
        bands = wsi2ihc.translate(slide, generator, paths[1], make_options(resume=True, **choices))
        folder = wsi2ihc.translate(slide, generator, paths[2], make_options(**choices))
    assert levels(paths[0])[0].std() > 20
    assert_same(paths[0], paths[1])
    assert_same(paths[0], paths[2])
    assert bands.plan["bands"] > 2
    assert bands.plan["kept_px"] >= whole.plan["tissue_px"]
    assert without_times(bands) == without_times(whole)
    zarr_facts, ignored = without_times(folder), "OME-Zarr is lossless; ignored: --compression"
    assert zarr_facts.pop("warnings") == [*bands.warnings, ignored]
    assert zarr_facts.pop("options") == {**options_of(bands), "pyramid": {"tile_px": 64, "compression": "zstd"}}
    assert zarr_facts.items() < without_times(bands).items()
    assert bands.blend == ("overlap" if model == "instance" else "exact")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted([*(path.name for path in paths), *(f"{path.name}.json" for path in paths)])


def test_the_seam_metrics_of_blended_bands_are_those_of_one_pass(
    slide_file: Path, models: dict[str, Path], make_options: MakeOptions, tmp_path: Path
) -> None:
    generator = wsi2ihc.load_model(models["instance"])
    options = make_options(core_px=64, overlap_px=32, tissue="none")
    with wsi2ihc.open_slide(slide_file) as slide:
        whole = wsi2ihc.translate(slide, generator, tmp_path / "whole.ome.tiff", options).seams
        bands = wsi2ihc.translate(slide, generator, tmp_path / "b.ome.tiff", replace(options, resume=True)).seams
    assert whole is not None
    assert bands is not None
    assert bands.borders == whole.borders > 20
    assert bands.z_x == whole.z_x
    assert bands.z_y == pytest.approx(whole.z_y, abs=0.2)  # pairs of rows across the borders of bands are missing


def test_bands_in_any_order_share_the_mask_and_statistics(
    slide_file: Path,
    models: dict[str, Path],
    make_options: MakeOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    for module, name in ((inference_setup, "detect_tissue"), (inference_setup, "with_slide_statistics")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, f=function, n=name: (calls.append(n), f(*given))[1])
    generator = wsi2ihc.load_model(models["instance"])
    options = make_options(statistics="slide", resume=True)
    whole, out = tmp_path / "whole.ome.tiff", tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        wsi2ihc.translate(slide, generator, whole, replace(options, resume=False))
        calls.clear()
        for _ in range(3):
            with open_checkpoint(slide, generator, out, options) as checkpoint:
                assert assemble(checkpoint) is None
                assert translate_band(checkpoint, checkpoint.missing_bands()[-1])
                stored = checkpoint.job.inference.statistics
                assert stored is not None
        with open_checkpoint(slide, generator, out, options) as checkpoint:
            assert checkpoint.job.inference.statistics == stored
            assert all(translate_band(checkpoint, number) for number in range(len(checkpoint.bands)))
            report = assemble(checkpoint)
    assert calls == ["detect_tissue", "with_slide_statistics"]
    assert report is not None
    assert report.blend == "exact"
    assert any("statistics were estimated" in warning for warning in report.warnings)
    assert_same(whole, out)


def test_the_report_is_read_back_unchanged(
    slide_file: Path, models: dict[str, Path], make_options: MakeOptions, tmp_path: Path
) -> None:
    generator, options = wsi2ihc.load_model(models["instance"]), make_options(core_px=96, resume=True)
    out = tmp_path / "out.ome.tiff"
    with wsi2ihc.open_slide(slide_file) as slide:
        made = wsi2ihc.translate(slide, generator, out, options)
        again = wsi2ihc.translate(slide, generator, out, options)  # it exists and matches
    assert again.to_json() == made.to_json()
    assert again.seams == made.seams
    assert again.output_levels == made.output_levels


def test_bands_finished_before_damage_are_kept(
    slide_file: Path, image: RGBImage, make_options: MakeOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wsi2ihc.open_slide(slide_file) as slide:
        mask = detect_tissue(slide)
    # tissue of such a small slide would be detected on level 0, which is damaged
    monkeypatch.setattr(inference_setup, "find_mask", lambda *_: mask)
    path = write_slide(tmp_path / "damaged.svs", halves(image, 2), style="aperio", compression="jpeg", mpp=0.5)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.dataoffsets[2]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(400))
    generator, out = wsi2ihc.load_model("counterstain"), tmp_path / "out.ome.tiff"
    options = make_options(on_read_error="background")
    with wsi2ihc.open_slide(path) as slide:
        whole = wsi2ihc.translate(slide, generator, tmp_path / "whole.ome.tiff", options)
        with pytest.raises(UnreadableSlideError, match="damaged"):
            wsi2ihc.translate(slide, generator, out, make_options(resume=True))
        done = {file.name: file.stat().st_ino for file in (tmp_path / ".out.ome.tiff.bands" / "done").iterdir()}
        assert 0 < len(done) < 4
        with open_checkpoint(slide, generator, out, replace(options, resume=True)) as checkpoint:
            assert all(translate_band(checkpoint, number) for number in range(len(checkpoint.bands)))
            after = {file.name: file.stat().st_ino for file in (checkpoint.folder / "done").iterdir()}
            assert after.items() > done.items()
            plan = read_shared_plan(checkpoint.folder)
            # as if another process had found it
            write_shared_plan(checkpoint.folder, replace(plan, unreadable_areas=((1, 0, 0),)))
        with open_checkpoint(slide, generator, out, replace(options, resume=True)) as checkpoint:
            report = assemble(checkpoint)
    assert report is not None
    assert report.unreadable_regions == whole.unreadable_regions + 1 == 2
    assert_same(tmp_path / "whole.ome.tiff", out)
