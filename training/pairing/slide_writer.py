"""Writing the patches of one slide: aside, and in the place of what was there before when all of them are there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.table import STATEMENT_NAME
from ..files import cannot_write, make_folder
from .encoding import EncodedPatch
from .places import KEPT_NAMES, attempt_folder, slide_folder, staged_files, staging_folder
from .records import RECORD_NAME, PatchRecord, SlideRecord, write_record

BELONGING = (".json", ".npz")
"""Files with these suffixes, beside the record, are missed if they are gone; pictures are not."""


class SlideWriter:
    """Takes the patches of one slide; nothing of it counts before `complete`.

    Patches are written without a copy beside them and without waiting for the disk: a patch without a record is worth
    nothing, and is removed by the next run. So ``kill -9`` leaves no half patch in a data set. After a power cut it may
    (the record can reach the disk before the patches do); their checksums tell.

    Parameters
    ----------
    dataset
        The folder of the data set.
    slide
        Its id.
    placed
        Where files of the data set are, as in `store.PairsStore`.
    side_by_side
        Whether a patch is one file.

    Raises
    ------
    OutputError
        If the file system refuses.
    """

    def __init__(self, dataset: Path, slide: str, placed: Mapping[Path, Path], *, side_by_side: bool) -> None:
        self.folder = attempt_folder(dataset, slide)
        """Where what else is kept of the slide is to be written."""
        self._dataset = dataset
        self._slide = slide
        self._placed = placed
        self._side_by_side = side_by_side
        self._patches: list[PatchRecord] = []
        self._staging = self.folder / staging_folder(dataset, slide).name
        make_folder(self._staging)

    def add(
        self,
        at_px: tuple[int, int],
        at_um: tuple[float, float],
        figures: Mapping[str, float | None],
        *,
        rejected: str = "",
        encoded: EncodedPatch | None = None,
    ) -> None:
        """Take one patch.

        Parameters
        ----------
        at_px, at_um
            Its top left corner, on the working grid and on the H&E slide.
        figures
            What was measured of it. What is not finite is kept as None.
        rejected
            Why it is left out; "" if it is kept.
        encoded
            Its files; of a patch that is kept.

        Raises
        ------
        OutputError
            If the file system refuses.
        """
        if bool(rejected) == bool(encoded):
            raise ValueError("a patch is either left out for a reason, or has files")
        kept = encoded or EncodedPatch((b"",), "", "")
        measured = {name: _finite(value) for name, value in figures.items()}
        sizes = [len(content) for content in kept.files]
        patch = PatchRecord(
            *at_px, *at_um, measured, rejected, kept.sha256_he, kept.sha256_ihc, sizes[0], sizes[-1]
        )  # fmt: skip
        if encoded:
            files = staged_files(self._dataset, self._slide, patch, self._side_by_side)
            for file, content in zip(files, encoded.files, strict=True):
                path = self._staging / file.name
                try:
                    path.write_bytes(content)
                except OSError as error:
                    raise cannot_write(path, error) from error
        self._patches.append(patch)

    def complete(
        self, fingerprint: str, mpp: float, facts: Mapping[str, Any] | None = None, row: str = ""
    ) -> SlideRecord:
        """Write the record, and put all of it in the place of what was there before: the slide need not be cut again.

        Parameters
        ----------
        fingerprint
            As `fingerprints.fingerprint_of` gave it before the slides were opened.
        mpp
            µm per px of the patches.
        facts
            What else to keep, for JSON.
        row
            As `fingerprints.row_print_of` gives it.

        Raises
        ------
        OutputError
            If the file system refuses.
        """
        patches = tuple(sorted(self._patches, key=lambda patch: (patch.y_px, patch.x_px)))
        try:
            files = {
                path.name: path.stat().st_size for path in sorted(self.folder.iterdir()) if path.suffix in BELONGING
            }
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        record = SlideRecord(self._slide, fingerprint, mpp, patches, dict(facts or {}), row, files)
        write_record(self.folder, record)
        promote(self._dataset, self._slide, self._placed)
        return record


def promote(dataset: Path, slide: str, placed: Mapping[Path, Path]) -> None:
    """Put an attempt that is complete in the place of what was cut of its slide before.

    It can be killed at any moment and be done again: an attempt that has a record is complete, and loses it last.

    Raises
    ------
    OutputError
        If the file system refuses.
    """
    folder, attempt, staging = (place(dataset, slide) for place in (slide_folder, attempt_folder, staging_folder))
    aside = attempt / staging.name
    try:
        if aside.exists():  # nothing has been moved yet
            # In this order: the data set is not complete any more, nor is the slide; only then its files go.
            (dataset / STATEMENT_NAME).unlink(missing_ok=True)
            (folder / RECORD_NAME).unlink(missing_ok=True)
            for staged, place in placed.items():
                if staged.parent == staging:
                    place.unlink(missing_ok=True)
            if staging.exists():
                shutil.rmtree(staging)
            for name in KEPT_NAMES:
                (folder / name).unlink(missing_ok=True)
            aside.replace(staging)
        for path in sorted(attempt.iterdir(), key=lambda path: path.name == RECORD_NAME):
            path.replace(folder / path.name)
        attempt.rmdir()
    except OSError as error:
        raise cannot_write(attempt, error) from error


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
