"""Models on paired patches, and the report that comes of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from make_evaluation_data import STRENGTHS, write_data
from PIL import Image as PillowImage

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.models.fused_resnet import to_network, to_pixels
from wsi2ihc.models.model_file import build_network, save_checkpoint
from wsi2ihc.models.model_spec import GeneratorSpec
from wsi2ihc.training.data import Pair, PairedData, read_pair
from wsi2ihc.training.evaluation import patches
from wsi2ihc.training.evaluation.options import EvaluateOptions
from wsi2ihc.training.evaluation.patches import describe_images, evaluate_patches, find_split
from wsi2ihc.training.evaluation.report import make_report
from wsi2ihc.training.evaluation.results import Evaluation
from wsi2ihc.training.metrics import inception
from wsi2ihc.training.metrics.distribution import frechet_distance
from wsi2ihc.training.reports.document import Figure, Table

QUICK = EvaluateOptions(resamples=100, examples=1, precision="fp32", device="cpu")
TINY = GeneratorSpec(architecture="resnet", depth=1, width=4, mpp=1.0, stain="HER2", license="none")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_checkpoint(path, build_network(TINY), TINY)
    return path


@pytest.fixture(scope="module")
def evaluation(data: Path, model: Path) -> Evaluation:
    return evaluate_patches(data, [str(model)], QUICK)


def test_all_methods_are_scored_on_the_test_patches(evaluation: Evaluation, model: Path) -> None:
    assert [result.method.name for result in evaluation.methods] == [model.parent.name, "counterstain",
                                                                     "color regression"]  # fmt: skip
    assert {result.scores.subset().images for result in evaluation.methods} == {6}
    assert evaluation.resampling_unit == "patients"
    assert evaluation.levels == tuple(STRENGTHS), "also those without a test image"
    regression = evaluation.methods[2].scores.subset()
    assert regression.identical == 6, "the reference is a linear function of the color here"


def test_model_runs_once_in_evaluation_mode(data: Path, model: Path, evaluation: Evaluation) -> None:
    example = evaluation.examples[0]
    torch.manual_seed(0)
    network = build_network(TINY).eval()
    assert example.he is not None
    with torch.no_grad():
        expected = to_pixels(network(to_network(torch.from_numpy(example.he[np.newaxis].copy()))))[0].numpy()
    answer = example.virtual[model.parent.name].astype(int)
    assert np.abs(answer - expected.astype(int)).max() <= 1


def test_threshold_and_cutoffs_are_fitted_to_the_training_split(data: Path, evaluation: Evaluation) -> None:
    assert "training references" in evaluation.threshold_fit.source
    (by_area, by_score) = evaluation.reference_predictions
    assert (by_area.by, by_score.by) == ("stained area", "H-score")
    assert by_score.slides == 3
    assert by_score.correct == 3, "levels are as far apart as they can be"
    counterstain = evaluation.methods[1].predictions[1]
    assert counterstain.missed == 1, "what stains nothing predictions the 3+ negative"


def test_published_values_are_shown_for_bci_only(evaluation: Evaluation) -> None:
    bci = dataclasses.replace(evaluation, metadata={"data": {"layout": "HE/ and IHC/; names as in BCI"}})
    contents = [one for section in make_report(bci, resamples=100).sections for one in section.contents]
    (table,) = (one for one in contents if one.name == "levels_psnr")
    assert isinstance(table, Table)
    published = next(row for row in table.rows if row[0] == "variance (study)")
    assert published[1:] == (20.48, 21.65, 21.3, 19.5, 22.16)
    assert "Published on BCI's test split" in table.notes[0]


def test_report_has_every_table(evaluation: Evaluation) -> None:
    report = make_report(evaluation, resamples=100)
    contents = [one for section in report.sections for one in section.contents]
    tables = {one.name: one for one in contents if isinstance(one, Table)}
    assert {"summary", "differences", "her2_predictions", "levels", "levels_psnr", "metrics_stain",
            "slides_1"} <= tables.keys()  # fmt: skip
    assert "levels_fid" not in tables, "no method has a value"
    counts = {row[0]: row[1] for row in tables["levels"].rows}
    assert counts == {"HER2 0": 2, "HER2 1+": 2, "HER2 2+": 0, "HER2 3+": 2}
    assert "2+" in tables["levels"].notes[0]
    assert {row[0] for row in tables["levels_psnr"].rows} == {one.method.name for one in evaluation.methods}
    assert tables["levels_psnr"].notes == ()
    misclassified = tables["her2_misclassified"].rows
    assert misclassified[0][1] == "3+", "positives predicted negative come first"
    assert len(tables["images"].rows) == 6 * 3
    assert not tables["images"].is_shown
    assert tables["her2_predictions"].columns[2].title.startswith("3+ predicted 0")
    figures = {one.name for one in contents if isinstance(one, Figure)}
    assert {"examples_1", "histogram_dab", "scatter_1", "bars_psnr"} <= figures
    assert any(name.startswith("confusion") for name in figures)
    json.dumps(report.data, allow_nan=False)
    method = report.data["methods"]["color regression"]
    assert method["metrics"]["fid"]["value"] is None
    assert "--inception-weights" in method["metrics"]["fid"]["reason"]
    assert method["levels"]["2+"]["psnr"]["value"] is None


def test_no_training_patches_are_noted(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    table = folder / "pairs.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(line for line in lines if ",test," in line)]) + "\n")
    evaluation = evaluate_patches(folder, ["counterstain"], QUICK)
    assert [result.method.name for result in evaluation.methods] == ["counterstain"]
    assert "scored references" in evaluation.threshold_fit.source
    assert any("no training patches" in note for note in evaluation.notes)
    assert evaluation.reference_predictions == ()


def test_patches_without_ids_are_their_own_units_with_a_note(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", patches=1)
    rows = [line.split(",") for line in (folder / "pairs.csv").read_text().splitlines()]
    (folder / "pairs.csv").write_text("\n".join(",".join(row[:5]) for row in rows) + "\n")
    evaluation = evaluate_patches(folder, ["identity"], QUICK)
    assert evaluation.resampling_unit == "patches"
    assert any("too narrow" in note for note in evaluation.notes)
    assert evaluation.reference_predictions == (), "a patch is not a slide"


def test_units_per_pair_and_slide_names_shared_by_patients(tmp_path: Path) -> None:
    pairs = [
        Pair("a", tmp_path / "a", tmp_path / "a", patient="p", slide="1"),
        Pair("b", tmp_path / "b", tmp_path / "b", patient="q", slide="1"),
        Pair("c", tmp_path / "c", tmp_path / "c", slide="2"),
        Pair("d", tmp_path / "d", tmp_path / "d"),
    ]
    unit, images = describe_images(pairs, PairedData(tmp_path, "", tuple(pairs)))
    assert unit == "patients and slides and patches"
    assert [image.resampling_unit for image in images] == ["patient p", "patient q", "slide 2", str(tmp_path / "d")]
    assert [image.slide for image in images] == ["p 1", "q 1", "2", None]


class MeanColors:
    """Stands in for Inception: three features, the mean of each channel."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return images.mean((1, 2)).astype(np.float32)


