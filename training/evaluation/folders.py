"""Virtual images that any program has made, against their references: folders of files of the same names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from wsi2ihc.errors import DatasetError
from wsi2ihc.ordered import ordered_map
from wsi2ihc.progress import Progress, ProgressCallback, silent

from ..data import Pair, PairedData, assign_groups, read_image, read_sizes
from ..data.files import images_in
from ..data.layouts import level_in_name
from .calibration import Calibration, density_counts, otsu_threshold
from .examples import choose_examples
from .methods import Method, floors
from .options import EvaluateOptions
from .patches import describe_images
from .results import Evaluation
from .scores import ImageFacts
from .scoring import interior_margin_px, load_inception_features, score_methods
from .source import AHEAD, THREADS, Sample, Source
from .sums import BINS, Scale

SHOWN = 5
"""Files that a message names, of those without a partner."""


def evaluate_folders(
    reference: Path,
    virtual: Sequence[Path],
    he: Path | None = None,
    options: EvaluateOptions | None = None,
    progress: ProgressCallback = silent,
) -> Evaluation:
    """Score images of each virtual folder against the reference images of the same names (suffixes may differ).

    Parameters
    ----------
    reference
        Folder of the references.
    virtual
        Folders of the virtual images; a method each, by the folder's name.
    he
        Folder of the H&E images, for the floor ``counterstain`` and for the pictures.
    options
        How. HER2 levels are taken from names as in BCI, groups from ``group_by``.
    progress
        Told of images.

    Raises
    ------
    DatasetError
        If folders do not match, two have one name, an image cannot be read, or sizes differ.
    """
    options = options or EvaluateOptions()
    files = _matched(reference, {**_named(virtual), **({_HE: he} if he else {})})
    pairs = _pairs(reference, files, options)
    sizes = [read_sizes([dataclasses.replace(p, he=own[name]) for p, own in zip(pairs, files.values(), strict=True)])
             for name in next(iter(files.values())) if name]  # fmt: skip
    inception, facts = load_inception_features(options.inception_weights, options.device)
    unit, images = describe_images(pairs, PairedData(reference, "folders", pairs, grouped_by=options.group_by or ""))
    methods = [Method(name, "given", None, halo_px=None) for name in _named(virtual)]
    methods += floors(None, [method.name for method in methods]) if he else []
    source = _source(images, list(files.values()))
    calibration = _calibration(list(files.values()), options, progress)
    margin_px = interior_margin_px(min(min(one.smallest.width, one.smallest.height) for one in sizes), methods)
    results = score_methods(
        source, methods, Scale(calibration.stained_from, options.mpp), batch_size=options.batch_size,
        margin_px=margin_px, inception=inception, seed=options.seed, progress=progress,
    )  # fmt: skip
    return Evaluation(
        subject=f"{len(pairs):,} images of {', '.join(_named(virtual))} against {reference.resolve().name}",
        unit=unit,
        levels=tuple(sorted({pair.her2 for pair in pairs if pair.her2})),
        methods=tuple(results),
        calibration=calibration,
        interior_px=margin_px,
        inception=facts,
        examples=choose_examples(source, results, 1, options.pictures, options.seed),
        notes=_notes(unit, he),
        facts={
            "data": {"reference": reference.resolve().name, "virtual": list(_named(virtual)), "images": len(pairs)},
            "options": options.stated("group_by", "mpp", "stained_from", "inception_weights", "resamples", "seed"),
        },
    )


_REFERENCE, _HE = "", "\0he"
"""Keys of the files of a place, which no folder is called."""


def _named(virtual: Sequence[Path]) -> dict[str, Path]:
    """Folders by the names of their methods; the parent's name comes before it where two are alike."""
    names = [folder.resolve().name for folder in virtual]
    if len(set(names)) < len(names):
        names = [f"{folder.resolve().parent.name}/{folder.resolve().name}" for folder in virtual]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"two of the virtual folders are called {twice}; give each folder its own name")
    return dict(zip(names, virtual, strict=True))


def _matched(reference: Path, others: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """The files of every place, by the stem of their names and by key."""
    listed = {key: _by_stem(folder) for key, folder in {_REFERENCE: reference, **others}.items()}
    folders = {_REFERENCE: reference, **others}
    references = listed[_REFERENCE]
    for key, files in listed.items():
        for alone, lacking in ((references.keys() - files.keys(), folders[key]),
                               (files.keys() - references.keys(), reference)):  # fmt: skip
            if alone:
                names = sorted(alone)
                more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
                raise DatasetError(f"{lacking} lacks partners of {', '.join(names[:SHOWN])}{more}")
    return {stem: {key: files[stem] for key, files in listed.items()} for stem in references}


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}" if not folder.exists() else f"{folder} is no folder")
    files: dict[str, Path] = {}
    for file in images_in(folder):
        if (other := files.setdefault(file.stem, file)) != file:
            raise DatasetError(f"{folder} has both {other.name} and {file.name}; keep one of them")
    if not files:
        raise DatasetError(f"there is no image in {folder}")
    return files


def _pairs(reference: Path, files: Mapping[str, Mapping[str, Path]], options: EvaluateOptions) -> tuple[Pair, ...]:
    pairs = tuple(
        Pair(stem, own[_REFERENCE], own[_REFERENCE], her2=level_in_name(stem)) for stem, own in files.items()
    )  # fmt: skip
    return assign_groups(PairedData(reference, "folders", pairs), options.group_by).pairs


def _source(images: tuple[ImageFacts, ...], files: Sequence[Mapping[str, Path]]) -> Source:
    def load(number: int) -> Sample:
        pixels = {key: read_image(path) for key, path in files[number].items()}
        given = {key: image for key, image in pixels.items() if key not in (_REFERENCE, _HE)}
        return Sample(images[number], pixels.get(_HE), pixels[_REFERENCE], given)

    return Source(images, load)


def _calibration(
    files: Sequence[Mapping[str, Path]], options: EvaluateOptions, progress: ProgressCallback
) -> Calibration:
    if options.stained_from is not None:
        return Calibration(options.stained_from, "as stated")
    progress(Progress("looking at the references"))
    counts = np.zeros(BINS)
    with ThreadPoolExecutor(THREADS, "decode") as pool:
        for own in ordered_map(pool, lambda own: density_counts(read_image(own[_REFERENCE])), files, AHEAD):
            counts += own
    return Calibration(otsu_threshold(counts), "Otsu's threshold of the scored references")


def _notes(unit: str, he: Path | None) -> tuple[str, ...]:
    notes = ["no training split is at hand: no colour regression, no HER2 cuts"]
    if he is None:
        notes.append("no H&E images were named (--he), so that the floors cannot be computed")
    if unit == "patches":
        notes.append("intervals are over images; if several belong to one patient or slide, name that with --group-by")
    return tuple(notes)
