"""A small slide, tiny networks, and options with several small bands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from make_slides import tissue_on_background, write_exact

import wsi2ihc
from wsi2ihc.geometry import RGBImage
from wsi2ihc.models.model_file import build_network, save_checkpoint
from wsi2ihc.models.model_spec import GeneratorSpec
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.slide import Slide
from wsi2ihc.translation.options import TranslateOptions

LOSSLESS = PyramidOptions(compression="deflate", tile_px=64)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip syncing to a possibly busy disk in this process; workers do sync."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="session")
def image() -> RGBImage:
    """460×430 px, tissue in the middle 300×290."""
    return tissue_on_background(460, 430, (81, 83, 300, 290))


@pytest.fixture(scope="session")
def slide_file(image: RGBImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as a lossless slide."""
    return write_exact(tmp_path_factory.mktemp("slides") / "tissue.svs", image)


@pytest.fixture
def slide(slide_file: Path) -> Iterator[Slide]:
    with wsi2ihc.open_slide(slide_file) as opened:
        yield opened


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny networks: "batch" is local, "instance" normalizes by the statistics of its window."""
    folder, paths = tmp_path_factory.mktemp("models"), {}
    for norm in ("batch", "instance"):
        torch.manual_seed(7)
        spec = GeneratorSpec(depth=1, width=8, norm=norm, mpp=0.5, stain="HER2")
        network = build_network(spec)
        with torch.no_grad():  # with initial weights the output is gray
            for weights in network.parameters():
                weights.mul_(6.0) if weights.ndim > 1 else None
        paths[norm] = folder / f"{norm}.safetensors"
        save_checkpoint(paths[norm], network, spec)
    return paths


@pytest.fixture
def make_options() -> Callable[..., TranslateOptions]:
    """Return a function that makes options with lossless tiles of 64 px and bands of 128 px."""

    def make(**changes: Any) -> TranslateOptions:
        values = {"pyramid": LOSSLESS, "band_px": 128, "device": "cpu", "precision": "fp32", **changes}
        return TranslateOptions(**values)

    return make
