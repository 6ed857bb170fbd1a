"""What the program prints as JSON and writes into files: keys, types, headers and layouts, not values."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tifffile
from snapshot_commands import CPU, LOSSLESS, RECIPES, SMALL_PAIRS, TINY, Ended, Run, isolated
from snapshot_compare import Snapshot
from snapshot_inputs import BANDED, write_patches
from snapshot_structure import folder_structure, normalized_xml, structure, tiff_structure

import wsi2ihc

Made = tuple[Path, Ended]


def printed(*commands: tuple[str, Ended]) -> list[str]:
    """Return the structure of what commands print, after the name of each."""
    return [line for name, ended in commands for line in (name, *(f"    {one}" for one in structure(ended.json)))]


def beside(name: str, ended: Ended, file: Path) -> list[str]:
    """Return how the structure of what a command prints differs from that of a file which holds nearly the same."""
    one, other = structure(ended.json), structure(json.loads(file.read_text(encoding="utf-8")))
    return [
        f"{name} --json, and {file.name}",
        *(f"    only printed: {line}" for line in one if line not in other),
        *(f"    only in the file: {line}" for line in other if line not in one),
    ]


def test_json_about_slides_and_models(
    snapshot: Snapshot, succeed: Run, slide: Path, networks: dict[str, Path], folder: Path
) -> None:
    lines = printed(
        ("info", succeed("info", slide, "--json")),
        ("tissue", succeed("tissue", slide, folder / "tissue.geojson", "--json")),
        ("models list", succeed("models", "list", "--json")),
        ("models show counterstain", succeed("models", "show", "counterstain", "--json")),
        ("models show pan-ck-demo", succeed("models", "show", "pan-ck-demo", "--json")),
        ("models show FILE", succeed("models", "show", networks["batch"], "--json")),
        ("doctor", succeed("doctor", "--json")),
    )
    outlines = json.loads((folder / "tissue.geojson").read_text(encoding="utf-8"))
    snapshot.lines("json_slides_and_models", [*lines, "tissue.geojson", *structure(outlines)])


def test_names_of_checks_and_models(snapshot: Snapshot, succeed: Run) -> None:
    listed = succeed("models", "list", "--json").json
    names = [f"default model {listed['default']}", *(f"model {model['name']}" for model in listed["models"])]
    checks = succeed("doctor", "--json").json["checks"]
    fixed = [f"check {check['name']}, {'needed' if check['needed'] else 'optional'}" for check in checks]
    snapshot.lines("names", [*names, *(line for line in fixed if "cuda" not in line.lower())])


def test_translation(snapshot: Snapshot, succeed: Run, slide: Path, translated: dict[str, Made], folder: Path) -> None:
    trial = succeed("translate", slide, folder / "dry.ome.tiff", "--model", "identity", *CPU, "--dry-run", "--json")
    lines = printed(("translate --dry-run", trial))
    for way in ("exact", "network blended", "zarr"):
        output, ended = translated[way]
        lines += printed((f"translate, {way}", ended))
        report = json.loads(output.with_name(f"{output.name}.json").read_text(encoding="utf-8"))
        assert report == ended.json
    snapshot.lines("translate", lines)
    snapshot.lines("translate_files", sorted(path.name for path in translated["exact"][0].parent.iterdir()))


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_tiff_layout(snapshot: Snapshot, succeed: Run, slide: Path, folder: Path, compression: str) -> None:
    output = folder / f"layout-{compression}.ome.tiff"
    options = ("--model", "identity", *CPU, "--compression", compression, "--tile-size", 128)
    succeed("translate", slide, output, *options, "-q")
    with tifffile.TiffFile(output) as tiff:
        tables = [page.jpegtables is not None for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
        description = tiff.ome_metadata
    assert description is not None
    snapshot.lines(f"tiff_{compression}", [*tiff_structure(output), f"tables {tables}", *normalized_xml(description)])


def test_openslide_compatible_layout(snapshot: Snapshot, succeed: Run, slide: Path, folder: Path) -> None:
    output = folder / "compatible.ome.tiff"
    succeed("translate", slide, output, "--model", "identity", *CPU, *LOSSLESS, "--openslide-compatible", "-q")
    snapshot.lines("tiff_openslide_compatible", tiff_structure(output))


def test_zarr_layout(snapshot: Snapshot, translated: dict[str, Made]) -> None:
    output, _ = translated["zarr"]
    lines = []
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.name == "zarr.json":
            facts = json.loads(path.read_text(encoding="utf-8"))
            lines += [name, *(f"    {line}" for line in _leaves_with_values(facts))]
        elif path.is_file():
            lines.append(name)
    snapshot.lines("zarr", lines)


def _leaves_with_values(value: Any, path: str = "") -> list[str]:
    """Return the leaves of a JSON object; of the program's own record of what it did, only their types."""
    if path == ".attributes.wsi2ihc":
        return [f"{path}: {line}" for line in structure(value)]
    if isinstance(value, dict):
        return [line for name, below in value.items() for line in _leaves_with_values(below, f"{path}.{name}")]
    if isinstance(value, list) and any(isinstance(below, dict) for below in value):
        return [line for number, below in enumerate(value) for line in _leaves_with_values(below, f"{path}[{number}]")]
    return [f"{path}: {json.dumps(value)}"]


