"""Groups of patches that must stay in one split.

Groups come from the dataset's own table, from a regular expression over the names of the patches, or from a CSV file.
`assign_groups` also fills in patients and slides that become known, and the role if a CSV file states it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.files import is_image
from wsi2ihc.tables import read_csv
from wsi2ihc.text import pluralize

from .dataset import Pair, PairedData, Role
from .layouts import role_in_table

LONGEST_EXPRESSION = 2000

_KEY_COLUMNS = ("name", "patch", "region", "slide", "patient")
_GROUP_COLUMNS = ("group", "patient", "slide", "region")
_FIELDS = ("patient", "slide")
"""Fields of a pair that a table or an expression fills in beside the group, if the pair has none."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """Entry of a table of groups for the patches that match a key."""

    # rows with the same key must agree on these
    group: str | None
    role: Role | None
    # by their names in `_FIELDS`; None where rows disagree
    fields: Mapping[str, str | None] = dataclasses.field(compare=False)


def assign_groups(data: PairedData, group_by: str | None) -> PairedData:
    """Assign every pair its group, and its role if a table of groups states one.

    Patient and slide are filled in where a pair has none; they do not affect the split.

    Parameters
    ----------
    group_by
        None for the first of the columns ``group``, ``patient``, ``slide`` of the dataset's own table that has values;
        no groups if there are none.
        A regular expression with one named group, as in ``(?P<patient>[A-Z]+)_``, searched in the pair's name. A group
        named ``patient`` or ``slide`` also sets that field of the pair.
        The path of a CSV file (relative paths may start in the dataset's folder). The first of its columns ``name``,
        ``patch``, ``region``, ``slide``, ``patient`` is the key. A key matches a pair if it is the pair's name, or is a
        part of it between characters that are neither letters nor digits. The group is the first of the columns
        ``group``, ``patient``, ``slide``, ``region``; ``split`` sets the role; ``patient`` and ``slide`` are filled in.

    Raises
    ------
    OptionError
        If the expression is invalid, or does not have exactly one named group.
    DatasetError
        If the table is invalid, a pair matches no group or several, or files of a folder ``test`` would be trained on.
    """
    if group_by is None:
        return _by_own_columns(data)
    if names_table(group_by):
        return _by_table(data, _find(data.folder, group_by))
    return _by_expression(data, group_by)


def names_table(group_by: str) -> bool:
    """Return whether the value is the path of a CSV file, and not a regular expression."""
    return group_by.lower().endswith(".csv")


def _by_own_columns(data: PairedData) -> PairedData:
    for column in ("group", "patient", "slide"):
        values = [getattr(pair, column) for pair in data.pairs]
        if any(values):
            pairs = (dataclasses.replace(pair, group=value) for pair, value in zip(data.pairs, values, strict=True))
            return dataclasses.replace(data, pairs=tuple(pairs), grouped_by=column)
    return data


def _by_expression(data: PairedData, expression: str) -> PairedData:
    pattern = _compiled(expression)
    (name,) = pattern.groupindex
    groups = [(match := pattern.search(pair.name)) and match[name] for pair in data.pairs]
    _check_matched(data.pairs, groups, f"the regular expression {expression!r}")
    if len(set(groups)) == len(groups) > 1:
        _log.warning(
            "the regular expression %r puts every patch into its own group, so no patches are kept together", expression
        )
    pairs = (
        _with_metadata(dataclasses.replace(pair, group=group), {name: group} if name in _FIELDS else {})
        for pair, group in zip(data.pairs, groups, strict=True)
    )
    return dataclasses.replace(data, pairs=tuple(pairs), grouped_by=f"regular expression {expression}")


def _compiled(expression: str) -> re.Pattern[str]:
    if len(expression) > LONGEST_EXPRESSION:
        raise OptionError(f"a regular expression of {len(expression):,} characters; {LONGEST_EXPRESSION:,} is the most")
    try:
        pattern = re.compile(expression)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"{error!s:.80}"
        raise OptionError(
            f"{expression!r:.200} is not a regular expression ({reason}) or the name of a .csv file"
        ) from error
    if len(pattern.groupindex) != 1:
        raise OptionError(
            f"group by a regular expression with one named group, as in (?P<patient>…), not {expression!r:.200}"
        )
    return pattern


def _with_metadata(pair: Pair, fields: Mapping[str, str | None]) -> Pair:
    return dataclasses.replace(
        pair, patient=pair.patient or fields.get("patient"), slide=pair.slide or fields.get("slide")
    )


def _find(folder: Path, name: str) -> Path:
    path = Path(name)
    return path if path.is_file() or not (folder / path).is_file() else folder / path


def _by_table(data: PairedData, path: Path) -> PairedData:
    rows = _read_keys(path)
    found = [_row_of(pair, rows, path) for pair in data.pairs]
    _check_matched(data.pairs, found, str(path))
    pairs = []
    for pair, row in zip(data.pairs, found, strict=True):
        assert row is not None
        if pair.role == "test" and row.role not in (None, "test"):
            raise DatasetError(f"{path} assigns {row.role} to {pair.he}, which is a test file; correct one of them")
        pairs.append(_with_metadata(dataclasses.replace(pair, group=row.group, role=row.role or pair.role), row.fields))
    filled = [
        name
        for name in _FIELDS
        if any(getattr(one, name) != getattr(other, name) for one, other in zip(pairs, data.pairs, strict=True))
    ]
    grouped_by = f"{path.name} ({', '.join(filled)})" if filled else path.name
    return dataclasses.replace(data, pairs=tuple(pairs), grouped_by=grouped_by)


def _read_keys(path: Path) -> dict[str, _Row]:
    rows = read_csv(path).rows
    key_column = next((name for name in _KEY_COLUMNS if name in rows[0]), None)
    if key_column is None:
        raise DatasetError(f"{path} has none of the columns {', '.join(_KEY_COLUMNS)} to identify patches")
    # without any such column every patch would be its own group
    group_column = next((name for name in _GROUP_COLUMNS if name in rows[0]), None)
    if group_column is None and "split" not in rows[0]:
        raise DatasetError(f"{path} has none of the columns {', '.join(_GROUP_COLUMNS)}, and no split")
    keys: dict[str, _Row] = {}
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows, 2):
        where = f"{path}, row {number}"
        key = Path(row[key_column]).stem if is_image(row[key_column]) else row[key_column]
        if not key or (group_column and not row[group_column]):
            raise DatasetError(f"{where}: no {group_column if key else key_column}")
        entry = _Row(
            row[group_column] if group_column else None,
            role_in_table(where, row.get("split", "")),
            {name: row.get(name) or None for name in _FIELDS},
        )
        first = numbers.setdefault(key, number)
        if (known := keys.setdefault(key, entry)) != entry:
            raise DatasetError(f"{path}: rows {first} and {number} contradict each other about {key}")
        keys[key] = _agreed(known, entry)
    return keys


def _agreed(one: _Row, other: _Row) -> _Row:
    """Merge two rows with the same group and role, keeping the fields on which they agree."""
    fields = {name: value if other.fields[name] == value else None for name, value in one.fields.items()}
    return dataclasses.replace(one, fields=fields)


def _row_of(pair: Pair, rows: Mapping[str, _Row], path: Path) -> _Row | None:
    if pair.name in rows:
        return rows[pair.name]
    found = sorted({part for part in _parts(pair.name) if part in rows})
    if len({rows[key] for key in found}) > 1:
        raise DatasetError(f"{path}: {pair.name} matches both {found[0]} and {found[1]}; use longer keys in the table")
    return functools.reduce(_agreed, (rows[key] for key in found)) if found else None


def _parts(name: str) -> Iterator[str]:
    """Yield all parts of a name that begin and end at an end or between a letter or digit and another character."""
    starts = [at for at in range(len(name)) if at == 0 or not name[at - 1].isalnum()]
    ends = [at for at in range(1, len(name) + 1) if at == len(name) or not name[at].isalnum()]
    for start in starts:
        for end in ends:
            if start < end:
                yield name[start:end]


def _check_matched(pairs: Sequence[Pair], found: Sequence[object], what: str) -> None:
    unmatched = [pair.name for pair, one in zip(pairs, found, strict=True) if not one]
    if unmatched:
        matched = len(pairs) - len(unmatched)
        some = f"only {matched}" if matched else "none"
        raise DatasetError(
            f"{what} matches {some} of {pluralize(len(pairs), 'pair')}; the first without a match is {unmatched[0]}"
        )
