"""The data set in figures: how many, and what they look like, per split and HER2 level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ..data import ROLES, Pair
from ..data.table import LEVELS
from .looks import LOOKS, Looks

MOST_GROUPS = 30
"""Of more, none has a row of its own."""

ALL = "all"

Stain: TypeAlias = Literal["H&E", "IHC"]
STAINS: tuple[Stain, Stain] = ("H&E", "IHC")


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over images.

    mean:       NaN where there is none
    deviation:  standard deviation (with N - 1); NaN for fewer than two images
    """

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Description:
    """Of some of the pairs.

    split:     a role, or "all"
    level:     of HER2, or "all"
    group:     the group or slide; "" for all
    pairs:     how many
    groups, slides, patients:
               how many; None where nothing says
    looks:     by stain and figure
    """

    split: str
    level: str
    group: str
    pairs: int
    groups: int | None
    slides: int | None
    patients: int | None
    looks: Mapping[Stain, Mapping[str, Spread]]


def describe(pairs: Sequence[Pair], looks: Sequence[tuple[Looks, Looks]]) -> tuple[Description, ...]:
    """Describe every split and HER2 level, and all together.

    Parameters
    ----------
    pairs
        At least one.
    looks
        Of the H&E and the IHC of each.

    Returns
    -------
    tuple of Description
        By split, then level; "all" comes last. Where no level is known, also each group (or slide, without groups), if
        there are 2 to `MOST_GROUPS`.
    """
    table = np.array([[[getattr(one, name) for name in LOOKS] for one in both] for both in looks], np.float64)
    descriptions = []
    for split in splits_of(pairs):
        for level in levels_of(pairs):
            chosen = [
                number
                for number, pair in enumerate(pairs)
                if split in (ALL, pair.role or "train") and level in (ALL, pair.her2)
            ]
            descriptions.append(_described(split, level, "", pairs, chosen, table))
    if len(levels_of(pairs)) == 1:
        for name, chosen in _groups(pairs):
            descriptions.append(_described(ALL, ALL, name, pairs, chosen, table))
    return tuple(descriptions)


def splits_of(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """The roles that occur, and "all"; that alone where no role, or only one, is known.

    In a data set with roles, pairs without one are for training, as for the trainer.
    """
    known = {pair.role for pair in pairs} - {None}
    roles = [role for role in ROLES if any((pair.role or "train") == role for pair in pairs)] if known else []
    return (*roles, ALL) if len(roles) > 1 else (ALL,)


def levels_of(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """All levels of HER2, others that occur, and "all"; that alone where no level is known.

    Where levels are known at all, each has a row, though no image may have it.
    """
    known = {pair.her2 for pair in pairs} - {None}
    return (*LEVELS, *sorted(str(level) for level in known - set(LEVELS)), ALL) if known else (ALL,)


def slide_of(pair: Pair) -> tuple[str, str] | None:
    """Patient ("" if unknown) and slide, since several patients may have a slide of one name; None if it is unknown."""
    return None if pair.slide is None else (pair.patient or "", pair.slide)


def empty_levels(descriptions: Sequence[Description]) -> Iterator[str]:
    """A sentence for each level that a split lacks."""
    splits = {one.split for one in descriptions}
    for one in descriptions:
        if one.pairs == 0 and (one.split != ALL or len(splits) == 1):
            yield f"there is no pair of HER2 {one.level}" + ("" if one.split == ALL else f" in {one.split}")


def _groups(pairs: Sequence[Pair]) -> list[tuple[str, list[int]]]:
    for field in ("group", "slide"):
        members: dict[str, list[int]] = {}
        for number, pair in enumerate(pairs):
            if (name := getattr(pair, field)) is not None:
                members.setdefault(name, []).append(number)
        if members:
            return sorted(members.items()) if 2 <= len(members) <= MOST_GROUPS else []
    return []


def _described(
    split: str, level: str, group: str, pairs: Sequence[Pair], chosen: Sequence[int], table: np.ndarray
) -> Description:
    own = [pairs[number] for number in chosen]
    values = table[list(chosen)] if chosen else np.zeros((0, *table.shape[1:]))
    looks = {
        stain: {name: _spread(values[:, place, column]) for column, name in enumerate(LOOKS)}
        for place, stain in enumerate(STAINS)
    }
    groups, slides, patients = (_count(pairs, own, field) for field in ("group", "slide", "patient"))
    return Description(split, level, group, len(own), groups, slides, patients, looks)


def _count(pairs: Sequence[Pair], own: Sequence[Pair], field: str) -> int | None:
    if all(getattr(pair, field) is None for pair in pairs):
        return None
    if field == "slide":
        return len({slide_of(pair) for pair in own} - {None})
    return len({getattr(pair, field) for pair in own} - {None})


def _spread(values: np.ndarray) -> Spread:
    known = values[np.isfinite(values)]
    return Spread(
        float(known.mean()) if known.size else math.nan,
        float(known.std(ddof=1)) if known.size > 1 else math.nan,
    )