def test_checkpoint_folder_of_bands(snapshot: Snapshot, slide: Path, tmp_path: Path) -> None:
    """A run that is interrupted after its first band leaves its plan and a marker for each band that is done."""
    output = tmp_path / "out.ome.tiff"

    def interrupted(progress: Any) -> None:
        if list(tmp_path.glob(".out*/done/*.json")):
            raise KeyboardInterrupt

    with isolated(), wsi2ihc.open_slide(slide) as opened, pytest.raises(KeyboardInterrupt):
        wsi2ihc.translate(opened, wsi2ihc.load_model("identity"), output, BANDED, progress=interrupted)
    lines = folder_structure(tmp_path, lambda name: "/image.ome.zarr/" in name)
    first = [line for line in lines if not re.search(r"done/(?!0000)\d+\.json$", line)]
    snapshot.lines("bands", first)


def test_warp(snapshot: Snapshot, warped: Made) -> None:
    output, ended = warped
    with tifffile.TiffFile(output) as tiff:
        description = tiff.ome_metadata
    assert description is not None
    report = output.with_name(f"{output.name}.json")
    snapshot.lines("warp", [*printed(("warp", ended)), *beside("warp", ended, report), *normalized_xml(description)])


def test_register(snapshot: Snapshot, registered: Made) -> None:
    output, ended = registered
    snapshot.lines("register", [*beside("register", ended, output / "registration.json"), *folder_structure(output)])


def test_batch(snapshot: Snapshot, run: Run, batch: Made, folder: Path) -> None:
    output, ended = batch
    status = run("batch", "--status", output, "--json")
    same = (folder / "batch.csv", output, "--model", "identity", *CPU, *LOSSLESS)
    trial = run("batch", *same, "--dry-run", "--json")
    lines = printed(("batch", ended), ("batch --status", status), ("batch --dry-run", trial))
    snapshot.lines("batch", [*lines, *folder_structure(output)])
    facts = ended.json
    snapshot.numbers("batch_statuses", {
        "counts": facts["counts"], "statuses": [slide["status"] for slide in facts["slides"]],
        "exit codes": [ended.code, status.code, trial.code],
    })  # fmt: skip


def test_training(snapshot: Snapshot, succeed: Run, patches: Path, trained: dict[str, Made]) -> None:
    trial = succeed("train", patches, *TINY, "--depth", 1, "--dry-run", "--json", "-q")
    lines = printed(("train --dry-run", trial), ("train", trained["variance"][1]))
    lines += ["pix2pix", *folder_structure(trained["pix2pix"][0], lambda name: name != "model.safetensors")]
    lines += ["variance", *folder_structure(trained["variance"][0])]
    snapshot.lines("train", lines)


def test_options_of_recipes(snapshot: Snapshot, succeed: Run, patches: Path) -> None:
    found = {}
    for recipe in RECIPES:
        small = ("--crop-size", 64, "--device", "cpu", "--depth", 5 if recipe == "pix2pix" else 1, "--mpp", 0.5)
        ended = succeed("train", patches, "--recipe", recipe, *small, "--stain", "X", "--dry-run", "--json", "-q")
        found[recipe] = ended.json["options"]
    snapshot.numbers("train_options", found)


def test_evaluation(snapshot: Snapshot, evaluated: Made) -> None:
    output, ended = evaluated
    snapshot.lines("evaluate", [*beside("evaluate", ended, output / "report.json"), *folder_structure(output)])


def test_evaluation_of_folders(snapshot: Snapshot, succeed: Run, patches: Path, folder: Path) -> None:
    virtual, output = write_patches(folder / "virtual", {"test": 3}, seed=200), folder / "evaluation-folders"
    images = ("--reference", patches / "IHC" / "test", "--virtual", virtual / "IHC" / "test")
    options = ("--he", patches / "HE" / "test", "--resamples", 100, "--examples", 0, "--mpp", 0.5)
    ended = succeed("evaluate", *images, *options, "--out", output, "--json", "-q")
    snapshot.lines("evaluate_folders", [*beside("evaluate", ended, output / "report.json"), *folder_structure(output)])


def test_evaluation_of_slides(snapshot: Snapshot, evaluated_slides: Made) -> None:
    output, ended = evaluated_slides
    snapshot.lines("evaluate_slides", [*beside("evaluate", ended, output / "report.json"), *folder_structure(output)])


def test_dataset(snapshot: Snapshot, inspected: Made) -> None:
    output, ended = inspected
    snapshot.lines("dataset", [*beside("dataset", ended, output / "report.json"), *folder_structure(output)])


def test_pairs(snapshot: Snapshot, run: Run, pair_dataset: Made, slide_pairs: Path, folder: Path) -> None:
    output, ended = pair_dataset
    check = run("pairs", "--check", output, "--json")
    trial = run("pairs", slide_pairs / "partial.csv", folder / "none", *SMALL_PAIRS, "--dry-run", "--json", "-q")
    damaged = folder / "damaged-dataset"
    shutil.copytree(output, damaged)
    next(damaged.glob("patches/*/*/*_ihc.png")).unlink()
    problems = run("pairs", "--check", damaged, "--json")
    lines = printed(
        ("pairs", ended), ("pairs --check", check), ("pairs --check, damaged", problems), ("pairs --dry-run", trial)
    )
    snapshot.lines("pairs", [*lines, *folder_structure(output)])
    codes = [ended.code, check.code, problems.code, trial.code]
    snapshot.numbers("pairs_counts", {"exit codes": codes, "counts": ended.json["counts"], "kept": ended.json["kept"]})


def test_demo_pair(snapshot: Snapshot, registered: Made, folder: Path) -> None:
    snapshot.lines("demo_pair", folder_structure(folder / "demo-pair", lambda name: name.endswith(".tiff")))
