"""Reading of tables from different programs, and errors for invalid ones."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from make_pairs import kinds_first

from wsi2ihc import tables
from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.tables import read_csv
from wsi2ihc.training.data import assign_groups, find_pairs

PLAIN = b"name,group\na,1\nb,2\n"
ROWS = [{"name": "a", "group": "1"}, {"name": "b", "group": "2"}]


def written(folder: Path, content: bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        b"\xef\xbb\xbf" + PLAIN,
        PLAIN.replace(b"\n", b"\r\n"),
        PLAIN.replace(b"\n", b"\r"),
        b"\n,,\n" + PLAIN + b",\n",
        PLAIN.replace(b"a,1", b'"a", 1 '),
    ],
)
def test_line_ends_and_byte_order_marks(tmp_path: Path, content: bytes) -> None:
    assert list(read_csv(written(tmp_path, content)).rows) == ROWS


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (PLAIN.decode().encode("utf-16"), "is not text in UTF-8 (it has NUL bytes)"),
        (PLAIN.decode().encode("utf-16-le"), "is not text in UTF-8 (it has NUL bytes)"),
        (PLAIN.replace(b"a", b"a\0"), "is not text in UTF-8 (it has NUL bytes)"),
        (b"\xff" + PLAIN, "is not text in UTF-8"),
        (
            b",".join(b"c%d" % number for number in range(1_000_000)) + b"\n1\n",
            "1,000,000 fields, more than 1,000",
        ),
        (PLAIN + b"x" * 5000 + b",1\n", "row 4: a field of 5,000 characters, more than 4,096"),
        (PLAIN + b"x" * 1_000_000 + b",1\n", "field larger than field limit"),
        (PLAIN + b'"x', None),
        (b"name,NAME\na,1\n", "has the column 'name' twice"),
        (b"x" * 4000 + b"," + b"x" * 4000 + b"\n1,2\n", "twice"),
        (b"", "has no rows"),
        (b"\n" * 1_000_000, "has no rows"),
        (b"," * 500, "has no rows"),
    ],
)
def test_invalid_table_is_a_one_line_error(tmp_path: Path, content: bytes, problem: str | None) -> None:
    began = time.process_time()
    path = written(tmp_path, content)
    if problem is None:
        read_csv(path)
        return
    with pytest.raises(DatasetError, match=re.escape(problem)) as caught:
        read_csv(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300 + len(str(path))
    assert time.process_time() - began < 20


def test_large_tables_are_an_error_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_CELLS", 100)
    with pytest.raises(DatasetError, match="row 51: the table has more than 100 fields"):
        read_csv(written(tmp_path, b"a,b\n" * 60))
    with pytest.raises(DatasetError, match="30 rows and 10 columns, too many"):
        read_csv(written(tmp_path, b"a,b,c,d,e,f,g,h,i,j\n" + b"a\n" * 30))
    monkeypatch.setattr(tables, "LARGEST_TABLE_BYTES", 1 << 20)
    with pytest.raises(DatasetError, match="is larger than 1 MB"):
        read_csv(written(tmp_path, bytes(2 << 20)))


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("(" * 500 + "a" + ")" * 500, "is not a regular expression|one named group"),
        ("(" * 500, "is not a regular expression"),
        ("[" * 500, "is not a regular expression"),
        ("(?P<g>" + "a" * 3000 + ")", "2,000 is the most"),
        ("(?P<g>a{99999999999})", "is not a regular expression"),
    ],
)
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
def test_hostile_expressions_are_a_one_line_error(tmp_path: Path, expression: str, problem: str) -> None:
    data = find_pairs(kinds_first(tmp_path, {"train": ["a", "ab"]}))
    with pytest.raises(OptionError, match=problem) as caught:
        assign_groups(data, expression)
    assert len(str(caught.value)) < 400


def test_groups_in_other_threads(tmp_path: Path) -> None:
    data = find_pairs(kinds_first(tmp_path, {"train": ["a_1", "b_1"]}))
    found: list[str | None] = []
    thread = threading.Thread(
        target=lambda: found.extend(pair.group for pair in assign_groups(data, "(?P<g>.)_").pairs)
    )
    thread.start()
    thread.join()
    assert found == ["a", "b"]
