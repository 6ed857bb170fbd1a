"""Lists of slides: what is read, and what is wrong with them, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_batch import OPTIONS, tasks_of, write_slides

from wsi2ihc.batch.checking import check_rows, shard_of
from wsi2ihc.batch.manifest import output_name, read_rows
from wsi2ihc.batch.task import SlideTask, options_from_json, options_to_json
from wsi2ihc.errors import BatchError, ManifestError
from wsi2ihc.geometry import Region
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.translation.options import TranslateOptions


def manifest(folder: Path, text: str) -> str:
    path = folder / "slides.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_row_says_what_it_says_and_the_rest_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "mask.png").touch()
    (tmp_path / "net.safetensors").touch()
    text = (
        "Path,output,mpp,model,tissue,region,max-memory,quality,batch_size\n"
        'a.svs,first,0.5,net.safetensors,mask.png,"1,2,30,40",2G,70,4\n'
        "sub/b.ndpi,,,,,,,,\n"
    )
    rows, problems = read_rows(manifest(tmp_path, text), "counterstain", OPTIONS)
    assert not problems
    first, second = rows
    assert (first.line, first.name, first.output, first.mpp) == (2, "a.svs", "first.ome.tiff", 0.5)
    assert first.model == str(tmp_path / "net.safetensors")
    assert first.options == TranslateOptions(
        device="cpu", workers=1, tissue=tmp_path / "mask.png", region=Region(1, 2, 30, 40), max_memory_bytes=2 << 30,
        pyramid=PyramidOptions(quality=70), batch_size=4,
    )  # fmt: skip
    assert (second.slide, second.output, second.options) == (str(tmp_path / "sub/b.ndpi"), "b.ome.tiff", OPTIONS)
    assert second.model == "counterstain"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("../x,", "no plain file name"), ("a/b,", "no plain file name"), (".hidden,", "no plain file name"),
        ("a\\b,", "no plain file name"), (",nonsense", "batch_size is 'nonsense'"), (",-3", "cannot be negative"),
    ],
)  # fmt: skip
def test_bad_cells_are_problems_of_their_rows(tmp_path: Path, cells: str, message: str) -> None:
    rows, problems = read_rows(
        manifest(tmp_path, f"path,output,batch_size\na.svs,{cells}\nb.svs,,\n"), "identity", OPTIONS
    )
    assert [row.name for row in rows] == ["b.svs"]
    assert [problem.line for problem in problems] == [2]
    assert message in problems[0].message


def test_outputs_of_one_name_are_told_together(tmp_path: Path) -> None:
    text = "path,output\nx/a.svs,\ny/a.svs,\nb.svs,A\nc.svs,\n"
    _, problems = read_rows(manifest(tmp_path, text), "identity", OPTIONS)
    assert [problem.line for problem in problems] == [2, 3, 4]
    assert "lines 2, 3, 4 have the output" in problems[0].message


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no column path"), ("path\n", "names no slide"), ("path;mpp\na;1\n", "no column path"),
     ("path\na,b\n", "line 2: 2 cells")],
)  # fmt: skip
def test_unusable_tables_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_rows(manifest(tmp_path, text), "identity", OPTIONS)


def test_unknown_columns_are_told_with_those_that_are_known(tmp_path: Path) -> None:
    _, problems = read_rows(manifest(tmp_path, "path,colour\na.svs,red\n"), "identity", OPTIONS)
    assert "no option 'colour'" in problems[0].message
    assert "tissue" in problems[0].message


def test_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.svs", "a.tif", "notes.txt", ".hidden.svs", "c.ome.tiff"):
        (tmp_path / name).touch()
    names = [row.name for row in read_rows(str(tmp_path), "identity", OPTIONS)[0]]
    assert names == ["a.tif", "b.svs", "c.ome.tiff"]
    rows, _ = read_rows(str(tmp_path / "*.svs"), "identity", OPTIONS)
    assert [row.output for row in rows] == ["b.ome.tiff"]
    with pytest.raises(ManifestError, match="no file matches"):
        read_rows(str(tmp_path / "*.ndpi"), "identity", OPTIONS)
    with pytest.raises(ManifestError, match="there is no manifest"):
        read_rows(str(tmp_path / "absent.csv"), "identity", OPTIONS)


def test_names_of_outputs() -> None:
    assert output_name("a.b.svs") == "a.b.ome.tiff"
    assert output_name("a.ome.tiff") == "a.ome.tiff"
    assert output_name("slide") == "slide.ome.tiff"
    assert output_name("A.SVS") == "A.ome.tiff"


def test_slides_are_opened_and_all_that_is_wrong_is_told(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["good"])
    (slides / "broken.tif").write_bytes(b"II*\0nothing")
    rows, _ = read_rows(str(slides), "identity", OPTIONS)
    tasks, problems = check_rows(rows, tmp_path)
    assert [task.name for task in tasks] == ["good.ome.tiff"]
    assert [problem.name for problem in problems] == ["broken.tif"]
    rows, _ = read_rows(str(slides / "good.tif"), "no-such-model", OPTIONS)
    _, (problem,) = check_rows(rows, tmp_path)
    assert "no model or model file" in problem.message


def test_an_output_that_is_the_slide_itself_is_refused(tmp_path: Path) -> None:
    slides = write_slides(tmp_path, ["a.ome"])
    rows, _ = read_rows(str(slides / "a.ome.tif"), "identity", OPTIONS)
    (slides / "a.ome.tiff").symlink_to(slides / "a.ome.tif")
    _, (problem,) = check_rows(rows, slides)
    assert "the slide itself" in problem.message


def test_shards_cover_the_manifest_once_whatever_its_order(tmp_path: Path) -> None:
    tasks = [SlideTask(number, f"{number}.svs", tmp_path / f"{number}.ome.tiff", "identity") for number in range(11)]
    shards = [shard_of(tasks, f"{index}/3") for index in range(3)]
    assert sorted(task.number for shard in shards for task in shard) == list(range(11))
    assert [shard_of(tasks[::-1], f"{index}/3") for index in range(3)] == shards
    for wrong in ("3/3", "1", "a/b", "-1/3", "1/0"):
        with pytest.raises(BatchError, match="--shard"):
            shard_of(tasks, wrong)


def test_tasks_and_options_survive_json(tmp_path: Path) -> None:
    options = TranslateOptions(region=Region(1, 2, 3, 4), tissue=tmp_path / "m.png", pyramid=PyramidOptions(quality=9))
    again = options_from_json(options_to_json(options))
    assert options_to_json(again) == options_to_json(options)
    task = SlideTask(3, "s.svs", tmp_path / "s.ome.tiff", "identity", 0.5, OPTIONS, "source", "version")
    assert SlideTask.from_json(task.to_json()) == task


def test_the_fingerprint_follows_pixels_and_nothing_else(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["a"])
    (task,) = tasks_of(slides, tmp_path / "out")
    changed = {
        "the same": (task, True),
        "device": (tasks_of(slides, tmp_path / "out", options=TranslateOptions(device="auto", workers=2))[0], True),
        "model": (tasks_of(slides, tmp_path / "out", model="counterstain")[0], False),
        "quality": (
            tasks_of(slides, tmp_path / "out", options=TranslateOptions(pyramid=PyramidOptions(quality=50)))[0], False,
        ),
    }  # fmt: skip
    for what, (other, is_same) in changed.items():
        assert (other.fingerprint == task.fingerprint) is is_same, what
