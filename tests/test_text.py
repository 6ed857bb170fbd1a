"""Errors in one line; cells of tables: no formulas, numbers that stay numbers, names that come back as they were."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsi2ihc
from wsi2ihc.errors import OptionError
from wsi2ihc.text import csv_table, describe_error, original

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1", "-", "--1", "+49 30 1"]


def written(value: object) -> str:
    ((cell,),) = csv.reader(io.StringIO(csv_table([[value]]), newline=""))
    return cell


@pytest.mark.parametrize("text", FORMULAS)
def test_untrusted_text_is_not_a_formula(text: str) -> None:
    assert written(text) == f"'{text}"
    assert original(written(text)) == text


@pytest.mark.parametrize("value", [-1.5, "-1.5", "+2", "-1e-05", "-inf", "nan", 0, "", "a=b", "'quoted'", None])
def test_numbers_and_common_text_stay_as_they_are(value: object) -> None:
    assert written(value) == ("" if value is None else str(value))


@given(st.lists(st.text(alphabet="'=+-@\t\r\n,\"1.e a＝"), min_size=1, max_size=4))
def test_names_come_back_as_they_were(names: list[str]) -> None:
    (cells,) = csv.reader(io.StringIO(csv_table([names]), newline=""))
    assert [original(cell) for cell in cells] == names


def test_all_tables_are_written_by_one_function() -> None:
    folder = Path(wsi2ihc.__file__).parent
    own = {path.name for path in folder.rglob("*.py") if re.search(r"csv\.(Dict)?[wW]riter|to_csv", path.read_text())}
    own |= {
        path.name
        for part in ("cli", "training")
        for path in (folder.parent / part).rglob("*.py")
        if re.search(r"csv\.(Dict)?[wW]riter|to_csv", path.read_text())
    }
    assert own == {"text.py"}


@pytest.mark.parametrize(
    ("error", "line", "redacted"),
    [
        (OptionError("--mpp 0\nis \x1b[1m too /p/small"), r"--mpp 0 is \x1b[1m too /p/small",
         r"--mpp 0 is \x1b[1m too small"),
        (PermissionError(13, "Not allowed", "/p/a.tif"), "/p/a.tif: Not allowed", "Not allowed"),
        (OSError(28, "No space", "/p/a.tif"), "the disk is full (/p/a.tif); free", "the disk is full (while writing)"),
        (RuntimeError("can't start new thread"), "the system allows no further", "the system allows no further"),
        (BlockingIOError(11, "Try again"), "the system allows no further", "the system allows no further"),
        (MemoryError(), "out of memory; lower --workers", "out of memory; lower --workers"),
        (BrokenPipeError(32, "Broken pipe"), "the program that read", "the program that read"),
        (ValueError("embedded null byte"), "a name holds the character NUL", "a name holds the character NUL"),
        (KeyError("/p/a"), "unexpected KeyError: '/p/a' (run again", "unexpected KeyError: 'a' (run again"),
    ],
)  # fmt: skip
def test_an_error_is_one_line(error: Exception, line: str, redacted: str) -> None:
    assert describe_error(error).startswith(line)
    assert describe_error(error, lambda text: text.replace("/p/", "")).startswith(redacted)
