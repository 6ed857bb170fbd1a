"""A file appears under its name complete or not at all, whatever happens on the way."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from wsi2ihc import atomic_files, locks
from wsi2ihc.atomic_files import check_output, published
from wsi2ihc.errors import OutputError, OutputExistsError

posix = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX locks and signals")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.ome.tiff"


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_name_appears_with_the_whole_content(target: Path) -> None:
    with published(target, overwrite=False) as partial:
        partial.write_text("content")
        assert left_in(target.parent) == [partial.name]
        assert partial.name.startswith(".out.ome.tiff.")
        assert partial.name.endswith(".partial")
    assert target.read_text() == "content"
    assert left_in(target.parent) == ["out.ome.tiff"]


@posix
def test_permissions_are_those_of_an_ordinary_file(target: Path) -> None:
    before = os.umask(0o027)
    try:
        with published(target, overwrite=False) as partial:
            partial.write_text("content")
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit, OutputError])
@pytest.mark.parametrize("existing", [False, True])
def test_after_a_failure_all_is_as_before(target: Path, failure: type[BaseException], existing: bool) -> None:
    if existing:
        target.write_text("old")
    before = left_in(target.parent)

    def fail_half_way() -> None:
        with published(target, overwrite=True) as partial:
            partial.write_text("new")
            raise failure

    with pytest.raises(failure):
        fail_half_way()
    assert left_in(target.parent) == before
    assert not existing or target.read_text() == "old"


def test_an_existing_file_is_replaced_only_with_overwrite(target: Path) -> None:
    target.write_text("old")
    with pytest.raises(OutputExistsError, match="--overwrite"), published(target, overwrite=False):
        pytest.fail("the body must not run")
    with published(target, overwrite=True) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("links", [True, False], ids=["with hard links", "without"])
def test_a_file_that_appears_meanwhile_is_kept(target: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        monkeypatch.setattr(atomic_files.os, "link", refuse_link)

    def be_late() -> None:
        with published(target, overwrite=False) as partial:
            partial.write_text("mine")
            target.write_text("theirs")

    with pytest.raises(OutputExistsError):
        be_late()
    assert target.read_text() == "theirs"
    assert left_in(target.parent) == ["out.ome.tiff"]


def refuse_link(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_file_systems_without_hard_links_work(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_files.os, "link", refuse_link)
    with published(target, overwrite=False) as partial:
        partial.write_text("content")
    assert target.read_text() == "content"
    assert left_in(target.parent) == ["out.ome.tiff"]


@posix
def test_a_second_writer_of_the_same_output_is_refused(target: Path) -> None:
    with published(target, overwrite=False) as partial:
        partial.write_text("first")
        with pytest.raises(OutputError, match="another run is writing"), published(target, overwrite=True):
            pytest.fail("the body must not run")
        with published(target.with_name("out.ome.tif"), overwrite=False) as other:
            other.write_text("a different output does not mind")
    assert target.read_text() == "first"


@posix
def test_a_killed_run_leaves_no_output_and_the_next_run_cleans_up(target: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom wsi2ihc.pyramid import published\n"
        f"with published(Path({str(target)!r}), False) as partial:\n"
        "    partial.write_bytes(bytes(1000))\n    print('writing', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "writing\n"
        with pytest.raises(OutputError, match="another run"), published(target, overwrite=False):
            pytest.fail("the body must not run")
        run.send_signal(signal.SIGKILL)
        run.wait(10)
    assert not target.exists()
    assert len(left_in(target.parent)) == 1
    with published(target, overwrite=False) as partial:
        assert left_in(target.parent) == [partial.name]
        partial.write_text("content")
    assert left_in(target.parent) == ["out.ome.tiff"]


def test_files_of_others_are_left_alone(target: Path) -> None:
    others = [
        ".out.ome.tiff.partial", ".out.ome.tiff.0123456.partial", ".other.ome.tiff.01234567.partial",
        ".out.ome.tiff.x.01234567.partial", "out.ome.tiff.01234567.partial",
    ]  # fmt: skip
    for name in others:
        (target.parent / name).write_text("")
    (target.parent / ".out.ome.tiff.01234567.partial").write_text("")
    with published(target, overwrite=False) as partial:
        partial.write_text("content")
    assert left_in(target.parent) == sorted([*others, "out.ome.tiff"])


@posix
def test_without_locks_leftovers_stay_and_work_goes_on(
    target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    leftover = target.parent / ".out.ome.tiff.01234567.partial"
    leftover.write_text("")
    with caplog.at_level(logging.WARNING), published(target, overwrite=False) as partial:
        partial.write_text("content")
    assert target.read_text() == "content"
    assert leftover.exists()
    assert "cannot remove" in caplog.text


def test_checks_before_any_work(tmp_path: Path) -> None:
    check_output(tmp_path / "a.ome.tiff", overwrite=False)
    check_output(tmp_path / "A.OME.TIF", overwrite=False)
    check_output(tmp_path / "a.png", overwrite=False, suffixes=(".png",))
    check_output(tmp_path / "a.anything", overwrite=False, suffixes=())
    for name in ("a.tiff", "a.svs", "a", "ome.tiff"):
        with pytest.raises(OutputError, match=r"\.ome\.tiff or \.ome\.tif"):
            check_output(tmp_path / name, overwrite=False)
    with pytest.raises(OutputError, match="does not exist"):
        check_output(tmp_path / "none" / "a.ome.tiff", overwrite=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        check_output(tmp_path / "file" / "a.ome.tiff", overwrite=False)
    (tmp_path / "dir.ome.tiff").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "dir.ome.tiff", overwrite=True)
    (tmp_path / "old.ome.tiff").write_text("")
    check_output(tmp_path / "old.ome.tiff", overwrite=True)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        check_output(tmp_path / "old.ome.tiff", overwrite=False)


@posix
def test_special_files_are_never_replaced() -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        check_output(Path("/dev/null"), overwrite=True, suffixes=())


def test_a_folder_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_files.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        check_output(tmp_path / "a.ome.tiff", overwrite=False)


def test_a_name_that_the_file_system_refuses_is_reported(tmp_path: Path) -> None:
    name = "a" * 250 + ".ome.tiff"
    with pytest.raises(OutputError, match="choose a shorter one"), published(tmp_path / name, overwrite=False):
        pytest.fail("the body must not run")
