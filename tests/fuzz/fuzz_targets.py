"""What is fuzzed: for each kind of file, where it is laid, and the commands that read it.

The commands run as users give them, so that what is checked is what a user sees.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_words
import numpy as np
from make_slides import Image, halves, texture, write_slide
from PIL import Image as Pillow

Commands = list[list[str]]

SHORT = "WSI2IHC_FUZZ_SHORT"
IS_SHORT = bool(os.environ.get(SHORT))
"""Whether commands are left out that take seconds to begin."""

_CPU = ("--device", "cpu")
_SMALL = ("--model", "identity", "--workers", "1", "-q", *_CPU)


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of file.

    name:   also that of its folder in the corpus
    lay:    puts an input into a folder, where a copy of the scene lies; gives the commands to run
    scene:  makes what is there beside the input, once
    kinds:  how inputs are mutated beside bytes, see `fuzz_mutation.mutated`
    words:  what such files are made of
    """

    name: str
    lay: Callable[[Path, Path], Commands]
    scene: Callable[[Path], None] | None = None
    kinds: str = ""
    words: tuple[bytes, ...] = ()


def tissue(side: int = 96) -> Image:
    """A white image with a textured square, which is found to be tissue."""
    image = np.full((side, side, 3), 245, np.uint8)
    image[side // 6 : -side // 6, side // 6 : -side // 6] = texture(side, side)[
        side // 6 : -side // 6, side // 6 : -side // 6
    ]
    return image


def slide(path: Path, side: int = 96) -> Path:
    """A small slide of two levels."""
    return write_slide(path, halves(tissue(side), 2), tile=64, compression="deflate")


def wsi2ihc(*arguments: str | Path) -> None:
    """Run the program, to make a scene."""
    from wsi2ihc.cli.main import main

    try:
        main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        if leaving.code:
            raise RuntimeError(f"no scene: {arguments[0]} ended with {leaving.code}") from leaving


def _read(path: Path, folder: Path, *more: str) -> Commands:
    """Describe a slide and translate a small part of it."""
    region = ("--region", "0,0,48,48", "--tissue", "none", "--mpp", "0.5")
    return [
        ["info", str(path), "--json"],
        ["translate", str(path), str(folder / "out.ome.tiff"), *_SMALL, *region, *more],
    ]


def _laid(folder: Path, source: Path, name: str = "input") -> Path:
    path = folder / f"{name}{''.join(source.suffixes[-2:])}"
    shutil.copyfile(source, path)
    return path


# --- slides and images


def _lay_slide(folder: Path, source: Path) -> Commands:
    return _read(_laid(folder, source), folder)


def _lay_description(folder: Path, source: Path) -> Commands:
    path = folder / "input.ome.tif"
    # tifffile takes bytes as they are, except NUL, with which a description ends
    text = source.read_bytes().replace(b"\0", b"")
    write_slide(path, tissue(), tile=64, compression="deflate", description=text)
    return [["info", str(path), "--json"], ["info", str(path)]]


def _lay_profile(folder: Path, source: Path) -> Commands:
    path = write_slide(folder / "input.tif", tissue(), tile=64, compression="deflate", icc_profile=source.read_bytes())
    return [*_read(path, folder, "--icc", "srgb"), *_read(path, folder, "--overwrite")[1:]]


def _lay_dicom(folder: Path, source: Path) -> Commands:
    (folder / "slide").mkdir()
    path = folder / "slide" / "input.dcm"
    shutil.copyfile(source, path)
    return _read(path, folder)


def _lay_patch(folder: Path, source: Path) -> Commands:
    shutil.copyfile(source, folder / "data" / "train" / f"a_1{source.suffix}")
    if source.suffix != ".png":
        (folder / "data" / "train" / "a_1.png").unlink()
    return [
        ["dataset", str(folder / "data"), "--mpp", "0.5", "--workers", "1", "-q"],
        *_train(folder, *_TINY, "--mpp", "0.5"),
    ]


def _train(folder: Path, *options: str) -> Commands:
    """Do a dry run of training; nothing in the short mode, since training imports libraries for seconds."""
    return [] if IS_SHORT else [["train", str(folder / "data"), "--dry-run", *options, *_CPU, "-q"]]


def _scene_zarr(folder: Path) -> None:
    folder.mkdir()
    wsi2ihc("translate", slide(folder / "slide.tif"), folder / "input.ome.zarr", *_SMALL, "--tissue", "none")


def chunk_of(store: Path) -> Path:
    """The first file of the first level's pixels."""
    return min(path for path in (store / "0").rglob("*") if path.is_file() and path.name != "zarr.json")


