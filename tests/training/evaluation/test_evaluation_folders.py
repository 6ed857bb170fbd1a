"""Images that any program made, against references of the same names."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from make_images import stained_image, virtual_of
from PIL import Image

from wsi2ihc.errors import DatasetError
from wsi2ihc.training.data import Order
from wsi2ihc.training.evaluation.image_folders import evaluate_folders
from wsi2ihc.training.evaluation.options import EvaluateOptions
from wsi2ihc.training.evaluation.report import make_report

QUICK = EvaluateOptions(resamples=100, examples=1)
NAMES = ("00000_test_1+", "00001_test_3+", "00002_test_3+", "00003_test_1+")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    made = {name: tmp_path / name for name in ("real", "good", "bad", "he")}
    for folder in made.values():
        folder.mkdir()
    for seed, name in enumerate(NAMES):
        reference = stained_image(seed, 64)
        Image.fromarray(reference).save(made["real"] / f"{name}.png")
        Image.fromarray(virtual_of(reference, seed)).save(made["good"] / f"{name}.png")
        Image.fromarray(255 - reference).save(made["bad"] / f"{name}.tif")
        Image.fromarray(reference[..., ::-1].copy()).save(made["he"] / f"{name}.png")
    return made


def test_each_virtual_folder_is_a_method(folders: dict[str, Path]) -> None:
    evaluation = evaluate_folders(folders["real"], [folders["good"], folders["bad"]], folders["he"], QUICK)
    names = [result.method.name for result in evaluation.methods]
    assert names == ["good", "bad", "counterstain"]
    good, bad = (result.scores.subset().values() for result in evaluation.methods[:2])
    assert good["psnr"] > 25 > bad["psnr"]
    assert evaluation.levels == ("1+", "3+"), "from names as in BCI"
    assert evaluation.resampling_unit == "patches"
    assert "scored references" in evaluation.threshold_fit.source
    report = make_report(evaluation, resamples=100)
    assert "good" in report.data["methods"]


def test_intervals_are_over_groups(folders: dict[str, Path]) -> None:
    options = EvaluateOptions(resamples=100, examples=0, group_by=r"_(?P<slide>\d\+)", stained_from=0.2)
    evaluation = evaluate_folders(folders["real"], [folders["good"]], None, options)
    assert evaluation.resampling_unit == "groups"
    assert evaluation.methods[0].scores.subset().units == ("group 1+", "group 3+")
    assert evaluation.threshold_fit.stained_from == 0.2
    assert any("--he" in note for note in evaluation.notes)


def test_mismatched_folders_name_the_first_missing_partners(folders: dict[str, Path]) -> None:
    (folders["good"] / f"{NAMES[1]}.png").unlink()
    with pytest.raises(DatasetError, match=r"good lacks partners of 00001_test_3\+"):
        evaluate_folders(folders["real"], [folders["good"]], None, QUICK)
    Image.new("RGB", (64, 64)).save(folders["bad"] / "extra.png")
    with pytest.raises(DatasetError, match="real lacks partners of extra"):
        evaluate_folders(folders["real"], [folders["bad"]], None, QUICK)
    for number in range(7):
        Image.new("RGB", (64, 64)).save(folders["bad"] / f"extra{number}.png")
    with pytest.raises(DatasetError, match="and 3 more"):
        evaluate_folders(folders["real"], [folders["bad"]], None, QUICK)


def test_different_sizes_are_an_error(folders: dict[str, Path]) -> None:
    Image.new("RGB", (64, 60)).save(folders["good"] / f"{NAMES[2]}.png")
    with pytest.raises(DatasetError, match=r"00002_test_3\+\.png has 64×60 px"):
        evaluate_folders(folders["real"], [folders["good"]], None, QUICK)


def test_corrupt_image_is_named(folders: dict[str, Path]) -> None:
    file = folders["good"] / f"{NAMES[0]}.png"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=r"00000_test_1\+\.png cannot be decoded"):
        evaluate_folders(folders["real"], [folders["good"]], None, QUICK)
    file.write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"00000_test_1\+\.png is not an image"):
        evaluate_folders(folders["real"], [folders["good"]], None, QUICK)


def test_missing_and_empty_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no folder"):
        evaluate_folders(tmp_path / "absent", [folders["good"]], None, QUICK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no image in"):
        evaluate_folders(folders["real"], [tmp_path / "empty"], None, QUICK)


def test_identical_images_are_counted(folders: dict[str, Path]) -> None:
    shutil.copy(folders["real"] / f"{NAMES[0]}.png", folders["good"] / f"{NAMES[0]}.png")
    evaluation = evaluate_folders(folders["real"], [folders["good"]], None, QUICK)
    assert evaluation.methods[0].scores.subset().identical == 1
    report = make_report(evaluation, resamples=100)
    assert any("1 image without a PSNR" in note for note in report.sections[0].contents[0].notes)  # type: ignore[union-attr]


def test_single_image(folders: dict[str, Path]) -> None:
    for name in NAMES[1:]:
        for folder in folders.values():
            for file in folder.glob(f"{name}.*"):
                file.unlink()
    report = make_report(evaluate_folders(folders["real"], [folders["good"]], None, QUICK), resamples=100)
    assert report.data["methods"]["good"]["metrics"]["ssim"]["low"] is None


def linked(source: Path, target: Path) -> None:
    target.symlink_to(source, target_is_directory=True)


def hard_linked(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).hardlink_to(file)


def one_linked(source: Path, target: Path) -> None:
    """One image is a link to its reference, the others are not even alike."""
    shutil.copytree(source, target)
    for file in target.iterdir():
        Image.new("RGB", (64, 64)).save(file)
    file.unlink()
    file.symlink_to(source / file.name)


def saved_again(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        with Image.open(file) as image:
            image.save(target / f"{file.stem}.bmp")


@pytest.mark.parametrize("make", [linked, hard_linked, one_linked, shutil.copytree, saved_again])
def test_references_under_another_name_are_not_virtual_images(
    folders: dict[str, Path], tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    make(folders["real"], tmp_path / "again")
    with pytest.raises(DatasetError, match=r"same (images|pixels)"):
        evaluate_folders(folders["real"], [folders["good"], tmp_path / "again"], None, QUICK)


@pytest.mark.parametrize(
    ("virtual", "he"), [("real", None), ("real", "he"), ("good", "real"), ("good", "good"), ("x/real", None)]
)
def test_one_folder_for_two_roles_is_an_error(folders: dict[str, Path], virtual: str, he: str | None) -> None:
    base = folders["real"].parent
    (base / "x").mkdir()
    (base / "x" / "real").symlink_to(folders["real"])
    with pytest.raises(DatasetError, match=r"are the same images .* give a separate folder"):
        evaluate_folders(folders["real"], [base / virtual], he and base / he, QUICK)  # type: ignore[arg-type]


def test_two_methods_may_have_the_same_output(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["good"], tmp_path / "again")
    evaluation = evaluate_folders(folders["real"], [folders["good"], tmp_path / "again"], None, QUICK)
    assert [result.method.name for result in evaluation.methods] == ["good", "again"]


@pytest.mark.parametrize(
    ("ends", "order"),
    [
        (("_real_B", "_fake_B", "_real_A"), "AB"),
        (("_real_image", "_synthesized_image", "_input_label"), "AB"),
        (("_real_A", "_fake_A", "_real_B"), "BA"),
    ],
)
def test_roles_from_names_as_in_pix2pix(
    folders: dict[str, Path], tmp_path: Path, ends: tuple[str, str, str], order: Order
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for kind, end in zip(("real", "good", "he"), ends, strict=True):
        for name in NAMES:
            shutil.copy(folders[kind] / f"{name}.png", images / f"{name}{end}.png")
    options = dataclasses.replace(QUICK, order=order)
    plain = evaluate_folders(folders["real"], [folders["good"]], folders["he"], QUICK)
    for reference, virtual, he in ((images, images, None), (images, images, images), (folders["real"], images, None)):
        found = evaluate_folders(reference, [virtual], he, options)
        scores, expected = (one.methods[0].scores.subset().values() for one in (found, plain))
        assert scores == pytest.approx(expected, nan_ok=True)
        assert found.levels == plain.levels
        assert any(f"*{ends[1]} for virtual images" in note for note in found.notes)
        assert ("counterstain" in [one.method.name for one in found.methods]) is (reference == images)


def test_names_as_in_pix2pix_need_their_partners(folders: dict[str, Path], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in NAMES:
        shutil.copy(folders["real"] / f"{name}.png", images / f"{name}_real_B.png")
    with pytest.raises(DatasetError, match=r"lacks partners of"):
        evaluate_folders(images, [images], None, QUICK)


def test_folders_of_one_name_are_distinguished_by_their_parents(folders: dict[str, Path], tmp_path: Path) -> None:
    for run, source in (("run1", "good"), ("run2", "bad")):
        shutil.copytree(folders[source], tmp_path / run / "images")
    copies = [tmp_path / "run1" / "images", tmp_path / "run2" / "images"]
    evaluation = evaluate_folders(folders["real"], copies, None, QUICK)
    assert [result.method.name for result in evaluation.methods] == ["run1/images", "run2/images"]
    with pytest.raises(DatasetError, match="run1/images"):
        evaluate_folders(folders["real"], [copies[0], copies[0]], None, QUICK)
