"""Which patches must not be parted between train, validation and test."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.text import pluralize

from .files import is_image, read_csv
from .pairs import Pair, PairedData, Role
from .table import role_in_table

LONGEST_EXPRESSION = 2000

_KEY_COLUMNS = ("name", "patch", "region", "slide", "patient")
_GROUP_COLUMNS = ("group", "patient", "slide", "region")
_FACTS = ("patient", "slide")
"""Fields of a pair that a table or an expression fills in beside the group, where the pair has none."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """What a table of groups says of the patches that a key names.

    group, role: what decides; rows that differ in these contradict each other
    facts:       by their names in `_FACTS`; what rows do not agree on is None
    """

    group: str | None
    role: Role | None
    facts: Mapping[str, str | None] = dataclasses.field(compare=False)


def assign_groups(data: PairedData, group_by: str | None) -> PairedData:
    """Give every pair the group that it belongs to, and the role if a table of groups states one.

    What also becomes known of patients and slides is filled in where a pair has none; it decides nothing.

    Parameters
    ----------
    data:
        as `find_pairs` gives it
    group_by:
        None: the first of the columns ``group``, ``patient``, ``slide`` of the data's own table that has values; none
        where there are none.
        A regular expression with one named group, as in ``(?P<patient>[A-Z]+)_``, searched for in the pair's name. A
        group named ``patient`` or ``slide`` says that of the pair as well.
        The path of a CSV file (relative paths: also in the data's folder). Its first column of ``name``, ``patch``,
        ``region``, ``slide``, ``patient`` is the key. A key belongs to a pair if it is the pair's name, or stands in it
        between characters that are neither letters nor digits. The group is the first column of ``group``, ``patient``,
        ``slide``, ``region``; ``split`` sets the role. ``patient`` and ``slide`` are taken from it in any case.

    Raises
    ------
    OptionError
        If the expression is none, or has not exactly one named group.
    DatasetError
        If the table cannot be used, a pair matches nothing or several groups, or files of a folder ``test`` were to be
        trained on.
    """
    if group_by is None:
        return _by_own_columns(data)
    if names_table(group_by):
        return _by_table(data, _find(data.folder, group_by))
    return _by_expression(data, group_by)


def names_table(group_by: str) -> bool:
    """Whether groups come from a CSV file of this path, and not from a regular expression."""
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
            "the regular expression %r makes every patch a group of its own: it keeps none together", expression
        )
    pairs = (
        _with_facts(dataclasses.replace(pair, group=group), {name: group} if name in _FACTS else {})
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
            f"{expression!r:.200} is no regular expression ({reason}), nor the name of a .csv file"
        ) from error
    if len(pattern.groupindex) != 1:
        raise OptionError(
            f"group by a regular expression with one named group, as in (?P<patient>…), not {expression!r:.200}"
        )
    return pattern


def _with_facts(pair: Pair, facts: Mapping[str, str | None]) -> Pair:
    return dataclasses.replace(
        pair, patient=pair.patient or facts.get("patient"), slide=pair.slide or facts.get("slide")
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
            raise DatasetError(f"{path} says {row.role} of {pair.he}, which is a test file; take one of them back")
        pairs.append(_with_facts(dataclasses.replace(pair, group=row.group, role=row.role or pair.role), row.facts))
    filled = [
        name
        for name in _FACTS
        if any(getattr(one, name) != getattr(other, name) for one, other in zip(pairs, data.pairs, strict=True))
    ]
    grouped_by = f"{path.name} ({', '.join(filled)})" if filled else path.name
    return dataclasses.replace(data, pairs=tuple(pairs), grouped_by=grouped_by)


def _read_keys(path: Path) -> dict[str, _Row]:
    """The rows of a table of groups by their keys."""
    rows = read_csv(path)
    key_column = next((name for name in _KEY_COLUMNS if name in rows[0]), None)
    if key_column is None:
        raise DatasetError(f"{path} has none of the columns {', '.join(_KEY_COLUMNS)} to know patches by")
    # A table of patches without any such column makes every patch its own group: that is no grouping.
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
            {name: row.get(name) or None for name in _FACTS},
        )
        first = numbers.setdefault(key, number)
        if (known := keys.setdefault(key, entry)) != entry:
            raise DatasetError(f"{path}: rows {first} and {number} contradict each other about {key}")
        keys[key] = _agreed(known, entry)
    return keys


def _agreed(one: _Row, other: _Row) -> _Row:
    """Two rows that decide the same, with the facts that both state."""
    facts = {name: fact if other.facts[name] == fact else None for name, fact in one.facts.items()}
    return dataclasses.replace(one, facts=facts)


def _row_of(pair: Pair, rows: Mapping[str, _Row], path: Path) -> _Row | None:
    if pair.name in rows:
        return rows[pair.name]
    found = sorted({part for part in _parts(pair.name) if part in rows})
    if len({rows[key] for key in found}) > 1:
        raise DatasetError(f"{path}: {pair.name} could be {found[0]} or {found[1]}; give that table longer keys")
    return functools.reduce(_agreed, (rows[key] for key in found)) if found else None


def _parts(name: str) -> Iterator[str]:
    """All parts of a name that begin and end where a letter or digit meets another character, or at an end."""
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
