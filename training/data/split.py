"""Split into train, validation and test, by group."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.text import pluralize

from .dataset import ROLES, Order, Pair, PairedData, Role
from .groups import assign_groups
from .layouts import find_pairs

_log = logging.getLogger(__name__)

_HOW_TO_GROUP = (
    "give the groups (--group-by with a CSV file, or with a regular expression for the part of the names that all "
    "patches of a patient share, which excludes the patch number), or use --split-by-patch"
)


def load_data(
    folder: Path,
    *,
    order: Order = "AB",
    group_by: str | None = None,
    split_by_patch: bool = False,
    validation_share: float = 0.1,
    seed: int = 0,
) -> PairedData:
    """Find, group and split the pairs of a dataset."""
    data = assign_groups(find_pairs(folder, order=order), group_by)
    return assign_roles(data, validation_share=validation_share, split_by_patch=split_by_patch, seed=seed)


def assign_roles(
    data: PairedData, *, validation_share: float = 0.1, split_by_patch: bool = False, seed: int = 0
) -> PairedData:
    """Assign every pair a role. Pairs without one are for training; without validation pairs, some of those become
    validation.

    The choice depends on the seed and the names of the groups, not on the order of files: groups are ranked
    pseudorandomly, and go to validation by rank as long as that brings validation nearer to its fraction. At least one
    group goes, and at least one stays.

    Parameters
    ----------
    validation_share
        Fraction of the training pairs that become validation, if there are no validation pairs.
    split_by_patch
        Choose single patches instead of groups, and allow stated splits to divide groups. Patches of one slide on both
        sides make metrics too optimistic, so a warning is logged.

    Raises
    ------
    DatasetError
        If train or validation is empty, groups are required but unknown, or a group has two roles.
    OptionError
        If the fraction is invalid.
    """
    if not 0 < validation_share < 1:
        raise OptionError(f"the validation fraction must lie between 0 and 1, not {validation_share:g}")
    pairs = tuple(dataclasses.replace(pair, role=pair.role or "train") for pair in data.pairs)
    data = dataclasses.replace(data, pairs=pairs)
    _check_groups(data, split_by_patch)
    if not data.of("train"):
        raise DatasetError(f"{data.folder} has no pair for training ({_count_roles(data)})")
    if data.of("validation"):
        return data
    if split_by_patch:
        _log.warning(
            "validation is split by patch: patches of one slide or patient on both sides make metrics too optimistic"
        )
        data = dataclasses.replace(data, grouped_by="patch")
    units = _units(data, split_by_patch)
    chosen = _choose_validation(units, validation_share, seed, data.folder)
    return dataclasses.replace(
        data, pairs=tuple(dataclasses.replace(pair, role="validation") if pair in chosen else pair for pair in pairs)
    )


def _units(data: PairedData, split_by_patch: bool) -> Mapping[str, list[Pair]]:
    """Return the training pairs by group, or one by one."""
    units: dict[str, list[Pair]] = defaultdict(list)
    for pair in data.of("train"):
        if not split_by_patch and pair.group is None:
            raise DatasetError(
                f"{data.folder} has no validation pairs, and the group of {pair.name} is unknown: {_HOW_TO_GROUP}"
            )
        units[_patch_key(data.folder, pair) if split_by_patch else str(pair.group)].append(pair)
    return units


def _patch_key(folder: Path, pair: Pair) -> str:
    """Return the path of a patch inside the dataset, so that the split does not depend on the dataset's location."""
    path = pair.he.relative_to(folder) if pair.he.is_relative_to(folder) else pair.he
    return path.as_posix()


def _choose_validation(units: Mapping[str, list[Pair]], fraction: float, seed: int, folder: Path) -> set[Pair]:
    if len(units) < 2:
        raise DatasetError(
            f"{folder} has no validation pairs, and its training pairs are one group, {next(iter(units))!r}, which "
            f"must not be split: {_HOW_TO_GROUP}"
        )
    ranked = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}\0{unit}".encode()).digest())
    target = fraction * sum(map(len, units.values()))
    taken: list[str] = []
    count = 0
    for unit in ranked:
        nearer = abs(count + len(units[unit]) - target) < abs(count - target)
        if nearer and len(taken) + 1 < len(units):
            taken.append(unit)
            count += len(units[unit])
    if not taken:  # every group is more than twice the fraction
        taken = [min(ranked, key=lambda unit: len(units[unit]))]
    return {pair for unit in taken for pair in units[unit]}


def _check_groups(data: PairedData, is_allowed: bool) -> None:
    roles: dict[str, set[Role]] = defaultdict(set)
    for pair in data.pairs:
        if pair.group is not None and pair.role is not None:
            roles[pair.group].add(pair.role)
    split = sorted(group for group, found in roles.items() if len(found) > 1)
    if not split:
        return
    found_in = " and ".join(role for role in ROLES if role in roles[split[0]])
    more = f", and {pluralize(len(split) - 1, 'more group is', 'more groups are')} split" if len(split) > 1 else ""
    if not is_allowed:
        raise DatasetError(
            f"the group {split[0]!r} is in {found_in}{more}; assign each group one role, or use --split-by-patch"
        )
    _log.warning(
        "the group %r is in %s%s: patches of one group on both sides make metrics too optimistic",
        split[0],
        found_in,
        more,
    )


def _count_roles(data: PairedData) -> str:
    counts = Counter(pair.role for pair in data.pairs)
    return ", ".join(f"{counts[role]} for {role}" for role in ROLES)
