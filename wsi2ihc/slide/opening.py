"""Opening a slide, whatever it is."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import OptionError, SlideNotFoundError, UnreadableSlideError
from .dicom_folder import dicom_files, dicom_slides
from .image_choice import Choice
from .protocol import Slide
from .resolution import Stated, checked_mpp
from .slide_view import as_shown
from .tiff_facts import TiffFacts, read_tiff_facts
from .tiff_limits import check_tags_of

if TYPE_CHECKING:
    from .reader import SlideReader
    from .tiffslide_reader import TiffSlideReader


def open_slide(
    path: str | os.PathLike[str],
    *,
    mpp: float | Sequence[float] | None = None,
    mpp_option: str = "--mpp",
    series: int | None = None,
    page: int | None = None,
) -> Slide:
    """Open a slide: with OpenSlide, else with tiffslide; an OME-Zarr with zarr; a plain image with Pillow.

    Parameters
    ----------
    path
        A file, the folder of an OME-Zarr or of one DICOM slide, or a URL that fsspec understands (``https://…``, ``s3://…``).
    mpp
        The slide's resolution, µm per level-0 px, or a pair of them along (x, y). Replaces what the slide says.
    mpp_option
        What a user states it with, for messages: of two slides, each has its own.
    series, page
        Which image of a TIFF file or OME-Zarr is wanted, by its number or by the number of its page, both from 0 (see
        `SlideInfo.images`). By default the largest RGB image.

    Returns
    -------
    Slide
        Thread-safe; close it, or use it in a ``with`` statement.

    Raises
    ------
    SlideNotFoundError
        If there is no such file.
    UnreadableSlideError
        If it is no slide, is damaged, is not 8-bit RGB, or holds several images that may be the slide.
    OptionError
        If ``mpp`` is not a resolution, or the file has no such series or page.
    """
    stated, choice = checked_mpp(mpp, mpp_option), Choice(series, page)
    address = os.fspath(path)
    if "://" in address:
        if _is_zarr_address(address):
            return _open_zarr(address, stated, choice)
        return as_shown(_open_with_tiffslide(address, stated, choice))
    file = Path(address)
    if _is_folder(file):
        if is_zarr(file):
            return _open_zarr(file, stated, choice)
        file = _file_of_folder(file)
    _check_file(file)
    check_tags_of(file)
    return as_shown(_open_file(file, stated, choice))


def _open_file(file: Path, stated: Stated, choice: Choice) -> SlideReader:
    # Imported here, and tiffslide (0.3 s, with zarr) only where it is needed.
    from .openslide_reader import FormatUnknownError, OpenSlideReader, format_of

    kind = format_of(file)
    own_layout = kind not in (None, "generic-tiff")
    facts = _facts(file, kind, choice)
    if facts is not None and not own_layout and not openslide_reads(facts):
        return _open_with_tiffslide(file, stated, choice)
    slide: SlideReader
    try:
        slide = OpenSlideReader(file, facts, stated)
    except UnreadableSlideError as refusal:
        if facts is None:
            if isinstance(refusal, FormatUnknownError) and (image := _open_image(file, stated)) is not None:
                return image
            raise
        try:
            other = _open_with_tiffslide(file, stated, choice)
            if not isinstance(refusal, FormatUnknownError):
                _prove_pixels(other)
            return other
        except UnreadableSlideError as error:
            # The one that knows the format says what is wrong.
            raise (error if isinstance(refusal, FormatUnknownError) else refusal) from error
    sizes = [level.size for level in slide.info.levels]
    if facts is None or own_layout or sizes == list(facts.level_sizes):
        return slide
    try:
        other = _open_with_tiffslide(file, stated, choice)
    except UnreadableSlideError:
        if sizes[0] == facts.level_sizes[0] and set(sizes) <= set(facts.level_sizes):
            return slide  # with fewer levels
        slide.close()
        raise
    slide.close()
    return other


def _prove_pixels(slide: TiffSlideReader) -> None:
    """Check pixels of a file that OpenSlide refused; close it if they are damaged."""
    try:
        slide.prove_pixels()
    except BaseException:
        slide.close()
        raise


def _facts(file: Path, kind: str | None, choice: Choice) -> TiffFacts | None:
    """The facts of a TIFF of the kind that OpenSlide takes it for; None of other files.

    Raises
    ------
    OptionError
        If ``choice`` names what the file does not have.
    UnreadableSlideError
        If the tags say that the pixels cannot be read rightly.
    """
    own_layout = kind not in (None, "generic-tiff")
    facts = read_tiff_facts(file, choice, own_layout=own_layout)
    if facts is None and choice:
        raise OptionError(f"{file.name}: {choice}: images can be chosen in TIFF files only; leave the option out")
    if facts is None and kind == "generic-tiff":
        # Without its tags, it is not known which image and what pixels OpenSlide would read.
        raise UnreadableSlideError(
            f"{file.name}: its TIFF tags are damaged; copy it again from its source, or convert it to a tiled, "
            "pyramidal TIFF"
        )
    if facts is not None and own_layout and facts.orientation != 1:
        raise UnreadableSlideError(
            f"{file.name}: its orientation (TIFF tag 274) is {facts.orientation}, which {kind} files do not have; "
            "convert it to a tiled, pyramidal TIFF"
        )
    return facts


def openslide_reads(facts: TiffFacts) -> bool:
    """Whether OpenSlide, if it takes a plain TIFF, reads the slide, and as it is stored.

    It starts with the file's first page, knows nothing of SubIFDs, takes any fourth sample for alpha, and mirrors
    tiles in place where the orientation says so.
    """
    return (
        facts.pages[0] == 0 and None not in facts.pages and facts.orientation == 1 and facts.kind.alpha != "unspecified"
    )


def _open_with_tiffslide(path: str | Path, stated: Stated, choice: Choice) -> TiffSlideReader:
    from .tiffslide_reader import TiffSlideReader

    return TiffSlideReader(path, stated, choice)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def _is_folder(file: Path) -> bool:
    try:
        return file.is_dir()
    except (OSError, ValueError):  # not a path that can exist; opening it says why
        return False


def _file_of_folder(folder: Path) -> Path:
    """A file of the one DICOM slide in a folder.

    Raises
    ------
    UnreadableSlideError
        If there is none, or more than one.
    """
    name = folder.absolute().name
    try:
        slides = dicom_slides(dicom_files(folder))
    except OSError as error:
        raise UnreadableSlideError(
            f"{name}: the folder cannot be read ({error.strerror}); check the permissions"
        ) from error
    if len(slides) == 1:
        return slides[0]
    if slides:
        names = ", ".join(file.name for file in slides[:6]) + (", …" if len(slides) > 6 else "")
        raise UnreadableSlideError(
            f"{name}: this folder holds {len(slides)} DICOM slides; name a file of one of them ({names})"
        )
    raise UnreadableSlideError(
        f"{name}: this is a folder, and not that of a DICOM slide or an OME-Zarr; name the slide file in it (of a "
        "MIRAX slide the .mrxs file)"
    )


def _is_zarr_address(address: str) -> bool:
    try:
        return urlsplit(address).path.rstrip("/").lower().endswith(".zarr")
    except ValueError as error:
        # not shown: it may hold a key
        raise UnreadableSlideError(f"the slide's address is not valid ({error}); check it") from error


def _open_zarr(path: str | Path, stated: Stated, choice: Choice) -> Slide:
    from .zarr_reader import ZarrReader

    name = PurePath(urlsplit(str(path)).path).name if isinstance(path, str) else path.absolute().name
    return ZarrReader(path, stated, choice, name)


def _open_image(file: Path, stated: Stated) -> SlideReader | None:
    """A plain image; None where the file is of another kind."""
    from .image_reader import ImageReader, is_plain_image

    return ImageReader(file, stated) if is_plain_image(file) else None


def _check_file(file: Path) -> None:
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableSlideError(f"{file.name}: this is a folder; name the slide file in it")
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
