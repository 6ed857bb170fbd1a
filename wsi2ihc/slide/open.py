"""Open a slide: choose the reader for a file, folder or URL."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import OptionError, SlideNotFoundError, UnreadableSlideError
from .image_choice import Choice
from .metadata import GivenResolution, check_mpp
from .protocol import Slide
from .readers.dicom import dicom_files, dicom_slides
from .slide_view import as_shown
from .tiff_metadata import TiffMetadata, check_tags_of, read_tiff_metadata

if TYPE_CHECKING:
    from .readers.base import SlideReader
    from .readers.tiffslide_reader import TiffSlideReader


def open_slide(
    path: str | os.PathLike[str],
    *,
    mpp: float | Sequence[float] | None = None,
    mpp_option: str = "--mpp",
    series: int | None = None,
    page: int | None = None,
    image_option: str = "--{}",
) -> Slide:
    """Open a slide with OpenSlide or tiffslide, an OME-Zarr with zarr, or a plain image with Pillow.

    Parameters
    ----------
    path
        A file, the folder of an OME-Zarr or of one DICOM slide, or a URL that fsspec understands (``https://…``, ``s3://…``).
    mpp
        Resolution in µm per level-0 px, for both axes or along (x, y). Replaces that of the metadata.
    mpp_option
        Command-line option of the resolution in messages.
    series, page
        Image of a TIFF file or OME-Zarr, by its number or by the number of its page, both from 0 (see
        `SlideInfo.images`). By default the largest RGB image.
    image_option
        Command-line option of "series" and of "page" in messages.

    Returns
    -------
    Slide
        Thread-safe; close it, or use it in a ``with`` statement.

    Raises
    ------
    SlideNotFoundError
        If the file does not exist.
    UnreadableSlideError
        If it is not a slide, is damaged, is not 8-bit RGB, or has several images that may be the slide.
    OptionError
        If ``mpp`` is not a resolution, or the file has no such series or page.
    """
    given, choice = check_mpp(mpp, mpp_option), Choice(series, page)
    try:
        return _open(os.fspath(path), given, choice)
    except (OptionError, UnreadableSlideError) as error:
        text = re.sub(r"--(series|page)\b", lambda found: image_option.format(found[1]), str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error


def _open(address: str, given: GivenResolution, choice: Choice) -> Slide:
    if "://" in address:
        if _is_zarr_address(address):
            return _open_zarr(address, given, choice)
        return as_shown(_open_with_tiffslide(address, given, choice))
    file = Path(address)
    if _is_folder(file):
        if is_zarr(file):
            return _open_zarr(file, given, choice)
        file = _file_of_folder(file)
    _check_file(file)
    check_tags_of(file)
    return as_shown(_open_file(file, given, choice))


def _open_file(file: Path, given: GivenResolution, choice: Choice) -> SlideReader:
    # Imported here, and tiffslide (0.3 s, with zarr) only where it is needed.
    from .readers.openslide_reader import FormatUnknownError, OpenSlideReader, format_of

    kind = format_of(file)
    own_layout = kind not in (None, "generic-tiff")
    facts = _facts(file, kind, choice)
    if facts is not None and not own_layout and not openslide_reads(facts):
        return _open_with_tiffslide(file, given, choice)
    slide: SlideReader
    try:
        slide = OpenSlideReader(file, facts, given)
    except UnreadableSlideError as refusal:
        if facts is None:
            from .readers.image_reader import ImageReader, is_plain_image

            if isinstance(refusal, FormatUnknownError) and is_plain_image(file):
                return ImageReader(file, given)
            raise
        try:
            return _open_with_tiffslide(file, given, choice, prove=not isinstance(refusal, FormatUnknownError))
        except UnreadableSlideError as error:
            # Raise the error of the reader that knows the format.
            raise (error if isinstance(refusal, FormatUnknownError) else refusal) from error
    sizes = [level.size for level in slide.info.levels]
    if facts is None or own_layout or sizes == list(facts.level_sizes):
        return slide
    try:
        other = _open_with_tiffslide(file, given, choice)
    except UnreadableSlideError:
        if sizes[0] == facts.level_sizes[0] and set(sizes) <= set(facts.level_sizes):
            return slide  # with fewer levels
        slide.close()
        raise
    slide.close()
    return other


def _facts(file: Path, kind: str | None, choice: Choice) -> TiffMetadata | None:
    """Read the metadata of a TIFF file, given its format by OpenSlide; None for other files."""
    own_layout = kind not in (None, "generic-tiff")
    facts = read_tiff_metadata(file, choice, own_layout=own_layout)
    if facts is None and choice:
        raise OptionError(f"{file.name}: {choice}: images can be chosen in TIFF files only; leave the option out")
    if facts is None and kind == "generic-tiff":
        # Without the tags, it is unknown which image and pixels OpenSlide would read.
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


def openslide_reads(facts: TiffMetadata) -> bool:
    """Whether OpenSlide, if it opens a plain TIFF, reads the slide with its stored pixels.

    It starts with the first page, ignores SubIFDs, uses any fourth sample as alpha, and mirrors tiles in place by the
    orientation.
    """
    is_first = facts.pages[0] == 0 and None not in facts.pages
    return is_first and facts.orientation == 1 and facts.kind.alpha != "unspecified"


def _open_with_tiffslide(
    path: str | Path, given: GivenResolution, choice: Choice, *, prove: bool = False
) -> TiffSlideReader:
    from .readers.tiffslide_reader import TiffSlideReader

    slide = TiffSlideReader(path, given, choice)
    try:
        if prove:
            slide.prove_pixels()
    except BaseException:
        slide.close()
        raise
    return slide


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def _is_folder(file: Path) -> bool:
    try:
        return file.is_dir()
    except (OSError, ValueError):  # not a path that can exist; opening it says why
        return False


def _file_of_folder(folder: Path) -> Path:
    """Return a file of the only DICOM slide in a folder."""
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


def _open_zarr(path: str | Path, given: GivenResolution, choice: Choice) -> Slide:
    from .readers.zarr_reader import ZarrReader

    name = PurePath(urlsplit(str(path)).path).name if isinstance(path, str) else path.absolute().name
    return ZarrReader(path, given, choice, name)


def _check_file(file: Path) -> None:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableSlideError(f"{file.name}: this is not a regular file; name a slide file")
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


_SILENCE_S = 10  # longest time without any data from a server. A slow one that keeps sending is waited for.

SILENT = f"the server has sent nothing for {_SILENCE_S} s"


class RemoteFile:
    """A file at a URL that fsspec supports. Thread-safe: reads happen one at a time.

    After the first timeout, every read fails at once: waiting for each tile would take days. An error of nearly any
    kind is raised if it cannot be opened.
    """

    def __init__(self, name: str, address: str) -> None:
        from fsspec.core import url_to_fs

        protocols = re.findall(r"(?:^|::)([A-Za-z0-9+]+)://", address)
        options = {protocol: found for protocol in protocols if (found := _options(protocol.lower()))}
        file_system, path = url_to_fs(address, **options)
        self.name = name
        self.handle: Any = file_system.open(path)
        self._lock = threading.Lock()
        self._is_silent = False

    def read_at(self, offset: int, count: int) -> bytes:
        with self._lock:
            if self._is_silent:
                raise TimeoutError(SILENT)
            try:
                self.handle.seek(offset)
                return bytes(self.handle.read(count))
            except Exception as error:  # of any kind: each protocol has its own
                self._is_silent = did_not_respond(error)
                reason = SILENT if self._is_silent else str(error) or type(error).__name__
                raise (TimeoutError if self._is_silent else OSError)(reason) from error

    def close(self) -> None:
        self.handle.close()

    @property
    def closed(self) -> bool:
        return bool(self.handle.closed)


def did_not_respond(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, is a timeout."""
    for _ in range(8):
        if error is None:
            return False
        if isinstance(error, TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _options(protocol: str) -> dict[str, Any]:
    """Return timeouts as options of the protocol's package; the user's configuration of fsspec takes precedence."""
    from fsspec.config import conf

    own = conf.get(protocol, {})
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, connect=_SILENCE_S, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
        return {"client_kwargs": {"timeout": timeout, **own.get("client_kwargs", {})}}
    if protocol in ("s3", "s3a"):
        waits = {"connect_timeout": _SILENCE_S, "read_timeout": _SILENCE_S, "retries": {"max_attempts": 1}}
        return {"config_kwargs": {**waits, **own.get("config_kwargs", {})}}
    return {}
