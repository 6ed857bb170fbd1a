"""Slides that tiffslide reads: remote ones, pyramids in SubIFDs (this program's own output), what OpenSlide refuses."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..arrays import RGB, WHITE, RGBImage
from ..errors import SlideNotFoundError, UnreadableSlideError
from ..geometry import Region
from .facts import both, changed_at, checked_bounds, checked_levels, checked_profile, not_rgb, own_hash, remarks
from .jpeg_tiles import damaged
from .pixels import composited, fill_with
from .protocol import SlideInfo
from .reader import SlideReader
from .resolution import Stated, ome_facts, positive_number, resolve
from .tiff_facts import TiffFacts, TileTable, quiet_tifffile, tiff_facts, tile_table
from .tile_codecs import check_count, claimed_size

if TYPE_CHECKING:
    from tiffslide import TiffSlide

_BLOCK_PX = 2048
_MAX_SEGMENT_BYTES = 2**28
"""Each read decodes whole segments; a strip or tile that is larger decoded would be held in full for any window."""

_HEAD_BYTES = 4096
"""Enough of a tile to find the size that its stream claims; tables and comments come before it."""

_RGB, _YCBCR = 2, 6
_CONVERTS_YCBCR = (6, 7)
"""JPEG; for the rest tifffile gives YCbCr samples as they are."""

_warnings_lock = threading.Lock()


class TiffSlideReader(SlideReader):
    """A slide opened with tiffslide.

    Reads that do not take the fast path happen one at a time: the library shares one file position, and gains nothing
    from more threads.

    Parameters
    ----------
    path
        A file, or a URL that fsspec understands (https, s3, …).
    stated_mpp
        The resolution that the caller states, which replaces the slide's own.

    Raises
    ------
    SlideNotFoundError
        If there is nothing under this URL.
    UnreadableSlideError
        If tiffslide cannot open the file, or read from it, or its pixels are not 8-bit RGB.
    """

    def __init__(self, path: str | Path, stated_mpp: Stated | None) -> None:
        super().__init__(path, name_of(path))
        self._lock = threading.Lock()
        self._slide: TiffSlide | None = None
        try:
            with _quiet(), self._explained("open"):
                self._slide = _open(path)
                facts = tiff_facts(self._slide.ts_tifffile)
                self._check_pixels(facts)
                self._info = self._describe(self._slide, facts, stated_mpp)
                self._tables = self._level_tables(self._slide)
            self._alpha = facts.samples == 4
            self._premultiplied = facts.premultiplied
            self._check_segments()
            self._probe()
            if isinstance(path, Path):
                self._go_direct(path, self._tables)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn what the libraries raise into errors that name the slide.

        fsspec, tifffile and zarr meet damage with nearly every kind of exception.
        """
        try:
            yield
        except (UnreadableSlideError, MemoryError):
            raise
        except FileNotFoundError as error:
            raise SlideNotFoundError(f"{self._name}: there is no slide under this address") from error
        except ImportError as error:
            raise UnreadableSlideError(
                f"{self._name}: this kind of address needs another package ({self._reason(error)}); "
                'install the extra "remote", or copy the slide to a local disk'
            ) from error
        except Exception as error:
            raise UnreadableSlideError(
                f"{self._name}: tiffslide cannot {doing} it ({self._reason(error)}); copy it again from its source, "
                "or convert it to a tiled, pyramidal TIFF"
            ) from error

    def _check_pixels(self, facts: TiffFacts) -> None:
        colour = facts.photometric == _RGB or (
            facts.photometric == _YCBCR and facts.tables and facts.tables[0].compression in _CONVERTS_YCBCR
        )
        if facts.bits != 8 or facts.samples not in (3, 4) or not colour:
            raise not_rgb(self._name, facts)

    def _check_segments(self) -> None:
        for table in self._tables.values():
            if table.tile.area_px * table.samples > _MAX_SEGMENT_BYTES:
                raise UnreadableSlideError(
                    f"{self._name}: it is stored in pieces of {table.tile} px, each of which would have to be decoded "
                    "as a whole; convert it to a tiled, pyramidal TIFF"
                )

    def _describe(self, slide: TiffSlide, facts: TiffFacts, stated_mpp: Stated | None) -> SlideInfo:
        properties = slide.properties
        levels = checked_levels(self._name, slide.level_dimensions, slide.level_downsamples)
        profile, profile_remarks = checked_profile(facts.icc_profile)
        ome = ome_facts(facts.description)
        vendor = str(properties.get("tiffslide.vendor") or "generic-tiff")
        own = both(*(positive_number(properties.get(f"tiffslide.mpp-{axis}")) for axis in "xy"))
        if vendor == "generic-tiff" or "tiff.XResolution" in properties:  # tiffslide has it from the tags
            own = ome.mpp
        resolution = resolve(stated_mpp, own, facts.tag_mpp)
        magnification = positive_number(properties.get("tiffslide.objective-power")) or ome.magnification
        bounds = [properties.get(f"tiffslide.bounds-{key}") for key in ("x", "y", "width", "height")]
        file = slide.ts_tifffile.filehandle

        def read_at(offset: int, count: int) -> bytes:
            file.seek(offset)
            return bytes(file.read(count))

        return SlideInfo(
            name=self._name,
            reader="tiffslide",
            vendor=vendor,
            levels=levels,
            mpp=resolution.mpp,
            mpp_source=resolution.source,
            mpp_option=resolution.option,
            magnification=magnification,
            bounds=checked_bounds(bounds, levels[0].size),
            background=WHITE,
            icc_profile=profile,
            quickhash=own_hash(read_at, int(file.size)),
            changed_at=changed_at(self.path),
            problems=(*resolution.problems, *profile_remarks, *remarks(levels, magnification, facts)),
        )

    def _level_tables(self, slide: TiffSlide) -> dict[int, TileTable]:
        """Level → segments, where a level is one page and not composed of several."""
        if "tiffslide.series-composition" in slide.properties:
            return {}
        series = slide.ts_tifffile.series[slide.properties["tiffslide.series-index"]]
        found = {level: tile_table(page.keyframe) for level, page in enumerate(series.levels)}
        return {
            level: table
            for level, table in found.items()
            if table is not None and table.size == self._info.levels[level].size
        }

    def _read_into(self, level: int, region: Region, out: RGBImage, fill: RGB) -> None:
        for y in range(region.y, region.bottom, _BLOCK_PX):
            for x in range(region.x, region.right, _BLOCK_PX):
                block = Region(x, y, _BLOCK_PX, _BLOCK_PX).intersection(region)
                if not self.is_blank(level, block):
                    out[block.slices_in(region)] = self._read_block(level, block, fill)
        self._fill_missing(level, region, out, fill)

    def _read_block(self, level: int, block: Region, fill: RGB) -> RGBImage:
        slide = self._slide
        if slide is None:
            raise ValueError(f"{self._name} is closed")
        downsample = slide.level_downsamples[level]
        location = (_location(block.x, downsample), _location(block.y, downsample))
        try:
            with self._lock, quiet_tifffile():
                self._check_streams(slide, level, block)
                found = np.asarray(slide.read_region(location, level, (block.width, block.height), as_array=True))
            if found.shape[:2] != (block.height, block.width) or found.dtype != np.uint8:
                raise ValueError(f"{found.shape} {found.dtype} instead of {block.width}×{block.height} px, 8-bit")
            pixels: RGBImage = found.astype(np.uint8, copy=False)
        # tifffile's codecs and zarr raise errors of their own kinds, and ValueErrors, for damage.
        except Exception as error:
            raise damaged(self._name, block, downsample, self._reason(error)) from error
        if not self._alpha:
            return pixels[..., :3]
        mode = "RGBa" if self._premultiplied else "RGBA"
        image = Image.frombytes(mode, (block.width, block.height), np.ascontiguousarray(pixels).tobytes())
        return composited(image.convert("RGBA"), fill)

    def _check_streams(self, slide: TiffSlide, level: int, block: Region) -> None:
        """Raise ValueError for a tile that would decode into something else, and much larger, than a tile.

        The library decodes whatever a stream claims to be: a few damaged bytes can ask for 12 GB.
        """
        table = self._tables.get(level)
        if table is None:
            return
        rows, columns = table.tile_range(block)
        file = slide.ts_tifffile.filehandle
        for row in rows:
            for column in columns:
                count = int(table.byte_counts[row, column])
                check_count(table, count)
                if count == 0 or not table.tiled:
                    continue
                file.seek(int(table.offsets[row, column]))
                size = claimed_size(table, file.read(min(count, _HEAD_BYTES)))
                if size not in (None, table.tile):
                    raise ValueError(f"a tile of {table.tile} px holds a stream of {size} px")

    def _fill_missing(self, level: int, region: Region, out: RGBImage, fill: RGB) -> None:
        """Paint over what tiffslide shows as black because the file does not hold it."""
        table = self._tables.get(level)
        if table is None:
            return
        rows, columns = table.tile_range(region)
        present = table.byte_counts[rows.start : rows.stop, columns.start : columns.stop] > 0
        for row, column in np.argwhere(~present).tolist():
            tile = table.tile_region(rows[row], columns[column]).intersection(region)
            fill_with(out[tile.slices_in(region)], fill)

    def _release(self) -> None:
        slide, self._slide = self._slide, None
        if slide is not None:
            with self._lock:
                slide.close()


def name_of(path: str | Path) -> str:
    """Base name; of a URL without its query, which may hold a key."""
    if isinstance(path, Path):
        return path.name
    parts = urlsplit(path)
    return PurePosixPath(parts.path).name or parts.netloc or path


def _open(path: str | Path) -> TiffSlide:
    from tiffslide import TiffSlide

    return TiffSlide(os.fspath(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' warnings from the user: what matters is in `SlideInfo.problems`.

    Python's warning filters belong to the whole process, hence the lock; reading needs no filter.
    """
    with _warnings_lock, warnings.catch_warnings(), quiet_tifffile():
        warnings.simplefilter("ignore")
        yield


def _location(start: int, downsample: float) -> int:
    """A level-0 coordinate that tiffslide takes for ``start`` of a level: it divides, and drops the fraction."""
    location = int(start * downsample)
    while int(location / downsample) < start:
        location += 1
    return location
