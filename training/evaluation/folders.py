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
from wsi2ihc.text import pluralize

from ..data import Pair, PairedData, assign_groups, read_image, read_sizes
from ..data.layouts import level_in_name
from .calibration import Calibration, density_counts, otsu_threshold
from .examples import choose_examples
from .folder_files import HE, REFERENCE, files_by_image
from .methods import Method, floors
from .options import EvaluateOptions
from .patches import describe_images
from .results import Evaluation, MethodResult
from .scores import ImageFacts
from .scoring import interior_margin_px, load_inception_features, score_methods
from .source import AHEAD, THREADS, Sample, Source
from .sums import BINS, Scale


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
        Folder of the references. All folders may be one in which names tell the roles, as pix2pix writes it:
        ``NAME_real_B`` is a reference, ``NAME_fake_B`` a virtual image and ``NAME_real_A`` an H&E image.
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
        If folders do not match, two have one name, an image cannot be read, sizes differ, or two roles are played by
        the same images.
    """
    options = options or EvaluateOptions()
    files, names_read = files_by_image(reference, _named(virtual), he, options.order)
    has_he = HE in next(iter(files.values()))
    pairs = _pairs(reference, files, options)
    sizes = [read_sizes([dataclasses.replace(p, he=own[name]) for p, own in zip(pairs, files.values(), strict=True)])
             for name in next(iter(files.values())) if name]  # fmt: skip
    inception, facts = load_inception_features(options.inception_weights, options.device)
    unit, images = describe_images(pairs, PairedData(reference, "folders", pairs, grouped_by=options.group_by or ""))
    methods = [Method(name, "given", None, halo_px=None) for name in _named(virtual)]
    methods += floors(None, [method.name for method in methods]) if has_he else []
    source = _source(images, list(files.values()))
    calibration = _calibration(list(files.values()), options, progress)
    margin_px = interior_margin_px(min(min(one.smallest.width, one.smallest.height) for one in sizes), methods)
    batch_size = min(options.batch_size, *(one.at_once for one in sizes))
    results = score_methods(
        source, methods, Scale(calibration.stained_from, options.mpp), batch_size=batch_size,
        margin_px=margin_px, inception=inception, seed=options.seed, progress=progress,
    )  # fmt: skip
    _check_not_references(results, len(pairs))
    return Evaluation(
        subject=f"{pluralize(len(pairs), 'image')} of {', '.join(_named(virtual))} against {reference.resolve().name}",
        unit=unit,
        levels=tuple(sorted({pair.her2 for pair in pairs if pair.her2})),
        methods=tuple(results),
        calibration=calibration,
        interior_px=margin_px,
        inception=facts,
        examples=choose_examples(source, results, 1, options.pictures, options.seed),
        notes=(*names_read, *_notes(unit, has_he)),
        facts={
            "data": {"reference": reference.resolve().name, "virtual": list(_named(virtual)), "images": len(pairs)},
            "options": options.stated("group_by", "mpp", "stained_from", "inception_weights", "resamples", "seed"),
        },
    )


def _named(virtual: Sequence[Path]) -> dict[str, Path]:
    """Folders by the names of their methods; the parent's name comes before it where two are alike."""
    names = [folder.resolve().name for folder in virtual]
    if len(set(names)) < len(names):
        names = [f"{folder.resolve().parent.name}/{folder.resolve().name}" for folder in virtual]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"two of the virtual folders are called {twice}; give each folder its own name")
    return dict(zip(names, virtual, strict=True))


def _check_not_references(results: Sequence[MethodResult], count: int) -> None:
    """Refuse virtual images that are the references in other files; no model makes every pixel of every image."""
    for result in results:
        if result.method.kind == "given" and result.scores.subset().identical == count:
            raise DatasetError(
                f"the virtual images of {result.method.name} and the references have the same pixels in every image; "
                "name a folder for each"
            )


def _pairs(reference: Path, files: Mapping[str, Mapping[str, Path]], options: EvaluateOptions) -> tuple[Pair, ...]:
    pairs = tuple(
        Pair(stem, own[REFERENCE], own[REFERENCE], her2=level_in_name(stem)) for stem, own in files.items()
    )  # fmt: skip
    return assign_groups(PairedData(reference, "folders", pairs), options.group_by).pairs


def _source(images: tuple[ImageFacts, ...], files: Sequence[Mapping[str, Path]]) -> Source:
    def load(number: int) -> Sample:
        pixels = {key: read_image(path) for key, path in files[number].items()}
        given = {key: image for key, image in pixels.items() if key not in (REFERENCE, HE)}
        return Sample(images[number], pixels.get(HE), pixels[REFERENCE], given)

    return Source(images, load)


def _calibration(
    files: Sequence[Mapping[str, Path]], options: EvaluateOptions, progress: ProgressCallback
) -> Calibration:
    if options.stained_from is not None:
        return Calibration(options.stained_from, "as stated")
    progress(Progress("looking at the references"))
    counts = np.zeros(BINS)
    with ThreadPoolExecutor(THREADS, "decode") as pool:
        for own in ordered_map(pool, lambda own: density_counts(read_image(own[REFERENCE])), files, AHEAD):
            counts += own
    return Calibration(otsu_threshold(counts), "Otsu's threshold of the scored references")


def _notes(unit: str, has_he: bool) -> tuple[str, ...]:
    notes = ["no training split is at hand: no colour regression, no HER2 cuts"]
    if not has_he:
        notes.append("no H&E images were named (--he), so that the floors cannot be computed")
    if unit == "patches":
        notes.append("intervals are over images; if several belong to one patient or slide, name that with --group-by")
    return tuple(notes)