def _lay_zarr(folder: Path, source: Path) -> Commands:
    """The input replaces the metadata of the group or of its first level, or a file of that level's, by its suffix."""
    store = folder / "input.ome.zarr"
    content = source.read_bytes()
    if source.suffix == ".json":
        (store / ("0" if b'"node_type": "array"' in content else "") / "zarr.json").write_bytes(content)
    else:
        chunk_of(store).write_bytes(content)
    return _read(store, folder)


# --- masks, tables, transforms, configurations


_FRAME = {"name": "a.tif", "width": 96, "height": 96, "mpp": [0.5, 0.5], "quickhash": None}
TRANSFORM = {
    "format": "wsi2ihc transform",
    "version": 1,
    "fixed": _FRAME,
    "moving": _FRAME | {"name": "b.tif"},
    "matrix": [[1.0, 0.01, 3.0], [-0.01, 1.0, -2.0]],
    "field": None,
}


def _scene_slides(folder: Path) -> None:
    folder.mkdir()
    slide(folder / "a.tif")
    slide(folder / "b.tif")
    (folder / "b.csv").write_text("id,X,Y\n1,20,20\n2,70,20\n3,20,70\n4,70,75\n", encoding="utf-8")
    (folder / "t.json").write_text(json.dumps(TRANSFORM), encoding="utf-8")


def _lay_mask(folder: Path, source: Path) -> Commands:
    path = _laid(folder, source)
    return [["translate", str(folder / "a.tif"), str(folder / "out.ome.tiff"), *_SMALL, "--tissue", str(path)]]


def _lay_list(folder: Path, source: Path) -> Commands:
    path = _laid(folder, source)
    return [["batch", str(path), str(folder / "out"), "--dry-run", "--model", "identity", *_CPU, "-q"]]


def _lay_pairs(folder: Path, source: Path) -> Commands:
    path = _laid(folder, source)
    return [["pairs", str(path), str(folder / "out"), "--dry-run", "--workers", "1", "-q"]]


def _lay_landmarks(folder: Path, source: Path) -> Commands:
    return [
        ["@landmarks", str(_laid(folder, source))]
    ]  # called directly: registering takes seconds before it reads them


def read_landmarks(path: str) -> None:
    """Read the landmarks of one slide as `register` does."""
    from wsi2ihc.registration.landmarks import read_landmarks as read

    read(Path(path), (0.5, 0.5))


def read_config(path: str) -> None:
    """Read a configuration as `train` does."""
    from wsi2ihc.training.options import resolve_options

    resolve_options(config=Path(path))


CALLS = {"@landmarks": read_landmarks, "@config": read_config}
"""Functions that stand for a command that would take too long."""


def _lay_transform(folder: Path, source: Path) -> Commands:
    path = _laid(folder, source)
    if source.suffix == ".npz":
        content = path.read_bytes()
        facts = json.loads((folder / "t.json").read_text(encoding="utf-8"))
        facts["field"] = {
            "file": path.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "origin_um": [0.0, 0.0],
            "spacing_um": 16.0,
            "rows": 7,
            "columns": 7,
        }
        path = folder / "input.json"
        path.write_text(json.dumps(facts), encoding="utf-8")
    return [
        ["warp", str(folder / "b.tif"), str(path), str(folder / "out.ome.tiff"), "--any-slide", "--workers", "1", "-q"]
    ]


_TINY = ("--ngf", "4", "--ndf", "4", "--depth", "1", "--crop-size", "32", "--batch-size", "2", "--workers", "0")


def _scene_pairs(folder: Path) -> None:
    for split, names in {"train": ("a_1", "a_2", "b_1", "b_2"), "val": ("v_1", "v_2")}.items():
        (folder / "data" / split).mkdir(parents=True)
        for seed, name in enumerate(names):
            Pillow.fromarray(texture(64, 32, seed)).save(folder / "data" / split / f"{name}.png")


def _lay_groups(folder: Path, source: Path) -> Commands:
    path = _laid(folder, source)
    return [["dataset", str(folder / "data"), "--group-by", str(path), "--mpp", "0.5", "--workers", "1", "-q"]]


def _lay_config(folder: Path, source: Path) -> Commands:
    path = _laid(folder, source)
    return [["@config", str(path)], *_train(folder, "--config", str(path), "--workers", "0")]


def _lay_facts(folder: Path, source: Path) -> Commands:
    """What a data set says of itself: dataset.json or pairs.csv, by the input's suffix."""
    name = "dataset.json" if source.suffix == ".json" else "pairs.csv"
    shutil.copyfile(source, folder / "data" / name)
    return [["dataset", str(folder / "data"), "--workers", "1", "-q"], *_train(folder, *_TINY)]


# --- models


