"""Mutations of files: bytes, numbers and words in text, TIFF tags, and members of ZIP archives.

A mutant depends on the seed of its random generator and on the corpus alone, so that every input can be made again.
"""

from __future__ import annotations

import io
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], bytearray]
"""Takes the generator, the input and the words of the target's dictionary."""

LARGEST_BYTES = 4 << 20
"""Inputs grow no further: what takes a second for 4 MB takes hours for a gigabyte only if a parser is not linear."""

_INTEGERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_NUMBERS = (
    *b"0 -1 1 1e999 -1e308 nan NaN inf Infinity 0.0000000001 1e-320 99999999999999999999 4294967296 0x10 1_000".split(),
    *b'1,5 true null "7" [] {}'.split(),
    b"",
    "٣".encode(),
    b"9" * 5000,
)
_WORDS = (
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\x1b[2J",
    b"\r",
    b"\r\n",
    b"\n",
    b"\t",
    b'"',
    b"'",
    b",",
    b";",
    b"../",
    b"/dev/zero",
    b"=1+1",
    b"%s",
    b"{",
    b"}",
    b"[",
    b"]",
    b"<",
    b">",
    b"&amp;",
    b"&#0;",
    b"&x;",
    b"\\ud800",
    b"\xed\xa0\x80",
    "\u202e".encode(),
    "\U0001f52c".encode(),
    b"\\u0000",
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_TIFF_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes], words: Sequence[bytes], kinds: str) -> bytes:
    """One to six mutations of an input.

    Parameters
    ----------
    rng
        Decides everything.
    data, others
        The input, and others of its corpus to be spliced with.
    words
        Dictionary of the target.
    kinds
        Which structures to mutate beside bytes: "text", "tiff", "zip" or "length" (a JSON header after its length).
    """
    if kinds == "zip" and rng.random() < 0.75 and (repacked := _zip_member(rng, data, words)) is not None:
        return repacked
    if kinds == "length" and rng.random() < 0.75:
        return _length_prefixed(rng, data, words)
    result = bytearray(data)
    choices = {"text": _TEXT, "tiff": _TIFF}.get(kinds, _BYTES)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        if others and rng.random() < 0.05:
            other = rng.choice(others)
            result = result[: rng.randrange(len(result) + 1)] + other[rng.randrange(len(other) + 1) :]
        result = rng.choice(choices)(rng, result, words)
    return bytes(result[:LARGEST_BYTES])


def _place(rng: random.Random, data: bytearray) -> int:
    """Headers matter most, so half of the places lie in the first kilobyte."""
    return rng.randrange(min(len(data), 1024) if rng.random() < 0.5 else len(data)) if data else 0


def _flip(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)
    return data


