"""Training curves: reading of run folders, smoothing, names and the figure."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi2ihc.errors import OutputError, TrainingError
from wsi2ihc.training import training_curves
from wsi2ihc.training.history import RunRecord
from wsi2ihc.training.training_curves import draw_curves, read_runs, running_mean

pytest.importorskip("matplotlib")

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def make_run(
    folder: Path,
    epochs: int = 3,
    *,
    epoch_steps: int = 8,
    recipe: str = "",
    losses: tuple[str, ...] = ("generator", "l1"),
    scores: tuple[str, ...] = ("psnr",),
    validated: bool = True,
) -> Path:
    folder.mkdir(parents=True)
    if recipe:
        (folder / "config.toml").write_text(f'recipe = "{recipe}"\n')
    with RunRecord(folder, 0, 0, False, step_names=losses, validation_names=scores) as record:
        for step in range(1, epochs * epoch_steps + 1):
            record.step(step, 1 + (step - 1) // epoch_steps, dict.fromkeys(losses, 1 / step))
            if step % epoch_steps == 0 and validated:
                record.validation(step // epoch_steps, step, dict.fromkeys(scores, step / 3))
    return folder


def pixels_near(path: Path, color: tuple[int, int, int]) -> int:
    with Image.open(path) as image:
        return int((np.abs(np.asarray(image.convert("RGB"), int) - color).max(axis=-1) < 24).sum())


def test_running_mean_of_neighbors() -> None:
    values = np.random.default_rng(0).normal(size=40)
    for rows in (1, 2, 5, 39, 100):
        places = range(len(values))
        expected = [values[max(0, i - (rows - 1) // 2) : i + rows // 2 + 1].mean() for i in places]
        np.testing.assert_allclose(running_mean(values, rows), expected, rtol=0, atol=1e-12)


def test_running_mean_keeps_gaps() -> None:
    values = np.array([1.0, np.nan, 3.0, np.inf, 5.0])
    np.testing.assert_array_equal(running_mean(values, 3), [1.0, np.nan, 3.0, np.nan, 5.0])
    np.testing.assert_array_equal(running_mean(values, 5), [2.0, np.nan, 3.0, np.nan, 4.0])
    assert np.isnan(running_mean(np.full(3, np.nan), 2)).all()
    assert running_mean(np.empty(0), 4).shape == (0,)


def test_runs_of_one_name_are_distinguished(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name) for name in ("a/first", "b/first", "second")]
    assert [run.name for run in read_runs(folders[1:])] == ["first", "second"]
    assert [run.name for run in read_runs(folders)] == ["a/first", "b/first", f"{tmp_path.name}/second"]


def test_run_given_twice_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_run(tmp_path / "first")
    monkeypatch.chdir(first)
    assert [run.name for run in read_runs([first, Path(), first / ".." / "first"])] == ["first"]


def test_recipe_is_read_from_the_configuration(tmp_path: Path) -> None:
    known, unknown, broken = (make_run(tmp_path / name, recipe="pyramid") for name in ("known", "unknown", "broken"))
    (unknown / "config.toml").unlink()
    (broken / "config.toml").write_bytes(b"\xff = [")
    assert [run.recipe for run in read_runs([known, unknown, broken])] == ["pyramid", "", ""]


def test_epoch_length_from_validation_or_steps(tmp_path: Path) -> None:
    validated = make_run(tmp_path / "validated", epochs=1, epoch_steps=7)
    without = make_run(tmp_path / "without", epochs=3, epoch_steps=7, validated=False)
    begun = make_run(tmp_path / "begun", epochs=1, epoch_steps=7, validated=False)
    assert [run.epoch_steps for run in read_runs([validated, without, begun])] == [7.0, 7.0, None]


def test_panel_for_every_column_of_any_run(tmp_path: Path) -> None:
    pyramid = make_run(tmp_path / "pyramid", losses=("learning_rate", "own_loss", "l1", "generator"), scores=("ssim",))
    variance = make_run(tmp_path / "variance", losses=("variance", "generator"), scores=("stain_r", "other", "psnr"))
    losses, scores = training_curves._panels(read_runs([pyramid, variance]))
    assert [panel.title for panel in losses] == ["Generator loss", "L1 loss", "Variance loss", "Own loss"]
    assert [panel.title for panel in scores] == ["PSNR, dB", "SSIM", "Stain R per pixel", "Other"]
    assert draw_curves([pyramid, variance], tmp_path / "both.png") == 8
    assert draw_curves([variance], tmp_path / "one.png") == 5


def test_empty_column_has_no_panel(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", losses=("generator",))
    (run / "steps.csv").write_text("step,epoch,variance,generator\n1,1,nan,1\n2,1,,inf\n")
    assert draw_curves([run], tmp_path / "curves.png") == 2


def test_every_run_has_its_color(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", losses=("l1",), scores=("ssim",))
    draw_curves([first], tmp_path / "one.png")
    draw_curves([first, second], tmp_path / "two.png")
    assert pixels_near(tmp_path / "one.png", BLUE) > 500
    assert pixels_near(tmp_path / "one.png", ORANGE) == 0
    assert min(pixels_near(tmp_path / "two.png", color) for color in (BLUE, ORANGE)) > 500


def test_axes_are_labeled(tmp_path: Path) -> None:
    done = make_run(tmp_path / "done", epochs=4, recipe="variance", scores=("variance_ratio",))
    begun = make_run(tmp_path / "begun", epochs=1, validated=False)
    for folders, label, last in (([done], "epoch", 4), ([done, begun], "step", 32)):
        runs = read_runs(folders)
        figure = training_curves._figure(runs, *training_curves._panels(runs), smooth=3)
        ratio = figure.axes[-1]
        assert ratio.get_xlabel() == label
        assert ratio.get_xlim()[0] == 0
        assert ratio.get_title(loc="left") == "Batch variance / reference's"
        reference, line = ratio.lines
        assert np.asarray(reference.get_ydata()).tolist() == [1.0, 1.0]
        assert np.asarray(line.get_xdata())[-1] == last
        assert figure.get_suptitle().endswith("recipe variance")
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "as logged", "running mean of 3 rows", "done", "begun"
    }  # fmt: skip


def test_spike_does_not_flatten_the_rest(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs=50, losses=("generator",))
    lines = (run / "steps.csv").read_text().splitlines()
    lines[200] = ",".join([*lines[200].split(",")[:2], "1000.0"])
    (run / "steps.csv").write_text("\n".join(lines) + "\n")
    runs = read_runs([run])
    low, high = training_curves._figure(runs, *training_curves._panels(runs), smooth=100).axes[0].get_ylim()
    assert low < 0.01
    assert 1 / 3 < high < 30


def test_many_runs_with_few_rows(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"a rather long name of a run, number {n}", epochs=1) for n in range(9)]
    assert draw_curves(folders, tmp_path / "curves.png", smooth=1) == 3
    styles = {training_curves._style(number) for number in range(9)}
    assert len(styles) == 9


def test_constant_and_single_value(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs=1, epoch_steps=1)
    (run / "validation.csv").write_text("epoch,step,psnr\n1,1,0.0\n")
    assert draw_curves([run], tmp_path / "curves.png") == 3


@pytest.mark.parametrize(
    ("values", "power"), [((12.127293, 12.1272931), ""), ((-7.0, -7.0), ""), ((1e-7, 3e-7), "1e−7"), ((0.0, 0.0), "")]
)
def test_axis_offset_and_labels_stay_left_of_the_axis(tmp_path: Path, values: tuple[float, float], power: str) -> None:
    run = make_run(tmp_path / "run", epochs=2)
    (run / "validation.csv").write_text(f"epoch,step,ssim\n1,8,{values[0]}\n2,16,{values[1]}\n")
    runs = read_runs([run])
    figure = training_curves._figure(runs, *training_curves._panels(runs), smooth=1)
    figure.savefig(io.BytesIO())
    axes = figure.axes[-1]
    text = axes.yaxis.get_offset_text()
    assert text.get_text() == power
    assert not power or text.get_window_extent().x1 < axes.bbox.x0  # where the title begins
    low, high = axes.get_ylim()
    assert low < min(values) <= max(values) < high
    assert high - low >= 0.01 * max(map(abs, values))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == len(labels) > 2
    assert max(map(len, labels)) <= 6


def test_run_in_progress(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "steps.csv").open("a") as file:
        file.write("25,4,0.3")
    assert draw_curves([run], tmp_path / "curves.png") == 3


def test_invalid_run_folder_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    empty = make_run(tmp_path / "empty", epochs=0)
    with pytest.raises(TrainingError, match="has no rows yet"):
        draw_curves([run, empty], tmp_path / "curves.png")
    with pytest.raises(TrainingError, match="is not the folder of a training run"):
        draw_curves([tmp_path], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_run_without_finite_values_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs=0)
    (run / "steps.csv").write_text("step,epoch,generator\n1,1,nan\n")
    with pytest.raises(TrainingError, match="has no finite losses or metrics to draw"):
        draw_curves([run], tmp_path / "curves.png")


def test_unwritable_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing"):
        draw_curves([make_run(tmp_path / "run")], tmp_path / "missing" / "curves.png")


def test_missing_matplotlib_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    with pytest.raises(TrainingError, match=r"pip install 'wsi2ihc\[train\]'"):
        draw_curves([make_run(tmp_path / "run")], tmp_path / "curves.png")


def test_import_is_lazy_and_pyplot_is_not_used(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from wsi2ihc.training.training_curves import draw_curves\n"
        "assert 'matplotlib' not in sys.modules\n"
        "draw_curves([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run), str(tmp_path / "a.png")], check=True, timeout=60)
