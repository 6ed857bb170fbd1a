"""Which patches may show the same tissue: equal codes of places vote for a pair of patches, a turn and a shift.

Codes that differ in a few bits are found by several tables, each of which sorts all codes by some of their bits: equal
keys stand side by side. Whether the other bits agree, too, is looked at right away, and only what agrees is kept. A
pair of patches is a candidate if several places vote for the same turn and, to a few px, the same shift. Chance does
not do that: among 860,000 pairs of patches that share nothing, none had three such votes.

Time grows with the number of codes (as sorting does), not with the number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .fingerprints import Fingerprint, turn_matrix, turns_between

TABLES = 6
"""Of which each finds about half of the places that are the same."""

KEY_BITS, LOW_BITS = 22, 38
"""Of a key, drawn from so many of the lowest frequencies, which noise and compression change least."""

MOST_DIFFERENT_BITS = 14
"""Of 61. Places that are the same differ in 2 to 8 on average, others in 30."""

NEIGHBOURS = 48
"""Equal keys that are compared with each. Commoner ones are of no use, and a patch that is there a hundred times is
still linked with its next copies."""

LEAST_VOTES = 3

CELL_PX = 6.0
"""Shifts that differ by less are taken for one."""

PART = 1_000_000
"""Pairs of places of which votes are counted at once."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Two patches that may show the same tissue.

    first, second:  their numbers, first < second
    turn:           what brings the first into the second's orientation, as `turn_matrix` numbers it
    shift_px:       and then onto it: (x, y) between their centres, in reduced px
    votes:          places that say so
    """

    first: int
    second: int
    turn: int
    shift_px: tuple[float, float]
    votes: int


def find_candidates(prints: Sequence[Fingerprint]) -> list[Candidate]:
    """All pairs of fingerprints that have enough votes, each with the turn and shift that has the most.

    Memory: about 100 bytes a place, and 30 for each pair of places that agree.
    """
    places = _Places.of(prints)
    one, other = _equal_places(places)
    candidates = []
    for part in _parts(places.patch[one]):
        first, second = places.patch[one[part]], places.patch[other[part]]
        turn = turns_between()[places.turns[one[part]], places.turns[other[part]]].astype(np.int64)
        shift = places.xy[other[part]] - _turned(places.xy[one[part]], turn)
        candidates += _most_voted(first, second, turn, shift, len(prints))
    return candidates


def _parts(patch: Numbers) -> Iterator[slice]:
    """All pairs of places, sorted by the first one's patch, in parts of about `PART`; no patch is in two of them."""
    starts = [*np.flatnonzero(np.diff(patch, prepend=-1)), len(patch)]
    begin = 0
    for end in starts[1:]:
        if end - begin >= PART or end == len(patch):
            yield slice(begin, int(end))
            begin = int(end)


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """The places of all patches, one after another."""

    codes: npt.NDArray[np.uint64]
    turns: npt.NDArray[np.uint8]
    xy: npt.NDArray[np.float32]
    patch: Numbers

    @classmethod
    def of(cls, prints: Sequence[Fingerprint]) -> _Places:
        counts = [len(one.codes) for one in prints]
        return cls(
            np.concatenate([np.zeros(0, np.uint64), *(one.codes for one in prints)]),
            np.concatenate([np.zeros(0, np.uint8), *(one.turns for one in prints)]),
            np.concatenate([np.zeros((0, 2), np.float32), *(one.xy for one in prints)]),
            np.repeat(np.arange(len(prints)), counts),
        )


def _equal_places(places: _Places) -> tuple[Numbers, Numbers]:
    """Pairs of places of two patches whose codes agree, each pair once; the first is of the earlier patch."""
    draw = np.random.default_rng(0)
    found = [np.zeros(0, np.int64)]
    count = len(places.codes)
    for _ in range(TABLES):
        bits = draw.permutation(LOW_BITS)[:KEY_BITS]
        mask = np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64))
        keys = places.codes & mask
        order = np.argsort(keys, kind="stable")
        keys, codes, patch = keys[order], places.codes[order], places.patch[order]
        for step in range(1, min(NEIGHBOURS, count - 1) + 1):
            at = np.flatnonzero((keys[step:] == keys[:-step]) & (patch[step:] != patch[:-step]))
            at = at[_different_bits(codes[at], codes[at + step]) <= MOST_DIFFERENT_BITS]
            # the order is stable, so the earlier patch comes first
            found.append(order[at] * count + order[at + step])
    pairs = np.unique(np.concatenate(found))
    return pairs // max(count, 1), pairs % max(count, 1)


def _different_bits(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """How many bits differ: sums of neighbouring bits, then of pairs, of fours, and all bytes by one product."""
    bits = one ^ other
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (bits * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _turned(xy: npt.NDArray[np.float32], turn: Numbers) -> npt.NDArray[np.float32]:
    matrices = np.stack([turn_matrix(one) for one in range(8)]).astype(np.float32)
    return np.asarray(np.einsum("nij,nj->ni", matrices[turn], xy), np.float32)


def _most_voted(
    first: Numbers, second: Numbers, turn: Numbers, shift: npt.NDArray[np.float32], patches: int
) -> list[Candidate]:
    """Count votes in cells of shifts, on four grids, so that no group of equal shifts is cut by a border of cells."""
    pair = (first * patches + second) * 8 + turn
    lowest = shift.min(axis=0) - CELL_PX
    wide = int((shift.max() - lowest.min()) // CELL_PX) + 3
    best: dict[tuple[int, int], Candidate] = {}
    for left, above in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)):
        cell = ((shift - lowest) / CELL_PX + np.array([left, above])).astype(np.int64)
        keys, inverse, votes = np.unique(
            (pair * wide + cell[:, 1]) * wide + cell[:, 0], return_inverse=True, return_counts=True
        )
        sums = [np.bincount(inverse, shift[:, axis]) for axis in (0, 1)]
        for at in np.flatnonzero(votes >= LEAST_VOTES):
            key, count = int(keys[at]) // wide**2, int(votes[at])
            names = (key // 8 // patches, key // 8 % patches)
            if names not in best or count > best[names].votes:
                shift_px = (float(sums[0][at]) / count, float(sums[1][at]) / count)
                best[names] = Candidate(*names, key % 8, shift_px, count)
    return [best[names] for names in sorted(best)]
