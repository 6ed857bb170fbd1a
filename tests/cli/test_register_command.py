"""``wsi2ihc register``: what is written and said, with a registration that is known beforehand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_slides import halves, write_slide
from PIL import Image

from wsi2ihc.cli.main import main
from wsi2ihc.concurrency import Progress, ProgressCallback
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.registration import register as register_module
from wsi2ihc.registration.register import Registration, RegistrationOptions, Stage
from wsi2ihc.registration.report import reserved
from wsi2ihc.registration.transform import LocalField, Transform, affine, frame_of, to_moving
from wsi2ihc.registration.transform_io import load_transform, save_transform
from wsi2ihc.slide import Slide

MATRIX = [[1.0, 0.0, 20.0], [0.0, 1.0, -10.0]]
WITH_TRANSFORM = ["after.png", "before.png", "deformation.png", "registration.json", "transform.json", "transform.npz"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    code = ended.value.code
    assert isinstance(code, int)
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    tissue = synthetic_tissue(640, 512, seed=1)
    he = write_slide(folder / "he.svs", halves(tissue, 2), style="aperio", compression="jpeg", tile=256, mpp=0.5)
    ihc = write_slide(
        folder / "ihc.svs", halves(tissue[:480], 2), style="aperio", compression="jpeg", tile=256, mpp=0.5
    )
    return he, ihc


@pytest.fixture
def landmarks(tmp_path: Path) -> tuple[Path, Path]:
    fixed = np.array([[10, 20], [100, 50], [300, 200]], np.float64)
    files = tmp_path / "he.csv", tmp_path / "ihc.csv"
    for path, points, last in zip(
        files, (fixed, fixed + np.array([40, -20])), ("only here", "only there"), strict=True
    ):
        rows = [f"{number},{x},{y}" for number, (x, y) in enumerate(points, start=1)]
        path.write_text("\n".join([",X,Y", *rows, f"{last},1,1"]), encoding="utf-8")
    return files


def found(fixed: Slide, moving: Slide, options: RegistrationOptions, progress: ProgressCallback) -> Registration:
    progress(Progress("registering", 1, 1))
    rough = affine([[1, 0, 0], [0, 1, 0]])
    field = LocalField((-50, -50), 100, np.zeros((6, 6, 2)))
    last = Transform(np.array(MATRIX), field, frame_of(fixed.info), frame_of(moving.info))
    return Registration(
        status="registered",
        reason="",
        score=0.91,
        residual_um=2.5,
        mirrored=False,
        angle_deg=358.75,
        scale=1.01,
        stages=(Stage("coarse", rough, 0.4, 0.1), Stage("local", last, 0.91, 0.2)),
        transform=last,
    )


def failed(fixed: Slide, moving: Slide, options: RegistrationOptions, progress: ProgressCallback) -> Registration:
    return Registration(
        status="failed",
        reason="No turn of the IHC slide stands out.",
        score=0.1,
        residual_um=None,
        mirrored=False,
        angle_deg=float("nan"),
        scale=1.0,
        stages=(),
        transform=None,
    )


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> list[RegistrationOptions]:
    """A registration that finds `MATRIX`; collects the options that it is given."""
    seen: list[RegistrationOptions] = []

    def noted(fixed: Slide, moving: Slide, options: RegistrationOptions, progress: ProgressCallback) -> Registration:
        seen.append(options)
        return found(fixed, moving, options, progress)

    monkeypatch.setattr(register_module, "register", noted)
    return seen


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def report(folder: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((folder / "registration.json").read_text(encoding="utf-8"))
    return plain


@pytest.mark.usefixtures("register")
def test_all_documented_files_are_written_and_reported(
    slides: tuple[Path, Path], landmarks: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    code, stdout, stderr = run(capsys, "register", *slides, out, "--landmarks", *landmarks)
    assert code == 0, stderr
    assert names(out) == WITH_TRANSFORM
    for fact in (
        "ihc.svs",
        "he.svs",
        "-1.25°",
        "1.0100",
        "0.91",
        "2.5 µm",
        "3 pairs, 2 without",
        "that was not fitted to",
    ):
        assert fact in stdout
    assert "registering" in stderr
    transform = load_transform(out)
    assert np.allclose(to_moving(transform, [[0, 0]]), [[20, -10]])
    assert transform.fixed is not None
    assert transform.fixed.name == "he.svs"
    saved = json.loads((out / "transform.json").read_text(encoding="utf-8"))
    assert [saved[name] for name in ("status", "score", "residual_um")] == ["registered", 0.91, 2.5]
    for name in ("before.png", "after.png", "deformation.png"):
        with Image.open(out / name) as opened:
            opened.load()
            assert opened.width == 640


@pytest.mark.usefixtures("register")
def test_the_report_holds_every_stage_and_its_landmarks(
    slides: tuple[Path, Path], landmarks: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, stdout, _ = run(capsys, "register", *slides, tmp_path / "out", "--landmarks", *landmarks, "--json")
    assert code == 0
    facts = report(tmp_path / "out")
    assert json.loads(stdout) == {**facts, "created": json.loads(stdout)["created"]}
    assert (facts["status"], facts["score"], facts["residual_um"], facts["mirrored"]) == (
        "registered",
        0.91,
        2.5,
        False,
    )
    assert [stage["name"] for stage in facts["stages"]] == ["coarse", "local"]
    assert facts["stages"][1]["matrix"] == MATRIX
    assert facts["stages"][1]["control_points"] == [6, 6]
    assert facts["landmarks"]["pairs"] == 3
    assert (facts["landmarks"]["unmatched_fixed"], facts["landmarks"]["unmatched_moving"]) == (1, 1)
    # 40 × -20 px of 0.5 µm apart; the last stage knows it
    assert facts["landmarks"]["before"]["median_um"] == pytest.approx(500**0.5)
    assert facts["stages"][0]["landmarks"]["median_rtre"] == pytest.approx(500**0.5 / 400)
    assert facts["landmarks"]["after"]["max_um"] == pytest.approx(0, abs=1e-9)
    assert facts["fixed"]["name"] == "he.svs"
    assert "scipy" in facts["versions"]
    assert str(tmp_path) not in json.dumps(facts)


@pytest.mark.usefixtures("register")
def test_a_slide_registered_onto_itself_is_warned_of(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.svs"
    copy.write_bytes(slides[0].read_bytes())
    for other in (slides[0], copy):
        code, _, stderr = run(capsys, "register", slides[0], other, tmp_path / other.stem)
        assert code == 0
        assert f"WARNING: he.svs and {other.name} are the same slide" in stderr
        assert "are the same slide" in report(tmp_path / other.stem)["warnings"][0]


@pytest.mark.usefixtures("register")
def test_one_file_of_landmarks_for_both_slides_is_refused(
    slides: tuple[Path, Path], landmarks: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link.csv"
    link.symlink_to(landmarks[0])
    for other in (landmarks[0], link):
        code, _, stderr = run(capsys, "register", *slides, tmp_path / "out", "--landmarks", landmarks[0], other)
        assert code == 1
        assert "he.csv is given as the landmarks of both slides" in stderr
    assert not (tmp_path / "out").exists()


def test_options_are_passed_on(
    slides: tuple[Path, Path],
    register: list[RegistrationOptions],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(capsys, "register", *slides, tmp_path / "a", "-q") == (0, "", "")
    arguments = ("--mirror", "--no-local", "--spacing-um", "250")
    assert run(capsys, "register", *slides, tmp_path / "b", "-q", *arguments)[0] == 0
    assert register == [RegistrationOptions(), RegistrationOptions(mirror=True, local=False, spacing_um=250)]


@pytest.mark.usefixtures("register")
def test_what_a_killed_run_has_left_is_completed(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(capsys, "register", *slides, out)[0] == 0
    (out / "registration.json").unlink()
    (out / ".before.png.0.partial").write_bytes(b"half")
    assert run(capsys, "register", *slides, out)[0] == 0
    assert set(WITH_TRANSFORM) <= set(names(out))
    code, _, stderr = run(capsys, "register", *slides, out)
    assert (code, "already holds a registration" in stderr) == (1, True)


def test_the_residual_is_reported_as_a_residual(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_field(
        fixed: Slide, moving: Slide, options: RegistrationOptions, progress: ProgressCallback
    ) -> Registration:
        one = found(fixed, moving, options, progress)
        assert one.transform is not None
        return dataclasses.replace(one, transform=dataclasses.replace(one.transform, field=None))

    monkeypatch.setattr(register_module, "register", without_field)
    code, stdout, _ = run(capsys, "register", *slides, tmp_path / "out", "--no-local")
    assert code == 0
    assert "2.5 µm (median distance of blocks from the affine map)" in stdout


def test_a_small_negative_angle_is_shown_as_zero(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def barely_turned(*arguments: Any) -> Registration:
        return dataclasses.replace(found(*arguments), angle_deg=359.999)

    monkeypatch.setattr(register_module, "register", barely_turned)
    code, stdout, _ = run(capsys, "register", *slides, tmp_path / "out")
    assert (code, "-0.00°" in stdout, "0.00°" in stdout) == (0, False, True)
    assert "ihc.svs is registered to he.svs" in stdout


def test_a_failure_keeps_the_report_and_the_figure_before(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register_module, "register", failed)
    code, stdout, stderr = run(capsys, "register", *slides, tmp_path / "out", "-q")
    assert (code, stdout) == (1, "")
    assert stderr.startswith("Error: ihc.svs could not be registered to he.svs: No turn of the IHC slide stands out; ")
    assert stderr.count("\n") == 1
    assert names(tmp_path / "out") == ["before.png", "registration.json"]
    facts = report(tmp_path / "out")
    assert (facts["status"], facts["angle_deg"]) == ("failed", None)
    code, stdout, _ = run(capsys, "register", *slides, tmp_path / "out", "--json", "--overwrite")
    assert code == 1
    assert json.loads(stdout)["status"] == "failed"


@pytest.mark.usefixtures("register")
def test_an_earlier_registration_is_replaced_only_when_asked(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(capsys, "register", *slides, out)[0] == 0
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    code, _, stderr = run(capsys, "register", *slides, out)
    assert code == 1
    assert "--overwrite" in stderr
    monkeypatch.setattr(register_module, "register", failed)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, _, stderr = run(capsys, "register", *slides, out, "--overwrite")
    assert (code, stderr.count("\n")) == (1, 1)
    assert stderr.endswith(f"; {out} keeps the earlier registration\n")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "after.png").unlink()  # no longer complete
    assert run(capsys, "register", *slides, out, "--overwrite")[0] == 1
    assert names(out) == ["before.png", "notes.txt", "registration.json"]


@pytest.mark.usefixtures("register")
def test_a_failed_or_incomplete_registration_does_not_block_its_folder(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(register_module, "register", failed)
        assert run(capsys, "register", *slides, out)[0] == 1
    for gone in ("", "transform.npz", "after.png"):
        if gone:
            (out / gone).unlink()
        assert run(capsys, "register", *slides, out, "-q") == (0, "", "")
        assert names(out) == WITH_TRANSFORM
    assert run(capsys, "register", *slides, out)[0] == 1


@pytest.mark.usefixtures("register")
def test_two_runs_do_not_write_one_folder(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    with reserved(out, overwrite=False):
        code, _, stderr = run(capsys, "register", *slides, out, "--overwrite")
        assert (code, "another run is registering into" in stderr) == (1, True)
    assert names(tmp_path) == []  # nothing was written, and the folders were made for it
    (out / "x").mkdir(parents=True)
    (out / "x").rmdir()
    (out / ".lock").touch()  # what kill -9 leaves
    (out / "before.png").touch()
    assert run(capsys, "register", *slides, out)[0] == 0
    assert names(out) == WITH_TRANSFORM


@pytest.mark.usefixtures("register")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("transform.json", '{"matrix": [1, 0, 0]}'),
        ("registration.json", '{"patient": "x"}'),
        ("registration.json", "notes"),
        ("before.png", "an image"),
    ],
)
def test_files_that_only_have_the_names_are_not_ours(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    for options in ((), ("--overwrite",)):
        code, _, stderr = run(capsys, "register", *slides, tmp_path, *options)
        assert (code, f"holds other files ({name})" in stderr) == (1, True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: content}


@pytest.mark.usefixtures("register")
def test_a_transform_saved_from_python_is_not_replaced(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_transform(tmp_path, affine(MATRIX))
    assert run(capsys, "register", *slides, tmp_path)[0] == 1
    assert names(tmp_path) == ["transform.json"]


@pytest.mark.usefixtures("register")
def test_landmarks_that_contradict_it_are_a_warning(
    slides: tuple[Path, Path], landmarks: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = landmarks[1].read_text(encoding="utf-8")
    rows = [line.split(",") for line in text.splitlines()]
    moved = [rows[0], *([name, str(float(x) + 300), y] for name, x, y in rows[1:])]
    landmarks[1].write_text("\n".join(map(",".join, moved)), encoding="utf-8")
    code, stdout, stderr = run(capsys, "register", *slides, tmp_path / "out", "--landmarks", *landmarks)
    assert code == 0
    (line,) = [line for line in stderr.splitlines() if line.startswith("WARNING: ")]
    assert "the landmarks contradict the transform: it misses them by 150 µm (median; without it 170)" in line
    assert "blocks of tissue miss by 2.5 µm" in line
    assert report(tmp_path / "out")["warnings"] == [line.removeprefix("WARNING: ")]
    assert "\n  local " in stdout


@pytest.mark.usefixtures("register")
@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_a_folder_with_other_files_is_refused(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    code, _, stderr = run(capsys, "register", *slides, tmp_path, *options)
    assert code == 1
    assert "thesis.txt" in stderr
    assert names(tmp_path) == ["thesis.txt"]


@pytest.mark.usefixtures("register")
def test_a_file_in_the_place_of_the_folder_is_refused(
    slides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    size = slides[1].stat().st_size
    code, _, stderr = run(capsys, "register", *slides, slides[1], "--overwrite")
    assert code == 1
    assert "not a folder" in stderr
    assert slides[1].stat().st_size == size


def test_nothing_is_written_where_a_slide_turns_out_damaged(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fixed: Slide, moving: Slide, options: RegistrationOptions, progress: ProgressCallback) -> Registration:
        raise UnreadableSlideError("he.svs: damaged at (0, 0)")

    monkeypatch.setattr(register_module, "register", broken)
    code, _, stderr = run(capsys, "register", *slides, tmp_path / "out")
    assert (code, stderr) == (1, "Error: he.svs: damaged at (0, 0)\n")
    assert names(tmp_path) == []


@pytest.mark.usefixtures("register")
def test_an_unknown_resolution_names_the_option_of_its_slide(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_slide(tmp_path / "bare.tiff", [synthetic_tissue(512, 512, seed=2)], mpp=None)
    code, _, stderr = run(capsys, "register", slides[0], bare, tmp_path / "out")
    assert code == 1
    assert "bare.tiff" in stderr
    assert "give it with --moving-mpp (" in stderr
    assert "give it with --mpp (" in run(capsys, "register", bare, slides[1], tmp_path / "out")[2]
    assert "--moving-mpp 100" in run(capsys, "register", *slides, tmp_path / "out", "--moving-mpp", "100")[2]
    assert run(capsys, "register", bare, bare, tmp_path / "out", "--mpp", ".5", "--moving-mpp", ".5", "-q")[0] == 0


@pytest.mark.usefixtures("register")
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), (b"no slide at all", "broken.svs")])
def test_slides_that_cannot_be_read(
    slides: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    place: int,
    content: bytes | None,
    message: str,
) -> None:
    pair = list(slides)
    pair[place] = tmp_path / "broken.svs"
    if content is not None:
        pair[place].write_bytes(content)
    code, _, stderr = run(capsys, "register", *pair, tmp_path / "out")
    assert code == 1
    assert message in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [(",X,Y\nz,1,2\n", "no id in common"), (",X,Y\n1,two,3\n", "ihc.csv, line 2: 'two' is not a coordinate")],
)
def test_landmarks_are_looked_at_before_the_work(
    slides: tuple[Path, Path],
    landmarks: tuple[Path, Path],
    register: list[RegistrationOptions],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    landmarks[1].write_text(text, encoding="utf-8")
    code, _, stderr = run(capsys, "register", *slides, tmp_path / "out", "--landmarks", *landmarks)
    assert code == 1
    assert message in stderr
    assert register == []
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("register")
def test_messages_name_the_options_of_each_slide(
    slides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, said = run(capsys, "register", *slides, tmp_path / "out", "--series", "5")
    assert "he.svs: --series 5" in said
    _, _, said = run(capsys, "register", *slides, tmp_path / "out", "--moving-series", "5")
    assert "ihc.svs: --moving-series 5" in said
    _, _, said = run(capsys, "register", *slides, tmp_path / "out", "--moving-page", "7")
    assert "ihc.svs: --moving-page 7" in said
