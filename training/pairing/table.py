"""``pairs.csv``, ``rejected.csv`` and ``dataset.json`` of a data set that is made here.

They follow from the records and the manifest alone, without times and paths, so that two runs write the same bytes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wsi2ihc.text import csv_table

from .manifest import SlidePair
from .places import SPLIT_NAMES, Place, relative_files
from .records import PatchRecord, SlideRecord
from .tallying import Rejections, summarise_rejections

REJECTED_NAME = "rejected.csv"

FIGURES = (
    "tissue_he", "tissue_ihc", "valid", "residual_um", "correlation", "sharpness_he", "sharpness_ihc", "folds", "pen",
    "stained",
)  # fmt: skip
"""What was measured of a patch, in the order of the columns."""

_OF_SLIDE = ("patient", "slide", "her2", "mpp", "grid_mpp", "x_um", "y_um")
_COLUMNS = ("number", "split", "he", "ihc", "half", *_OF_SLIDE, *FIGURES, "sha256_he", "sha256_ihc")
_REJECTED_COLUMNS = ("reason", *_OF_SLIDE, *FIGURES)


@dataclass(frozen=True, slots=True)
class Statement:
    """What ``dataset.json`` says beside its counts.

    mpp:      µm per px that the patches were asked for; what a model is told that is trained on them
    patch_px: their side
    failed:   the rows of the manifest that gave nothing: slide's id (or row's number), and why
    extra:    whatever else belongs there, for JSON: manifest, seed, options, versions
    name:     of the data set
    """

    mpp: float
    patch_px: int
    stain: str | None = None
    licence: str | None = None
    failed: tuple[tuple[str, str], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None


def pairs_csv(
    placed: Iterable[tuple[Place, SlidePair, SlideRecord, PatchRecord]], mpp: float, side_by_side: bool
) -> bytes:
    """The table of the patches that are kept, which `wsi2ihc.training.data` reads.

    ``mpp`` is what the patches were asked for, one for all. ``grid_mpp`` is what they have: slides within a few per
    cent of that are read as they are, in training data as in translation.
    """
    rows = []
    for number, (place, pair, record, patch) in enumerate(placed):
        files = relative_files(place, side_by_side)
        rows.append(
            {
                "number": number,
                "split": place.split,
                "he": files[0],
                "ihc": files[-1],
                "half": "left" if side_by_side else "",
                **_of_slide(pair, record, patch, mpp),
                "sha256_he": patch.sha256_he,
                "sha256_ihc": patch.sha256_ihc,
            }
        )
    return _csv([name for name in _COLUMNS if name != "half" or side_by_side], rows)


def rejected_csv(slides: Iterable[tuple[SlidePair, SlideRecord]], mpp: float) -> bytes:
    """The table of the patches that are left out, and why."""
    rows = [
        {"reason": patch.rejected, **_of_slide(pair, record, patch, mpp)}
        for pair, record in slides
        for patch in record.patches
        if patch.rejected
    ]
    return _csv(_REJECTED_COLUMNS, rows)


def _of_slide(pair: SlidePair, record: SlideRecord, patch: PatchRecord, mpp: float) -> dict[str, object]:
    return {
        "patient": pair.patient,
        "slide": pair.slide,
        "her2": pair.her2 or "",
        "mpp": f"{mpp:.6g}",
        "grid_mpp": f"{record.mpp:.6g}",
        "x_um": f"{patch.x_um:.3f}",
        "y_um": f"{patch.y_um:.3f}",
        **{name: _text(patch.figures.get(name)) for name in FIGURES},
    }


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    return csv_table([columns, *([row.get(name, "") for name in columns] for row in rows)], "\n").encode()


def dataset_facts(
    slides: Sequence[tuple[SlidePair, SlideRecord]], splits: Mapping[str, str], statement: Statement
) -> dict[str, Any]:
    """What the data set is, for ``dataset.json``. ``splits`` says the split of every slide."""
    return {
        "mpp": statement.mpp,
        "stain": statement.stain,
        "licence": statement.licence,
        "name": statement.name,
        "patch_px": statement.patch_px,
        "counts": _counts(slides, splits),
        "rejected": rejections(slides).left_out,
        "without_residual": sum(
            patch.figures.get("residual_um") is None for _, record in slides for patch in record.kept
        ),
        "failed": [{"slide": slide, "reason": reason} for slide, reason in statement.failed],
        **statement.extra,
    }


def rejections(slides: Iterable[tuple[SlidePair, SlideRecord]]) -> Rejections:
    """What became of the patches of all slides."""
    return summarise_rejections((pair.her2, patch.rejected) for pair, record in slides for patch in record.patches)


def _counts(slides: Iterable[tuple[SlidePair, SlideRecord]], splits: Mapping[str, str]) -> dict[str, Any]:
    """Pairs, slides, patients, and pairs per HER2 level (where known) of every split that has pairs."""
    members: dict[str, list[tuple[SlidePair, int]]] = defaultdict(list)
    for pair, record in slides:
        if record.kept:
            members[splits[pair.slide]].append((pair, len(record.kept)))
    counts: dict[str, Any] = {}
    for split in SPLIT_NAMES.values():
        if not (own := members.get(split)):
            continue
        counts[split] = {
            "pairs": sum(count for _, count in own),
            "slides": len(own),
            "patients": len({pair.patient for pair, _ in own}),
        }
        levels: Counter[str] = Counter()
        for pair, count in own:
            if pair.her2 is not None:
                levels[pair.her2] += count
        if levels:
            counts[split]["her2"] = dict(sorted(levels.items()))
    return counts