def test_distances_of_each_method(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(inception, "features", lambda network, images: network(images))
    monkeypatch.setattr(patches, "load_inception_features", lambda *_: (MeanColors(), {"layer": "means"}))
    evaluation = evaluate_patches(data, ["identity"], QUICK)
    found = find_split(data, QUICK).of("test")
    he, ihc = (np.stack([read_pair(pair)[side] for pair in found]) for side in (0, 1))
    levels = np.array([pair.her2 for pair in found])
    for level in ("", "1+"):
        which = (levels == level) | (level == "")
        expected = frechet_distance(he[which].mean((1, 2)), ihc[which].mean((1, 2)))
        distances = evaluation.methods[0].distances[level]
        assert distances.fid == pytest.approx(expected, rel=1e-4)
        assert distances.virtual_images == which.sum()
    assert evaluation.methods[0].distances[""].fid != evaluation.methods[1].distances[""].fid
    report = make_report(evaluation, resamples=100)
    assert report.data["methods"]["identity"]["metrics"]["fid"]["value"] is not None


def test_large_patches_have_an_interior(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", patches=1, size=512, test_levels=("0", "3+"))
    evaluation = evaluate_patches(folder, ["identity"], QUICK)
    interior = evaluation.methods[0].interior
    assert evaluation.interior_px == 84
    assert interior is not None
    values = interior.subset(slide="test3+0").values()
    pair = [np.asarray(PillowImage.open(folder / kind / "test_3_0_0.png"))[84:-84, 84:-84] for kind in ("HE", "IHC")]
    assert values["l1"] == pytest.approx(np.abs(pair[0].astype(float) - pair[1]).mean())
    report = make_report(evaluation, resamples=100)
    assert any(section.title == "Interior" for section in report.sections)


def test_wrong_inception_weights_are_a_reason_not_an_error(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"nothing")
    options = EvaluateOptions(resamples=100, examples=0, inception_weights=weights)
    evaluation = evaluate_patches(data, ["identity"], options)
    assert "weights.pth" in evaluation.inception["reason"]


def test_missing_inception_weights_are_an_error(data: Path, tmp_path: Path) -> None:
    missing = EvaluateOptions(resamples=100, examples=0, inception_weights=tmp_path / "absent.pth")
    with pytest.raises(OptionError, match=r"there is no file .*absent\.pth with Inception weights"):
        evaluate_patches(data, ["identity"], missing)


def test_damaged_and_unusable_data_is_an_error(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", patches=1)
    with pytest.raises(DatasetError, match=r"validation|group"):
        evaluate_patches(folder, ["identity"], EvaluateOptions(split="validation", group_by="(?P<g>train|test)"))
    file = folder / "IHC" / "test_3_0_0.png"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"test_3_0_0\.png"):
        evaluate_patches(folder, ["identity"], QUICK)
    with pytest.raises(OptionError, match="two models"):
        evaluate_patches(write_data(tmp_path / "good", patches=1), ["identity", "identity"], QUICK)


def test_model_for_another_resolution_is_noted(data: Path, evaluation: Evaluation, tmp_path: Path) -> None:
    assert not any("µm/px" in note for note in evaluation.notes)
    options = EvaluateOptions(resamples=100, examples=0, mpp=0.25, precision="fp32")
    spec = GeneratorSpec(architecture="resnet", depth=1, width=4, mpp=1.0, stain="HER2")
    path = tmp_path / "coarse.safetensors"
    save_checkpoint(path, build_network(spec), spec)
    found = evaluate_patches(data, [str(path)], options)
    assert any("coarse works at 1 µm/px, but the patches have 0.25" in note for note in found.notes)
