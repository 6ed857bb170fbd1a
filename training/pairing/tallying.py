"""How many patches were left out, why, and whether one HER2 level suffers more than the others.

Strong DAB hides haematoxylin, and tissue of one level may be paler or denser than that of another. A limit that fits
most slides may so take the rarest level away without anybody noticing; the data set would teach that it does not exist.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .filters import LIMIT_OF, REASONS, Reason

KEPT = "kept"

UNKNOWN_LEVEL = ""
"""Under which patches of slides without a level are counted."""

LEAST_PATCHES = 20
"""A level with fewer patches, and others with fewer together, are not compared."""

CONSPICUOUS_RATIO, CONSPICUOUS_Z = 2.0, 3.0
"""A level is named if it loses more than twice as much as the others together, and by a difference of so many standard
errors. Patches of one slide are alike, so that z is larger than for independent ones: this is a hint, not a test."""


@dataclass(frozen=True, slots=True)
class Rejections:
    """What became of the patches.

    counts:   for each reason that occurs (and `KEPT`, always), how many patches
    by_level: the same for each HER2 level; "" for slides without one
    warnings: levels that lose far more than the others, one sentence each, for people
    """

    counts: Mapping[str, int]
    by_level: Mapping[str, Mapping[str, int]]
    warnings: tuple[str, ...]

    @property
    def left_out(self) -> dict[str, Any]:
        """Patches per reason, of all and of each level that lost some, for JSON."""
        levels = {level: _without_kept(counts) for level, counts in self.by_level.items()}
        return {
            "reasons": _without_kept(self.counts),
            "her2": {level: counts for level, counts in levels.items() if counts},
        }


def _without_kept(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if reason != KEPT}


def summarise_rejections(outcomes: Iterable[tuple[str | None, str]]) -> Rejections:
    """Count what became of patches.

    Parameters
    ----------
    outcomes
        For each patch the HER2 level of its slide ("0", "1+", …; None where unknown) and why it was left out ("" if
        it was kept).
    """
    levels: dict[str, Counter[str]] = {}
    for level, rejected in outcomes:
        levels.setdefault(level or UNKNOWN_LEVEL, Counter())[rejected or KEPT] += 1
    pooled = sum(levels.values(), Counter())
    known = {level: count for level, count in sorted(levels.items()) if level != UNKNOWN_LEVEL}
    warnings = [
        warning
        for level in known
        for reason in REASONS
        if (warning := _warning(level, reason, known[level], _others(known, level)))
    ]
    by_level = {level: _in_order(levels[level]) for level in sorted(levels)}
    return Rejections(_in_order(pooled), by_level, tuple(warnings))


def _others(levels: Mapping[str, Counter[str]], level: str) -> Counter[str]:
    return sum((counts for other, counts in levels.items() if other != level), Counter())


def _warning(level: str, reason: Reason, own: Counter[str], others: Counter[str]) -> str | None:
    """A sentence if the level loses conspicuously many patches for this reason."""
    if min(own.total(), others.total()) < LEAST_PATCHES:
        return None
    share, share_others = own[reason] / own.total(), others[reason] / others.total()
    if share <= CONSPICUOUS_RATIO * share_others or _z(own, others, reason) <= CONSPICUOUS_Z:
        return None
    name, how = LIMIT_OF[reason]
    return (
        f"HER2 {level} loses {share:.0%} of its {own.total():,} patches to {reason!r}, the other levels "
        f"{share_others:.1%}; look at some of them, and {how} --{name.replace('_', '-')} if they are good"
    )


def _z(own: Counter[str], others: Counter[str], reason: str) -> float:
    """Difference of two shares in standard errors, from the pooled share."""
    n, m = own.total(), others.total()
    pooled = (own[reason] + others[reason]) / (n + m)
    error = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return (own[reason] / n - others[reason] / m) / error if error > 0 else 0.0


def _in_order(counts: Counter[str]) -> dict[str, int]:
    """Kept first, then reasons in the order in which they are looked for, then any other."""
    names = [KEPT, *(reason for reason in REASONS if counts[reason])]
    return {name: counts[name] for name in [*names, *sorted(counts.keys() - set(names))]}