def _lay_model(folder: Path, source: Path) -> Commands:
    path = folder / "input.safetensors"
    shutil.copyfile(source, path)
    out = str(folder / "out.ome.tiff")
    return [
        ["models", "show", str(path)],
        ["models", "show", str(path), "--json"],
        ["translate", str(folder / "a.tif"), out, "--model", str(path), "--dry-run", *_CPU, "-q"],
    ]


def _lay_weights(folder: Path, source: Path) -> Commands:
    path = _laid(folder, source)
    return [["models", "import", str(path), str(folder / "out.safetensors"), "--mpp", "0.5", "-q"]]


# --- what the program itself leaves


def _scene_batch(folder: Path) -> None:
    (folder / "slides").mkdir(parents=True)
    slide(folder / "slides" / "a.tif")
    slide(folder / "slides" / "b.tif")
    wsi2ihc("batch", folder / "slides", folder / "out", *_SMALL)


def _lay_batch(folder: Path, source: Path) -> Commands:
    """The input replaces the table of results or the marker of a slide that is done, by its suffix."""
    out = folder / "out"
    marker = out / ".wsi2ihc-batch" / "done" / "a.ome.tiff.json"
    shutil.copyfile(source, out / "results.csv" if source.suffix == ".csv" else marker)
    return [["batch", "--status", str(out)], ["batch", "--status", str(out), "--json", "--verify"]]


_BANDS = ("--resume", "--band-height", "128", "--tile-size", "64")


def _scene_bands(folder: Path) -> None:
    """A translation that was interrupted as it wrote what it had done."""
    folder.mkdir()
    writes = 0
    armed = True

    def interrupt(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal writes
        if armed and event == "os.rename" and "/done" in str(arguments[1]):
            writes += 1
            if writes > 2:
                raise KeyboardInterrupt

    sys.addaudithook(interrupt)
    with contextlib.suppress(RuntimeError):
        wsi2ihc("translate", slide(folder / "a.tif", 1024), folder / "out.ome.tiff", *_SMALL, *_BANDS)
    armed = False
    if not (folder / ".out.ome.tiff.bands" / "plan.json").exists():
        raise RuntimeError("no scene: the translation was complete")


def _lay_bands(folder: Path, source: Path) -> Commands:
    """The input replaces a part of what the killed run left, or fields of its plan."""
    store = folder / ".out.ome.tiff.bands"
    if source.suffix == ".json":
        plan = json.loads((store / "plan.json").read_text(encoding="utf-8"))
        try:
            changed = json.loads(source.read_bytes())
            plan.update(changed)
            (store / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        except (ValueError, TypeError, RecursionError):
            (store / "plan.json").write_bytes(source.read_bytes())
    else:
        shutil.copyfile(source, store / "mask.npz")
    return [["translate", str(folder / "a.tif"), str(folder / "out.ome.tiff"), *_SMALL, *_BANDS]]


TARGETS = {
    target.name: target
    for target in (
        Target("tiff", _lay_slide, kinds="tiff"),
        Target("description", _lay_description, kinds="text", words=fuzz_words.XML),
        Target("icc", _lay_profile, words=fuzz_words.ICC),
        Target("dicom", _lay_dicom),
        Target("image", _lay_slide),
        Target("zarr", _lay_zarr, _scene_zarr, "text", fuzz_words.ZARR),
        Target("zarr_chunk", _lay_zarr, _scene_zarr),
        Target("geojson", _lay_mask, _scene_slides, "text", fuzz_words.JSON),
        Target("batch_csv", _lay_list, _scene_slides, "text", fuzz_words.CSV),
        Target("pairs_csv", _lay_pairs, _scene_slides, "text", fuzz_words.CSV),
        Target("landmarks", _lay_landmarks, None, "text", fuzz_words.CSV),
        Target("transform", _lay_transform, _scene_slides, "text", fuzz_words.JSON),
        Target("field", _lay_transform, _scene_slides, "zip", fuzz_words.NPY),
        Target("patch", _lay_patch, _scene_pairs),
        Target("groups_csv", _lay_groups, _scene_pairs, "text", fuzz_words.CSV),
        Target("config", _lay_config, _scene_pairs, "text", fuzz_words.TOML),
        Target("dataset_metadata", _lay_facts, _scene_pairs, "text", fuzz_words.CSV),
        Target("safetensors", _lay_model, _scene_slides, "length", fuzz_words.SAFETENSORS),
        Target("pth", _lay_weights, kinds="zip", words=fuzz_words.PICKLE),
        Target("batch_state", _lay_batch, _scene_batch, "text", fuzz_words.CSV),
        Target("bands_plan", _lay_bands, _scene_bands, "text", fuzz_words.JSON),
        Target("bands_mask", _lay_bands, _scene_bands, "zip"),
    )
}
