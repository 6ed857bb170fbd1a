"""Match the image files in the folders of an evaluation, and find the role of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wsi2ihc.errors import DatasetError

from ..data import Order
from ..data.files import images_by_stem, same_images

REFERENCE, HE = "", "\0he"
"""Keys of the files of an image; a folder cannot have these names."""

SHOWN = 5
"""Most files without a partner that a message names."""

_PROGRAMS: Mapping[str, tuple[str, str, str]] = {
    "pix2pix": ("_real_B", "_fake_B", "_real_A"),
    "pix2pixHD": ("_real_image", "_synthesized_image", "_input_label"),
}
"""Suffixes of reference, virtual image and H&E image, of programs that write all into one folder."""

_REVERSED = ("_real_A", "_fake_A", "_real_B")
"""The same for CycleGAN trained with the IHC as A."""

_OTHERS = ("_rec_A", "_rec_B", "_idt_A", "_idt_B", "_fake_A", "_fake_B")
"""Suffixes of other images that these programs write; ignored unless named above."""


def files_by_image(
    reference: Path, virtual: Mapping[str, Path], he: Path | None, order: Order
) -> tuple[dict[str, dict[str, Path]], tuple[str, ...]]:
    """Find the files of every image.

    Parameters
    ----------
    reference
        Folder of the references.
    virtual
        Folders of the virtual images, by the names of their methods.
    he
        Folder of the H&E images; None to look for them among the references, by the names of pix2pix.
    order
        "BA" if the H&E is CycleGAN's B.

    Returns
    -------
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
    return images, tuple(_notes(found))


class _Role:
    """The files of one role, by the name of the image.

    Parameters
    ----------
    folder
        Folder of the files.
    place
        Index of the role in a row of `_PROGRAMS`.
    order
        As in `files_by_image`.
    """

    def __init__(self, folder: Path, place: int, order: Order) -> None:
        self.folder = folder
        self.suffix = ""
        files = _images(folder)
        ends = _REVERSED if order == "BA" else None
        for suffixes in (ends,) if ends else _PROGRAMS.values():
            known = (*suffixes, *_OTHERS)
            own = {
                stem.removesuffix(suffixes[place]): file
                for stem, file in files.items()
                if stem.endswith(suffixes[place])
            }
            if own and all(stem.endswith(known) for stem in files):
                self.suffix, files = suffixes[place], own
                break
        self.files = files

    def __str__(self) -> str:
        return f"{self.folder} (*{self.suffix})" if self.suffix else str(self.folder)


def _images(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}" if not folder.exists() else f"{folder} is not a folder")
    if not (files := images_by_stem(folder)):
        raise DatasetError(f"there is no image in {folder}")
    return files


def _check_partners(found: Mapping[str, _Role]) -> None:
    references = found[REFERENCE]
    for role in found.values():
        for alone, lacking in (
            (references.files.keys() - role.files.keys(), role),
            (role.files.keys() - references.files.keys(), references),
        ):
            if alone:
                names = sorted(alone)
                more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
                raise DatasetError(f"{lacking} lacks partners of {', '.join(names[:SHOWN])}{more}")


def _check_roles(images: Mapping[str, Mapping[str, Path]], found: Mapping[str, _Role]) -> None:
    """Refuse two roles with the same files: their comparison would look perfect."""
    keys = sorted(found, key=lambda key: (key not in (REFERENCE, HE), key))
    for number, key in enumerate(keys):
        for other in keys[:number]:
            if key not in (REFERENCE, HE) and other not in (REFERENCE, HE):
                continue  # two methods may have made the same
            if same := same_images([(files[key], files[other]) for files in images.values()]):
                raise DatasetError(
                    f"{_named(key, found)} and {_named(other, found)} are the same images ({same[0].name} and "
                    f"{same[1].name} are one file, or copies); name a folder for each"
                )


def _named(key: str, found: Mapping[str, _Role]) -> str:
    kind = {REFERENCE: "the references", HE: "the H&E images"}.get(key, "the virtual images")
    return f"{kind} in {found[key]}"


def _notes(found: Mapping[str, _Role]) -> list[str]:
    """Describe which names were taken for which role."""
    kinds = {REFERENCE: "references", HE: "H&E images"}
    taken = [f"*{role.suffix} for {kinds.get(key, f'virtual images ({key})')}" for key, role in found.items()
             if role.suffix]  # fmt: skip
    return [f"names were read as those of pix2pix and its relatives: {', '.join(taken)}"] if taken else []
