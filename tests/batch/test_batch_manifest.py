"""Lists of slides: what is read, and what is wrong with them, all at once."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import tifffile
from make_batch import OPTIONS, tasks_of, write_slides

from wsi2ihc.batch.preflight import check_rows, check_writable
from wsi2ihc.batch.slide_manifest import ManifestShard, Row, output_name, parse_shard, read_rows, shard_of
from wsi2ihc.batch.task import SlideTask, marker_path
from wsi2ihc.batch.worker import staged
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.errors import BatchError, ManifestError, OutputError
from wsi2ihc.geometry import Region
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.translation.options import TranslateOptions


def manifest(folder: Path, text: str) -> str:
    path = folder / "slides.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_row_overrides_the_defaults(tmp_path: Path) -> None:
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
    ("name", "cell", "field", "value"),
    [
        ("batch_size", "auto", "batch_size", 0), ("max_memory", "0.5T", "max_memory_bytes", 1 << 39),
        ("region", '"1; 2; 30; 40"', "region", Region(1, 2, 30, 40)),
        ("openslide_compatible", "yes", "pyramid", PyramidOptions(openslide_compatible=True)),
        ("openslide_compatible", "FALSE", "pyramid", PyramidOptions(openslide_compatible=False)),
    ],
)  # fmt: skip
def test_cells_are_written_as_on_the_command_line(
    tmp_path: Path, name: str, cell: str, field: str, value: object
) -> None:
    (row,), problems = read_rows(manifest(tmp_path, f"path,{name}\na.svs,{cell}\n"), "identity", OPTIONS)
    assert not problems
    assert getattr(row.options, field) == value


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("max_memory", "2 litres", "is not an amount of memory such as 4G or 1500M"),
        ("region", '"1,2,3"', "is not X,Y,W,H in whole pixels"), ("region", '"1,2,0,4"', "is empty"),
        ("seed", "x", "is not an integer"), ("openslide_compatible", "perhaps", "is neither yes nor no"),
    ],
)  # fmt: skip
def test_cells_that_cannot_be_read_say_why(tmp_path: Path, name: str, cell: str, message: str) -> None:
    rows, (problem,) = read_rows(manifest(tmp_path, f"path,{name}\na.svs,{cell}\n"), "identity", OPTIONS)
    assert not rows
    assert problem.message.startswith(f"{name}: ")
    assert message in problem.message


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("../x,", "not a plain file name"), ("a/b,", "not a plain file name"), (".hidden,", "not a plain file name"),
        ("a\\b,", "the output 'b' is not a plain file name"),
        ("x.ome.zarr,", "is not an OME-TIFF, the format that a batch writes"),
        (",nonsense", "batch_size: 'nonsense' is neither auto nor a whole number of at least 1"),
        (",-3", "batch_size: '-3' is neither auto nor"),
    ],
)  # fmt: skip
def test_bad_cells_are_problems_of_their_rows(tmp_path: Path, cells: str, message: str) -> None:
    rows, problems = read_rows(
        manifest(tmp_path, f"path,output,batch_size\na.svs,{cells}\nb.svs,,\n"), "identity", OPTIONS
    )
    assert [row.name for row in rows] == ["b.svs"]
    assert [problem.line for problem in problems] == [2]
    assert message in problems[0].message


def test_outputs_of_one_name_are_reported_together(tmp_path: Path) -> None:
    text = "path,output\nx/a.svs,\ny/a.svs,\nb.svs,A\nc.svs,\n"
    _, problems = read_rows(manifest(tmp_path, text), "identity", OPTIONS)
    assert [problem.line for problem in problems] == [2, 3, 4]
    assert problems[0].message.startswith("a.svs, a.svs, b.svs have the output a.ome.tiff")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no column path"), ("path\n", "names no slide"), ("path;mpp\na;1\n", "no column path"),
     ("path\na,b\n", "line 2: 2 cells"), ("path,mpp,MPP\na,0.25,0.5\n", "two columns mpp")],
)  # fmt: skip
def test_unusable_tables_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_rows(manifest(tmp_path, text), "identity", OPTIONS)


def test_unknown_columns_are_reported_with_the_known_ones(tmp_path: Path) -> None:
    _, problems = read_rows(manifest(tmp_path, "path,color\na.svs,red\n"), "identity", OPTIONS)
    assert "no option 'color'" in problems[0].message
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


def test_slides_are_opened_and_all_problems_are_reported(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["good"])
    (slides / "broken.tif").write_bytes(b"II*\0nothing")
    rows, _ = read_rows(str(slides), "identity", OPTIONS)
    tasks, problems = check_rows(rows, tmp_path, rows)
    assert [task.name for task in tasks] == ["good.ome.tiff"]
    assert [problem.name for problem in problems] == ["broken.tif"]
    rows, _ = read_rows(str(slides / "good.tif"), "no-such-model", OPTIONS)
    _, (problem,) = check_rows(rows, tmp_path, rows)
    assert "no model or file" in problem.message


def test_an_output_that_is_the_slide_itself_is_refused(tmp_path: Path) -> None:
    slides = write_slides(tmp_path, ["a.ome"])
    rows, _ = read_rows(str(slides / "a.ome.tif"), "identity", OPTIONS)
    (slides / "a.ome.tiff").symlink_to(slides / "a.ome.tif")
    _, (problem,) = check_rows(rows, slides, rows)
    assert "a slide of this list" in problem.message


def test_no_output_may_be_a_slide_of_another_row_whatever_the_shard(tmp_path: Path) -> None:
    """Row 1 would write over the slide of row 2, before or after that is translated."""
    out = write_slides(tmp_path / "out", ["x", "b"])
    (out / "b.tif").rename(out / "b.ome.tiff")
    rows, problems = read_rows(manifest(out, "path,output\nx.tif,b\nb.ome.tiff,c\n"), "identity", OPTIONS)
    assert not problems
    tasks, (problem,) = check_rows(rows[:1], out, rows)
    assert not tasks
    assert problem.line == 2
    assert "a slide of this list" in problem.message


def test_names_that_are_no_text_and_names_that_are_too_long_are_problems(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["good"])
    bad = os.fsencode(slides) + b"/M\xfcller.tif"
    try:
        os.rename(slides / "good.tif", bad)  # noqa: PTH104 (no text)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    rows, (problem,) = read_rows(str(slides), "identity", OPTIONS)
    assert not rows
    assert "not valid UTF-8" in str(problem).encode("utf-8").decode()
    write_slides(slides, ["a"])
    rows, (problem,) = read_rows(manifest(slides, f"path,output\na.tif,{'n' * 300}\n"), "identity", OPTIONS)
    assert not rows
    assert "longer than 200 bytes" in problem.message


def test_a_folder_that_cannot_be_written_is_reported_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path / "new" / "deep")
    with pytest.raises(OutputError, match=r"file cannot be written; name another output folder"):
        check_writable(tmp_path / "file" / "below")


def test_links_that_lead_nowhere_are_problems(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["good"])
    (slides / "gone.svs").symlink_to(tmp_path / "not mounted" / "gone.svs")
    for source in (slides, slides / "*"):
        rows, (problem,) = read_rows(str(source), "identity", OPTIONS)
        assert [row.name for row in rows] == ["good.tif"]
        assert str(problem).startswith("gone.svs: it is a broken link")


def test_names_that_break_lines_are_problems(tmp_path: Path) -> None:
    (tmp_path / "two\nlines.tif").touch()
    rows, (problem,) = read_rows(str(tmp_path), "identity", OPTIONS)
    assert not rows
    assert str(problem) == "two?lines.tif: its name contains unprintable characters; rename it"


def test_an_output_that_is_a_folder_is_a_problem(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["a"])
    output = tmp_path / "out" / "a.ome.tiff"
    rows, _ = read_rows(str(slides), "identity", OPTIONS)
    output.mkdir(parents=True)
    _, (problem,) = check_rows(rows, tmp_path / "out", rows)
    assert problem.output == "a.ome.tiff"
    assert "its output a.ome.tiff exists and is not a file" in problem.message
    output.rmdir()
    output.symlink_to("nowhere")
    _, (problem,) = check_rows(rows, tmp_path / "out", rows)
    assert "exists and is not a file" in problem.message


def test_masks_and_regions_are_tried_before_anything_starts(tmp_path: Path) -> None:
    slides = write_slides(tmp_path, ["a", "b"])
    (slides / "mask.png").write_bytes(b"not an image")
    text = 'path,tissue,region\na.tif,mask.png,\nb.tif,,"9000,9000,10,10"\n'
    rows, _ = read_rows(manifest(slides, text), "identity", OPTIONS)
    tasks, problems = check_rows(rows, tmp_path / "out", rows)
    assert not tasks
    assert "mask.png" in problems[0].message
    assert "outside" in problems[1].message


def test_messages_name_no_folders(tmp_path: Path) -> None:
    folder = tmp_path / "Patient_Smith"
    folder.mkdir()
    text = "path,model,tissue\nx.tif,,\ny.tif,Patient_Smith/net.safetensors,\nz.tif,,Patient_Smith/mask.png\n"
    rows, problems = read_rows(manifest(tmp_path, text), "identity", OPTIONS)
    problems += check_rows(rows, tmp_path / "out", rows)[1]
    assert len(problems) == 3
    for problem in problems:
        assert "Patient_Smith" not in str(problem)
        assert str(tmp_path) not in str(problem)
    url = "https://host/a.svs?X-Signature=secret"
    rows, _ = read_rows(manifest(tmp_path, f"path\n{url}\n"), "identity", OPTIONS)
    assert (rows[0].slide, rows[0].name, rows[0].output) == (url, "a.svs", "a.ome.tiff")


def test_outputs_among_the_slides_are_no_slides(tmp_path: Path) -> None:
    slides = write_slides(tmp_path, ["a"])
    (task,) = tasks_of(slides, slides)
    (slides / "a.ome.tiff").touch()
    marker_path(task.output).parent.mkdir(parents=True)
    marker_path(task.output).touch()
    rows, problems = read_rows(str(slides), "identity", OPTIONS)
    assert [row.name for row in rows] == ["a.tif"]
    assert not problems


def test_shards_cover_the_manifest_once_whatever_its_order() -> None:
    rows = [Row(number, f"{number}.svs", f"{number}.ome.tiff", None, "identity", OPTIONS) for number in range(11)]
    shards = [shard_of(rows, ManifestShard(index, 3)) for index in range(3)]
    assert sorted(row.line for shard in shards for row in shard) == list(range(11))
    assert [shard_of(rows[::-1], ManifestShard(index, 3)) for index in range(3)] == shards
    for wrong in ("3/3", "1", "a/b", "-1/3", "1/0"):
        with pytest.raises(BatchError, match="--shard"):
            parse_shard(wrong)
    assert parse_shard("00/3") == ManifestShard(0, 3)


def test_tasks_and_options_survive_the_pipe_to_a_worker(tmp_path: Path) -> None:
    options = TranslateOptions(region=Region(1, 2, 3, 4), tissue=tmp_path / "m.png", pyramid=PyramidOptions(quality=9))
    task = SlideTask(3, "s.svs", tmp_path / "s.ome.tiff", "identity", 0.5, options, "source", "version")
    assert pickle.loads(pickle.dumps(task)) == task


def test_a_slide_that_was_copied_anew_is_another_slide(tmp_path: Path) -> None:
    """Readers' hashes do not cover all pixels, and a damaged file can be as long as the one that replaces it."""
    slides = write_slides(tmp_path / "slides", ["a"])
    (before,) = tasks_of(slides, tmp_path / "out")
    changed_at = (slides / "a.tif").stat().st_mtime
    os.utime(slides / "a.tif", (changed_at, changed_at))
    assert tasks_of(slides, tmp_path / "out")[0].fingerprint == before.fingerprint
    os.utime(slides / "a.tif", (changed_at, changed_at + 2))
    assert tasks_of(slides, tmp_path / "out")[0].fingerprint != before.fingerprint