def _set_integer(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    width = rng.choice((1, 2, 4, 8))
    place = _place(rng, data)
    value = rng.choice(_INTEGERS) % (1 << 8 * width)
    data[place : place + width] = value.to_bytes(width, rng.choice(("little", "big")))
    return data


def _remove(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    place = _place(rng, data)
    del data[place : place + rng.choice((1, 2, 4, 16, 64, 512))]
    return data


def _zero(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    place = _place(rng, data)
    end = min(len(data), place + rng.choice((4, 16, 128, 1024)))
    data[place:end] = bytes(end - place)
    return data


def _truncate(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    del data[rng.randrange(len(data) + 1) :]
    return data


def _duplicate(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    place = _place(rng, data)
    chunk = data[place : place + rng.choice((1, 4, 16, 128))]
    # now and then so often that a quadratic parser is noticed
    times = min(rng.choice((1, 2, 10, 1000)) if rng.random() < 0.9 else 1 << 20, (1 << 20) // max(1, len(chunk)))
    data[place:place] = chunk * times
    return data


def _insert_word(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    word = rng.choice(words) if words and rng.random() < 0.7 else rng.choice(_WORDS)
    place = _place(rng, data)
    times = rng.choice((1, 1, 1, 1, 2, 100)) if rng.random() < 0.97 else min(200_000, (1 << 20) // len(word))
    data[place:place] = word * times
    return data


def _replace_number(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    found = list(_NUMBER.finditer(bytes(data[:200_000])))
    if found:
        start, end = rng.choice(found).span()
        data[start:end] = rng.choice(_NUMBERS)
    return data


def _replace_word(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    found = list(re.finditer(rb"[\w.-]+", bytes(data[:200_000])))
    if found:
        start, end = rng.choice(found).span()
        data[start:end] = rng.choice([*words, *_WORDS])
    return data


def _swap_lines(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    lines = bytes(data).split(b"\n")
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    if rng.random() < 0.3:
        lines.insert(second, lines[first])
    else:
        lines[first], lines[second] = lines[second], lines[first]
    return bytearray(b"\n".join(lines))


def _nest(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    """Deep nesting ends recursive parsers."""
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"<a>", b"</a>"), (b"(", b")"), (b"[[a.", b"]]")))
    depth = rng.choice((10, 500, 5000, 100_000))
    place = _place(rng, data)
    data[place:place] = opening * depth + (closing * depth if rng.random() < 0.5 else b"")
    return data


def _change_tag(rng: random.Random, data: bytearray, words: Sequence[bytes]) -> bytearray:
    """Change an entry of a TIFF directory: its tag, type, count or value, or the values that it points to."""
    entries = _tiff_entries(data)
    if not entries:
        return _flip(rng, data, words)
    order, big, place = rng.choice(entries)
    kind, count = struct.unpack_from(order + ("HQ" if big else "HI"), data, place + 2)
    value_place = place + (12 if big else 8)
    what = rng.choice(("tag", "type", "count", "value", "value", "far", "far", "far"))
    value = rng.choice(_INTEGERS)
    if what == "tag":
        struct.pack_into(
            order + "H",
            data,
            place,
            rng.choice(
                (
                    254,
                    256,
                    257,
                    258,
                    259,
                    262,
                    266,
                    270,
                    273,
                    274,
                    277,
                    278,
                    279,
                    282,
                    284,
                    296,
                    317,
                    320,
                    322,
                    323,
                    324,
                    325,
                    330,
                    338,
                    339,
                    347,
                    530,
                    34675,
                    value % 65536,
                )
            ),
        )
    elif what == "type":
        struct.pack_into(order + "H", data, place + 2, rng.choice((*range(19), value % 65536)))
    elif what == "count":
        struct.pack_into(
            order + ("Q" if big else "I"),
            data,
            place + 4,
            rng.choice((value, count + 1, max(0, count - 1))) % (1 << (64 if big else 32)),
        )
    elif what == "value" or count * _TIFF_TYPE_BYTES.get(kind, 1) <= (8 if big else 4):
        width = rng.choice((2, 4))
        small = rng.choice((value, *range(12), 33003, 33005, 34712, 34887, 34892, 50000, 50001, 50002, 32773, 34925))
        struct.pack_into(order + {2: "H", 4: "I"}[width], data, value_place, small % (1 << 8 * width))
    else:
        (far,) = struct.unpack_from(order + ("Q" if big else "I"), data, value_place)
        width = _TIFF_TYPE_BYTES.get(kind, 1)
        far += width * rng.randrange(min(count, 1000) or 1)
        if far + width <= len(data):
            data[far : far + width] = (value % (1 << 8 * width)).to_bytes(width, "little" if order == "<" else "big")
    return data


def _tiff_entries(data: bytearray) -> list[tuple[str, bool, int]]:
    """(byte order, BigTIFF or not, place) of the entries of all directories, SubIFDs included."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]), "")
    found: list[tuple[str, bool, int]] = []
    try:
        if not order:
            return []
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        todo, seen = [struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]], set()
        while todo and len(found) < 500:
            at = todo.pop()
            if at in seen or not 0 < at < len(data):
                continue
            seen.add(at)
            (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
            size, first = (20, at + 8) if big else (12, at + 2)
            for number in range(min(count, 100)):
                place = first + size * number
                found.append((order, big, place))
                tag, _, items = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, place)
                if tag == 330 and items == 1:
                    todo.append(struct.unpack_from(order + ("Q" if big else "I"), data, place + (12 if big else 8))[0])
            todo.append(struct.unpack_from(order + ("Q" if big else "I"), data, first + size * min(count, 100))[0])
    except struct.error:
        pass
    return [entry for entry in found if entry[2] + 20 <= len(data)]


def _zip_member(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes | None:
    """The archive with one member mutated (right checksum), renamed, repeated or deflated; None if it is not a ZIP."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return None
    if not members:
        return None
    # the first member is torch's pickle, where most decisions are
    chosen = 0 if rng.random() < 0.6 else rng.randrange(len(members))
    name, content = members[chosen]
    what = rng.choice(("content",) * 6 + ("name", "twice", "drop", "bomb"))
    if what == "content":
        content = bytes(rng.choice(_BYTES)(rng, bytearray(content), words))
    elif what == "name":
        name = bytes(_flip(rng, bytearray(name.encode()), words)).decode("utf-8", "replace").replace("\0", "_")
    elif what == "bomb":
        content = content + bytes(64 << 20)
    members[chosen] = name, content
    if what == "twice":
        members.append((name, content[::-1]))
    elif what == "drop":
        del members[chosen]
    packed = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if what == "bomb" or rng.random() < 0.1 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return packed.getvalue()


def _length_prefixed(rng: random.Random, data: bytes, words: Sequence[bytes]) -> bytes:
    """A safetensors file with its JSON header mutated, and the length before it right."""
    length = int.from_bytes(data[:8], "little")
    header = rng.choice(_TEXT)(rng, bytearray(data[8 : 8 + length]), words)
    return len(header).to_bytes(8, "little") + bytes(header) + data[8 + length :]


_BYTES: tuple[Mutation, ...] = (
    _flip,
    _flip,
    _set_integer,
    _set_integer,
    _remove,
    _zero,
    _truncate,
    _duplicate,
    _insert_word,
    _replace_number,
)
_TEXT: tuple[Mutation, ...] = (
    _flip,
    _remove,
    _truncate,
    _duplicate,
    _insert_word,
    _insert_word,
    _replace_number,
    _replace_number,
    _replace_word,
    _swap_lines,
    _nest,
)
_TIFF: tuple[Mutation, ...] = (_change_tag,) * 8 + _BYTES
