"""Which patients are for training, for validation and for test.

A patient stays whole. Every HER2 level is spread over the roles by the same shares, and who goes where follows from a
seed and from the names of the patients, not from their order.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from wsi2ihc.errors import OptionError
from wsi2ihc.text import pluralize

from ..data.pairs import ROLES, Role
from .cells import LEVELS
from .manifest import Member, SlidePair

Shares: TypeAlias = tuple[float, float, float]
"""Of training, validation and test, in the order of `ROLES`; they add up to 1."""

_Row: TypeAlias = Member | SlidePair

_Counts: TypeAlias = tuple[int, ...]
"""Patients per role, in the order of `ROLES`."""


@dataclass(frozen=True, slots=True)
class Splits:
    """What each slide is for, by its id."""

    roles: Mapping[str, Role]


def assign_splits(members: Iterable[_Row], shares: Shares = (0.8, 0.1, 0.1), seed: int = 0) -> Splits:
    """Give every slide a role, by patient.

    A patient's level is the highest of its slides. Roles that the manifest states stay as they are and count into the
    shares. The others are drawn: per level and role, the number of patients is what the shares ask for, rounded up or
    down such that the totals over all levels are right as well. Within a level the patients have a pseudorandom order;
    validation is taken from its head and test from its end, so that a new patient moves few of the others.

    Parameters
    ----------
    members
        Rows of one manifest, those included that cannot be used otherwise: the patients of a disk that is missing
        today keep their places, and nobody else is moved into them. Where the rows of a patient state several roles
        (none of them is used then), the first one counts.
    shares
        Of the patients; that of training is above 0.
    seed
        Of the drawing.

    Raises
    ------
    OptionError
        If the shares are impossible.
    """
    _check_shares(shares)
    patients: dict[str, list[_Row]] = defaultdict(list)
    for member in members:
        patients[member.patient].append(member)
    roles = {patient: role for patient, own in patients.items() if (role := _stated_role(own))}
    levels = {patient: _level_of(own) for patient, own in patients.items()}
    free: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(patients.keys() - roles.keys(), key=lambda name: _rank(name, seed)):
        free[levels[patient]].append(patient)
    stated = {
        level: _pluralize(roles[patient] for patient in roles if levels[patient] == level)
        for level in set(levels.values())
    }
    for level, counts in _quotas({level: len(own) for level, own in free.items()}, stated, shares).items():
        roles |= _taken(free[level], counts)
    return Splits({member.slide: roles[patient] for patient, own in patients.items() for member in own})


def split_warnings(splits: Splits, kept: Iterable[SlidePair], shares: Shares) -> tuple[str, ...]:
    """What the slides that are kept leave empty, or nearly: one line each; none if there are no slides."""
    patients: dict[str, list[_Row]] = defaultdict(list)
    for pair in kept:
        patients[pair.patient].append(pair)
    roles = {patient: splits.roles[own[0].slide] for patient, own in patients.items()}
    levels = {patient: _level_of(own) for patient, own in patients.items()}
    return tuple(_warnings(splits, roles, levels, shares)) if patients else ()


def _check_shares(shares: Shares) -> None:
    possible = len(shares) == 3 and all(math.isfinite(share) and share >= 0 for share in shares)
    if not possible or shares[0] == 0 or abs(sum(shares) - 1) > 1e-6:
        raise OptionError(
            f"the shares of train, validation and test add up to 1, that of train above 0; "
            f"{', '.join(f'{share:g}' for share in shares)} do not"
        )


def _stated_role(own: Sequence[_Row]) -> Role | None:
    return next((row.role for row in own if row.role), None)


def _level_of(own: Sequence[_Row]) -> str:
    """The highest level of a patient's slides; "" if none is known."""
    known = [row.her2 for row in own if row.her2 is not None]
    return max(known, key=LEVELS.index, default="")


def _rank(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{patient}".encode()).digest()


def _pluralize(roles: Iterable[Role]) -> _Counts:
    counts = Counter(roles)
    return tuple(counts[role] for role in ROLES)


def _quotas(free: Mapping[str, int], stated: Mapping[str, _Counts], shares: Shares) -> dict[str, _Counts]:
    """How many of the free patients of each level get each role.

    Every number is the ideal one rounded up or down. With three roles a level has at most three ways to be rounded, and
    there are few levels, so all combinations are tried: first the totals have to be near their ideals, then the levels.
    """
    levels = sorted(free)
    ideals = [_ideal(free[level], stated[level], shares) for level in levels]
    everyone = sum(free.values()) + sum(map(sum, stated.values()))
    fixed = [sum(counts[at] for counts in stated.values()) for at in range(3)]

    def misfit(combination: Iterable[_Counts]) -> tuple[bool, float, float]:
        combination = tuple(combination)
        totals = [fixed[at] + sum(counts[at] for counts in combination) for at in range(3)]
        overall = sum((total - everyone * share) ** 2 for total, share in zip(totals, shares, strict=True))
        single = sum(
            (count - wanted) ** 2
            for counts, ideal in zip(combination, ideals, strict=True)
            for count, wanted in zip(counts, ideal, strict=True)
        )
        # rounded, so that equally good combinations are equal, and the first one is taken
        return totals[0] == 0, round(overall, 6), round(single, 6)

    ways = (_roundings(ideal, free[level]) for level, ideal in zip(levels, ideals, strict=True))
    return dict(zip(levels, min(itertools.product(*ways), key=misfit), strict=True))


def _ideal(free: int, stated: _Counts, shares: Shares) -> tuple[float, ...]:
    """What a level's free patients are best divided into, given those whose role is stated."""
    everyone = free + sum(stated)
    lacking = [max(0.0, everyone * share - count) for share, count in zip(shares, stated, strict=True)]
    return tuple(free * one / sum(lacking) for one in lacking) if sum(lacking) else (float(free), 0.0, 0.0)


def _roundings(ideal: Sequence[float], total: int) -> list[_Counts]:
    """All ways to round three numbers up or down such that they add up to ``total``."""
    choices = ({math.floor(value + 1e-9), math.ceil(value - 1e-9)} for value in ideal)
    return sorted((counts for counts in itertools.product(*choices) if sum(counts) == total), reverse=True)


def _taken(ranked: Sequence[str], counts: _Counts) -> dict[str, Role]:
    """The roles of one level's patients: validation from the head, test from the end, training in between."""
    _, validation, test = counts
    roles = dict.fromkeys(ranked, ROLES[0])
    roles |= dict.fromkeys(ranked[:validation], ROLES[1])
    return roles | dict.fromkeys(ranked[len(ranked) - test :], ROLES[2])


def _warnings(splits: Splits, roles: Mapping[str, Role], levels: Mapping[str, str], shares: Shares) -> Iterable[str]:
    present = sorted(set(levels.values()) - {""})
    for role, share in zip(ROLES, shares, strict=True):
        if share == 0:
            continue
        own = [patient for patient in roles if roles[patient] == role]
        if not own and role in splits.roles.values():
            yield f"no patient is for {role}: none of those who were chosen for it can be used"
        elif not own:
            few = f"{pluralize(len(roles), 'patient')} {'is' if len(roles) == 1 else 'are'} too few"
            yield f"no patient is for {role}: {few} for a share of {share:g}"
        elif lacking := sorted(set(present) - {levels[patient] for patient in own}):
            yield f"no patient of level {', '.join(lacking)} is for {role}; there are too few of them"
