"""Split patients into train, validation and test."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from wsi2ihc.errors import OptionError
from wsi2ihc.text import pluralize

from ..data.dataset import ROLES, Role
from ..data.layouts import LEVELS
from .pair_manifest import Member, SlidePair

Shares: TypeAlias = tuple[float, float, float]
"""Fractions of training, validation and test, in the order of `ROLES`; their sum is 1."""

_Row: TypeAlias = Member | SlidePair

_Counts: TypeAlias = tuple[int, ...]
"""Patients per role, in the order of `ROLES`."""


Splits: TypeAlias = Mapping[str, Role]
"""Role of each slide, by slide id."""


def assign_splits(members: Iterable[_Row], shares: Shares = (0.8, 0.1, 0.1), seed: int = 0) -> Splits:
    """Assign a role to every slide, by patient and stratified by HER2 level.

    The level of a patient is the highest of its slides. Roles stated in the manifest are kept and count toward the
    shares. For the other patients, the number per level and role follows the shares, rounded up or down so that the
    totals over all levels match as well. Within a level the patients have a pseudorandom order; validation takes the
    first and test the last ones, so that a new patient moves few of the others.

    Parameters
    ----------
    members
        All rows of a manifest, including unusable ones, so that the split does not depend on which files are available.
        If the rows of a patient state several roles (they are all unusable), the first one counts.
    shares
        Fractions of the patients; that of training is above 0.
    seed
        Seed of the pseudorandom order.

    Raises
    ------
    OptionError
        If the shares are invalid.
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
    return {member.slide: roles[patient] for patient, own in patients.items() for member in own}


def split_warnings(splits: Splits, kept: Iterable[SlidePair], shares: Shares) -> tuple[str, ...]:
    """Return warnings about roles and levels without kept slides, one line each."""
    patients: dict[str, list[_Row]] = defaultdict(list)
    for pair in kept:
        patients[pair.patient].append(pair)
    roles = {patient: splits[own[0].slide] for patient, own in patients.items()}
    levels = {patient: _level_of(own) for patient, own in patients.items()}
    is_stated = all(map(_stated_role, patients.values()))
    return tuple(_warnings(splits, roles, levels, shares, is_stated)) if patients else ()


def _check_shares(shares: Shares) -> None:
    possible = len(shares) == 3 and all(math.isfinite(share) and share >= 0 for share in shares)
    if not possible or shares[0] == 0 or abs(sum(shares) - 1) > 1e-6:
        raise OptionError(
            f"the fractions of train, validation and test must add up to 1, with train above 0, not "
            f"{', '.join(f'{share:g}' for share in shares)}"
        )


def _stated_role(own: Sequence[_Row]) -> Role | None:
    return next((row.role for row in own if row.role), None)


def _level_of(own: Sequence[_Row]) -> str:
    """Return the highest level of a patient's slides; "" if unknown."""
    known = [row.her2 for row in own if row.her2 is not None]
    return max(known, key=LEVELS.index, default="")


def _rank(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{patient}".encode()).digest()


def _pluralize(roles: Iterable[Role]) -> _Counts:
    counts = Counter(roles)
    return tuple(counts[role] for role in ROLES)


def _quotas(free: Mapping[str, int], stated: Mapping[str, _Counts], shares: Shares) -> dict[str, _Counts]:
    """Return how many of the free patients of each level get each role.

    Every number is the ideal one rounded up or down. All combinations are tried, since a level has at most three ways
    to round three roles, and there are few levels. The totals are fitted first, then the levels.
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
        # rounded, so that the first of several equally good combinations is chosen
        return totals[0] == 0, round(overall, 6), round(single, 6)

    ways = (_roundings(ideal, free[level]) for level, ideal in zip(levels, ideals, strict=True))
    return dict(zip(levels, min(itertools.product(*ways), key=misfit), strict=True))


def _ideal(free: int, stated: _Counts, shares: Shares) -> tuple[float, ...]:
    """Return the ideal numbers of a level's free patients per role, given the stated ones."""
    everyone = free + sum(stated)
    lacking = [max(0.0, everyone * share - count) for share, count in zip(shares, stated, strict=True)]
    return tuple(free * one / sum(lacking) for one in lacking) if sum(lacking) else (float(free), 0.0, 0.0)


def _roundings(ideal: Sequence[float], total: int) -> list[_Counts]:
    """Return all ways to round three numbers up or down to a sum of ``total``."""
    choices = ({math.floor(value + 1e-9), math.ceil(value - 1e-9)} for value in ideal)
    return sorted((counts for counts in itertools.product(*choices) if sum(counts) == total), reverse=True)


def _taken(ranked: Sequence[str], counts: _Counts) -> dict[str, Role]:
    """Assign the first patients of a level to validation, the last to test and the others to training."""
    _, validation, test = counts
    roles = dict.fromkeys(ranked, ROLES[0])
    roles |= dict.fromkeys(ranked[:validation], ROLES[1])
    return roles | dict.fromkeys(ranked[len(ranked) - test :], ROLES[2])


def _warnings(
    splits: Splits, roles: Mapping[str, Role], levels: Mapping[str, str], shares: Shares, is_stated: bool
) -> Iterable[str]:
    by_manifest = "the column split of the manifest assigns none"
    present = sorted(set(levels.values()) - {""})
    for role, share in zip(ROLES, shares, strict=True):
        if share == 0:
            continue
        own = [patient for patient in roles if roles[patient] == role]
        if not own and role in splits.values():
            yield f"{role} has no patient: none of those assigned to it can be used"
        elif not own:
            verb = "is" if len(roles) == 1 else "are"
            few = f"{pluralize(len(roles), 'patient')} {verb} too few for a fraction of {share:g}"
            yield f"{role} has no patient: {by_manifest if is_stated else few}"
        elif lacking := sorted(set(present) - {levels[patient] for patient in own}):
            yield (
                f"{role} has no patient of level {', '.join(lacking)}; "
                f"{by_manifest if is_stated else 'there are too few of them'}"
            )
