"""What counts as done is what was written: at the cost of a look where nothing has touched it, else by its SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wsi2ihc.batch import task as task_module
from wsi2ihc.batch.results_table import Result, write_table
from wsi2ihc.batch.scheduler import initial_states
from wsi2ihc.batch.task import SlideTask, is_intact, marker_path, read_done, write_marker
from wsi2ihc.cli.main import EXIT_SOME_FAILED, main
from wsi2ihc.errors import OutputError
from wsi2ihc.files import sha256_of_file
from wsi2ihc.translation.output_files import report_path

FACTS = {"seconds": 1.0}
SIZE = 3 << 20


@pytest.fixture
def task(tmp_path: Path) -> SlideTask:
    """A task that is done; its output is 3 MB."""
    task = SlideTask(0, "a.svs", tmp_path / "a.ome.tiff", "identity", version="identity 1")
    task.output.write_bytes(os.urandom(SIZE))
    report_path(task.output).write_text("{}")
    write_marker(task, FACTS, hashlib.sha256(task.output.read_bytes()).hexdigest())
    return task


def overwrite_middle(output: Path) -> None:
    with output.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(bytes(4096))


def keep_times(output: Path, change: Callable[[Path], None]) -> None:
    status = output.stat()
    change(output)
    os.utime(output, ns=(status.st_atime_ns, status.st_mtime_ns))


def damage_the_disk(task: SlideTask) -> None:
    """Other content under the same size and times, as damage below the file system has it."""
    overwrite_middle(task.output)
    content = json.loads(marker_path(task.output).read_text())
    status = task.output.stat()
    content["output"] |= {"modified_ns": status.st_mtime_ns, "changed_ns": status.st_ctime_ns}
    marker_path(task.output).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        overwrite_middle,
        lambda output: keep_times(output, overwrite_middle),
        lambda output: output.write_bytes(output.read_bytes()[:-1]),
        lambda output: output.write_bytes(bytes(SIZE)),
        lambda output: output.unlink(),
        lambda output: report_path(output).unlink(),
        lambda output: report_path(output).write_text("[]"),
    ],
    ids=["middle", "middle with old times", "cut short", "another file", "gone", "no report", "another report"],
)
def test_an_output_that_is_not_what_was_written_is_not_done(task: SlideTask, change: Callable[[Path], None]) -> None:
    assert read_done(task) == FACTS
    assert is_intact(task.output)
    change(task.output)
    assert not is_intact(task.output)
    assert read_done(task) is None


def test_what_nothing_has_touched_is_not_read(task: SlideTask, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(task_module, "sha256_of_file", lambda file: (read.append(file), sha256_of_file(file))[1])
    assert read_done(task) == FACTS
    assert read == [report_path(task.output)]
    assert read_done(task, verify=True) == FACTS
    assert read[1:] == [report_path(task.output), task.output]


def test_an_output_that_was_moved_is_read_once_and_stays_done(task: SlideTask, tmp_path: Path) -> None:
    moved = replace(task, output=tmp_path / "moved" / task.name)
    marker_path(moved.output).parent.mkdir(parents=True)
    for path in (Path, report_path, marker_path):
        path(moved.output).write_bytes(path(task.output).read_bytes())
    before = marker_path(moved.output).read_text()
    assert read_done(moved, renew=False) == FACTS
    assert is_intact(moved.output)
    assert marker_path(moved.output).read_text() == before, "a dry run and --status write nothing"
    assert read_done(moved) == FACTS
    noted = json.loads(marker_path(moved.output).read_text())["output"]
    assert noted["modified_ns"] == moved.output.stat().st_mtime_ns
    assert noted["sha256"] == hashlib.sha256(moved.output.read_bytes()).hexdigest()


def test_damage_below_the_file_system_is_found_on_request_and_not_believed_again(task: SlideTask) -> None:
    damage_the_disk(task)
    assert read_done(task) == FACTS, "as documented: nothing was written to the file"
    assert not is_intact(task.output, verify=True)
    assert read_done(task) == FACTS, "--status changes nothing"
    (state,) = initial_states([task], verify=True)
    assert state.status == "waiting"
    assert read_done(task) is None, "so that no process takes it for done by its times"


def test_status_names_damaged_outputs(task: SlideTask, capsys: pytest.CaptureFixture[str]) -> None:
    folder = task.output.parent
    write_table(folder / "results.csv", [Result("a.svs", task.name, status="done")])

    def status(*more: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(["batch", "--status", str(folder), *more])
        assert isinstance(end.value.code, int)
        return end.value.code

    assert status() == status("--verify") == 0
    damage_the_disk(task)
    assert (status(), status("--verify")) == (0, EXIT_SOME_FAILED)
    overwrite_middle(task.output)
    assert status() == EXIT_SOME_FAILED
    assert "a.svs: its output is missing or has changed" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["before", "while it is read"])
def test_an_output_that_changes_before_it_is_marked_gets_no_marker(
    task: SlideTask, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the times of the changed bytes would stand beside the SHA-256 of the others, and the change be accepted."""
    digest = sha256_of_file(task.output)
    marker_path(task.output).unlink()

    def read(path: Path) -> str:
        found = sha256_of_file(path)
        if path == task.output:
            overwrite_middle(path)
        return found

    if moment == "before":
        overwrite_middle(task.output)
    else:
        monkeypatch.setattr(task_module, "sha256_of_file", read)
    with pytest.raises(OutputError, match="another program changed the output"):
        write_marker(task, FACTS, digest)
    assert not marker_path(task.output).exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"output": "5 hash"}', "[" * 100_000, "null"])
def test_a_marker_that_cannot_be_read_is_no_marker(task: SlideTask, content: str) -> None:
    marker_path(task.output).write_text(content)
    assert read_done(task) is None
    assert not is_intact(task.output)
