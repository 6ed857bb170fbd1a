"""The folder of a report: what is in it, that it is there as a whole or not at all, and what is never touched."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from wsi2ihc.errors import OutputError, OutputExistsError
from wsi2ihc.locks import locked
from wsi2ihc.training.reporting import writing
from wsi2ihc.training.reporting.document import Column, Estimate, Picture, Report, Section, Table
from wsi2ihc.training.reporting.writing import check_report_folder, write_report


def small_report(title: str = "A report", value: float = 0.1 + 0.2, slides: int = 1) -> Report:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    tables = tuple(
        Table(f"slide {number}", "", (Column("name"), Column("x", 1)), (("Müller \udcff", Estimate(value, 0.0, 1.0)),))
        for number in range(slides)
    )
    contents: tuple[Table | Picture, ...] = (
        *tables,
        Picture("plot", "", pixels),
        Picture("photo", "", pixels, kind="photograph"),
    )
    return Report(title, (), (Section("s", (), contents),), {"x": value, "name": "Müller \udcff"})


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in folder.rglob("*")
    }


def test_all_files_are_written_and_told(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    files = write_report(folder, small_report())
    assert [path.relative_to(folder).as_posix() for path in files] == [
        "report.html", "report.md", "report.json", "tables/slide-0.csv", "pictures/plot.png", "pictures/photo.jpg"
    ]  # fmt: skip
    assert set(files) == {path for path in folder.rglob("*") if path.is_file()}
    assert list(folder.parent.iterdir()) == [folder]


def test_numbers_survive_in_json_and_csv(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    write_report(tmp_path / "report", small_report(value=value))
    data = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert data["format"] == "wsi2ihc report"
    assert data["version"] == 1
    assert data["x"] == value
    assert data["name"] == "Müller \udcff"
    with (tmp_path / "report" / "tables" / "slide-0.csv").open(encoding="utf-8", newline="") as file:
        head, row = csv.reader(file)
    assert head == ["name", "x", "x low", "x high"]
    assert row[0] == "Müller \\udcff"
    assert [float(one) for one in row[1:]] == [value, 0.0, 1.0]


@pytest.mark.parametrize("data", [{"x": float("nan")}, {"x": [float("inf")]}, {"x": object}, {"format": "mine"}])
def test_data_that_json_does_not_know_leave_nothing(tmp_path: Path, data: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_report(tmp_path / "report", Report("r", (), (), data))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OutputError("disk full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_in_the_middle_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, earlier: bool
) -> None:
    if earlier:
        write_report(tmp_path / "report", small_report("The first"))
    before = tree(tmp_path)
    written: list[Path] = []

    def write(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 4:
            raise error
        path.write_bytes(content)

    monkeypatch.setattr(writing, "write_whole", write)
    with pytest.raises(type(error)):
        write_report(tmp_path / "report", small_report("The second"), overwrite=True)
    assert len(written) == 4
    assert tree(tmp_path) == before


def test_a_failure_to_replace_puts_the_earlier_report_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path / "report", small_report("The first"))
    before, rename = tree(tmp_path), Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == writing.NEW:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="Permission denied"):
        write_report(tmp_path / "report", small_report("The second"), overwrite=True)
    assert tree(tmp_path) == before


def test_an_earlier_report_is_replaced_as_a_whole_if_that_is_allowed(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(folder, small_report("The first", slides=3))
    (folder / ".DS_Store").touch()
    before = tree(folder)
    for act in (lambda: check_report_folder(folder, False), lambda: write_report(folder, small_report("The second"))):
        with pytest.raises(OutputExistsError, match="already holds a report"):
            act()
    assert tree(folder) == before
    check_report_folder(folder, True)
    files = write_report(folder, small_report("The second"), overwrite=True)
    assert set(files) == {path for path in folder.rglob("*") if path.is_file()}
    assert "The second" in (folder / "report.md").read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [folder]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    check_report_folder(tmp_path / "report", False)
    assert len(write_report(tmp_path / "report", small_report())) == 6


@pytest.mark.parametrize("name", ["notes.txt", "tables/my own.csv", "pictures/mine/", "report.json"])
@pytest.mark.parametrize("has_report", [False, True])
def test_what_is_no_report_is_never_touched(tmp_path: Path, name: str, has_report: bool) -> None:
    folder = tmp_path / "report"
    if has_report:
        write_report(folder, small_report())
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("/"):
        place.mkdir(parents=True)
    else:
        place.write_text('{"format": "something else"}')
    before = tree(tmp_path)
    for act in (
        lambda: check_report_folder(folder, True),
        lambda: write_report(folder, small_report(), overwrite=True),
    ):
        with pytest.raises(OutputExistsError, match="holds other files"):
            act()
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "wsi2ihc report"}', '{"format": "wsi2ihc report", "report_files": 1}']
)
def test_a_report_file_that_cannot_be_understood_is_no_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(text)
    with pytest.raises(OutputExistsError, match="holds other files"):
        check_report_folder(tmp_path / "report", True)


def test_places_that_cannot_be_used_are_told_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name, line in (("file", "is not a folder"), ("broken", "is not a folder"), ("file/report", "is no folder")):
        with pytest.raises(OutputError, match=line):
            check_report_folder(tmp_path / name, True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="cannot be replaced"):
        check_report_folder(Path(), False)
    with pytest.raises(OutputError, match="cannot be replaced"):
        check_report_folder(Path("/"), False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        check_report_folder(tmp_path / "report", False)


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files = write_report(tmp_path / "link", small_report())
    assert (tmp_path / "link").is_symlink()
    assert all(path.is_file() for path in files)
    assert files[0] == tmp_path / "link" / "report.html"


def test_what_a_killed_run_left_is_removed_and_an_old_report_put_back(tmp_path: Path) -> None:
    folder, partial = tmp_path / "report", tmp_path / ".report.partial"
    write_report(folder, small_report("The first"))
    before = tree(folder)
    partial.mkdir()
    (partial / "new").mkdir()
    (partial / "new" / "report.html").touch()
    folder.rename(partial / "old")  # killed between the two renames
    with pytest.raises(OutputExistsError, match="already holds a report"):
        write_report(folder, small_report("The second"))
    assert tree(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(os.name == "nt", reason="no such locks on Windows")
def test_another_run_that_writes_the_same_is_left_alone(tmp_path: Path) -> None:
    partial = tmp_path / ".report.partial"
    with locked(partial, "busy"):
        (partial / "new").mkdir()
        with pytest.raises(OutputError, match="another run is writing"):
            write_report(tmp_path / "report", small_report())
        assert (partial / "new").is_dir()
    assert not (tmp_path / "report").exists()


def test_the_same_report_gives_the_same_files(tmp_path: Path) -> None:
    write_report(tmp_path / "a", small_report())
    write_report(tmp_path / "b", small_report())
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
