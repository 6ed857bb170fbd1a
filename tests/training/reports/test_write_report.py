"""Report folders: complete or absent, and other files are never removed."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from wsi2ihc.errors import OutputError, OutputExistsError
from wsi2ihc.locks import exclusive_lock
from wsi2ihc.training.reports import write as write_module
from wsi2ihc.training.reports.document import Column, Estimate, Figure, Report, Section, Table
from wsi2ihc.training.reports.write import check_report_folder, write_report


def small_report(title: str = "A report", value: float = 0.1 + 0.2, slides: int = 1) -> Report:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    tables = tuple(
        Table(f"slide {number}", "", (Column("name"), Column("x", 1)), (("Müller \udcff", Estimate(value, 0.0, 1.0)),))
        for number in range(slides)
    )
    contents: tuple[Table | Figure, ...] = (
        *tables,
        Figure("plot", "", pixels),
        Figure("photo", "", pixels, kind="photograph"),
    )
    return Report(title, (), (Section("s", (), contents),), {"x": value, "name": "Müller \udcff"})


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in folder.rglob("*")
    }


def test_writes_all_files(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    files = write_report(folder, small_report())
    assert [path.relative_to(folder).as_posix() for path in files] == [
        "report.html", "report.md", "report.json", "tables/slide-0.csv", "figures/plot.png", "figures/photo.jpg"
    ]  # fmt: skip
    assert set(files) == {path for path in folder.rglob("*") if path.is_file()}
    assert list(folder.parent.iterdir()) == [folder]


def test_numbers_survive_in_json_and_csv(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    write_report(tmp_path / "report", small_report(value=value))
    data = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert data["format"] == "wsi2ihc report"
    assert data["version"] == 2
    assert data["x"] == value
    assert data["name"] == "Müller \udcff"
    with (tmp_path / "report" / "tables" / "slide-0.csv").open(encoding="utf-8", newline="") as file:
        head, row = csv.reader(file)
    assert head == ["name", "x", "x low", "x high"]
    assert row[0] == "Müller \\udcff"
    assert [float(one) for one in row[1:]] == [value, 0.0, 1.0]


@pytest.mark.parametrize("data", [{"x": float("nan")}, {"x": [float("inf")]}, {"x": object}, {"format": "mine"}])
def test_invalid_json_data_writes_nothing(tmp_path: Path, data: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_report(tmp_path / "report", Report("r", (), (), data))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OutputError("disk full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("earlier", [False, True])
def test_failed_write_keeps_the_folder(
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

    monkeypatch.setattr(write_module, "write_atomically", write)
    with pytest.raises(type(error)):
        write_report(tmp_path / "report", small_report("The second"), overwrite=True)
    assert len(written) == 4
    assert tree(tmp_path) == before


def test_failed_replacement_restores_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path / "report", small_report("The first"))
    before, rename = tree(tmp_path), Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == write_module.NEW:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="Permission denied"):
        write_report(tmp_path / "report", small_report("The second"), overwrite=True)
    assert tree(tmp_path) == before


def test_overwrite_replaces_an_earlier_report(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(folder, small_report("The first", slides=3))
    (folder / ".DS_Store").touch()
    before = tree(folder)
    for act in (lambda: check_report_folder(folder, False), lambda: write_report(folder, small_report("The second"))):
        with pytest.raises(OutputExistsError, match="already contains a report"):
            act()
    assert tree(folder) == before
    check_report_folder(folder, True)
    files = write_report(folder, small_report("The second"), overwrite=True)
    assert set(files) == {path for path in folder.rglob("*") if path.is_file()}
    assert "The second" in (folder / "report.md").read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [folder]


def test_empty_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    check_report_folder(tmp_path / "report", False)
    assert len(write_report(tmp_path / "report", small_report())) == 6


@pytest.mark.parametrize("name", ["notes.txt", "tables/my own.csv", "figures/mine/", "report.json"])
@pytest.mark.parametrize("has_report", [False, True])
def test_other_files_are_never_removed(tmp_path: Path, name: str, has_report: bool) -> None:
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
        with pytest.raises(OutputExistsError, match="contains other files"):
            act()
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "wsi2ihc report"}', '{"format": "wsi2ihc report", "report_files": 1}']
)
def test_invalid_report_json_is_not_a_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(text)
    with pytest.raises(OutputExistsError, match="contains other files"):
        check_report_folder(tmp_path / "report", True)


def test_unusable_folders_are_rejected_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name, line in (("file", "is not a folder"), ("broken", "is not a folder"), ("file/report", "is not a folder")):
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


def test_symlink_to_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files = write_report(tmp_path / "link", small_report())
    assert (tmp_path / "link").is_symlink()
    assert all(path.is_file() for path in files)
    assert files[0] == tmp_path / "link" / "report.html"


def test_recovers_from_interrupted_replacement(tmp_path: Path) -> None:
    folder, partial = tmp_path / "report", tmp_path / ".report.partial"
    write_report(folder, small_report("The first"))
    before = tree(folder)
    partial.mkdir()
    (partial / "new").mkdir()
    (partial / "new" / "report.html").touch()
    folder.rename(partial / "old")  # killed between the two renames
    with pytest.raises(OutputExistsError, match="already contains a report"):
        write_report(folder, small_report("The second"))
    assert tree(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.skipif(os.name == "nt", reason="no such locks on Windows")
def test_concurrent_run_is_not_disturbed(tmp_path: Path) -> None:
    partial = tmp_path / ".report.partial"
    with exclusive_lock(partial, "busy"):
        (partial / "new").mkdir()
        with pytest.raises(OutputError, match="another run is writing"):
            write_report(tmp_path / "report", small_report())
        assert (partial / "new").is_dir()
    assert not (tmp_path / "report").exists()


def test_output_is_deterministic(tmp_path: Path) -> None:
    write_report(tmp_path / "a", small_report())
    write_report(tmp_path / "b", small_report())
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