def test_the_fingerprint_follows_pixels_and_nothing_else(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["a"])
    (task,) = tasks_of(slides, tmp_path / "out")
    changed = {
        "the same": (task, True),
        "device": (tasks_of(slides, tmp_path / "out", options=TranslateOptions(device="auto", workers=2))[0], True),
        "model": (tasks_of(slides, tmp_path / "out", model="counterstain")[0], False),
        "bands": (
            tasks_of(slides, tmp_path / "out", options=TranslateOptions(resume=True, band_px=1024))[0], True,
        ),
        "quality": (
            tasks_of(slides, tmp_path / "out", options=TranslateOptions(pyramid=PyramidOptions(quality=50)))[0], False,
        ),
    }  # fmt: skip
    for what, (other, is_same) in changed.items():
        assert (other.fingerprint == task.fingerprint) is is_same, what


def test_a_column_chooses_the_image_of_a_file(tmp_path: Path) -> None:
    planes = [synthetic_tissue(260, 260, seed=seed) for seed in range(2)]
    with tifffile.TiffWriter(tmp_path / "stack.tif") as tiff:
        for plane in planes:
            tiff.write(plane, photometric="rgb", tile=(128, 128), metadata=None, resolution=(20_000, 20_000),
                       resolutionunit="CENTIMETER")  # fmt: skip
    text = "path,output,page,series\nstack.tif,first,0,\nstack.tif,second,1,0\nstack.tif,third,,\nstack.tif,odd,x,\n"
    rows, problems = read_rows(manifest(tmp_path, text), "identity", OPTIONS)
    assert [(row.series, row.page) for row in rows] == [(None, 0), (0, 1), (None, None)]
    assert ["page is 'x', not a number from 0" in str(problem) for problem in problems] == [True]
    tasks, problems = check_rows(rows, tmp_path / "out", rows)
    assert [(task.series, task.page) for task in tasks] == [(None, 0), (0, 1)]
    assert tasks[0].fingerprint != tasks[1].fingerprint
    assert pickle.loads(pickle.dumps(tasks[1])) == tasks[1]
    assert "choose one with the column page N" in problems[0].message
    for task, plane in zip(tasks, planes, strict=True):
        with staged(task, lambda _: None) as slide:
            assert (slide.read_level(0, Region(0, 0, 260, 260)) == plane).all()


