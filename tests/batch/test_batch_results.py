"""Tables, what they say together, and the page."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import pytest
from make_batch import PretendEngine, tasks_of, write_slides

from wsi2ihc.batch import results_table
from wsi2ihc.batch.results_table import (
    COLUMNS,
    Result,
    ResultsWriter,
    read_results,
    results_of,
    write_page,
    write_table,
)
from wsi2ihc.batch.scheduler import SlideState, run_batch
from wsi2ihc.batch.slide_manifest import ManifestShard, Problem, Row, record_shard
from wsi2ihc.batch.task import BatchOptions, Done, Failed, SlideTask, marker_path, thumbnail_path
from wsi2ihc.batch.worker import CACHE_VARIABLE, remove_old_copies, staged
from wsi2ihc.errors import ManifestError
from wsi2ihc.locks import in_use
from wsi2ihc.models.registry import DEFAULT_MODEL
from wsi2ihc.translation.options import TranslateOptions


def row(slide: str, status: str = "done") -> Result:
    return Result(f"{slide}.svs", f"{slide}.ome.tiff", status=status)


def write(folder: Path, name: str, rows: list[Result], age: int) -> None:
    """A table that is older than others by so many seconds, and the outputs and markers of what it calls done."""
    write_table(folder / name, rows)
    os.utime(folder / name, (10**9, 10**9 - age))
    for one in rows:
        if one.status.startswith("done"):
            make_output(folder, one.output)


def make_output(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"pixels")
    marker_path(folder / name).parent.mkdir(parents=True, exist_ok=True)
    marker_path(folder / name).write_text('{"output": {"bytes": 6}}')


def test_of_every_output_the_newest_row_counts(tmp_path: Path) -> None:
    (tmp_path / "results_old.csv").write_text("mine")
    write(tmp_path, "results.csv", [row("a", "failed"), row("z")], age=9)
    write(tmp_path, "results-0-of-2.csv", [row("a"), row("c")], age=2)
    write(tmp_path, "results-1-of-2.csv", [row("b", "failed"), row("c", "done before")], age=1)
    results, notes = read_results(tmp_path)
    assert {one.slide: one.status for one in results} == {
        "a.svs": "done", "z.svs": "done", "b.svs": "failed", "c.svs": "done before",
    }  # fmt: skip
    assert not notes


def test_shards_that_never_began_are_named(tmp_path: Path) -> None:
    write(tmp_path, "results-7-of-8.csv", [], age=1)
    write(tmp_path, "results-0-of-2.csv", [row("a")], age=2)
    results, notes = read_results(tmp_path)
    assert [one.slide for one in results] == ["a.svs"]
    assert notes == ["shard 1 of 2 never started", "shards 0, 1, 2, 3, 4, 5, 6 of 8 never started"]


def test_a_batch_of_all_slides_has_done_what_shards_did_not(tmp_path: Path) -> None:
    never = Result("x.svs", "", status="failed")
    write(tmp_path, "results-0-of-2.csv", [row("a"), never], age=2)
    write(tmp_path, "results.csv", [row("a", "done before"), row("b"), row("x")], age=1)
    results, notes = read_results(tmp_path)
    assert {one.slide: one.status for one in results} == {"a.svs": "done before", "b.svs": "done", "x.svs": "done"}
    assert not notes


def test_a_killed_batch_is_not_said_to_run(tmp_path: Path) -> None:
    for name in ("done", "before"):
        make_output(tmp_path, f"{name}.ome.tiff")
    os.utime(marker_path(tmp_path / "before.ome.tiff"), (10**8, 10**8))  # of another batch: other options, perhaps
    write(tmp_path, "results.csv", [row(name, "running") for name in ("gone", "done", "before")], age=0)
    assert {one.slide: one.status for one in read_results(tmp_path)[0]} == {
        "gone.svs": "interrupted", "done.svs": "done", "before.svs": "interrupted",
    }  # fmt: skip
    write_table(tmp_path / "results.csv", [row("live", "running")])
    assert [one.status for one in read_results(tmp_path)[0]] == ["running"]


def test_outputs_that_are_gone_or_cut_short_are_not_done(tmp_path: Path) -> None:
    write(tmp_path, "results.csv", [row("gone"), row("short", "done before"), row("there")], age=0)
    (tmp_path / "gone.ome.tiff").unlink()
    (tmp_path / "short.ome.tiff").write_bytes(b"pix")
    results, _ = read_results(tmp_path)
    assert [one.status for one in results] == ["failed", "failed", "done"]
    assert results[0].error == "its output is missing or has changed; run the batch again"


def test_slides_of_one_output_are_all_told(tmp_path: Path) -> None:
    clash = Result("a.svs", "a.ome.tiff", status="failed", error="a.svs, a.svs have the output a.ome.tiff")
    write(tmp_path, "results.csv", [clash, clash, row("b")], age=0)
    assert [one.slide for one in read_results(tmp_path)[0]] == ["a.svs", "a.svs", "b.svs"]


@pytest.mark.parametrize(
    "odd",
    [
        "a.svs,a.ome.tiff,,\n",
        "a.svs,a.ome.tiff,done,1 s\n",
        "a.svs,a.ome.tiff,done,nan\n",
        f"a.svs,a.ome.tiff,done,1{'9' * 400}\n",
    ],
)
def test_odd_cells_are_one_line(tmp_path: Path, odd: str) -> None:
    (tmp_path / "results.csv").write_text(f"slide,output,status,seconds\n{odd}")
    with pytest.raises(ManifestError, match=r"cannot be read as a table of results"):
        read_results(tmp_path)


def test_tables_of_earlier_versions_can_be_read_and_others_not(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("slide,output,status\na.svs,a.ome.tiff,done\n")
    make_output(tmp_path, "a.ome.tiff")
    assert read_results(tmp_path)[0] == [row("a")]
    (tmp_path / "results.csv").write_text("color\nred\n")
    with pytest.raises(ManifestError, match="cannot be read as a table of results"):
        read_results(tmp_path)
    (tmp_path / "results.csv").unlink()
    with pytest.raises(ManifestError, match="not the output folder of a batch"):
        read_results(tmp_path)


def test_rows_contain_provenance_and_warnings(tmp_path: Path) -> None:
    task = SlideTask(0, "/data/a.svs", tmp_path / "a.ome.tiff", "/models/her2.safetensors")
    facts = {"seconds": 1.5, "mpx": 20.0, "seam_z": None, "warnings": ["1 place was unreadable", "it was faint"]}
    (tmp_path / "a.ome.tiff").touch()
    states = [SlideState(task, "done", 1, facts=facts), SlideState(task, "failed", 3, error="a.svs: damaged")]
    done, failed, never = results_of(states, [Problem(3, "b.svs", "b.svs: no resolution", "b.ome.tiff")])
    assert done.warnings == "1 place was unreadable; it was faint"
    assert (done.slide, done.model) == ("a.svs", "her2.safetensors")
    assert failed.error == "damaged (a.ome.tiff exists, possibly from an earlier run)"
    assert (never.output, never.status, never.error) == ("b.ome.tiff", "failed", "no resolution")
    plain = done.to_json()
    assert list(plain) == list(COLUMNS)
    assert (plain["seconds"], plain["attempts"], plain["seam_z"]) == (1.5, 1, None)


def test_the_page_shows_outputs_failed_ones_first(tmp_path: Path) -> None:
    thumbnail_path(tmp_path / "b.ome.tiff").parent.mkdir(parents=True)
    thumbnail_path(tmp_path / "b.ome.tiff").touch()
    failed = Result("<i>.svs", "i.ome.tiff", "m", "failed", error="<b>damaged</b>")
    done = Result("b.svs", "b.ome.tiff", "her2.safetensors", "done", warnings="it was faint")
    write_page(tmp_path, [done, failed], ["shard 1 of 2 never started"])
    page = (tmp_path / "summary.html").read_text()
    assert page.index("i.ome.tiff") < page.index("b.ome.tiff")
    assert "&lt;b&gt;damaged" in page
    assert "<b>damaged" not in page
    for text in (
        '<a href="b.ome.tiff">', "b.svs by her2.safetensors", "it was faint", "no seams to measure", "1 done, 1 failed",
        "<p>shard 1 of 2 never started</p>", ".wsi2ihc-batch/thumbnails/b.ome.tiff.jpg",
    ):  # fmt: skip
        assert text in page
    assert "Demonstration" not in page
    write_page(tmp_path, [Result("a.svs", "a.ome.tiff", DEFAULT_MODEL, "done")])
    assert f"<p>{DEFAULT_MODEL}: Demonstration, not HER2" in (tmp_path / "summary.html").read_text()
    write_page(tmp_path, [])
    assert "no slides" in (tmp_path / "summary.html").read_text()


def test_shards_of_another_list_are_reported(tmp_path: Path) -> None:
    def listed(*names: str) -> list[Row]:
        return [Row(1, name, f"{name}.ome.tiff", None, "identity", TranslateOptions()) for name in names]

    assert record_shard(tmp_path, ManifestShard(0, 3), listed("b", "c")) == []
    assert record_shard(tmp_path, ManifestShard(1, 3), listed("c", "b")) == []
    assert record_shard(tmp_path, ManifestShard(0, 2), listed("a")) == []  # dealt another way
    assert record_shard(tmp_path, ManifestShard(2, 3), listed("a", "b", "c")) == ["0", "1"]
    assert record_shard(tmp_path, ManifestShard(0, 3), listed("a", "b", "c")) == ["1"]
    write(tmp_path, "results-0-of-3.csv", [row("a")], age=0)
    (note,) = (one for one in read_results(tmp_path)[1] if "another manifest" in one)
    assert note.startswith("of 3 shards, 1 was made from another manifest")
    assert record_shard(tmp_path, ManifestShard(1, 3), listed("a", "b", "c")) == []


def test_only_written_files_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ResultsWriter(tmp_path).finish([row("a", "failed")]) == ["results.csv", "summary.html"]
    (tmp_path / "summary.html").unlink()
    (tmp_path / "summary.html").mkdir()
    assert ResultsWriter(tmp_path).finish([row("a", "failed")]) == ["results.csv"]
    assert "summary.html was not written" in caplog.text


def test_copies_of_killed_runs_are_removed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    for name in ("wsi2ihc-1-dead", "wsi2ihc-2-live", "of-somebody-else"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in-use").touch()
        (tmp_path / name / "slide.tif").touch()
    with in_use(tmp_path / "wsi2ihc-2-live" / "in-use"):
        remove_old_copies(tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {"wsi2ihc-2-live", "of-somebody-else"}
    remove_old_copies(None)


def test_a_slide_is_read_from_its_copy_or_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = tasks_of(write_slides(tmp_path / "slides", ["a"]), tmp_path / "out")
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with staged(task, pytest.fail) as slide:
        assert slide.info.name == "a.tif"
        (copy,) = (tmp_path / "cache").glob("*/a.tif")
        remove_old_copies(None)
        assert copy.is_file()
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "absent"))
    told: list[str] = []
    with staged(task, told.append) as slide:
        assert slide.info.name == "a.tif"
    assert told == ["the slide was not cached (No such file or directory)"]


def test_duplicate_rows_are_reported(tmp_path: Path) -> None:
    told: list[str] = []
    task = SlideTask(0, "a.svs", tmp_path / "a.ome.tiff", "identity")
    engine = PretendEngine(lambda task, _, before: [
        Failed(task.number, "transient", "the disk was away") if not before else Done(task.number, {})
    ])  # fmt: skip
    run_batch(
        [task],
        lambda: engine,
        BatchOptions(),
        lambda _, news: told.append(f"{news.status} {news.error}") if news else None,
    )
    assert told == ["waiting the disk was away", "done "]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
def test_a_table_that_is_not_a_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.csv")
    with pytest.raises(ManifestError, match="not a regular file"):
        read_results(tmp_path)


def test_a_table_that_cannot_be_written_does_not_end_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "results.csv"))

    monkeypatch.setattr(results_table, "write_table", refuse)
    monkeypatch.setattr(results_table, "write_page", refuse)
    writer = results_table.ResultsWriter(tmp_path)
    writer.update(lambda: [row("a")])
    assert writer.finish([row("a")]) == []
    assert "results.csv was not written: the disk is full" in caplog.text


def test_names_that_look_like_formulas_come_back_as_they_were(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1).svs", "+a.svs", "-b.svs", "@c.svs", "'=d.svs", "'e.svs", "-5.svs", "f\r\ng.svs"]
    write_table(tmp_path / "results.csv", [Result(name, "", status="failed", seam_z="-1.45") for name in names])
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert not [one["slide"] for one in rows if one["slide"][:1] in ("=", "+", "@") or one["slide"][:2] == "-b"]
    assert {one["seam_z"] for one in rows} == {"-1.45"}
    assert [one.slide for one in read_results(tmp_path)[0]] == names


def test_a_name_turns_nothing_around_on_the_page(tmp_path: Path) -> None:
    write_page(tmp_path, [Result("a\u202egnp.svs", "", status="failed", error="\x1b[2J<b>")], [])
    text = (tmp_path / "summary.html").read_text(encoding="utf-8")
    assert not set("\u202e\x1b") & set(text)
    assert r"a\u202egnp.svs" in text
    assert "&lt;b&gt;" in text
