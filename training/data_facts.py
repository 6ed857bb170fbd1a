"""What a model will say of its data: as the user says, else as the data say, else as a preset knows, else assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .data import PairedData
from .options import TrainOptions
from .presets import PRESETS

ASSUMED_MPP = 0.5
"""µm per px that is written into the model, with a warning, where nobody states it."""

_MPP_TOLERANCE = 0.01
"""Share by which µm per px may differ without a contradiction, as within a data set."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What goes into the model beside its weights.

    mpp:     µm per px of the patches
    stain:   what is made
    licence: of the data; "" if nobody states one
    name:    of the data set
    notes:   what was assumed, and who won where a preset contradicts the data; one sentence each
    """

    mpp: float
    stain: str
    licence: str
    name: str
    notes: tuple[str, ...] = ()


def facts_of(data: PairedData, options: TrainOptions) -> DataFacts:
    """Everything that is known of the data, and from whom.

    Parameters
    ----------
    data
        As it was found; what its table and its ``dataset.json`` state.
    options
        What the user states, and the preset.
    """
    notes = list(_contradictions(data, options))
    preset = PRESETS[options.preset]
    mpp = options.mpp or data.mpp or preset.get("mpp")
    if mpp is None:
        mpp = ASSUMED_MPP
        notes.append(f"the data does not say its resolution: {ASSUMED_MPP} µm/px is assumed and goes into the model, "
                     "which translate will read slides at; state it with --mpp (BCI: 0.46)")  # fmt: skip
    stain = options.stain or data.stain or preset.get("stain")
    if stain is None:
        stain = "IHC"
        notes.append("the data does not say its stain: the model will call it IHC; name it with --stain")
    return DataFacts(
        mpp=float(mpp),
        stain=stain,
        licence=options.data_licence or data.licence or preset.get("data_licence", ""),
        name=options.data_name or data.name or preset.get("data_name") or data.folder.resolve().name,
        notes=tuple(notes),
    )


def splits_by_patch(data: PairedData, options: TrainOptions) -> bool:
    """Whether single patches may be carved out: as the user says; a preset says it of data without groups alone."""
    if options.split_by_patch is not None:
        return options.split_by_patch
    return not data.grouped_by and bool(PRESETS[options.preset].get("split_by_patch", False))


def _contradictions(data: PairedData, options: TrainOptions) -> Iterator[str]:
    """Where the preset says something else than the data, and the user says nothing."""
    preset = PRESETS[options.preset]
    for name, what, own in (
        ("mpp", "µm/px", data.mpp),
        ("stain", "stain", data.stain),
        ("data_licence", "licence", data.licence),
        ("data_name", "name", data.name),
    ):
        known = preset.get(name)
        if own is None or known is None or getattr(options, name) is not None or _agree(own, known):
            continue
        yield (
            f"the data set states the {what} {own!s:.60}, the preset {options.preset} {known!s:.60}: what the data set "
            f"states is taken (--{name.replace('_', '-')} replaces it)"
        )
    carved = data.grouped_by and not any(pair.role == "validation" for pair in data.pairs)
    if carved and options.split_by_patch is None and preset.get("split_by_patch"):
        yield (
            f"the data set says which patches belong together ({data.grouped_by}), and the preset {options.preset} "
            "would part them: they are kept together (--split-by-patch parts them)"
        )


def _agree(own: float | str, known: float | str) -> bool:
    if isinstance(own, str) or isinstance(known, str):
        return own == known
    return abs(own / known - 1) <= _MPP_TOLERANCE
