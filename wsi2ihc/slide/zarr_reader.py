"""Read slides in OME-Zarr, from this program and other writers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from ..arrays import RGB, RGBImage
from ..errors import OptionError, SlideNotFoundError, UnreadableSlideError, Wsi2IhcError
from ..geometry import Region, Size
from .facts import changed_at, checked_levels, identity_of_choice, remarks
from .image_choice import Choice, remark_on_others, the_slide
from .jpeg_tiles import damaged
from .pixel_kinds import PixelKind
from .protocol import ImageEntry, SlideInfo
from .reader import SlideReader
from .resolution import Mpp, Stated, resolve
from .zarr_metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    Multiscale,
    NotAnImageError,
    multiscale_kind,
    multiscale_of,
    size_in,
)

if TYPE_CHECKING:
    import zarr

logger = logging.getLogger(__name__)

MAX_CHUNK_BYTES = 2**28
"""Largest decoded chunk: any window that touches it needs the whole chunk."""

_MAX_SERIES = 256
_HASHED_PX = 512
_BLOCK_PX = 2048

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _ZarrImage:
    """An image in the file (a `Candidate`)."""

    number: int
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
        """Create the entry of a listing."""
        pixels = "8-bit RGB" if self.kind.is_rgb else self.kind.problem
        return ImageEntry(self.name, self.size, self.number, None, 1, len(self.arrays), self.mpp, pixels, chosen)


class ZarrReader(SlideReader):
    """A slide in OME-Zarr 0.4 or 0.5.

    Memory bound: the chunks that a block of 2048² px touches, each at most `MAX_CHUNK_BYTES`.

    Parameters
    ----------
    path
        The folder, or a URL.
    stated_mpp
        The resolution that the caller states.
    choice
        The image that the caller wants.

    Raises
    ------
    OptionError
        If the file does not have the image of ``choice``.
    SlideNotFoundError
        If nothing exists at this path or URL.
    UnreadableSlideError
        If it is not an OME-Zarr of 8-bit RGB, or is damaged.
    """

    def __init__(self, path: str | Path, stated_mpp: Stated | None, choice: Choice, name: str) -> None:
        super().__init__(path, name)
        self._check_metadata(path)
        with self._explained():
            images = self._images(str(path))
        image = self._chosen(images, choice)
        self._axes = image.multiscale.axes
        self._arrays = image.arrays
        for array in image.arrays:
            self._check_array(array)
        with self._explained():
            self._store.codecs = {array.path: _codec(array) for array in image.arrays if not array.shards}
            self._info = self._describe(image, images, stated_mpp, choice)
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

    def _check_metadata(self, path: str | Path) -> None:
        for file in (path / name for name in METADATA) if isinstance(path, Path) else ():
            if file.is_file() and file.stat().st_size > MAX_METADATA_BYTES:
                raise UnreadableSlideError(
                    f"{self._name}: {file.name} has {file.stat().st_size:,} bytes, more than any slide's; "
                    "the OME-Zarr is damaged: copy it again from its source"
                )

    def _images(self, address: str) -> list[_ZarrImage]:
        """Return the image of the group, or those of its numbered groups, as bioformats2raw arranges them."""
        import zarr
        from zarr.storage import FsspecStore, LocalStore

        from .zarr_chunks import CheckedStore

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
            if image.number == choice.series:
                if not image.kind.is_rgb:
                    raise image.kind.refusal(self._name)
                return image
        numbers = ", ".join(str(image.number) for image in images[:20])
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
        self, image: _ZarrImage, images: Sequence[_ZarrImage], stated: Stated | None, choice: Choice
    ) -> SlideInfo:
        sizes = [size_in(self._axes, array.shape) for array in self._arrays]
        full = sizes[0]
        downsamples = [(full.width / size.width + full.height / size.height) / 2 for size in sizes]
        levels = checked_levels(self._name, [(size.width, size.height) for size in sizes], downsamples)
        resolution = resolve(stated, image.mpp, None)
        notes = (*image.multiscale.problems, image.kind.note, *remark_on_others(images, image), self._missing())
        return SlideInfo(
            name=self._name,
            reader="zarr",
            vendor="ome-zarr",
            levels=levels,
            mpp=resolution.mpp,
            mpp_source=resolution.source,
            mpp_option=resolution.option,
            bounds=Region(0, 0, full.width, full.height),
            quickhash=identity_of_choice(self._hash(), choice),
            changed_at=self._changed_at(),
            problems=(*resolution.problems, *remarks(levels, None, None), *filter(None, notes)),
            images=tuple(one.entry(chosen=one.number == image.number) for one in images),
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
        middle = Region(x, y, _HASHED_PX, _HASHED_PX).intersection(Region(0, 0, size.width, size.height))
        try:
            digest.update(self._pixels(len(self._arrays) - 1, middle).tobytes())
        except Exception as error:  # of any kind: damage here must not prevent opening the slide
            logger.debug("%s: the middle cannot be read (%s)", self._name, error)
        return f"sha256:{digest.hexdigest()}"

    def _changed_at(self) -> int | None:
        files = [self._path / name for name in METADATA] if isinstance(self._path, Path) else []
        return next((changed_at(file) for file in files if file.is_file()), None)

    def _pixels(self, level: int, region: Region) -> RGBImage:
        """Read the pixels of a region inside a level."""
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


def _codec(array: zarr.Array[Any]) -> tuple[str, int]:
    """Return the compression of an array, and the bytes of a decoded chunk."""
    from .zarr_chunks import codec_of

    try:
        return codec_of(array), math.prod(array.chunks)
    except ValueError as error:
        raise NotAnImageError(str(error)) from error


def _image(number: int, name: str, group: zarr.Group, multiscale: Multiscale) -> _ZarrImage:
    import zarr

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
