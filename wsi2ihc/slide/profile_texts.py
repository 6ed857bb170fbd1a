"""A colour profile without what it says beside colours.

A scanner's profile can name the scanner and its serial number, the laboratory, a person, a date. None of that belongs
into an output, so only the tags that transforms are made of are kept, from a list; descriptions are replaced by neutral
ones, and what the header says of devices, makers and times is cleared. Transforms stay the same to the bit.
"""

from __future__ import annotations

import struct

_HEADER_BYTES = 128
_MAX_BYTES = 2**24
_MAX_TAGS = 256

_COLOUR_TAGS = frozenset(
    b"rXYZ gXYZ bXYZ rTRC gTRC bTRC kTRC wtpt bkpt chad cicp A2B0 A2B1 A2B2 B2A0 B2A1 B2A2 D2B0 D2B1 D2B2 D2B3 "
    b"B2D0 B2D1 B2D2 B2D3".split()
)
"""ICC.1:2022, 9.2: what transforms are made of. All others, private ones too, are left out."""

_KEPT_OF_HEADER = (
    slice(8, 12),  # version
    slice(12, 24),  # class, colour space, connection space
    slice(36, 40),  # signature
    slice(64, 68),  # rendering intent
    slice(68, 80),  # illuminant
)
"""ICC.1:2022, 7.2. The rest names programs, platforms and devices, or is a hash of all bytes."""

_DATE = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
_COPYRIGHT = "No copyright notice is kept"


def without_texts(profile: bytes, description: str = "Colors of the slide") -> bytes:
    """A profile of the same colours that says nothing else.

    Raises
    ------
    ValueError
        If its header or its table of tags is damaged.
    """
    try:
        tags = _colour_tags(profile)
    except struct.error as error:
        raise ValueError(f"the colour profile is cut off ({error})") from None
    multilingual = profile[8] >= 4
    tags[b"desc"] = _multilingual(description) if multilingual else _described(description)
    tags[b"cprt"] = _multilingual(_COPYRIGHT) if multilingual else b"text\0\0\0\0" + _COPYRIGHT.encode() + b"\0"
    header = bytearray(_HEADER_BYTES)
    for part in _KEPT_OF_HEADER:
        header[part] = profile[part]
    header[24:36] = _DATE
    return _assembled(header, tags)


def _colour_tags(profile: bytes) -> dict[bytes, bytes]:
    """The tags that transforms are made of."""
    if len(profile) > _MAX_BYTES:
        raise ValueError("the colour profile is too large")
    count = struct.unpack_from(">I", profile, _HEADER_BYTES)[0]
    if count > _MAX_TAGS:
        raise ValueError("the colour profile has too many tags")
    tags: dict[bytes, bytes] = {}
    for number in range(count):
        name, start, size = struct.unpack_from(">4sII", profile, _HEADER_BYTES + 4 + 12 * number)
        if name in _COLOUR_TAGS:
            if start + size > len(profile):
                raise ValueError("the colour profile is cut off")
            tags[name] = _exact(profile[start : start + size])
    return tags


def _exact(element: bytes) -> bytes:
    """A tag's element without what follows its numbers."""
    kind = element[:4]
    if kind == b"XYZ ":
        return element[:20]
    if kind == b"curv":
        return element[: 12 + 2 * struct.unpack_from(">I", element, 8)[0]]
    if kind == b"para":
        parameters = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}.get(struct.unpack_from(">H", element, 8)[0], 7)
        return element[: 12 + 4 * parameters]
    if kind == b"sf32":
        return element[:44]
    return element


def _multilingual(text: str) -> bytes:
    """A text as profiles of version 4 have it (ICC.1:2022, 10.15)."""
    encoded = text.encode("utf-16-be")
    return struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", len(encoded), 28) + encoded


def _described(text: str) -> bytes:
    """A description as profiles of version 2 have it (ICC.1:2001-04, 6.5.17)."""
    encoded = text.encode("ascii") + b"\0"
    return struct.pack(">4sII", b"desc", 0, len(encoded)) + encoded + bytes(4 + 4 + 2 + 1 + 67)


def _assembled(header: bytearray, tags: dict[bytes, bytes]) -> bytes:
    """A profile of these tags; equal ones are stored once."""
    start = _HEADER_BYTES + 4 + 12 * len(tags)
    table, body = bytearray(struct.pack(">I", len(tags))), bytearray()
    places: dict[bytes, int] = {}
    for name in sorted(tags):
        element = tags[name]
        if element not in places:
            body += bytes(-(start + len(body)) % 4)
            places[element] = start + len(body)
            body += element
        table += struct.pack(">4sII", name, places[element], len(element))
    body += bytes(-len(body) % 4)
    header[0:4] = struct.pack(">I", start + len(body))
    return bytes(header + table + body)
