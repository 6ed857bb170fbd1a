"""Tissue that is in a data set more than once: between splits it flatters every figure.

What has the same pixels is known by its hash, in either stain. All else (another compression, a second scan, mirrored
and turned patches, patches that overlap) is looked for in the H&E, where a patch and its neighbour differ most.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from wsi2ihc.arrays import RGBImage

from ..data import Pair
from .common_tissue import find_common
from .fingerprints import Fingerprint

Kind = Literal["same pixels", "same field", "overlap"]
Between = Literal["splits", "groups", ""]
BETWEEN: tuple[Between, ...] = get_args(Between)

SAME_FIELD = 0.9
"""Share of a patch from which on two patches are the same field, and do not merely overlap."""

TURNS = (
    "", "mirrored left to right", "mirrored top to bottom", "turned by 180°", "transposed", "turned by 90° clockwise",
    "turned by 90° counterclockwise", "transposed along the other diagonal",
)  # fmt: skip
"""What `fingerprints.turn_matrix` numbers, in words."""


@dataclass(frozen=True, slots=True)
class Leak:
    """Tissue that two pairs share.

    first, second:  their numbers in the data set, first < second
    between:        what parts them: "splits"; "groups" of one split (or of none); "" for neither
    kind:           how much is the same
    stains:         of which images: "H&E and IHC", "H&E", "IHC"
    turn:           what brings the first into the second's orientation, as in `TURNS`
    shift_px:       and then onto it, (x, y) between their centres
    share:          of the smaller patch that is common, 0 to 1
    correlation:    of the fine structure there
    """

    first: int
    second: int
    between: Between
    kind: Kind
    stains: str
    turn: int
    shift_px: tuple[float, float]
    share: float
    correlation: float


Hashes = tuple[bytes | None, bytes | None]
"""Of the H&E and the IHC of a pair; None for an image of one colour."""


def hash_of(image: RGBImage) -> bytes | None:
    """What is equal for equal pixels; None for an image of one colour: empty glass is alike without being the same."""
    if (image[0] == image[0, 0]).all() and (image == image[0, 0]).all():  # one row tells of most that it is none
        return None
    content = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
    content.update(repr(image.shape).encode())
    return content.digest()


def find_leaks(
    pairs: Sequence[Pair],
    hashes: Sequence[Hashes],
    prints: Sequence[Fingerprint],
    factor: int,
    pool: Executor,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Leak, ...]:
    """All tissue that is in more than one pair: what parts splits first, then groups; each by share, the largest first.

    Of many pairs with the same pixels, each is named once for every split, beside the first pair there that has them.

    Parameters
    ----------
    pairs, hashes, prints
        Of all pairs; fingerprints are of the H&E.
    factor, pool, progress
        As in `find_common`.
    """
    found = _same_pixels(pairs, hashes)
    kept = _without_copies(pairs, hashes)
    for common in find_common([prints[number] for number in kept], factor, pool, progress):
        first, second = kept[common.first], kept[common.second]
        if (first, second) not in found:
            kind: Kind = "same field" if common.share >= SAME_FIELD else "overlap"
            found[first, second] = Leak(
                first, second, _between(pairs[first], pairs[second]), kind, "H&E",
                common.turn, common.shift_px, common.share, common.correlation,
            )  # fmt: skip
    return tuple(sorted(found.values(), key=lambda one: (BETWEEN.index(one.between), -one.share, one.first)))


def affected(pairs: Sequence[Pair], leaks: Iterable[Leak]) -> dict[str, int]:
    """How many pairs of each split share tissue with others, by role ("" where there are no roles)."""
    numbers = {number for leak in leaks for number in (leak.first, leak.second)}
    counts: dict[str, int] = defaultdict(int)
    has_roles = any(pair.role for pair in pairs)
    for number in numbers:
        counts[(pairs[number].role or "train") if has_roles else ""] += 1
    return dict(sorted(counts.items()))


def _same_pixels(pairs: Sequence[Pair], hashes: Sequence[Hashes]) -> dict[tuple[int, int], Leak]:
    links: dict[tuple[int, int], list[str]] = defaultdict(list)
    for place, stain in enumerate(("H&E", "IHC")):
        members: dict[bytes, list[int]] = defaultdict(list)
        for number, own in enumerate(hashes):
            if (content := own[place]) is not None:
                members[content].append(number)
        for numbers in members.values():
            for link in _links(pairs, numbers):
                links[link].append(stain)
    return {
        (first, second): Leak(
            first, second, _between(pairs[first], pairs[second]), "same pixels", " and ".join(stains),
            0, (0.0, 0.0), 1.0, 1.0,
        )
        for (first, second), stains in links.items()
    }  # fmt: skip


def _links(pairs: Sequence[Pair], numbers: Sequence[int]) -> set[tuple[int, int]]:
    """Each number with the first one of every split."""
    firsts: dict[str | None, int] = {}
    for number in numbers:
        firsts.setdefault(pairs[number].role, number)
    return {
        (min(number, first), max(number, first)) for number in numbers for first in firsts.values() if first != number
    }


def _without_copies(pairs: Sequence[Pair], hashes: Sequence[Hashes]) -> list[int]:
    """Numbers of the pairs whose H&E no earlier pair of the split has."""
    seen: set[tuple[str | None, bytes]] = set()
    kept = []
    for number, (pair, (content, _)) in enumerate(zip(pairs, hashes, strict=True)):
        if content is None or (pair.role, content) not in seen:
            kept.append(number)
        if content is not None:
            seen.add((pair.role, content))
    return kept


def _between(one: Pair, other: Pair) -> Between:
    if (one.role or "train") != (other.role or "train"):
        return "splits"
    known = one.group is not None and other.group is not None
    return "groups" if known and one.group != other.group else ""
