"""Every pixel of train and validation, before a long run: is all of it readable, and nothing of it there twice?"""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError
from wsi2ihc.text import pluralize

from .images import THREADS, pairs_to_open, read_pair, room_for
from .pairs import Pair

_STAINS = ("H&E", "IHC")
_Alike: TypeAlias = list[tuple[str, list[Pair]]]
"""Pairs, by path, of which the images of one stain have the same pixels; and that stain."""


def decode_pairs(pairs: Iterable[Pair], progress: Callable[[int, int], None] | None = None) -> tuple[str, ...]:
    """Decode every pair of train and validation, and look for images that are there twice.

    Headers do not tell that a file is truncated, nor names that two files are the same picture. Only hashes are kept,
    so memory does not grow with the patches. Those of role test are not opened.

    Parameters
    ----------
    pairs:
        of all roles, or of some
    progress:
        called with the number of pairs that are done and that of all

    Returns
    -------
    tuple[str, ...]
        Warnings, one line each: pairs whose H&E and IHC are the same image, images that train and validation share,
        which flatters every figure, and images that one of them has more than once. Images of one color alone (empty
        background) are not compared.

    Raises
    ------
    DatasetError
        At the first pair by path that cannot be decoded, is no 8-bit RGB image, or has images of two sizes; or if
        both images are the same in every pair.
    """
    opened = pairs_to_open(pairs)
    hashes: list[tuple[bytes | None, ...]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about damaged files: an error that names the file follows
        pool = ThreadPoolExecutor(THREADS)
        try:
            for done, found in enumerate(pool.map(_hashes_of, opened), 1):
                hashes.append(found)
                if progress:
                    progress(done, len(opened))
        finally:
            pool.shutdown(cancel_futures=True)  # or an interrupt would wait for all that is queued
    unstained = [pair for pair, (he, ihc) in zip(opened, hashes, strict=True) if he is not None and he == ihc]
    if len(unstained) == len(opened):
        raise DatasetError(
            f"the H&E and the IHC of every pair have the same pixels ({opened[0].he} and all others); "
            "put the images of both stains where they belong"
        )
    alike = _alike(opened, hashes)
    return (*_unstained(unstained), *_shared(alike), *_repeated(alike))


def _hashes_of(pair: Pair) -> tuple[bytes | None, ...]:
    with room_for(pair):
        return tuple(_hash_of(image) for image in read_pair(pair))


def _hash_of(image: RGBImage) -> bytes | None:
    """None for an image of one colour: that is empty glass, and alike without being the same."""
    if (image == image[0, 0]).all():
        return None
    content = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
    content.update(repr(image.shape).encode())
    return content.digest()


def _alike(pairs: Sequence[Pair], hashes: Sequence[tuple[bytes | None, ...]]) -> _Alike:
    seen: dict[tuple[str, bytes], list[Pair]] = defaultdict(list)
    for pair, own in zip(pairs, hashes, strict=True):
        for stain, content in zip(_STAINS, own, strict=True):
            if content is not None:
                seen[stain, content].append(pair)
    return [(stain, members) for (stain, _), members in seen.items() if len(members) > 1]


def _unstained(pairs: Sequence[Pair]) -> Iterator[str]:
    """Pairs that are no pairs."""
    if pairs:
        verb = "has" if len(pairs) == 1 else "have"
        yield (
            f"{len(pairs)} of the pairs {verb} the same pixels in H&E and IHC, first {pairs[0].he}: a copy was put in "
            "the place of one of them"
        )


def _shared(alike: _Alike) -> Iterator[str]:
    """What is on both sides."""
    examples: list[str] = []
    shared: set[Pair] = set()
    for stain, members in alike:
        train, validation = _of(members, "train"), _of(members, "validation")
        if train and validation:
            examples.append(f"the {stain} of {train[0].he} (train) and of {validation[0].he} (validation)")
            shared.update(validation)
    if shared:
        yield (
            f"{examples[0]} have the same pixels, and images of {pluralize(len(shared), 'validation pair')} in all are "
            "also in train: that flatters every figure; remove them, or keep them in one group"
        )


def _repeated(alike: _Alike) -> Iterator[str]:
    """What is there more than once on one side."""
    for role in ("train", "validation"):
        again = {pair for _, members in alike for pair in _of(members, role)[1:]}
        if again:
            yield f"{pluralize(len(again), 'pair')} of {role} with an image that has the pixels of another pair there"


def _of(pairs: Iterable[Pair], role: str) -> list[Pair]:
    return [pair for pair in pairs if (pair.role or "train") == role]
