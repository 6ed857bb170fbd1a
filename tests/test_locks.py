"""One process at a time in a folder, also when one leaves just as another comes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

import pytest

from wsi2ihc import locks
from wsi2ihc.errors import OutputBusyError, OutputError
from wsi2ihc.locks import LOCK, exclusive_lock, in_use, is_there, try_lock, unused

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")


def test_a_second_one_is_kept_out(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with exclusive_lock(folder, "busy"), pytest.raises(OutputError, match=r"^busy$"), exclusive_lock(folder, "busy"):
        pass
    assert not (folder / LOCK).exists()
    with exclusive_lock(folder, "busy"):
        assert (folder / LOCK).exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"), exclusive_lock(tmp_path / "file", "busy"):
        pass


@pytest.mark.parametrize("comes_another", [False, True])
def test_a_lock_file_left_by_an_ended_process_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_another: bool
) -> None:
    lock, others = locks.try_lock, contextlib.ExitStack()
    calls: list[TextIO] = []

    def late(file: TextIO) -> bool | None:
        """Another process releases the lock between opening and locking, and a third may take it."""
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
            if comes_another:
                others.enter_context(exclusive_lock(tmp_path, "busy"))
        return lock(file)

    monkeypatch.setattr(locks, "try_lock", late)
    with others:
        if comes_another:
            with pytest.raises(OutputError, match=r"^busy$"), exclusive_lock(tmp_path, "busy"):
                pass
        else:
            with (
                exclusive_lock(tmp_path, "busy"),
                pytest.raises(OutputError, match=r"^busy$"),
                exclusive_lock(tmp_path, "busy"),
            ):
                pass
    assert all(file.closed for file in calls)


def test_never_two_at_once(tmp_path: Path) -> None:
    inside, most, entered = 0, 0, 0
    until = time.monotonic() + 1.0

    def come_and_go() -> None:
        nonlocal inside, most, entered
        while time.monotonic() < until:
            with contextlib.suppress(OutputError), exclusive_lock(tmp_path, "busy"):
                inside += 1
                most, entered = max(most, inside), entered + 1
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entered > 10) == (1, True)


def test_a_lock_is_waited_for_until_the_timeout(tmp_path: Path) -> None:
    first, waits = contextlib.ExitStack(), []
    first.enter_context(exclusive_lock(tmp_path, "busy"))

    def on_wait() -> None:
        waits.append(time.monotonic())
        if len(waits) == 3:
            first.close()

    with exclusive_lock(tmp_path, "busy", timeout_s=60, poll_s=0.01, on_wait=on_wait):
        assert len(waits) == 3
        with pytest.raises(OutputBusyError), exclusive_lock(tmp_path, "busy", timeout_s=0.05, poll_s=0.01):
            pass


def test_pieces_of_work_in_one_folder_are_apart(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path, "busy", "1"), exclusive_lock(tmp_path, "busy", "2"):
        with pytest.raises(OutputBusyError, match=r"^busy$"), exclusive_lock(tmp_path, "busy", "1"):
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    with pytest.raises(OutputError, match="cannot be written"), exclusive_lock(tmp_path / "gone", "busy", make=False):
        pass
    assert not list(tmp_path.iterdir())


def test_what_is_in_use_is_not_unused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with pytest.raises(FileNotFoundError), in_use(file):
        pass
    file.write_text("content")
    with in_use(file) as opened, in_use(file):
        with pytest.raises(OutputBusyError, match=r"^busy$"), unused(file, "busy"):
            pass
        assert is_there(opened, file)
        file.rename(tmp_path / "other")
        file.write_text("another")
        assert not is_there(opened, file)
    with unused(file, "busy"), pytest.raises(OutputBusyError, match="being removed"), in_use(file):
        pass
    assert file.read_text() == "another"


def test_without_locks_work_continues_and_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    file = tmp_path / "file"
    file.touch()
    with exclusive_lock(tmp_path, "busy"), exclusive_lock(tmp_path, "busy"), in_use(file) as opened:
        assert try_lock(opened) is None
    with pytest.raises(OutputError, match="has no locks") as caught, unused(file, "busy"):
        pytest.fail("the body must not run")
    assert not isinstance(caught.value, OutputBusyError)


def test_a_lock_is_had_or_another_has_it(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as one, (tmp_path / "file").open("w") as other:
        assert try_lock(one, shared=True)
        assert try_lock(other, shared=True)
        assert try_lock(other) is False
    with (tmp_path / "file").open("w") as one:
        assert try_lock(one)


def test_a_symbolic_link_in_the_place_of_a_lock_file_is_refused_and_its_target_kept(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "shared"
    victim.write_text("content")
    folder.mkdir()
    for target in (victim, tmp_path / "to be made"):
        (folder / LOCK).symlink_to(target)
        with pytest.raises(OutputError, match=r"symbolic link.*remove it"), exclusive_lock(folder, "busy"):
            pytest.fail("the body must not run")
        with pytest.raises(OSError, match="symbolic link"), in_use(folder / LOCK):
            pytest.fail("the body must not run")
        assert (folder / LOCK).is_symlink()
        (folder / LOCK).unlink()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["victim"]
    assert victim.read_text() == "content"


def test_a_lock_file_that_is_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("content")
    with pytest.raises(OutputError, match="is another file"), exclusive_lock(tmp_path, "busy"):
        pytest.fail("the body must not run")
    assert (tmp_path / LOCK).read_text() == "content"
    (tmp_path / LOCK).unlink()
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(OutputError, match="not a regular file"), exclusive_lock(tmp_path, "busy"):
        pytest.fail("the body must not run")
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).mkdir()
    with pytest.raises(OutputError, match="cannot be locked"), exclusive_lock(tmp_path, "busy"):
        pytest.fail("the body must not run")


def test_a_lock_reports_whether_it_excludes_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with exclusive_lock(tmp_path, "busy") as is_kept:
        assert is_kept
    monkeypatch.setattr(locks, "try_lock", lambda _: None)
    monkeypatch.setattr(locks, "_without_locks", set())
    with caplog.at_level(logging.WARNING):
        for name in ("1", "2"):
            with exclusive_lock(tmp_path, "busy", name) as is_kept:
                assert not is_kept
    assert [record.getMessage().count("has no locks") for record in caplog.records] == [1]