def test_processes_of_one_machine_share_the_bound_for_memory(tmp_path: Path) -> None:
    task = SlideTask(
        0, "a.svs", tmp_path / "a.ome.tiff", "identity", options=TranslateOptions(max_memory_bytes=4 << 30)
    )
    assert task.with_share(1) is task
    assert task.with_share(3).options.max_memory_bytes == (4 << 30) // 3
    assert task.with_share(16).options.max_memory_bytes == 1 << 30
    assert task.with_share(3).fingerprint == task.fingerprint, "pixels do not depend on it"


def test_a_stated_resolution_is_that_of_all_rows_that_state_none(tmp_path: Path) -> None:
    rows, _ = read_rows(manifest(tmp_path, "path,mpp\na.svs,\nb.svs,0.5\n"), "identity", OPTIONS, mpp=0.25)
    assert [row.mpp for row in rows] == [0.25, 0.5]
    slides = write_slides(tmp_path / "slides", ["a"], side=64)
    rows, _ = read_rows(str(slides), "identity", OPTIONS, mpp=0.25)
    assert [row.mpp for row in rows] == [0.25]


def test_folders_of_a_folder_are_searched_on_request(tmp_path: Path) -> None:
    for name in ("a.svs", "sub/b.svs", "sub/deep/c.tif", ".hidden/d.svs", "sub/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rows, problems = read_rows(str(tmp_path), "identity", OPTIONS, recursive=True)
    assert [row.name for row in rows] == ["a.svs", "b.svs", "c.tif"]
    assert not problems
    assert [row.name for row in read_rows(str(tmp_path), "identity", OPTIONS)[0]] == ["a.svs"]
    (tmp_path / "sub" / "a.svs").touch()
    _, problems = read_rows(str(tmp_path), "identity", OPTIONS, recursive=True)
    assert len(problems) == 2, "both would have one output"
    with pytest.raises(ManifestError, match=r"--recursive: .* is not a folder"):
        read_rows(str(tmp_path / "*.svs"), "identity", OPTIONS, recursive=True)


def test_another_image_of_a_file_is_another_slide(tmp_path: Path) -> None:
    first = SlideTask(0, "a.tif", tmp_path / "a.ome.tiff", "identity", source="one file", page=0)
    second = SlideTask(0, "a.tif", tmp_path / "a.ome.tiff", "identity", source="one file", page=1)
    assert len({first.fingerprint, second.fingerprint, SlideTask(0, "a", tmp_path / "a", "identity").fingerprint}) == 3
