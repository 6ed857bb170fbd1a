"""Opening a slide, whatever it is."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SlideNotFoundError, UnreadableSlideError
from .facts import not_rgb
from .protocol import Slide, SlideInfo
from .resolution import Stated, checked_mpp
from .tiff_facts import TiffFacts, read_tiff_facts

if TYPE_CHECKING:
    from .tiffslide_reader import TiffSlideReader


def open_slide(
    path: str | os.PathLike[str], *, mpp: float | Sequence[float] | None = None, mpp_option: str = "--mpp"
) -> Slide:
    """Open a slide: with OpenSlide, else with tiffslide; a plain image (PNG, JPEG, BMP, WebP) with Pillow.

    Parameters
    ----------
    path
        A file, or a URL that fsspec understands (``https://…``, ``s3://…``).
    mpp
        The slide's resolution, µm per level-0 px, or a pair of them along (x, y). Replaces what the slide says.
    mpp_option
        What a user states it with, for messages: of two slides, each has its own.

    Returns
    -------
    Slide
        Thread-safe; close it, or use it in a ``with`` statement.

    Raises
    ------
    SlideNotFoundError
        If there is no such file.
    UnreadableSlideError
        If it is no slide, is damaged, or is not 8-bit RGB.
    OptionError
        If ``mpp`` is no resolution.
    """
    stated = checked_mpp(mpp, mpp_option)
    address = os.fspath(path)
    if "://" in address:
        return _open_with_tiffslide(address, stated)
    file = Path(address)
    _check_file(file)
    facts = read_tiff_facts(file)
    if facts is not None and _is_other_than_rgb(facts):
        raise not_rgb(file.name, facts)
    return _open_file(file, facts, stated)


def _open_file(file: Path, facts: TiffFacts | None, stated: Stated) -> Slide:
    # Imported here, and tiffslide (0.3 s, with zarr) only where it is needed.
    from .openslide_reader import FormatUnknownError, OpenSlideReader

    slide: Slide
    try:
        slide = OpenSlideReader(file, facts, stated)
    except UnreadableSlideError as refusal:
        if facts is None:
            if isinstance(refusal, FormatUnknownError) and (image := _open_image(file, stated)) is not None:
                return image
            raise
        try:
            other = _open_with_tiffslide(file, stated)
            if not isinstance(refusal, FormatUnknownError):
                other.prove_pixels()
            return other
        except UnreadableSlideError as error:
            # The one that knows the format says what is wrong.
            raise (error if isinstance(refusal, FormatUnknownError) else refusal) from error
    if facts is not None and _has_hidden_levels(slide.info, facts):
        try:
            other = _open_with_tiffslide(file, stated)
        except UnreadableSlideError:
            return slide
        slide.close()
        return other
    return slide


def _has_hidden_levels(info: SlideInfo, facts: TiffFacts) -> bool:
    """Whether the file has lower levels, in SubIFDs, that OpenSlide does not see."""
    return (
        info.vendor == "generic-tiff"
        and facts.level_sizes[:1] == (info.size,)
        and len(facts.level_sizes) > len(info.levels)
    )


def _open_with_tiffslide(path: str | Path, stated: Stated) -> TiffSlideReader:
    from .tiffslide_reader import TiffSlideReader

    return TiffSlideReader(path, stated)


def _open_image(file: Path, stated: Stated) -> Slide | None:
    """A plain image; None where the file is of another kind."""
    from .image_reader import ImageReader, is_plain_image

    return ImageReader(file, stated) if is_plain_image(file) else None


def _check_file(file: Path) -> None:
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableSlideError(
                f"{file.name or file}: this is a folder; name the slide file in it "
                "(of a DICOM slide any one of its files, of a MIRAX slide the .mrxs file)"
            )
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableSlideError(f"{file.name}: this is no regular file; name a slide file")
        if status.st_size == 0:
            raise UnreadableSlideError(f"{file.name}: the file is empty; copy it again from its source")
        with file.open("rb"):
            pass
    except FileNotFoundError as error:
        raise SlideNotFoundError(f"{file}: there is no such file; check the path") from error
    except UnreadableSlideError:
        raise
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UnreadableSlideError(
            f"{file.name}: it cannot be opened ({reason}); check the path and the permissions"
        ) from error


def _is_other_than_rgb(facts: TiffFacts) -> bool:
    """Grey or more than 8 bits. OpenSlide would convert some of these, and fail late with others."""
    palette = facts.photometric == 3
    return facts.bits != 8 or (facts.samples < 3 and not palette)
