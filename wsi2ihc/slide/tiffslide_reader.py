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

from ..arrays import RGB, WHITE, RGBImage
from ..errors import SlideNotFoundError, UnreadableSlideError
from ..geometry import Region
from .facts import both, changed_at, checked_bounds, checked_levels, checked_profile, not_rgb, own_hash, remarks
from .jpeg_tiles import LocalFile, SharedHandle
from .protocol import SlideInfo
from .reader import SlideReader
from .resolution import Stated, ome_facts, positive_number, resolve
from .tiff_facts import TiffFacts, TileTable, quiet_tifffile, tiff_facts, tile_table
from .tile_codecs import unreadable_kind

if TYPE_CHECKING:
    from tiffslide import TiffSlide

_RGB, _YCBCR = 2, 6
_CONVERTS_YCBCR = (6, 7, 33003, 33005, 34712)
"""JPEG and JPEG 2000; for the rest, YCbCr samples would be taken as they are."""

_LARGEST_PROVED, _SPREAD_PROVED = 8, 16
"""Tiles that are decoded before a file that OpenSlide could not read is believed: those with most data, and others."""

_warnings_lock = threading.Lock()


class TiffSlideReader(SlideReader):
    """A slide opened with tiffslide.

    The library finds the levels and says what they are; the tiles are decoded by `DirectTiles`, in the file's own
    kinds of compression. Remote files are read one tile at a time.

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
                handle = self._slide.ts_tifffile.filehandle
            self._check_tables()
            file = LocalFile(path) if isinstance(path, Path) else SharedHandle(self._name, handle)
            self._direct = self._direct_tiles(file, self._tables, facts.premultiplied)
            self._probe()
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
            facts.photometric == _YCBCR and all(table.compression in _CONVERTS_YCBCR for table in facts.tables[:1])
        )
        if facts.bits != 8 or facts.samples not in (3, 4) or not colour:
            raise not_rgb(self._name, facts)

    def _check_tables(self) -> None:
        """Refuse a level whose tiles cannot be decoded here, and say why."""
        for level in range(len(self._info.levels)):
            table = self._tables.get(level)
            reason = (
                f"the table of level {level} does not have a place for each of its tiles, so the file is damaged; "
                "copy it again from its source"
                if table is None
                else unreadable_kind(table)
            )
            if reason is not None:
                raise UnreadableSlideError(f"{self._name}: {reason}")

    def prove_pixels(self) -> None:
        """Decode tiles all over level 0, the largest among them; to be called for a file that OpenSlide refused.

        Raises
        ------
        UnreadableSlideError
            Where one of them is damaged.
        """
        table = self._tables[0]
        stored = np.flatnonzero(table.byte_counts)
        largest = stored[np.argsort(table.byte_counts.ravel()[stored])[-_LARGEST_PROVED:]]
        spread = stored[np.linspace(0, len(stored) - 1, _SPREAD_PROVED).astype(int)]
        for index in np.unique([*largest, *spread]).tolist():
            self.read_level(0, table.tile_region(*divmod(index, table.byte_counts.shape[1])))

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
        """Level → segments, for each level that has a place for every part of its size."""
        if "tiffslide.series-composition" in slide.properties:
            raise UnreadableSlideError(
                f"{self._name}: it is put together from several areas, which only OpenSlide reads, and only on a "
                "local disk; copy it there"
            )
        series = slide.ts_tifffile.series[slide.properties["tiffslide.series-index"]]
        found = {level: tile_table(page.keyframe) for level, page in enumerate(series.levels)}
        return {
            level: table
            for level, table in found.items()
            if table is not None and table.size == self._info.levels[level].size
        }

    def _read_into(self, level: int, region: Region, out: RGBImage, fill: RGB) -> None:
        assert self._direct is not None
        self._direct.read(level, region, out, fill)

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
