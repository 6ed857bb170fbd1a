"""Refuse damaged chunks of a Zarr, and chunks that would decode to another size, before they are decoded.

numcodecs allocates the size that a stream states, and decodes a truncated Blosc stream to zeros.
"""

from __future__ import annotations

import stat
import zlib
from typing import TYPE_CHECKING, Any

import imagecodecs
from zarr.storage import LocalStore, WrapperStore

from .zarr_metadata import MAX_METADATA_BYTES, METADATA

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

CODECS = frozenset({"blosc", "zstd", "gzip", "zlib", "lz4"})
"""Compressions that are read, by their names in Zarr."""

MAX_FILE_BYTES = 2**36
"""Largest file of a chunk or shard; shards are read in parts, and chunks have smaller limits, see `check_chunk`."""

_GZIP_OR_ZLIB = 47  # zlib's wbits for either header
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class CheckedStore(WrapperStore["Store"]):
    """Store that checks chunks as they are read.

    ``codecs`` maps the path of an array to its compression and the bytes of a decoded chunk. Sharded arrays are left
    out: their chunks are read by byte ranges.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.codecs: dict[str, tuple[str, int]] = {}

    def _with_store(self, store: Store) -> CheckedStore:
        copy = CheckedStore(store)
        copy.codecs = self.codecs
        return copy

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """See `Store.get`.

        Raises
        ------
        ValueError
            If it is a damaged chunk.
        """
        self._check_file(key)
        value = await super().get(key, prototype, byte_range)
        if value is None or byte_range is not None or key.rpartition("/")[2] in METADATA:
            return value
        for path, (codec, chunk_bytes) in self.codecs.items():
            if key.startswith(f"{path}/" if path else ""):
                check_chunk(codec, value.to_bytes(), chunk_bytes)
                break
        return value

    def _check_file(self, key: str) -> None:
        """Refuse anything but regular files of a plausible size: a pipe would block, and a device never ends."""
        if not isinstance(self._store, LocalStore):
            return
        file = self._store.root / key
        try:
            status = file.stat()
        except (OSError, ValueError):  # zarr handles missing files
            return
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{file.name} is not a regular file")
        largest = MAX_METADATA_BYTES if file.name in METADATA else MAX_FILE_BYTES
        if status.st_size > largest:
            raise ValueError(f"{file.name} has {status.st_size:,} bytes, more than any slide's")


def codec_of(array: Any) -> str:
    """Return the compression of an array, "" if it has none.

    Raises
    ------
    ValueError
        If it is not one of `CODECS`, or there are several.
    """
    names = []
    for codec in array.compressors:
        facts = codec.get_config() if hasattr(codec, "get_config") else codec.to_dict()
        names.append(str(facts.get("id") or facts.get("name") or "").removeprefix("numcodecs."))
    if len(names) > 1 or not set(names) <= CODECS or array.filters:
        raise ValueError(f"its compression {', '.join(names)[:60] or 'with filters'} is not one that is read")
    return names[0] if names else ""


def check_chunk(codec: str, data: bytes, chunk_bytes: int) -> None:
    """Raise ValueError for a chunk that is truncated, or would decode to another size."""
    if len(data) > 2 * chunk_bytes + 65536:
        raise ValueError(f"a chunk of {chunk_bytes:,} bytes takes {len(data):,}")
    decoded: int | None = chunk_bytes
    if codec == "blosc":
        if len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data):
            raise ValueError("a Blosc stream ends too early")
        decoded = int.from_bytes(data[4:8], "little")
    elif codec == "lz4":
        decoded = int.from_bytes(data[:4], "little")
    elif codec == "zstd":
        decoded = _zstd_size(data, chunk_bytes)
    elif codec in ("gzip", "zlib"):
        decoded = len(zlib.decompressobj(_GZIP_OR_ZLIB).decompress(data, chunk_bytes + 1))
    elif not codec:
        decoded = len(data)
    if decoded != chunk_bytes:
        raise ValueError(f"a chunk of {chunk_bytes:,} bytes holds {decoded:,}" if decoded else "a chunk is damaged")


def _zstd_size(data: bytes, chunk_bytes: int) -> int | None:
    """Size that the first frame states (RFC 8878, 3.1.1.1); None if it is not a frame of this size.

    Streaming writers do not state it; such a frame is decoded into the space of a chunk.
    """
    if len(data) < 6 or data[:4] != _ZSTD_MAGIC:
        return None
    descriptor = data[4]
    single, size_flag, dictionary = descriptor >> 5 & 1, descriptor >> 6, descriptor & 3
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[dictionary]
    length = (1 if single else 0, 2, 4, 8)[size_flag]
    if not length:
        try:
            return len(imagecodecs.zstd_decode(data, out=chunk_bytes))
        except RuntimeError:  # of the codec
            return None
    return int.from_bytes(data[start : start + length], "little") + (256 if length == 2 else 0)
