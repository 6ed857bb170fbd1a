"""Is what a data set keeps to go on with whole: how it was begun, where its files are, and what is kept of slides?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from wsi2ihc.errors import OutputError, TransformError
from wsi2ihc.files import read_json
from wsi2ihc.registration.files import TRANSFORM_NAME, load_transform

from ..data.table import TABLE_NAME
from .places import PLACES_NAME, read_places, slide_folder
from .records import RECORD_NAME, SlideRecord, read_record
from .store import FORMAT, STORE_NAME
from .words import reason

_ANEW = "the same `wsi2ihc pairs` again cuts its slide anew"


def is_ours(folder: Path) -> bool:
    """Whether a data set was made by `build_pairs`, as far as its files tell."""
    return any((folder / name).exists() for name in (STORE_NAME, PLACES_NAME))


def store_problems(folder: Path, slides: Collection[str], files: Collection[Path]) -> Iterator[str]:
    """All that is wrong with what is kept beside the patches, one line each.

    Parameters
    ----------
    folder
        A data set that `is_ours`.
    slides
        The ids that its table names.
    files
        The patches that its table names.
    """
    yield from _begun(folder)
    yield from _placed(folder, files)
    for slide in sorted(set(slides)):
        yield from _kept(folder, slide)


def _begun(folder: Path) -> Iterator[str]:
    without = "`wsi2ihc pairs` cannot go on with this data set; as it is, it can be trained on"
    try:
        begun = read_json(folder / STORE_NAME)
    except FileNotFoundError:
        yield f"there is no {STORE_NAME}: {without}"
        return
    except (OSError, ValueError) as error:
        yield f"{STORE_NAME} cannot be read as JSON ({reason(error)}): {without}"
        return
    if not isinstance(begun, dict) or {key: begun.get(key) for key in FORMAT} != FORMAT:
        yield f"{STORE_NAME} is of another kind or version: {without}"


def _placed(folder: Path, files: Collection[Path]) -> Iterator[str]:
    lost = "the same `wsi2ihc pairs` again cuts all slides anew"
    try:
        placed = set(read_places(folder).values())
    except OutputError:
        yield f"{PLACES_NAME} is damaged: remove it, and {lost}"
        return
    if not (folder / PLACES_NAME).exists():
        yield f"there is no {PLACES_NAME}: {lost}"
    elif differ := sorted(placed ^ set(files)):
        more = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
        yield f"{PLACES_NAME} and {TABLE_NAME} do not both name {differ[0].relative_to(folder)}{more}"


def _kept(folder: Path, slide: str) -> Iterator[str]:
    own = slide_folder(folder, slide)
    where = own.relative_to(folder).as_posix()
    record = read_record(own)
    if record is None:
        yield f"{where}/{RECORD_NAME} is gone or damaged: {_ANEW}"
        return
    for name, size in record.files.items():
        try:
            found = (own / name).stat().st_size
        except OSError:
            yield f"{where}/{name} is not there: {_ANEW}"
        else:
            if found != size:
                yield f"{where}/{name} has {found:,} bytes, and had {size:,}: {_ANEW}"
    yield from _transform(own, where, record)


def _transform(own: Path, where: str, record: SlideRecord) -> Iterator[str]:
    """Whether the saved transform can be read; only where its files have the size that they were written with."""
    if TRANSFORM_NAME not in record.files:
        return
    sizes = {path.name: path.stat().st_size for path in own.iterdir() if path.is_file()}
    if any(sizes.get(name) != size for name, size in record.files.items()):
        return
    try:
        load_transform(own)
    except TransformError as error:
        yield f"{where}: {error!s:.200}; remove {TRANSFORM_NAME}, and {_ANEW}"
