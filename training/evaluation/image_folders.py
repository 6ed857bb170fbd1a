"""Evaluate folders of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wsi2ihc.concurrency import Progress, ProgressCallback, ordered_map, silent
from wsi2ihc.errors import DatasetError
from wsi2ihc.files import images_by_stem, same_images
from wsi2ihc.text import pluralize

from ..data import Order, Pair, PairedData, assign_groups, read_image, read_sizes
from ..data.layouts import level_in_name
from ..metrics.bootstrap import ImageMetadata
from ..metrics.pair_statistics import Scale
from .methods import Method, baselines
from .options import EvaluateOptions
from .patches import describe_images
from .results import Evaluation, MethodResult, ThresholdFit, reference_threshold
from .scores import (
    AHEAD,
    THREADS,
    Sample,
    Source,
    choose_examples,
    interior_margin_px,
    load_inception_features,
    score_methods,
)

REFERENCE, HE = "", "\0he"
"""Keys of the files of an image; a folder cannot have these names."""

SHOWN = 5
"""Maximum number of files without a partner that a message names."""

_SUFFIXES: Mapping[Order, tuple[tuple[str, str, str], ...]] = {
    "AB": (("_real_B", "_fake_B", "_real_A"), ("_real_image", "_synthesized_image", "_input_label")),
    "BA": (("_real_A", "_fake_A", "_real_B"),),
}
"""Suffixes of reference, virtual image and H&E image of pix2pix and pix2pixHD, which write all of them into one folder,
and of CycleGAN trained with the IHC as A.
"""

_OTHERS = ("_rec_A", "_rec_B", "_idt_A", "_idt_B", "_fake_A", "_fake_B")
"""Suffixes of other images that these programs write; ignored unless they are listed above."""


def files_by_image(
    reference: Path, virtual: Mapping[str, Path], he: Path | None, order: Order
) -> tuple[dict[str, dict[str, Path]], tuple[str, ...]]:
    """Find the files of every image.

    Parameters
    ----------
    reference
        Folder of the references.
    virtual
        Folders of the virtual images, by method name.
    he
        Folder of the H&E images; None to look for them among the references, by the names of pix2pix.
    order
        "BA" if the H&E is CycleGAN's B.

    Returns
    -------
    tuple
        The files of each image by their keys; and notes, one sentence each.

    Raises
    ------
    DatasetError
        If an image has no partner, or files of two roles are the same.
    """
    found = {REFERENCE: _Role(reference, 0, order), **{name: _Role(one, 1, order) for name, one in virtual.items()}}
    if he is not None:
        found[HE] = _Role(he, 2, order)
    elif found[REFERENCE].suffix and (beside := _Role(reference, 2, order)).suffix:
        found[HE] = beside
    _check_partners(found)
    images = {stem: {key: role.files[stem] for key, role in found.items()} for stem in found[REFERENCE].files}
    _check_roles(images, found)
    kinds = {REFERENCE: "references", HE: "H&E images"}
    taken = [
        f"*{role.suffix} for {kinds.get(key, f'virtual images ({key})')}" for key, role in found.items() if role.suffix
    ]
    return images, (f"file names were interpreted as those of pix2pix:  {', '.join(taken)}",) if taken else ()


class _Role:
    """The files of one role, by image name.

    Parameters
    ----------
    folder
        Folder of the files.
    index
        Index of the role in a row of `_SUFFIXES`.
    order
        As in `files_by_image`.
    """

    def __init__(self, folder: Path, index: int, order: Order) -> None:
        self.folder = folder
        self.suffix = ""
        if not folder.is_dir():
            raise DatasetError(f"there is no folder {folder}" if not folder.exists() else f"{folder} is not a folder")
        if not (files := images_by_stem(folder)):
            raise DatasetError(f"there is no image in {folder}")
        for suffixes in _SUFFIXES[order]:
            end = suffixes[index]
            own = {stem.removesuffix(end): file for stem, file in files.items() if stem.endswith(end)}
            if own and all(stem.endswith((*suffixes, *_OTHERS)) for stem in files):
                self.suffix, files = end, own
                break
        self.files = files

    def __str__(self) -> str:
        return f"{self.folder} (*{self.suffix})" if self.suffix else str(self.folder)


def _check_partners(found: Mapping[str, _Role]) -> None:
    references = found[REFERENCE]
    for role in found.values():
        for unmatched, incomplete in (
            (references.files.keys() - role.files.keys(), role),
            (role.files.keys() - references.files.keys(), references),
        ):
            if unmatched:
                names = sorted(unmatched)
                more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
                raise DatasetError(f"{incomplete} lacks partners of {', '.join(names[:SHOWN])}{more}")


def _check_roles(images: Mapping[str, Mapping[str, Path]], found: Mapping[str, _Role]) -> None:
    """Check that no two roles have the same files: their comparison would look perfect."""
    keys = sorted(found, key=lambda key: (key not in (REFERENCE, HE), key))
    for number, key in enumerate(keys):
        for other in keys[:number]:
            if key not in (REFERENCE, HE) and other not in (REFERENCE, HE):
                continue  # two methods may have the same output
            if same := same_images([(files[key], files[other]) for files in images.values()]):
                raise DatasetError(
                    f"{_role_name(key, found)} and {_role_name(other, found)} are the same images ({same[0].name} and "
                    f"{same[1].name} are one file, or copies); give a separate folder for each"
                )


def _role_name(key: str, found: Mapping[str, _Role]) -> str:
    kind = {REFERENCE: "the references", HE: "the H&E images"}.get(key, "the virtual images")
    return f"{kind} in {found[key]}"


def evaluate_folders(
    reference: Path,
    virtual: Sequence[Path],
    he: Path | None = None,
    options: EvaluateOptions | None = None,
    progress: ProgressCallback = silent,
) -> Evaluation:
    """Score the images of each virtual folder against the reference images of the same names (suffixes may differ).

    Parameters
    ----------
    reference
        Folder of the references. A single folder may hold all roles, named as by pix2pix: ``NAME_real_B`` is a
        reference, ``NAME_fake_B`` a virtual image and ``NAME_real_A`` an H&E image.
    virtual
        Folders of the virtual images; one method each, named after the folder.
    he
        Folder of the H&E images, for the baseline ``counterstain`` and for the examples.
    options
        Evaluation options. HER2 levels are taken from names as in BCI, groups from ``group_by``.
    progress
        Called with the number of images done.

    Raises
    ------
    DatasetError
        If folders do not match, two have the same name, an image cannot be read, sizes differ, or two roles have the
        same images.
    """
    options = options or EvaluateOptions()
    files, name_notes = files_by_image(reference, _named(virtual), he, options.order)
    has_he = HE in next(iter(files.values()))
    named = tuple(Pair(stem, own[REFERENCE], own[REFERENCE], her2=level_in_name(stem)) for stem, own in files.items())
    pairs = assign_groups(PairedData(reference, "folders", named), options.group_by).pairs
    sizes = [read_sizes([dataclasses.replace(p, he=own[name]) for p, own in zip(pairs, files.values(), strict=True)])
             for name in next(iter(files.values())) if name]  # fmt: skip
    inception, metadata = load_inception_features(options.inception_weights, options.device)
    unit, images = describe_images(pairs, PairedData(reference, "folders", pairs, grouped_by=options.group_by or ""))
    methods = [Method(name, "given", None, halo_px=None) for name in _named(virtual)]
    methods += baselines(None, [method.name for method in methods]) if has_he else []
    source = _source(images, list(files.values()))
    threshold_fit = _fit_threshold(list(files.values()), options, progress)
    margin_px = interior_margin_px(min(min(one.smallest.width, one.smallest.height) for one in sizes), methods)
    batch_size = min(options.batch_size, *(one.at_once for one in sizes))
    results = score_methods(
        source, methods, Scale(threshold_fit.stained_from, options.mpp), batch_size=batch_size,
        margin_px=margin_px, inception=inception, seed=options.seed, progress=progress,
    )  # fmt: skip
    _check_not_references(results, len(pairs))
    return Evaluation(
        subject=f"{pluralize(len(pairs), 'image')} of {', '.join(_named(virtual))} against {reference.resolve().name}",
        resampling_unit=unit,
        levels=tuple(sorted({pair.her2 for pair in pairs if pair.her2})),
        methods=tuple(results),
        threshold_fit=threshold_fit,
        interior_px=margin_px,
        inception=metadata,
        examples=choose_examples(source, results, 1, options.examples, options.seed),
        notes=(*name_notes, *_notes(unit, has_he)),
        metadata={
            "data": {"reference": reference.resolve().name, "virtual": list(_named(virtual)), "images": len(pairs)},
            "options": options.stated("group_by", "mpp", "stained_from", "inception_weights", "resamples", "seed"),
        },
    )


def _named(virtual: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by method name; the parent's name is prepended if two folders have the same name."""
    names = [folder.resolve().name for folder in virtual]
    if len(set(names)) < len(names):
        names = [f"{folder.resolve().parent.name}/{folder.resolve().name}" for folder in virtual]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"two of the virtual folders are called {repeated}; rename one of them")
    return dict(zip(names, virtual, strict=True))


