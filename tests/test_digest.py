"""SHA-256 of outputs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from wsi2ihc.digest import sha256_of


def test_a_file_has_the_sum_that_other_programs_give(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_sum_of_a_folder_follows_from_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "c").mkdir(parents=True)
        (tmp_path / name / "zarr.json").write_text("{}")
        (tmp_path / name / "c" / "0").write_text("pixels")
    one, two = tmp_path / "one", tmp_path / "two"
    os.utime(two / "zarr.json", (1, 1))
    listed = "".join(
        f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in (("c/0", b"pixels"), ("zarr.json", b"{}"))
    )
    assert sha256_of(one) == sha256_of(two) == hashlib.sha256(listed.encode()).hexdigest()
    (two / "c" / "0").rename(two / "c" / "1")
    assert sha256_of(one) != sha256_of(two)
    (two / "c" / "1").rename(two / "c" / "0")
    (two / "c" / "0").write_text("Pixels")
    assert sha256_of(one) != sha256_of(two)


def test_a_pipe_in_a_folder_is_refused(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no such files here")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        sha256_of(tmp_path)
