"""Read OME-Zarr slides."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import imagecodecs
import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from ...errors import OptionError, SlideNotFoundError, UnreadableSlideError, Wsi2IhcError
from ...geometry import RGB, Region, RGBImage, Size
from ...text import pluralize
from ..image_choice import Choice, remarks_on_unused, the_slide
from ..jpeg_tiles import damaged
from ..level_factors import mean_factor
from ..metadata import GivenResolution, Mpp, positive_number, resolve_mpp, unit_to_um
from ..protocol import ImageEntry, PixelKind, SlideInfo
from .base import SlideReader, both, changed_at, checked_levels, fingerprint_of_choice, remarks

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
"""Names of the files that hold metadata, in both formats of Zarr."""

MAX_METADATA_BYTES = 16 * 2**20  # largest file of metadata

MAX_LEVELS = 64
VERSIONS = ("0.4", "0.5")
_AXES = frozenset("tczyx")
_RGB_COLORS = ("FF0000", "00FF00", "0000FF")


class NotAnImageError(ValueError):
    """Metadata that do not describe a supported image; the message follows the name of the file."""


@dataclass(frozen=True, slots=True)
class ZarrLevel:
    """One dataset of a multiscale image: its path in the group, and µm per px along (x, y) if known."""

    path: str
    mpp: Mpp | None


@dataclass(frozen=True, slots=True)
class Multiscale:
    """A multiscale image."""

    axes: tuple[str, ...]  # names of the arrays' axes
    levels: tuple[ZarrLevel, ...]  # in the order of the metadata, which has the largest first
    channels: str  # kind of the channels: "rgb", "other" or "" (not stated)
    problems: tuple[str, ...]  # warnings, one sentence each


def multiscale_of(attributes: Mapping[str, Any]) -> Multiscale | None:
    """Parse the image that the attributes of a group describe; None if they do not describe one.

    Raises `NotAnImageError` if they describe an unsupported image.
    """
    facts = attributes.get("ome", attributes)
    if not isinstance(facts, Mapping):
        raise NotAnImageError("its metadata are damaged")
    if "plate" in facts or "well" in facts:
        raise NotAnImageError("it is a plate of wells, not a slide; name one of its images")
    entries = facts.get("multiscales")
    if entries is None:
        return None
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], Mapping):
        raise NotAnImageError("its metadata are damaged")
    entry = entries[0]
    version = str(facts.get("version") or entry.get("version") or "")
    if version and version not in VERSIONS:
        raise NotAnImageError(f"it is OME-Zarr {version:.10}; versions {' and '.join(VERSIONS)} are read")
    axes, units = _axes(entry.get("axes"))
    levels, problems = _levels(entry, axes, units)
    if len(entries) > 1:
        problems = (*problems, f"It has {len(entries)} multiscale images in one group; the first is used.")
    return Multiscale(axes, levels, _channels(facts.get("omero")), problems)


def _axes(stated: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """Parse the names of the axes, and their units if stated."""
    if not isinstance(stated, list) or not all(isinstance(axis, Mapping) for axis in stated):
        raise NotAnImageError(f"it does not describe its axes as OME-Zarr {VERSIONS[0]} does")
    names = tuple(str(axis.get("name")) for axis in stated)
    if not set(names) <= _AXES or len(set(names)) != len(names) or not {"c", "y", "x"} <= set(names):
        shown = ", ".join(names)[:60]
        raise NotAnImageError(f"its axes are {shown}; a slide has c, y and x, beside t and z of one plane")
    return names, {str(axis.get("name")): str(axis["unit"]) for axis in stated if axis.get("unit")}


def _levels(
    entry: Mapping[str, Any], axes: Sequence[str], units: Mapping[str, str]
) -> tuple[tuple[ZarrLevel, ...], tuple[str, ...]]:
    datasets = entry.get("datasets")
    if not isinstance(datasets, list) or not 0 < len(datasets) <= MAX_LEVELS:
        raise NotAnImageError("it does not name its levels")
    common = _scale(entry.get("coordinateTransformations"), len(axes))
    levels = []
    problems: list[str] = []
    scales_um = {name: unit_to_um(units[name]) if name in units else None for name in "xy"}
    for name, scale in scales_um.items():
        if scale is None:
            stated = f"in {units[name]!r:.30}, which is not a known unit" if name in units else "without a unit"
            problems.append(f"It states the size of pixels along {name} {stated}.")
    for dataset in datasets:
        path = dataset.get("path") if isinstance(dataset, Mapping) else None
        parts = path.split("/") if isinstance(path, str) else [""]
        if any(part in ("", ".", "..") or "\\" in part for part in parts):
            raise NotAnImageError("it names a level that lies outside of it")
        own = _scale(dataset.get("coordinateTransformations"), len(axes))
        sides = (
            None if scale is None else own[axes.index(name)] * common[axes.index(name)] * scale
            for name, scale in scales_um.items()
        )
        levels.append(ZarrLevel(str(path), both(*sides)))
    return tuple(levels), tuple(problems)


def _scale(transformations: Any, count: int) -> list[float]:
    """Return the scale in a list of transformations; ones if there is none."""
    for one in transformations if isinstance(transformations, list) else ():
        if isinstance(one, Mapping) and one.get("type") == "scale":
            values = one.get("scale")
            numbers = [positive_number(value) for value in values] if isinstance(values, list) else []
            if len(numbers) != count or None in numbers:
                raise NotAnImageError("its scale is not one positive number for each axis")
            return [number for number in numbers if number is not None]
    return [1.0] * count


def _channels(omero: Any) -> str:
    """Determine the kind of the channels from the rendering settings."""
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list) or not channels:
        return ""
    stated = [one.get("color") if isinstance(one, Mapping) else None for one in channels]
    colors = tuple(str(color).lstrip("#").upper()[:6] for color in stated)
    return "rgb" if colors == _RGB_COLORS else "other"


def multiscale_kind(image: Multiscale, shape: Sequence[int], dtype: str) -> PixelKind:
    """Determine the kind of the pixels of level 0."""
    if len(shape) != len(image.axes):
        return PixelKind(0, 0, f"have {len(shape)} axes, while the metadata name {len(image.axes)}")
    sides = dict(zip(image.axes, shape, strict=True))
    samples = sides["c"]
    if dtype != "uint8":
        return PixelKind(samples, 0, f"are of the type {dtype:.20}")
    planes = sides.get("t", 1) * sides.get("z", 1)
    if planes != 1:
        return PixelKind(samples, 8, f"lie in {planes} planes (a focus stack or a time series)")
    if samples != 3:
        return PixelKind(samples, 8, f"have {pluralize(samples, 'channel')}")
    if image.channels == "other":
        return PixelKind(samples, 8, "have three channels that are not red, green and blue (omero, color)")
    unsaid = "It does not say what its three channels are; they are taken for red, green and blue."
    return PixelKind(samples, 8, note="" if image.channels else unsaid)


def size_in(axes: Sequence[str], shape: Sequence[int]) -> Size:
    """Return the size of an array in px."""
    return Size(int(shape[axes.index("x")]), int(shape[axes.index("y")]))


logger = logging.getLogger(__name__)

MAX_CHUNK_BYTES = 2**28  # largest decoded chunk: any window that touches it needs the whole chunk

_MAX_SERIES = 256
_HASHED_PX = 512
_BLOCK_PX = 2048


@dataclass(frozen=True, slots=True)
class _ZarrImage:
    """An image in the file (a `CandidateImage`)."""

    series: int
    name: str
    multiscale: Multiscale
    arrays: tuple[zarr.Array[Any], ...]
    kind: PixelKind
    is_companion: bool = False

    @property
    def size(self) -> Size:
        return size_in(self.multiscale.axes, self.arrays[0].shape)

    @property
    def mpp(self) -> Mpp | None:
        return self.multiscale.levels[0].mpp

    def entry(self, *, chosen: bool) -> ImageEntry:
        pixels = "8-bit RGB" if self.kind.is_rgb else self.kind.problem
        return ImageEntry(self.name, self.size, self.series, None, 1, len(self.arrays), self.mpp, pixels, chosen)


class ZarrReader(SlideReader):
    """A slide in OME-Zarr 0.4 or 0.5.

    Memory bound: the chunks that a block of 2048² px touches, each at most `MAX_CHUNK_BYTES`.

    Raises
    ------
    OptionError
        If the file does not have the image of ``choice``.
    SlideNotFoundError
        If nothing exists at this path or URL.
    UnreadableSlideError
        If it is not an OME-Zarr of 8-bit RGB, or is damaged.
    """

    def __init__(self, path: str | Path, given: GivenResolution | None, choice: Choice, name: str) -> None:
        super().__init__(path, name)
        with self._explained():
            images = self._images(str(path))
        image = self._chosen(images, choice)
        self._axes = image.multiscale.axes
        self._arrays = image.arrays
        for array in image.arrays:
            self._check_array(array)
        with self._explained():
            self._store.codecs = {
                array.path: (codec_of(array), math.prod(array.chunks)) for array in image.arrays if not array.shards
            }
            self._info = self._describe(image, images, given, choice)
        self._probe()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Convert zarr's exceptions, of nearly any kind, to errors that name the slide."""
        try:
            yield
        except (Wsi2IhcError, MemoryError):
            raise
        except NotAnImageError as error:
            raise UnreadableSlideError(f"{self._name}: {error}") from error
        except FileNotFoundError as error:
            raise SlideNotFoundError(f"{self._name}: there is no OME-Zarr under this address") from error
        except Exception as error:
            raise UnreadableSlideError(
                f"{self._name}: the OME-Zarr cannot be read ({self._reason(error)[:150]}); copy it again from its "
                "source"
            ) from error

    def _images(self, address: str) -> list[_ZarrImage]:
        """Return the image of the group, or those of its numbered groups, as bioformats2raw arranges them."""
        local = isinstance(self._path, Path)
        self._store = CheckedStore(
            LocalStore(address, read_only=True) if local else FsspecStore.from_url(address, read_only=True)
        )
        group = zarr.open_group(self._store, mode="r")
        attributes: dict[str, Any] = dict(group.attrs)
        multiscale = multiscale_of(attributes)
        if multiscale is not None:
            return [_image(0, "", group, multiscale)]
        if attributes.get("ome", attributes).get("bioformats2raw.layout") is None:
            raise NotAnImageError("it is a Zarr group, but not an OME-Zarr image (no multiscales in its attributes)")
        images = []
        for number in range(_MAX_SERIES):
            if str(number) not in group:
                break
            part = cast("zarr.Group", group[str(number)])
            found = multiscale_of(dict(part.attrs))
            if found is not None:
                images.append(_image(number, str(dict(part.attrs).get("name", ""))[:80], part, found))
        if not images:
            raise NotAnImageError("it holds no image")
        return images

    def _chosen(self, images: Sequence[_ZarrImage], choice: Choice) -> _ZarrImage:
        if choice.page is not None:
            raise OptionError(f"{self._name}: --page {choice.page}: an OME-Zarr has no pages; leave the option out")
        if choice.series is None:
            return the_slide(self._name, images)
        for image in images:
            if image.series == choice.series:
                if not image.kind.is_rgb:
                    raise image.kind.refusal(self._name)
                return image
        numbers = ", ".join(str(image.series) for image in images[:20])
        raise OptionError(f"{self._name}: --series {choice.series}: the file has series {numbers}")

    def _check_array(self, array: zarr.Array[Any]) -> None:
        """Refuse a level with chunks that are too large, or with another kind of pixels than level 0."""
        if math.prod(array.chunks) > MAX_CHUNK_BYTES:
            raise UnreadableSlideError(
                f"{self._name}: it is stored in chunks of {'×'.join(map(str, array.chunks))}, each of which would have "
                "to be decoded as a whole; write it with smaller chunks"
            )
        others = [side for axis, side in zip(self._axes, array.shape, strict=True) if axis in "tz"]
        if str(array.dtype) != "uint8" or array.shape[self._axes.index("c")] != 3 or any(side != 1 for side in others):
            raise UnreadableSlideError(
                f"{self._name}: its level {array.basename} is of another kind than the first; copy it again from its "
                "source"
            )

    def _describe(
        self, image: _ZarrImage, images: Sequence[_ZarrImage], given: GivenResolution | None, choice: Choice
    ) -> SlideInfo:
        sizes = [size_in(self._axes, array.shape) for array in self._arrays]
        full = sizes[0]
        downsamples = [mean_factor(full, size) for size in sizes]
        levels = checked_levels(self._name, [(size.width, size.height) for size in sizes], downsamples)
        resolution = resolve_mpp(given, image.mpp, None)
        files = [self._path / name for name in METADATA] if isinstance(self._path, Path) else []
        notes = (*image.multiscale.problems, image.kind.note, *remarks_on_unused(images, image), self._missing())
        return SlideInfo(
            name=self._name,
            reader="zarr",
            vendor="ome-zarr",
            levels=levels,
            mpp=resolution.mpp,
            mpp_source=resolution.source,
            mpp_option=resolution.option,
            bounds=full.frame,
            quickhash=fingerprint_of_choice(self._hash(), choice),
            changed_at=next((changed_at(file) for file in files if file.is_file()), None),
            problems=(*resolution.problems, *remarks(levels, None, None), *filter(None, notes)),
            images=tuple(one.entry(chosen=one.series == image.series) for one in images),
        )

    def _missing(self) -> str:
        """Describe chunks of level 0 that are missing from the file; "" if there are none."""
        array = self._arrays[0]
        if not isinstance(self._path, Path):
            return ""
        sides = zip(array.shape, array.shards or array.chunks, strict=True)
        count = math.prod(-(-length // side) for length, side in sides)
        names = (name for *_, files in os.walk(self._path / array.path) for name in files)
        stored = sum(name not in METADATA for name in names)
        if stored >= count:
            return ""
        return (
            f"Missing chunks: {count - stored:,} of {count:,}; as the format says, they are read as its fill value "
            f"({array.fill_value}). If the file was copied, check that the copy is complete."
        )

    def _hash(self) -> str:
        """Compute the identity: SHA-256 of the arrays' metadata and of the center of the smallest level."""
        facts = [array.metadata.to_dict() for array in self._arrays]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        size = size_in(self._axes, self._arrays[-1].shape)
        x, y = (max(0, (side - _HASHED_PX) // 2) for side in (size.width, size.height))
        middle = Region(x, y, _HASHED_PX, _HASHED_PX).intersection(size.frame)
        try:
            digest.update(self._pixels(len(self._arrays) - 1, middle).tobytes())
        except Exception as error:  # of any kind: damage here must not prevent opening the slide
            logger.debug("%s: the middle cannot be read (%s)", self._name, error)
        return f"sha256:{digest.hexdigest()}"

    def _pixels(self, level: int, region: Region) -> RGBImage:
        spans = {"x": slice(region.x, region.right), "y": slice(region.y, region.bottom), "c": slice(None)}
        found = np.asarray(self._arrays[level][tuple(spans.get(axis, 0) for axis in self._axes)])
        left = [axis for axis in self._axes if axis in spans]
        return np.ascontiguousarray(found.transpose([left.index(axis) for axis in "yxc"]))

    def _read_into(self, level: int, region: Region, out: RGBImage, fill: RGB) -> None:  # noqa: ARG002
        for y in range(region.y, region.bottom, _BLOCK_PX):
            for x in range(region.x, region.right, _BLOCK_PX):
                block = Region(x, y, _BLOCK_PX, _BLOCK_PX).intersection(region)
                try:
                    out[block.slices_in(region)] = self._pixels(level, block)
                # zarr and its codecs raise various errors for damage.
                except Exception as error:
                    downsample = self._info.levels[level].downsample
                    raise damaged(self._name, block, downsample, self._reason(error)) from error

    def _release(self) -> None:
        self._arrays = ()


def _image(number: int, name: str, group: zarr.Group, multiscale: Multiscale) -> _ZarrImage:
    arrays = [group[level.path] for level in multiscale.levels]
    if not all(isinstance(array, zarr.Array) for array in arrays):
        raise NotAnImageError("one of its levels is not an array")
    levels = list(zip(multiscale.levels, cast("list[zarr.Array[Any]]", arrays), strict=True))
    if not all(array.size for _, array in levels):
        raise NotAnImageError("one of its levels has no pixels")
    # The format requires the largest first, but not every writer complies.
    levels.sort(key=lambda pair: -pair[1].size)
    multiscale = dataclasses.replace(multiscale, levels=tuple(level for level, _ in levels))
    known = tuple(array for _, array in levels)
    return _ZarrImage(number, name, multiscale, known, multiscale_kind(multiscale, known[0].shape, str(known[0].dtype)))


CODECS = frozenset({"blosc", "zstd", "gzip", "zlib", "lz4"})  # compressions that are read, by their names in Zarr

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

    Raises `NotAnImageError` if it is not one of `CODECS`, or there are several.
    """
    names = []
    for codec in array.compressors:
        facts = codec.get_config() if hasattr(codec, "get_config") else codec.to_dict()
        names.append(str(facts.get("id") or facts.get("name") or "").removeprefix("numcodecs."))
    if len(names) > 1 or not set(names) <= CODECS or array.filters:
        raise NotAnImageError(f"its compression {', '.join(names)[:60] or 'with filters'} is not one that is read")
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
    """Return the size that the first frame states (RFC 8878, 3.1.1.1); None if it is not a frame of this size.

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