def _check_not_references(results: Sequence[MethodResult], count: int) -> None:
    """Check that virtual images are not copies of the references; no model reproduces every pixel of every image."""
    for result in results:
        if result.method.kind == "given" and result.scores.subset().identical == count:
            raise DatasetError(
                f"the virtual images of {result.method.name} and the references have the same pixels in every image; "
                "give a separate folder for each"
            )


def _source(images: tuple[ImageMetadata, ...], files: Sequence[Mapping[str, Path]]) -> Source:
    def load(number: int) -> Sample:
        pixels = {key: read_image(path) for key, path in files[number].items()}
        given = {key: image for key, image in pixels.items() if key not in (REFERENCE, HE)}
        return Sample(images[number], pixels.get(HE), pixels[REFERENCE], given)

    return Source(images, load)


def _fit_threshold(
    files: Sequence[Mapping[str, Path]], options: EvaluateOptions, progress: ProgressCallback
) -> ThresholdFit:
    progress(Progress("reading the references"))
    with ThreadPoolExecutor(THREADS, "decode") as pool:
        references = ordered_map(pool, lambda own: read_image(own[REFERENCE]), files, AHEAD)
        return reference_threshold(references, "scored references", options.stained_from)


def _notes(unit: str, has_he: bool) -> tuple[str, ...]:
    notes = ["there is no training split: no color regression, no HER2 cutoffs"]
    if not has_he:
        notes.append("no H&E images were given (--he): no baselines")
    if unit == "patches":
        notes.append(
            "intervals are over images; if several belong to one patient or slide, give groups with --group-by"
        )
    return tuple(notes)
