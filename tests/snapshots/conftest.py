"""Snapshots of what the program does: each test compares it with a committed file in ``expected/``.

``WSI2IHC_UPDATE_SNAPSHOTS=1 pytest tests/snapshots`` writes the files again; review the difference with git.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import snapshot_inputs as inputs
from snapshot_commands import CPU, LOSSLESS, RECIPES, SMALL_PAIRS, TINY, Ended, Run, run_command
from snapshot_compare import Snapshot

from wsi2ihc.demo import make_demo_pair


@pytest.fixture(scope="session")
def snapshot() -> Snapshot:
    return Snapshot()


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a command in this process."""
    return run_command


@pytest.fixture(scope="session")
def succeed(run: Run) -> Run:
    """Runs a command that has to succeed."""

    def succeed(*arguments: object) -> Ended:
        ended = run(*arguments)
        assert ended.code == 0, ended.err
        return ended

    return succeed


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("snapshots")


@pytest.fixture(scope="session")
def slide(folder: Path) -> Path:
    return inputs.write_pixels(folder / "he.svs", inputs.slide_pixels())


@pytest.fixture(scope="session")
def ihc_slide(folder: Path) -> Path:
    return inputs.write_pixels(folder / "ihc.svs", inputs.slide_pixels(ihc=True))


@pytest.fixture(scope="session")
def networks(folder: Path) -> dict[str, Path]:
    return {
        "batch": inputs.write_network(folder / "batch.safetensors", "batch"),
        "instance": inputs.write_network(folder / "instance.safetensors", "instance"),
    }


@pytest.fixture(scope="session")
def transform(folder: Path) -> Path:
    return inputs.write_transform(folder / "transform")


@pytest.fixture(scope="session")
def patches(folder: Path) -> Path:
    return inputs.write_patches(folder / "patches", {"train": 8, "val": 2, "test": 3})


@pytest.fixture(scope="session")
def slide_pairs(folder: Path) -> Path:
    return inputs.write_slide_pairs(folder / "slide-pairs")


@pytest.fixture(scope="session")
def translated(succeed: Run, slide: Path, networks: dict[str, Path], folder: Path) -> dict[str, tuple[Path, Ended]]:
    """An output of each way to translate, with what the command printed."""
    out = folder / "translated"
    out.mkdir()
    ways: dict[str, tuple[str, list[object]]] = {
        "exact": ("exact.ome.tiff", ["--model", "identity", "--preview", out / "exact.png"]),
        "counterstain": ("counterstain.ome.tiff", ["--model", "counterstain"]),
        "blended": (
            "blended.ome.tiff",
            ["--model", "identity", "--blend", "overlap", "--overlap", 32, "--core-size", 128],
        ),
        "resumed": ("resumed.ome.tiff", ["--model", "counterstain", "--resume", "--band-height", 128]),
        "zarr": ("zarr.ome.zarr", ["--model", "counterstain", "--band-height", 128]),
        "region": ("region.ome.tiff", ["--model", "counterstain", "--region", "130,150,200,170"]),
        "whole": ("whole.ome.tiff", ["--model", "counterstain", "--tissue", "none", "--core-size", 96]),
        "rescaled": ("rescaled.ome.tiff", ["--model", networks["batch"], "--mpp", 1.6]),
        "network": ("network.ome.tiff", ["--model", networks["batch"], "--core-size", 128]),
        "network blended": (
            "network-blended.ome.tiff",
            ["--model", networks["instance"], "--core-size", 128, "--overlap", 64],
        ),
    }
    return {
        way: (out / name, succeed("translate", slide, out / name, *CPU, *LOSSLESS, "--json", "-q", *more))
        for way, (name, more) in ways.items()
    }


@pytest.fixture(scope="session")
def warped(succeed: Run, ihc_slide: Path, transform: Path, folder: Path) -> tuple[Path, Ended]:
    out = folder / "warped.ome.tiff"
    return out, succeed("warp", ihc_slide, transform, out, "--workers", 1, *LOSSLESS, "--json", "-q")


@pytest.fixture(scope="session")
def trained(succeed: Run, patches: Path, folder: Path) -> dict[str, tuple[Path, Ended]]:
    """A run of two steps of each recipe, and a longer one with stain augmentation."""
    runs: dict[str, list[object]] = {
        recipe: ["--recipe", recipe, "--depth", 5 if recipe == "pix2pix" else 1] for recipe in RECIPES
    }
    runs["augmented"] = [*runs["variance"], "--stain-jitter", 0.3, "--ema-decay", 0.5, "--seed", 3, "--epochs", 2]
    return {
        name: (
            folder / "runs" / name,
            succeed("train", patches, "--out", folder / "runs" / name, *TINY, *more, "--json", "-q"),
        )
        for name, more in runs.items()
    }


@pytest.fixture(scope="session")
def evaluated(succeed: Run, patches: Path, networks: dict[str, Path], folder: Path) -> tuple[Path, Ended]:
    out = folder / "evaluation"
    models = ("--model", "counterstain", "--model", networks["batch"])
    options = ("--resamples", 200, "--examples", 1, "--device", "cpu", "--precision", "fp32", "--mpp", 0.5)
    return out, succeed("evaluate", patches, *models, "--out", out, *options, "--json", "-q")


@pytest.fixture(scope="session")
def evaluated_slides(
    succeed: Run, slide: Path, ihc_slide: Path, translated: dict[str, tuple[Path, Ended]], folder: Path
) -> tuple[Path, Ended]:
    out = folder / "evaluation-slides"
    slides = ("--reference-slide", ihc_slide, "--virtual-slide", translated["counterstain"][0], "--he", slide)
    return out, succeed("evaluate", *slides, "--square-um", 160, "--resamples", 100, "--out", out, "--json", "-q")


@pytest.fixture(scope="session")
def pair_dataset(run: Run, slide_pairs: Path, folder: Path) -> tuple[Path, Ended]:
    """A dataset of two pairs of slides; a third one failed."""
    out = folder / "pair-dataset"
    ended = run("pairs", slide_pairs / "partial.csv", out, *SMALL_PAIRS, "--json", "-q")
    assert ended.code == 3, ended.err
    return out, ended


@pytest.fixture(scope="session")
def inspected(succeed: Run, pair_dataset: tuple[Path, Ended], folder: Path) -> tuple[Path, Ended]:
    """A report about the dataset."""
    out = folder / "dataset-report"
    return out, succeed("dataset", pair_dataset[0], "--out", out, "--workers", 1, "--json", "-q")


@pytest.fixture(scope="session")
def registered(succeed: Run, folder: Path) -> tuple[Path, Ended]:
    """A registration of a synthetic pair, with landmarks."""
    pair = folder / "demo-pair"
    pair.mkdir()
    make_demo_pair(pair, size=(1200, 900))
    out = folder / "registered"
    landmarks = ("--landmarks", pair / "he.csv", pair / "ihc.csv")
    return out, succeed("register", pair / "he.tiff", pair / "ihc.tiff", out, *landmarks, "--json", "-q")


@pytest.fixture(scope="session")
def batch(run: Run, slide: Path, folder: Path) -> tuple[Path, Ended]:
    """A batch of one slide that is translated, and one file that is none."""
    listing, out = folder / "batch.csv", folder / "batch"
    (folder / "bad.svs").write_bytes(b"not a slide")
    listing.write_text(f"path\n{slide.name}\nbad.svs\n", encoding="utf-8")
    ended = run("batch", listing, out, "--model", "identity", *CPU, *LOSSLESS, "--keep-going", "--json", "-q")
    assert ended.code == 3, ended.err
    return out, ended
